//go:build linux

package qdisc

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Attributes of fq in linux/pkt_sched.h.
const (
	fqLimit = iota + 1
	fqFlowLimit
	fqQuantum
	fqInitialQuantum
	fqRateEnable
	fqDefaultRate // no longer used
	fqMaxRate
	fqBucketsLog
	fqRefillDelay
	fqOrphanMask
	fqLowRateThreshold
	fqCEThreshold
	fqTimerSlack
	fqHorizon
	fqHorizonDrop
	fqPriomap
	fqWeights
	fqOffloadHorizon
)

// What fq does without these parameters (fq_init, net/sched/sch_fq.c, v6.12).
// Kernels that lack them do not take part in that, and so are given them only
// where the policy does.
const (
	fqPriomapDefault = 0x1111111100212221                                  // "1 2 2 2 1 2 0 0 1 1 1 1 1 1 1 1"
	fqWeightsDefault = 9<<16 | 3<<16<<(64/fqBands) | 1<<16<<(64/fqBands*2) // "589824 196608 65536"
)

const (
	fqBands      = 3
	fqPriorities = 16
	fqMaxQuantum = 1 << 20   // of initial_quantum, too: 6.12.117 refuses more
	fqMinWeight  = 1 << 14   // FQ_MIN_WEIGHT
	fqMaxWeight  = 1<<21 - 1 // what fits in a hierarchy.Setting
	// fqNone is how fq takes and shows that there is no maxrate and no
	// ce_threshold.
	fqNone = math.MaxUint32
)

var fq = discipline{
	Kind: hierarchy.Kind{
		Name: "fq",
		Help: "a queue for each connection, paced as the connection or maxrate asks",
		Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
				Help: "packets that may wait in all flows together"},
			{Name: "flow_limit", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
				Help: "packets of one flow that may wait"},
			{Name: "buckets", Type: hierarchy.Count, Min: 2, Max: 256 << 10,
				Help: "lists that flows are kept in, a power of 2"},
			{Name: "quantum", Type: hierarchy.Bytes, Min: 256, Max: fqMaxQuantum,
				Help: "bytes that a flow may send in its turn"},
			{Name: "initial_quantum", Type: hierarchy.Bytes, Min: 1, Max: fqMaxQuantum,
				Help: "bytes that a new flow may send in its first turn"},
			{Name: "maxrate", Type: hierarchy.Rate, Min: 8, Max: 8 * (fqNone - 1),
				Help: "bandwidth that one flow may reach"},
			{Name: "low_rate_threshold", Type: hierarchy.Rate, Min: 8, Max: 8 * math.MaxUint32,
				Help: "below this bandwidth a flow is paced packet by packet"},
			{Name: "pacing", Type: hierarchy.Flag, Max: 1, Negative: "nopacing",
				Help: "keep to the rates that connections ask for and to maxrate"},
			{Name: "refill_delay", Type: hierarchy.Duration, Max: uint64(time.Minute),
				Help: "time after which an idle flow gets a new quantum"},
			{Name: "orphan_mask", Type: hierarchy.Count, Max: math.MaxUint32,
				Help: "bits of the hash that tell flows without a socket apart"},
			{Name: "ce_threshold", Type: hierarchy.Duration, Min: 1000, Max: uint64(30 * time.Minute),
				Help: "mark packets that are sent this much later than they were due"},
			{Name: "timer_slack", Type: hierarchy.Duration, Max: uint64(time.Second),
				Help: "time by which a wake-up may be late, to save some of them"},
			{Name: "horizon", Type: hierarchy.Duration, Min: 1000, Max: uint64(30 * time.Minute),
				Help: "how far ahead a packet may be due"},
			{Name: "horizon_drop", Type: hierarchy.Flag, Max: 1, Negative: "horizon_cap",
				Help: "drop a packet that is due beyond the horizon and do not send it then"},
			{Name: "priomap", Type: hierarchy.Numbers, Len: fqPriorities, Max: fqBands - 1,
				Help: "band of each priority; packets of a branch all have the same, so it changes nothing (Linux 6.7)"},
			{Name: "weights", Type: hierarchy.Numbers, Len: fqBands, Min: fqMinWeight, Max: fqMaxWeight,
				Help: "bytes that each band may send in its turn; a branch uses one band alone, see priomap (Linux 6.7)"},
			{Name: "offload_horizon", Type: hierarchy.Duration, Max: uint64(time.Second),
				Help: "how far ahead a packet may be due that a capable card itself holds back (Linux 6.14)"},
		},
		Verify: func(q hierarchy.Qdisc) error {
			if v, ok := q.Get("buckets"); ok && bits.OnesCount64(v) != 1 {
				return fmt.Errorf("buckets %d is no power of 2: write buckets = %d", v, uint64(1)<<bits.Len64(v))
			}
			return nil
		},
	},
	module: "sch_fq",
	marks:  fqMarks,
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		p.set("limit", p.get("limit", 10000))
		p.set("flow_limit", p.get("flow_limit", 100))
		p.set("buckets", p.get("buckets", 1024))
		p.set("quantum", p.get("quantum", min(max(2*uint64(s.MTU), 256), fqMaxQuantum)))
		p.set("initial_quantum", p.get("initial_quantum", min(10*uint64(s.MTU), fqMaxQuantum)))
		if v := p.get("maxrate", 0); v != 0 {
			p.set("maxrate", uint64(hierarchy.Bandwidth(v).Kernel()))
		}
		p.set("low_rate_threshold", uint64(hierarchy.Bandwidth(p.get("low_rate_threshold", 550_000)).Kernel()))
		p.set("pacing", p.get("pacing", 1))
		p.set("refill_delay", s.ticked(p.get("refill_delay", uint64(40*time.Millisecond))))
		p.set("orphan_mask", p.get("orphan_mask", 1023))
		if v := p.get("ce_threshold", 0); v != 0 {
			p.set("ce_threshold", v/1000*1000)
		}
		p.set("timer_slack", p.get("timer_slack", uint64(10*time.Microsecond)))
		p.set("horizon", p.get("horizon", uint64(10*time.Second))/1000*1000)
		p.set("horizon_drop", p.get("horizon_drop", 1))
		if v := p.get("priomap", fqPriomapDefault); v != fqPriomapDefault {
			p.set("priomap", v)
		}
		if v := p.get("weights", fqWeightsDefault); v != fqWeightsDefault {
			p.set("weights", v)
		}
		if v := p.get("offload_horizon", 0) / 1000 * 1000; v != 0 {
			p.set("offload_horizon", v)
		}
		return p.out, nil
	},
	encode: func(e *rtnl.Encoder, q hierarchy.Qdisc, fresh bool) error {
		v, err := values(q, "limit", "flow_limit", "buckets", "quantum", "initial_quantum", "low_rate_threshold",
			"pacing", "refill_delay", "orphan_mask", "timer_slack", "horizon", "horizon_drop")
		if err != nil {
			return err
		}
		e.Attr32(fqLimit, uint32(v[0]))
		e.Attr32(fqFlowLimit, uint32(v[1]))
		e.Attr32(fqBucketsLog, uint32(bits.Len64(v[2])-1))
		e.Attr32(fqQuantum, uint32(v[3]))
		e.Attr32(fqInitialQuantum, uint32(v[4]))
		e.Attr32(fqLowRateThreshold, uint32(v[5]/8))
		e.Attr32(fqRateEnable, uint32(v[6]))
		e.Attr32(fqRefillDelay, micro(v[7]))
		e.Attr32(fqOrphanMask, uint32(v[8]))
		e.Attr32(fqTimerSlack, uint32(v[9]))
		e.Attr32(fqHorizon, micro(v[10]))
		e.Attr8(fqHorizonDrop, uint8(v[11]))
		maxrate, ce := uint32(fqNone), uint32(fqNone)
		if v, ok := q.Get("maxrate"); ok {
			maxrate = uint32(v / 8)
		}
		if v, ok := q.Get("ce_threshold"); ok {
			ce = micro(v)
		}
		e.Attr32(fqMaxRate, maxrate)
		e.Attr32(fqCEThreshold, ce)
		// In a change what is not sent stays. Kernels that do not know an
		// attribute pass over it.
		if v, ok := q.Get("priomap"); ok || !fresh {
			if !ok {
				v = fqPriomapDefault
			}
			e.Attr(fqPriomap, func() { // struct tc_prio_qopt
				e.Uint32(fqBands)
				for _, band := range hierarchy.Unpack(v, fqPriorities) {
					e.Uint8(uint8(band))
				}
			})
		}
		if v, ok := q.Get("weights"); ok || !fresh {
			if !ok {
				v = fqWeightsDefault
			}
			e.Attr(fqWeights, func() {
				for _, w := range hierarchy.Unpack(v, fqBands) {
					e.Uint32(uint32(w))
				}
			})
		}
		if v, ok := q.Get("offload_horizon"); ok || !fresh {
			e.Attr32(fqOffloadHorizon, micro(v))
		}
		return nil
	},
	decode: func(opts []byte) ([]hierarchy.Setting, error) {
		v := [fqOffloadHorizon + 1]uint32{fqMaxRate: fqNone, fqCEThreshold: fqNone}
		priomap, weights := uint64(fqPriomapDefault), uint64(fqWeightsDefault)
		known := true
		err := rtnl.EachAttr(opts, func(typ uint16, b []byte) (err error) {
			switch {
			case typ == fqHorizonDrop && len(b) > 0:
				v[typ] = uint32(b[0])
			case typ == fqPriomap && len(b) >= 4+fqPriorities:
				n := make([]uint64, fqPriorities)
				for i := range n {
					n[i] = uint64(b[4+i])
				}
				known = known && slices.Max(n) < fqBands
				priomap = hierarchy.Pack(n)
			case typ == fqWeights && len(b) >= 4*fqBands:
				n := make([]uint64, fqBands)
				for i := range n {
					n[i] = uint64(binary.NativeEndian.Uint32(b[4*i:]))
				}
				known = known && slices.Max(n) <= fqMaxWeight
				weights = hierarchy.Pack(n)
			case typ == fqHorizonDrop || typ == fqPriomap || typ == fqWeights:
				err = rtnl.ErrMalformed
			case int(typ) < len(v):
				v[typ], err = rtnl.Uint32(b)
			}
			return err
		})
		if err != nil || v[fqBucketsLog] > 31 {
			return nil, rtnl.ErrMalformed
		}
		if !known {
			return nil, nil
		}
		p := settings{}
		p.set("limit", uint64(v[fqLimit]))
		p.set("flow_limit", uint64(v[fqFlowLimit]))
		p.set("buckets", 1<<v[fqBucketsLog])
		p.set("quantum", uint64(v[fqQuantum]))
		p.set("initial_quantum", uint64(v[fqInitialQuantum]))
		if v[fqMaxRate] != fqNone {
			p.set("maxrate", 8*uint64(v[fqMaxRate]))
		}
		p.set("low_rate_threshold", 8*uint64(v[fqLowRateThreshold]))
		p.set("pacing", uint64(v[fqRateEnable]))
		p.set("refill_delay", 1000*uint64(v[fqRefillDelay]))
		p.set("orphan_mask", uint64(v[fqOrphanMask]))
		if v[fqCEThreshold] != fqNone {
			p.set("ce_threshold", 1000*uint64(v[fqCEThreshold]))
		}
		p.set("timer_slack", uint64(v[fqTimerSlack]))
		p.set("horizon", 1000*uint64(v[fqHorizon]))
		p.set("horizon_drop", uint64(v[fqHorizonDrop]))
		if priomap != fqPriomapDefault {
			p.set("priomap", priomap)
		}
		if weights != fqWeightsDefault {
			p.set("weights", weights)
		}
		if v[fqOffloadHorizon] != 0 {
			p.set("offload_horizon", 1000*uint64(v[fqOffloadHorizon]))
		}
		return p.out, nil
	},
	words: func(_ hierarchy.Qdisc, s hierarchy.Setting) []string {
		if s.Name == "priomap" {
			return append([]string{"bands", fmt.Sprint(fqBands), s.Name}, strings.Fields(strings.Trim(fmt.Sprint(hierarchy.Unpack(s.Value, fqPriorities)), "[]"))...)
		}
		return nil
	},
}

// fqMarks are ce_mark of tc_fq_qd_stats, which older kernels have not.
func fqMarks(stats []byte) (uint64, error) {
	const at = 80
	if len(stats) < at+8 {
		return 0, nil
	}
	return binary.NativeEndian.Uint64(stats[at:]), nil
}
