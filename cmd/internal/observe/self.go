package observe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
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
	device *tc.Device
	class  hierarchy.Class
	leaf   *hierarchy.Leaf
	way    bind.Way
	bound  hierarchy.Bound
	record *record.Record
	at     time.Time
	bytes  uint64
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
	there := slices.ContainsFunc(tree.Classes, func(c hierarchy.Class) bool { return c.ID == b.Class })
	if bare, err := x.Bare(); !there || err == nil && bare { // else no binding is lost, or it cannot be told
		if err := x.Losses(s); err != nil {
			return nil, err
		}
	}
	if b.Class == 0 {
		return nil, nil
	}
	o := &Own{device: x.Device, way: way, bound: b, record: x.Record}
	i := slices.IndexFunc(tree.Classes, func(c hierarchy.Class) bool { return c.ID == b.Class })
	if i < 0 {
		return nil, fmt.Errorf("%s: its class %v is gone: apply %s again", b.Path, b.Class, x.Record.PolicyName())
	}
	o.class = tree.Classes[i]
	if i := slices.IndexFunc(tree.Leaves, func(l hierarchy.Leaf) bool { return l.Class == b.Class }); i >= 0 {
		o.leaf = &tree.Leaves[i]
	}
	n, err := o.count()
	o.bytes = n.Bytes
	return o, err
}

// count reads the counters of the branch.
func (o *Own) count() (tc.ClassStats, error) {
	all, err := o.device.Stats()
	if err != nil {
		return tc.ClassStats{}, err
	}
	o.at = time.Now()
	i := slices.IndexFunc(all, func(c tc.ClassStats) bool { return c.Class == o.class.ID })
	if i < 0 {
		return tc.ClassStats{}, fmt.Errorf("%s: its class %v went while it was looked at", o.class.Path, o.class.ID)
	}
	return all[i], nil
}

// View looks a second time.
func (o *Own) View() (*Self, error) {
	from := o.at
	n, err := o.count()
	if err != nil {
		return nil, err
	}
	v := &Self{Interface: o.device.Name, Branch: newBranch(o.class, n, o.leaf), Way: o.way, From: o.bound.From, Target: o.bound.Target}
	for _, d := range o.record.Delegated {
		if o.class.Path.Below(d.Path) {
			v.Delegated = append(v.Delegated, d)
		}
	}
	sending := rate(o.bytes, n.Bytes, o.at.Sub(from))
	v.Sending = &sending
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
