//go:build linux

package qdisc

import (
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
)

func TestEncodeHHF(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: hhf limit 1000 quantum 1514 hh_limit 2048 reset_timeout 40ms admit_bytes 131072 evict_timeout 1s non_hh_weight 2
		"hhf", true, qdisc("hhf", "limit", 1000, "quantum", 1514, "hh_limit", 2048, "reset_timeout", 40*ms, "admit_bytes", 128<<10, "evict_timeout", 1000*ms, "non_hh_weight", 2),
		`00000000 05000000 00001000 10001f07 00000000 08000100 68686600 3c000280
		 08000100 e8030000 08000200 ea050000 08000300 00080000 08000400 409c0000
		 08000500 00000200 08000600 40420f00 08000700 02000000`,
	}})
}

func TestSettleHHF(t *testing.T) {
	const ms uint64 = 1_000_000
	settleAll(t, []settling{
		{"hhf rounds", qdisc("hhf", "reset_timeout", ms, "evict_timeout", 5*ms), qdisc("hhf", "limit", 1000, "quantum", 1514, "hh_limit", 2048, "reset_timeout", 4*ms, "admit_bytes", 131072, "evict_timeout", 8*ms, "non_hh_weight", 2), ""},
		{"hhf with too large a weight", qdisc("hhf", "quantum", 1<<20, "non_hh_weight", 2048), hierarchy.Qdisc{}, "non_hh_weight 2048 times quantum 1mib is more than 2147483647b"},
	})
}
