//go:build linux

package tc

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Read fills in the device's port of s. Classes come parents first, children by
// their number. Paths stay empty: the kernel has none.
//
// An inner class has no quantum and no priority (the kernel ignores both while
// it has children): they read as zero. A leaf qdisc of a kind that cannot be
// made reads as that kind without parameters; a leaf without an own qdisc has no
// entry. With a root qdisc that is not ours there are no classes and leaves.
func (d *Device) Read(ctx context.Context, s *hierarchy.State) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	p, err := d.read(nil)
	s.Device = d.port.Device
	s.Set(p)
	return err
}

// read reads the port and, where they are wanted, its counters along.
func (d *Device) read(with *Counted) (hierarchy.PortState, error) {
	p := hierarchy.PortState{Port: d.port}
	root, leaves, err := d.qdiscs(with)
	if err != nil {
		return p, err
	}
	if p.Root = root.Root(); !p.Root.Ours() {
		return p, nil
	}
	if err := d.checkRoot(root); err != nil {
		return p, err
	}
	if p.Classes, err = d.classes(with); err != nil {
		return p, err
	}
	slices.SortFunc(leaves, func(a, b hierarchy.Leaf) int { return cmp.Compare(a.Class, b.Class) })
	p.Leaves = leaves
	return p, nil
}

// Reread implements hierarchy.Rereader: one question for each class and leaf
// qdisc that a step is about. The kernel tells everybody who listens to changes
// of traffic control the answers, too (tclass_notify, net/sched/sch_api.c, v6.12).
func (d *Device) Reread(ctx context.Context, s *hierarchy.State, steps []hierarchy.Step) error {
	p := s.On(d.port)
	for _, step := range steps {
		switch i := step.Item().(type) {
		case *hierarchy.Root:
			return d.Read(ctx, s)
		case *hierarchy.Class:
			p.Classes = slices.DeleteFunc(p.Classes, func(c hierarchy.Class) bool { return c.ID == i.ID })
			body, err := d.Get(unix.RTM_GETTCLASS, rtnl.TcMsg{Handle: uint32(i.ID)})
			if err != nil {
				return d.Fail("read class", err)
			}
			if body == nil {
				p.Leaves = slices.DeleteFunc(p.Leaves, func(l hierarchy.Leaf) bool { return l.Class == i.ID })
				continue
			}
			c, ok, err := DecodeClass(body)
			if err != nil {
				return d.Fail("read class", err)
			}
			if ok {
				p.Classes = append(p.Classes, c)
			}
		case *hierarchy.Leaf:
			p.Leaves = slices.DeleteFunc(p.Leaves, func(l hierarchy.Leaf) bool { return l.Class == i.Class })
			body, err := d.Get(unix.RTM_GETQDISC, rtnl.TcMsg{Parent: uint32(i.Class)})
			if err != nil {
				return d.Fail("read qdisc", err)
			}
			if body == nil {
				continue
			}
			q, err := rtnl.DecodeQdisc(body)
			if err != nil {
				return d.Fail("read qdisc", err)
			}
			leaf, err := qdisc.Decode(&q)
			if err != nil {
				return d.Fail("read qdisc", err)
			}
			p.Leaves = append(p.Leaves, hierarchy.Leaf{Class: i.Class, Qdisc: leaf})
		}
	}
	p.Classes = parentsFirst(p.Classes)
	s.Set(p)
	return ctx.Err()
}

// HasClass says whether our root qdisc stands on the interface and has the class:
// two questions, whatever the size of the tree. Listeners get the answers, as with
// Reread.
func (d *Device) HasClass(id hierarchy.ClassID) (bool, error) {
	body, err := d.Get(unix.RTM_GETTCLASS, rtnl.TcMsg{Handle: uint32(id)})
	if err != nil || body == nil {
		return false, d.Fail("look for class", err)
	}
	// With another qdisc at the root the answer is EINVAL; without the handle there
	// would be none about the kernel's own (tc_get_qdisc, net/sched/sch_api.c, v6.12).
	body, err = d.Get(unix.RTM_GETQDISC, rtnl.TcMsg{Handle: uint32(hierarchy.ID(0)), Parent: rtnl.RootParent})
	if errors.Is(err, unix.EINVAL) {
		return false, nil
	}
	return body != nil, d.Fail("look for root qdisc", err)
}

// qdiscs reads the root qdisc (nil: none is shown) and our leaf qdiscs.
func (d *Device) qdiscs(with *Counted) (root *rtnl.Qdisc, leaves []hierarchy.Leaf, err error) {
	const op = "read qdiscs"
	err = d.EachQdisc(func(q *rtnl.Qdisc) error {
		switch parent := hierarchy.ClassID(q.Parent); {
		case q.Parent == rtnl.RootParent:
			root = q.Clone()
		case parent.Major() == hierarchy.Major && parent.Minor() != 0:
			leaf, err := qdisc.Decode(q)
			if err != nil {
				return err
			}
			leaves = append(leaves, hierarchy.Leaf{Class: parent, Qdisc: leaf})
			if with != nil {
				return with.leaf(q)
			}
		}
		return nil
	})
	if err == nil && root == nil {
		// An interface that was never up has no root qdisc to show, and one that
		// is gone neither.
		err = d.Check()
	}
	return root, leaves, d.Fail(op, err)
}

// checkRoot refuses an HTB qdisc with our handle whose default class is another:
// what no filter claims would go past every limit, and that cannot be changed
// while it lives.
func (d *Device) checkRoot(root *rtnl.Qdisc) error {
	return rtnl.EachAttr(root.Options, func(typ uint16, v []byte) error {
		if typ != tcaHTBInit {
			return nil
		}
		if len(v) < 12 { // struct tc_htb_glob
			return d.Fail("read qdiscs", rtnl.ErrMalformed)
		}
		if defcls := binary.NativeEndian.Uint32(v[8:]); defcls != hierarchy.RestMinor {
			return fmt.Errorf("%s: root qdisc htb %v has default class %x and not %x: %w; remove it with \"tc qdisc del dev %s root\"",
				d.Name, hierarchy.ID(0), defcls, hierarchy.RestMinor, rtnl.ErrForeign, d.Name)
		}
		return nil
	})
}

// eachClass calls f for each class of our root qdisc, and of no other: the flows
// of fq_codel are classes to the kernel.
func (d *Device) eachClass(f func(body []byte) error) error {
	e := rtnl.Encoder{}
	e.TcMsg(rtnl.TcMsg{Index: d.Index, Parent: uint32(hierarchy.ID(0))})
	return d.Conn.Dump(unix.RTM_GETTCLASS, e.B, f)
}

func (d *Device) classes(with *Counted) ([]hierarchy.Class, error) {
	var classes []hierarchy.Class
	err := d.eachClass(func(body []byte) error {
		c, ok, err := DecodeClass(body)
		if ok {
			classes = append(classes, c)
		}
		if err == nil && with != nil {
			err = with.class(body)
		}
		return err
	})
	return parentsFirst(classes), d.Fail("read classes", err)
}

// parentsFirst orders classes and takes from inner ones what they do not use.
func parentsFirst(classes []hierarchy.Class) []hierarchy.Class {
	slices.SortFunc(classes, func(a, b hierarchy.Class) int { return cmp.Compare(a.ID, b.ID) })
	children := make(map[hierarchy.ClassID][]int, len(classes))
	known := make(map[hierarchy.ClassID]bool, len(classes))
	for _, c := range classes {
		known[c.ID] = true
	}
	var tops []int
	for i, c := range classes {
		if known[c.Parent] && c.Parent != c.ID {
			children[c.Parent] = append(children[c.Parent], i)
		} else {
			tops = append(tops, i)
		}
	}
	out := make([]hierarchy.Class, 0, len(classes))
	var walk func([]int)
	walk = func(at []int) {
		for _, i := range at {
			c := classes[i]
			below := children[c.ID]
			if len(below) > 0 {
				c.Quantum, c.Prio = 0, 0
			}
			out = append(out, c)
			walk(below)
		}
	}
	walk(tops)
	return out
}

// Roots reads the root qdisc of every interface of the namespace that somebody
// has given one, by the index of the interface. It needs no privileges.
func Roots(c *rtnl.Conn) (map[int]hierarchy.Root, error) {
	roots := map[int]hierarchy.Root{}
	err := c.Dump(unix.RTM_GETQDISC, make([]byte, rtnl.SizeofTcMsg), func(body []byte) error {
		m, _, err := rtnl.DecodeTcMsg(body)
		if err != nil || m.Parent != rtnl.RootParent || m.Handle == 0 {
			return err
		}
		q, err := rtnl.DecodeQdisc(body)
		roots[int(m.Index)] = q.Root()
		return err
	})
	return roots, rtnl.Fail("read qdiscs", "", err)
}
