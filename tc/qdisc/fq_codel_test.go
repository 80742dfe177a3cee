//go:build linux

package qdisc

import (
	"testing"
)

func TestEncodeFQCoDel(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: fq_codel limit 10240 memory_limit 32Mb flows 1024 target 5ms interval 100ms quantum 1514 ecn drop_batch 64
		"fq_codel", true, qdisc("fq_codel", "limit", 10240, "memory_limit", 32<<20, "flows", 1024, "target", 5*ms, "interval", 100*ms, "quantum", 1514, "ecn", 1, "drop_batch", 64),
		`00000000 05000000 00001000 10001f07 00000000
		 0d000100 66715f63 6f64656c 00000000
		 4c000280
		 08000200 00280000 08000900 00000002 08000500 00040000
		 08000100 88130000 08000300 a0860100 08000600 ea050000
		 08000400 01000000 08000800 40000000 08000700 976e1283`,
	}, {
		// tc qdisc change dev IF parent 71f:10 fq_codel limit 1 ... ce_threshold 1ms ce_threshold_selector 0x1/0x3
		"fq_codel in place with a threshold", false, qdisc("fq_codel", "limit", 1, "memory_limit", 1<<20, "flows", 1024, "target", 5*ms, "interval", 100*ms, "quantum", 300, "ecn", 0, "drop_batch", 1, "ce_threshold", 1*ms, "ce_threshold_selector", 1, "ce_threshold_mask", 3),
		`00000000 05000000 00000000 10001f07 00000000
		 0d000100 66715f63 6f64656c 00000000
		 54000280
		 08000200 01000000 08000900 00001000
		 08000100 88130000 08000300 a0860100 08000600 2c010000
		 08000400 00000000 08000800 01000000 08000700 e8030000
		 05000a00 01000000 05000b00 03000000`,
	}})
}

func TestSettleFQCoDel(t *testing.T) {
	const ms uint64 = 1_000_000
	settleAll(t, []settling{
		{"fq_codel rounds", qdisc("fq_codel", "target", 1234567, "ce_threshold", 3*ms, "ce_threshold_selector", 1, "ce_threshold_mask", 3), qdisc("fq_codel", "limit", 10240, "memory_limit", 4<<20, "flows", 1024, "target", 1234*1000, "interval", 100*ms, "quantum", 1514, "ecn", 1, "drop_batch", 64, "ce_threshold", 3*ms, "ce_threshold_selector", 1, "ce_threshold_mask", 3), ""},
	})
}

func TestVerifyFQCoDel(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("fq_codel", "ce_threshold", 1000_000), ""},
		{qdisc("fq_codel", "ce_threshold", 1000_000, "ce_threshold_mask", 1), "ce_threshold_selector and ce_threshold_mask go together: give both or none"},
		{qdisc("fq_codel", "ce_threshold_selector", 1, "ce_threshold_mask", 1), "ce_threshold_mask says which packets ce_threshold is for: give ce_threshold too"},
	})
}
