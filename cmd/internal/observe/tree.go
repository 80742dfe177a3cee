// Package observe looks at what is shaped: trees with their counters, what is bound and how
// far that holds, the branch of the calling process, interfaces and who shapes them, and the
// proof by packets. It changes nothing, prints nothing, and samples only what it is asked for;
// values have the stable form of JSON output. What is to be said besides it tells by the
// machine that it looks at.
package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
)

// Tree is one interface's tree as it is.
type Tree struct {
	Interface string    `json:"interface"`
	Policy    string    `json:"policy,omitempty"`
	Way       bind.Way  `json:"binding"`
	Why       string    `json:"binding_why,omitempty"`
	Lost      []string  `json:"lost,omitempty"` // what the kernel has not that the last apply made
	Branches  []*Branch `json:"branches"`
}

// Branch is a branch with its counters and what is bound to it.
type Branch struct {
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
	Bound     []Bound              `json:"bound,omitempty"`
	Delegate  []bind.Delegate      `json:"delegate,omitempty"`
	Added     *Added               `json:"added,omitempty"`    // at run time, not in the policy
	NotHeld   []string             `json:"not_held,omitempty"` // processes that are bound, and why they do not hold
}

// Added is who added a branch.
type Added struct {
	By uint32 `json:"by"`
}

// process is one that a binding holds.
type process struct {
	PID  int    `json:"pid"`
	Name string `json:"name"`
}

// Bound is a binding in force, or one that waits, and how far it holds.
type Bound struct {
	Target    bind.Target `json:"target,omitzero"` // empty: not there yet, or not readable
	From      string      `json:"from"`
	AtRuntime bool        `json:"at_runtime,omitempty"` // by bind, not in the policy
	Processes []process   `json:"processes,omitempty"`
	Held
}

// ViewTree reads one interface.
func ViewTree(ctx context.Context, m *shaper.Machine, iface string, sample time.Duration) (*Tree, error) {
	x, s, err := m.TreeOf(ctx, iface)
	if lost := (*shaper.LostError)(nil); errors.As(err, &lost) {
		return &Tree{Interface: iface, Policy: lost.Policy, Lost: lost.What, Branches: []*Branch{}}, err
	}
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	v := &Tree{Interface: iface, Policy: x.Record.Policy, Way: s.Hook.Way}
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
		if first, sending, err = sampled(ctx, m, x.Device, first, sample); err != nil {
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
	bound, err := boundTo(ctx, x.Interface, s.Bound)
	if err != nil {
		return nil, err
	}
	for _, c := range tree.Classes {
		if c.Path == "" {
			c.Path = hierarchy.Path(iface).Join(c.ID.String())
		}
		b := newBranch(c, stats[c.ID], leaves[c.ID])
		b.Bound = bound[c.ID]
		b.delegation(x.Record)
		if sending != nil {
			r := sending[c.ID]
			b.Sending = &r
		}
		v.Branches = append(v.Branches, b)
	}
	unheld, err := UnheldBy(ctx, x, s)
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
func (v *Tree) loses(err error) error {
	if lost := (*shaper.LostError)(nil); errors.As(err, &lost) {
		v.Lost = lost.What
	}
	return err
}

// UnheldBy is what the bindings to each class do not hold, as far as it can be read.
func UnheldBy(ctx context.Context, x *shaper.Target, is hierarchy.State) (map[hierarchy.ClassID][]string, error) {
	if is.Hook.Way == bind.WayNone || x.Blind != nil || x.Keep() != nil {
		return nil, nil
	}
	r, err := x.Binder.Resolve(ctx, x.Record.Branches(), nil)
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

// newBranch is a class with its counters; l is nil for an inner one.
func newBranch(c hierarchy.Class, n tc.ClassStats, l *hierarchy.Leaf) *Branch {
	b := &Branch{Class: c, Bytes: n.Bytes, Packets: n.Packets, Drops: n.Drops, Overlimit: n.Overlimits, Backlog: n.Backlog, Queue: n.QLen}
	if l != nil {
		b.Leaf, b.Qdisc = true, &l.Qdisc
	}
	return b
}

// delegation notes whose branch it is, and whether it is the policy's.
func (b *Branch) delegation(r *record.Record) {
	for _, d := range r.Delegated {
		if d.Path == b.Path {
			b.Delegate = d.To
		}
	}
	for _, a := range r.Added {
		if a.Path == b.Path {
			b.Added = &Added{a.By}
		}
	}
}

// sampled looks a second time and says what every class sent meanwhile.
func sampled(ctx context.Context, m *shaper.Machine, d *tc.Device, first []tc.ClassStats, wait time.Duration) ([]tc.ClassStats, map[hierarchy.ClassID]hierarchy.Bandwidth, error) {
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
	took := time.Since(from)
	was := make(map[hierarchy.ClassID]uint64, len(first))
	for _, c := range first {
		was[c.Class] = c.Bytes
	}
	sending := make(map[hierarchy.ClassID]hierarchy.Bandwidth, len(second))
	for _, c := range second {
		sending[c.Class] = rate(was[c.Class], c.Bytes, took)
	}
	return second, sending, nil
}

// rate is that at which a class went from having sent so many bytes to more.
func rate(was, is uint64, took time.Duration) hierarchy.Bandwidth {
	if is < was { // the class was made anew meanwhile
		return 0
	}
	return hierarchy.Bandwidth(float64(is-was) * 8 / took.Seconds())
}

// order puts branches below their parents, siblings as the policy lists them;
// those that it does not know come last.
func (v *Tree) order(paths []hierarchy.Path) {
	rank := make(map[hierarchy.Path]int, len(paths))
	for i, p := range paths {
		rank[p] = i - len(paths)
	}
	children := map[hierarchy.ClassID][]*Branch{}
	for _, b := range v.Branches {
		children[b.Parent] = append(children[b.Parent], b)
	}
	v.Branches = v.Branches[:0:0]
	var walk func(hierarchy.ClassID)
	walk = func(id hierarchy.ClassID) {
		list := children[id]
		slices.SortStableFunc(list, func(a, b *Branch) int { return cmp.Compare(rank[a.Path], rank[b.Path]) })
		for _, b := range list {
			v.Branches = append(v.Branches, b)
			walk(b.ID)
		}
	}
	walk(hierarchy.ID(0))
}

// boundTo is what is bound to each class, with the processes in it.
func boundTo(ctx context.Context, x *shaper.Interface, all []hierarchy.Bound) (map[hierarchy.ClassID][]Bound, error) {
	held, err := x.Held(all)
	if err != nil {
		return nil, err
	}
	atRuntime := map[string]bool{}
	for _, b := range x.Record.Bindings {
		atRuntime[b.Binding.String()] = b.AtRuntime
	}
	out := map[hierarchy.ClassID][]Bound{}
	for _, b := range all {
		v := Bound{Target: b.Target, From: b.From, AtRuntime: atRuntime[b.From]}
		for _, pid := range held[b.Target] {
			// One that has ended meanwhile has no name any more.
			if name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid)); err == nil {
				v.Processes = append(v.Processes, process{pid, strings.TrimSuffix(string(name), "\n")})
			}
		}
		out[b.Class] = append(out[b.Class], v)
	}
	return out, holds(ctx, x, out)
}

// name says what is bound.
func (b *Bound) name() string {
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
func (b *Bound) String() string {
	s := b.name()
	if b.AtRuntime {
		s += ", at run time"
	}
	if held := b.Summary(); held != "" {
		s += ": " + held
	}
	if len(b.Processes) > 0 {
		s += ": " + processNames(b.Processes)
	}
	return s
}

// BoundBy says by what.
func (v *Tree) BoundBy() string {
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
