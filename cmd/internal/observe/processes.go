package observe

import (
	"context"
	"errors"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
)

// Processes are the numbers of processes that are bound to each branch itself, on all interfaces
// that are shaped; nil: that is hidden from the caller. It costs far more than a look at counters.
func Processes(ctx context.Context, m *shaper.Machine) (map[hierarchy.Path]int, error) {
	names, err := m.Ours()
	if err != nil {
		return nil, err
	}
	all := map[hierarchy.Path]int{}
	for _, name := range names {
		x, is, err := m.TreeOf(ctx, name)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			continue // a look at counters says so
		}
		err = number(x, m.Store.NetNS, is, all)
		x.Binder.Close()
		if errors.Is(err, caps.ErrNotPrivileged) { // nobody is told what cgroups there are, where they are hidden
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return all, nil
}

// number adds the processes of one interface. Where the bindings in force cannot be read they
// are those of the last apply, and the cgroups that run and attach put processes into.
func number(x *shaper.Target, netNS string, is hierarchy.State, all map[hierarchy.Path]int) error {
	bound := is.Bound
	if x.Blind != nil {
		bound = nil
		for _, p := range x.Record.Order {
			if _, class, ok := x.Record.Leaf(p); ok {
				bound = append(bound, hierarchy.Bound{Target: home.Target(netNS, x.Record.IDs.Home(p)), Class: class})
			}
		}
	}
	bound = x.Named(bound, x.Blind != nil)
	held, err := x.Held(bound)
	if err != nil {
		return err
	}
	for _, b := range bound {
		all[x.BranchOf(b.Class)] += len(held[b.Target])
		delete(held, b.Target) // several may have the same
	}
	return nil
}
