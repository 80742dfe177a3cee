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
	// Unknown is why it cannot be said what the tree's rates are, which are an example then;
	// nil: it can.
	Unknown *LinkError
}

// LinkError says that it is not known what an interface's line carries, by which its rate is.
type LinkError struct {
	Iface string
	Down  bool // the line is not there, so that it may be known later
}

func (e *LinkError) Error() string {
	if e.Down {
		return e.Iface + ": its rate is a share of the link, which is down: how fast it is shows when it is up"
	}
	return e.Iface + ": its rate is a share of the link, and its driver does not say how fast that is"
}

// Remedy is the way on.
func (e *LinkError) Remedy() string {
	return `write what the line really carries: rate = "940mbit"`
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
	uplinks, err := m.Uplinks(p.ByRoute())
	if err != nil {
		return nil, nil, err
	}
	at, best := make([]int, len(links)), make([]hierarchy.Fit, len(links))
	for j, l := range links {
		at[j], best[j] = p.For(l.Identity(uplinks))
	}
	for i, s := range p.Specs {
		by, found := hierarchy.Selector(s.Interface), false
		for j, l := range links {
			fit := by.Fit(l.Identity(uplinks))
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
			if l.Name == s.Interface && !s.OfLink() {
				all = append(all, Wanted{By: by, Tree: p.Trees[i], Spec: s})
				continue
			}
			w := Wanted{By: by, Spec: s.For(l.Name)}
			if s.OfLink() {
				if w.Spec, w.Unknown, err = m.on(w.Spec, l); err != nil {
					return nil, nil, err
				}
			}
			tree, problems := hierarchy.Resolve(w.Spec, qdisc.Kinds())
			if tree == nil { // its name, or its line, is not right for what is written
				return nil, nil, p.Wrong(by, problems)
			}
			w.Tree = tree
			all = append(all, w)
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

// on is what a policy says of an interface on the line that this has now, or had when the tree
// was made that it has: while it is down nobody knows.
func (m *Machine) on(s *hierarchy.Spec, l link.Link) (*hierarchy.Spec, *LinkError, error) {
	speed := l.Speed
	if speed == 0 {
		r, err := m.Record(l.Name, uint32(l.Index))
		if err != nil {
			return nil, nil, err
		}
		if r.Index == uint32(l.Index) {
			speed = r.Link
		}
	}
	if speed == 0 {
		return s, &LinkError{l.Name, !l.Carrier}, nil
	}
	return s.At(speed), nil, nil
}

// Uplinks are the indices of the interfaces that the default route goes by, where anybody
// names them so: a router has many routes to read.
func (m *Machine) Uplinks(byRoute bool) ([]int, error) {
	if !byRoute {
		return nil, nil
	}
	return link.Uplinks(m.Conn)
}

// named are the interfaces that a policy may mean: those of its names, all where it has others
// than names, or goes by how fast a line is, which may be known of what it lies on alone.
func (m *Machine) named(p *policy.Policy) (links []link.Link, err error) {
	for _, s := range p.Specs {
		if !hierarchy.Selector(s.Interface).Plain() || s.OfLink() {
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
