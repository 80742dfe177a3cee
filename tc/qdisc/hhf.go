//go:build linux

package qdisc

import (
	"fmt"
	"math"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

// Attributes of hhf in linux/pkt_sched.h.
const (
	hhfLimit = iota + 1
	hhfQuantum
	hhfFlows
	hhfResetTimeout
	hhfAdmitBytes
	hhfEvictTimeout
	hhfNonHHWeight
)

// hhfFlowsMost is how many big flows hhf remembers at most, and unless told.
const hhfFlowsMost = 2048

var hhfNumbers = numbers{
	{name: "limit", attr: hhfLimit},
	{name: "quantum", attr: hhfQuantum},
	{name: "hh_limit", attr: hhfFlows},
	{name: "reset_timeout", attr: hhfResetTimeout, give: micro, show: nano},
	{name: "admit_bytes", attr: hhfAdmitBytes},
	{name: "evict_timeout", attr: hhfEvictTimeout, give: micro, show: nano},
	{name: "non_hh_weight", attr: hhfNonHHWeight},
}

var hhf = discipline{
	Kind: hierarchy.Kind{
		Name: "hhf",
		Help: "two queues: one for the few flows that send most, one for all others, which goes first",
		Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Count, Min: 1, Max: math.MaxUint32,
				Help: "packets that may wait in both together"},
			{Name: "quantum", Type: hierarchy.Bytes, Min: 256, Max: 1 << 20,
				Help: "bytes that the queue of the big flows may send in its turn"},
			{Name: "hh_limit", Type: hierarchy.Count, Min: 1, Max: hhfFlowsMost,
				Help: "big flows that are remembered"},
			{Name: "reset_timeout", Type: hierarchy.Duration, Min: uint64(time.Millisecond), Max: uint64(time.Hour),
				Help: "time after which the bytes of flows are counted anew, in ticks of the kernel's clock"},
			{Name: "admit_bytes", Type: hierarchy.Bytes, Min: 1, Max: math.MaxUint32,
				Help: "bytes within reset_timeout that make a flow a big one; 128 kB in 40 ms, which it is unless told, are 25mbit"},
			{Name: "evict_timeout", Type: hierarchy.Duration, Min: uint64(time.Millisecond), Max: uint64(time.Hour),
				Help: "time after which a big flow that is silent is forgotten, in ticks of the kernel's clock"},
			{Name: "non_hh_weight", Type: hierarchy.Count, Min: 1, Max: math.MaxInt32 / 256,
				Help: "times quantum that the queue of all others may send in its turn"},
		},
	},
	module: "sch_hhf",
	settle: func(q hierarchy.Qdisc, s Site) ([]hierarchy.Setting, error) {
		p := settings{q: q}
		quantum := p.get("quantum", min(max(uint64(s.MTU), 256), 1<<20))
		weight := p.get("non_hh_weight", 2)
		if weight*quantum > math.MaxInt32 { // hhf_change says no more than EINVAL
			return nil, fmt.Errorf("non_hh_weight %d times quantum %v is more than %v", weight, hierarchy.Size(quantum), hierarchy.Size(math.MaxInt32))
		}
		reset := p.get("reset_timeout", uint64(40*time.Millisecond))
		p.set("limit", p.get("limit", 1000))
		p.set("quantum", quantum)
		p.set("hh_limit", p.get("hh_limit", hhfFlowsMost))
		p.set("reset_timeout", s.ticked(reset))
		p.set("admit_bytes", p.get("admit_bytes", 128<<10))
		p.set("evict_timeout", s.ticked(p.get("evict_timeout", uint64(time.Second))))
		p.set("non_hh_weight", weight)
		return p.out, nil
	},
	encode: hhfNumbers.encode,
	decode: hhfNumbers.decode,
	// hhf_init set hh_limit after it had read the options (net/sched/sch_hhf.c,
	// v6.1; mended since).
	twice: func(q hierarchy.Qdisc) bool {
		v, _ := q.Get("hh_limit")
		return v != hhfFlowsMost
	},
}
