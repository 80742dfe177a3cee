package observe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// Self is the branch of the calling process on one interface.
type Self struct {
	Interface string `json:"interface"`
	*Branch
	Way    bind.Way    `json:"binding"`
	From   string      `json:"from"`
	Target bind.Target `json:"target,omitzero"` // empty: only the environment says so
	// Matched are the branches below into which matches give packets of this one.
	Matched []*Branch `json:"matched,omitempty"`
	// Delegated are the branches at and above this one that are delegated.
	Delegated []record.Delegated `json:"delegated,omitempty"`
}

// Own is the branch of the calling process on one interface, looked at once.
type Own struct {
	on              *shaper.Interface
	sends, receives hierarchy.PortState // of the branch, and of those into which matches give its packets
	matches         map[hierarchy.Path][]match.Match
	class           hierarchy.Class
	way             bind.Way
	bound           hierarchy.Bound
	was             counted
}

// OwnBranch looks at an interface; nil where the process has no branch on it.
func OwnBranch(ctx context.Context, m *shaper.Machine, iface string) (*Own, error) {
	x, s, err := m.TreeOf(ctx, iface)
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	way := s.Hook.Way
	if x.Blind != nil {
		way = x.Record.Way
	}
	b, err := m.Inside(x.Interface, way, x.Named(s.Bound, x.Blind != nil), x.Blind != nil)
	if err != nil {
		return nil, err
	}
	tree := x.On(s)
	there := (!x.Record.Receives || x.In(s).Root.Ours()) && slices.ContainsFunc(tree.Classes, func(c hierarchy.Class) bool { return c.ID == b.Class })
	if bare, err := x.Bare(); !there || err == nil && bare { // else no binding is lost, or it cannot be told
		if err := x.Losses(s); err != nil {
			return nil, err
		}
	}
	if b.Class == 0 {
		return nil, nil
	}
	o := &Own{on: x.Interface, way: way, bound: b}
	if o.matches, err = matchesOf(m, x, s); err != nil {
		return nil, err
	}
	classes := o.matched()
	o.sends, o.receives = alone(tree, classes), alone(x.In(s), classes)
	own := slices.IndexFunc(o.sends.Classes, func(c hierarchy.Class) bool { return c.ID == b.Class })
	if own < 0 {
		return nil, fmt.Errorf("%s: its class %v is gone: %s", b.Path, b.Class, x.Record.Again())
	}
	o.class = o.sends.Classes[own]
	o.was, err = count(o.on)
	return o, err
}

// matched are the classes that packets of the process may get: the branch's own, and those
// into which matches give them, with the matches.
func (o *Own) matched() map[hierarchy.ClassID][]match.Match {
	all := map[hierarchy.ClassID][]match.Match{o.bound.Class: nil}
	start := o.on.StartOf(o.bound)
	for p, m := range o.matches {
		if _, class, ok := o.on.Record.Leaf(p); ok && len(m) > 0 && p != start && p.Below(start) {
			all[class] = m
		}
	}
	return all
}

// alone is what a state has of some classes.
func alone[T any](s hierarchy.PortState, of map[hierarchy.ClassID]T) (out hierarchy.PortState) {
	for _, c := range s.Classes {
		if _, ok := of[c.ID]; ok {
			out.Classes = append(out.Classes, c)
		}
	}
	for _, l := range s.Leaves {
		if _, ok := of[l.Class]; ok {
			out.Leaves = append(out.Leaves, l)
		}
	}
	return out
}

// View looks a second time.
func (o *Own) View() (*Self, error) {
	now, err := count(o.on)
	if err != nil {
		return nil, err
	}
	if _, there := now.sent[o.class.ID]; !there {
		return nil, fmt.Errorf("%s: its class %v went while it was looked at", o.class.Path, o.class.ID)
	}
	v := &Self{Interface: o.on.Device.Name, Way: o.way, From: o.bound.From, Target: o.bound.Target}
	matched := o.matched()
	for _, b := range branches(o.sends, o.receives, o.was, now) {
		if b.ID == o.class.ID {
			v.Branch = b
		} else if b.Match = matched[b.ID]; len(b.Match) > 0 {
			v.Matched = append(v.Matched, b)
		}
	}
	for _, d := range o.on.Record.Delegated {
		if o.class.Path.Below(d.Path) {
			v.Delegated = append(v.Delegated, d)
		}
	}
	return v, nil
}

// OutsideOf says where the traffic of a process goes that is in no branch.
func OutsideOf(m *shaper.Machine, rests []string) error {
	for _, way := range []bind.Way{bind.WayBPF, bind.WayNetCls} {
		target, _, err := cgroupfs.Own(way)
		if err != nil {
			return err
		}
		if ns, p, ok := home.Parse(target); ok && ns != m.Store.NetNS {
			return fmt.Errorf("this process is in no branch of this network namespace: its cgroup is that of %s in another one", p)
		}
	}
	if len(rests) == 0 {
		return errors.New("this process is in no branch: no interface is shaped by vifshape in this network namespace")
	}
	return fmt.Errorf("this process is in no branch: what it sends goes to %s", strings.Join(rests, ", "))
}
