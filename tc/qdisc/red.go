//go:build linux

package qdisc

import (
	"math"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

var red = discipline{
	Kind: hierarchy.Kind{
		Name: "red",
		Help: "one queue that drops at random, the more the longer it is on average, counted in bytes",
		Params: append(redParams(hierarchy.Bytes, "bytes", math.MaxUint32, redMax), redHardDropParam,
			hierarchy.Param{Name: "nodrop", Type: hierarchy.Flag, Max: 1,
				Help: "never drop early what cannot be marked (Linux 5.7)"},
			hierarchy.Param{Name: "adaptive", Type: hierarchy.Flag, Max: 1,
				Help: "change the probability so that the average stays half-way between min and max"}),
		Verify: func(q hierarchy.Qdisc) error { return verifyRED(q, "limit", hierarchy.Bytes) },
	},
	module: "sch_red",
	marks:  marksAt(12), // marked of tc_red_xstats
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		if err := settleQueue(&p, s, uint64(s.averageBytes()), uint64(s.MTU), false); err != nil {
			return nil, err
		}
		adaptive := p.get("adaptive", 0)
		if adaptive == 0 { // else it changes all the time
			p.set("probability", p.get("probability", redProbability))
		}
		p.set("ecn", p.get("ecn", 0))
		p.set("harddrop", p.get("harddrop", 0))
		p.set("nodrop", p.get("nodrop", 0))
		p.set("adaptive", adaptive)
		return p.out, nil
	},
	encode: func(e *rtnl.Encoder, q hierarchy.Qdisc, _ bool) error {
		flags := flag(q, "ecn", redECN) | flag(q, "harddrop", redHardDrop) | flag(q, "adaptive", redAdaptive)
		if nodrop := flag(q, "nodrop", redNoDrop); nodrop != 0 {
			// It has no place among the others, and then they must not stay
			// there. Where it has not to be, they do: the timer of adaptive is
			// started for those alone (__red_change, net/sched/sch_red.c, v6.12).
			e.Attr(redFlagsAttr, func() { // struct nla_bitfield32
				e.Uint32(uint32(flags | nodrop))
				e.Uint32(redECN | redHardDrop | redAdaptive | redNoDrop)
			})
			flags = 0
		}
		return encodeREDAttrs(e, q, false, flags)
	},
	decode: func(opts []byte) ([]hierarchy.Setting, error) {
		p, probability, attrs, err := decodeREDAttrs(opts)
		if err != nil || attrs.events {
			return nil, err // with filters of its own, which are not on offer
		}
		flags := p.flags
		if attrs.hasFlags {
			flags = uint64(attrs.flags)
		}
		on := func(bit uint64) uint64 { return min(flags&bit, 1) }
		out := p.queue()
		if on(redAdaptive) == 0 {
			out.set("probability", probability)
		}
		out.set("ecn", on(redECN))
		out.set("harddrop", on(redHardDrop))
		out.set("nodrop", on(redNoDrop))
		out.set("adaptive", on(redAdaptive))
		return out.out, nil
	},
	// __red_change drops what waits.
	inPlace: func(old, want hierarchy.Qdisc) bool { return false },
	words:   func(q hierarchy.Qdisc, s hierarchy.Setting) []string { return redWords(q, s, false) },
}
