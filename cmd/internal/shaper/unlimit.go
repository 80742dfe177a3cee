package shaper

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/tc/link"
)

// takeLimits takes limits away from an interface, and the whole tree where there is nothing
// else. The caller holds the lock.
func (m *Machine) takeLimits(ctx context.Context, iface string, which func(amend.Branch) bool) error {
	records, err := m.limitedRecords()
	if err != nil {
		return err
	}
	i := slices.IndexFunc(records, func(r *record.Record) bool { return r.Interface == iface })
	if i < 0 {
		return nil
	}
	return m.takeFrom(ctx, records[i], which)
}

// takeFrom is takeLimits for the interface of a record.
func (m *Machine) takeFrom(ctx context.Context, r *record.Record, which func(amend.Branch) bool) error {
	iface := r.Interface
	var gone, left []amend.Branch
	for _, b := range r.Added {
		below := slices.ContainsFunc(gone, func(g amend.Branch) bool { return g.Path.Parent() != "" && b.Path.Below(g.Path) })
		if b.Limit != "" && (which(b) || below) {
			gone = append(gone, b)
		} else {
			left = append(left, b)
		}
	}
	switch {
	case len(gone) == 0:
		return nil
	case len(left) == 0 && r.Policy == record.NoPolicy:
		x, err := m.clearing(iface)
		if err != nil {
			return err
		}
		defer x.Close()
		if x.Interface != nil {
			if err := x.Device.Drain(ctx); err != nil {
				return err
			}
		}
		_, err = m.clear(ctx, x)
		return err
	}
	err := m.edit(ctx, iface, nil, func(x *Target) error {
		x.goes = true
		h, err := x.Binder.Homes()
		if err != nil {
			return err
		}
		for _, b := range slices.Backward(gone) {
			empty, err := h.Remove(x.Record.IDs.Home(b.Path))
			if err == nil && !empty { // it stays, and binds nothing any more
				err = m.Store.Note(iface, true)
			}
			if err != nil {
				return err
			}
		}
		return x.extend(left)
	})
	var no *link.NotFoundError
	var lost *LostError
	if errors.As(err, &no) || errors.As(err, &lost) {
		return m.forgetLimits(r, left)
	}
	return err
}

// forgetLimits takes limits out of the record of an interface that has no tree any more: the
// next apply, which makes it again, makes it without them.
func (m *Machine) forgetLimits(r *record.Record, left []amend.Branch) error {
	gone := func(p hierarchy.Path) bool {
		in := func(of []amend.Branch) bool {
			return slices.ContainsFunc(of, func(b amend.Branch) bool { return b.Path == p })
		}
		return p.Parent() != "" && in(r.Added) && !in(left)
	}
	r.Order = slices.DeleteFunc(r.Order, gone)
	r.Bindings = slices.DeleteFunc(r.Bindings, func(b record.Binding) bool { return gone(b.Path) })
	r.Bound = slices.DeleteFunc(r.Bound, func(b hierarchy.Bound) bool { return gone(b.Path) })
	r.Added = left
	return errors.Join(m.Store.Save(r), m.Store.Note(r.Interface, true))
}

// Unlimit takes limits away, all of them or, where one is not there, none.
func (m *Machine) Unlimit(ctx context.Context, names ...string) error {
	unlock, err := m.lock(ctx, "unlimit")
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.confirmed(); err != nil {
		return err
	}
	all, err := m.Limits()
	if err != nil {
		return err
	}
	var known []string
	for _, l := range all {
		known = append(known, l.Limit)
	}
	for _, n := range names {
		if !slices.Contains(known, n) {
			return notLimited(n, known)
		}
	}
	return m.takeEach(ctx, func(b amend.Branch) bool { return slices.Contains(names, b.Limit) })
}

func notLimited(name string, known []string) error {
	err := fmt.Errorf("there is no limit on %s", name)
	if near := hierarchy.Nearest(name, known); near != "" {
		return fmt.Errorf("%w; did you mean %s?", err, near)
	}
	return fmt.Errorf("%w: `vifshape limits` lists them", err)
}

// takeEach is takeLimits for all interfaces.
func (m *Machine) takeEach(ctx context.Context, which func(amend.Branch) bool) error {
	records, err := m.limitedRecords()
	errs := []error{err}
	for _, r := range records {
		errs = append(errs, m.takeFrom(ctx, r, which))
	}
	return errors.Join(errs...)
}
