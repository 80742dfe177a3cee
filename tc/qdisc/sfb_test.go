//go:build linux

package qdisc

import (
	"testing"
)

func TestEncodeSFB(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: sfb limit 1000 max 25 target 20 increment 0.0005 decrement 0.00005 penalty_rate 10 penalty_burst 20 rehash 600000 db 60000
		"sfb", true, qdisc("sfb", "limit", 1000, "max", 25, "target", 20, "increment", 33*sfbStep, "decrement", 3*sfbStep, "penalty_rate", 10, "penalty_burst", 20, "rehash", 600_000*ms, "db", 60_000*ms),
		`00000000 05000000 00001000 10001f07 00000000 08000100 73666200 2c000280
		 28000100 c0270900 60ea0000 19000000 14000000 21000000 03000000 e8030000
		 0a000000 14000000`,
	}})
}

func TestSettleSFB(t *testing.T) {
	const ms uint64 = 1_000_000
	settleAll(t, []settling{
		{"sfb by target", qdisc("sfb", "target", 10, "increment", 42949673, "rehash", 30*ms), qdisc("sfb", "limit", 1000, "max", 12, "target", 10, "increment", 655*sfbStep, "decrement", 3*sfbStep, "penalty_rate", 10, "penalty_burst", 20, "rehash", 40*ms, "db", 40*ms), ""},
	})
}

func TestVerifySFB(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("sfb", "target", 30, "max", 20), "target 30 is above max 20"},
		{qdisc("sfb", "rehash", 1_000_000_000, "db", 2_000_000_000), "db 2s is longer than rehash 1s"},
		{qdisc("sfb", "rehash", 0, "db", 0), ""},
	})
}
