package shaper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/foreign"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// ClearAll takes away what vifshape made on the interfaces named, or on all and in all
// homes, and puts back what was there before.
func (m *Machine) ClearAll(ctx context.Context, ifaces []string) error {
	unlock, err := m.lock(ctx, "clear")
	if err != nil {
		return err
	}
	defer unlock()
	var homes []string // of interfaces that are not shaped now
	if len(ifaces) == 0 {
		if ifaces, err = m.Ours(); err != nil {
			return err
		}
		if homes, err = m.Store.Homes(); err != nil {
			return err
		}
	}
	// Every name is looked up before the first thing is changed.
	var all []*clearing
	var errs []error
	for _, i := range ifaces {
		x, err := m.clearing(i)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		defer x.Close()
		all = append(all, x)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	changed := false
	for _, x := range all {
		did, err := m.clear(ctx, x)
		changed = changed || did
		errs = append(errs, err)
	}
	errs = append(errs, m.Sweep(), m.forgetUnconfirmed(ifaces))
	for _, i := range homes {
		if !slices.Contains(ifaces, i) {
			errs = append(errs, m.removeHomes(i))
		}
	}
	if err = errors.Join(errs...); err != nil && changed {
		return PartlyError{err}
	}
	return err
}

// Withdraw makes interfaces what they are without a policy: as they were before they were
// shaped, but for limits, which stay in a tree of their own. Then is done when all that is, before
// others may change anything; nil: nothing is.
func (m *Machine) Withdraw(ctx context.Context, ifaces []string, then func() error) error {
	unlock, err := m.lock(ctx, "clear")
	if err != nil {
		return err
	}
	defer unlock()
	to := map[string]*record.Record{}
	for _, i := range ifaces {
		to[i] = nil
	}
	at, by := now()
	c, err := m.goBack(ctx, to, at, by)
	if err != nil {
		return err
	}
	c.Close()
	err = errors.Join(m.Sweep(), m.forgetUnconfirmed(ifaces))
	if err == nil && then != nil {
		err = then()
	}
	return err
}

// clearing is an interface that is to be cleared.
type clearing struct {
	iface      string
	*Interface // nil: the interface has vanished
}

func (x *clearing) Close() error {
	if x.Interface == nil {
		return nil
	}
	return x.Binder.Close()
}

func (m *Machine) clearing(iface string) (*clearing, error) {
	x, err := m.Interface(iface, "")
	var no *link.NotFoundError
	if !errors.As(err, &no) {
		return &clearing{iface, x}, err
	}
	if r, rerr := m.Store.Load(iface); rerr != nil || r.Policy == "" {
		return nil, errors.Join(err, rerr)
	}
	return &clearing{iface: iface}, nil
}

// Ours are the interfaces with a tree or a record of ours, under the names that
// they have now.
func (m *Machine) Ours() ([]string, error) {
	records, err := m.Store.Interfaces()
	if err != nil {
		return nil, err
	}
	links, err := link.List(m.Conn)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range records {
		// Another interface may have the name now. A damaged record is reported by
		// who reads it for what is in it.
		if r, err := m.Store.Load(n); err == nil && r.Moved(links) != nil {
			continue // it comes below
		}
		names = append(names, n)
	}
	for _, l := range links {
		if slices.Contains(names, l.Name) || l.Qdisc != "htb" || l.Receives != 0 {
			continue
		}
		var s hierarchy.State
		d, err := tc.Find(m.Conn, l.Name)
		if err == nil {
			err = d.Read(context.Background(), &s)
		}
		switch {
		case errors.As(err, new(*link.NotFoundError)), errors.Is(err, rtnl.ErrGone), errors.Is(err, rtnl.ErrForeign):
		case err != nil:
			return nil, err
		case s.On(d.Port()).Root.Ours():
			names = append(names, l.Name)
		}
	}
	return names, nil
}

// clear removes what is ours, and says whether that changed what the kernel
// does with packets.
func (m *Machine) clear(ctx context.Context, x *clearing) (changed bool, err error) {
	if x.Interface == nil {
		m.Notef(hierarchy.Path(x.iface), "%s is gone, and its tree with it; its record is removed", x.iface)
		r, err := m.Store.Load(x.iface)
		if err == nil {
			err = m.takeLeft(r)
		}
		return false, errors.Join(err, m.removeHomes(x.iface), m.Store.Remove(x.iface))
	}
	// The record goes last: it alone knows what there was before.
	c := &change{Interface: x.Interface, next: x.Record}
	if c.before, err = x.Kernel.Read(ctx); err != nil {
		return false, err
	}
	c.toward(hierarchy.State{Device: x.iface})
	if err := m.carry(ctx, c); err != nil {
		return false, err
	}
	var errs []error
	ours := x.On(c.before).Root.Ours()
	if ours && c.before.Hook.Way == bind.WayNone {
		// An apply that was killed may have made the place for a classifier.
		errs = append(errs, hook.Of(x.Device.Interface).DetachEgress())
	}
	// And the IFB for a tree that it did not come to make.
	errs = append(errs, x.Receiver.Remove())
	// One that was killed, or somebody else, may have taken the tree away before.
	if root := x.On(c.before).Root; !root.Foreign() && x.Record.Former.Kind != "" && x.Record.Index == x.Device.Index {
		if err := foreign.Restore(x.Device.Interface, x.Record.Former); err != nil {
			errs = append(errs, FormerError{fmt.Errorf("%w; vifshape's tree is gone", err)})
		}
	}
	if was := x.Record.Was; was != "" {
		errs = append(errs, m.Store.Remove(was))
	}
	for _, was := range x.Record.Formerly {
		if _, err := os.Lstat(m.Store.File(was)); errors.Is(err, fs.ErrNotExist) { // else it is another's by now
			errs = append(errs, m.removeHomes(was))
		}
	}
	errs = append(errs, m.removeHomes(x.iface), m.Store.Remove(x.iface))
	return !c.Plan.Empty(), errors.Join(errs...)
}

// Sweep takes away the IFBs of interfaces that are not there any more. The caller holds the
// store's lock.
func (m *Machine) Sweep() error {
	left, err := link.Orphans(m.Conn)
	for _, l := range left {
		err = errors.Join(err, link.RemoveIFB(m.Conn, l))
	}
	return err
}

// leave takes away what the interface that had the name before this one has left, and
// what this one has under the name that it had before.
func (s *Interface) leave(m *Machine) error {
	if s.Record.Index != 0 && s.Record.Index != s.Device.Index {
		return m.takeLeft(s.Record)
	}
	was := s.Record.Was
	if was == "" {
		return nil
	}
	if r, err := m.Store.Load(was); err != nil || r.Policy != "" && r.Index != s.Device.Index {
		return nil // it is another's by now
	}
	return cgroup.Unguard(m.Store.NetNS, was, targets(s.Record))
}

// targets are what a record has bound.
func targets(r *record.Record) (all []bind.Target) {
	for _, b := range r.Bound {
		all = append(all, b.Target)
	}
	return all
}

// takeLeft takes away what an interface that is gone has left on others and on cgroups: the
// programs that marked what they brought in, and those against sockets past its queues.
func (m *Machine) takeLeft(r *record.Record) error {
	errs := []error{cgroup.Unguard(m.Store.NetNS, r.Interface, targets(r))}
	for _, b := range r.Bound {
		if b.Target.Kind != bind.TargetLink {
			continue
		}
		var no *link.NotFoundError
		if err := hook.Of(rtnl.Interface{Conn: m.Conn, Index: r.Index}).DetachIngress(b.Target.Name); !errors.As(err, &no) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeHomes removes the cgroups of an interface's branches, whether the
// interface is there or not, and remembers it where processes live in some.
func (m *Machine) removeHomes(iface string) error {
	busy, err := m.removeEmptyHomes(iface)
	for i, h := range busy {
		if i+1 == len(busy) || !busy[i+1].Below(h) { // those above are not empty because of it
			m.Notef(hierarchy.Path(iface), "%s keeps its cgroup: processes live in it", h)
		}
	}
	return err
}

// removeEmptyHomes is removeHomes without a word; it returns those in which somebody lives,
// parents first.
func (m *Machine) removeEmptyHomes(iface string) (busy []hierarchy.Path, err error) {
	others, err := m.Tagged(iface, 0)
	if err != nil {
		return nil, err
	}
	busy, err = home.RemoveAll(m.Store.NetNS, iface, len(others) > 0)
	slices.Sort(busy)
	if err == nil {
		err = nft.DropStale(0)
	}
	if err != nil {
		return busy, fmt.Errorf("%s: %w", iface, err)
	}
	return busy, m.Store.Note(iface, len(busy) > 0)
}
