package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/latency"
)

// Latencies are how long packets waited, and what measuring that took.
type Latencies struct {
	Ports   []*Latency     `json:"ports"`
	Took    time.Duration  `json:"took"`
	Cost    *time.Duration `json:"cost,omitempty"`         // of processors, for the packets of other interfaces, too
	Runs    uint64         `json:"runs,omitempty"`         // of programs, that took it
	Unknown string         `json:"cost_unknown,omitempty"` // why that is not known
	Missed  uint64         `json:"missed,omitempty"`       // times that a program could not run
	Whole   string         `json:"undivided,omitempty"`    // why parts of packets could not be followed
}

// Latency is how long packets waited in the branches of an interface in one direction.
type Latency struct {
	Interface string              `json:"interface"`
	Direction hierarchy.Direction `json:"direction"`
	Branches  []LatencyBranch     `json:"branches"`
}

// LatencyBranch is how long the packets of a branch waited, or of all leaves below it. A
// packet that is sent in segments is one.
type LatencyBranch struct {
	Path    hierarchy.Path `json:"path"`
	Kind    string         `json:"kind,omitempty"` // of a leaf's queue
	Packets uint64         `json:"packets"`        // that left
	P50     time.Duration  `json:"p50"`
	P99     time.Duration  `json:"p99"`
	Longest time.Duration  `json:"longest"`
	Mean    time.Duration  `json:"mean"`
	Waiting uint64         `json:"waiting"`
	Untimed uint64         `json:"untimed"`
	Drops   []LatencyDrop  `json:"drops,omitempty"`

	waits latency.Waits
	id    hierarchy.ClassID
	above hierarchy.ClassID
}

// Dropped are all packets that were dropped.
func (b *LatencyBranch) Dropped() (n uint64) {
	for _, d := range b.Drops {
		n += d.Packets
	}
	return n
}

// LatencyDrop is a reason for which packets were dropped.
type LatencyDrop struct {
	Reason  string `json:"reason,omitempty"` // the kernel's name for it
	Means   string `json:"means"`
	Packets uint64 `json:"packets"`
}

// Timed is an interface whose packets are to be timed.
type Timed struct {
	x     *shaper.Target
	ports []timedPort
}

// timedPort is a tree on a port.
type timedPort struct {
	index    uint32
	is       hierarchy.PortState
	branches []*Branch // in the order of display
	stats    func() ([]tc.ClassStats, error)
}

// leaves are the branches with queues: also one whose queue somebody took away, in the place
// of which the kernel put one of its own.
func (p *timedPort) leaves() (all []*Branch) {
	inner := map[hierarchy.ClassID]bool{}
	for _, b := range p.branches {
		inner[b.Parent] = true
	}
	for _, b := range p.branches {
		if !inner[b.ID] {
			all = append(all, b)
		}
	}
	return all
}

// kind is that of the queue of a leaf, of which the kernel does not list its own.
func (b *Branch) kind() string {
	if b.Qdisc == nil {
		return "pfifo"
	}
	return b.Qdisc.Kind
}

// TimedOf finds what there is to be measured on an interface.
func TimedOf(ctx context.Context, m *shaper.Machine, iface string) (*Timed, error) {
	x, s, err := m.TreeOf(ctx, iface)
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	if s.Hook.Way == bind.WayClsCgroup {
		return nil, fmt.Errorf("%s: packets do not show the class that the kernel's own cgroup classifier gives them: bind with bpf, nft or net_cls with BPF", iface)
	}
	t := &Timed{x: x}
	in, err := x.Receiver.Index()
	if err != nil {
		return nil, err
	}
	for _, p := range []timedPort{
		{index: x.Device.Index, is: x.On(s), stats: x.Device.Stats}, {index: in, is: x.In(s), stats: x.Receiver.Stats},
	} {
		if len(p.is.Classes) == 0 {
			continue
		}
		v := &Tree{Branches: branches(p.is, hierarchy.PortState{}, counted{}, counted{})}
		v.order(x.Record.Order)
		p.branches = v.Branches
		t.ports = append(t.ports, p)
	}
	return t, nil
}

// CheckPath says whether an interface has a branch; empty: none is asked for.
func (t *Timed) CheckPath(p hierarchy.Path) error {
	if p == "" {
		return nil
	}
	return t.x.CheckPath(p)
}

// timedLeaf is a leaf of such a tree.
type timedLeaf struct {
	port  *timedPort
	class hierarchy.ClassID
}

// Measure takes the time that packets wait, for a while, and takes away again all that it
// takes for that.
func Measure(ctx context.Context, all []*Timed, took time.Duration) (*Latencies, error) {
	var queues []latency.Queue
	var leaves []timedLeaf
	for _, t := range all {
		for i := range t.ports {
			p := &t.ports[i]
			for _, b := range p.leaves() {
				queues = append(queues, latency.Queue{Index: p.index, Class: b.ID, Kind: b.kind()})
				leaves = append(leaves, timedLeaf{p, b.ID})
			}
		}
	}
	if err := caps.Lacking(unix.CAP_BPF, unix.CAP_PERFMON); err != nil {
		return nil, fmt.Errorf("measure: %w", err)
	}
	var here unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &here); err != nil {
		return nil, fmt.Errorf("network namespace: %w", err)
	}
	m, err := latency.Begin(here.Ino, queues)
	if err != nil {
		return nil, caps.Explain(err, unix.CAP_BPF, unix.CAP_PERFMON)
	}
	defer m.Close()
	began := time.Now()
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(took):
	}
	out := &Latencies{Ports: []*Latency{}, Took: time.Since(began)}
	r, err := m.End(func() ([]uint64, error) { return waiting(leaves) })
	if err != nil {
		return nil, err
	}
	out.costs(r)
	by := map[timedLeaf]*latency.Measured{}
	for i, l := range leaves {
		by[l] = &r.Queues[i]
	}
	for _, t := range all {
		for i := range t.ports {
			out.Ports = append(out.Ports, t.ports[i].latency(t.x, by))
		}
	}
	return out, nil
}

// waiting are the packets that wait in leaves now.
func waiting(leaves []timedLeaf) ([]uint64, error) {
	stats := map[*timedPort]classStats{}
	n := make([]uint64, len(leaves))
	for i, l := range leaves {
		if stats[l.port] == nil {
			all, err := l.port.stats()
			if err != nil {
				return nil, err
			}
			stats[l.port] = byClass(all)
		}
		n[i] = uint64(stats[l.port][l.class].QLen)
	}
	return n, nil
}

func (l *Latencies) costs(r *latency.Result) {
	switch l.Missed = r.Cost.Missed; {
	case errors.Is(r.Cost.Unknown, unix.EPERM):
		l.Unknown = "that takes CAP_SYS_ADMIN"
	case r.Cost.Unknown != nil:
		l.Unknown = r.Cost.Unknown.Error()
	default:
		l.Cost, l.Runs = &r.Cost.Programs, r.Cost.Runs
	}
	if r.Undivided != nil {
		l.Whole = r.Undivided.Error()
	}
}

// latency is what was measured of a tree.
func (p *timedPort) latency(x *shaper.Target, by map[timedLeaf]*latency.Measured) *Latency {
	v := &Latency{Interface: x.Record.Interface, Direction: p.is.Port.Direction}
	for _, b := range p.branches {
		lb := LatencyBranch{Path: x.BranchOf(b.ID), id: b.ID, above: b.Parent}
		if m := by[timedLeaf{p, b.ID}]; m != nil {
			lb.Kind, lb.waits, lb.Waiting, lb.Untimed = b.kind(), m.Waits, m.Waiting, m.Untimed
			for _, d := range m.Drops {
				lb.Drops = append(lb.Drops, LatencyDrop{d.Reason, dropMeans(d.Reason, lb.Kind), d.Packets})
			}
		}
		v.Branches = append(v.Branches, lb)
	}
	v.sum()
	return v
}

// sum adds what leaves have to those above them, which stand before them.
func (v *Latency) sum() {
	at := map[hierarchy.ClassID]*LatencyBranch{}
	for i := range v.Branches {
		at[v.Branches[i].id] = &v.Branches[i]
	}
	for i := len(v.Branches) - 1; i >= 0; i-- {
		b := &v.Branches[i]
		if up := at[b.above]; up != nil {
			up.waits.Add(&b.waits)
			up.Waiting += b.Waiting
			up.Untimed += b.Untimed
			for _, d := range b.Drops {
				up.drop(d)
			}
		}
		w := &b.waits
		b.Packets, b.P50, b.P99, b.Longest, b.Mean = w.Packets, w.Quantile(0.5), w.Quantile(0.99), w.Longest, w.Mean()
		slices.SortFunc(b.Drops, func(a, b LatencyDrop) int {
			return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Means, b.Means))
		})
	}
}

// drop adds packets that were dropped.
func (b *LatencyBranch) drop(d LatencyDrop) {
	for i := range b.Drops {
		if b.Drops[i].Reason == d.Reason && b.Drops[i].Means == d.Means {
			b.Drops[i].Packets += d.Packets
			return
		}
	}
	b.Drops = append(b.Drops, d)
}

// dropMeans is what a reason of the kernel says of a kind of queue (enum skb_drop_reason,
// include/net/dropreason-core.h, v6.18). Older kernels have fewer, and QDISC_DROP for all that a
// queue does not take; what it drops later has no reason there.
func dropMeans(reason, kind string) string {
	fifo := slices.Contains([]string{"bfifo", "pfifo", "pfifo_head_drop", "skbprio"}, kind)
	codel := slices.Contains([]string{"cake", "codel", "fq_codel"}, kind)
	switch {
	case reason == "QDISC_OVERLIMIT", reason == "QDISC_DROP" && fifo:
		return "queue full"
	case reason == "QDISC_CONGESTED", reason == "NOT_SPECIFIED" && codel:
		return "to slow senders down"
	case reason == "QDISC_DROP":
		return kind + " did not keep it, and this kernel does not say why"
	case reason == "", reason == "NOT_SPECIFIED":
		return "this kernel does not say why"
	case reason == "CAKE_FLOOD":
		return "a flow that does not slow down"
	case reason == "FQ_BAND_LIMIT", reason == "FQ_FLOW_LIMIT":
		return "a band or a flow full"
	case reason == "FQ_HORIZON_LIMIT":
		return "to be sent too late"
	}
	return strings.ToLower(strings.ReplaceAll(reason, "_", " "))
}
