package record

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Bind adds bindings to those of a branch. One that is there stays as it is.
func (r *Record) Bind(path hierarchy.Path, specs []bind.Binding) (fresh []bind.Binding, remarks []string, err error) {
	var errs []error
	for _, s := range specs {
		switch b := r.binding(s); {
		case b == nil:
			fresh = append(fresh, s)
			r.Bindings = append(r.Bindings, Binding{Path: path, Binding: s, AtRuntime: true})
		case b.Path != path && b.AtRuntime:
			errs = append(errs, fmt.Errorf("%s: %v is bound to %s: `vifshape unbind %s %v` takes it from there", path, s, b.Path, b.Path, s))
		case b.Path != path && b.Limit:
			errs = append(errs, fmt.Errorf("%s: a limit is on %v: `vifshape unlimit %[2]v` takes it away", path, s))
		case b.Path != path:
			errs = append(errs, fmt.Errorf("%s: the policy binds %v to %s: change it in %s", path, s, b.Path, r.PolicyName()))
		default:
			remarks = append(remarks, fmt.Sprintf("%s: %v is bound to it already, %s", path, s, b.By()))
		}
	}
	return fresh, remarks, errors.Join(errs...)
}

// Unbind takes bindings away that bind has made.
func (r *Record) Unbind(path hierarchy.Path, specs []bind.Binding) (_ []bind.Binding, _ []string, err error) {
	var errs []error
	for _, s := range specs {
		switch b := r.binding(s); {
		case b == nil:
			errs = append(errs, r.notBound(path, s))
		case b.Path != path:
			errs = append(errs, fmt.Errorf("%s: %v is not bound to it, but to %s, %s", path, s, b.Path, b.By()))
		case b.Limit:
			errs = append(errs, fmt.Errorf("%s: a limit is on %v: `vifshape unlimit %[2]v` takes it away", path, s))
		case !b.AtRuntime:
			errs = append(errs, fmt.Errorf("%s: the policy binds %v: remove it from bind in %s, and apply that", path, s, r.PolicyName()))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, nil, err
	}
	r.Bindings = slices.DeleteFunc(r.Bindings, func(b Binding) bool { return slices.Contains(specs, b.Binding) })
	return nil, nil, nil
}

// binding is the one of the interface that binds the same, or nil.
func (r *Record) binding(of bind.Binding) *Binding {
	i := slices.IndexFunc(r.Bindings, func(b Binding) bool { return b.Binding == of })
	if i < 0 {
		return nil
	}
	return &r.Bindings[i]
}

// notBound says that nothing binds s, and what was perhaps meant.
func (r *Record) notBound(path hierarchy.Path, s bind.Binding) error {
	var there []string
	for _, b := range r.Bindings {
		if b.Path == path && b.AtRuntime {
			there = append(there, b.Binding.String())
		}
	}
	err := fmt.Errorf("%s: %v is not bound to it", path, s)
	switch near := hierarchy.Near(s.String(), there); {
	case len(near) > 0:
		return fmt.Errorf("%w%s", err, hierarchy.DidYouMean(near))
	case len(there) == 0:
		return fmt.Errorf("%w: nothing was bound to it at run time", err)
	}
	return fmt.Errorf("%w: what was at run time is %s", err, strings.Join(there, ", "))
}

// By says who made the binding.
func (b *Binding) By() string {
	switch {
	case b.AtRuntime:
		return "at run time"
	case b.Limit:
		return "by a limit"
	}
	return "by the policy"
}
