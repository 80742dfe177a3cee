package shaper

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// change is one interface on the way from what it is to what it should be, in the kernel
// and in its record. Every change is one: a tree's, its bindings', a home's.
type change struct {
	*Interface
	before hierarchy.State
	want   hierarchy.State
	Plan   hierarchy.Plan // from the one to the other
	next   *record.Record // that belongs to want; the interface's own: it stays as it is
	amends bool           // what is in force is changed by what stands in the record alone
	waits  bool           // it goes back unless it is confirmed, to what stands in the record alone
	policy bool           // a policy is applied: the interface's own record is kept as the one before
	goes   bool           // branches go and none comes: the record has them until the kernel has them no more
	saved  bool           // next is written
}

// toward makes the state that is wanted the change's, with the plan that leads there.
func (c *change) toward(want hierarchy.State) {
	if want.Hook.Match == 0 { // there is nothing that it would be kept from
		want.Bound = slices.Clone(want.Bound)
		for i := range want.Bound {
			want.Bound[i].Stays = false
		}
	}
	c.want, c.Plan = want, hierarchy.Diff(c.before, want)
}

// carry makes a change: all of it or nothing. The record is written first, so that every
// class the kernel may have is known by name even when the program is killed in the
// middle. Where there is no room for it, a policy is applied nevertheless: names and
// classes follow from its paths, and the next apply writes the record.
func (m *Machine) carry(ctx context.Context, c *change) error {
	m.others = nil // another branch may carry them by now, or none
	if err := c.leave(m); err != nil {
		return err
	}
	if c.goes {
		return m.carryOff(ctx, c)
	}
	iface := c.Record.Interface
	var unsaved error
	if c.next != c.Record {
		unsaved = m.save(c)
	}
	if unsaved != nil && (!record.Full(unsaved) || c.amends || c.waits || c.On(c.before).Root.Foreign()) {
		return fmt.Errorf("%s: its record cannot be written, and nothing was changed: %w", iface, unsaved)
	}
	err := c.Kernel.Apply(ctx, standing(c.before), c.want, c.Plan)
	var failed *hierarchy.ApplyError
	switch {
	case err == nil && unsaved != nil:
		return &UnrecordedError{iface, c.next.PolicyName(), unsaved}
	case errors.Is(err, rtnl.ErrGone):
		// What was made on it went with it: there is nothing to go back to.
		err = fmt.Errorf("%s: %w: it vanished while it was being changed", iface, rtnl.ErrGone)
	case !errors.As(err, &failed) || failed.Undo != nil:
		return err
	}
	if unsaved != nil {
		return err
	}
	return errors.Join(err, m.restore(c))
}

// carryOff is carry where branches go: whoever is killed in the middle is found to have it
// still to do.
func (m *Machine) carryOff(ctx context.Context, c *change) error {
	err := c.Kernel.Apply(ctx, standing(c.before), c.want, c.Plan)
	if err != nil {
		return err
	}
	if err = m.save(c); err != nil {
		err = fmt.Errorf("%s: its record cannot be written: %w", c.Record.Interface, err)
		if back := c.undo(context.WithoutCancel(ctx)); back != nil {
			err = PartlyError{errors.Join(err, back)}
		}
	}
	return err
}

// save writes the record that belongs to what is wanted.
func (m *Machine) save(c *change) (err error) {
	if c.policy {
		err = m.Store.Succeed(c.next, c.Record)
	} else {
		err = m.Store.Save(c.next)
	}
	c.saved = err == nil
	return err
}

// takeBack takes a change back that was made.
func (m *Machine) takeBack(ctx context.Context, c *change) error {
	if err := c.undo(ctx); err != nil {
		return err
	}
	return m.restore(c)
}

// undo is takeBack for the kernel alone.
func (c *change) undo(ctx context.Context) error {
	now, err := c.Kernel.Read(ctx)
	if err != nil {
		return err
	}
	before := standing(c.before)
	return c.Kernel.Apply(ctx, now, before, hierarchy.Diff(now, before))
}

// restore writes the record that was there before.
func (m *Machine) restore(c *change) error {
	switch {
	case c.next == c.Record:
		return nil
	case c.Record.Policy == "":
		return m.Store.Remove(c.Record.Interface)
	}
	err := m.Store.Save(c.Record)
	if err == nil {
		m.Store.Settle(c.Record)
	}
	return err
}

// standing is what there is to go back to: not to bindings of cgroups and interfaces that
// had gone, which nobody can bind again and nothing sends by.
func standing(s hierarchy.State) hierarchy.State {
	s.Bound = slices.DeleteFunc(slices.Clone(s.Bound), func(b hierarchy.Bound) bool {
		return b.Target.Kind == bind.TargetCgroupID || b.Target.Kind == bind.TargetLinkIndex
	})
	return s
}

// of is the interface with other parts than all of them.
func (x *Interface) of(parts ...hierarchy.Part) *Interface {
	y := *x
	y.Kernel.Parts = parts
	return &y
}
