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
)

// Self is the branch of the calling process on one interface.
type Self struct {
	Interface string `json:"interface"`
	*Branch
	Way    bind.Way    `json:"binding"`
	From   string      `json:"from"`
	Target bind.Target `json:"target,omitzero"` // empty: only the environment says so
	// Delegated are the branches at and above this one that are delegated.
	Delegated []record.Delegated `json:"delegated,omitempty"`
}

// Own is the branch of the calling process on one interface, looked at once.
type Own struct {
	on              *shaper.Interface
	sends, receives hierarchy.PortState // of the branch alone
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
	o := &Own{on: x.Interface, sends: alone(tree, b.Class), receives: alone(x.In(s), b.Class), way: way, bound: b}
	if len(o.sends.Classes) == 0 {
		return nil, fmt.Errorf("%s: its class %v is gone: apply %s again", b.Path, b.Class, x.Record.PolicyName())
	}
	o.class = o.sends.Classes[0]
	o.was, err = count(o.on)
	return o, err
}

// alone is what a state has of one class.
func alone(s hierarchy.PortState, id hierarchy.ClassID) (out hierarchy.PortState) {
	for _, c := range s.Classes {
		if c.ID == id {
			out.Classes = append(out.Classes, c)
		}
	}
	for _, l := range s.Leaves {
		if l.Class == id {
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
	b := branches(o.sends, o.receives, o.was, now)[0]
	v := &Self{Interface: o.on.Device.Name, Branch: b, Way: o.way, From: o.bound.From, Target: o.bound.Target}
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
