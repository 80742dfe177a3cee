package main

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// rebound is what a look at the bindings of an interface has found and done.
type rebound struct {
	done    []hierarchy.Step // what was changed
	pending []cgroup.Pending
	refused []cgroup.Refused // bindings that cannot be in force; the others are
	outside []cgroup.Outside
	again   time.Duration // see cgroup.Resolution
}

// rebind brings the bindings in force into line with the interface's record and
// with what is there now: what was pending may have appeared, and what was bound may
// have gone or have been made anew. Nothing else of the interface is touched. The
// caller holds the store's lock.
func (m *machine) rebind(ctx context.Context, iface string) (*rebound, error) {
	x, err := m.shaped(iface, "")
	if err != nil {
		return nil, err
	}
	defer x.binder.Close()
	return m.rebindTo(ctx, x, x.record, nil)
}

// rebindTo is rebind with the bindings of another record, which takes the place of
// the interface's own. Where one of the fresh bindings cannot be in force, nothing is
// changed.
func (m *machine) rebindTo(ctx context.Context, x *shaped, next *record.Record, fresh []bind.Binding) (*rebound, error) {
	if x.record.Policy == "" {
		return nil, fmt.Errorf("%s is not shaped by vifshape: apply a policy first", x.record.Interface)
	}
	if err := x.stands(hierarchy.ID(hierarchy.RootMinor)); err != nil {
		return nil, err
	}
	if err := x.keep(); err != nil {
		return nil, err
	}
	k := x.kernel // without its ports: the classes stay
	k.Parts = slices.DeleteFunc(slices.Clone(k.Parts), func(p hierarchy.Part) bool { return p.Port() != (hierarchy.Port{}) })
	before, err := k.Read(ctx)
	if err == nil {
		err = m.misnamed(x, before.Bound)
	}
	if err != nil {
		return nil, err
	}
	r, err := x.binder.Resolve(next.Branches())
	if err != nil {
		return nil, err
	}
	out := &rebound{pending: r.Pending, refused: r.Refused, outside: r.Outside, again: r.Again}
	for _, f := range r.Refused {
		if slices.Contains(fresh, f.Binding) || slices.Contains(fresh, f.With) {
			return out, f.Err
		}
	}
	// The record first, as with apply.
	n := *next
	n.Came(r)
	if !reflect.DeepEqual(&n, x.record) {
		if err := m.store.Save(&n); err != nil {
			return out, err
		}
	}
	want := before
	want.Bound = r.Bound
	plan := hierarchy.Diff(before, want)
	if plan.Empty() {
		return out, nil
	}
	done, err := k.Parts[0].Do(ctx, plan.Steps)
	out.done = plan.Steps[:done]
	if err != nil {
		return out, err
	}
	now, err := k.Read(ctx)
	if err == nil {
		if left := hierarchy.Diff(now, want); !left.Empty() {
			err = &hierarchy.MismatchError{Left: left}
		}
	}
	return out, err
}

// again makes an interface what its record says, by the way of apply. The caller holds
// the store's lock.
func (m *machine) again(ctx context.Context, iface string) error {
	s, err := m.shaped(iface, "")
	if err != nil {
		return err
	}
	x := &target{shaped: s, spec: s.record.Spec}
	defer release([]*target{x})
	with, err := laid(x.spec, iface, s.record.Added, amend.Extend)
	if err != nil {
		return err
	}
	x.lay(with)
	if err := m.settle(ctx, s.record.Policy, s.record.Binding, x); err != nil {
		return err
	}
	if x.blind != nil {
		return x.blind
	}
	return m.apply(ctx, []*target{x})
}

// keep chooses the way of the classifier that the interface has.
func (x *shaped) keep() error {
	err := x.binder.Keep()
	if err != nil && !errors.Is(err, caps.ErrNotPrivileged) {
		err = fmt.Errorf("%w: apply %s again", err, x.record.PolicyName())
	}
	return err
}

// rebindOrBack is rebindTo; where it fails in the middle, everything is put back.
func (m *machine) rebindOrBack(ctx context.Context, x *shaped, next *record.Record, fresh []bind.Binding) (*rebound, error) {
	r, err := m.rebindTo(ctx, x, next, fresh)
	if err == nil {
		return r, nil
	}
	now, failed := m.store.Load(x.record.Interface)
	if failed == nil && reflect.DeepEqual(now.Bindings, x.record.Bindings) {
		return r, err // nothing was begun
	}
	ctx = context.WithoutCancel(ctx)
	if failed = errors.Join(failed, m.store.Save(x.record)); failed == nil {
		_, failed = m.rebindTo(ctx, x, x.record, nil)
	}
	if failed != nil {
		err = partlyError{fmt.Errorf("%w; and going back failed as well: %w", err, failed)}
	}
	return r, err
}

// keepBindings takes over the bindings that were made at run time, but for those
// that the policy makes by now, and those whose branch is gone.
func (x *target) keepBindings() {
	named := make(map[bind.Binding]bool, len(x.next.Bindings))
	for _, b := range x.next.Bindings {
		named[b.Binding] = true
	}
	for _, b := range x.record.Bindings {
		if !b.AtRuntime || named[b.Binding] {
			continue
		}
		if _, _, ok := x.next.Leaf(b.Path); !ok || !slices.Contains(x.next.Order, b.Path) {
			x.lost = append(x.lost, b)
			continue
		}
		x.next.Bindings = append(x.next.Bindings, b)
		x.kept = append(x.kept, b)
	}
}

// refused is the error of bindings that cannot be in force, with the way out where
// one of them is not the policy's.
func (x *target) refused(r *cgroup.Resolution) error {
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

// changeBindings brings the bindings of a branch into force that change makes of
// them, all or none, and tells what they wait for and do not hold. Change returns the
// bindings that are new, and its remarks.
func (m *machine) changeBindings(ctx context.Context, what string, path hierarchy.Path, specs []bind.Binding, change func(*record.Record, hierarchy.Path, []bind.Binding) (fresh []bind.Binding, remarks []string, err error)) (*rebound, error) {
	unlock, err := m.store.Lock(ctx, what+" "+string(path))
	if err != nil {
		return nil, err
	}
	defer unlock()
	x, err := m.shaped(path.Interface(), "")
	if err != nil {
		return nil, err
	}
	defer x.binder.Close()
	if _, err := x.entry(path); err != nil {
		return nil, err
	}
	next := *x.record
	next.Bindings = slices.Clone(next.Bindings)
	fresh, remarks, err := change(&next, path, specs)
	if err != nil {
		return nil, err
	}
	r, err := m.rebindOrBack(ctx, x, &next, fresh)
	if err != nil {
		return nil, err
	}
	for _, s := range remarks {
		m.notef(path, "%s", s)
	}
	m.tellPending(slices.DeleteFunc(r.pending, func(p cgroup.Pending) bool { return !slices.Contains(fresh, p.Binding) }))
	m.tellOutside(slices.DeleteFunc(r.outside, func(o cgroup.Outside) bool { return !slices.Contains(fresh, o.Binding) }))
	return r, nil
}
