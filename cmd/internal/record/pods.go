package record

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/hierarchy/amend"
)

// PodsFile is the file of the run directory that has the pods. It is not there while there are none.
const PodsFile = "pods"

func (s *Store) podsFile() string { return filepath.Join(s.Dir, PodsFile) }

// Pod is a pod of which the container runtime has told.
type Pod struct {
	amend.Pod
	Links []resolve.Link `json:"links,omitempty"` // as [resolve.Pod] has them
	Ended bool           `json:"ended,omitempty"`
}

// Pods are the pods of which the container runtime has told, by their ids, those that have ended
// among them as long as an interface of theirs is there.
func (s *Store) Pods() (all []Pod, err error) {
	_, err = s.value(s.podsFile(), &all)
	return all, err
}

// BoundPods are the same, as bindings go by them.
func (s *Store) BoundPods() ([]resolve.Pod, error) {
	of, err := s.Pods()
	all := make([]resolve.Pod, len(of))
	for i, p := range of {
		all[i] = resolve.Pod{RunningPod: p.RunningPod, Links: p.Links, Ended: p.Ended}
	}
	return all, err
}

// SavePods replaces the pods. The caller holds the lock.
func (s *Store) SavePods(all []Pod) error {
	if len(all) == 0 {
		return UnlessGone(os.Remove(s.podsFile()))
	}
	all = slices.SortedFunc(slices.Values(all), func(a, b Pod) int { return strings.Compare(a.ID, b.ID) })
	_, err := s.write(s.podsFile(), all)
	return s.room(err)
}
