package shaper

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// Rebound is what a look at the bindings of an interface has found and done.
type Rebound struct {
	Done    []hierarchy.Step // what was changed
	Pending []resolve.Pending
	Refused []resolve.Refused // bindings that cannot be in force; the others are
	Outside []resolve.Outside
	Again   time.Duration // see resolve.Resolution
}

// Rebind brings the bindings in force into line with the interface's record and
// with what is there now: what was pending may have appeared, and what was bound may
// have gone or have been made anew. Nothing else of the interface is touched. The
// caller holds the store's lock. Watch, which may be nil, is told what that goes by.
func (m *Machine) Rebind(ctx context.Context, iface string, watch resolve.Watch) (*Rebound, error) {
	x, err := m.Interface(iface, "")
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	return m.rebind(ctx, x, x.Record, nil, watch)
}

// rebind is Rebind with the bindings of another record, which takes the place of the
// interface's own. Where one of the fresh bindings cannot be in force, nothing is
// changed.
func (m *Machine) rebind(ctx context.Context, x *Interface, next *record.Record, fresh []bind.Binding, watch resolve.Watch) (*Rebound, error) {
	if x.Record.Policy == "" {
		return nil, fmt.Errorf("%s is not shaped by vifshape: apply a policy first", x.Record.Interface)
	}
	if err := x.stands(hierarchy.ID(hierarchy.RootMinor)); err != nil {
		return nil, err
	}
	if err := x.Keep(); err != nil {
		return nil, err
	}
	c := &change{Interface: x.of(x.Binder.Steady()), next: x.Record, amends: true}
	var err error
	if c.before, err = c.Kernel.Read(ctx); err == nil {
		err = m.misnamed(x, c.before.Bound)
	}
	if err != nil {
		return nil, err
	}
	r, err := x.Binder.Resolve(ctx, next.Branches(), watch)
	if err != nil {
		return nil, err
	}
	if err := m.leadTo(r.Links); err != nil {
		return nil, err
	}
	out := &Rebound{Pending: r.Pending, Refused: r.Refused, Outside: r.Outside, Again: r.Again}
	for _, f := range r.Refused {
		if slices.Contains(fresh, f.Binding) || slices.Contains(fresh, f.With) {
			return out, f.Err
		}
	}
	n := *next
	n.Came(r)
	if !reflect.DeepEqual(&n, x.Record) {
		c.next = &n
	}
	want := c.before
	want.Bound = r.Bound
	c.toward(want)
	if err := m.carry(ctx, c); err != nil {
		return out, err
	}
	out.Done = c.Plan.Steps
	return out, nil
}

// Reapply makes an interface what its record says, by the way of apply. The caller holds
// the store's lock.
func (m *Machine) Reapply(ctx context.Context, iface string) error {
	s, err := m.Interface(iface, "")
	if err != nil {
		return err
	}
	x := &Target{change: change{Interface: s}}
	defer release([]*Target{x})
	if err := m.settleAs(ctx, x, s.Record); err != nil {
		return err
	}
	if x.Blind != nil {
		return x.Blind
	}
	return m.apply(ctx, []*Target{x})
}

// MayWrite is the error of a caller who may not change anything: it takes the store's lock, and
// lets go of it.
func (m *Machine) MayWrite(ctx context.Context) error {
	unlock, err := m.Store.Lock(ctx, "watch")
	if err == nil {
		unlock()
	}
	return err
}

// Repair is Reapply under the store's lock, unless all is [Machine.Intact] then.
func (m *Machine) Repair(ctx context.Context, iface string) (done bool, err error) {
	unlock, err := m.lock(ctx, "watch")
	if err != nil {
		return false, err
	}
	defer unlock()
	if err := m.Intact(ctx, iface); err == nil || !errors.As(err, new(*LostError)) {
		return false, err
	}
	return true, m.Reapply(context.WithoutCancel(ctx), iface)
}

// settleAs works out what has to be done for an interface to be what a record says.
func (m *Machine) settleAs(ctx context.Context, x *Target, r *record.Record) (err error) {
	if x.spec, err = m.Store.Spec(r); err != nil {
		return err
	}
	with, err := amend.Extend(x.spec, qdisc.Kinds(), r.Added)
	if err != nil {
		return err
	}
	x.lay(with)
	return m.settle(ctx, r.Policy, r.Binding, x)
}

// Keep chooses the way of the classifier that the interface has. It is an error where that
// is none of this version.
func (x *Interface) Keep() error {
	err := x.Binder.Keep()
	if err != nil && !errors.Is(err, caps.ErrNotPrivileged) {
		err = fmt.Errorf("%w: %s", err, x.Record.Again())
	}
	return err
}

// keepBindings takes over the bindings that were made at run time, but for those
// that the policy makes by now, and those whose branch is gone.
func (x *Target) keepBindings() {
	named := make(map[bind.Binding]bool, len(x.next.Bindings))
	for _, b := range x.next.Bindings {
		named[b.Binding] = true
	}
	former := x.Record
	if x.former != nil {
		former = x.former
	}
	for _, b := range former.Bindings {
		if !b.AtRuntime || named[b.Binding] {
			continue
		}
		was := b
		if x.former == nil {
			p, ok := x.next.IDs.Called(x.Record.IDs.Home(b.Path))
			if !ok {
				x.lost = append(x.lost, was)
				continue
			}
			b.Path = p
		}
		if _, _, ok := x.next.Leaf(b.Path); !ok || !slices.Contains(x.next.Order, b.Path) {
			x.lost = append(x.lost, was)
			continue
		}
		x.next.Bindings = append(x.next.Bindings, b)
		x.kept = append(x.kept, b)
	}
}

// refused is the error of bindings that cannot be in force, with the way out where
// one of them is not the policy's.
func (x *Target) refused(r *resolve.Resolution) error {
	err := r.Err()
	for _, f := range r.Refused {
		for _, b := range x.kept {
			if b.Binding == f.Binding || b.Binding == f.With {
				err = fmt.Errorf("%w; %v was bound at run time: `vifshape unbind %s %s` takes it away", err, b.Binding, b.Path, b.Binding)
			}
		}
	}
	return err
}

// Bind adds bindings to those of a branch, all or none. It tells what they wait for and do
// not hold. The caller closes the binder of the interface, which there is without an error.
func (m *Machine) Bind(ctx context.Context, path hierarchy.Path, specs []bind.Binding) (*Interface, *Rebound, error) {
	return m.changeBindings(ctx, "bind", path, specs, (*record.Record).Bind)
}

// Unbind takes bindings away that Bind has made, all or none; the rest is as with Bind.
func (m *Machine) Unbind(ctx context.Context, path hierarchy.Path, specs []bind.Binding) (*Interface, *Rebound, error) {
	return m.changeBindings(ctx, "unbind", path, specs, (*record.Record).Unbind)
}

// changeBindings brings the bindings of a branch into force that change makes of
// them, all or none, and tells what they wait for and do not hold. Change returns the
// bindings that are new, and its remarks.
func (m *Machine) changeBindings(ctx context.Context, what string, path hierarchy.Path, specs []bind.Binding, change func(*record.Record, hierarchy.Path, []bind.Binding) (fresh []bind.Binding, remarks []string, err error)) (x *Interface, r *Rebound, err error) {
	unlock, err := m.Store.Lock(ctx, what+" "+string(path))
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	if x, err = m.Interface(path.Interface(), ""); err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			x.Binder.Close()
			x = nil
		}
	}()
	if _, err := x.entry(path); err != nil {
		return x, nil, err
	}
	next := *x.Record
	next.Bindings = slices.Clone(next.Bindings)
	fresh, remarks, err := change(&next, path, specs)
	if err != nil {
		return x, nil, err
	}
	if r, err = m.rebind(ctx, x, &next, fresh, nil); err != nil {
		return x, nil, err
	}
	for _, s := range remarks {
		m.Notef(path, "%s", s)
	}
	m.tellPending(ctx, x, slices.DeleteFunc(r.Pending, func(p resolve.Pending) bool { return !slices.Contains(fresh, p.Binding) }))
	m.tellOutside(slices.DeleteFunc(r.Outside, func(o resolve.Outside) bool { return !slices.Contains(fresh, o.Binding) }))
	return x, r, nil
}
