package shaper

import (
	"slices"

	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Held is the processes that each target holds: a process in several of them
// belongs to the deepest cgroup, and to its user only where none is bound, as the
// classifier has it.
func (x *Interface) Held(all []hierarchy.Bound) (map[bind.Target][]int, error) {
	held := map[bind.Target][]int{}
	owner := map[int]bind.Target{}
	for _, b := range all {
		if b.Target.Kind == bind.TargetNone || held[b.Target] != nil {
			continue
		}
		h, err := x.Binder.Homes()
		if err != nil {
			return nil, err
		}
		pids, err := home.Processes(h.Tree, b.Target)
		if err != nil {
			return nil, err
		}
		held[b.Target] = pids
		for _, pid := range pids {
			if deeper(b.Target, owner[pid]) {
				owner[pid] = b.Target
			}
		}
	}
	for target, pids := range held {
		held[target] = slices.DeleteFunc(pids, func(pid int) bool { return owner[pid] != target })
	}
	return held, nil
}

// deeper says which of two targets that hold the same process comes first. Both
// are cgroups on one way to the root, or one is a user; no target holds nothing.
func deeper(a, b bind.Target) bool {
	if b.Kind != bind.TargetCgroup {
		return true
	}
	return a.Kind == bind.TargetCgroup && len(a.Name) > len(b.Name)
}
