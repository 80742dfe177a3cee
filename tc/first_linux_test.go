package tc_test

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// passed is what the root qdisc let pass without a class, and what it dropped, in packets.
func (b *bench) passed() (unshaped, dropped int) {
	b.t.Helper()
	type qdisc struct {
		Kind    string `json:"kind"`
		Drops   int    `json:"drops"`
		Options struct {
			Direct int `json:"direct_packets_stat"`
		} `json:"options"`
	}
	for _, q := range tctest.TCJSON[qdisc](b.t, b.net, "qdisc", "show", "dev", b.Name, "root") {
		if q.Kind == "htb" {
			return q.Options.Direct, q.Drops
		}
	}
	b.t.Fatal("no htb at the root")
	return 0, 0
}

// TestKernelFirstApply holds that no packet passes unshaped while a tree is made,
// whatever root's SO_PRIORITY says, nor afterwards.
func TestKernelFirstApply(t *testing.T) {
	b, p := veth(t)
	var leaves []*hierarchy.BranchSpec
	for i := range 300 { // more than go with the root qdisc
		leaves = append(leaves, branch(fmt.Sprint("b", i), hierarchy.Mbit))
	}
	tree := b.tree(hierarchy.Gbit, leaves...)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var sources []*lab.Source
	for _, class := range []hierarchy.ClassID{0, hierarchy.ID(0), tree.Root.ID, tree.Root.Children[7].ID} {
		s, err := lab.Start(ctx, lab.Traffic{
			NetNS: p.Near, Protocol: "udp", To: netip.AddrPortFrom(p.Far4, 9), Size: 64, Rate: 20 * hierarchy.Mbit, Control: into(class),
		})
		if err != nil {
			t.Fatal(err)
		}
		sources = append(sources, s)
	}
	for range 20 {
		b.apply(tree)
		if n, _ := b.passed(); n != 0 {
			t.Errorf("%d packets passed unshaped", n)
		}
		b.do(hierarchy.Diff(b.read(), hierarchy.State{Device: b.Name}).Steps...)
	}
	for _, s := range sources {
		if err := s.Stop(); err != nil {
			t.Error(err)
		}
	}
}

// TestKernelNoClass holds that what has no class is dropped, where a hand took the
// rest away too.
func TestKernelNoClass(t *testing.T) {
	b, p := veth(t)
	tree := b.tree(hierarchy.Gbit)
	b.apply(tree)
	arrive := func(want int) {
		t.Helper()
		far := newCounter(t, p.Far, 9, 958)
		defer unix.Close(far.fd)
		_, before := b.passed()
		b.send(p, hierarchy.ID(0), 3)
		b.send(p, 0, 4)
		arrived := 0
		eventually(t, "each packet is dropped or has arrived", func() bool {
			_, dropped := b.passed()
			arrived = int(far.count(t).Packets)
			return arrived+dropped-before >= 3+4
		})
		if arrived != want {
			t.Errorf("%d packets arrived, not %d", arrived, want)
		}
	}
	arrive(4)
	tctest.TC(t, b.net, "class", "delete", "dev", b.Name, "classid", hierarchy.ID(hierarchy.RestMinor).String())
	tctest.TC(t, b.net, "class", "delete", "dev", b.Name, "classid", tree.Root.ID.String())
	arrive(0)
}

// TestKernelLongWait holds that a queue that may hold packets up for long is remarked on.
func TestKernelLongWait(t *testing.T) {
	b, p := veth(t)
	tree := func(ceil hierarchy.Bandwidth, params ...string) *hierarchy.Tree {
		x := leaf("x", ceil, "bfifo", params...)
		x.Ceil = hierarchy.Absolute(ceil)
		rest := leaf(hierarchy.RestName, hierarchy.Mbit, "bfifo")
		return b.tree(hierarchy.Gbit, x, rest)
	}
	check := func(tree *hierarchy.Tree, want string) {
		t.Helper()
		if got := strings.Join(b.Remarks(tree), "\n"); got != want {
			t.Errorf("remarks\n%s\nwant\n%s", got, want)
		}
	}
	check(tree(10*hierarchy.Mbit), "")
	check(tree(3*hierarchy.Mbit), "")
	check(tree(75*hierarchy.Kbit), `eth0/x: packets may wait 9.57s there at ceil 75kbit; "ip link set dev eth0 gso_max_segs 1" before the next apply makes it 2.75s, qdisc = { kind = "bfifo", limit = "3028b" } for it then 320ms`)
	check(tree(2*hierarchy.Mbit), `eth0/x: packets may wait 360ms there at ceil 2mbit; "ip link set dev eth0 gso_max_segs 1" before the next apply makes it 100ms`)
	tctest.Output(t, p.Near, "ip", "link", "set", "dev", p.Dev, "gso_max_segs", "1")
	b = open(t, p.Near, p.Dev)
	check(tree(75*hierarchy.Kbit), `eth0/x: packets may wait 2.75s there at ceil 75kbit; qdisc = { kind = "bfifo", limit = "3028b" } for it then 320ms`)
	check(tree(75*hierarchy.Kbit, `limit="3028b"`), "")
	check(tree(hierarchy.Mbit), "")
}
