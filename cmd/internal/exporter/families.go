package exporter

import (
	"io"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/metrics"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
)

// look is what was seen at one time.
type look struct {
	version    string
	interfaces []*observe.Figures
	agent      bool             // there is one
	policies   []record.Enabled // that it applies
	took       time.Duration
}

// family is one of those that branches have.
type family struct {
	name string
	t    metrics.Type
	help string
	// of is what a branch counts, false where it does not.
	of func(b *observe.Figure) (uint64, bool)
}

const (
	contains = " A branch with others in it contains them: add up leaves, or one level."
	ofLeaves = " Of leaves alone, for only they have a queue."
)

func all(of func(*observe.Figure) uint64) func(*observe.Figure) (uint64, bool) {
	return func(b *observe.Figure) (uint64, bool) { return of(b), true }
}

func leaves(of func(*observe.Figure) uint64) func(*observe.Figure) (uint64, bool) {
	return func(b *observe.Figure) (uint64, bool) {
		if b.Queue == nil {
			return 0, false
		}
		return of(b), true
	}
}

// families are those of branches, in the order of the page.
func families() []family {
	return []family{
		{"vifshape_branch_bytes_total", metrics.Counter, "Bytes that the branch has let through." + contains,
			all(func(b *observe.Figure) uint64 { return b.Bytes })},
		{"vifshape_branch_packets_total", metrics.Counter, "Packets that the branch has let through; one that is split later counts as its segments." + contains,
			all(func(b *observe.Figure) uint64 { return b.Packets })},
		{"vifshape_branch_dropped_packets_total", metrics.Counter, "Packets that the queue of the branch has dropped, as they came or while they waited." + ofLeaves,
			leaves(func(b *observe.Figure) uint64 { return uint64(b.Queue.Drops) })},
		{"vifshape_branch_marked_packets_total", metrics.Counter, "Packets that the queue of the branch has marked by ECN, where it would have dropped them otherwise; with red and choke also such as it then dropped." + ofLeaves,
			leaves(func(b *observe.Figure) uint64 { return b.Queue.Marks })},
		{"vifshape_branch_overlimits_total", metrics.Counter, "How often the branch was at its ceiling, if only for a moment, as packets larger than its cburst bring about at any rate. What branches in it did is not contained.",
			all(func(b *observe.Figure) uint64 { return uint64(b.Overlimit) })},
		{"vifshape_branch_lent_packets_total", metrics.Counter, "Packets, not split, that went within the rate of the branch itself: its own, or those of branches in it that borrowed from it.",
			all(func(b *observe.Figure) uint64 { return uint64(b.Lent) })},
		{"vifshape_branch_borrowed_packets_total", metrics.Counter, "Packets, not split, of the branch and of those in it, that went with what a branch above it lent.",
			all(func(b *observe.Figure) uint64 { return uint64(b.Borrowed) })},
		{"vifshape_branch_backlog_bytes", metrics.Gauge, "Bytes that wait in the queue of the branch." + ofLeaves,
			leaves(func(b *observe.Figure) uint64 { return uint64(b.Backlog) })},
		{"vifshape_branch_backlog_packets", metrics.Gauge, "Packets, not split, that wait in the queue of the branch." + ofLeaves,
			leaves(func(b *observe.Figure) uint64 { return uint64(b.Counters.Queue) })},
	}
}

// write writes down what was seen. The labels of a branch are its whole path, and never the
// number of its class: that may become another branch's.
func (l *look) write(w io.Writer) error {
	p := metrics.NewPage(w)
	var branches []*observe.Figure
	var labels []metrics.Labels
	for _, f := range l.interfaces {
		for i := range f.Branches {
			b := &f.Branches[i]
			branches = append(branches, b)
			labels = append(labels, metrics.LabelsOf("interface", f.Interface, "branch", string(b.Path), "direction", b.Direction.String()))
		}
	}
	for _, f := range families() {
		p.Family(f.name, f.t, f.help)
		for i, b := range branches {
			if v, ok := f.of(b); ok {
				p.Count(labels[i], v)
			}
		}
	}
	p.Family("vifshape_branch_rate_bytes_per_second", metrics.Gauge, "What the branch is guaranteed, in bytes.")
	for i, b := range branches {
		p.Sample(labels[i], bytes(b.Rate))
	}
	p.Family("vifshape_branch_ceil_bytes_per_second", metrics.Gauge, "What the branch may reach when others leave it something to borrow, in bytes.")
	for i, b := range branches {
		p.Sample(labels[i], bytes(b.Ceil))
	}
	p.Family("vifshape_branch_info", metrics.Gauge, "Always 1: the branch that it is in, and the kind of its queue, which a branch with others in it has not.")
	for _, f := range l.interfaces {
		for _, b := range f.Branches {
			kind := ""
			if b.Queue != nil {
				kind = b.Queue.Kind
			}
			p.Count(metrics.LabelsOf("interface", f.Interface, "branch", string(b.Path), "direction", b.Direction.String(), "parent", string(b.Above), "qdisc", kind), 1)
		}
	}
	p.Family("vifshape_interface_present", metrics.Gauge, "1: the interface is there; 0: it has a policy or limits, and is not.")
	for _, f := range l.interfaces {
		p.Count(metrics.LabelsOf("interface", f.Interface), one(!f.Absent))
	}
	p.Family("vifshape_interface_shaped", metrics.Gauge, "1: the interface, which is there, is shaped as it was applied; 0: something of that is gone, or it could not be read. vifshape show says what.")
	for _, f := range l.interfaces {
		if !f.Absent {
			p.Count(metrics.LabelsOf("interface", f.Interface), one(f.Err == nil))
		}
	}
	p.Family("vifshape_policy_in_force", metrics.Gauge, "1: the agent has brought the policy of its directory into force, as far as interfaces are there; 0: it has a mistake, could not be applied, or went back, and what was in force stays. The agent's log says why.")
	for _, f := range l.policies {
		p.Count(metrics.LabelsOf("policy", f.Policy), one(f.Why == ""))
	}
	p.Family("vifshape_agent_running", metrics.Gauge, "1: the agent runs, which binds what appears later; 0: it does not.")
	p.Count("", one(l.agent))
	p.Family("vifshape_build_info", metrics.Gauge, "Always 1: the version of vifshape that tells this.")
	p.Count(metrics.LabelsOf("version", l.version), 1)
	p.Family("vifshape_scrape_duration_seconds", metrics.Gauge, "How long it took to read all of this from the kernel.")
	p.Sample("", l.took.Seconds())
	return p.End()
}

func bytes(b hierarchy.Bandwidth) float64 { return float64(b) / 8 }

func one(is bool) uint64 {
	if is {
		return 1
	}
	return 0
}
