package main

import (
	"context"
	"errors"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
)

func newClearCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "clear [INTERFACE...]",
		Short: "Remove what vifshape made, and put back what was there before",
		Long: `Clear removes the classifier, the bindings and the tree of the interfaces named,
or of all in this network namespace, in that order, and puts back the root qdisc
that was there before. Processes go on running, their traffic unshaped; cgroups
that run made stay as long as processes live in them, and are named.
` + exitHelp,
		Args: args(0, -1, "interfaces"),
		RunE: func(c *cobra.Command, a []string) error { return e.clear(c.Context(), a) },
	}
}

func (e *env) clear(ctx context.Context, ifaces []string) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	unlock, err := m.store.lock(ctx, "clear")
	if err != nil {
		return err
	}
	defer unlock()
	if len(ifaces) == 0 {
		if ifaces, err = m.ours(); err != nil {
			return err
		}
	}
	var errs []error
	for _, i := range ifaces {
		if err := m.clear(ctx, i); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// ours are the interfaces with a tree or a record of ours.
func (m *machine) ours() ([]string, error) {
	names, err := m.store.interfaces()
	if err != nil {
		return nil, err
	}
	seen := map[string]bool{}
	for _, n := range names {
		seen[n] = true
	}
	links, err := m.conn.Links()
	if err != nil {
		return nil, err
	}
	for _, l := range links {
		if seen[l.Name] || l.Qdisc != "htb" {
			continue
		}
		d, err := m.conn.Device(l.Name)
		if err != nil {
			return nil, err
		}
		var s hierarchy.State
		if err := d.Read(context.Background(), &s); err != nil {
			return nil, err
		}
		if s.Root.Ours() {
			names = append(names, l.Name)
		}
	}
	return names, nil
}

func (m *machine) clear(ctx context.Context, iface string) error {
	x, err := m.shaped(iface, "")
	var gone *tc.ErrNoDevice
	if errors.As(err, &gone) {
		r, rerr := m.store.load(iface)
		if rerr != nil || r.Policy == "" {
			return errors.Join(err, rerr)
		}
		m.notef("%s is gone, and its tree with it; its record is removed", iface)
		return m.store.remove(iface)
	}
	if err != nil {
		return err
	}
	defer x.binder.Close()
	before, err := x.kernel.Read(ctx)
	if err != nil {
		return err
	}
	want := hierarchy.State{Interface: iface, Root: before.Root}
	if before.Root.Ours() {
		want.Root = hierarchy.Root{}
	}
	if err := x.kernel.Apply(ctx, before, want, hierarchy.Diff(before, want)); err != nil {
		return err
	}
	if before.Root.Ours() && x.record.Former.Kind != "" {
		if err := x.device.Restore(x.record.Former); err != nil {
			m.warnf("%v", err)
		}
	}
	busy, err := x.binder.RemoveHomes()
	if err != nil {
		return err
	}
	for _, h := range busy {
		m.notef("%s keeps its cgroup: processes live in it", h)
	}
	return m.store.remove(iface)
}
