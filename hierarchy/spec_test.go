package hierarchy_test

import (
	"encoding/json"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// TestSpecJSON holds that a specification says the same after it was written down.
func TestSpecJSON(t *testing.T) {
	prio := uint8(0)
	amount := func(s string) Amount {
		a, err := ParseAmount(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	unit, err := bind.Parse("unit:nginx.service")
	if err != nil {
		t.Fatal(err)
	}
	matching := branch("", matches("from=10.0.0.0/8 from=::1 to=192.0.2.1 host=10.0.0.0/8 mac=52:54:00:12:34:56 proto=udp proto=200", "port=53 sport=8000-8100 dport=2 dscp=EF dscp=7 mark=0x10/0xff mark=9 vlan=5"))
	want := &Spec{
		Interface: "eth0", Replace: true, MTU: 1492, Line: Line{Layer: "atm", Overhead: 44, MPU: 64},
		BranchSpec: BranchSpec{Rate: Absolute(MaxBandwidth), Ingress: &BranchSpec{Rate: amount("250mbit")}, Children: []*BranchSpec{
			{Name: "a", Rate: amount("33.333%"), Ceil: amount("1234567bit"), Prio: &prio, Burst: 1601, CBurst: 64 * KiB, Quantum: 3000,
				Bind: []bind.Binding{unit}, Match: matching.Match, Delegate: []bind.Delegate{"alice", "uid:1000"}},
			{Name: "b", Qdisc: &RawQdisc{Kind: "sfq", Params: []RawParam{{Name: "limit", Text: "12"}, {Name: "perturb", Text: "10s", Quoted: true}}}},
			{Name: "c", Children: []*BranchSpec{{Name: "d"}}, Ingress: &BranchSpec{Rate: amount("40%"), Ceil: amount("50%"), Prio: &prio, Burst: 1600, CBurst: 1602, Quantum: 2000,
				Qdisc: &RawQdisc{Kind: "pfifo", Params: []RawParam{{Name: "limit", Text: "7"}}}}},
		}},
	}
	b, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got := new(Spec)
	if err := json.Unmarshal(b, got); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if d := cmp.Diff(want, got, cmp.Comparer(func(a, b Amount) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); d != "" {
		t.Errorf("%s (-want +got):\n%s", b, d)
	}
}
