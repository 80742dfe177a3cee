//go:build linux

package qdisc

import (
	"testing"
)

func TestEncodeCoDel(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: codel limit 1000 target 5ms interval 100ms noecn
		"codel", true, qdisc("codel", "limit", 1000, "target", 5*ms, "interval", 100*ms, "ecn", 0),
		`00000000 05000000 00001000 10001f07 00000000 0a000100 636f6465 6c000000
		 2c000280 08000200 e8030000 08000100 88130000 08000300 a0860100 08000400
		 00000000 08000500 976e1283`,
	}, {
		// tc qdisc change dev IF parent 71f:10 codel limit 1000 target 5ms interval 100ms ecn ce_threshold 1ms
		"codel in place with a threshold", false, qdisc("codel", "limit", 1000, "target", 5*ms, "interval", 100*ms, "ecn", 1, "ce_threshold", ms),
		`00000000 05000000 00000000 10001f07 00000000 0a000100 636f6465 6c000000
		 2c000280 08000200 e8030000 08000100 88130000 08000300 a0860100 08000400
		 01000000 08000500 e8030000`,
	}})
}

func TestCodelTimes(t *testing.T) {
	for us := uint64(1); us < 3_000_000; us += 1 + us/97 {
		settled := codelRound(us * 1000)
		units := settled / 1000 * 1000 >> 10
		shown := uint32(units << 10 / 1000)
		if codelShown(shown) != settled || codelRound(settled) != settled || settled > us*1000 || us*1000-settled > 1024 {
			t.Fatalf("%d µs: settled %d ns, shown %d µs, read as %d ns", us, settled, shown, codelShown(shown))
		}
	}
}
