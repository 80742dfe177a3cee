package shaper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/confine"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// InsideError says that a process that is locked into a branch has no rights to do what
// it asked for.
type InsideError struct{ path, at hierarchy.Path }

func (e *InsideError) Error() string {
	return fmt.Sprintf("%s: this process is in branch %s, and without the rights that level lock takes away: call vifshape from outside of it", e.path, e.at)
}

// Exec makes this process a program in a branch. It returns only where it cannot, with
// the reason.
func (m *Machine) Exec(ctx context.Context, path hierarchy.Path, cmd confine.Command) error {
	_, err := m.exec(ctx, path, cmd)
	return err
}

// exec is Exec, and says whether this process is in the branch now.
func (m *Machine) exec(ctx context.Context, path hierarchy.Path, cmd confine.Command) (inside bool, err error) {
	x, target, err := m.enter(ctx, path)
	if err != nil {
		return false, err
	}
	defer x.Binder.Close()
	if err := record.MakeDir(m.Store.Locks); err != nil {
		return false, err
	}
	cmd.ReadOnly, cmd.Hidden = m.RunDir, m.Store.Locks
	cmd.Past = func() string { return x.Binder.Unguarded(target) }
	cmd.Warn = func(s string) { m.Notef(path, "%s", s) }
	err = cmd.Exec(func() error {
		h, err := x.Binder.Homes()
		if err == nil {
			err = home.Join(h.Tree, target, 0)
		}
		inside = err == nil
		return err
	})
	return inside, err
}

// ExecPlaced is Exec for those who are not root: place has somebody who may put this
// process into the branch.
func (m *Machine) ExecPlaced(ctx context.Context, path hierarchy.Path, cmd confine.Command, place func() error) error {
	if err := m.within(ctx, path); err != nil {
		return err
	}
	x, err := m.Interface(path.Interface(), "")
	if err != nil {
		return err
	}
	defer x.Binder.Close()
	if _, err := x.entry(path); err != nil {
		return err
	}
	cmd.Warn = func(s string) { m.Notef(path, "%s", s) }
	return cmd.Exec(func() error {
		if err := place(); err != nil {
			return err
		}
		return m.isIn(path, x.Record)
	})
}

// Attach moves running processes into a branch, and binds what leads to their network
// namespaces. What could not be held is returned beside what was moved, on an error too.
func (m *Machine) Attach(ctx context.Context, path hierarchy.Path, pids []int, tree bool) (*home.Attachment, []resolve.Outside, error) {
	x, target, err := m.enter(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	defer x.Binder.Close()
	unlock, err := m.Store.Lock(ctx, "attach "+string(path))
	if err != nil {
		return nil, nil, err
	}
	defer unlock()
	got, err := x.attach(ctx, target, pids, tree)
	if err != nil || got == nil || len(got.Processes) == 0 {
		return got, nil, err
	}
	r, err := m.Rebind(ctx, path.Interface(), nil) // for those that are in another network namespace
	if r == nil {
		return got, nil, err
	}
	return got, slices.DeleteFunc(r.Outside, func(o resolve.Outside) bool {
		return !slices.ContainsFunc(got.Processes, func(p home.Process) bool { return slices.Contains(o.PIDs, p.PID) })
	}), err
}

// attach puts processes into the cgroup of a target, with what they have open.
func (x *Interface) attach(ctx context.Context, target bind.Target, pids []int, tree bool) (*home.Attachment, error) {
	c, err := x.Binder.Carrier(target)
	if err != nil {
		return nil, err
	}
	if c != nil {
		defer c.Close()
	}
	h, err := x.Binder.Homes()
	if err != nil {
		return nil, err
	}
	return home.Attach(ctx, h.Tree, target, pids, tree, c)
}

// enter is Home for this process, which may be locked into another branch.
func (m *Machine) enter(ctx context.Context, path hierarchy.Path) (x *Interface, target bind.Target, err error) {
	if err := m.within(ctx, path); err != nil {
		return nil, target, err
	}
	if x, target, err = m.Home(ctx, path); NotPrivileged(err) {
		if at, e := m.branch(); e == nil && at != "" {
			err = &InsideError{path, at}
		}
	}
	return x, target, err
}

// Home finds the cgroup where the processes of a branch are put, made and bound if it is
// not yet, whoever asks. The caller closes the binder of x.
func (m *Machine) Home(ctx context.Context, path hierarchy.Path) (x *Interface, target bind.Target, err error) {
	x, class, err := m.standing(path)
	var lost *LostError
	switch {
	case errors.As(err, &lost): // or it is just being changed, by whoever has the lock
	case err != nil:
		return nil, target, err
	default:
		target = home.Target(m.Store.NetNS, x.Record.IDs.Home(path))
		now, err := x.Binder.Class(target)
		if err == nil && now == class { // there is nothing to change, and nobody to wait for
			return x, target, nil
		}
		if err := errors.Join(err, x.Binder.Close()); err != nil {
			return nil, target, err
		}
	}
	unlock, err := m.Store.Lock(ctx, "run "+string(path))
	if err != nil {
		return nil, target, err
	}
	defer unlock()
	// Who had the lock may have given the branch another class.
	if x, class, err = m.standing(path); err != nil {
		return nil, target, err
	}
	if target, err = m.makeHome(ctx, x, path, class); err != nil {
		return nil, target, errors.Join(err, x.Binder.Close())
	}
	return x, target, nil
}

// standing finds a branch's interface and the class of the branch's own processes, and
// holds that the kernel has both.
func (m *Machine) standing(path hierarchy.Path) (*Interface, hierarchy.ClassID, error) {
	x, err := m.Interface(path.Interface(), "")
	if err != nil {
		return nil, 0, err
	}
	class, err := x.entry(path)
	if err == nil {
		err = x.stands(class)
	}
	if err != nil {
		return nil, 0, errors.Join(err, x.Binder.Close())
	}
	return x, class, nil
}

// stands says whether the kernel has what the record tells of. A program that was
// started without it would go past every limit.
func (x *Interface) stands(class hierarchy.ClassID) error {
	has, err := x.Device.HasClass(class)
	if err == nil && has {
		has, err = x.Bare()
		has = !has
	}
	if err == nil && has && x.Record.Receives {
		var lost LostError
		err = x.unreceived(hierarchy.State{}, &lost)
		has = len(lost.What) == 0
	}
	if err != nil || has {
		return err
	}
	s, err := x.Queues(context.Background())
	if err == nil {
		err = x.Losses(s)
	}
	if err == nil {
		err = &LostError{iface: x.Record.Interface, What: []string{fmt.Sprintf("class %v is gone", class)}, Policy: x.Record.Policy}
	}
	return err
}

// entry is the class that a branch's own processes belong to.
func (x *Interface) entry(path hierarchy.Path) (hierarchy.ClassID, error) {
	if x.Record.Policy == "" {
		return 0, fmt.Errorf("%s is not shaped by vifshape: apply a policy first", path.Interface())
	}
	if _, _, ok := x.Record.IDs.Find(path); !ok {
		return 0, hierarchy.NoBranch(path, x.Record.Paths())
	}
	_, class, ok := x.Record.Leaf(path)
	if !ok {
		return 0, fmt.Errorf("%s has branches below it and no leaf of its own: name one of them, or add [interface.%s.rest] to the policy", path, strings.ReplaceAll(string(path), "/", "."))
	}
	return class, nil
}

// makeHome is the cgroup of a branch, made and bound if it is not yet. The caller holds the
// store's lock.
func (m *Machine) makeHome(ctx context.Context, x *Interface, path hierarchy.Path, class hierarchy.ClassID) (target bind.Target, err error) {
	at := x.Record.IDs.Home(path)
	target = home.Target(m.Store.NetNS, at)
	c := &change{Interface: x.of(x.Binder.Only(target)), next: x.Record}
	if c.before, err = c.Kernel.Read(ctx); err != nil {
		return target, err
	}
	for _, b := range c.before.Bound {
		if err := x.misnamedHome(path, b.Class); err != nil {
			return target, err
		}
	}
	if c.before.Hook.Version != way.Version {
		return target, fmt.Errorf("%s: the classifier on the interface is another version's: %s", path, x.Record.Again())
	}
	h, err := x.Binder.Homes()
	if err != nil {
		return target, err
	}
	_, fresh, err := h.Make(at)
	if err != nil {
		return target, err
	}
	if fresh {
		x.Binder.Fresh(target)
	}
	want := c.before
	want.Bound = []hierarchy.Bound{{Target: target, Class: class, Path: path, From: "run", Stays: path.Base() == hierarchy.RestName}}
	c.toward(want)
	if err = m.carry(ctx, c); err != nil && fresh {
		_, failed := h.Remove(at)
		err = errors.Join(err, failed)
	}
	return target, err
}

// isIn says whether this process is in the home of a branch.
func (m *Machine) isIn(path hierarchy.Path, r *record.Record) error {
	target, whole, err := cgroupfs.Own(r.Way)
	if err != nil {
		return err
	}
	ns, branch, ok := home.Parse(target)
	if ok && ns == m.Store.NetNS && branch == r.IDs.Home(path) || !ok && !whole { // hidden by a container: the agent's word is all there is
		return nil
	}
	return fmt.Errorf("%s: the agent says that this process is in the branch, and it is in %s", path, words.Printable(target.String()))
}
