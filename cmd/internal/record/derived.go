package record

import (
	"slices"

	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/link"
)

// Moved is the interface that the record was written for, where it has another
// name by now. An index alone proves little: it may come back with an interface
// that was in another namespace, but not with a tree on it.
func (r *Record) Moved(links []link.Link) *link.Link {
	i := slices.IndexFunc(links, func(l link.Link) bool {
		return r.Index != 0 && l.Index == int(r.Index) && l.Name != r.Interface && l.Qdisc == "htb"
	})
	if i < 0 {
		return nil
	}
	return &links[i]
}

// Renamed is the record under another name of the interface: branches keep their
// classes, and programs that run in them their homes.
func (r *Record) Renamed(iface string) *Record {
	path := func(p hierarchy.Path) hierarchy.Path { return hierarchy.Path(iface) + p[len(r.Interface):] }
	n := *r
	n.Interface, n.Was = iface, r.Interface
	n.Formerly = slices.DeleteFunc(append(slices.Clone(r.Formerly), r.Interface), func(name string) bool { return name == iface })
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
		b := &n.Added[i]
		b.Path = path(b.Path)
		if b.Holder != nil && len(b.Bind) == 0 { // its home is that of the other name, and bound no more by itself
			if at, err := bind.Parse("cgroup:" + b.Holder.Cgroup); err == nil {
				b.Bind = []bind.Binding{at}
				n.Bindings = append(n.Bindings, Binding{Path: b.Path, Binding: at, Limit: true})
			}
		}
	}
	if r.Spec != nil {
		spec := *r.Spec
		spec.Interface, n.Spec = iface, &spec
	}
	return &n
}

// Leaf is the leaf that the branch's own processes use, and its class.
func (r *Record) Leaf(p hierarchy.Path) (leaf hierarchy.Path, class hierarchy.ClassID, ok bool) {
	class, inner, ok := r.IDs.Find(p)
	if inner {
		p = p.Join(hierarchy.RestName)
		class, _, ok = r.IDs.Find(p)
	}
	return p, class, ok
}

// Branches are those that processes can be in, with their bindings.
func (r *Record) Branches() []resolve.Branch {
	bind := map[hierarchy.Path][]bind.Binding{}
	for _, b := range r.Bindings {
		bind[b.Path] = append(bind[b.Path], b.Binding)
	}
	all := make([]resolve.Branch, 0, len(r.Order))
	for _, p := range r.Order {
		if entry, class, ok := r.Leaf(p); ok {
			all = append(all, resolve.Branch{Path: p, Home: r.IDs.Home(p), Entry: entry, Class: class, Bind: bind[p]})
		}
	}
	return all
}

// Came notes what the bindings came to, for those who may not read the kernel.
func (r *Record) Came(to *resolve.Resolution) {
	r.Bound = slices.Clone(to.Bound)
	for _, p := range to.Pending {
		r.Bound = append(r.Bound, hierarchy.Bound{Path: p.Path, From: p.Binding.String()})
	}
}

// PolicyName is the policy's file in words.
func (r *Record) PolicyName() string {
	if r.Policy == "-" {
		return "the policy"
	}
	return words.Printable(r.Policy)
}

// Again is what puts back what a record tells of, as in "apply web.toml again".
func (r *Record) Again() string {
	if r.Policy == NoPolicy {
		return "repeat one of its limits, which `vifshape limits` lists"
	}
	return "apply " + r.PolicyName() + " again"
}

// Names are the last parts of the paths of all branches, in no order.
func (r *Record) Names() []string {
	var all []string
	for _, p := range r.IDs.Names(r.Interface) {
		all = append(all, p.Base())
	}
	return all
}

// Paths are those of all branches, in no order.
func (r *Record) Paths() []hierarchy.Path {
	var all []hierarchy.Path
	for _, p := range r.IDs.Names(r.Interface) {
		all = append(all, p)
	}
	return all
}
