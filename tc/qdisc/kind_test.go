//go:build linux

package qdisc

import (
	"encoding/binary"
	"errors"
	"fmt"
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

// place is where the tables of this package's tests settle.
var place = Site{Rate: 10 * hierarchy.Mbit, Ceil: 20 * hierarchy.Mbit, MTU: 1514, Packet: 65536, HZ: 250}

// settling is a policy and what becomes of it at the place, or why nothing does.
type settling struct {
	name        string
	qdisc, want hierarchy.Qdisc
	wantErr     string
}

func settleAll(t *testing.T, tests []settling) {
	t.Helper()
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			all := Kernel{known: map[*discipline]bool{}, ask: func(*discipline) (bool, error) { return true, nil }}
			got := tt.qdisc
			err := all.Settle(t.Context(), &got, place)
			if err != nil || tt.wantErr != "" {
				if want := "qdisc " + tt.qdisc.Kind + ": " + tt.wantErr; err == nil || err.Error() != want || errors.Is(err, rtnl.ErrNotSupported) {
					t.Errorf("got %v, want %s", err, want)
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

// decoded is what is made of the options that another hand may have put.
func decoded(t *testing.T, kind string, put func(e *rtnl.Encoder)) []hierarchy.Setting {
	t.Helper()
	e := rtnl.Encoder{}
	put(&e)
	s, err := kindNamed(kind).decode(e.B)
	if err != nil {
		t.Errorf("%s: %v", kind, err)
	}
	return s
}

// foreign holds that what no parameter can say differs from everything.
func foreign(t *testing.T, kind string, put func(e *rtnl.Encoder)) {
	t.Helper()
	if s := decoded(t, kind, put); s != nil {
		t.Errorf("%s: %v", kind, s)
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
