//go:build linux

package qdisc

import (
	"math"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

// Attributes of pie in linux/pkt_sched.h.
const (
	pieTarget = iota + 1
	pieLimit
	pieTUpdate
	pieAlpha
	pieBeta
	pieECN
	pieBytemode
	pieDQRateEstimator
)

var pieNumbers = numbers{
	{name: "limit", attr: pieLimit},
	{name: "target", attr: pieTarget, give: micro, show: pieShown},
	{name: "tupdate", attr: pieTUpdate, give: micro, show: nano},
	{name: "alpha", attr: pieAlpha},
	{name: "beta", attr: pieBeta},
	{name: "ecn", attr: pieECN},
	{name: "bytemode", attr: pieBytemode},
	{name: "dq_rate_estimator", attr: pieDQRateEstimator},
}

var pie = discipline{
	Kind: hierarchy.Kind{
		Name:   "pie",
		Help:   "one queue, kept short by dropping at random, the more the longer packets wait",
		Params: append([]hierarchy.Param{{Name: "limit", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32, Help: "packets that may wait"}}, pieParams...),
	},
	module: "sch_pie",
	marks:  marksAt(36), // ecn_mark of tc_pie_xstats
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		p.set("limit", p.get("limit", 1000))
		settlePIE(&p, s)
		return p.out, nil
	},
	encode: pieNumbers.encode,
	decode: pieNumbers.decode,
}

// pieTargetMax is what the kernel shows truly: it keeps 64 bits and shows 32 bits
// of nanoseconds (pie_dump, net/sched/sch_pie.c, v6.12).
const pieTargetMax = 4 * time.Second

// pieParams are those that pie and fq_pie share.
var pieParams = []hierarchy.Param{
	{Name: "target", Type: hierarchy.Duration, Min: uint64(10 * time.Microsecond), Max: uint64(pieTargetMax),
		Help: "time that packets may wait on the whole"},
	{Name: "tupdate", Type: hierarchy.Duration, Min: uint64(time.Millisecond), Max: uint64(time.Minute),
		Help: "time after which the probability is worked out anew, in ticks of the kernel's clock"},
	{Name: "alpha", Type: hierarchy.Count, Min: 1, Max: 32,
		Help: "sixteenths by which the distance from the target counts"},
	{Name: "beta", Type: hierarchy.Count, Min: 1, Max: 32,
		Help: "sixteenths by which the latest change of the wait counts"},
	{Name: "ecn", Type: hierarchy.Flag, Max: 1, Negative: "noecn",
		Help: "mark packets that allow it and do not drop them, while the probability is low"},
	{Name: "bytemode", Type: hierarchy.Flag, Max: 1, Negative: "nobytemode",
		Help: "drop small packets less often"},
	{Name: "dq_rate_estimator", Type: hierarchy.Flag, Max: 1, Negative: "no_dq_rate_estimator",
		Help: "estimate the wait from the rate at which packets leave, not from their time stamps"},
}

// settlePIE settles pieParams.
func settlePIE(p *settings, s Site) {
	p.set("target", pieRound(p.get("target", uint64(pieTargetFor(s)))))
	p.set("tupdate", s.ticked(p.get("tupdate", uint64(15*time.Millisecond))))
	p.set("alpha", p.get("alpha", 2))
	p.set("beta", p.get("beta", 20))
	p.set("ecn", p.get("ecn", 0))
	p.set("bytemode", p.get("bytemode", 0))
	p.set("dq_rate_estimator", p.get("dq_rate_estimator", 0))
}

// pieTargetFor is PIE's 15 ms, unless three packets take longer.
func pieTargetFor(s Site) time.Duration {
	return min(max(15*time.Millisecond, 3*s.codelTarget()), pieTargetMax)
}

// pieRound is the time that the kernel makes of ns: it keeps units of 64 ns and
// shows microseconds, both rounded down, so that of every eight microseconds the
// first two look the same and the others one less than they are.
func pieRound(ns uint64) uint64 {
	us := ns / 1000
	if us%8 == 1 {
		us--
	}
	return us * 1000
}

// pieShown is the time, in the form of pieRound, of which the kernel shows us
// microseconds.
func pieShown(us uint32) uint64 {
	if us%8 != 0 {
		us++
	}
	return nano(us)
}
