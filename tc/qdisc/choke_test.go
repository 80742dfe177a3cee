//go:build linux

package qdisc

import (
	"testing"
)

func TestEncodeCHOKe(t *testing.T) {
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: choke limit 400 min 30 max 90 burst 55 bandwidth 10mbit probability 0.05 ecn
		"choke", true, qdisc("choke", "limit", 400, "min", 30, "max", 90, "ewma", 5, "scell_log", 15, "probability", 214748365, "ecn", 1),
		`00000000 05000000 00001000 10001f07 00000000 0a000100 63686f6b 65000000
		 24010280 14000100 90010000 1e000000 5a000000 05150f01 04010200 00000000
		 00000000 00000000 01010101 01010101 01010101 02020202 02020202 02020202
		 03030303 03030303 03030304 04040404 04040404 04040405 05050505 05050505
		 05050506 06060606 06060606 06060707 07070707 07070707 07070808 08080808
		 08080808 08080909 09090909 09090909 090a0a0a 0a0a0a0a 0a0a0a0a 0a0b0b0b
		 0b0b0b0b 0b0b0b0b 0b0c0c0c 0c0c0c0c 0c0c0c0c 0d0d0d0d 0d0d0d0d 0d0d0d0d
		 0e0e0e0e 0e0e0e0e 0e0e0e0e 0f0f0f0f 0f0f0f0f 0f0f0f10 10101010 10101010
		 10101011 11111111 11111111 11111112 12121212 12121212 12121313 13131313
		 13131313 13131414 14141414 14141414 14141515 15151515 1515151f 08000300
		 cdcccc0c`,
	}})
}

func TestSettleCHOKe(t *testing.T) {
	settleAll(t, []settling{
		{"choke", qdisc("choke"), qdisc("choke", "limit", 128, "min", 10, "max", 32, "ewma", 4, "scell_log", 13, "probability", 85899346, "ecn", 0), ""},
		{"choke with a large min", qdisc("choke", "min", 100_000), qdisc("choke", "limit", chokeLimit, "min", 100_000, "max", chokeLimit, "ewma", 14, "scell_log", 23, "probability", 85899346, "ecn", 0), ""},
	})
}

func TestVerifyCHOKe(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("choke", "limit", 20, "min", 20), "min 20 is not below limit 20"},
	})
}
