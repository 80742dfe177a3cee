//go:build linux

package qdisc

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

func TestEncodeNetem(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: netem limit 1000 delay 20ms 8ms 25% loss gemodel 1% 10% 70% 0.1% duplicate 50% reorder 25% 50% gap 5 rate 8mbit -20 48 5
		"netem", true, qdisc("netem", "limit", 1000, "delay", 20*ms, "jitter", 8*ms, "delay_correlation", 1073741824, "loss_model", 2, "p", 42949673, "r", 429496730, "1-h", 3006477106, "1-k", 4294967,
			"duplicate", 2147483648, "reorder", 1073741824, "reorder_correlation", 2147483648, "gap", 5, "rate", 8_000_000, "packetoverhead", uint64(1<<64-20), "cellsize", 48, "celloverhead", 5),
		`00000000 05000000 00001000 10001f07 00000000
		 0a000100 6e657465 6d000000 90000280 00000000 e8030000 00000000 05000000
		 00000080 00000000 0c000a00 002d3101 00000000 0c000b00 00127a00 00000000
		 10000100 00000040 00000000 00000000 0c000300 00000040 00000080 0c000400
		 00000000 00000000 18000580 14000200 295c8f02 9a999919 cdcccc4c 37894100
		 08000700 00000000 14000600 40420f00 ecffffff 30000000 05000000`,
	}, {
		// tc qdisc change dev IF parent 71f:10 netem limit 1000 loss state 1% 80% 5% 90% 0.5% ecn rate 40gbit slot 5ms 9ms packets 7
		"netem in place", false, qdisc("netem", "limit", 1000, "loss_model", 1, "p13", 42949673, "p31", 3435973836, "p32", 214748365, "p23", 3865470566, "p14", 21474836, "ecn", 1,
			"rate", uint64(40_000_000_000), "slot_min", 5*ms, "slot_max", 9*ms, "slot_packets", 7, "seed", 4711),
		`00000000 05000000 00000000 10001f07 00000000
		 0a000100 6e657465 6d000000 d8000280 00000000 e8030000 00000000 00000000
		 00000000 00000000 0c000a00 00000000 00000000 0c000b00 00000000 00000000
		 10000100 00000000 00000000 00000000 0c000300 00000000 00000000 0c000400
		 00000000 00000000 1c000580 18000100 295c8f02 cccccccc cdcccc0c 14ae4701
		 666666e6 08000700 01000000 14000600 ffffffff 00000000 00000000 00000000
		 0c000800 00f2052a 01000000 2c000c00 404b4c00 00000000 40548900 00000000
		 07000000 00000000 00000000 00000000 00000000 00000000 0c000e00 67120000
		 00000000`,
	}})
}

func TestSettleNetem(t *testing.T) {
	const ms uint64 = 1_000_000
	settleAll(t, []settling{
		{"netem", qdisc("netem"), qdisc("netem", "limit", 1000), ""},
		{"netem with zeros", qdisc("netem", "delay", 0, "jitter", 3, "loss", 0, "loss_correlation", 5, "ecn", 0, "reorder", 0, "gap", 3, "slot_min", 0), qdisc("netem", "limit", 1000), ""},
		{"netem for long", qdisc("netem", "delay", 10_000*ms), qdisc("netem", "limit", 33048, "delay", 10_000*ms), ""},
		{"netem rounds", qdisc("netem", "delay", 1234567, "jitter", 1_000_003, "distribution", 1), qdisc("netem", "limit", 1000, "delay", 1234567, "jitter", 1_000_000, "distribution", 1), ""},
		{"netem with a uniform jitter", qdisc("netem", "delay", ms, "jitter", ms, "distribution", 0), qdisc("netem", "limit", 1000, "delay", ms, "jitter", ms), ""},
		{"netem without half a model", qdisc("netem", "loss_model", 1, "p13", 42949673), qdisc("netem", "limit", 1000, "loss_model", 1, "p13", 42949673, "p31", uint64(4252017622), "p32", 0, "p23", uint64(hierarchy.Whole), "p14", 0), ""},
		{"netem with p alone", qdisc("netem", "loss_model", 2, "p", 42949673), qdisc("netem", "limit", 1000, "loss_model", 2, "p", 42949673, "r", uint64(4252017622), "1-h", uint64(hierarchy.Whole), "1-k", 0), ""},
		{"netem out of order", qdisc("netem", "delay", ms, "reorder", 429496730), qdisc("netem", "limit", 1000, "delay", ms, "reorder", 429496730, "gap", 1), ""},
		{"netem in slots", qdisc("netem", "slot_min", ms), qdisc("netem", "limit", 1000, "slot_min", ms, "slot_max", ms), ""},
		{"netem in slots by distribution", qdisc("netem", "slot_distribution", 1, "slot_jitter", 1_000_003), qdisc("netem", "limit", 1000, "slot_distribution", 1, "slot_delay", 0, "slot_jitter", 1_000_000), ""},
	})
}

func TestVerifyNetem(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("netem", "delay", 1, "jitter", 1, "distribution", 1, "loss", 1, "ecn", 1), ""},
		{qdisc("netem", "jitter", 1), "jitter says nothing without delay: give delay, too"},
		{qdisc("netem", "delay", 1, "gap", 5), "gap says nothing without reorder: give reorder, too"},
		{qdisc("netem", "p", 1), `p belongs to loss_model = "gemodel"`},
		{qdisc("netem", "loss_model", 2, "p13", 1), `p13 belongs to loss_model = "state"`},
		{qdisc("netem", "loss_model", 1, "loss", 1), `loss belongs to loss_model = "random"`},
		{qdisc("netem", "loss_model", 1), `loss_model = "state" says nothing without p13: give p13, too`},
		{qdisc("netem", "loss_model", 0), ""},
		{qdisc("netem", "ecn", 1), "ecn marks what would be lost: give loss, too"},
		{qdisc("netem", "slot_min", 1, "slot_distribution", 0, "slot_jitter", 5), "slot_min and slot_distribution say the same thing: give one of them"},
		{qdisc("netem", "slot_distribution", 0), "slot_distribution says nothing without slot_jitter: give slot_jitter, too"},
		{qdisc("netem", "slot_min", 5000, "slot_max", 1000), "slot_max 1µs is below slot_min 5µs"},
		{qdisc("netem", "slot_bytes", 5), "slot_packets and slot_bytes say nothing without slot_min: give slot_min, too"},
	})
}

// Slots of an unknown table differ from everything.
func TestDecodeForeignNetem(t *testing.T) {
	foreign(t, "netem", func(e *rtnl.Encoder) {
		e.B = append(e.B, make([]byte, sizeofNetem)...)
		e.Attr(netemSlot, func() { e.B = append(e.B, make([]byte, 32)...); e.Uint64(1000) })
	})
	// A seed that the kernel drew is nobody's wish.
	s := decoded(t, "netem", func(e *rtnl.Encoder) {
		e.B = append(e.B, make([]byte, sizeofNetem)...)
		e.Attr64(netemSeed, 1<<63)
	})
	if d := cmp.Diff([]hierarchy.Setting{{Name: "limit"}}, s); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
