//go:build linux

package tc

import (
	"math"
	"math/bits"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

func TestQuantum(t *testing.T) {
	const mbit, gso = hierarchy.Mbit, 65536
	for _, tt := range []struct {
		name    string
		slowest hierarchy.Bandwidth
		rate    hierarchy.Bandwidth
		packet  hierarchy.Size
		want    hierarchy.Size
	}{
		{"the slowest sends a packet", 10 * mbit, 10 * mbit, gso, 83886},
		{"the others in proportion", 10 * mbit, 30 * mbit, gso, 251658},
		{"a little faster slowest changes nothing", 15 * mbit, 30 * mbit, gso, 251658},
		{"without segmentation offload", 5 * mbit, 99 * mbit, 1514, 415236},
		{"no longer for large packets than usual", 1 * mbit, 99 * mbit, gso, 1660944},
		{"half a second for frames", 200 * hierarchy.Kbit, 99 * mbit, gso, 6643777},
		{"a frame at least", 1000, 1000, gso, 1514},
		{"rates of nothing", 8, 8, gso, 1514},
		{"34 milliseconds at least", hierarchy.Gbit, hierarchy.Gbit, gso, 4194304},
		{"the kernel's bound", mbit, 100 * hierarchy.Tbit, gso, math.MaxInt32},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := quantum(tt.rate, 1514, quantumTime(tt.slowest, 1514, tt.packet)); got != tt.want {
				t.Errorf("%d, not %d", got, tt.want)
			}
		})
	}
}

// Leaves get more where those above them lend in turns.
func TestQuanta(t *testing.T) {
	const mbit = hierarchy.Mbit
	leaf := func(rate hierarchy.Bandwidth) *hierarchy.Branch {
		return &hierarchy.Branch{Class: hierarchy.Class{Rate: rate}}
	}
	inner := func(rate hierarchy.Bandwidth, children ...*hierarchy.Branch) *hierarchy.Branch {
		return &hierarchy.Branch{Class: hierarchy.Class{Rate: rate}, Children: children}
	}
	fixed := leaf(10 * mbit)
	fixed.Quantum = 3000
	for _, tt := range []struct {
		name string
		root *hierarchy.Branch
		want []hierarchy.Size // in eighths of what 10 Mbit/s send in the time
	}{
		{"one lender", inner(100*mbit, leaf(10*mbit), inner(20*mbit, leaf(10*mbit), leaf(10*mbit))), []hierarchy.Size{8, 8, 8}},
		{"only the inner branch lends", inner(40*mbit, leaf(10*mbit), inner(30*mbit, leaf(10*mbit), leaf(10*mbit))), []hierarchy.Size{8, 8, 8}},
		{"both lend", inner(60*mbit, leaf(10*mbit), inner(30*mbit, leaf(10*mbit), leaf(10*mbit))), []hierarchy.Size{8, 9, 9}},
		{"it lends next to nothing", inner(200*mbit, leaf(10*mbit), inner(21*mbit, leaf(10*mbit), leaf(10*mbit))), []hierarchy.Size{8, 8, 8}},
		{"two levels down", inner(60*mbit, leaf(10*mbit), inner(30*mbit, leaf(10*mbit), inner(10*mbit, leaf(10*mbit)))), []hierarchy.Size{8, 9, 9}},
		{"what was said stays", inner(60*mbit, leaf(10*mbit), inner(30*mbit, fixed, leaf(10*mbit))), []hierarchy.Size{8, 0, 9}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			quanta(tt.root, 0, false, 1514, shortestRound)
			var got []hierarchy.Size
			for b := range (&hierarchy.Tree{Root: tt.root}).All() {
				if b.Leaf() {
					got = append(got, b.Quantum/(41943/8))
				}
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

// Whatever a branch has beside it, a tenth of a second of its ceil is that, a tenth
// more and a part of the largest packet; what HTB goes into debt for comes to it. Its
// turn fits in it all the same.
func TestBursts(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	amount := func(below hierarchy.Bandwidth) hierarchy.Bandwidth {
		return 8 * (1 + hierarchy.Bandwidth(r.Uint64N(1<<r.IntN(bits.Len64(uint64(below)))))/8) // whole bytes
	}
	var grow func(b *hierarchy.Branch, level int)
	grow = func(b *hierarchy.Branch, level int) {
		left := b.Rate
		for range r.IntN(5) {
			if level == 8 || left < 16 {
				return
			}
			c := &hierarchy.Branch{Class: hierarchy.Class{Rate: amount(left / 2), Ceil: b.Ceil}}
			left -= c.Rate
			switch r.IntN(3) {
			case 0:
				c.Ceil = c.Rate
			case 1:
				c.Ceil = max(c.Rate, amount(b.Ceil))
			}
			b.Children = append(b.Children, c)
			grow(c, level+1)
		}
	}
	for range 20_000 {
		line := amount(hierarchy.Tbit)
		tree := hierarchy.Tree{Root: &hierarchy.Branch{Class: hierarchy.Class{Rate: line, Ceil: line}}}
		grow(tree.Root, 1)
		mtu := hierarchy.Size(1514)
		packet := []hierarchy.Size{1514, 3028, 64 << 10, 512 << 10}[r.IntN(4)]
		if err := shape(&tree, mtu, packet); err != nil {
			t.Fatal(err)
		}
		for b := range tree.All() {
			of := func(rate hierarchy.Bandwidth, d time.Duration) hierarchy.Size { // rounded up, with the kernel's ticks
				return rtnl.BytesIn(uint64(d+rtnl.Tick), rate) + 2
			}
			more := hierarchy.Size(0)
			if b.Rate < b.Ceil && b.Ceil < tree.Root.Ceil {
				more = packet / 4
			}
			if b.Burst > of(b.Rate, 10*time.Millisecond) || b.CBurst > of(b.Ceil, 10*time.Millisecond)+more {
				t.Fatalf("rate %v, ceil %v of %v, packets of %v: burst %v, cburst %v", b.Rate, b.Ceil, line, packet, b.Burst, b.CBurst)
			}
			if !b.Leaf() || b.Quantum <= mtu+mtu/lateBonus || b.Rate >= b.Ceil || b.Ceil >= tree.Root.Ceil {
				continue
			}
			// A leaf below branches that lend in turns has an eighth more.
			if turn := float64(b.Quantum) / (1 + 1.0/lateBonus) * (1 - float64(b.Ceil)/float64(tree.Root.Ceil)); turn > float64(b.CBurst)+1 {
				t.Fatalf("rate %v, ceil %v of %v, packets of %v: a turn of %.0f, cburst %v", b.Rate, b.Ceil, line, packet, turn, b.CBurst)
			}
		}
	}
}
