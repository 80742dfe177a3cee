package shaper

import (
	"errors"
	"fmt"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// Wanted is an interface with what a policy says of it.
type Wanted struct {
	By   hierarchy.Selector // by which the policy names it
	Tree *hierarchy.Tree    // of the interface's own name
	Spec *hierarchy.Spec
}

// MisnamedError says that a policy names an interface that is called otherwise, or is not what
// was meant.
type MisnamedError struct {
	Name string
	err  error
}

func (e *MisnamedError) Error() string { return e.err.Error() }
func (e *MisnamedError) Unwrap() error { return e.err }

// Wanted are the interfaces that a policy has something to say of, in its order, and those that
// it means and that are not there, of patterns that fit none as well. Only chooses among those
// that are there; nil: all of them. With a [MisnamedError] the others are returned.
func (m *Machine) Wanted(p *policy.Policy, only func(link.Link) bool) (all []Wanted, absent []*link.NotFoundError, err error) {
	links, err := m.named(p)
	if err != nil {
		return nil, nil, err
	}
	at, best := make([]int, len(links)), make([]hierarchy.Fit, len(links))
	for j, l := range links {
		at[j], best[j] = p.For(l.Identity())
	}
	for i, s := range p.Specs {
		by, found := hierarchy.Selector(s.Interface), false
		for j, l := range links {
			fit := by.Fit(l.Identity())
			found = found || fit > 0 // also what another table names better
			if at[j] != i {
				if best[j] == hierarchy.FitName && fit == hierarchy.FitAltName {
					return nil, nil, fmt.Errorf("%s and %s are one interface: leave one of them out", l.Name, by)
				}
				continue
			}
			if only != nil && !only(l) {
				continue
			}
			if l.Receives != 0 && !by.Plain() { // one of ours is nobody's
				continue
			}
			if l.Name == s.Interface {
				all = append(all, Wanted{by, p.Trees[i], s})
				continue
			}
			spec := s.For(l.Name)
			tree, problems := hierarchy.Resolve(spec, qdisc.Kinds())
			if tree == nil { // which none has by its name
				return nil, nil, fmt.Errorf("%s: %s", problems[0].Path, problems[0].Text)
			}
			all = append(all, Wanted{by, tree, spec})
		}
		if found {
			continue
		}
		if !by.Plain() {
			absent = append(absent, &link.NotFoundError{Name: s.Interface})
			continue
		}
		var no *link.NotFoundError
		switch _, _, e := m.Device(s.Interface); {
		case errors.As(e, &no):
			absent = append(absent, Unlike(no, p))
		case err == nil && e != nil:
			err = &MisnamedError{s.Interface, e}
		}
	}
	return all, absent, err
}

// named are the interfaces that a policy may mean: those of its names, all where it has others
// than names.
func (m *Machine) named(p *policy.Policy) (links []link.Link, err error) {
	for _, s := range p.Specs {
		if !hierarchy.Selector(s.Interface).Plain() {
			return link.List(m.Conn)
		}
	}
	seen := map[int]bool{}
	for _, s := range p.Specs {
		l, err := link.Find(m.Conn, s.Interface)
		switch {
		case errors.As(err, new(*link.NotFoundError)):
		case err != nil:
			return nil, err
		case !seen[l.Index]:
			seen[l.Index] = true
			links = append(links, l)
		}
	}
	return links, nil
}
