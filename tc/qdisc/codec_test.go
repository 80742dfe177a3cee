//go:build linux

package qdisc

import (
	"context"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// qdisc is a discipline with parameters in pairs of name and number.
func qdisc(kind string, params ...any) hierarchy.Qdisc {
	q := hierarchy.Qdisc{Kind: kind}
	for i := 0; i < len(params); i += 2 {
		v, ok := params[i+1].(uint64)
		if !ok {
			v = uint64(params[i+1].(int))
		}
		q.Params = append(q.Params, hierarchy.Setting{Name: params[i].(string), Value: v})
	}
	return q
}

// leafMessage is a leaf qdisc and the message that makes it, or changes it in
// place where fresh is false.
type leafMessage struct {
	name  string
	fresh bool
	qdisc hierarchy.Qdisc
	want  string
}

func goldenLeaves(t *testing.T, tests []leafMessage) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m, err := Encode(5, &hierarchy.Leaf{Class: hierarchy.ID(0x10), Qdisc: tt.qdisc}, tt.fresh)
			if err != nil {
				t.Fatal(err)
			}
			var flags netlink.HeaderFlags
			if tt.fresh {
				flags = netlink.Create | netlink.Replace
			}
			tctest.Golden(t, m, flags, tt.want)
		})
	}
}

func TestEncodeLeaf(t *testing.T) {
	const ms uint64 = 1_000_000
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: pfifo limit 50
		"pfifo", true, qdisc("pfifo", "limit", 50),
		`00000000 05000000 00001000 10001f07 00000000
		 0a000100 70666966 6f000000
		 08000280 32000000`,
	}, {
		// tc qdisc change dev IF parent 71f:10 bfifo limit 4294967295
		"bfifo in place", false, qdisc("bfifo", "limit", uint64(4294967295)),
		`00000000 05000000 00000000 10001f07 00000000
		 0a000100 62666966 6f000000
		 08000280 ffffffff`,
	}, {
		// tc qdisc replace dev IF parent 71f:10 handle 10: sfq limit 500 perturb 10 quantum 1514 flows 127 divisor 1024 depth 64 headdrop
		"sfq", true, qdisc("sfq", "limit", 500, "perturb", 10_000*ms, "quantum", 1514, "flows", 127, "divisor", 1024, "depth", 64, "headdrop", 1),
		`00000000 05000000 00001000 10001f07 00000000
		 08000100 73667100
		 4c000280 ea050000 0a000000 f4010000 00040000 7f000000
		 40000000 01000000 00000000 00000000 00000000 00000000 00000000
		 00000000 00000000 00000000 00000000 00000000 00000000`,
	}, {
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
	}, {
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

func TestEncodeLeafRefused(t *testing.T) {
	for _, tt := range []struct {
		name  string
		class hierarchy.ClassID
		qdisc hierarchy.Qdisc
		want  string
	}{
		{"unknown kind", hierarchy.ID(2), qdisc("wfq"), `qdisc "wfq" cannot be made`},
		{"not settled", hierarchy.ID(2), qdisc("pfifo"), "qdisc pfifo has no limit: it was not settled"},
		{"the root's handle", hierarchy.ID(0x71f), qdisc("pfifo", "limit", 1), "class 71f:71f cannot have a qdisc: its handle would be another's"},
		{"clsact's handle", hierarchy.ID(0xffff), qdisc("pfifo", "limit", 1), "class 71f:ffff cannot have a qdisc: its handle would be another's"},
		{"a burst of years", hierarchy.ID(2), qdisc("tbf", "rate", 8000, "burst", 5000, "limit", 1), "burst 5kb is more than tbf can count at 8kbit: at most 4294b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Encode(5, &hierarchy.Leaf{Class: tt.class, Qdisc: tt.qdisc}, true)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// allKinds are the names of all kinds, in order.
func allKinds() string {
	var names []string
	for _, d := range disciplines {
		names = append(names, d.Name)
	}
	return strings.Join(names, ", ")
}

// Policies and what becomes of them at a place, for every kind.
func TestSettleQdisc(t *testing.T) {
	const ms uint64 = 1_000_000
	all := disciplines
	place := Site{10 * hierarchy.Mbit, 20 * hierarchy.Mbit, 1514, 65536, 250}
	for _, tt := range []struct {
		name       string
		kinds      []*discipline // that the kernel has
		qdisc      hierarchy.Qdisc
		want       hierarchy.Qdisc
		wantErr    string
		notSupport bool
	}{
		{name: "best default", kinds: all, want: qdisc("fq_codel", "limit", 10240, "memory_limit", 4<<20, "flows", 1024, "target", 5*ms, "interval", 100*ms, "quantum", 1514, "ecn", 1, "drop_batch", 64)},
		{name: "default without fq_codel", kinds: []*discipline{&sfq, &bfifo}, want: qdisc("sfq", "limit", 32, "perturb", 10_000*ms, "quantum", 1514, "flows", 32, "divisor", 1024, "depth", 127, "headdrop", 0)},
		{name: "default without either", kinds: []*discipline{&tbf, &bfifo}, want: qdisc("bfifo", "limit", 89760)},
		{name: "no kind at all", wantErr: "queueing is not supported by this kernel: use one with CONFIG_NET_SCHED", notSupport: true},
		{name: "kind is missing", kinds: []*discipline{&pfifo, &bfifo}, qdisc: qdisc("fq_codel"), wantErr: `qdisc "fq_codel" is not supported by this kernel (module sch_fq_codel): use bfifo, pfifo`, notSupport: true},
		{name: "kind that cannot be made", kinds: all, qdisc: qdisc("wfq"), wantErr: `qdisc "wfq" is not supported by this kernel: use ` + allKinds(), notSupport: true},
		{name: "pfifo", kinds: all, qdisc: qdisc("pfifo"), want: qdisc("pfifo", "limit", 32)},
		{name: "pfifo with a limit", kinds: all, qdisc: qdisc("pfifo", "limit", 7), want: qdisc("pfifo", "limit", 7)},
		{name: "sfq cuts", kinds: all, qdisc: qdisc("sfq", "limit", 60000, "flows", 500, "divisor", 256, "depth", 10, "headdrop", 1), want: qdisc("sfq", "limit", 2560, "perturb", 10_000*ms, "quantum", 1514, "flows", 256, "divisor", 256, "depth", 10, "headdrop", 1)},
		{name: "sfq too small", kinds: all, qdisc: qdisc("sfq", "flows", 1, "depth", 1), wantErr: "qdisc sfq: 1 packets in all (depth times flows) are too few"},
		{name: "fq_codel rounds", kinds: all, qdisc: qdisc("fq_codel", "target", 1234567, "ce_threshold", 3*ms, "ce_threshold_selector", 1, "ce_threshold_mask", 3), want: qdisc("fq_codel", "limit", 10240, "memory_limit", 4<<20, "flows", 1024, "target", 1234*1000, "interval", 100*ms, "quantum", 1514, "ecn", 1, "drop_batch", 64, "ce_threshold", 3*ms, "ce_threshold_selector", 1, "ce_threshold_mask", 3)},
		{name: "tbf", kinds: all, qdisc: qdisc("tbf", "rate", 8_000_007), want: qdisc("tbf", "rate", 8_000_000, "burst", 262144, "limit", 269144)},
		{name: "tbf by latency", kinds: all, qdisc: qdisc("tbf", "rate", 8_000_000, "burst", 20000, "latency", 30*ms, "overhead", 0), want: qdisc("tbf", "rate", 8_000_000, "burst", 20000, "limit", 50000)},
		{name: "tbf with a peak", kinds: all, qdisc: qdisc("tbf", "rate", 8_000_000, "limit", 1000, "peakrate", 80_000_000, "linklayer", 1), want: qdisc("tbf", "rate", 8_000_000, "burst", 262144, "limit", 1000, "peakrate", 80_000_000, "mtu", 10000, "linklayer", 1)},
		{name: "tbf too slow", kinds: all, qdisc: qdisc("tbf", "rate", 800), wantErr: "qdisc tbf: 800bit is too slow: tbf counts to 429b then, and a packet counts as up to 1514b"},
		{name: "tbf with a small burst", kinds: all, qdisc: qdisc("tbf", "rate", 8_000_000, "burst", 1500), wantErr: "qdisc tbf: burst 1500b is below 1514b, which a packet may count as: it would never be sent"},
		{name: "tbf with a large mpu", kinds: all, qdisc: qdisc("tbf", "rate", 8_000_000, "burst", 3000, "mpu", 5000), wantErr: "qdisc tbf: burst 3kb is below 5kb, which a packet may count as: it would never be sent"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := tt.qdisc
			kinds := Kernel{known: map[*discipline]bool{}, ask: func(d *discipline) (bool, error) { return slices.Contains(tt.kinds, d), nil }}
			err := kinds.Settle(t.Context(), &got, place)
			if err != nil || tt.wantErr != "" {
				if err == nil || err.Error() != tt.wantErr || errors.Is(err, rtnl.ErrNotSupported) != tt.notSupport {
					t.Errorf("got %v, want %s", err, tt.wantErr)
				}
				return
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Fatalf("(-want +got)\n%s", d)
			}
			lasting(t, got, place)
		})
	}
}

// Once the context has ended the kernel is asked for no further kind.
func TestAskEnds(t *testing.T) {
	ctx, end := context.WithCancel(t.Context())
	asked := 0
	k := Kernel{known: map[*discipline]bool{}, ask: func(*discipline) (bool, error) {
		asked++
		end()
		return false, nil
	}}
	if _, _, err := k.Leaves(ctx); !errors.Is(err, context.Canceled) || asked != 1 {
		t.Errorf("asked for %d kinds: %v", asked, err)
	}
	if err := k.Settle(ctx, &hierarchy.Qdisc{}, Site{}); !errors.Is(err, context.Canceled) {
		t.Errorf("settled: %v", err)
	}
}

// lasting checks that a qdisc settled once is settled for good, and comes back from
// the codec.
func lasting(t *testing.T, q hierarchy.Qdisc, s Site) {
	t.Helper()
	again, err := kindNamed(q.Kind).settle(q, s)
	if d := cmp.Diff(q.Params, again); err != nil || d != "" {
		t.Errorf("settled again: %v (-want +got)\n%s", err, d)
	}
	if d := cmp.Diff(q, roundTrip(t, q)); d != "" {
		t.Errorf("decoded (-want +got)\n%s", d)
	}
}

// roundTrip encodes a leaf qdisc and decodes it as if the kernel had kept it.
func roundTrip(t *testing.T, q hierarchy.Qdisc) hierarchy.Qdisc {
	t.Helper()
	m, err := Encode(5, &hierarchy.Leaf{Class: hierarchy.ID(0x10), Qdisc: q}, true)
	if err != nil {
		t.Fatal(err)
	}
	x, err := rtnl.DecodeQdisc(m.Data)
	if err != nil {
		t.Fatal(err)
	}
	x.Options = kept(q.Kind, x.Options)
	got, err := Decode(&x)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// kept is what a kind shows after it was given options: its times in whole units
// of a power of two of nanoseconds, and no threshold that is switched off
// (fq_codel_change, codel_change and pie_change, and their dump functions,
// net/sched, v6.12).
func kept(kind string, options []byte) []byte {
	shifts := map[string]map[uint16]int{
		"fq_codel": {fqCodelTarget: 10, fqCodelInterval: 10, fqCodelCEThreshold: 10},
		"codel":    {codelTargetAttr: 10, codelIntervalAttr: 10, codelCEThresholdAttr: 10},
		"pie":      {pieTarget: 6},
		"fq_pie":   {fqPieTarget: 6},
	}[kind]
	if shifts == nil {
		return options
	}
	e := rtnl.Encoder{}
	_ = rtnl.EachAttr(options, func(typ uint16, v []byte) error {
		shift, ok := shifts[typ]
		if !ok {
			e.Attr(typ, func() { e.B = append(e.B, v...) })
			return nil
		}
		if us := binary.NativeEndian.Uint32(v); us != codelOff {
			e.Attr32(typ, uint32(uint64(us)*1000>>shift<<shift/1000))
		}
		return nil
	})
	return e.B
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

func TestKinds(t *testing.T) {
	for _, k := range Kinds() {
		t.Run(k.Name, func(t *testing.T) {
			if k.Help == "" || strings.HasSuffix(k.Help, ".") {
				t.Errorf("help %q", k.Help)
			}
			for _, p := range k.Params {
				if p.Help == "" || strings.HasSuffix(p.Help, ".") || p.Max != 0 && int64(p.Min) > int64(p.Max) || (p.Type == hierarchy.Choice) != (len(p.Choices) > 0) {
					t.Errorf("parameter %+v", p)
				}
			}
		})
	}
}

// verified is a qdisc as a policy may have it, and what is said against it.
type verified struct {
	qdisc hierarchy.Qdisc
	want  string
}

func verifyAll(t *testing.T, tests []verified) {
	t.Helper()
	for _, tt := range tests {
		got := ""
		if err := kindNamed(tt.qdisc.Kind).Verify(tt.qdisc); err != nil {
			got = err.Error()
		}
		if got != tt.want {
			t.Errorf("%v: got %q, want %q", tt.qdisc, got, tt.want)
		}
	}
}

func TestVerify(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("sfq", "divisor", 1024), ""},
		{qdisc("sfq", "divisor", 1000), "divisor 1000 is no power of 2: write divisor = 1024"},
		{qdisc("sfq", "perturb", 1500_000_000), "perturb 1.5s is no whole number of seconds"},
		{qdisc("fq_codel", "ce_threshold", 1000_000), ""},
		{qdisc("fq_codel", "ce_threshold", 1000_000, "ce_threshold_mask", 1), "ce_threshold_selector and ce_threshold_mask go together: give both or none"},
		{qdisc("fq_codel", "ce_threshold_selector", 1, "ce_threshold_mask", 1), "ce_threshold_mask says which packets ce_threshold is for: give ce_threshold too"},
		{qdisc("tbf"), `tbf needs a rate: write rate = "10mbit"`},
		{qdisc("tbf", "rate", 8000, "limit", 1, "latency", 1), "limit and latency say the same thing: give one of them"},
		{qdisc("tbf", "rate", 8000, "peakrate", 8007), "peakrate 8007bit is not above rate 8kbit"},
		{qdisc("tbf", "rate", 8000, "mtu", 1600), "mtu is the burst of peakrate: give peakrate too"},
		{qdisc("tbf", "rate", 8000, "burst", 1<<20), "burst 1mib is more than tbf can count at 8kbit: at most 4294b"},
		{qdisc("tbf", "rate", 8000), ""},
	})
}

func FuzzDecodeQdisc(f *testing.F) {
	seeds := []hierarchy.Qdisc{
		qdisc("red", "limit", 4000, "min", 300, "max", 900, "ewma", 3, "scell_log", 9, "probability", 1, "ecn", 1, "harddrop", 0, "nodrop", 1, "adaptive", 0),
		qdisc("sfq", "limit", 500, "perturb", 0, "quantum", 1514, "flows", 127, "divisor", 1024, "depth", 64, "headdrop", 1, "min", 300, "max", 900, "ewma", 3, "probability", 1, "ecn", 1, "harddrop", 1),
		qdisc("sfq", "limit", 500, "perturb", 0, "quantum", 1514, "flows", 127, "divisor", 1024, "depth", 64, "headdrop", 1),
		qdisc("tbf", "rate", uint64(40_000_000_000), "burst", 1<<20, "limit", 4<<20, "peakrate", uint64(50_000_000_000), "mtu", 1<<20, "mpu", 64, "overhead", 4, "linklayer", 1),
		qdisc("fq_codel", "limit", 1, "memory_limit", 1<<20, "flows", 1024, "target", 5_000_000, "interval", 100_000_000, "quantum", 300, "ecn", 0, "drop_batch", 1, "ce_threshold", 1_000_000, "ce_threshold_selector", 1, "ce_threshold_mask", 3),
		qdisc("fq", "limit", 1, "flow_limit", 1, "buckets", 2, "quantum", 256, "initial_quantum", 1, "low_rate_threshold", 8, "pacing", 1, "refill_delay", 0, "orphan_mask", 1, "timer_slack", 1, "horizon", 1000, "horizon_drop", 1, "priomap", uint64(1), "weights", uint64(fqWeightsDefault+1)),
		qdisc("cake", "bandwidth", 8000, "autorate-ingress", 0, "rtt", 1000, "diffserv", 1, "flowmode", 1, "nat", 1, "wash", 1, "ack-filter", 1, "split-gso", 1, "raw", 1, "overhead", 1, "mpu", 1, "atm", 1, "memlimit", 1, "ingress", 1, "fwmark", 1),
		qdisc("netem", "limit", 1, "delay", 5, "jitter", 4, "loss_model", 1, "p13", 1, "p31", 1, "p32", 1, "p23", 1, "p14", 1, "slot_distribution", 1, "slot_delay", 1, "slot_jitter", 8, "seed", 1),
		qdisc("netem", "limit", 1, "loss_model", 2, "p", 1, "r", 1, "1-h", 1, "1-k", 1, "rate", uint64(40_000_000_000), "slot_min", 1, "slot_max", 1, "slot_packets", 1),
	}
	for _, d := range disciplines {
		q, err := Defaults(d.Name, hierarchy.Gbit)
		if err != nil {
			f.Fatal(err)
		}
		seeds = append(seeds, q)
	}
	for _, q := range seeds {
		m, err := Encode(1, &hierarchy.Leaf{Class: hierarchy.ID(2), Qdisc: q}, true)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(m.Data)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := rtnl.DecodeQdisc(b)
		if err != nil {
			return
		}
		q, err := Decode(&x)
		if err != nil || q.Params == nil {
			return
		}
		k := kindNamed(q.Kind)
		names := []string{}
		for _, p := range k.Params {
			if slices.ContainsFunc(q.Params, func(s hierarchy.Setting) bool { return s.Name == p.Name }) {
				names = append(names, p.Name)
			}
		}
		if len(names) != len(q.Params) {
			t.Fatalf("%+v: unknown or doubled parameters", q)
		}
		k.Sort(q.Params)
		for i, n := range names {
			if q.Params[i].Name != n {
				t.Fatalf("%+v: not in the order of the kind", q)
			}
		}
	})
}
