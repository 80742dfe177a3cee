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
	"slices"
	"time"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc"
)

// Tree is one interface's tree as it is.
type Tree struct {
	Interface string              `json:"interface"`
	Policy    string              `json:"policy,omitempty"`
	Selector  hierarchy.Selector  `json:"selector,omitempty"` // by which that names the interface, where it is no name
	Link      hierarchy.Bandwidth `json:"link,omitzero"`      // what the line carries, of which the rates are a share
	Way       bind.Way            `json:"binding"`
	Why       string              `json:"binding_why,omitempty"`
	Lost      []string            `json:"lost,omitempty"` // what the kernel has not that the last apply made
	Branches  []*Branch           `json:"branches"`
	Flows     *Flows              `json:"flows,omitempty"` // of what it receives
}

// Branch is a branch with its counters and what is bound to it.
type Branch struct {
	hierarchy.Class
	Leaf  bool             `json:"leaf"`
	Qdisc *hierarchy.Qdisc `json:"qdisc,omitempty"`
	Counters
	Sending  *hierarchy.Bandwidth `json:"sending,omitempty"` // with --sample
	Ingress  *Received            `json:"ingress,omitempty"`
	Bound    []Bound              `json:"bound,omitempty"`
	Match    []match.Match        `json:"match,omitempty"` // of the policy, where they are in force
	Delegate []bind.Delegate      `json:"delegate,omitempty"`
	Added    *Added               `json:"added,omitempty"`    // at run time, not in the policy
	NotHeld  []string             `json:"not_held,omitempty"` // processes that are bound, and why they do not hold
}

// Counters are what a branch has let through in one direction, and its queue.
type Counters struct {
	Bytes     uint64 `json:"bytes"`
	Packets   uint64 `json:"packets"`
	Drops     uint32 `json:"drops"`
	Overlimit uint32 `json:"overlimits"`
	Backlog   uint32 `json:"backlog_bytes"`
	Queue     uint32 `json:"backlog_packets"`
}

// Limits are what a branch may have in one direction.
type Limits struct {
	Rate    hierarchy.Bandwidth `json:"rate"`
	Ceil    hierarchy.Bandwidth `json:"ceil"`
	Burst   hierarchy.Size      `json:"burst"`
	CBurst  hierarchy.Size      `json:"cburst"`
	Quantum hierarchy.Size      `json:"quantum"`
	Prio    uint8               `json:"prio"`
}

func limitsOf(c hierarchy.Class) Limits {
	return Limits{c.Rate, c.Ceil, c.Burst, c.CBurst, c.Quantum, c.Prio}
}

// Received is a branch in the tree for what its interface receives.
type Received struct {
	Limits
	Qdisc *hierarchy.Qdisc `json:"qdisc,omitempty"`
	Counters
	Receiving *hierarchy.Bandwidth `json:"receiving,omitempty"` // with --sample
}

// Flows says how full the table is by which received packets get their branch.
type Flows struct {
	Known   int    `json:"known"`
	Room    int    `json:"room"`
	Noted   uint64 `json:"noted"`   // since the table was made
	Evicted uint64 `json:"evicted"` // of these, at least, to make room
	Unknown uint64 `json:"unknown"` // packets whose flow nobody knew: matches say where they go, else it is the rest
	matched bool   // there are matches
}

// String says it in words.
func (f *Flows) String() string {
	s := fmt.Sprintf("%s known, room for %d", words.Number(f.Known, "flow", "flows"), f.Room)
	to := "to the rest"
	if f.matched {
		to = "where matches have them, else to the rest"
	}
	if f.Evicted > 0 {
		s += fmt.Sprintf("; %d made room for others, and what they are sent goes %s until they send again", f.Evicted, to)
	}
	if f.Unknown > 0 {
		s += fmt.Sprintf("; %d packets were of none, and went %s", f.Unknown, to)
	}
	return s
}

// FlowsOf looks at the table of an interface; nil: it has none, or it may not be looked at.
func FlowsOf(x *shaper.Interface) (*Flows, error) {
	t, err := x.Binder.Flows()
	if errors.Is(err, caps.ErrNotPrivileged) || err == nil && t.Room == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	f := &Flows{Known: t.Flows, Room: t.Room, Noted: t.Noted, Unknown: t.Unknown, matched: x.Record.Matches}
	if t.Noted > uint64(t.Flows) {
		f.Evicted = t.Noted - uint64(t.Flows)
	}
	return f, nil
}

// Added is who added a branch.
type Added struct {
	By    uint32 `json:"by"`
	Limit string `json:"limit,omitempty"` // what a limit is on, that it is for
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
	if v.Link = x.Record.Link; x.Record.Policy == record.NoPolicy {
		v.Link = 0
	}
	if by := x.Record.Selector; !by.Plain() {
		v.Selector = by
	}
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
	now, err := count(x.Interface)
	if err != nil {
		return nil, err
	}
	was := now
	if sample > 0 {
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(sample):
		}
		if now, err = count(x.Interface); err != nil {
			return nil, err
		}
	}
	bound, err := boundTo(ctx, x.Interface, s.Bound)
	if err != nil {
		return nil, err
	}
	matches, err := matchesOf(m, x, s)
	if err != nil {
		return nil, err
	}
	for _, b := range branches(x.On(s), x.In(s), was, now) {
		if b.Path == "" {
			b.Path = hierarchy.Path(iface).Join(b.ID.String())
		}
		b.Bound, b.Match = bound[b.ID], matches[b.Path]
		b.delegation(x.Record)
		v.Branches = append(v.Branches, b)
	}
	if v.Flows, err = FlowsOf(x.Interface); err != nil {
		return nil, err
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

// matchesOf are the matches that the policy of an interface gives branches, where the program
// is there that goes by them.
func matchesOf(m *shaper.Machine, x *shaper.Target, s hierarchy.State) (map[hierarchy.Path][]match.Match, error) {
	if !x.Record.Matches || x.Blind == nil && s.Hook.Match == 0 {
		return nil, nil
	}
	spec, err := m.Store.Spec(x.Record)
	if err != nil {
		return nil, err
	}
	all := map[hierarchy.Path][]match.Match{}
	var walk func(hierarchy.Path, *hierarchy.BranchSpec)
	walk = func(p hierarchy.Path, b *hierarchy.BranchSpec) {
		all[p] = b.Match
		for _, c := range b.Children {
			walk(p.Join(c.Name), c)
		}
	}
	walk(hierarchy.Path(spec.Interface), &spec.BranchSpec)
	return all, nil
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

// branches are the classes of an interface where it sends, each with what it is where it
// receives, and with the counters of now, and the bandwidth since a look before it.
func branches(sends, receives hierarchy.PortState, was, now counted) []*Branch {
	leaves, in := leavesOf(sends), map[hierarchy.ClassID]*Received{}
	queues := leavesOf(receives)
	for _, c := range receives.Classes {
		r := &Received{Limits: limitsOf(c), Counters: counters(now.received[c.ID]), Receiving: bandwidth(was.received, now.received, c.ID, now.at.Sub(was.at))}
		if l := queues[c.ID]; l != nil {
			r.Qdisc = &l.Qdisc
		}
		in[c.ID] = r
	}
	var all []*Branch
	for _, c := range sends.Classes {
		b := &Branch{Class: c, Counters: counters(now.sent[c.ID]), Sending: bandwidth(was.sent, now.sent, c.ID, now.at.Sub(was.at)), Ingress: in[c.ID]}
		if l := leaves[c.ID]; l != nil {
			b.Leaf, b.Qdisc = true, &l.Qdisc
		}
		all = append(all, b)
	}
	return all
}

func leavesOf(s hierarchy.PortState) map[hierarchy.ClassID]*hierarchy.Leaf {
	leaves := make(map[hierarchy.ClassID]*hierarchy.Leaf, len(s.Leaves))
	for i := range s.Leaves {
		leaves[s.Leaves[i].Class] = &s.Leaves[i]
	}
	return leaves
}

func counters(n tc.ClassStats) Counters {
	return Counters{Bytes: n.Bytes, Packets: n.Packets, Drops: n.Drops, Overlimit: n.Overlimits, Backlog: n.Backlog, Queue: n.QLen}
}

// classStats are counters by class.
type classStats map[hierarchy.ClassID]tc.ClassStats

// counted are the counters of an interface at one time.
type counted struct {
	at             time.Time
	sent, received classStats
}

// count reads the counters of an interface, of both directions.
func count(x *shaper.Interface) (c counted, err error) {
	if c.sent, err = countPort(x.Device); err != nil {
		return c, err
	}
	c.at = time.Now()
	c.received, err = countPort(x.Receiver)
	return c, err
}

// port is what counts in one direction.
type port interface {
	Stats() ([]tc.ClassStats, error)
	LeafStats() ([]tc.LeafStats, error)
}

// countPort reads the counters of one direction. What a leaf drops is what its queue does: a
// class does not see what is dropped when it takes a packet out, as codel does.
func countPort(p port) (classStats, error) {
	classes, err := p.Stats()
	if err != nil {
		return nil, err
	}
	all := byClass(classes)
	leaves, err := p.LeafStats()
	for _, l := range leaves {
		if c, there := all[l.Class]; there {
			c.Drops = l.Drops
			all[l.Class] = c
		}
	}
	return all, err
}

func byClass(all []tc.ClassStats) classStats {
	m := make(classStats, len(all))
	for _, c := range all {
		m[c.Class] = c
	}
	return m
}

// bandwidth is what a class let through between two looks; nil: there was one.
func bandwidth(was, is classStats, id hierarchy.ClassID, took time.Duration) *hierarchy.Bandwidth {
	if took <= 0 {
		return nil
	}
	r := rate(was[id].Bytes, is[id].Bytes, took)
	return &r
}

// rate is that at which a class went from having sent so many bytes to more.
func rate(was, is uint64, took time.Duration) hierarchy.Bandwidth {
	if is < was { // the class was made anew meanwhile
		return 0
	}
	return hierarchy.Bandwidth(float64(is-was) * 8 / took.Seconds())
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
			b.Added = &Added{a.By, a.Limit}
		}
	}
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
	if err != nil && !errors.Is(err, caps.ErrNotPrivileged) { // nobody is told what cgroups there are, where they are hidden
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
			if p, err := cgroupfs.ReadProcess(pid); err == nil {
				v.Processes = append(v.Processes, process{pid, p.Name})
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
	if b.Target.Kind == bind.TargetNone {
		s += ": not bound yet"
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
