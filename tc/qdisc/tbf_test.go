//go:build linux

package qdisc

import (
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
)

func TestEncodeTBF(t *testing.T) {
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: tbf rate 10mbit burst 16kb limit 64kb peakrate 12mbit mtu 1600 mpu 64 overhead 4 linklayer atm
		"tbf", true, qdisc("tbf", "rate", 10_000_000, "burst", 16384, "limit", 65536, "peakrate", 12_000_000, "mtu", 1600, "mpu", 64, "overhead", 4, "linklayer", 1),
		`00000000 05000000 00001000 10001f07 00000000
		 08000100 74626600
		 2c000280 28000100
		 00020400 00004000 d0121300
		 00020400 00004000 60e31600
		 00000100 00200300 1b410000`,
	}, {
		// tc qdisc replace dev IF parent 71f:10 handle 10: tbf rate 40gbit burst 1mb limit 4mb
		"tbf above 32 bits", true, qdisc("tbf", "rate", uint64(40_000_000_000), "burst", 1<<20, "limit", 4<<20),
		`00000000 05000000 00001000 10001f07 00000000
		 08000100 74626600
		 38000280 28000100
		 00010000 00000000 ffffffff
		 00000000 00000000 00000000
		 00004000 cd0c0000 00000000
		 0c000400 00f2052a 01000000`,
	}})
}

func TestSettleTBF(t *testing.T) {
	const ms uint64 = 1_000_000
	settleAll(t, []settling{
		{"tbf", qdisc("tbf", "rate", 8_000_007), qdisc("tbf", "rate", 8_000_000, "burst", 262144, "limit", 269144), ""},
		{"tbf by latency", qdisc("tbf", "rate", 8_000_000, "burst", 20000, "latency", 30*ms, "overhead", 0), qdisc("tbf", "rate", 8_000_000, "burst", 20000, "limit", 50000), ""},
		{"tbf with a peak", qdisc("tbf", "rate", 8_000_000, "limit", 1000, "peakrate", 80_000_000, "linklayer", 1), qdisc("tbf", "rate", 8_000_000, "burst", 262144, "limit", 1000, "peakrate", 80_000_000, "mtu", 10000, "linklayer", 1), ""},
		{"tbf too slow", qdisc("tbf", "rate", 800), hierarchy.Qdisc{}, "800bit is too slow: tbf counts to 429b then, and a packet counts as up to 1514b"},
		{"tbf with a small burst", qdisc("tbf", "rate", 8_000_000, "burst", 1500), hierarchy.Qdisc{}, "burst 1500b is below 1514b, which a packet may count as: it would never be sent"},
		{"tbf with a large mpu", qdisc("tbf", "rate", 8_000_000, "burst", 3000, "mpu", 5000), hierarchy.Qdisc{}, "burst 3kb is below 5kb, which a packet may count as: it would never be sent"},
	})
}

func TestVerifyTBF(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("tbf"), `tbf needs a rate: write rate = "10mbit"`},
		{qdisc("tbf", "rate", 8000, "limit", 1, "latency", 1), "limit and latency say the same thing: give one of them"},
		{qdisc("tbf", "rate", 8000, "peakrate", 8007), "peakrate 8007bit is not above rate 8kbit"},
		{qdisc("tbf", "rate", 8000, "mtu", 1600), "mtu is the burst of peakrate: give peakrate too"},
		{qdisc("tbf", "rate", 8000, "burst", 1<<20), "burst 1mib is more than tbf can count at 8kbit: at most 4294b"},
		{qdisc("tbf", "rate", 8000), ""},
	})
}
