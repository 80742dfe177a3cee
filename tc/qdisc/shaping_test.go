//go:build linux

package qdisc

import (
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

func TestEncodeShaping(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: fq limit 500 flow_limit 50 buckets 256 quantum 3000 initial_quantum 9000 maxrate 8mbit low_rate_threshold 800kbit nopacing refill_delay 40ms orphan_mask 255 timer_slack 10us horizon 10s horizon_drop
		"fq", true, qdisc("fq", "limit", 500, "flow_limit", 50, "buckets", 256, "quantum", 3000, "initial_quantum", 9000, "maxrate", 8_000_000, "low_rate_threshold", 800_000,
			"pacing", 0, "refill_delay", 40*ms, "orphan_mask", 255, "timer_slack", 10_000, "horizon", 10_000*ms, "horizon_drop", 1),
		`00000000 05000000 00001000 10001f07 00000000
		 07000100 66710000 74000280 08000100 f4010000 08000200 32000000 08000800
		 08000000 08000300 b80b0000 08000400 28230000 08000b00 a0860100 08000500
		 00000000 08000900 409c0000 08000a00 ff000000 08000d00 10270000 08000e00
		 80969800 05000f00 01000000 08000700 40420f00 08000c00 ffffffff`,
	}, {
		// tc qdisc change dev IF parent 71f:10 fq ... bands 3 priomap 0 1 2 0 1 2 0 1 2 0 1 2 0 1 2 0
		"fq in place", false, qdisc("fq", "limit", 500, "flow_limit", 50, "buckets", 256, "quantum", 3000, "initial_quantum", 9000, "low_rate_threshold", 800_000,
			"pacing", 1, "refill_delay", 40*ms, "orphan_mask", 255, "ce_threshold", 4*ms, "timer_slack", 10_000, "horizon", 10_000*ms, "horizon_drop", 0,
			"priomap", hierarchy.Pack([]uint64{0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0})),
		`00000000 05000000 00000000 10001f07 00000000
		 07000100 66710000 a4000280 08000100 f4010000 08000200 32000000 08000800
		 08000000 08000300 b80b0000 08000400 28230000 08000b00 a0860100 08000500
		 01000000 08000900 409c0000 08000a00 ff000000 08000d00 10270000 08000e00
		 80969800 05000f00 00000000 08000700 ffffffff 08000c00 a00f0000 18001000
		 03000000 00010200 01020001 02000102 00010200 10001100 00000900 00000300
		 00000100 08001200 00000000`,
	}, {
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
	}, {
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

// What becomes of policies at a place, for the kinds that shape or hold back.
func TestSettleShaping(t *testing.T) {
	const ms uint64 = 1_000_000
	fqPlain := []any{"limit", 10000, "flow_limit", 100, "buckets", 1024, "quantum", 3028, "initial_quantum", 15140, "low_rate_threshold", 550_000, "pacing", 1,
		"refill_delay", 40 * ms, "orphan_mask", 1023, "timer_slack", 10_000, "horizon", 10_000 * ms, "horizon_drop", 1}
	for _, tt := range []struct {
		name        string
		qdisc, want hierarchy.Qdisc
	}{
		{"fq", qdisc("fq"), qdisc("fq", fqPlain...)},
		{"fq with what it does anyway", qdisc("fq", "priomap", uint64(fqPriomapDefault), "weights", uint64(fqWeightsDefault), "offload_horizon", 999), qdisc("fq", fqPlain...)},
		{"fq rounds", qdisc("fq", "maxrate", 8_000_007, "refill_delay", 41*ms, "ce_threshold", 4_000_999, "horizon", 2_000_999),
			qdisc("fq", "limit", 10000, "flow_limit", 100, "buckets", 1024, "quantum", 3028, "initial_quantum", 15140, "maxrate", 8_000_000, "low_rate_threshold", 550_000, "pacing", 1,
				"refill_delay", 44*ms, "orphan_mask", 1023, "ce_threshold", 4_000_000, "timer_slack", 10_000, "horizon", 2_000_000, "horizon_drop", 1)},
		{"cake", qdisc("cake"), qdisc("cake", "autorate-ingress", 0, "rtt", 100*ms, "diffserv", 0, "flowmode", 7, "nat", 0, "wash", 0, "ack-filter", 0, "split-gso", 1, "raw", 1, "overhead", 0, "mpu", 0, "atm", 0, "ingress", 0, "fwmark", 0)},
		{"cake with an overhead of nothing", qdisc("cake", "bandwidth", 8_000_007, "overhead", 0),
			qdisc("cake", "bandwidth", 8_000_000, "autorate-ingress", 0, "rtt", 100*ms, "diffserv", 0, "flowmode", 7, "nat", 0, "wash", 0, "ack-filter", 0, "split-gso", 1, "raw", 0, "overhead", 0, "mpu", 0, "atm", 0, "ingress", 0, "fwmark", 0)},
		{"netem", qdisc("netem"), qdisc("netem", "limit", 1000)},
		{"netem with zeros", qdisc("netem", "delay", 0, "jitter", 3, "loss", 0, "loss_correlation", 5, "ecn", 0, "reorder", 0, "gap", 3, "slot_min", 0), qdisc("netem", "limit", 1000)},
		{"netem for long", qdisc("netem", "delay", 10_000*ms), qdisc("netem", "limit", 33048, "delay", 10_000*ms)},
		{"netem rounds", qdisc("netem", "delay", 1234567, "jitter", 1_000_003, "distribution", 1), qdisc("netem", "limit", 1000, "delay", 1234567, "jitter", 1_000_000, "distribution", 1)},
		{"netem with a uniform jitter", qdisc("netem", "delay", ms, "jitter", ms, "distribution", 0), qdisc("netem", "limit", 1000, "delay", ms, "jitter", ms)},
		{"netem without half a model", qdisc("netem", "loss_model", 1, "p13", 42949673), qdisc("netem", "limit", 1000, "loss_model", 1, "p13", 42949673, "p31", uint64(4252017622), "p32", 0, "p23", uint64(hierarchy.Whole), "p14", 0)},
		{"netem with p alone", qdisc("netem", "loss_model", 2, "p", 42949673), qdisc("netem", "limit", 1000, "loss_model", 2, "p", 42949673, "r", uint64(4252017622), "1-h", uint64(hierarchy.Whole), "1-k", 0)},
		{"netem out of order", qdisc("netem", "delay", ms, "reorder", 429496730), qdisc("netem", "limit", 1000, "delay", ms, "reorder", 429496730, "gap", 1)},
		{"netem in slots", qdisc("netem", "slot_min", ms), qdisc("netem", "limit", 1000, "slot_min", ms, "slot_max", ms)},
		{"netem in slots by distribution", qdisc("netem", "slot_distribution", 1, "slot_jitter", 1_000_003), qdisc("netem", "limit", 1000, "slot_distribution", 1, "slot_delay", 0, "slot_jitter", 1_000_000)},
	} {
		t.Run(tt.name, func(t *testing.T) {
			kinds := Kernel{known: map[*discipline]bool{}, ask: func(*discipline) (bool, error) { return true, nil }}
			place := Site{Rate: 10 * hierarchy.Mbit, Ceil: 20 * hierarchy.Mbit, MTU: 1514, Packet: 65536, HZ: 250}
			got := tt.qdisc
			if err := kinds.Settle(t.Context(), &got, place); err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Fatalf("(-want +got)\n%s", d)
			}
			lasting(t, got, place)
		})
	}
}

func TestVerifyShaping(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("fq", "buckets", 1024), ""},
		{qdisc("fq", "buckets", 1000), "buckets 1000 is no power of 2: write buckets = 1024"},
		{qdisc("cake", "bandwidth", 8000, "autorate-ingress", 0), ""},
		{qdisc("cake", "bandwidth", 8000, "autorate-ingress", 1), "autorate-ingress works the bandwidth out: give one of them"},
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

// What others set and no parameter can say differs from everything.
func TestDecodeForeignShaping(t *testing.T) {
	decode := func(kind string, put func(e *rtnl.Encoder)) []hierarchy.Setting {
		t.Helper()
		e := rtnl.Encoder{}
		put(&e)
		s, err := kindNamed(kind).decode(e.B)
		if err != nil {
			t.Errorf("%s: %v", kind, err)
		}
		return s
	}
	for _, tt := range []struct {
		name, kind string
		put        func(e *rtnl.Encoder)
	}{
		{"fq with large weights", "fq", func(e *rtnl.Encoder) {
			e.Attr(fqWeights, func() { e.Uint32(1 << 30); e.Uint32(1); e.Uint32(1) })
		}},
		{"cake with its own target", "cake", func(e *rtnl.Encoder) { e.Attr32(cakeRTT, 100_000); e.Attr32(cakeTarget, 1) }},
		{"netem with slots of an unknown table", "netem", func(e *rtnl.Encoder) {
			e.B = append(e.B, make([]byte, sizeofNetem)...)
			e.Attr(netemSlot, func() { e.B = append(e.B, make([]byte, 32)...); e.Uint64(1000) })
		}},
	} {
		if s := decode(tt.kind, tt.put); s != nil {
			t.Errorf("%s: %v", tt.name, s)
		}
	}
	// A seed that the kernel drew is nobody's wish.
	s := decode("netem", func(e *rtnl.Encoder) {
		e.B = append(e.B, make([]byte, sizeofNetem)...)
		e.Attr64(netemSeed, 1<<63)
	})
	if d := cmp.Diff([]hierarchy.Setting{{Name: "limit"}}, s); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}

// The tables are those that come with tc.
func TestDistributions(t *testing.T) {
	for kind, name := range distributionNames() {
		if kind == distUniform {
			continue
		}
		var want []int16
		for _, dir := range []string{"/usr/lib/x86_64-linux-gnu/tc", "/usr/lib/aarch64-linux-gnu/tc", "/usr/lib/tc", "/lib/tc"} {
			b, err := os.ReadFile(dir + "/" + name + ".dist")
			if err != nil {
				continue
			}
			_, numbers, _ := strings.Cut(string(b), "\n")
			for _, f := range strings.Fields(numbers) {
				n, err := strconv.ParseInt(f, 10, 16)
				if err != nil {
					t.Fatal(err)
				}
				want = append(want, int16(n))
			}
			break
		}
		tctest.Require(t, want != nil, "the tables of iproute2")
		if d := cmp.Diff(want, distTable(kind)); d != "" {
			t.Errorf("%s (-tc's +ours)\n%s", name, d)
		}
	}
}
