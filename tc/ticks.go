//go:build linux

package tc

import (
	"fmt"
	"math"
	"math/bits"

	"github.com/vifshape/vifshape/hierarchy"
)

// tick is the unit in which the kernel takes and shows bursts, in nanoseconds:
// 1 << PSCHED_SHIFT (include/net/pkt_sched.h, v6.12), the same on every kernel
// since 2.6.31. It is also what the second over the third word of /proc/net/psched say.
const tick = 64

const nsPerSecond = 1_000_000_000

// bytesPerSecond is the rate as the kernel keeps it.
func bytesPerSecond(b hierarchy.Bandwidth) uint64 { return uint64(b.Kernel() / 8) }

// ticks is the time that size takes at rate, rounded up, so that a burst is
// never less than what was asked for and never nothing. It is an error when it
// does not fit the kernel's 32 bits: 274.8 s.
func ticks(size hierarchy.Size, rate hierarchy.Bandwidth) (uint32, error) {
	perTick := bytesPerSecond(rate) * tick // below 2^50: see hierarchy.MaxBandwidth
	hi, lo := bits.Mul64(uint64(size), nsPerSecond)
	if hi < perTick {
		q, r := bits.Div64(hi, lo, perTick)
		if r != 0 {
			q++
		}
		if q <= math.MaxUint32 {
			return uint32(q), nil
		}
	}
	return 0, fmt.Errorf("%v is more than the kernel can count at %v: at most %v", size, rate, tickBytes(math.MaxUint32, rate))
}

// tickBytes is the size that takes t at rate, rounded down. For every t that
// comes from [ticks] it is a size that ticks turns into t again.
func tickBytes(t uint32, rate hierarchy.Bandwidth) hierarchy.Size {
	hi, lo := bits.Mul64(uint64(t)*tick, bytesPerSecond(rate))
	q, _ := bits.Div64(hi, lo, nsPerSecond) // t*tick is below 2^38 and the rate below 2^44, so hi is below 2^18
	return hierarchy.Size(q)
}

// roundTicks is what the kernel makes of size at rate.
func roundTicks(size hierarchy.Size, rate hierarchy.Bandwidth) (hierarchy.Size, error) {
	t, err := ticks(size, rate)
	return tickBytes(t, rate), err
}

// bytesIn is what rate carries in the given number of nanoseconds, rounded down,
// at most [hierarchy.MaxSize].
func bytesIn(ns uint64, rate hierarchy.Bandwidth) hierarchy.Size {
	hi, lo := bits.Mul64(ns, bytesPerSecond(rate))
	if hi >= nsPerSecond {
		return hierarchy.MaxSize
	}
	q, _ := bits.Div64(hi, lo, nsPerSecond)
	return min(hierarchy.Size(q), hierarchy.MaxSize)
}
