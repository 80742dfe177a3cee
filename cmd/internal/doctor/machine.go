package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// examination is what doctor finds out, and what it is found out with.
type examination struct {
	remedies
	m        *shaper.Machine
	report   cgroup.Report
	settings cgroup.Settings
	way      bind.Way            // that auto takes here
	ways     map[bind.Way]string // why the interface cannot have a way that cgroup can
	rules    []string            // chains of the firewall that choose classes
	links    []link.Link
	hardware map[string]bool // interfaces that are
	all      []Finding
}

func examine(m *shaper.Machine) (*examination, error) {
	x := &examination{m: m, report: cgroup.Probe(), ways: map[bind.Way]string{}, hardware: map[string]bool{}}
	var err error
	x.remedies, err = newRemedies()
	return x, err
}

func (x *examination) root() bool { return x.report.Privileges == nil }

// try looks at one thing. That it cannot be looked at is a finding as any other, and
// ends nothing.
func (x *examination) try(at Finding, look func() error) {
	if err := look(); err != nil {
		at.State, at.Text = Unknown, "could not be looked at: "+err.Error()
		x.add(at)
	}
}

// machine finds out what concerns every interface.
func (x *examination) machine(ctx context.Context) {
	f := Finding{Group: groupMachine, Topic: "privileges", State: good, Needed: true, Text: "all that apply, run and clear need"}
	if !x.root() {
		f.State, f.Text = Unknown, x.report.Privileges.Error()
		f.Follows = "check, plan, ls and show work without; some of what follows could not be tried"
		if os.Geteuid() != 0 {
			f.Fix = []string{"sudo vifshape doctor"}
		}
	}
	x.add(f)
	x.add(Finding{Group: groupMachine, Topic: "kernel", State: good, Text: fmt.Sprintf("Linux %s (%s)", x.release, runtime.GOARCH)})
	x.try(Finding{Group: groupMachine, Topic: "timers"}, x.timers)
	noClsact := false
	x.try(Finding{Group: groupQueueing, Topic: "htb", Needed: true}, func() (err error) {
		noClsact, err = x.qdiscs(ctx)
		return err
	})
	x.try(Finding{Group: groupQueueing, Topic: "leaf qdiscs", Needed: true}, func() error { return x.leaves(ctx) })
	x.classifiers(noClsact)
	x.bindings()
	x.try(Finding{Group: groupBinding, Topic: "settings"}, func() (err error) {
		x.settings, err = cgroup.ReadSettings()
		return err
	})
	x.cgroups()
	x.bpf()
	x.try(Finding{Group: groupBinding, Topic: "firewall"}, x.firewall)
}

func (x *examination) timers() error {
	hz, err := tc.TimerRate()
	if errors.Is(err, fs.ErrNotExist) {
		return nil // without traffic control, which is said elsewhere
	}
	if err != nil {
		return err
	}
	x.add(timerFinding(hz))
	return nil
}

// timerFinding says what follows from how often a second a queue can be woken.
func timerFinding(hz uint64) Finding {
	f := Finding{Group: groupMachine, Topic: "timers", State: good, Text: "high resolution"}
	if hz < 1_000_000 {
		f.State, f.Text = Weaker, fmt.Sprintf("%d ticks a second, no high resolution", hz)
		f.Follows = fmt.Sprintf("queues are served every %.3g ms: a burst below what the rate sends in that time loses throughput", 1000/float64(hz))
	}
	return f
}

// qdiscs asks for those that every tree takes.
func (x *examination) qdiscs(ctx context.Context) (noClsact bool, err error) {
	lo, err := tc.Find(x.m.Conn, "lo")
	if err != nil {
		return false, err
	}
	lacking, err := qdisc.Ask(lo.Interface).Lacks(ctx, "htb", "clsact")
	if err != nil {
		return false, err
	}
	x.kind("htb", "sch_htb", true, slices.Contains(lacking, "htb"), "trees are made of it")
	return slices.Contains(lacking, "clsact"), nil
}

// leaves asks for the qdiscs that leaves can have.
func (x *examination) leaves(ctx context.Context) error {
	lo, err := tc.Find(x.m.Conn, "lo")
	if err != nil {
		return err
	}
	have, lack, err := qdisc.Ask(lo.Interface).Leaves(ctx)
	if err != nil {
		return err
	}
	f := Finding{Group: groupQueueing, Topic: "leaf qdiscs", State: good, Needed: true, Text: strings.Join(have, ", "), Names: have}
	if len(have) == 0 {
		f.State, f.Text = Missing, "none"
	}
	x.add(f)
	if len(lack) > 0 {
		f := Finding{Group: groupQueueing, Topic: "other leaf qdiscs", State: Missing, Text: strings.Join(lack, ", "), Names: lack}
		f.Follows = "branches can have none of these"
		if slices.Contains(lack, "fq_codel") {
			f.Follows += fmt.Sprintf("; those that name none get %s, in which one large flow delays the others of its branch", qdisc.DefaultKind(have))
		}
		for _, k := range lack {
			_, fix := x.module("sch_" + k)
			f.Fix = append(f.Fix, fix...)
		}
		if x.modules == "" {
			f.Follows += "; this kernel has no modules here: it takes one that was built with them"
		}
		x.unsure(&f)
		x.add(f)
	}
	return nil
}

// kind adds a finding about a part of the kernel that is there or not.
func (x *examination) kind(topic, module string, needed, lacking bool, text string) {
	f := Finding{Group: groupQueueing, Topic: topic, State: good, Needed: needed, Text: text}
	if lacking {
		why, fix := x.module(module)
		f.State, f.Text, f.Follows, f.Fix = Missing, "not in this kernel: "+why, text, fix
		x.unsure(&f)
	}
	x.add(f)
}

// unsure softens what was read from lists of modules only.
func (x *examination) unsure(f *Finding) {
	if f.State == Missing && !x.root() {
		f.State = Unknown
		f.Text = "not in the lists of this kernel's modules: " + strings.TrimPrefix(f.Text, "not in this kernel: ")
		f.Follows = strings.TrimPrefix(f.Follows+"; root can ask the kernel itself", "; ")
	}
}

// classifiers asks in a network namespace of its own, where filters and interfaces of
// kind ifb can be tried.
func (x *examination) classifiers(noClsact bool) {
	var lacks map[string]string
	noIFB, noRedirect, tried := false, false, false
	if x.root() {
		x.try(Finding{Group: groupQueueing, Topic: "classifiers", Needed: true}, func() error {
			return shaper.WithLoopback(func(c *rtnl.Conn, lo *tc.Device) error {
				has, err := link.HasIFB(c)
				noIFB = err == nil && !has
				redirects, e := hook.HasRedirect(c)
				noRedirect = e == nil && !redirects
				err = errors.Join(err, e)
				lacks, e = shaper.MissingClassifiers(lo)
				tried = err == nil && e == nil
				return errors.Join(err, e)
			})
		})
	}
	for _, w := range x.report.Ways {
		if w.Err != nil {
			continue
		}
		if what := lacks[shaper.Classifier(w.Way)]; what != "" {
			x.ways[w.Way] = what + " is missing"
		} else if x.way == bind.WayNone {
			x.way = w.Way
		}
	}
	program := shaper.Classifier(x.way) == "bpf"
	x.kind("clsact", "sch_ingress", program, noClsact, "the place of the program that classifies, for bindings bpf and net_cls")
	switch {
	case tried:
		if !noClsact {
			x.kind("cls_bpf", "cls_bpf", program, lacks["bpf"] != "", "runs that program")
			x.kind("cls_cgroup", "cls_cgroup", false, lacks["cgroup"] != "", "for binding cls_cgroup, where BPF is not to be had")
		}
		x.kind("ifb", "ifb", false, noIFB, "carries what an interface receives, where a policy has ingress")
		x.kind("act_mirred", "act_mirred", false, noRedirect, "hands on to it what interfaces without a link-layer header receive, and below Linux 6.4 all")
	case !x.root():
		f := Finding{Group: groupQueueing, Topic: "cls_bpf", State: good, Needed: program, Text: "runs that program"}
		if has, known := hook.HasBPF(); !has {
			f.State, f.Text = Unknown, "not to be seen without privileges"
			if known {
				f.Text = "not in the lists of this kernel's modules"
			}
		}
		x.add(f)
	}
}

// bindingsOf says which ways there are to tell whose a packet is.
func (x *examination) bindings() {
	for _, w := range x.report.Ways {
		f := Finding{Group: groupBinding, Topic: string(w.Way), State: good, Text: w.Text}
		switch no := x.ways[w.Way]; {
		case w.Err != nil && !x.root() && errors.Is(w.Err, caps.ErrNotPrivileged):
			f.State, f.Text = Unknown, w.Err.Error()
		case w.Err != nil:
			f.State, f.Text = Missing, w.Err.Error()
		case no != "":
			f.State, f.Text = Missing, no
		default:
			f.Weak = w.Weak
		}
		if w.Way == x.way {
			f.Text += "; auto takes this"
			if len(f.Weak) > 0 {
				f.State = Weaker
			}
		}
		x.add(f)
	}
	f := Finding{Group: groupBinding, Topic: "any binding", State: good, Needed: true, Text: "programs and services can be kept in branches"}
	switch {
	case x.way != bind.WayNone:
	case !x.root():
		f.State, f.Text = Unknown, "none could be tried without privileges"
	default:
		f.State, f.Text = Missing, "nothing here tells whose a packet is"
	}
	x.add(f)
	if x.way != bind.WayNone && x.root() {
		x.add(receivingFinding(x.way))
	}
	for _, n := range x.report.Notes {
		x.add(Finding{Group: groupBinding, Topic: "note", State: good, Text: n})
	}
}

// receivingFinding says how what is received is told apart, and what of it is not.
func receivingFinding(w bind.Way) Finding {
	f := Finding{Group: groupBinding, Topic: "ingress", State: good, Text: "received packets are of the branch of the flow that they answer to, else of who would receive them"}
	r, err := bpf.Receives(w)
	switch {
	case err != nil:
		f.State, f.Text, f.Follows = Missing, err.Error(), "ingress in a policy is refused"
		return f
	case r.Looks:
		return f
	}
	f.State, f.Text = Weaker, "received packets are of the branch of the flow that they answer to"
	f.Follows = "who would receive what answers to nothing is looked up with binding bpf and Linux 6.2 or later with BTF alone"
	f.Weak = []string{"what nobody has asked for: datagrams to who never sends, and the first packet of a connection from outside, go to the rest"}
	if w == bind.WayNft {
		f.Weak = append(f.Weak, "connections from outside: what comes before the program that accepts them sends goes to the rest")
	}
	return f
}

// initialCgroupNS is the cgroup namespace of the machine itself
// (PROC_CGROUP_INIT_INO, include/linux/proc_ns.h, v6.1).
const initialCgroupNS = "cgroup:[4026531835]"

// cgroups says how they are mounted and who keeps them.
func (x *examination) cgroups() {
	s := x.settings
	x.add(Finding{Group: groupBinding, Topic: "cgroups", State: good, Text: x.report.Layout})
	f := Finding{Group: groupBinding, Topic: "cgroup v2", State: good, Text: "mounted at " + s.Cgroup2}
	if s.Cgroup2 == "" {
		f.State, f.Text = Weaker, "not mounted in this mount namespace"
		f.Follows = "bindings by BPF name cgroups that nobody here can look at"
		// Below /sys/fs/cgroup there may be sysfs, or a file system that is read-only.
		f.Fix = []string{"mkdir -p /run/cgroup2 && mount -t cgroup2 -o nsdelegate cgroup2 /run/cgroup2"}
	}
	x.add(f)
	if s.Cgroup2 != "" {
		f := Finding{Group: groupBinding, Topic: "nsdelegate", State: good, Text: "processes cannot leave their cgroup namespace"}
		if !s.Delegate {
			// A remount sets all of the options anew, and none of them in another
			// cgroup namespace (apply_cgroup_root_flags, kernel/cgroup/cgroup.c, v6.1).
			options := append(slices.DeleteFunc(slices.Clone(s.Options), func(o string) bool { return o == "rw" || o == "ro" }), "nsdelegate")
			f.State, f.Text = Weaker, "not among the options of "+s.Cgroup2
			f.Follows = "root in a container that may write to the cgroups it sees can move itself out of its branch"
			if ns, err := os.Readlink("/proc/self/ns/cgroup"); err == nil && ns == initialCgroupNS {
				f.Fix = []string{fmt.Sprintf("mount -o remount,%s %s", strings.Join(options, ","), words.Quoted(s.Cgroup2))}
			} else {
				f.Follows += "; it is for the initial cgroup namespace to set"
			}
		}
		x.add(f)
	}
	text := "systemd: unit: and slice: name what it runs"
	if !s.Systemd {
		text = "not systemd: name cgroups by cgroup:/PATH, where unit: and slice: find nothing"
	}
	x.add(Finding{Group: groupBinding, Topic: "kept by", State: good, Text: text})
}

// bpf says how the kernel runs programs, and whose.
func (x *examination) bpf() {
	f := Finding{Group: groupBinding, Topic: "BPF programs", State: good, Text: "compiled to machine code"}
	switch c := x.settings.Compiled; {
	case c == nil:
		f.State, f.Text = Unknown, "none could be loaded to see whether they are compiled"
	case !*c:
		f.State, f.Text = Weaker, "interpreted"
		f.Follows = "every packet costs more"
		// In other namespaces than the first there is no such file to tell.
		if _, err := os.Stat("/proc/sys/net/core/bpf_jit_enable"); err == nil {
			f.Fix = []string{"sysctl -w net.core.bpf_jit_enable=1"}
		}
	}
	x.add(f)
	f = Finding{Group: groupBinding, Topic: "BPF users", State: good}
	switch u := x.settings.Unprivileged; u {
	case "":
		f.State, f.Text = Missing, "this kernel has no bpf(2)"
	case "0":
		f.Text = "everybody may load some kinds of programs; none of them can take the classifier away"
	default:
		f.Text = "only those with CAP_BPF (kernel.unprivileged_bpf_disabled = " + u + ")"
	}
	x.add(f)
	text := "the kernel describes its types"
	if !x.settings.BTF {
		text = "the kernel does not describe its types: see what bpf is weaker in, and open sockets of processes are reached by their descriptors alone"
	}
	x.add(Finding{Group: groupBinding, Topic: "BTF", State: good, Text: text})
}

// firewall says who else chooses classes.
func (x *examination) firewall() error {
	f := Finding{Group: groupBinding, Topic: "firewall", State: good, Text: "no rule writes the priority of packets"}
	if !x.root() {
		f.State, f.Text = Unknown, "its rules cannot be listed without privileges"
		x.add(f)
		return nil
	}
	var err error
	if x.rules, err = nft.PriorityRules(); err != nil {
		return err
	}
	if len(x.rules) > 0 {
		f.State, f.Names = Weaker, x.rules
		f.Text = "rules write the priority of packets: " + strings.Join(x.rules, ", ")
		switch x.way {
		case bind.WayBPF, bind.WayNetCls:
			f.Follows = "on interfaces that vifshape shapes they come to nothing: the classifier runs after them and writes it anew"
		default:
			f.Follows = "a class that they write may go before the binding's"
		}
		if x.rules[0] == "module xt_CLASSIFY" {
			f.Fix = []string{"iptables -t mangle -S | grep CLASSIFY"}
		} else {
			chain := strings.Fields(x.rules[0])
			for i := range chain {
				chain[i] = words.Quoted(chain[i])
			}
			f.Fix = []string{"nft -a list chain " + strings.Join(chain, " ")}
		}
	}
	x.add(f)
	return nil
}
