package shaper

import (
	"errors"
	"fmt"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/link"
)

// Device finds an interface and its record, also where the interface had another
// name when the record was written.
func (m *Machine) Device(iface string) (*tc.Device, *record.Record, error) {
	d, err := tc.Find(m.Conn, iface)
	var no *link.NotFoundError
	if errors.As(err, &no) {
		return nil, nil, m.called(no, iface)
	}
	if err != nil {
		return nil, nil, err
	}
	if d.Name != iface {
		return nil, nil, fmt.Errorf("%s is an alternative name of %s: write that, branches have their names from it", iface, d.Name)
	}
	if of := d.ReceivesFor(); of != 0 {
		return nil, nil, m.carries(iface, int(of))
	}
	r, err := m.Record(d.Name, d.Index)
	return d, r, err
}

// carries says that an IFB of ours is not what is meant, and what is.
func (m *Machine) carries(ifb string, of int) error {
	links, err := link.List(m.Conn)
	if err != nil {
		return err
	}
	for _, l := range links {
		if l.Index == of {
			return fmt.Errorf("%s carries what %s receives and has no branches of its own: name %[2]s", ifb, l.Name)
		}
	}
	return fmt.Errorf("%s carried what an interface received that is gone, and has no branches of its own: \"vifshape clear\" takes it away", ifb)
}

// called says in place of the error that there is no such interface what it is
// called now, where that is known. What had a tree was meant, not one with a like
// name. Where none is like it, it may be the name of a branch.
func (m *Machine) called(no *link.NotFoundError, iface string) error {
	r, err := m.Store.Load(iface)
	if err != nil {
		return no
	}
	if r.Policy == "" {
		if no.Nearest == "" {
			no.Nearest = m.branchCalled(iface)
		}
		return no
	}
	no = &link.NotFoundError{Name: no.Name}
	links, err := link.List(m.Conn)
	if err != nil {
		return no
	}
	if l := r.Moved(links); l != nil {
		return fmt.Errorf("%s is called %s now, and so are its branches: use that name, also in the policy", iface, l.Name)
	}
	return no
}

// branchCalled is the path of the one branch that is called so, empty where there is none,
// or are several.
func (m *Machine) branchCalled(name string) (found string) {
	ifaces, err := m.Store.Interfaces()
	if err != nil {
		return ""
	}
	for _, i := range ifaces {
		r, err := m.Store.Load(i)
		if err != nil {
			continue
		}
		for _, p := range r.Paths() {
			switch {
			case p.Base() != name || p.Parent() == "":
			case found != "":
				return ""
			default:
				found = string(p)
			}
		}
	}
	return found
}

// Record is the record of an interface: the one under its name, else the one that
// was written under a name that it had before. One under its name that belongs to
// an interface which has another name now is not its own.
func (m *Machine) Record(iface string, index uint32) (*record.Record, error) {
	r, err := m.Store.Load(iface)
	if err != nil || r.Policy != "" && r.Index == index {
		return r, err
	}
	names, err := m.Store.Interfaces()
	if err != nil || len(names) == 0 {
		return r, err
	}
	links, err := link.List(m.Conn)
	if err != nil {
		return nil, err
	}
	if r.Policy != "" {
		if r.Moved(links) == nil {
			return r, nil // the interface was made anew
		}
		r = &record.Record{Version: record.Version, Interface: iface}
	}
	for _, n := range names {
		o, err := m.Store.Load(n)
		if err != nil || n == iface {
			continue // a damaged one is reported with its own interface
		}
		if l := o.Moved(links); l != nil && l.Index == int(index) {
			return o.Renamed(iface), nil
		}
	}
	return r, nil
}
