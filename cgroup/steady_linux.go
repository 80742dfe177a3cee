package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Steady is the Binder for one change of the interface, which cgroups and interfaces
// that come and go meanwhile do not disturb: services restart at any time, and a
// pattern may stand for hundreds of them. What has gone since it was read or bound is
// shown as it was, and what is gone when it is to be bound counts as bound: nobody
// sends by it. What appears is left to whoever looks next, as is what was left behind.
func (b *Binder) Steady() hierarchy.Part {
	return &steady{Binder: b, each: b.all, known: map[bind.Target]known{}}
}

// SteadyOf is Steady for what is bound of some targets, whatever else is: it reads no more
// than these.
func (b *Binder) SteadyOf(targets []bind.Target) hierarchy.Part {
	return &steady{Binder: b, each: b.these(targets), known: map[bind.Target]known{}}
}

type steady struct {
	*Binder
	each  bindings              // that it is for
	known map[bind.Target]known // what is bound as far as this knows, by target
	left  map[bind.Target]bool  // what the first Read showed that had gone before; nil: there was none yet
}

// known is a binding that was read or made.
type known struct {
	hierarchy.Bound
	id uint64 // of the cgroup or interface, 0 when it had gone
}

// mortal says whether a target names what may go, or be made anew under its name.
func mortal(target bind.Target) bool {
	return target.Kind == bind.TargetCgroup || target.Kind == bind.TargetLink
}

// gone says whether a target names what has gone.
func gone(target bind.Target) bool {
	return target.Kind == bind.TargetCgroupID || target.Kind == bind.TargetLinkIndex
}

// Read implements [hierarchy.Part].
func (s *steady) Read(ctx context.Context, st *hierarchy.State) error {
	if err := s.read(ctx, st, s.each); err != nil {
		return err
	}
	if s.left == nil {
		s.left = map[bind.Target]bool{}
		for _, x := range st.Bound {
			s.left[x.Target] = gone(x.Target)
		}
	}
	st.Bound = slices.DeleteFunc(st.Bound, func(x hierarchy.Bound) bool {
		return gone(x.Target) && !s.left[x.Target] // it was there, if only for a moment
	})
	was := s.known
	s.known = make(map[bind.Target]known, len(st.Bound))
	if st.Hook.Way == bind.WayNone {
		return nil
	}
	t, err := s.last.find()
	if t == nil || err != nil {
		return s.wrap(err)
	}
	for i := range st.Bound {
		x := &st.Bound[i]
		if !mortal(x.Target) {
			continue
		}
		now := s.idOf(t, x.Target)
		id, ok := s.ids[x.Target]
		if !ok {
			id = now
		}
		if k, ok := was[x.Target]; id != now || ok && id != k.id {
			x.Open = k.Open // it is another cgroup's, made meanwhile
		}
		s.know(*x, id)
	}
	for target, k := range was {
		if _, there := s.known[target]; there {
			continue
		}
		if id := s.idOf(t, target); id != 0 && id == k.id {
			continue // it is there as it was, and not bound any more
		}
		st.Bound = append(st.Bound, k.Bound)
		s.known[target] = k
	}
	slices.SortFunc(st.Bound, func(a, b hierarchy.Bound) int { return a.Target.Compare(b.Target) })
	return nil
}

// idOf is the number of what a target names, 0 when there is nothing.
func (s *steady) idOf(t *cgroupfs.Tree, target bind.Target) uint64 {
	switch {
	case target.Kind == bind.TargetLink:
		if l, err := s.link(0, target.Name); err == nil {
			return uint64(l.Index)
		}
	case target.Kind == bind.TargetCgroup && t != nil:
		if id, _, err := t.ID(target.Name); err == nil {
			return id
		}
	}
	return 0
}

func (s *steady) know(x hierarchy.Bound, id uint64) {
	s.known[x.Target] = known{x, id}
}

// Do implements [hierarchy.Part].
func (s *steady) Do(ctx context.Context, steps []hierarchy.Step) (done int, err error) {
	// The numbers from before: what is made anew meanwhile has another.
	ids := make([]uint64, len(steps))
	for i, step := range steps {
		if x, ok := step.New.(*hierarchy.Bound); ok && x != nil {
			ids[i] = s.idOf(s.tree(), x.Target)
		}
	}
	for done < len(steps) {
		n, err := s.Binder.Do(ctx, steps[done:])
		more := done + n
		if err != nil && more < len(steps) && vanished(steps[more], err) {
			ids[more] = 0
			more, err = more+1, nil
		}
		for ; done < more; done++ {
			switch x, ok := steps[done].Item().(*hierarchy.Bound); {
			case !ok || !mortal(x.Target):
			case steps[done].Action == hierarchy.Delete:
				delete(s.known, x.Target)
			default:
				s.know(*x, ids[done])
			}
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// vanished says whether all that is wrong is that what was to be bound has gone.
func vanished(step hierarchy.Step, err error) bool {
	x, ok := step.New.(*hierarchy.Bound)
	if !ok || x == nil || !mortal(x.Target) {
		return false
	}
	if all, ok := err.(interface{ Unwrap() []error }); ok && len(all.Unwrap()) > 1 {
		return false // what was done before could not be brought into force
	}
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV)
}
