package cgroup

import (
	"context"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Only is the Binder for the binding of one target, in a look-up each time it is read
// whatever else is bound. It shows no binding where the classifier is another version's.
func (b *Binder) Only(target bind.Target) hierarchy.Part { return &only{b, target} }

type only struct {
	*Binder
	target bind.Target
}

// Read implements [hierarchy.Part].
func (o *only) Read(_ context.Context, s *hierarchy.State) error {
	class, stays, err := o.boundTo(o.target)
	if err != nil {
		return err
	}
	s.Hook, s.Bound = hierarchy.Hook{}, nil
	if o.last != nil {
		s.Hook = hierarchy.Hook{Way: o.last.name, Version: o.is}
		if s.Hook.Match, err = o.rules.Version(); err != nil {
			return o.wrap(err)
		}
	}
	if class != 0 {
		s.Bound = []hierarchy.Bound{{Target: o.target, Class: class, Stays: stays}}
	}
	return nil
}
