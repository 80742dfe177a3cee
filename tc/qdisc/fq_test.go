//go:build linux

package qdisc

import (
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

func TestEncodeFQ(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: fq limit 500 flow_limit 50 buckets 256 quantum 3000 initial_quantum 9000 maxrate 8mbit low_rate_threshold 800kbit nopacing refill_delay 40ms orphan_mask 255 timer_slack 10us horizon 10s horizon_drop
		"fq", true, qdisc("fq", "limit", 500, "flow_limit", 50, "buckets", 256, "quantum", 3000, "initial_quantum", 9000, "maxrate", 8_000_000, "low_rate_threshold", 800_000,
			"pacing", 0, "refill_delay", 40*ms, "orphan_mask", 255, "timer_slack", 10_000, "horizon", 10_000*ms, "horizon_drop", 1),
		`00000000 05000000 00001000 10001f07 00000000
		 07000100 66710000 74000280 08000100 f4010000 08000200 32000000 08000800
		 08000000 08000300 b80b0000 08000400 28230000 08000b00 a0860100 08000500
		 00000000 08000900 409c0000 08000a00 ff000000 08000d00 10270000 08000e00
		 80969800 05000f00 01000000 08000700 40420f00 08000c00 ffffffff`,
	}, {
		// tc qdisc change dev IF parent 71f:10 fq ... bands 3 priomap 0 1 2 0 1 2 0 1 2 0 1 2 0 1 2 0
		"fq in place", false, qdisc("fq", "limit", 500, "flow_limit", 50, "buckets", 256, "quantum", 3000, "initial_quantum", 9000, "low_rate_threshold", 800_000,
			"pacing", 1, "refill_delay", 40*ms, "orphan_mask", 255, "ce_threshold", 4*ms, "timer_slack", 10_000, "horizon", 10_000*ms, "horizon_drop", 0,
			"priomap", hierarchy.Pack([]uint64{0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0})),
		`00000000 05000000 00000000 10001f07 00000000
		 07000100 66710000 a4000280 08000100 f4010000 08000200 32000000 08000800
		 08000000 08000300 b80b0000 08000400 28230000 08000b00 a0860100 08000500
		 01000000 08000900 409c0000 08000a00 ff000000 08000d00 10270000 08000e00
		 80969800 05000f00 00000000 08000700 ffffffff 08000c00 a00f0000 18001000
		 03000000 00010200 01020001 02000102 00010200 10001100 00000900 00000300
		 00000100 08001200 00000000`,
	}})
}

func TestSettleFQ(t *testing.T) {
	const ms uint64 = 1_000_000
	plain := []any{"limit", 10000, "flow_limit", 100, "buckets", 1024, "quantum", 3028, "initial_quantum", 15140, "low_rate_threshold", 550_000, "pacing", 1,
		"refill_delay", 40 * ms, "orphan_mask", 1023, "timer_slack", 10_000, "horizon", 10_000 * ms, "horizon_drop", 1}
	settleAll(t, []settling{
		{"fq", qdisc("fq"), qdisc("fq", plain...), ""},
		{"fq with what it does anyway", qdisc("fq", "priomap", uint64(fqPriomapDefault), "weights", uint64(fqWeightsDefault), "offload_horizon", 999), qdisc("fq", plain...), ""},
		{"fq rounds", qdisc("fq", "maxrate", 8_000_007, "refill_delay", 41*ms, "ce_threshold", 4_000_999, "horizon", 2_000_999),
			qdisc("fq", "limit", 10000, "flow_limit", 100, "buckets", 1024, "quantum", 3028, "initial_quantum", 15140, "maxrate", 8_000_000, "low_rate_threshold", 550_000, "pacing", 1,
				"refill_delay", 44*ms, "orphan_mask", 1023, "ce_threshold", 4_000_000, "timer_slack", 10_000, "horizon", 2_000_000, "horizon_drop", 1), ""},
	})
}

func TestVerifyFQ(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("fq", "buckets", 1024), ""},
		{qdisc("fq", "buckets", 1000), "buckets 1000 is no power of 2: write buckets = 1024"},
	})
}

// Weights that no parameter can say differ from everything.
func TestDecodeForeignFQ(t *testing.T) {
	foreign(t, "fq", func(e *rtnl.Encoder) {
		e.Attr(fqWeights, func() { e.Uint32(1 << 30); e.Uint32(1); e.Uint32(1) })
	})
}
