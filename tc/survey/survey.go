//go:build linux

package survey

import (
	"encoding/binary"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Interface is the traffic control of one interface.
type Interface struct {
	Name   string
	Header hierarchy.Size      // bytes of the link-layer header, which the kernel counts with each packet
	Speed  hierarchy.Bandwidth // of the line, 0 where it is unknown

	Root    Qdisc   // its Kind is empty where it is the kernel's own
	Leaves  []Qdisc // of classes of Root, by Parent
	Classes []Class // of Root, by number
	Filters []Filter
	Hook    string   // what stands at ingress: "ingress", "clsact" or nothing
	Arrive  []Filter // there
	Depart  []Filter // at clsact's hook for what is sent, before it comes to Root

	// Receive is the IFB that Arrive redirects to, nil where it does not. Shared are the other
	// interfaces that redirect to it.
	Receive *Interface
	Shared  []string
}

// Qdisc is a queueing discipline.
type Qdisc struct {
	Kind    string
	Handle  hierarchy.ClassID
	Parent  hierarchy.ClassID   // the class whose queue it is; 0 at the root
	Leaf    hierarchy.Qdisc     // with all its parameters, where a policy could have it; else the kind alone
	Default hierarchy.ClassID   // of htb and hfsc: the class of what no filter claims, 0: none
	R2Q     uint32              // of htb: quanta that nobody chose are this part of the rate
	PrioMap []uint8             // of prio: the band of each priority
	Bands   int                 // of prio
	Table   hierarchy.LinkLayer // of its size table
	Below   bool                // it has qdiscs or filters of its own that are not told of here
}

// Curve is a service curve of HFSC: M1 for the first D nanoseconds, then M2.
type Curve struct {
	M1, M2 hierarchy.Bandwidth
	D      uint64
}

// Class is a class of the root qdisc. Path is empty.
type Class struct {
	hierarchy.Class
	Kind string
	// RealTime, Share and Upper are the curves of an HFSC class, nil where it has none; its
	// Rate and Ceil are 0.
	RealTime, Share, Upper *Curve
	// Bounded says that a CBQ class does not borrow. Its Ceil is 0.
	Bounded bool
}

// Read reads the traffic control of the interface that has the name, also as an alternative.
// The error is a [*link.NotFoundError] when there is none.
func Read(c *rtnl.Conn, name string) (*Interface, error) {
	l, err := link.Find(c, name)
	if err != nil {
		return nil, err
	}
	x, err := read(c, l)
	if err != nil {
		return nil, err
	}
	to := x.redirects()
	if to == 0 || to == l.Index {
		return x, nil
	}
	links, err := link.List(c)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(links, func(l link.Link) bool { return l.Index == to })
	if i < 0 || links[i].Kind != "ifb" {
		return x, nil
	}
	if x.Receive, err = read(c, links[i]); err != nil {
		return nil, err
	}
	for _, o := range links {
		if o.Index == l.Index || o.Index == to {
			continue
		}
		other := Interface{Name: o.Name}
		if err := other.arrivals(on(c, o)); err != nil {
			return nil, err
		}
		if other.redirects() == to {
			x.Shared = append(x.Shared, o.Name)
		}
	}
	return x, nil
}

func on(c *rtnl.Conn, l link.Link) rtnl.Interface {
	return rtnl.Interface{Conn: c, Name: l.Name, Index: uint32(l.Index)}
}

// redirects is the index of the interface to which everything that arrives is redirected; 0:
// nothing is.
func (x *Interface) redirects() int {
	for _, f := range x.Arrive {
		if f.All && f.Redirect != 0 {
			return f.Redirect
		}
	}
	return 0
}

func read(c *rtnl.Conn, l link.Link) (*Interface, error) {
	x := &Interface{Name: l.Name, Header: l.Header, Speed: l.Speed}
	i := on(c, l)
	err := x.qdiscs(i)
	if err == nil && x.Root.Kind != "" {
		err = x.classes(i)
	}
	if err == nil && x.Root.Kind != "" {
		err = x.filters(i)
	}
	if err == nil {
		err = x.arrivals(i)
	}
	if err == nil && x.Hook == "clsact" {
		err = hooked(i, rtnl.EgressParent, &x.Depart)
	}
	return x, i.Fail("read traffic control", err)
}

// qdiscs reads the root qdisc and those of its classes.
func (x *Interface) qdiscs(i rtnl.Interface) error {
	var all []rtnl.Qdisc
	err := i.EachQdisc(func(q *rtnl.Qdisc) error {
		if q.Parent == rtnl.HookParent {
			x.Hook = q.Kind
		} else if q.Handle != 0 { // those without are the kernel's own
			all = append(all, *q.Clone())
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, q := range all {
		if q.Parent == rtnl.RootParent {
			if x.Root, err = decodeQdisc(&q); err != nil {
				return err
			}
			x.Root.Parent = 0
		}
	}
	for _, q := range all {
		parent := hierarchy.ClassID(q.Parent)
		if q.Parent == rtnl.RootParent || parent.Major() != x.Root.Handle.Major() || x.Root.Kind == "" {
			continue
		}
		leaf, err := decodeQdisc(&q)
		if err != nil {
			return err
		}
		leaf.Below = slices.ContainsFunc(all, func(o rtnl.Qdisc) bool {
			return o.Parent != rtnl.RootParent && hierarchy.ClassID(o.Parent).Major() == leaf.Handle.Major()
		})
		x.Leaves = append(x.Leaves, leaf)
	}
	slices.SortFunc(x.Leaves, func(a, b Qdisc) int { return int(a.Parent) - int(b.Parent) })
	return nil
}

// Attributes of qdiscs in linux/pkt_sched.h.
const tcaHTBInit = 2

func decodeQdisc(q *rtnl.Qdisc) (Qdisc, error) {
	x := Qdisc{Kind: q.Kind, Handle: hierarchy.ClassID(q.Handle), Parent: hierarchy.ClassID(q.Parent)}
	own := func(minor uint32) hierarchy.ClassID {
		if minor == 0 {
			return 0
		}
		return x.Handle | hierarchy.ClassID(minor&0xffff)
	}
	if o := q.Size; len(o) >= 12 { // struct tc_sizespec
		x.Table = hierarchy.LinkLayer{Overhead: int16(int32(binary.NativeEndian.Uint32(o[4:])))}
		if len(o) >= 16 {
			x.Table.ATM = binary.NativeEndian.Uint32(o[8:]) == rtnl.LinkATM
			x.Table.MPU = hierarchy.Size(binary.NativeEndian.Uint32(o[12:]))
		}
	}
	switch q.Kind {
	case "htb":
		return x, rtnl.EachAttr(q.Options, func(typ uint16, v []byte) error {
			if typ == tcaHTBInit {
				if len(v) < 12 { // struct tc_htb_glob
					return rtnl.ErrMalformed
				}
				x.R2Q, x.Default = binary.NativeEndian.Uint32(v[4:]), own(binary.NativeEndian.Uint32(v[8:]))
			}
			return nil
		})
	case "hfsc":
		if len(q.Options) < 2 { // struct tc_hfsc_qopt
			return x, rtnl.ErrMalformed
		}
		x.Default = own(uint32(binary.NativeEndian.Uint16(q.Options)))
		return x, nil
	case "prio":
		if len(q.Options) < 20 { // struct tc_prio_qopt
			return x, rtnl.ErrMalformed
		}
		x.Bands, x.PrioMap = int(binary.NativeEndian.Uint32(q.Options)), slices.Clone(q.Options[4:20])
		return x, nil
	}
	var err error
	x.Leaf, err = qdisc.Decode(q)
	return x, err
}

// filters reads those of the root and of inner classes: leaves have none that are asked.
func (x *Interface) filters(i rtnl.Interface) error {
	at := []hierarchy.ClassID{x.Root.Handle}
	for _, c := range x.Classes {
		if slices.ContainsFunc(x.Classes, func(o Class) bool { return o.Parent == c.ID }) {
			at = append(at, c.ID)
		}
	}
	for _, p := range at {
		first := len(x.Filters)
		if err := hooked(i, uint32(p), &x.Filters); err != nil {
			return err
		}
		for j := range x.Filters[first:] {
			x.Filters[first+j].Parent = p
		}
	}
	x.sort(at)
	return nil
}

// sort leaves of u32's tables that are listed at several places one, the lowest below which
// all lies that they lead to.
func (x *Interface) sort(at []hierarchy.ClassID) {
	places := map[uint32][]hierarchy.ClassID{}
	table := func(f *Filter) uint32 { return f.Handle & 0xfff00000 }
	for _, p := range slices.Backward(at) { // children before their parents
		for i := range x.Filters {
			f := &x.Filters[i]
			if t := table(f); f.Kind == "u32" && f.Parent == p && !slices.Contains(places[t], p) {
				places[t] = append(places[t], p)
			}
		}
	}
	x.Filters = slices.DeleteFunc(x.Filters, func(f Filter) bool {
		of := places[table(&f)]
		if f.Kind != "u32" || len(of) < 2 {
			return false
		}
		place := of[len(of)-1]
		for _, p := range of {
			if !slices.ContainsFunc(x.Filters, func(o Filter) bool { return o.Kind == "u32" && table(&o) == table(&f) && !x.below(o.Class, p) }) {
				place = p
				break
			}
		}
		return f.Parent != place
	})
	for i := range x.Filters {
		f := &x.Filters[i]
		f.Unsure = f.Kind == "u32" && len(places[table(f)]) > 1
	}
}

// below says whether a class lies below another, or below the root.
func (x *Interface) below(id, p hierarchy.ClassID) bool {
	for range x.Classes {
		i := slices.IndexFunc(x.Classes, func(c Class) bool { return c.ID == id })
		if i < 0 {
			return false
		}
		if id = x.Classes[i].Parent; id == p {
			return true
		}
	}
	return false
}

func (x *Interface) arrivals(i rtnl.Interface) error { return hooked(i, rtnl.IngressParent, &x.Arrive) }

// hooked reads the filters of a place.
func hooked(i rtnl.Interface, parent uint32, to *[]Filter) error {
	return i.EachFilter(parent, func(f *rtnl.Filter) error {
		d, ok, err := decodeFilter(f)
		if !ok || err != nil {
			return err
		}
		if n := len(*to); n > 0 && d.Kind == "fw" && d.Handle != 0 && (*to)[n-1].Handle == 0 && (*to)[n-1].Pref == d.Pref {
			*to = (*to)[:n-1] // that was the preference, and has filters
		}
		*to = append(*to, d)
		return nil
	})
}

// classes reads those of the root qdisc.
func (x *Interface) classes(i rtnl.Interface) error {
	e := rtnl.Encoder{}
	e.TcMsg(rtnl.TcMsg{Index: i.Index, Parent: uint32(x.Root.Handle)})
	err := i.Conn.Dump(unix.RTM_GETTCLASS, e.B, func(body []byte) error {
		c, ok, err := decodeClass(body)
		if ok && c.ID.Major() == x.Root.Handle.Major() && c.ID.Minor() != 0 {
			x.Classes = append(x.Classes, c)
		}
		return err
	})
	slices.SortFunc(x.Classes, func(a, b Class) int { return int(a.ID) - int(b.ID) })
	return err
}
