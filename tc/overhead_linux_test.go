package tc_test

import (
	"context"
	"math"
	"net/netip"
	"testing"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// lines are kinds of lines and, worked out apart from what is tested, what an IP
// packet of n bytes takes on them.
var lines = []struct {
	line  hierarchy.Line
	bytes func(n int) int
	sync  float64 // share of the line that goes to keeping it in step
}{
	{line: hierarchy.Line{Layer: "ethernet"}, bytes: func(n int) int { return max(8+14+n+4+12, 84) }},
	{line: hierarchy.Line{Layer: "pppoe-vlan"}, bytes: func(n int) int { return max(8+14+4+8+n+4+12, 84) }},
	{line: hierarchy.Line{Layer: "docsis"}, bytes: func(n int) int { return max(14+n+4, 64) }},
	{line: hierarchy.Line{Layer: "pppoe-llcsnap"}, bytes: func(n int) int { return cells(n + 2 + 6 + 14 + 8 + 2 + 8) }},
	{line: hierarchy.Line{Layer: "conservative"}, bytes: func(n int) int { return cells(n + 48) }},
	{line: hierarchy.Line{Layer: "pppoe-ptm", Overhead: 34, MPU: 68}, bytes: func(n int) int { return max(n+34, 68) }, sync: 1.0 / 65},
	{line: hierarchy.Line{}, bytes: func(n int) int { return 14 + n }},
}

// cells is what n bytes take in cells of ATM.
func cells(n int) int { return (n + 47) / 48 * 53 }

// lineRate sends IP packets of a size, a little more than the branch can take, and
// returns what the line then carries, in bits per second. It counts for d.
func lineRate(t testing.TB, p *lab.Pair, tree *hierarchy.Tree, traffic lab.Traffic, size, bytes int, d time.Duration) float64 {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	sink, err := lab.NewSink(ctx, p.Far, 9)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	traffic.NetNS, traffic.To, traffic.Size = p.Near, netip.AddrPortFrom(p.Far4, 9), size-28
	if traffic.Protocol == "udp" {
		traffic.Rate = tree.Root.Rate * hierarchy.Bandwidth(14+size) * 11 / hierarchy.Bandwidth(10*bytes)
	}
	traffic.Control = into(tree.Find("eth0/a").ID)
	source, err := lab.Start(ctx, traffic)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(d/2 + 200*time.Millisecond) // until the bursts are used up
	before := sink.Count(9)
	time.Sleep(d)
	after := sink.Count(9)
	if err := source.Stop(); err != nil {
		t.Fatal(err)
	}
	return float64(after.Packets-before.Packets) * float64(bytes) * 8 / after.Time.Sub(before.Time).Seconds()
}

// lineTree is a tree with one busy branch on a line of the given kind.
func (b *bench) lineTree(line hierarchy.Line, rate hierarchy.Bandwidth) *hierarchy.Tree {
	b.t.Helper()
	a := branch("a", rate*3/4)
	a.Ceil = hierarchy.Absolute(rate)
	a.Qdisc = &hierarchy.RawQdisc{Kind: "bfifo"}
	const burst = 3200 // soon used up
	a.Burst, a.CBurst = burst, burst
	return b.treeOf(hierarchy.Spec{Interface: b.Name, Line: line, BranchSpec: hierarchy.BranchSpec{
		Rate: hierarchy.Absolute(rate), Burst: burst, CBurst: burst, Children: []*hierarchy.BranchSpec{a},
	}})
}

// Packets of every size take what the line has, no more and no less, and every class
// counts alike. One packet more or less counted is a thousandth.
func TestVirtualLine(t *testing.T) {
	if !vm.Inside() {
		vm.Run(t, vm.VirtualTime(), vm.V2, "", "-test.run=^TestVirtualLine$")
		return
	}
	const rate, packets = 2 * hierarchy.Mbit, 1000
	worst := 0.0
	for _, tt := range lines {
		b, p := veth(t)
		tree := b.lineTree(tt.line, rate)
		b.apply(tree)
		for _, c := range b.read().Classes {
			if c.Link != tree.Root.Link {
				t.Errorf("%v: %s adds %v, the interface %v", tt.line, c.ID, c.Link, tree.Root.Link)
			}
		}
		for _, size := range []int{46, 100, 577, 1500} {
			d := time.Duration(packets * tt.bytes(size) * 8 * int(time.Second) / int(rate))
			got := lineRate(t, p, tree, lab.Traffic{Protocol: "udp"}, size, tt.bytes(size), d) / (1 - tt.sync)
			off := got/float64(rate) - 1
			worst = max(worst, math.Abs(off))
			t.Logf("%-45v %4d bytes: %+.3f %%", tt.line, size, off*100)
			if math.Abs(off) > 0.002 {
				t.Errorf("%v, packets of %d bytes: the line carries %.0f bit/s, want %v", tt.line, size, got, rate)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("worst: %.3f %%", worst*100)
}
