//go:build linux

package qdisc

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// leafHandle is the handle of the qdisc of a leaf class: the class's minor
// number. A qdisc that keeps its handle is changed in place.
func leafHandle(class hierarchy.ClassID) uint32 { return uint32(class.Minor()) << 16 }

// Encode is the message that makes the qdisc of a leaf class, or changes it
// in place, whatever its handle, when fresh is false.
func Encode(index uint32, l *hierarchy.Leaf, fresh bool) (netlink.Message, error) {
	d := kindNamed(l.Qdisc.Kind)
	if d == nil {
		return netlink.Message{}, fmt.Errorf("qdisc %q cannot be made", l.Qdisc.Kind)
	}
	switch l.Class.Minor() {
	case 0, hierarchy.Major, 0xffff:
		return netlink.Message{}, fmt.Errorf("class %v cannot have a qdisc: its handle would be another's", l.Class)
	}
	m := rtnl.TcMsg{Index: index, Parent: uint32(l.Class)}
	var flags netlink.HeaderFlags
	if fresh {
		m.Handle = leafHandle(l.Class)
		flags = netlink.Create | netlink.Replace
	}
	e := rtnl.Encoder{B: make([]byte, 0, 128)}
	e.TcMsg(m)
	e.AttrString(unix.TCA_KIND, d.Name)
	var err error
	e.Nest(unix.TCA_OPTIONS, func() { err = d.encode(&e, l.Qdisc, fresh) })
	return rtnl.Message(unix.RTM_NEWQDISC, flags, e.B), err
}

// EncodeDelete is the message that removes the qdisc of a leaf class,
// whatever its handle. The kernel puts a pfifo in its place.
func EncodeDelete(index uint32, class hierarchy.ClassID) netlink.Message {
	e := rtnl.Encoder{B: make([]byte, 0, rtnl.SizeofTcMsg)}
	e.TcMsg(rtnl.TcMsg{Index: index, Parent: uint32(class)})
	return rtnl.Message(unix.RTM_DELQDISC, 0, e.B)
}

// Decode is what the model keeps of a qdisc. One whose kind cannot be made, or
// that has something switched on that the model does not know, has no
// parameters and so differs from everything that is wanted.
func Decode(q *rtnl.Qdisc) (hierarchy.Qdisc, error) {
	out := hierarchy.Qdisc{Kind: q.Kind}
	d := kindNamed(q.Kind)
	if d == nil {
		return out, nil
	}
	var err error
	out.Params, err = d.decode(q.Options)
	return out, err
}

// InPlace says whether a leaf qdisc can become another without being made anew,
// which drops what waits in it.
func InPlace(old, want hierarchy.Qdisc) bool {
	k := kindNamed(want.Kind)
	return old.Kind == want.Kind && k != nil && (k.inPlace == nil || k.inPlace(old, want))
}

// Marks are the packets that a leaf qdisc has marked, of the statistics that the kernel has of its
// kind (TCA_STATS_APP); 0 where it marks none, or does not count them.
func Marks(kind string, stats []byte) (uint64, error) {
	if k := kindNamed(kind); k != nil && k.marks != nil {
		return k.marks(stats)
	}
	return 0, nil
}

// marksAt adds up numbers at places of a structure in linux/pkt_sched.h.
func marksAt(places ...int) func([]byte) (uint64, error) {
	return func(stats []byte) (n uint64, err error) {
		for _, at := range places {
			if len(stats) < at+4 {
				return 0, rtnl.ErrMalformed
			}
			n += uint64(binary.NativeEndian.Uint32(stats[at:]))
		}
		return n, nil
	}
}

// Holds says whether a queue makes packets wait, or drops them, of its own accord, though its
// branch would let them through.
func Holds(q hierarchy.Qdisc) bool {
	switch q.Kind {
	case "netem", "fq", "tbf":
		return true
	case "cake":
		bandwidth, _ := q.Get("bandwidth")
		autorate, _ := q.Get("autorate-ingress")
		return bandwidth != 0 || autorate != 0
	}
	return false
}

// Twice says whether a leaf qdisc that was made has to be told its parameters again.
func Twice(q hierarchy.Qdisc) bool {
	k := kindNamed(q.Kind)
	return k != nil && k.twice != nil && k.twice(q)
}
