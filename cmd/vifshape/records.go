package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
)

// device finds an interface and its record, also where the interface had another
// name when the record was written.
func (m *machine) device(iface string) (*tc.Device, *record, error) {
	d, err := tc.Find(m.conn, iface)
	var no *tc.ErrNoDevice
	if errors.As(err, &no) {
		return nil, nil, m.called(no, iface)
	}
	if err != nil {
		return nil, nil, err
	}
	if d.Name != iface {
		return nil, nil, fmt.Errorf("%s is an alternative name of %s: write that, branches have their names from it", iface, d.Name)
	}
	r, err := m.record(d.Name, d.Index)
	return d, r, err
}

// called says in place of the error that there is no such interface what it is
// called now, where that is known. What had a tree was meant, not one with a like
// name.
func (m *machine) called(no *tc.ErrNoDevice, iface string) error {
	r, err := m.store.load(iface)
	if err != nil || r.Policy == "" {
		return no
	}
	no = &tc.ErrNoDevice{Name: no.Name}
	links, err := tc.Links(m.conn)
	if err != nil {
		return no
	}
	if l := r.moved(links); l != nil {
		return fmt.Errorf("%s is called %s now, and so are its branches: use that name, also in the policy", iface, l.Name)
	}
	return no
}

// record is the record of an interface: the one under its name, else the one that
// was written under a name that it had before. One under its name that belongs to
// an interface which has another name now is not its own.
func (m *machine) record(iface string, index uint32) (*record, error) {
	r, err := m.store.load(iface)
	if err != nil || r.Policy != "" && r.Index == index {
		return r, err
	}
	names, err := m.store.interfaces()
	if err != nil || len(names) == 0 {
		return r, err
	}
	links, err := tc.Links(m.conn)
	if err != nil {
		return nil, err
	}
	if r.Policy != "" {
		if r.moved(links) == nil {
			return r, nil // the interface was made anew
		}
		r = &record{Version: recordVersion, Interface: iface}
	}
	for _, n := range names {
		o, err := m.store.load(n)
		if err != nil || n == iface {
			continue // a damaged one is reported with its own interface
		}
		if l := o.moved(links); l != nil && l.Index == int(index) {
			return o.renamed(iface), nil
		}
	}
	return r, nil
}

// moved is the interface that the record was written for, where it has another
// name by now. An index alone proves little: it may come back with an interface
// that was in another namespace, but not with a tree on it.
func (r *record) moved(links []tc.Link) *tc.Link {
	i := slices.IndexFunc(links, func(l tc.Link) bool {
		return r.Index != 0 && l.Index == int(r.Index) && l.Name != r.Interface && l.Qdisc == "htb"
	})
	if i < 0 {
		return nil
	}
	return &links[i]
}

// renamed is the record under another name of the interface: branches keep their
// classes.
func (r *record) renamed(iface string) *record {
	path := func(p hierarchy.Path) hierarchy.Path { return hierarchy.Path(iface) + p[len(r.Interface):] }
	n := *r
	n.Interface, n.was = iface, r.Interface
	n.IDs = hierarchy.IDs{Minors: make(map[string]uint16, len(r.IDs.Minors)), Retired: slices.Clone(r.IDs.Retired)}
	for key, minor := range r.IDs.Minors {
		n.IDs.Minors[string(path(hierarchy.Path(key)))] = minor
	}
	for i := range n.IDs.Retired {
		n.IDs.Retired[i].Key = string(path(hierarchy.Path(n.IDs.Retired[i].Key)))
	}
	n.Order, n.Bound, n.Bindings = slices.Clone(r.Order), slices.Clone(r.Bound), slices.Clone(r.Bindings)
	for i := range n.Order {
		n.Order[i] = path(n.Order[i])
	}
	for i := range n.Bound {
		n.Bound[i].Path = path(n.Bound[i].Path)
	}
	for i := range n.Bindings {
		n.Bindings[i].Path = path(n.Bindings[i].Path)
	}
	n.Delegated, n.Added = slices.Clone(r.Delegated), slices.Clone(r.Added)
	for i := range n.Delegated {
		n.Delegated[i].Path = path(n.Delegated[i].Path)
	}
	for i := range n.Added {
		n.Added[i].Path = path(n.Added[i].Path)
	}
	return &n
}

// leaf is the leaf that the branch's own processes use, and its class.
func (r *record) leaf(p hierarchy.Path) (leaf hierarchy.Path, class hierarchy.ClassID, ok bool) {
	class, inner, ok := r.IDs.Find(p)
	if inner {
		p = p.Join(hierarchy.RestName)
		class, _, ok = r.IDs.Find(p)
	}
	return p, class, ok
}

// branches are those that processes can be in, with their bindings.
func (r *record) branches() []cgroup.Branch {
	bind := map[hierarchy.Path][]bind.Binding{}
	for _, b := range r.Bindings {
		bind[b.Path] = append(bind[b.Path], b.Binding)
	}
	all := make([]cgroup.Branch, 0, len(r.Order))
	for _, p := range r.Order {
		if entry, class, ok := r.leaf(p); ok {
			all = append(all, cgroup.Branch{Path: p, Entry: entry, Class: class, Bind: bind[p]})
		}
	}
	return all
}

// came notes what the bindings came to, for those who may not read the kernel.
func (r *record) came(to *cgroup.Resolution) {
	r.Bound = slices.Clone(to.Bound)
	for _, p := range to.Pending {
		r.Bound = append(r.Bound, hierarchy.Bound{Path: p.Path, From: p.Binding.String()})
	}
}
