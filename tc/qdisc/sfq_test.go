//go:build linux

package qdisc

import (
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
)

func TestEncodeSFQ(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: sfq limit 500 perturb 10 quantum 1514 flows 127 divisor 1024 depth 64 headdrop
		"sfq", true, qdisc("sfq", "limit", 500, "perturb", 10_000*ms, "quantum", 1514, "flows", 127, "divisor", 1024, "depth", 64, "headdrop", 1),
		`00000000 05000000 00001000 10001f07 00000000
		 08000100 73667100
		 4c000280 ea050000 0a000000 f4010000 00040000 7f000000
		 40000000 01000000 00000000 00000000 00000000 00000000 00000000
		 00000000 00000000 00000000 00000000 00000000 00000000`,
	}, {
		// tc qdisc replace dev IF parent 71f:10 handle 10: sfq limit 500 ... redflowlimit 360000 min 30000 max 90000 avpkt 1000 burst 55 probability 0.02 ecn harddrop
		"sfq with RED", true, qdisc("sfq", "limit", 500, "perturb", 10_000*ms, "quantum", 1514, "flows", 127, "divisor", 1024, "depth", 64, "headdrop", 0, "min", 30000, "max", 90000, "ewma", 5, "probability", 85899346, "ecn", 1, "harddrop", 1),
		`00000000 05000000 00001000 10001f07 00000000 08000100 73667100 4c000280
		 ea050000 0a000000 f4010000 00040000 7f000000 40000000 00000000 407e0500
		 30750000 905f0100 05160003 52b81e05 00000000 00000000 00000000 00000000
		 00000000 00000000`,
	}})
}

func TestSettleSFQ(t *testing.T) {
	const ms uint64 = 1_000_000
	settleAll(t, []settling{
		{"sfq cuts", qdisc("sfq", "limit", 60000, "flows", 500, "divisor", 256, "depth", 10, "headdrop", 1), qdisc("sfq", "limit", 2560, "perturb", 10_000*ms, "quantum", 1514, "flows", 256, "divisor", 256, "depth", 10, "headdrop", 1), ""},
		{"sfq too small", qdisc("sfq", "flows", 1, "depth", 1), hierarchy.Qdisc{}, "1 packets in all (depth times flows) are too few"},
		{"sfq with RED", qdisc("sfq", "redflowlimit", 60_000), qdisc("sfq", "limit", 32, "perturb", 10_000*ms, "quantum", 1514, "flows", 32, "divisor", 1024, "depth", 127, "headdrop", 0, "min", 5000, "max", 15_000, "ewma", 3, "probability", 85899346, "ecn", 0, "harddrop", 0), ""},
	})
}

func TestVerifySFQ(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("sfq", "divisor", 1024), ""},
		{qdisc("sfq", "divisor", 1000), "divisor 1000 is no power of 2: write divisor = 1024"},
		{qdisc("sfq", "perturb", 1500_000_000), "perturb 1.5s is no whole number of seconds"},
		{qdisc("sfq", "redflowlimit", 10_000, "max", 20_000), "max 20kb is above redflowlimit 10kb"},
	})
}
