package shaper

import (
	"errors"
	"io/fs"
	"os"
	"slices"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/link"
)

// Own says whether this is the network namespace in which the machine, or the container, was
// started: that of its first process, where that may be seen, else the kernel's first.
func (m *Machine) Own() (bool, error) {
	first, err := os.Stat("/proc/1/ns/net")
	if errors.Is(err, fs.ErrPermission) {
		return m.Store.NetNS == "", nil
	}
	if err != nil {
		return false, err
	}
	mine, err := os.Stat("/proc/self/ns/net")
	return err == nil && os.SameFile(first, mine), err
}

// From are the interfaces whose trees came from a policy's file and that the policy, nil for
// none, has no more, under the names that they have now.
func (m *Machine) From(file string, p *policy.Policy) ([]string, error) {
	names, err := m.Store.Interfaces()
	if err != nil || len(names) == 0 {
		return nil, err
	}
	links, err := link.List(m.Conn)
	if err != nil {
		return nil, err
	}
	uplinks, err := m.Uplinks(p != nil && p.ByRoute())
	if err != nil {
		return nil, err
	}
	known := map[string]hierarchy.Identity{}
	for _, l := range links {
		known[l.Name] = l.Identity(uplinks)
	}
	var from []string
	for _, n := range names {
		r, err := m.Store.Load(n)
		if err != nil || r.Policy != file { // a damaged one is reported with its own interface
			continue
		}
		if l := r.Moved(links); l != nil {
			n = l.Name
		}
		is, ok := known[n]
		if !ok {
			is.Name = n
		}
		if p != nil {
			if at, _ := p.For(is); at >= 0 || r.Selector == hierarchy.DefaultRoute && p.ByRoute() && len(uplinks) == 0 { // until there is one again
				continue
			}
		}
		from = append(from, n)
	}
	return from, nil
}

// Deserted are the interfaces that a policy's file shapes because the default route went by
// them, once it goes by another one that the file shapes. Where there is none they stay as they
// are: it may come back.
func (m *Machine) Deserted(file string, uplinks []int) (all []string, err error) {
	names, err := m.Store.Interfaces()
	if err != nil {
		return nil, err
	}
	goes := false
	for _, n := range names {
		_, r, err := m.Device(n)
		switch {
		case err != nil: // which is reported with the interface, or it is gone
		case r.Policy != file || r.Selector != hierarchy.DefaultRoute:
		case slices.Contains(uplinks, int(r.Index)):
			goes = true
		default:
			all = append(all, r.Interface)
		}
	}
	if u, err := m.Store.Unconfirmed(); err != nil || u != nil || !goes {
		return nil, err
	}
	return all, nil
}

// Standing is how an interface stands to a policy that should be in force.
type Standing string

// The standings.
const (
	InForce   Standing = "in force"
	Changed   Standing = "changed" // the file says something else than what is in force
	Waiting   Standing = "waits"   // the interface is not there
	Unapplied Standing = "not applied"
	Otherwise Standing = "shaped otherwise" // by another policy
	Anothers  Standing = "another's"        // what fits belongs to another policy, which names it better
)

// InForce is how an interface stands to what a policy's file says of it. It goes by the record:
// what others changed since, plan shows.
func (m *Machine) InForce(iface, file string, spec *hierarchy.Spec) (Standing, error) {
	d, r, err := m.Device(iface)
	switch {
	case errors.As(err, new(*link.NotFoundError)):
		return Waiting, nil
	case err != nil:
		return "", err
	case r.Policy == "", r.Policy == record.NoPolicy, r.Index != d.Index:
		return Unapplied, nil
	case r.Policy != file:
		return Otherwise, nil
	case !m.Store.Says(r, spec):
		return Changed, nil
	}
	return InForce, nil
}
