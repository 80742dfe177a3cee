//go:build linux

package qdisc

import (
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// chokeLimit is the kernel's CHOKE_MAX_QUEUE (net/sched/sch_choke.c, v6.12).
const chokeLimit = 128<<10 - 1

var choke = discipline{
	Kind: hierarchy.Kind{
		Name:   "choke",
		Help:   "one queue as red's, counted in packets, that drops most from the flows that have most in it",
		Params: redParams(hierarchy.Count, "packets", chokeLimit, chokeLimit),
		Verify: func(q hierarchy.Qdisc) error { return verifyRED(q, "limit", hierarchy.Count) },
	},
	module: "sch_choke",
	marks:  marksAt(12), // marked of tc_choke_xstats
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		if err := settleQueue(&p, s, s.queuePackets(), redPacket, true); err != nil {
			return nil, err
		}
		p.set("probability", p.get("probability", redProbability))
		p.set("ecn", p.get("ecn", 0))
		return p.out, nil
	},
	encode: func(e *rtnl.Encoder, q hierarchy.Qdisc, _ bool) error {
		return encodeREDAttrs(e, q, true, flag(q, "ecn", redECN))
	},
	decode: func(opts []byte) ([]hierarchy.Setting, error) {
		p, probability, _, err := decodeREDAttrs(opts)
		if err != nil || p.flags&^redECN != 0 {
			return nil, err // harddrop, which tc does not offer
		}
		out := p.queue()
		out.set("probability", probability)
		out.set("ecn", p.flags)
		return out.out, nil
	},
	words: func(q hierarchy.Qdisc, s hierarchy.Setting) []string { return redWords(q, s, true) },
}
