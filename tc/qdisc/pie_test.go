//go:build linux

package qdisc

import (
	"testing"
)

func TestEncodePIE(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: pie limit 1000 target 15ms tupdate 16ms alpha 2 beta 20 ecn nobytemode dq_rate_estimator
		"pie", true, qdisc("pie", "limit", 1000, "target", 15*ms, "tupdate", 16*ms, "alpha", 2, "beta", 20, "ecn", 1, "bytemode", 0, "dq_rate_estimator", 1),
		`00000000 05000000 00001000 10001f07 00000000 08000100 70696500 44000280
		 08000200 e8030000 08000100 983a0000 08000300 803e0000 08000400 02000000
		 08000500 14000000 08000600 01000000 08000700 00000000 08000800 01000000`,
	}})
}

func TestSettlePIE(t *testing.T) {
	const ms uint64 = 1_000_000
	settleAll(t, []settling{
		{"pie rounds", qdisc("pie", "target", 8_009_000, "tupdate", 17*ms), qdisc("pie", "limit", 1000, "target", 8_008_000, "tupdate", 20*ms, "alpha", 2, "beta", 20, "ecn", 0, "bytemode", 0, "dq_rate_estimator", 0), ""},
	})
}

func TestPIETimes(t *testing.T) {
	for us := uint64(10); us < 4_000_000; us += 1 + us/997 {
		settled := pieRound(us * 1000)
		shown := uint32(settled >> 6 << 6 / 1000)
		if pieShown(shown) != settled || pieRound(settled) != settled || us*1000-settled > 1000 {
			t.Fatalf("%d µs: settled %d ns, shown %d µs, read as %d ns", us, settled, shown, pieShown(shown))
		}
	}
}
