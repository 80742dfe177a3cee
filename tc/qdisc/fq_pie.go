//go:build linux

package qdisc

import (
	"slices"

	"github.com/vifshape/vifshape/hierarchy"
)

// Attributes of fq_pie in linux/pkt_sched.h.
const (
	fqPieLimit = iota + 1
	fqPieFlows
	fqPieTarget
	fqPieTUpdate
	fqPieAlpha
	fqPieBeta
	fqPieQuantum
	fqPieMemoryLimit
	fqPieECNProb
	fqPieECN
	fqPieBytemode
	fqPieDQRateEstimator
)

var fqPieNumbers = numbers{
	{name: "limit", attr: fqPieLimit},
	{name: "flows", attr: fqPieFlows, once: true},
	{name: "target", attr: fqPieTarget, give: micro, show: pieShown},
	{name: "tupdate", attr: fqPieTUpdate, give: micro, show: nano},
	{name: "alpha", attr: fqPieAlpha},
	{name: "beta", attr: fqPieBeta},
	{name: "ecn", attr: fqPieECN},
	{name: "bytemode", attr: fqPieBytemode},
	{name: "dq_rate_estimator", attr: fqPieDQRateEstimator},
	{name: "quantum", attr: fqPieQuantum},
	{name: "memory_limit", attr: fqPieMemoryLimit},
	{name: "ecn_prob", attr: fqPieECNProb},
}

var fqPie = discipline{
	Kind: hierarchy.Kind{
		Name: "fq_pie",
		Help: "a queue for each flow, served in turn, each kept short by dropping at random (Linux 5.6)",
		Params: slices.Concat([]hierarchy.Param{flowsLimit, flowsCount}, pieParams, []hierarchy.Param{
			flowsQuantum, flowsMemory,
			{Name: "ecn_prob", Type: hierarchy.Count, Min: 1, Max: 99,
				Help: "percent of probability up to which ecn marks packets"},
		}),
	},
	module: "sch_fq_pie",
	marks:  marksAt(16), // ecn_mark of tc_fq_pie_xstats
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		p.set("limit", p.get("limit", 10240))
		p.set("flows", p.get("flows", 1024))
		settlePIE(&p, s)
		p.set("quantum", p.get("quantum", min(max(uint64(s.MTU), 256), 1<<20)))
		p.set("memory_limit", p.get("memory_limit", uint64(s.queueMemory())))
		p.set("ecn_prob", p.get("ecn_prob", 10))
		return p.out, nil
	},
	encode:  fqPieNumbers.encode,
	decode:  fqPieNumbers.decode,
	inPlace: same("flows"), // fq_pie_change refuses a number of them
}
