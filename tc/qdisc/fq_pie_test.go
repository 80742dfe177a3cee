//go:build linux

package qdisc

import (
	"testing"
)

func TestEncodeFQPIE(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc change dev IF parent 71f:10 fq_pie limit 10240 target 15ms tupdate 16ms alpha 2 beta 20 ...
		"fq_pie in place", false, qdisc("fq_pie", "limit", 10240, "flows", 1024, "target", 15*ms, "tupdate", 16*ms, "alpha", 2, "beta", 20, "ecn", 1, "bytemode", 0, "dq_rate_estimator", 0, "quantum", 1514, "memory_limit", 32<<20, "ecn_prob", 10),
		`00000000 05000000 00000000 10001f07 00000000 0b000100 66715f70 69650000
		 5c000280 08000100 00280000 08000300 983a0000 08000400 803e0000 08000500
		 02000000 08000600 14000000 08000a00 01000000 08000b00 00000000 08000c00
		 00000000 08000700 ea050000 08000800 00000002 08000900 0a000000`,
	}})
}
