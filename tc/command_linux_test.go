package tc_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
)

func TestCommands(t *testing.T) {
	leaf := func(kind string, limit uint64) *hierarchy.Leaf {
		return &hierarchy.Leaf{Class: hierarchy.ID(0x10), Path: "eth0/web", Qdisc: hierarchy.Qdisc{Kind: kind, Params: []hierarchy.Setting{{Name: "limit", Value: limit}}}}
	}
	of := func(kind string, params ...any) *hierarchy.Leaf {
		l := leaf(kind, 0)
		l.Qdisc.Params = nil
		for i := 0; i < len(params); i += 2 {
			l.Qdisc.Params = append(l.Qdisc.Params, hierarchy.Setting{Name: params[i].(string), Value: uint64(params[i+1].(int))})
		}
		return l
	}
	root := &hierarchy.Root{Kind: "htb", Handle: hierarchy.ID(0)}
	top := &hierarchy.Class{ID: hierarchy.ID(1), Parent: hierarchy.ID(0), Path: "eth0", Rate: hierarchy.Mbit, Ceil: hierarchy.Mbit, Burst: 1600, CBurst: 1600,
		Link: hierarchy.LinkLayer{Overhead: 44, MPU: 64, ATM: true}}
	web := &hierarchy.Class{ID: hierarchy.ID(0x10), Parent: hierarchy.ID(1), Path: "eth0/web", Rate: hierarchy.Mbit, Ceil: hierarchy.Mbit, Burst: 1600, CBurst: 1600, Quantum: 3000, Prio: 3}
	for _, tt := range []struct {
		name string
		step hierarchy.Step
		want []string
	}{
		{"root", hierarchy.Step{Action: hierarchy.Create, New: root}, []string{"tc qdisc add dev eth0 root handle 71f: htb default 2 r2q 10 direct_qlen 0"}},
		{"root in the place of another", hierarchy.Step{Action: hierarchy.Change, Old: &hierarchy.Root{Kind: "tbf", Handle: 7 << 16}, New: root}, []string{"tc qdisc replace dev eth0 root handle 71f: htb default 2 r2q 10 direct_qlen 0"}},
		{"no root", hierarchy.Step{Action: hierarchy.Delete, Old: root}, []string{"tc qdisc delete dev eth0 root handle 71f: htb"}},
		{"interface's class", hierarchy.Step{Action: hierarchy.Create, New: top}, []string{"tc class add dev eth0 root classid 71f:1 htb rate 1mbit ceil 1mbit burst 1600b cburst 1600b quantum 65536 prio 0 overhead 44 mpu 64 linklayer atm # eth0"}},
		{"class", hierarchy.Step{Action: hierarchy.Change, Old: web, New: web}, []string{"tc class change dev eth0 parent 71f:1 classid 71f:10 htb rate 1mbit ceil 1mbit burst 1600b cburst 1600b quantum 3000 prio 3 # eth0/web"}},
		{"no class", hierarchy.Step{Action: hierarchy.Delete, Old: &hierarchy.Class{ID: hierarchy.ID(0x10)}}, []string{"tc class delete dev eth0 classid 71f:10"}},
		{"leaf", hierarchy.Step{Action: hierarchy.Create, New: leaf("pfifo", 5)}, []string{"tc qdisc replace dev eth0 parent 71f:10 handle 10: pfifo limit 5 # eth0/web"}},
		{"leaf in place", hierarchy.Step{Action: hierarchy.Change, Old: leaf("pfifo", 5), New: leaf("pfifo", 6)}, []string{"tc qdisc change dev eth0 parent 71f:10 pfifo limit 6 # eth0/web"}},
		{"leaf of another kind", hierarchy.Step{Action: hierarchy.Change, Old: leaf("pfifo", 5), New: leaf("bfifo", 6000)}, []string{
			"tc qdisc delete dev eth0 parent 71f:10 # eth0/web", "tc qdisc replace dev eth0 parent 71f:10 handle 10: bfifo limit 6000 # eth0/web"}},
		{"leaf that is told twice", hierarchy.Step{Action: hierarchy.Create, New: of("hhf", "limit", 50, "hh_limit", 9)}, []string{
			"tc qdisc replace dev eth0 parent 71f:10 handle 10: hhf limit 50 hh_limit 9 # eth0/web", "tc qdisc change dev eth0 parent 71f:10 hhf limit 50 hh_limit 9 # eth0/web"}},
		{"leaf of the RED family", hierarchy.Step{Action: hierarchy.Create, New: of("red", "limit", 400000, "min", 30000, "max", 90000, "ewma", 5, "scell_log", 15, "probability", 85899346, "ecn", 1, "harddrop", 0)}, []string{
			"tc qdisc replace dev eth0 parent 71f:10 handle 10: red limit 400000 min 30000 max 90000 avpkt 1000 burst 50 bandwidth 9702848bit probability 0.02000000001862645 ecn # eth0/web"}},
		{"no leaf", hierarchy.Step{Action: hierarchy.Delete, Old: leaf("pfifo", 5)}, []string{"tc qdisc delete dev eth0 parent 71f:10 # eth0/web"}},
		{"classifier", hierarchy.Step{Action: hierarchy.Create, New: &hierarchy.Hook{Way: bind.WayBPF}}, []string{"# create classifier bpf"}},
	} {
		if d := cmp.Diff(tt.want, tc.Commands("eth0", tt.step)); d != "" {
			t.Errorf("%s (-want +got)\n%s", tt.name, d)
		}
	}
}
