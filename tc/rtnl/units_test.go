//go:build linux

package rtnl

import (
	"math"
	"math/big"
	"math/rand/v2"
	"testing"

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
			n, err := Ticks(tt.size, tt.rate)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, result{n, TickBytes(n, tt.rate)}); d != "" {
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
			_, err := Ticks(tt.size, tt.rate)
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
		n, err := Ticks(size, rate)
		if err != nil {
			continue
		}
		shown := TickBytes(n, rate)
		again, err := Ticks(shown, rate)
		if n == 0 || shown < size || uint64(shown-size)*nsPerSecond > BytesPerSecond(rate)*Tick || again != n || err != nil {
			t.Fatalf("%v at %d bit/s: %d ticks, shown as %v, then %d ticks, %v", size, rate, n, shown, again, err)
		}
		exact := new(big.Int).Mul(big.NewInt(int64(n)*Tick), new(big.Int).SetUint64(BytesPerSecond(rate)))
		if exact.Div(exact, big.NewInt(nsPerSecond)).Uint64() != uint64(shown) {
			t.Fatalf("%d ticks at %d bit/s: %v and not %v", n, rate, shown, exact)
		}
	}
}
