//go:build linux

package qdisc

import (
	"testing"

	"github.com/vifshape/vifshape/tc/rtnl"
)

func TestEncodeCAKE(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: cake bandwidth 8mbit rtt 100ms diffserv4 flows nat wash ack-filter no-split-gso overhead -4 mpu 64 ptm memlimit 4mb ingress fwmark 0xf0
		"cake", true, qdisc("cake", "bandwidth", 8_000_000, "autorate-ingress", 0, "rtt", 100*ms, "diffserv", 1, "flowmode", 4, "nat", 1, "wash", 1, "ack-filter", 1,
			"split-gso", 0, "raw", 0, "overhead", uint64(1<<64-4), "mpu", 64, "atm", 2, "memlimit", 4<<20, "ingress", 1, "fwmark", 0xf0),
		`00000000 05000000 00001000 10001f07 00000000
		 09000100 63616b65 00000000 88000280 0c000200 40420f00 00000000 08000900
		 00000000 08000700 a0860100 08000800 88130000 08000300 01000000 08000500
		 04000000 08000b00 01000000 08000d00 01000000 08001000 01000000 08001100
		 00000000 08000600 fcffffff 08000e00 40000000 08000400 02000000 08000a00
		 00004000 08000f00 01000000 08001200 f0000000`,
	}, {
		// tc qdisc change dev IF parent 71f:10 cake autorate-ingress rtt 1ms diffserv3 triple-isolate nowash no-ack-filter split-gso raw egress
		"cake in place", false, qdisc("cake", "autorate-ingress", 1, "rtt", ms, "diffserv", 0, "flowmode", 7, "nat", 0, "wash", 0, "ack-filter", 0,
			"split-gso", 1, "raw", 1, "overhead", 0, "mpu", 0, "atm", 0, "ingress", 0, "fwmark", 0),
		`00000000 05000000 00000000 10001f07 00000000
		 09000100 63616b65 00000000 7c000280 08000900 01000000 08000700 e8030000
		 08000800 32000000 08000300 00000000 08000500 07000000 08000d00 00000000
		 08001000 00000000 08001100 01000000 08000600 00000000 08000c00 00000000
		 08000e00 00000000 08000400 00000000 08000a00 00000000 08000f00 00000000
		 08001200 00000000`,
	}})
}

func TestSettleCAKE(t *testing.T) {
	const ms uint64 = 1_000_000
	settleAll(t, []settling{
		{"cake", qdisc("cake"), qdisc("cake", "autorate-ingress", 0, "rtt", 100*ms, "diffserv", 0, "flowmode", 7, "nat", 0, "wash", 0, "ack-filter", 0, "split-gso", 1, "raw", 1, "overhead", 0, "mpu", 0, "atm", 0, "ingress", 0, "fwmark", 0), ""},
		{"cake with an overhead of nothing", qdisc("cake", "bandwidth", 8_000_007, "overhead", 0),
			qdisc("cake", "bandwidth", 8_000_000, "autorate-ingress", 0, "rtt", 100*ms, "diffserv", 0, "flowmode", 7, "nat", 0, "wash", 0, "ack-filter", 0, "split-gso", 1, "raw", 0, "overhead", 0, "mpu", 0, "atm", 0, "ingress", 0, "fwmark", 0), ""},
	})
}

func TestVerifyCAKE(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("cake", "bandwidth", 8000, "autorate-ingress", 0), ""},
		{qdisc("cake", "bandwidth", 8000, "autorate-ingress", 1), "autorate-ingress works the bandwidth out: give one of them"},
	})
}

// A target that does not go with the rtt differs from everything.
func TestDecodeForeignCAKE(t *testing.T) {
	foreign(t, "cake", func(e *rtnl.Encoder) { e.Attr32(cakeRTT, 100_000); e.Attr32(cakeTarget, 1) })
}
