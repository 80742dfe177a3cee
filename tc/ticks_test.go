//go:build linux

package tc

import (
	"math"
	"math/big"
	"math/bits"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
)

func TestTicks(t *testing.T) {
	const gbit = hierarchy.Gbit
	type result struct {
		Ticks uint32
		Size  hierarchy.Size // what the kernel shows for it
	}
	for _, tt := range []struct {
		name string
		size hierarchy.Size
		rate hierarchy.Bandwidth
		want result
	}{
		{"nothing", 0, gbit, result{0, 0}},
		{"one byte at 400 Gbit/s", 1, 400 * gbit, result{1, 3200}},
		{"100 Mbit/s", 1600, 100 * hierarchy.Mbit, result{2000, 1600}},
		{"1 Gbit/s", 1600, gbit, result{200, 1600}},
		{"10 Gbit/s", 1600, 10 * gbit, result{20, 1600}},
		{"25 Gbit/s, where tc gets 0", 1600, 25 * gbit, result{8, 1600}},
		{"100 Gbit/s, where tc gets 0", 1600, 100 * gbit, result{2, 1600}},
		{"a rate below a byte a second", 10, 1, result{156250000, 10}},
		{"a rate that divides nothing", 1001, 7_777_777, result{16088, 1001}},
		{"the most at 10 Mbit/s", 343597383, 10 * hierarchy.Mbit, result{4294967288, 343597383}},
		{"the largest rate and size", hierarchy.MaxSize, hierarchy.MaxBandwidth, result{5369, 4295200000}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n, err := ticks(tt.size, tt.rate)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, result{n, tickBytes(n, tt.rate)}); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestTicksTooMany(t *testing.T) {
	for _, tt := range []struct {
		name string
		size hierarchy.Size
		rate hierarchy.Bandwidth
		want string
	}{
		{"one byte too many", 343597384, 10 * hierarchy.Mbit, "343597384b is more than the kernel can count at 10mbit: at most 343597383b"},
		{"slowest and most", math.MaxUint64, 8, "18446744073709551615b is more than the kernel can count at 8bit: at most 274b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := ticks(tt.size, tt.rate)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// Whatever is asked for, the kernel keeps at least that, less than a tick more,
// and what it shows is kept exactly.
func TestTicksStable(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for range 200_000 {
		rate := hierarchy.Bandwidth(1 + r.Uint64N(1<<r.IntN(47)))
		size := hierarchy.Size(1 + r.Uint64N(1<<r.IntN(33)))
		n, err := ticks(size, rate)
		if err != nil {
			continue
		}
		shown := tickBytes(n, rate)
		again, err := ticks(shown, rate)
		if n == 0 || shown < size || uint64(shown-size)*nsPerSecond > bytesPerSecond(rate)*tick || again != n || err != nil {
			t.Fatalf("%v at %d bit/s: %d ticks, shown as %v, then %d ticks, %v", size, rate, n, shown, again, err)
		}
		exact := new(big.Int).Mul(big.NewInt(int64(n)*tick), new(big.Int).SetUint64(bytesPerSecond(rate)))
		if exact.Div(exact, big.NewInt(nsPerSecond)).Uint64() != uint64(shown) {
			t.Fatalf("%d ticks at %d bit/s: %v and not %v", n, rate, shown, exact)
		}
	}
}

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

func TestDefaults(t *testing.T) {
	type result struct {
		Burst, QueueBytes hierarchy.Size
		QueuePackets      uint64
		Memory            hierarchy.Size
		Target            string
	}
	for _, tt := range []struct {
		name string
		s    site
		want result
	}{
		{"slow", site{1 * hierarchy.Mbit, 1 * hierarchy.Mbit, 1514, 65536, 250}, result{1250, 89760, 32, 4 << 20, "18.168ms"}},
		{"medium", site{10 * hierarchy.Mbit, 10 * hierarchy.Mbit, 1514, 65536, 250}, result{12500, 89760, 32, 4 << 20, "5ms"}},
		{"fast", site{10 * hierarchy.Gbit, 10 * hierarchy.Gbit, 1514, 65536, 250}, result{12500000, 8750000, 1000, 32 << 20, "5ms"}},
		{"may borrow", site{10 * hierarchy.Mbit, 100 * hierarchy.Mbit, 1514, 1514, 250}, result{12500, 87500, 57, 12500000, "5ms"}},
		{"slower than anything", site{8, 8, 1514, 65536, 250}, result{1, 89760, 32, 4 << 20, "1m0s"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := result{burst(tt.s.rate, 0), queueBytes(tt.s), queuePackets(tt.s), queueMemory(tt.s), codelTarget(tt.s).String()}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
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
				return bytesIn(uint64(d+tick), rate) + 2
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
