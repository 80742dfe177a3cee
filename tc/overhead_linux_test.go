package tc_test

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
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
	traffic.Control = into(tree.Find(tree.Root.Path.Join("a")).ID)
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
		t.Parallel()
		vm.Run(t, vm.VirtualTime(), vm.V2, "", "-test.run=^TestVirtualLine$")
		return
	}
	const rate, packets = 2 * hierarchy.Mbit, 1000
	worst := 0.0
	for _, tt := range lines {
		b, p := veth(t)
		tree := b.lineTree(tt.line, rate)
		b.apply(tree)
		for _, c := range b.stands().Classes {
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
			if math.Abs(off) > 0.003 {
				t.Errorf("%v, packets of %d bytes: the line carries %.0f bit/s, want %v", tt.line, size, got, rate)
			}
		}
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("worst: %.3f %%", worst*100)
}

// A packet that is segmented behind the queue gets the line's overhead once: the line
// carries more than its rate then, as the remark says, and what it should once the
// remark's advice is taken. One large packet more or less counted is half a hundredth.
func TestVirtualLineSegments(t *testing.T) {
	if !vm.Inside() {
		t.Parallel()
		vm.Run(t, vm.VirtualTime(), vm.V2, "", "-test.run=^TestVirtualLineSegments$")
		return
	}
	const rate, size = 20 * hierarchy.Mbit, 1500
	for _, tt := range []struct {
		layer    string
		remark   string // of how much it is
		over, of float64
		bytes    int
	}{
		{"ethernet", "up to 1.5 % more", 0.005, 0.02, size + 38},
		{"pppoe-llcsnap", "up to 4.6 % more", 0.03, 0.051, cells(size + 40)},
		{"docsis", "", -0.003, 0.008, size + 18},
	} {
		for _, segments := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s/%v", tt.layer, segments), func(t *testing.T) {
				p := tctest.New(t, lab.PairConfig{})
				over, of, remark := tt.over, tt.of, tt.remark
				if !segments {
					tctest.Output(t, p.Near, "ip", "link", "set", "dev", p.Dev, "gso_max_segs", "1")
					over, of, remark = -0.002, 0.002, ""
				}
				b := open(t, p.Near, p.Dev)
				tree := b.lineTree(hierarchy.Line{Layer: tt.layer}, rate)
				b.apply(tree)
				if r := strings.Join(b.Remarks(tree), ""); !strings.Contains(r, remark) || (r == "") != (remark == "") {
					t.Errorf("remark %q, want %q", r, remark)
				}
				got := lineRate(t, p, tree, lab.Traffic{Protocol: "tcp", Flows: 4}, size, tt.bytes, 5*time.Second)
				off := got/float64(rate) - 1
				t.Logf("%+.2f %%", off*100)
				if off < over || off > of {
					t.Errorf("the line carries %+.2f %% more than its rate, want %+.1f to %+.1f", off*100, over*100, of*100)
				}
			})
		}
	}
}

// The kernel at hand counts as the one in virtual time does, the least that a packet
// takes included, which some kernels of old ignore.
func TestKernelLine(t *testing.T) {
	const rate = 500 * hierarchy.Kbit
	for _, l := range []int{0, 3} {
		t.Run(lines[l].line.Layer, func(t *testing.T) {
			b, p := veth(t)
			tree := b.lineTree(lines[l].line, rate)
			b.apply(tree)
			sink, err := lab.NewSink(t.Context(), p.Far, 9)
			if err != nil {
				t.Fatal(err)
			}
			defer sink.Close()
			const packets, size = 300, 46 // 60 bytes to the kernel alone, 84 and 106 on the line
			start := time.Now()
			_, err = lab.Send(t.Context(), lab.Traffic{NetNS: p.Near, Protocol: "udp", To: netip.AddrPortFrom(p.Far4, 9), Size: size - 28, Bytes: packets * (size - 28), Control: into(tree.Find("eth0/a").ID)})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "all packets arrive", func() bool { return sink.Count(9).Packets == packets })
			// What is not counted would save 29 and 43 % of the time. A busy machine takes longer.
			took, burst := time.Since(start), 3200+lines[l].bytes(size)
			if least := time.Duration(packets*lines[l].bytes(size)-burst) * 8 * time.Second / time.Duration(rate); took < least*98/100 {
				t.Errorf("%d packets took %v, want %v or more", packets, took, least)
			}
		})
	}
}

// Whatever header the kernel counts with an interface's packets, a line of 40 bytes
// besides the IP packet is one of 40.
func TestKernelLineHeader(t *testing.T) {
	tctest.RequireProgram(t, "ip")
	for _, tt := range []struct {
		name   string
		link   lab.Link
		header uint64
	}{
		{name: "veth", link: lab.Link{Name: "eth0"}, header: 14},
		{name: "loopback", link: lab.Link{Name: "lo"}, header: 14},
		{name: "tun", link: lab.Link{Name: "tun7"}},
		{name: "vlan", link: lab.Link{Name: "vlan7", Kind: "vlan", Parent: "eth0", VLAN: 7}, header: 14},
		{name: "macvlan", link: lab.Link{Name: "mac7", Kind: "macvlan", Parent: "eth0"}, header: 14},
		{name: "dummy", link: lab.Link{Name: "dummy7", Kind: "dummy"}, header: 14},
		{name: "bridge", link: lab.Link{Name: "br7", Kind: "bridge"}, header: 14},
	} {
		if tt.link.Kind != "" && !vm.Inside() && !tctest.HasLink(t, tt.link.Kind) {
			t.Logf("%s is not there; TestVMLine has it", tt.name)
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			p := tctest.New(t, lab.PairConfig{})
			dev := tt.link.Name
			switch {
			case dev == "tun7":
				openTun(t, p.Near, dev)
			case tt.link.Kind != "":
				if err := p.Near.AddLink(tt.link); err != nil {
					t.Fatal(err)
				}
			}
			tctest.Output(t, p.Near, "ip", "addr", "add", "192.0.2.1/24", "dev", dev)
			tctest.Output(t, p.Near, "ip", "link", "set", "dev", dev, "up")
			tctest.Output(t, p.Near, "ip", "route", "add", "224.0.0.0/4", "dev", dev) // needs no neighbour
			b := open(t, p.Near, dev)
			tree := b.lineTree(hierarchy.Line{Overhead: 40}, hierarchy.Gbit)
			b.apply(tree)
			a := tree.Find(hierarchy.Path(dev).Join("a"))
			_, err := lab.Send(t.Context(), lab.Traffic{NetNS: p.Near, Protocol: "udp", To: netip.MustParseAddrPort("224.0.0.77:9"), Size: 100, Bytes: 1000, Control: into(a.ID)})
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the packets pass", func() bool { return b.stats(tree, a.Path).Packets == 10 })
			if got, want := b.stats(tree, a.Path).Bytes, 10*(20+8+100+tt.header); got != want {
				t.Errorf("the kernel counts %d bytes, want %d", got, want)
			}
			if want := (hierarchy.LinkLayer{Overhead: 40 - int16(tt.header)}); a.Link != want {
				t.Errorf("it adds %v, want %v", a.Link, want)
			}
		})
	}
}

// User-mode Linux has the kinds of interfaces that the kernel at hand may lack.
func TestVMLine(t *testing.T) {
	t.Parallel()
	vm.Run(t, vm.UML(), vm.V2, "", "-test.run=^TestKernelLine(Header)?$")
}
