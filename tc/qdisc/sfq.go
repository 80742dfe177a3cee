//go:build linux

package qdisc

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Bounds of sfq (net/sched/sch_sfq.c, v6.12).
const (
	sfqMaxDepth = 127
	sfqMaxFlows = 0x10000 - sfqMaxDepth - 1
)

var sfq = discipline{
	Kind: hierarchy.Kind{
		Name: "sfq",
		Help: "a queue for each of many flows, served in turn",
		Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Count, Min: 2, Max: sfqMaxDepth * sfqMaxFlows,
				Help: "packets that may wait in all flows together"},
			{Name: "perturb", Type: hierarchy.Duration, Max: uint64(24 * time.Hour),
				Help: "whole seconds after which flows are told apart anew; 0s: never"},
			{Name: "quantum", Type: hierarchy.Bytes, Min: 256, Max: 256 << 10,
				Help: "bytes that a flow may send in its turn, at least the MTU"},
			{Name: "flows", Type: hierarchy.Count, Min: 1, Max: sfqMaxFlows,
				Help: "flows that may wait at once"},
			{Name: "divisor", Type: hierarchy.Count, Min: 1, Max: 65536,
				Help: "buckets that flows are hashed into, a power of 2"},
			{Name: "depth", Type: hierarchy.Count, Min: 1, Max: sfqMaxDepth,
				Help: "packets of one flow that may wait"},
			{Name: "headdrop", Type: hierarchy.Flag, Max: 1,
				Help: "drop a full flow's oldest packet and not its newest"},
			{Name: "redflowlimit", Type: hierarchy.Bytes, Min: 4, Max: math.MaxUint32,
				Help: "manage the queue of each flow by RED; the kernel keeps no such limit, it is for working out max"},
			{Name: "min", Type: hierarchy.Bytes, Min: 1, Max: redMax,
				Help: "average length of a flow's queue below which RED drops nothing"},
			{Name: "max", Type: hierarchy.Bytes, Min: 2, Max: redMax,
				Help: "average length above which it drops or marks everything"},
			{Name: "avpkt", Type: hierarchy.Bytes, Min: 1, Max: 1 << 20,
				Help: "size of a usual packet, for working out ewma"},
			redBurstParam, redEWMAParam, redProbabilityParam, redECNParam, redHardDropParam,
		},
		Verify: func(q hierarchy.Qdisc) error {
			if v, ok := q.Get("divisor"); ok && bits.OnesCount64(v) != 1 {
				return fmt.Errorf("divisor %d is no power of 2: write divisor = %d", v, uint64(1)<<bits.Len64(v))
			}
			if v, ok := q.Get("perturb"); ok && v%uint64(time.Second) != 0 {
				return fmt.Errorf("perturb %v is no whole number of seconds", time.Duration(v))
			}
			return verifyRED(q, "redflowlimit", hierarchy.Bytes)
		},
	},
	module: "sch_sfq",
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		// sfq_change cuts these to each other in this order.
		divisor := p.get("divisor", 1024)
		flows := min(p.get("flows", 127), sfqMaxFlows, divisor)
		depth := p.get("depth", sfqMaxDepth)
		limit := min(p.get("limit", s.queuePackets()), depth*flows)
		flows = min(flows, limit)
		p.set("limit", limit)
		p.set("perturb", p.get("perturb", uint64(10*time.Second)))
		p.set("quantum", p.get("quantum", max(uint64(s.MTU), 256)))
		p.set("flows", flows)
		p.set("divisor", divisor)
		p.set("depth", depth)
		p.set("headdrop", p.get("headdrop", 0))
		if limit < 2 {
			return nil, fmt.Errorf("%d packets in all (depth times flows) are too few", limit)
		}
		if !slices.ContainsFunc(sfqRED, func(name string) bool { return p.get(name, 0) != 0 }) {
			return p.out, nil
		}
		r, _, err := settleRED(q, "redflowlimit", uint64(s.averageBytes()), p.get("avpkt", redPacket), false)
		if err != nil {
			return nil, err
		}
		r.set(&p)
		p.set("probability", p.get("probability", redProbability))
		p.set("ecn", p.get("ecn", 0))
		p.set("harddrop", p.get("harddrop", 0))
		return p.out, nil
	},
	encode: func(e *rtnl.Encoder, q hierarchy.Qdisc, _ bool) error {
		v, err := values(q, "limit", "perturb", "quantum", "flows", "divisor", "depth", "headdrop")
		if err != nil {
			return err
		}
		// struct tc_sfq_qopt_v1 of linux/pkt_sched.h
		e.Uint32(uint32(v[2]))
		e.Uint32(uint32(v[1] / uint64(time.Second)))
		e.Uint32(uint32(v[0]))
		e.Uint32(uint32(v[4]))
		e.Uint32(uint32(v[3]))
		e.Uint32(uint32(v[5]))
		e.Uint32(uint32(v[6]))
		if _, ok := q.Get("min"); !ok {
			e.B = append(e.B, make([]byte, sizeofRED+4)...)
		} else {
			r, err := redOf(q, false)
			if err != nil {
				return err
			}
			probability, err := value(q, "probability")
			if err != nil {
				return err
			}
			// sfq_change looks at no limit and has no table.
			r.encode(e, min(4*r.max, math.MaxUint32), probability, 0, flag(q, "ecn", redECN)|flag(q, "harddrop", redHardDrop))
			e.Uint32(uint32(probability))
		}
		e.B = append(e.B, make([]byte, 24)...) // struct tc_sfqred_stats
		return nil
	},
	decode: func(o []byte) ([]hierarchy.Setting, error) {
		if len(o) < sizeofSFQ {
			return nil, rtnl.ErrMalformed
		}
		u := func(i int) uint64 { return uint64(binary.NativeEndian.Uint32(o[4*i:])) }
		p := settings{}
		p.set("limit", u(2))
		p.set("perturb", u(1)*uint64(time.Second))
		p.set("quantum", u(0))
		p.set("flows", u(4))
		p.set("divisor", u(3))
		p.set("depth", u(5))
		p.set("headdrop", u(6))
		r, err := decodeRED(o[28:])
		if err != nil || r.min == 0 { // no RED
			return p.out, err
		}
		r.set(&p)
		p.set("probability", u(11))
		p.set("ecn", r.flags&redECN)
		p.set("harddrop", r.flags&redHardDrop/redHardDrop)
		return p.out, nil
	},
	// sfq_qdisc_ops has no change operation.
	inPlace: func(old, want hierarchy.Qdisc) bool { return false },
	words: func(q hierarchy.Qdisc, s hierarchy.Setting) []string {
		switch s.Name {
		case "perturb": // seconds to tc, without a unit
			return []string{s.Name, fmt.Sprint(s.Value / uint64(time.Second))}
		case "max": // tc wants a limit with it
			return []string{"redflowlimit", fmt.Sprint(min(4*s.Value, math.MaxUint32)), s.Name, fmt.Sprint(s.Value)}
		}
		return redWords(q, s, false)
	},
}

// sfqRED are the parameters of which any switches RED on.
var sfqRED = []string{"redflowlimit", "min", "max", "avpkt", "burst", "ewma", "probability", "ecn", "harddrop"}

// sizeofSFQ is the size of struct tc_sfq_qopt_v1.
const sizeofSFQ = 72
