package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/qdisc"
)

type showOptions struct {
	json   bool
	sample time.Duration
}

func newShowCommand(e *env) *cobra.Command {
	var o showOptions
	c := &cobra.Command{
		Use:   "show [PATH]",
		Short: "Show the tree as the kernel has it, with counters, bindings and processes",
		Long: `Show reads the kernel and prints every branch, or those from PATH down: its
guarantee and ceiling, its queue, what it has sent and dropped, what is waiting,
and whose traffic it carries. With --sample it looks twice and also prints what
each branch is sending. It needs no privileges; without them it cannot read the
bindings in force, and prints those of the policy.

A binding says how many processes it names, and how many of the sockets that they
have open carry the branch: what these send by the interface is the branch's. The
others are listed with the branch whose they are. Such a socket was opened before its
process came here, or by somebody else who handed it on; attach carries it over. Not
counted is what has no address yet, and has not sent. A process in another network
namespace has its sockets there: what is forwarded for it is the branch's where its
interface is bound. vifshape prove tries it out.

EXIT STATUS
  0   done
  1   an error, there is no such branch, or the kernel has not all that the last
      apply made: others may take a tree away
  64  wrong flags or arguments`,
		Args: args(0, 1, "one path at most"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			if c.Flags().Changed("sample") && o.sample <= 0 {
				return usagef("--sample %v is no time to wait: write one like 1s", o.sample)
			}
			p, err := optionalPath(a)
			if err != nil {
				return err
			}
			return e.show(c.Context(), p, o)
		}),
	}
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	c.Flags().DurationVar(&o.sample, "sample", 0, "look twice, `TIME` apart, and print what is being sent")
	return c
}

// showJSON is the stable form of show.
type showJSON struct {
	Interfaces []*treeView `json:"interfaces"`
}

// treeView is one interface's tree as it is.
type treeView struct {
	Interface string        `json:"interface"`
	Policy    string        `json:"policy,omitempty"`
	Way       bind.Way      `json:"binding"`
	Why       string        `json:"binding_why,omitempty"`
	Lost      []string      `json:"lost,omitempty"` // what the kernel has not that the last apply made
	Branches  []*branchView `json:"branches"`
}

type branchView struct {
	hierarchy.Class
	Leaf      bool                 `json:"leaf"`
	Qdisc     *hierarchy.Qdisc     `json:"qdisc,omitempty"`
	Bytes     uint64               `json:"bytes"`
	Packets   uint64               `json:"packets"`
	Drops     uint32               `json:"drops"`
	Overlimit uint32               `json:"overlimits"`
	Backlog   uint32               `json:"backlog_bytes"`
	Queue     uint32               `json:"backlog_packets"`
	Sending   *hierarchy.Bandwidth `json:"sending,omitempty"` // with --sample
	Bound     []boundView          `json:"bound,omitempty"`
	Delegate  []bind.Delegate      `json:"delegate,omitempty"`
	Added     *addedView           `json:"added,omitempty"`    // at run time, not in the policy
	NotHeld   []string             `json:"not_held,omitempty"` // processes that are bound, and why they do not hold
}

// addedView is who added a branch.
type addedView struct {
	By uint32 `json:"by"`
}

// process is one that a binding holds.
type process struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
}

type boundView struct {
	Target    bind.Target `json:"target,omitzero"` // empty: not there yet, or not readable
	From      string      `json:"from"`
	AtRuntime bool        `json:"at_runtime,omitempty"` // by bind, not in the policy
	Processes []process   `json:"processes,omitempty"`
	heldView
}

func (e *env) show(ctx context.Context, path hierarchy.Path, o showOptions) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	out := showJSON{Interfaces: []*treeView{}}
	err = e.each(m, path, func(iface string) error {
		v, err := viewTree(m, ctx, iface, o.sample)
		if v == nil {
			return err
		}
		if path != "" && len(v.Branches) > 0 {
			v.Branches = slices.DeleteFunc(v.Branches, func(b *branchView) bool { return !b.Path.Below(path) })
			if len(v.Branches) == 0 {
				return fmt.Errorf("there is no branch %s", path)
			}
		}
		out.Interfaces = append(out.Interfaces, v)
		return err
	})
	if err != nil && !onlyLost(err) {
		return err
	}
	if len(out.Interfaces) == 0 {
		e.notef("no interface is shaped by vifshape in this network namespace")
	}
	if o.json {
		return errors.Join(e.json(out), err)
	}
	for _, v := range out.Interfaces {
		if len(v.Branches) == 0 {
			continue // its tree is lost, which is said as the error
		}
		if err := v.write(e.stdout, newKindTable(qdisc.Kinds())); err != nil {
			return err
		}
	}
	return err
}

// each looks at the interface of a path or, where that is empty, at all that have a
// policy. Of those the user is told which are not there, and what they have lost.
func (e *env) each(m *shaper.Machine, path hierarchy.Path, look func(iface string) error) error {
	if path != "" {
		return look(path.Interface())
	}
	ifaces, err := m.Ours()
	if err != nil {
		return err
	}
	var lost error
	for _, i := range ifaces {
		err := look(i)
		switch {
		case onlyLost(err):
			e.report(err)
			lost = codeError(exitError)
		case err != nil && !e.noTree(i, err):
			return err
		}
	}
	return lost
}

// noTree says whether err is only that an interface with a policy is not there, and
// tells the user.
func (e *env) noTree(iface string, err error) bool {
	var gone *link.NotFoundError
	if !errors.As(err, &gone) {
		return false
	}
	e.notef("%s has a policy and is not there now", iface)
	return true
}

// viewTree reads one interface.
func viewTree(m *shaper.Machine, ctx context.Context, iface string, sample time.Duration) (*treeView, error) {
	x, s, err := m.TreeOf(ctx, iface)
	if lost := (*shaper.LostError)(nil); errors.As(err, &lost) {
		return &treeView{Interface: iface, Policy: lost.Policy, Lost: lost.What, Branches: []*branchView{}}, err
	}
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	v := &treeView{Interface: iface, Policy: x.Record.Policy, Way: s.Hook.Way}
	if v.Why, err = x.Binder.Why(); errors.Is(err, caps.ErrNotPrivileged) {
		v.Why = "cannot be read without privileges"
	} else if err != nil {
		return nil, err
	}
	if x.Blind != nil {
		m.Notef(hierarchy.Path(iface), "%s: without privileges the bindings in force cannot be read; those of the last apply are shown", iface)
		s.Bound = nil
	}
	s.Bound = x.Named(s.Bound, x.Blind != nil)
	first, err := x.Device.Stats()
	if err != nil {
		return nil, err
	}
	var sending map[hierarchy.ClassID]hierarchy.Bandwidth
	if sample > 0 {
		if first, sending, err = sampled(m, ctx, x.Device, first, sample); err != nil {
			return nil, err
		}
	}
	stats := make(map[hierarchy.ClassID]tc.ClassStats, len(first))
	for _, c := range first {
		stats[c.Class] = c
	}
	tree := x.On(s)
	leaves := make(map[hierarchy.ClassID]*hierarchy.Leaf, len(tree.Leaves))
	for i := range tree.Leaves {
		leaves[tree.Leaves[i].Class] = &tree.Leaves[i]
	}
	bound, err := boundTo(x.Interface, s.Bound)
	if err != nil {
		return nil, err
	}
	for _, c := range tree.Classes {
		if c.Path == "" {
			c.Path = hierarchy.Path(iface).Join(c.ID.String())
		}
		b := newBranchView(c, stats[c.ID], leaves[c.ID])
		b.Bound = bound[c.ID]
		b.delegation(x.Record)
		if sending != nil {
			r := sending[c.ID]
			b.Sending = &r
		}
		v.Branches = append(v.Branches, b)
	}
	unheld, err := unheldBy(x, s)
	if err != nil {
		return nil, err
	}
	for _, b := range v.Branches {
		b.NotHeld = unheld[b.ID]
	}
	v.order(x.Record.Order)
	return v, v.loses(x.Losses(s))
}

// loses notes what is lost, which err says.
func (v *treeView) loses(err error) error {
	if lost := (*shaper.LostError)(nil); errors.As(err, &lost) {
		v.Lost = lost.What
	}
	return err
}

// unheldBy is what the bindings to each class do not hold, as far as it can be read.
func unheldBy(x *shaper.Target, is hierarchy.State) (map[hierarchy.ClassID][]string, error) {
	if is.Hook.Way == bind.WayNone || x.Blind != nil || x.Keep() != nil {
		return nil, nil
	}
	r, err := x.Binder.Resolve(x.Record.Branches())
	if err != nil {
		return nil, err
	}
	all := map[hierarchy.ClassID][]string{}
	for _, o := range r.Outside {
		if _, class, ok := x.Record.Leaf(o.Path); ok {
			all[class] = append(all[class], shaper.BindingText(o.Binding)+": "+o.String())
		}
	}
	in := map[bind.Target]hierarchy.ClassID{}
	for _, b := range is.Bound {
		in[b.Target] = b.Class
	}
	for _, b := range r.Bound {
		if in[b.Target] != b.Class {
			all[b.Class] = append(all[b.Class], b.From+": "+notBound(b.Target))
		}
	}
	return all, nil
}

// newBranchView is a class with its counters; l is nil for an inner one.
func newBranchView(c hierarchy.Class, n tc.ClassStats, l *hierarchy.Leaf) *branchView {
	b := &branchView{Class: c, Bytes: n.Bytes, Packets: n.Packets, Drops: n.Drops, Overlimit: n.Overlimits, Backlog: n.Backlog, Queue: n.QLen}
	if l != nil {
		b.Leaf, b.Qdisc = true, &l.Qdisc
	}
	return b
}

// delegation notes whose branch it is, and whether it is the policy's.
func (b *branchView) delegation(r *record.Record) {
	for _, d := range r.Delegated {
		if d.Path == b.Path {
			b.Delegate = d.To
		}
	}
	for _, a := range r.Added {
		if a.Path == b.Path {
			b.Added = &addedView{a.By}
		}
	}
}

// sampled looks a second time and says what every class sent meanwhile.
func sampled(m *shaper.Machine, ctx context.Context, d *tc.Device, first []tc.ClassStats, wait time.Duration) ([]tc.ClassStats, map[hierarchy.ClassID]hierarchy.Bandwidth, error) {
	from := time.Now()
	select {
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	case <-time.After(wait):
	}
	second, err := d.Stats()
	if err != nil {
		return nil, nil, err
	}
	took := time.Since(from).Seconds()
	was := make(map[hierarchy.ClassID]uint64, len(first))
	for _, c := range first {
		was[c.Class] = c.Bytes
	}
	sending := make(map[hierarchy.ClassID]hierarchy.Bandwidth, len(second))
	for _, c := range second {
		if from := was[c.Class]; c.Bytes > from { // fewer: the class was made anew meanwhile
			sending[c.Class] = hierarchy.Bandwidth(float64(c.Bytes-from) * 8 / took)
		}
	}
	return second, sending, nil
}

// order puts branches below their parents, siblings as the policy lists them;
// those that it does not know come last.
func (v *treeView) order(paths []hierarchy.Path) {
	rank := make(map[hierarchy.Path]int, len(paths))
	for i, p := range paths {
		rank[p] = i - len(paths)
	}
	children := map[hierarchy.ClassID][]*branchView{}
	for _, b := range v.Branches {
		children[b.Parent] = append(children[b.Parent], b)
	}
	v.Branches = v.Branches[:0:0]
	var walk func(hierarchy.ClassID)
	walk = func(id hierarchy.ClassID) {
		list := children[id]
		slices.SortStableFunc(list, func(a, b *branchView) int { return cmp.Compare(rank[a.Path], rank[b.Path]) })
		for _, b := range list {
			v.Branches = append(v.Branches, b)
			walk(b.ID)
		}
	}
	walk(hierarchy.ID(0))
}

// boundTo is what is bound to each class, with the processes in it.
func boundTo(x *shaper.Interface, all []hierarchy.Bound) (map[hierarchy.ClassID][]boundView, error) {
	held, err := x.Held(all)
	if err != nil {
		return nil, err
	}
	atRuntime := map[string]bool{}
	for _, b := range x.Record.Bindings {
		atRuntime[b.Binding.String()] = b.AtRuntime
	}
	out := map[hierarchy.ClassID][]boundView{}
	for _, b := range all {
		v := boundView{Target: b.Target, From: b.From, AtRuntime: atRuntime[b.From]}
		for _, pid := range held[b.Target] {
			// One that has ended meanwhile has no name any more.
			if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
				v.Processes = append(v.Processes, process{pid, strings.TrimSuffix(string(name), "\n")})
			}
		}
		out[b.Class] = append(out[b.Class], v)
	}
	return out, holds(x, out)
}

// boundTo says by what.
func (v *treeView) bound() string {
	switch {
	case v.Way != bind.WayNone:
		return fmt.Sprintf("%s (%s)", v.Way, v.Why)
	case v.Why != "":
		return "a classifier that " + v.Why
	case len(v.Lost) > 0:
		return "nothing (" + v.Lost[0] + ")"
	}
	return "nothing"
}

// write prints the tree as a table.
func (v *treeView) write(w io.Writer, kinds kindTable) error {
	fmt.Fprintf(w, "%s: bound by %s", v.Interface, v.bound())
	if v.Policy != "" {
		fmt.Fprintf(w, ", from %s", words.Printable(v.Policy))
	}
	if len(v.Branches) > 0 && v.Branches[0].Link != (hierarchy.LinkLayer{}) {
		fmt.Fprintf(w, ", packets counted with %v", v.Branches[0].Link)
	}
	fmt.Fprintln(w)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	head := "BRANCH\tCLASS\tRATE\tCEIL\tPRIO\tSENT\tDROPPED\tWAITING"
	sampled := len(v.Branches) > 0 && v.Branches[0].Sending != nil
	if sampled {
		head += "\tSENDING"
	}
	fmt.Fprintln(t, head+"\tQDISC")
	for _, b := range v.Branches {
		prio, qdisc := "-", "-"
		if b.Qdisc != nil {
			prio, qdisc = fmt.Sprint(b.Prio), kinds.text(*b.Qdisc)
		}
		fmt.Fprintf(t, "%s\t%v\t%s\t%s\t%s\t%s\t%d\t%s", words.Indented(b.Path), b.ID, words.Short(b.Rate), words.Short(b.Ceil), prio, words.Bytes(b.Bytes), b.Drops, words.Bytes(uint64(b.Backlog)))
		if sampled {
			fmt.Fprintf(t, "\t%s", words.Short(*b.Sending))
		}
		fmt.Fprintf(t, "\t%s\n", qdisc)
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, b := range v.Branches {
		for _, x := range b.Bound {
			fmt.Fprintf(w, "  %s: %s\n", b.Path, &x)
			for _, line := range x.reasons() {
				fmt.Fprintf(w, "    %s\n", line)
			}
		}
		for _, text := range b.NotHeld {
			fmt.Fprintf(w, "  %s: not held: %s\n", b.Path, words.Printable(text))
		}
		b.writeDelegation(w)
	}
	return nil
}

// writeDelegation prints a line for each thing to say of it.
func (b *branchView) writeDelegation(w io.Writer) {
	if len(b.Delegate) > 0 {
		fmt.Fprintf(w, "  %s: delegated to %s\n", b.Path, words.Printable(record.Delegated{To: b.Delegate}.Names()))
	}
	switch {
	case b.Added == nil:
	case b.Added.By == 0:
		fmt.Fprintf(w, "  %s: added at run time\n", b.Path)
	default:
		fmt.Fprintf(w, "  %s: added at run time by user %d\n", b.Path, b.Added.By)
	}
}

// name says what is bound.
func (b *boundView) name() string {
	s := words.Printable(b.From)
	switch {
	case s == "":
		s = words.TargetText(b.Target)
	case b.Target.Kind != bind.TargetNone && b.Target.String() != b.From:
		s += " (" + words.TargetText(b.Target) + ")"
	}
	return s
}

// String says what is bound, which processes that is, and how far it holds them.
func (b *boundView) String() string {
	s := b.name()
	if b.AtRuntime {
		s += ", at run time"
	}
	if held := b.summary(); held != "" {
		s += ": " + held
	}
	if len(b.Processes) > 0 {
		s += ": " + processNames(b.Processes)
	}
	return s
}

// onlyLost says whether err is that something is lost, which keeps nobody from looking
// at the rest.
func onlyLost(err error) bool {
	var lost *shaper.LostError
	var said codeError // by each
	return errors.As(err, &lost) || errors.As(err, &said)
}
