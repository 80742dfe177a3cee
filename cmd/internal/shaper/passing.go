package shaper

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/tc/link"
)

// pass takes away the limits that hold nothing any more, and cgroups that limits have left
// with processes in them. The caller holds the lock.
func (m *Machine) pass(ctx context.Context) error {
	all, err := m.Limits()
	if err == nil && slices.ContainsFunc(all, func(l Limited) bool { return passed(l.Branch) }) {
		err = m.takeEach(context.WithoutCancel(ctx), passed)
	}
	homes, failed := m.Store.Homes()
	errs := []error{err, failed}
	for _, iface := range homes {
		errs = append(errs, m.passHomes(iface))
	}
	return errors.Join(errs...)
}

// passHomes removes the homes of an interface that no branch has and nobody lives in.
func (m *Machine) passHomes(iface string) error {
	r, err := m.Store.Load(iface)
	if err != nil {
		return err
	}
	if r.Policy == "" {
		_, err := m.removeEmptyHomes(iface)
		return err
	}
	x, err := m.Interface(iface, "")
	var no *link.NotFoundError
	if errors.As(err, &no) {
		_, err := m.removeEmptyHomes(iface)
		return err
	}
	if err != nil {
		return err
	}
	defer x.Binder.Close()
	if err := x.Keep(); err != nil {
		return err
	}
	h, err := x.Binder.Homes()
	if err != nil {
		return err
	}
	all, err := h.List()
	if err != nil {
		return err
	}
	has := map[hierarchy.Path]bool{hierarchy.Path(iface): true}
	for _, p := range r.Order {
		has[r.IDs.Home(p)] = true
	}
	busy := false
	for _, p := range slices.Backward(all) {
		if has[p] {
			continue
		}
		gone, err := h.Remove(p)
		if err != nil {
			return err
		}
		busy = busy || !gone
	}
	return m.Store.Note(iface, busy)
}

// passed says whether what a limit was made for has ended.
func passed(b amend.Branch) bool {
	if b.Holder == nil {
		return false
	}
	at, err := cgroupfs.Started(b.Holder.PID)
	if err == nil && at == b.Holder.Start {
		if alive, err := cgroupfs.Living(b.Holder.PID); err != nil && !errors.Is(err, unix.ESRCH) || len(alive) > 0 {
			return false // else nobody has asked yet how it ended
		}
	}
	return !populated(b.Holder.Cgroup)
}

// populated says whether a process is in a home or below it, whichever hierarchy it is in. One
// may be where that cannot be told: a limit rather stays too long.
func populated(at string) bool {
	for _, find := range []func() (*cgroupfs.Tree, error){cgroupfs.FindV2, cgroupfs.FindNetCls} {
		t, err := find()
		if t == nil && (err == nil || errors.Is(err, cgroupfs.ErrNoCgroup2)) {
			continue
		}
		if err != nil {
			return true
		}
		pids, err := t.Members(at)
		in := len(pids) > 0 || err != nil && !errors.Is(err, fs.ErrNotExist) || t.V2() && t.Populated(at)
		t.Close()
		if in {
			return true
		}
	}
	return false
}
