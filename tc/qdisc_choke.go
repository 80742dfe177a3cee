//go:build linux

package tc

import (
	"github.com/vifshape/vifshape/hierarchy"
)

// chokeLimit is the kernel's CHOKE_MAX_QUEUE (net/sched/sch_choke.c, v6.12).
const chokeLimit = 128<<10 - 1

var choke = discipline{
	Kind: hierarchy.Kind{
		Name: "choke",
		Help: "one queue as red's, counted in packets, that drops most from the flows that have most in it",
		Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Count, Min: 4, Max: chokeLimit,
				Help: "packets that may wait, more than max"},
			{Name: "min", Type: hierarchy.Count, Min: 1, Max: chokeLimit,
				Help: "average length below which nothing is dropped"},
			{Name: "max", Type: hierarchy.Count, Min: 2, Max: chokeLimit,
				Help: "average length above which everything is dropped or marked"},
			redAvpkt, redBurstParam, redBandwidth, redEWMAParam, redCellParam, redProbabilityParam,
			{Name: "ecn", Type: hierarchy.Flag, Max: 1,
				Help: "mark packets that allow it and do not drop them"},
		},
		Verify: func(q hierarchy.Qdisc) error { return verifyRED(q, "limit", hierarchy.Count) },
	},
	module: "sch_choke",
	settle: func(q hierarchy.Qdisc, s site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		r, limit, err := settleRED(q, "limit", queuePackets(s), p.get("avpkt", redPacket), true)
		if err != nil {
			return nil, err
		}
		p.set("limit", min(limit, chokeLimit))
		p.set("min", r.min)
		p.set("max", r.max)
		p.set("ewma", r.ewma)
		p.set("scell_log", p.get("scell_log", r.cell(hierarchy.Bandwidth(p.get("bandwidth", uint64(s.ceil))))))
		p.set("probability", p.get("probability", redProbability))
		p.set("ecn", p.get("ecn", 0))
		return p.out, nil
	},
	encode: func(e *encoder, q hierarchy.Qdisc, _ bool) error {
		r, err := redOf(q, true)
		if err != nil {
			return err
		}
		return r.encodeAttrs(e, q, flag(q, "ecn", redECN))
	},
	decode: func(opts []byte) ([]hierarchy.Setting, error) {
		p, probability, _, err := decodeREDAttrs(opts)
		if err != nil || p.flags&^redECN != 0 {
			return nil, err // harddrop, which tc does not offer
		}
		out := settings{}
		out.set("limit", p.limit)
		out.set("min", p.min)
		out.set("max", p.max)
		out.set("ewma", p.ewma)
		out.set("scell_log", p.cell)
		out.set("probability", probability)
		out.set("ecn", p.flags)
		return out.out, nil
	},
	words: func(q hierarchy.Qdisc, s hierarchy.Setting) []string { return redWords(q, s, true) },
}
