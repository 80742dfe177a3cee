package tc_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/foreign"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// What others have in the namespace, on our interface too, is no obstacle.
func TestKernelForeignQdiscs(t *testing.T) {
	b, p := veth(t)
	if err := p.Near.AddLink(lab.Link{Name: "ifb0", Kind: "ifb"}); err != nil {
		t.Fatal(err)
	}
	run := func(args string) { tctest.TC(t, p.Near, strings.Fields(args)...) }
	run("qdisc add dev ifb0 root handle 71f: htb default 10")
	run("class add dev ifb0 parent 71f: classid 71f:77 htb rate 40gbit")
	run("qdisc add dev ifb0 parent 71f:77 handle 5: tbf rate 40gbit burst 1mb limit 1mb")
	run("qdisc add dev eth0 ingress")
	tree := b.tree(hierarchy.Gbit, branch("x", hierarchy.Mbit), branch("y", hierarchy.Mbit))
	b.apply(tree)
	x, y := tree.Find("eth0/x"), tree.Find("eth0/y")
	run(fmt.Sprintf("qdisc replace dev eth0 parent %v handle 9: htb default 1", x.ID))
	run("class add dev eth0 parent 9: classid 9:1 htb rate 1mbit")
	run("qdisc add dev eth0 parent 9:1 handle 10: pfifo_head_drop limit 5")
	run(fmt.Sprintf("qdisc replace dev eth0 parent %v handle 11: pfifo_head_drop limit 5", y.ID))

	want := tree.State()
	leaves := want.Ports[0].Leaves
	for i, l := range leaves {
		switch l.Class {
		case x.ID:
			leaves[i].Qdisc = hierarchy.Qdisc{Kind: "htb"}
		case y.ID:
			leaves[i].Qdisc = hierarchy.Qdisc{Kind: "pfifo_head_drop", Params: []hierarchy.Setting{{Name: "limit", Value: 5}}}
		}
	}
	if d := cmp.Diff(bare(want), bare(b.read())); d != "" {
		t.Fatalf("state (-want +got)\n%s", d)
	}
	if s, err := b.Stats(); err != nil || len(s) != 4 {
		t.Errorf("counters of %d classes, %v", len(s), err)
	}
	b.apply(tree) // and what was put into our leaves goes
	if kinds := rootKinds(t, p, "ifb0"); !slices.Equal(kinds, []string{"htb"}) {
		t.Errorf("root of ifb0: %v", kinds)
	}
}

// rootKinds are the kinds of the root qdiscs of an interface, as tc sees them.
func rootKinds(t *testing.T, p *lab.Pair, dev string) (kinds []string) {
	t.Helper()
	type qdisc struct {
		Kind string
		Root bool
	}
	for _, q := range tctest.TCJSON[qdisc](t, p.Near, "qdisc", "show", "dev", dev) {
		if q.Root {
			kinds = append(kinds, q.Kind)
		}
	}
	return kinds
}

func TestKernelForeignRoot(t *testing.T) {
	b, p := veth(t)
	run := func(args string) { tctest.TC(t, p.Near, strings.Fields(args)...) }
	show := func() string { return tctest.TC(t, p.Near, "qdisc", "show", "dev", "eth0", "root") }
	run("qdisc add dev eth0 root handle 8: tbf rate 10mbit burst 20kb limit 100kb")
	tbf := show()

	found := b.read()
	if want := (hierarchy.Root{Kind: "tbf", Handle: 8 << 16}); found.Ports[0].Root != want || found.Ports[0].Classes != nil {
		t.Fatalf("read %+v", found)
	}
	tree := b.tree(hierarchy.Gbit)
	ours := tree.State().Ports[0]
	const refusal = `eth0: root qdisc tbf 8: is not made by vifshape: set replace = true for the interface, or remove it with "tc qdisc del dev eth0 root"`
	for _, old := range []hierarchy.Item{nil, &hierarchy.Root{Kind: "tbf", Handle: 9 << 16}} {
		s := hierarchy.Step{Action: hierarchy.Create, New: &ours.Root}
		if old != nil {
			s.Action, s.Old = hierarchy.Change, old
		}
		if n, err := b.Do(t.Context(), []hierarchy.Step{s}); n != 0 || !errors.Is(err, rtnl.ErrForeign) || err.Error() != refusal {
			t.Errorf("%v: %d, %v", s, n, err)
		}
	}
	former, err := foreign.Root(b.Interface)
	if err != nil || former.Partial || former.Kind != "tbf" {
		t.Fatalf("former %+v, %v", former, err)
	}

	// Replaced and put back by the same Device.
	b.apply(tree)
	b.do(hierarchy.Diff(b.read(), found).Steps...)
	if got := show(); got != tbf {
		t.Errorf("put back: %q, was %q", got, tbf)
	}
	// By another, from what was kept.
	b.apply(tree)
	again := open(t, p.Near, "eth0")
	if err := foreign.Restore(again.Interface, former); err != nil {
		t.Fatal(err)
	}
	if got := show(); got != tbf {
		t.Errorf("restored: %q, was %q", got, tbf)
	}
	if err := foreign.Restore(again.Interface, former); !errors.Is(err, rtnl.ErrForeign) {
		t.Errorf("restoring over a foreign qdisc: %v", err)
	}

	// One with classes cannot come back.
	run("qdisc replace dev eth0 root handle 9: htb")
	run("class add dev eth0 parent 9: classid 9:1 htb rate 1mbit")
	if former, err = foreign.Root(b.Interface); err != nil || !former.Partial || former.Kind != "htb" {
		t.Errorf("former %+v, %v", former, err)
	}
	b.apply(tree)
	if err := foreign.Restore(b.Interface, former); err == nil {
		t.Error("htb with classes was restored")
	}
	if err := foreign.Restore(b.Interface, foreign.Former{}); err != nil {
		t.Error(err)
	}
	if root := b.stands().Root; root != (hierarchy.Root{}) {
		t.Errorf("left: %+v", root)
	}
	// Our handle, and not our doing.
	run("qdisc add dev eth0 root handle 71f: htb default 30")
	var s hierarchy.State
	if err := b.Read(t.Context(), &s); !errors.Is(err, rtnl.ErrForeign) {
		t.Errorf("htb with another default class: %v", err)
	}
}

// An interface that was never up, and one whose queue the kernel made of parts.
func TestKernelRoots(t *testing.T) {
	n := tctest.NetNS(t)
	for _, l := range []lab.Link{{Name: "down0", Kind: "ifb", Down: true}, {Name: "multi0", Kind: "ifb", Queues: 4}, {Name: "br0", Kind: "bridge"}} {
		t.Run(l.Name, func(t *testing.T) {
			if l.Kind != "ifb" {
				tctest.RequireLink(t, l.Kind)
			}
			if err := n.AddLink(l); err != nil {
				t.Fatal(err)
			}
			b := open(t, n, l.Name)
			if root := b.stands().Root; root != (hierarchy.Root{}) {
				t.Errorf("untouched: %+v", root)
			}
			b.apply(b.tree(hierarchy.Gbit, branch("x", hierarchy.Mbit)))
			if _, err := b.Do(t.Context(), hierarchy.Diff(b.read(), hierarchy.State{}).Steps); err != nil {
				t.Fatal(err)
			}
			if root := b.stands().Root; root != (hierarchy.Root{}) {
				t.Errorf("cleared: %+v", root)
			}
		})
	}
}
