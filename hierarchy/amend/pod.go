package amend

import (
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Pod is a pod of Kubernetes with the ceilings that its author gave it, each of which is that of a
// limit on the pod; zero: none.
type Pod struct {
	bind.RunningPod
	Up   hierarchy.Amount `json:"up,omitzero"`
	Down hierarchy.Amount `json:"down,omitzero"`
}

// Capped says whether it has a ceiling of its own.
func (p *Pod) Capped() bool { return !p.Up.IsZero() || !p.Down.IsZero() }

// Limit is the words for a limit on the pod.
func (p *Pod) Limit() string { return bind.Pod.String() + ":" + p.String() }
