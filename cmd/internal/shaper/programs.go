package shaper

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
)

// LimitsDue says whether something of limits is to be done: one holds nothing any more, a
// process of a program that is limited is not in its branch, or a pod is over. Watch says that
// it may come to be without a change of the records: then it is to be asked again.
func (m *Machine) LimitsDue() (due, watch bool, err error) {
	err = m.eachLimit(func(b amend.Branch) {
		watch = watch || b.Holder != nil || b.Program != ""
		due = due || passed(b) || len(m.strays(b)) > 0
	})
	over, some, failed := m.podsOver()
	return due || over, watch || some, errors.Join(err, failed)
}

// KeepLimits does what is due of limits: it takes away those that hold nothing any more, and
// puts processes of programs into their branches. The caller holds the lock.
func (m *Machine) KeepLimits(ctx context.Context) error {
	errs := []error{m.pass(ctx), m.KeepPods(ctx)}
	all, err := m.Limits()
	if err != nil {
		return err
	}
	for _, l := range all {
		if pids := m.strays(l.Branch); len(pids) > 0 {
			errs = append(errs, m.collect(ctx, l.Paths[0], pids))
		}
	}
	return errors.Join(errs...)
}

// strays are the processes of a limited program that are in no branch of their own: those
// that somebody has put into one stay there.
func (m *Machine) strays(b amend.Branch) []int {
	if b.Program == "" {
		return nil
	}
	pids, err := cgroupfs.Called(b.Program)
	if err != nil {
		return nil // the next look may see more
	}
	return slices.DeleteFunc(pids, func(pid int) bool {
		if was, ok := m.others[pid]; ok {
			if at, err := cgroupfs.Started(pid); err != nil || at == was {
				return true
			}
			delete(m.others, pid) // that one has ended, and another has its number
		}
		for _, w := range housing {
			at, _, err := cgroupfs.Of(w, pid)
			if err != nil {
				return true // it has ended, or does
			}
			for _, t := range at {
				if _, _, ok := home.Parse(t); ok {
					return true
				}
			}
		}
		return false
	})
}

// collect puts processes into the home of a limit, with all below them, but for those that
// another branch carries than the one above the limit: nothing gets out of that.
func (m *Machine) collect(ctx context.Context, p hierarchy.Path, pids []int) error {
	x, class, err := m.standing(p)
	if err != nil {
		return err
	}
	defer x.Binder.Close()
	target, err := m.makeHome(ctx, x, p, class)
	if err != nil {
		return err
	}
	pids = slices.DeleteFunc(pids, func(pid int) bool {
		at, err := cgroupfs.Started(pid)
		if err != nil {
			return true // it has ended
		}
		above, err := m.above(ctx, x, &Limit{PIDs: []int{pid}})
		if err == nil && above != p.Parent() {
			if m.others == nil {
				m.others = map[int]time.Duration{}
			}
			m.others[pid] = at
		}
		return err != nil || above != p.Parent()
	})
	if len(pids) == 0 {
		return nil
	}
	_, err = x.attach(ctx, target, pids, true)
	return err
}
