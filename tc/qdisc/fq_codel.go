//go:build linux

package qdisc

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Attributes of fq_codel in linux/pkt_sched.h.
const (
	fqCodelTarget = iota + 1
	fqCodelLimit
	fqCodelInterval
	fqCodelECN
	fqCodelFlows
	fqCodelQuantum
	fqCodelCEThreshold
	fqCodelDropBatch
	fqCodelMemoryLimit
	fqCodelCESelector
	fqCodelCEMask
)

// codelOff is the number of microseconds that the kernel turns into its own
// mark for "no threshold", CODEL_DISABLED_THRESHOLD: 2^31-1 units of 1.024 µs
// (fq_codel_change, net/sched/sch_fq_codel.c, v6.12). Without it a threshold
// once set could not be taken back while the qdisc lives.
const codelOff = 2199023255

// codelTargetMax keeps 20 times the target, the interval that goes with it,
// within the 2^31 units of 1.024 µs in which CoDel reckons.
const codelTargetMax = time.Minute

var fqCodelNumbers = numbers{
	{name: "limit", attr: fqCodelLimit},
	{name: "memory_limit", attr: fqCodelMemoryLimit},
	{name: "flows", attr: fqCodelFlows, once: true},
	{name: "target", attr: fqCodelTarget, give: micro, show: codelShown},
	{name: "interval", attr: fqCodelInterval, give: micro, show: codelShown},
	{name: "quantum", attr: fqCodelQuantum},
	{name: "ecn", attr: fqCodelECN},
	{name: "drop_batch", attr: fqCodelDropBatch},
	{name: "ce_threshold", attr: fqCodelCEThreshold, give: micro, show: codelShown, off: codelOff},
}

var fqCodel = discipline{
	Kind: hierarchy.Kind{
		Name: "fq_codel",
		Help: "a queue for each flow, served in turn, each kept short by dropping early",
		Params: []hierarchy.Param{
			flowsLimit, flowsMemory, flowsCount, codelTargetParam, codelIntervalParam, flowsQuantum, codelECNParam,
			{Name: "drop_batch", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
				Help: "packets that are dropped at once when a limit is passed"},
			codelCEParam,
			{Name: "ce_threshold_selector", Type: hierarchy.Count, Max: 255,
				Help: "ce_threshold is for packets with this traffic class (Linux 5.16)"},
			{Name: "ce_threshold_mask", Type: hierarchy.Count, Max: 255,
				Help: "bits of the traffic class that are compared (Linux 5.16)"},
		},
		Verify: func(q hierarchy.Qdisc) error {
			_, ce := q.Get("ce_threshold")
			_, selector := q.Get("ce_threshold_selector")
			_, mask := q.Get("ce_threshold_mask")
			switch {
			case selector != mask:
				return errors.New("ce_threshold_selector and ce_threshold_mask go together: give both or none")
			case mask && !ce:
				return errors.New("ce_threshold_mask says which packets ce_threshold is for: give ce_threshold too")
			}
			return nil
		},
	},
	module: "sch_fq_codel",
	marks:  marksAt(12, 28), // those of tc_fq_codel_qd_stats, behind a type
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		p.set("limit", p.get("limit", 10240))
		p.set("memory_limit", p.get("memory_limit", uint64(s.queueMemory())))
		p.set("flows", p.get("flows", 1024))
		settleCoDel(&p, s)
		p.set("quantum", p.get("quantum", max(uint64(s.MTU), 256)))
		p.set("ecn", p.get("ecn", 1))
		p.set("drop_batch", p.get("drop_batch", 64))
		if v := p.get("ce_threshold", 0); v != 0 {
			p.set("ce_threshold", codelRound(v))
			if m := p.get("ce_threshold_mask", 0); m != 0 {
				p.set("ce_threshold_selector", p.get("ce_threshold_selector", 0))
				p.set("ce_threshold_mask", m)
			}
		}
		return p.out, nil
	},
	encode: func(e *rtnl.Encoder, q hierarchy.Qdisc, fresh bool) error {
		if err := fqCodelNumbers.encode(e, q, fresh); err != nil {
			return err
		}
		if _, ok := q.Get("ce_threshold"); ok {
			selector, _ := q.Get("ce_threshold_selector")
			mask, _ := q.Get("ce_threshold_mask")
			e.Attr8(fqCodelCESelector, uint8(selector))
			e.Attr8(fqCodelCEMask, uint8(mask))
		}
		return nil
	},
	decode: func(opts []byte) ([]hierarchy.Setting, error) {
		out, err := fqCodelNumbers.decode(opts)
		if err != nil {
			return nil, err
		}
		var selector, mask uint8
		err = rtnl.EachAttr(opts, func(typ uint16, b []byte) (err error) {
			switch typ {
			case fqCodelCESelector:
				selector, err = rtnl.Uint8(b)
			case fqCodelCEMask:
				mask, err = rtnl.Uint8(b)
			}
			return err
		})
		q := hierarchy.Qdisc{Params: out}
		if _, ok := q.Get("ce_threshold"); ok && mask != 0 {
			out = append(out,
				hierarchy.Setting{Name: "ce_threshold_selector", Value: uint64(selector)},
				hierarchy.Setting{Name: "ce_threshold_mask", Value: uint64(mask)})
		}
		return out, err
	},
	inPlace: same("flows"), // fq_codel_change refuses another number of them
	words: func(q hierarchy.Qdisc, s hierarchy.Setting) []string {
		switch s.Name {
		case "ce_threshold_selector":
			mask, _ := q.Get("ce_threshold_mask")
			return []string{s.Name, fmt.Sprintf("%#x/%#x", s.Value, mask)}
		case "ce_threshold_mask":
			return []string{}
		}
		return nil
	},
}

// Parameters that fq_codel and fq_pie share.
var (
	flowsLimit = hierarchy.Param{Name: "limit", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
		Help: "packets that may wait in all flows together"}
	flowsMemory = hierarchy.Param{Name: "memory_limit", Type: hierarchy.Bytes, Min: 1, Max: 1 << 31,
		Help: "bytes of memory that waiting packets may take"}
	flowsCount = hierarchy.Param{Name: "flows", Type: hierarchy.Count, Min: 1, Max: 65536,
		Help: "queues that flows are hashed into"}
	flowsQuantum = hierarchy.Param{Name: "quantum", Type: hierarchy.Bytes, Min: 256, Max: 1 << 20,
		Help: "bytes that a flow may send in its turn"}
)

// codelRound is the time that the kernel makes of ns: it keeps whole units of
// 1.024 µs, rounded down, and takes whole microseconds. Of the times that it
// cannot tell apart this is the shortest, so 5ms stays 5ms.
func codelRound(ns uint64) uint64 {
	units := ns / 1000 * 1000 >> 10
	return (units<<10 + 999) / 1000 * 1000
}

// codelShown is the time that the kernel was given when it shows us
// microseconds, in the form of codelRound.
func codelShown(us uint32) uint64 {
	units := (uint64(us)*1000 + 1023) >> 10
	return (units<<10 + 999) / 1000 * 1000
}
