//go:build linux

package rtnl

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/bits"

	"github.com/vifshape/vifshape/hierarchy"
)

// Tick is the unit in which the kernel takes and shows bursts, in nanoseconds:
// 1 << PSCHED_SHIFT (include/net/pkt_sched.h, v6.12), the same on every kernel
// since 2.6.31. It is also what the second over the third word of /proc/net/psched say.
const Tick = 64

const nsPerSecond = 1_000_000_000

// BytesPerSecond is the rate as the kernel keeps it.
func BytesPerSecond(b hierarchy.Bandwidth) uint64 { return uint64(b.Kernel() / 8) }

// Ticks is the time that size takes at rate, rounded up, so that a burst is
// never less than what was asked for and never nothing. It is an error when it
// does not fit the kernel's 32 bits: 274.8 s.
func Ticks(size hierarchy.Size, rate hierarchy.Bandwidth) (uint32, error) {
	perTick := BytesPerSecond(rate) * Tick // below 2^50: see hierarchy.MaxBandwidth
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
	return 0, fmt.Errorf("%v is more than the kernel can count at %v: at most %v", size, rate, TickBytes(math.MaxUint32, rate))
}

// TickBytes is the size that takes t at rate, rounded down. For every t that
// comes from [Ticks] it is a size that Ticks turns into t again.
func TickBytes(t uint32, rate hierarchy.Bandwidth) hierarchy.Size {
	hi, lo := bits.Mul64(uint64(t)*Tick, BytesPerSecond(rate))
	q, _ := bits.Div64(hi, lo, nsPerSecond) // t*tick is below 2^38 and the rate below 2^44, so hi is below 2^18
	return hierarchy.Size(q)
}

// RoundTicks is what the kernel makes of size at rate.
func RoundTicks(size hierarchy.Size, rate hierarchy.Bandwidth) (hierarchy.Size, error) {
	t, err := Ticks(size, rate)
	return TickBytes(t, rate), err
}

// BytesIn is what rate carries in the given number of nanoseconds, rounded down,
// at most [hierarchy.MaxSize].
func BytesIn(ns uint64, rate hierarchy.Bandwidth) hierarchy.Size {
	hi, lo := bits.Mul64(ns, BytesPerSecond(rate))
	if hi >= nsPerSecond {
		return hierarchy.MaxSize
	}
	q, _ := bits.Div64(hi, lo, nsPerSecond)
	return min(hierarchy.Size(q), hierarchy.MaxSize)
}

// MaxRate bounds what is read, in bytes a second, so that it can be counted in
// bits and nanoseconds: more than the kernel itself can multiply.
const MaxRate = 1 << 44

// linkEthernet is a link layer of linux/pkt_sched.h. With none given the kernel looks for the
// rate tables of old.
const linkEthernet = 1

// LinkATM is the link layer of cells (TC_LINKLAYER_ATM).
const LinkATM = 2

// RateSpec is struct tc_ratespec of linux/pkt_sched.h, without what is
// left of rate tables.
type RateSpec struct {
	Link hierarchy.LinkLayer
	Rate uint64 // bytes a second; above 32 bits an attribute of its own holds it
}

// RateSpec appends r.
func (e *Encoder) RateSpec(r RateSpec) {
	layer := uint8(linkEthernet)
	if r.Link.ATM {
		layer = LinkATM
	}
	e.Uint8(0) // cell_log
	e.Uint8(layer)
	e.Uint16(uint16(r.Link.Overhead))
	e.Uint16(0) // cell_align
	e.Uint16(uint16(r.Link.MPU))
	e.Uint32(uint32(min(r.Rate, math.MaxUint32)))
}

// SizeofRateSpec is its size.
const SizeofRateSpec = 12

// DecodeRateSpec reads what [Encoder.RateSpec] writes; b is long enough.
func DecodeRateSpec(b []byte) RateSpec {
	u16 := binary.NativeEndian.Uint16
	return RateSpec{
		Link: hierarchy.LinkLayer{
			Overhead: int16(u16(b[2:])),
			MPU:      hierarchy.Size(u16(b[6:])),
			ATM:      b[1]&0xf == LinkATM,
		},
		Rate: uint64(binary.NativeEndian.Uint32(b[8:])),
	}
}

// Scale is v*num/den, at most 2^64-1.
func Scale(v, num, den uint64) uint64 {
	hi, lo := bits.Mul64(v, num)
	if hi >= den {
		return math.MaxUint64
	}
	q, _ := bits.Div64(hi, lo, den)
	return q
}
