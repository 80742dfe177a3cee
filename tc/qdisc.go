//go:build linux

package tc

import (
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// discipline is one kind of leaf qdisc: what a policy may say about it, and how
// it goes to the kernel and comes back.
type discipline struct {
	hierarchy.Kind
	module string // that has it
	// settle states every parameter: what q has, else a default for the place,
	// rounded as the kernel rounds. Parameters that stand for another one, or
	// for nothing, are left out. The order is that of Params.
	settle func(q hierarchy.Qdisc, s site) ([]hierarchy.Setting, error)
	// encode writes the content of the options attribute for settled
	// parameters; fresh says that the qdisc is made, not changed.
	encode func(e *rtnl.Encoder, q hierarchy.Qdisc, fresh bool) error
	// decode reads the options of a dump.
	decode func(opts []byte) ([]hierarchy.Setting, error)
	// inPlace says whether the kernel can turn one into the other. Nil: always.
	inPlace func(old, want hierarchy.Qdisc) bool
	// twice says that the kernel keeps something of q only when it is told once
	// more, by a change. Nil: never.
	twice func(q hierarchy.Qdisc) bool
	// words are a setting of q as tc takes it, where that differs from what
	// arguments makes of its type; nil where it does not, empty where another
	// setting's words have it. Nil: no setting differs.
	words func(q hierarchy.Qdisc, s hierarchy.Setting) []string
}

// site is the place of a leaf: what its defaults depend on.
type site struct {
	rate, ceil hierarchy.Bandwidth
	mtu        hierarchy.Size // of a frame on the line
	packet     hierarchy.Size // the largest that the stack hands down
	hz         uint64         // ticks per second of the kernel's clock
}

// ticked is what the kernel makes of a time that it keeps in ticks of its clock:
// whole microseconds, rounded up to whole ticks, shown in whole microseconds
// (usecs_to_jiffies and jiffies_to_usecs, kernel/time/time.c, v6.12).
func (s site) ticked(ns uint64) uint64 {
	ticks := (ns/1000*s.hz + 999_999) / 1_000_000
	return ticks * 1_000_000 / s.hz * 1000
}

// disciplines are all kinds on offer.
var disciplines = []*discipline{
	&fqCodel, &sfq, &bfifo, &pfifo, &pfifoHeadDrop, &codel, &pie, &fqPie, &hhf, &skbprio, &red, &choke, &sfb, &tbf,
	&fq, &cake, &netem,
}

// defaultKinds are the kinds for a leaf of which the policy says nothing, best
// first. The last is there on every kernel that has traffic control at all.
var defaultKinds = []*discipline{&fqCodel, &sfq, &bfifo}

// Kinds are the kinds of leaf qdiscs that can be made, whether the kernel at
// hand has them or not, with their parameters under the names that tc gives
// them.
func Kinds() []hierarchy.Kind {
	kinds := make([]hierarchy.Kind, len(disciplines))
	for i, d := range disciplines {
		kinds[i] = d.Kind
	}
	return kinds
}

// Defaults are the parameters that a leaf qdisc of one of [Kinds] gets where the
// policy gives none, in a branch whose rate and ceil are rate, on an Ethernet
// interface of the usual MTU with segmentation offload. A tbf, which has to be
// given a rate, has that of the branch.
func Defaults(kind string, rate hierarchy.Bandwidth) (hierarchy.Qdisc, error) {
	q := hierarchy.Qdisc{Kind: kind}
	d := kindNamed(kind)
	if d == nil {
		return q, fmt.Errorf("qdisc %q cannot be made", kind)
	}
	if d == &tbf {
		q.Params = []hierarchy.Setting{{Name: "rate", Value: uint64(rate)}}
	}
	var err error
	q.Params, err = d.settle(q, site{rate: rate, ceil: rate, mtu: 1514, packet: 64 << 10, hz: 250})
	return q, err
}

// kindNamed is the discipline of that name, or nil.
func kindNamed(name string) *discipline {
	for _, d := range disciplines {
		if d.Name == name {
			return d
		}
	}
	return nil
}

// settings collects the parameters of a qdisc in order.
type settings struct {
	q   hierarchy.Qdisc
	out []hierarchy.Setting
}

// get is what the policy says about a parameter, else the default.
func (s *settings) get(name string, otherwise uint64) uint64 {
	if v, ok := s.q.Get(name); ok {
		return v
	}
	return otherwise
}

func (s *settings) set(name string, v uint64) {
	s.out = append(s.out, hierarchy.Setting{Name: name, Value: v})
}

// value is a settled parameter of q; an error is a parameter that was not
// settled.
func value(q hierarchy.Qdisc, name string) (uint64, error) {
	v, ok := q.Get(name)
	if !ok {
		return 0, unsettled(q, name)
	}
	return v, nil
}

func unsettled(q hierarchy.Qdisc, name string) error {
	return fmt.Errorf("qdisc %s has no %s: it was not settled", q.Kind, name)
}

// values is value for several names.
func values(q hierarchy.Qdisc, names ...string) ([]uint64, error) {
	out := make([]uint64, len(names))
	for i, n := range names {
		v, err := value(q, n)
		if err != nil {
			return nil, err
		}
		out[i] = v
	}
	return out, nil
}

// number is a parameter that is an attribute of 32 bits.
type number struct {
	name string
	attr uint16
	give func(uint64) uint32 // what the kernel is given for a settled value; nil: the same
	show func(uint32) uint64 // the settled value of which the kernel shows this; nil: the same
	off  uint32              // what the kernel is given where it is left out, and does not show then; 0: it never is
	once bool                // the kernel is given it only when the qdisc is made: it refuses it later
}

// numbers are the parameters of a kind that are all numbers, in order.
type numbers []number

// micro is a settled time in microseconds, nano the other way.
func micro(ns uint64) uint32 { return uint32(ns / 1000) }
func nano(us uint32) uint64  { return uint64(us) * 1000 }

// encode is the encode of a discipline with these parameters.
func (n numbers) encode(e *rtnl.Encoder, q hierarchy.Qdisc, fresh bool) error {
	for _, x := range n {
		if x.once && !fresh {
			continue
		}
		v, ok := q.Get(x.name)
		given := uint32(v)
		switch {
		case !ok && x.off == 0:
			return unsettled(q, x.name)
		case !ok:
			given = x.off
		case x.give != nil:
			given = x.give(v)
		}
		e.Attr32(x.attr, given)
	}
	return nil
}

// decode is the decode of a discipline with these parameters. One that is not
// shown is 0.
func (n numbers) decode(opts []byte) ([]hierarchy.Setting, error) {
	shown := make([]uint32, len(n))
	err := rtnl.EachAttr(opts, func(typ uint16, b []byte) (err error) {
		if i := slices.IndexFunc(n, func(x number) bool { return x.attr == typ }); i >= 0 {
			shown[i], err = rtnl.Uint32(b)
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	p := settings{}
	for i, x := range n {
		switch v := shown[i]; {
		case v == 0 && x.off != 0:
		case x.show != nil:
			p.set(x.name, x.show(v))
		default:
			p.set(x.name, uint64(v))
		}
	}
	return p.out, nil
}

// same is the inPlace of a discipline that the kernel does not let have another
// value of a parameter.
func same(name string) func(old, want hierarchy.Qdisc) bool {
	return func(old, want hierarchy.Qdisc) bool {
		a, _ := old.Get(name)
		b, _ := want.Get(name)
		return a == b
	}
}

// leafHandle is the handle of the qdisc of a leaf class: the class's minor
// number. A qdisc that keeps its handle is changed in place.
func leafHandle(class hierarchy.ClassID) uint32 { return uint32(class.Minor()) << 16 }

// encodeLeaf is the message that makes the qdisc of a leaf class, or changes it
// in place, whatever its handle, when fresh is false.
func encodeLeaf(index uint32, l *hierarchy.Leaf, fresh bool) (netlink.Message, error) {
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

// encodeLeafDelete is the message that removes the qdisc of a leaf class,
// whatever its handle. The kernel puts a pfifo in its place.
func encodeLeafDelete(index uint32, class hierarchy.ClassID) netlink.Message {
	e := rtnl.Encoder{B: make([]byte, 0, rtnl.SizeofTcMsg)}
	e.TcMsg(rtnl.TcMsg{Index: index, Parent: uint32(class)})
	return rtnl.Message(unix.RTM_DELQDISC, 0, e.B)
}

// leafOf is what the model keeps of a qdisc. One whose kind cannot be made, or
// that has something switched on that the model does not know, has no
// parameters and so differs from everything that is wanted.
func leafOf(q *rtnl.Qdisc) (hierarchy.Qdisc, error) {
	out := hierarchy.Qdisc{Kind: q.Kind}
	d := kindNamed(q.Kind)
	if d == nil {
		return out, nil
	}
	var err error
	out.Params, err = d.decode(q.Options)
	return out, err
}
