package observe

import (
	"context"
	"errors"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Binding is a binding as it was written, and what it came to.
type Binding struct {
	Path      hierarchy.Path `json:"path"`
	Binding   bind.Binding   `json:"binding"`
	AtRuntime bool           `json:"at_runtime"`        // by bind, not in the policy
	Limit     bool           `json:"limit,omitempty"`   // by a limit
	Bound     []bind.Target  `json:"bound"`             // targets that it is in force for
	Held      []Bound        `json:"held,omitempty"`    // how far it holds, for each of them
	Waits     []string       `json:"pending,omitempty"` // reasons why it is in force for nothing, or not for all
	Refused   []string       `json:"refused,omitempty"` // why it cannot be
	Outside   []string       `json:"outside,omitempty"` // what of that which it names it does not hold
}

// Bindings are those of one interface, or of one of its branches and all below.
func Bindings(ctx context.Context, m *shaper.Machine, iface string, path hierarchy.Path) ([]*Binding, error) {
	x, s, err := m.TreeOf(ctx, iface)
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	if path != "" {
		if err := x.CheckPath(path); err != nil {
			return nil, err
		}
	}
	var list []*Binding
	views := map[string]*Binding{}
	for _, b := range x.Record.Bindings {
		v := &Binding{Path: b.Path, Binding: b.Binding, AtRuntime: b.AtRuntime, Limit: b.Limit, Bound: []bind.Target{}}
		views[b.Binding.String()] = v
		if path == "" || b.Path.Below(path) {
			list = append(list, v)
		}
	}
	at := func(b string) *Binding {
		if v := views[b]; v != nil {
			return v
		}
		return &Binding{} // a branch's own cgroup
	}
	if x.Blind != nil {
		m.Notef(hierarchy.Path(iface), "%s: without privileges the bindings in force cannot be read; what they came to when they were last changed is shown", iface)
		for _, b := range x.Record.Bound {
			v := at(b.From)
			if b.Target.Kind == bind.TargetNone {
				v.Waits = append(v.Waits, "it was not there")
			} else {
				v.Bound = append(v.Bound, b.Target)
			}
		}
		return list, nil
	}
	if bare, err := x.Bare(); err != nil || bare {
		return nil, errors.Join(err, x.Losses(s))
	}
	if err := x.Keep(); err != nil {
		return nil, err
	}
	r, err := x.Binder.Resolve(ctx, x.Record.Branches(), nil)
	if err != nil {
		return nil, err
	}
	held, err := heldBy(ctx, x.Interface, s.Bound)
	if err != nil {
		return nil, err
	}
	is := make(map[bind.Target]hierarchy.ClassID, len(s.Bound))
	for _, b := range s.Bound {
		is[b.Target] = b.Class
	}
	for _, b := range r.Bound {
		v := at(b.From)
		if is[b.Target] == b.Class {
			v.Bound = append(v.Bound, b.Target)
			h := held[b.Target]
			h.From, h.AtRuntime = b.From, v.AtRuntime
			v.Held = append(v.Held, h)
		} else {
			v.Waits = append(v.Waits, notBound(b.Target))
		}
	}
	for _, p := range r.Pending {
		v := at(p.Binding.String())
		v.Waits = append(v.Waits, p.Reason)
	}
	for _, o := range r.Outside {
		v := at(o.Binding.String())
		v.Outside = append(v.Outside, o.String())
	}
	for _, f := range r.Refused {
		for _, b := range []bind.Binding{f.Binding, f.With} {
			v := at(b.String())
			v.Refused = append(v.Refused, f.Err.Error())
		}
	}
	return list, nil
}

// notBound says that a target could be bound and is not.
func notBound(target bind.Target) string {
	return target.String() + " is there and not bound: start vifshape agent, or apply the policy again"
}
