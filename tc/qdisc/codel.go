//go:build linux

package qdisc

import (
	"math"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

// Attributes of codel in linux/pkt_sched.h.
const (
	codelTargetAttr = iota + 1
	codelLimitAttr
	codelIntervalAttr
	codelECNAttr
	codelCEThresholdAttr
)

var codelNumbers = numbers{
	{name: "limit", attr: codelLimitAttr},
	{name: "target", attr: codelTargetAttr, give: micro, show: codelShown},
	{name: "interval", attr: codelIntervalAttr, give: micro, show: codelShown},
	{name: "ecn", attr: codelECNAttr},
	{name: "ce_threshold", attr: codelCEThresholdAttr, give: micro, show: codelShown, off: codelOff}, // codel_change makes the same of it
}

var codel = discipline{
	Kind: hierarchy.Kind{
		Name: "codel",
		Help: "one queue, kept short by dropping early",
		Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
				Help: "packets that may wait"},
			codelTargetParam, codelIntervalParam, codelECNParam, codelCEParam,
		},
	},
	module: "sch_codel",
	marks:  marksAt(24, 32), // ecn_mark and ce_mark of tc_codel_xstats
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		p.set("limit", p.get("limit", 1000))
		settleCoDel(&p, s)
		p.set("ecn", p.get("ecn", 0))
		if v := p.get("ce_threshold", 0); v != 0 {
			p.set("ce_threshold", codelRound(v))
		}
		return p.out, nil
	},
	encode: codelNumbers.encode,
	decode: codelNumbers.decode,
}

// Parameters that codel and fq_codel share.
var (
	codelTargetParam = hierarchy.Param{Name: "target", Type: hierarchy.Duration, Min: uint64(10 * time.Microsecond), Max: uint64(codelTargetMax),
		Help: "time that packets may wait on the whole"}
	codelIntervalParam = hierarchy.Param{Name: "interval", Type: hierarchy.Duration, Min: uint64(100 * time.Microsecond), Max: uint64(30 * time.Minute),
		Help: "time for which they may wait longer, about a round trip"}
	codelECNParam = hierarchy.Param{Name: "ecn", Type: hierarchy.Flag, Max: 1, Negative: "noecn",
		Help: "mark packets that allow it and do not drop them"}
	codelCEParam = hierarchy.Param{Name: "ce_threshold", Type: hierarchy.Duration, Min: uint64(10 * time.Microsecond), Max: uint64(30 * time.Minute),
		Help: "mark every packet that has waited longer"}
)

// settleCoDel settles target and interval.
func settleCoDel(p *settings, s Site) {
	target := p.get("target", uint64(s.codelTarget()))
	p.set("target", codelRound(target))
	p.set("interval", codelRound(p.get("interval", max(uint64(100*time.Millisecond), 20*target))))
}
