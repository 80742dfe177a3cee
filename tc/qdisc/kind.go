//go:build linux

package qdisc

import (
	"fmt"
	"slices"
	"strings"

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
	settle func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error)
	// encode writes the content of the options attribute for settled
	// parameters; fresh says that the qdisc is made, not changed.
	encode func(e *rtnl.Encoder, q hierarchy.Qdisc, fresh bool) error
	// decode reads the options of a dump.
	decode func(opts []byte) ([]hierarchy.Setting, error)
	// marks are the packets that were marked (RFC 3168), of its own statistics. Nil: it marks
	// none, or does not count them.
	marks func(stats []byte) (uint64, error)
	// inPlace says whether the kernel can turn one into the other. Nil: always.
	inPlace func(old, want hierarchy.Qdisc) bool
	// twice says that the kernel keeps something of q only when it is told once
	// more, by a change. Nil: never.
	twice func(q hierarchy.Qdisc) bool
	// words are a setting of q as tc takes it, where that differs from what
	// Arguments makes of its type; nil where it does not, empty where another
	// setting's words have it. Nil: no setting differs.
	words func(q hierarchy.Qdisc, s hierarchy.Setting) []string
}

// Site is the place of a leaf: what its defaults depend on.
type Site struct {
	Rate, Ceil hierarchy.Bandwidth
	MTU        hierarchy.Size // of a frame on the line
	Packet     hierarchy.Size // the largest that the stack hands down
	HZ         uint64         // ticks per second of the kernel's clock
}

// ticked is what the kernel makes of a time that it keeps in ticks of its clock:
// whole microseconds, rounded up to whole ticks, shown in whole microseconds
// (usecs_to_jiffies and jiffies_to_usecs, kernel/time/time.c, v6.12).
func (s Site) ticked(ns uint64) uint64 {
	ticks := (ns/1000*s.HZ + 999_999) / 1_000_000
	return ticks * 1_000_000 / s.HZ * 1000
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
	q.Params, err = d.settle(q, Site{Rate: rate, Ceil: rate, MTU: 1514, Packet: 64 << 10, HZ: 250})
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

// DefaultKind is the kind of a leaf's qdisc where the policy names none, on a
// kernel that has the given kinds; empty if it has none of the defaults.
func DefaultKind(have []string) string {
	for _, d := range defaultKinds {
		if slices.Contains(have, d.Name) {
			return d.Name
		}
	}
	return ""
}

// Text is a queueing discipline as a policy writes it, the kind and then its parameters.
func Text(q hierarchy.Qdisc) string {
	s := []string{q.Kind}
	for _, p := range q.Params {
		s = append(s, p.Name+" "+Value(q.Kind, p.Name, p.Value))
	}
	return strings.Join(s, " ")
}

// Value is the value of a kind's parameter as a policy writes it; where one of them is not
// known here it is the number.
func Value(kind, param string, v uint64) string {
	for _, d := range disciplines {
		if d.Kind.Name != kind {
			continue
		}
		if p := d.Kind.Param(param); p != nil {
			return p.Format(v)
		}
	}
	return fmt.Sprint(v)
}
