//go:build linux

package qdisc

import (
	"fmt"
	"math"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

func TestEncodeKinds(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: pfifo_head_drop limit 50
		"pfifo_head_drop", true, qdisc("pfifo_head_drop", "limit", 50),
		`00000000 05000000 00001000 10001f07 00000000 14000100 70666966 6f5f6865
		 61645f64 726f7000 08000280 32000000`,
	}, {
		// tc qdisc replace dev IF parent 71f:10 handle 10: skbprio limit 50
		"skbprio", true, qdisc("skbprio", "limit", 50),
		`00000000 05000000 00001000 10001f07 00000000 0c000100 736b6270 72696f00
		 08000280 32000000`,
	}, {
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
	}, {
		// tc qdisc replace dev IF parent 71f:10 handle 10: pie limit 1000 target 15ms tupdate 16ms alpha 2 beta 20 ecn nobytemode dq_rate_estimator
		"pie", true, qdisc("pie", "limit", 1000, "target", 15*ms, "tupdate", 16*ms, "alpha", 2, "beta", 20, "ecn", 1, "bytemode", 0, "dq_rate_estimator", 1),
		`00000000 05000000 00001000 10001f07 00000000 08000100 70696500 44000280
		 08000200 e8030000 08000100 983a0000 08000300 803e0000 08000400 02000000
		 08000500 14000000 08000600 01000000 08000700 00000000 08000800 01000000`,
	}, {
		// tc qdisc change dev IF parent 71f:10 fq_pie limit 10240 target 15ms tupdate 16ms alpha 2 beta 20 ...
		"fq_pie in place", false, qdisc("fq_pie", "limit", 10240, "flows", 1024, "target", 15*ms, "tupdate", 16*ms, "alpha", 2, "beta", 20, "ecn", 1, "bytemode", 0, "dq_rate_estimator", 0, "quantum", 1514, "memory_limit", 32<<20, "ecn_prob", 10),
		`00000000 05000000 00000000 10001f07 00000000 0b000100 66715f70 69650000
		 5c000280 08000100 00280000 08000300 983a0000 08000400 803e0000 08000500
		 02000000 08000600 14000000 08000a00 01000000 08000b00 00000000 08000c00
		 00000000 08000700 ea050000 08000800 00000002 08000900 0a000000`,
	}, {
		// tc qdisc replace dev IF parent 71f:10 handle 10: hhf limit 1000 quantum 1514 hh_limit 2048 reset_timeout 40ms admit_bytes 131072 evict_timeout 1s non_hh_weight 2
		"hhf", true, qdisc("hhf", "limit", 1000, "quantum", 1514, "hh_limit", 2048, "reset_timeout", 40*ms, "admit_bytes", 128<<10, "evict_timeout", 1000*ms, "non_hh_weight", 2),
		`00000000 05000000 00001000 10001f07 00000000 08000100 68686600 3c000280
		 08000100 e8030000 08000200 ea050000 08000300 00080000 08000400 409c0000
		 08000500 00000200 08000600 40420f00 08000700 02000000`,
	}, {
		// tc qdisc replace dev IF parent 71f:10 handle 10: red limit 400000 min 30000 max 90000 avpkt 1000 burst 55 bandwidth 10mbit probability 0.02 ecn adaptive
		"red", true, qdisc("red", "limit", 400000, "min", 30000, "max", 90000, "ewma", 5, "scell_log", 15, "ecn", 1, "harddrop", 0, "nodrop", 0, "adaptive", 1),
		`00000000 05000000 00001000 10001f07 00000000 08000100 72656400 24010280
		 14000100 801a0600 30750000 905f0100 05160f05 04010200 00000000 00000000
		 00000000 01010101 01010101 01010101 02020202 02020202 02020202 03030303
		 03030303 03030304 04040404 04040404 04040405 05050505 05050505 05050506
		 06060606 06060606 06060707 07070707 07070707 07070808 08080808 08080808
		 08080909 09090909 09090909 090a0a0a 0a0a0a0a 0a0a0a0a 0a0b0b0b 0b0b0b0b
		 0b0b0b0b 0b0c0c0c 0c0c0c0c 0c0c0c0c 0d0d0d0d 0d0d0d0d 0d0d0d0d 0e0e0e0e
		 0e0e0e0e 0e0e0e0e 0f0f0f0f 0f0f0f0f 0f0f0f10 10101010 10101010 10101011
		 11111111 11111111 11111112 12121212 12121212 12121313 13131313 13131313
		 13131414 14141414 14141414 14141515 15151515 1515151f 08000300 52b81e05`,
	}, {
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
	}, {
		// tc qdisc replace dev IF parent 71f:10 handle 10: sfb limit 1000 max 25 target 20 increment 0.0005 decrement 0.00005 penalty_rate 10 penalty_burst 20 rehash 600000 db 60000
		"sfb", true, qdisc("sfb", "limit", 1000, "max", 25, "target", 20, "increment", 33*sfbStep, "decrement", 3*sfbStep, "penalty_rate", 10, "penalty_burst", 20, "rehash", 600_000*ms, "db", 60_000*ms),
		`00000000 05000000 00001000 10001f07 00000000 08000100 73666200 2c000280
		 28000100 c0270900 60ea0000 19000000 14000000 21000000 03000000 e8030000
		 0a000000 14000000`,
	}, {
		// tc qdisc replace dev IF parent 71f:10 handle 10: sfq limit 500 ... redflowlimit 360000 min 30000 max 90000 avpkt 1000 burst 55 probability 0.02 ecn harddrop
		"sfq with RED", true, qdisc("sfq", "limit", 500, "perturb", 10_000*ms, "quantum", 1514, "flows", 127, "divisor", 1024, "depth", 64, "headdrop", 0, "min", 30000, "max", 90000, "ewma", 5, "probability", 85899346, "ecn", 1, "harddrop", 1),
		`00000000 05000000 00001000 10001f07 00000000 08000100 73667100 4c000280
		 ea050000 0a000000 f4010000 00040000 7f000000 40000000 00000000 407e0500
		 30750000 905f0100 05160003 52b81e05 00000000 00000000 00000000 00000000
		 00000000 00000000`,
	}})
}

// nodrop goes by another way than the rest of red's flags.
func TestEncodeREDFlags(t *testing.T) {
	for _, tt := range []struct {
		qdisc hierarchy.Qdisc
		old   uint64
		attr  []byte
	}{
		{qdisc("red", "limit", 4, "min", 1, "max", 2, "ewma", 1, "scell_log", 1, "ecn", 1, "harddrop", 1, "adaptive", 1), redECN | redHardDrop | redAdaptive, nil},
		{qdisc("red", "limit", 4, "min", 1, "max", 2, "ewma", 1, "scell_log", 1, "ecn", 1, "nodrop", 1), 0, []byte{9, 0, 0, 0, 15, 0, 0, 0}},
	} {
		e := rtnl.Encoder{}
		if err := red.encode(&e, tt.qdisc, true); err != nil {
			t.Fatal(err)
		}
		var attr []byte
		var old uint64
		if err := rtnl.EachAttr(e.B, func(typ uint16, v []byte) error {
			switch typ {
			case redParmsAttr:
				p, err := decodeRED(v)
				old = p.flags
				return err
			case redFlagsAttr:
				attr = v
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.attr, attr); d != "" || old != tt.old {
			t.Errorf("%v: flags %x, attribute (-want +got)\n%s", tt.qdisc, old, d)
		}
	}
}

// Whatever the place, defaults are settled for good, can be made, and come back.
func TestSettleAnywhere(t *testing.T) {
	for _, d := range disciplines {
		for _, rate := range []hierarchy.Bandwidth{8, 800, 64 * hierarchy.Kbit, hierarchy.Mbit, 100 * hierarchy.Mbit, hierarchy.Gbit, 400 * hierarchy.Gbit, hierarchy.MaxBandwidth} {
			for _, mtu := range []hierarchy.Size{82, 1514, 65549} {
				t.Run(fmt.Sprintf("%s %v %v", d.Name, rate, mtu), func(t *testing.T) {
					s := Site{Rate: rate, Ceil: rate, MTU: mtu, Packet: 65549, HZ: 300}
					q := hierarchy.Qdisc{Kind: d.Name}
					if d == &tbf {
						if rate < hierarchy.Mbit || rate == hierarchy.MaxBandwidth {
							return // its burst is less than a packet, or more than a size can be
						}
						q = qdisc("tbf", "rate", uint64(rate))
					}
					var err error
					if q.Params, err = d.settle(q, s); err != nil {
						t.Fatal(err)
					}
					for _, x := range q.Params {
						p := d.Param(x.Name)
						if _, err := p.Parse(hierarchy.RawParam{Name: x.Name, Text: p.Format(x.Value), Quoted: p.Type != hierarchy.Count && p.Type != hierarchy.Flag && p.Type != hierarchy.Signed}); err != nil {
							t.Errorf("what is chosen could not be written: %v", err)
						}
					}
					if d.Verify != nil {
						if err := d.Verify(q); err != nil {
							t.Errorf("what is chosen could not be written together: %v", err)
						}
					}
					lasting(t, q, s)
				})
			}
		}
	}
}

func TestSettleKinds(t *testing.T) {
	const ms uint64 = 1_000_000
	place := Site{Rate: 10 * hierarchy.Mbit, Ceil: 20 * hierarchy.Mbit, MTU: 1514, Packet: 65536, HZ: 250}
	redPlain := func(params ...any) hierarchy.Qdisc {
		return qdisc("red", append(params, "ecn", 0, "harddrop", 0, "nodrop", 0, "adaptive", 0)...)
	}
	for _, tt := range []struct {
		name    string
		qdisc   hierarchy.Qdisc
		want    hierarchy.Qdisc
		wantErr string
	}{
		{"pie rounds", qdisc("pie", "target", 8_009_000, "tupdate", 17*ms), qdisc("pie", "limit", 1000, "target", 8_008_000, "tupdate", 20*ms, "alpha", 2, "beta", 20, "ecn", 0, "bytemode", 0, "dq_rate_estimator", 0), ""},
		{"hhf rounds", qdisc("hhf", "reset_timeout", ms, "evict_timeout", 5*ms), qdisc("hhf", "limit", 1000, "quantum", 1514, "hh_limit", 2048, "reset_timeout", 4*ms, "admit_bytes", 131072, "evict_timeout", 8*ms, "non_hh_weight", 2), ""},
		{"hhf with too large a weight", qdisc("hhf", "quantum", 1<<20, "non_hh_weight", 2048), hierarchy.Qdisc{}, "non_hh_weight 2048 times quantum 1mib is more than 2147483647b"},
		{"red", qdisc("red"), redPlain("limit", 96896, "min", 8074, "max", 24224, "ewma", 3, "scell_log", 13, "probability", 85899346), ""},
		{"red by limit", qdisc("red", "limit", 400_000), redPlain("limit", 400_000, "min", 33333, "max", 100_000, "ewma", 5, "scell_log", 15, "probability", 85899346), ""},
		{"red by min", qdisc("red", "min", 30_000), redPlain("limit", 360_000, "min", 30_000, "max", 90_000, "ewma", 5, "scell_log", 15, "probability", 85899346), ""},
		{"red by min and limit", qdisc("red", "min", 30_000, "limit", 60_000), redPlain("limit", 60_000, "min", 30_000, "max", 60_000, "ewma", 3, "scell_log", 13, "probability", 85899346), ""},
		// tc-red(8): limit 400000 min 30000 max 90000 avpkt 1000 burst 55 bandwidth 10Mbit
		{"red of the manual", qdisc("red", "limit", 400_000, "min", 30_000, "max", 90_000, "avpkt", 1000, "burst", 55, "bandwidth", 10_000_000), redPlain("limit", 400_000, "min", 30_000, "max", 90_000, "ewma", 5, "scell_log", 15, "probability", 85899346), ""},
		{"red that is too small", qdisc("red", "limit", 4), hierarchy.Qdisc{}, "min 1 is not below max 1: give a larger limit"},
		{"red with a short burst", qdisc("red", "min", 30_000, "avpkt", 1000, "burst", 28), hierarchy.Qdisc{}, "burst 28 is less than the packets that fit below min: at least 30"},
		{"red with a long burst", qdisc("red", "max", 100_000_000, "burst", 100_000), hierarchy.Qdisc{}, "burst 100000 makes ewma 18, more than the kernel can count with: at most 4"},
		{"red with a large ewma", qdisc("red", "max", 100_000_000, "ewma", 5), hierarchy.Qdisc{}, "ewma 5 is more than the kernel can count with: at most 4"},
		{"choke", qdisc("choke"), qdisc("choke", "limit", 128, "min", 10, "max", 32, "ewma", 4, "scell_log", 13, "probability", 85899346, "ecn", 0), ""},
		{"choke with a large min", qdisc("choke", "min", 100_000), qdisc("choke", "limit", chokeLimit, "min", 100_000, "max", chokeLimit, "ewma", 14, "scell_log", 23, "probability", 85899346, "ecn", 0), ""},
		{"sfb by target", qdisc("sfb", "target", 10, "increment", 42949673, "rehash", 30*ms), qdisc("sfb", "limit", 1000, "max", 12, "target", 10, "increment", 655*sfbStep, "decrement", 3*sfbStep, "penalty_rate", 10, "penalty_burst", 20, "rehash", 40*ms, "db", 40*ms), ""},
		{"sfq with RED", qdisc("sfq", "redflowlimit", 60_000), qdisc("sfq", "limit", 32, "perturb", 10_000*ms, "quantum", 1514, "flows", 32, "divisor", 1024, "depth", 127, "headdrop", 0, "min", 5000, "max", 15_000, "ewma", 3, "probability", 85899346, "ecn", 0, "harddrop", 0), ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := kindNamed(tt.qdisc.Kind)
			got := tt.qdisc
			var err error
			got.Params, err = d.settle(tt.qdisc, place)
			if err != nil || tt.wantErr != "" {
				if err == nil || err.Error() != tt.wantErr {
					t.Errorf("got %v, want %s", err, tt.wantErr)
				}
				return
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Fatalf("(-want +got)\n%s", diff)
			}
			lasting(t, got, place)
		})
	}
}

func TestVerifyKinds(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("red", "min", 20_000, "max", 15_000), "min 20kb is not below max 15kb"},
		{qdisc("red", "limit", 20_000, "max", 30_000), "max 30kb is above limit 20kb"},
		{qdisc("choke", "limit", 20, "min", 20), "min 20 is not below limit 20"},
		{qdisc("red", "burst", 20, "ewma", 3), "burst and ewma say the same thing: give one of them"},
		{qdisc("red", "bandwidth", 800, "scell_log", 3), "bandwidth and scell_log say the same thing: give one of them"},
		{qdisc("red", "harddrop", 1), "harddrop is about packets that ecn would mark: give ecn = true too"},
		{qdisc("red", "nodrop", 1, "ecn", 0), "nodrop is about packets that ecn cannot mark: give ecn = true too"},
		{qdisc("red", "ecn", 1, "nodrop", 1, "adaptive", 1), "the kernel does not adapt together with nodrop: give one of them"},
		{qdisc("red", "probability", 1, "adaptive", 1), "adaptive finds the probability by itself: leave one of them out"},
		{qdisc("red", "probability", 1, "adaptive", 0, "ecn", 1, "harddrop", 1), ""},
		{qdisc("sfq", "redflowlimit", 10_000, "max", 20_000), "max 20kb is above redflowlimit 10kb"},
		{qdisc("sfb", "target", 30, "max", 20), "target 30 is above max 20"},
		{qdisc("sfb", "rehash", 1_000_000_000, "db", 2_000_000_000), "db 2s is longer than rehash 1s"},
		{qdisc("sfb", "rehash", 0, "db", 0), ""},
	})
}

func TestPIETimes(t *testing.T) {
	for us := uint64(10); us < 4_000_000; us += 1 + us/997 {
		settled := pieRound(us * 1000)
		shown := uint32(settled >> 6 << 6 / 1000)
		if pieShown(shown) != settled || pieRound(settled) != settled || us*1000-settled > 1000 {
			t.Fatalf("%d µs: settled %d ns, shown %d µs, read as %d ns", us, settled, shown, pieShown(shown))
		}
	}
}

func TestTicked(t *testing.T) {
	for _, hz := range []uint64{100, 250, 300, 1000} {
		s := Site{HZ: hz}
		for us := uint64(1); us < 4_000_000; us += 1 + us/997 {
			settled := s.ticked(us * 1000)
			if s.ticked(settled) != settled || settled+1000 < us*1000 || settled > us*1000+1_000_000_000/hz {
				t.Fatalf("%d µs at %d Hz: %d ns", us, hz, settled)
			}
		}
	}
}

// The words that tc gets come to the same numbers again.
func TestREDWords(t *testing.T) {
	for _, start := range []float64{8, 30, 33.4, 1000} {
		for ewma := uint64(1); ewma <= 30; ewma++ {
			if got := redEWMA(start, redBurst(start, ewma)); got != ewma {
				t.Errorf("min of %v packets, ewma %d: burst %d makes %d", start, ewma, redBurst(start, ewma), got)
			}
		}
	}
	for _, ewma := range []uint64{1, 2, 5, 9, 20} {
		r := redQueue{redThresholds: redThresholds{ewma: ewma}, avpkt: 1000}
		for cell := uint64(0); cell < 32; cell++ {
			// What takes less than a microsecond cannot be said, nor what takes
			// much longer than a packet at some bytes/s.
			us := redCells * float64(uint64(1)<<cell) / r.fading() / ticksPerMicro
			if cell > 0 && (us < 3 || us > 1e8) {
				continue
			}
			if got := r.cell(r.bandwidthOf(cell)); got != cell {
				t.Errorf("ewma %d, scell_log %d: bandwidth %v makes %d", ewma, cell, r.bandwidthOf(cell), got)
			}
		}
	}
}

func TestREDTable(t *testing.T) {
	table := redTable()
	for i, v := range table {
		if v > 31 || i > 0 && v < table[i-1] {
			t.Errorf("cell %d is %d", i, v)
		}
	}
	if table[0] != 0 || table[255] != 31 || table[128] != byte(math.Floor(128*31/362.04)) {
		t.Errorf("%v", table)
	}
}
