package hierarchy

import (
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// Bandwidth is a rate in bits per second. The zero value means "not given"
// wherever a bandwidth is optional; no class can have it, because HTB refuses a
// rate of 0 (htb_change_class, net/sched/sch_htb.c, v6.12).
//
// The kernel keeps rates in bytes per second, so a rate that is not a multiple
// of 8 bit/s reaches it rounded down; see [Bandwidth.Kernel].
type Bandwidth uint64

// Units of bandwidth are powers of 1000, as on every data sheet and in tc.
const (
	Bit  Bandwidth = 1
	Kbit           = 1000 * Bit
	Mbit           = 1000 * Kbit
	Gbit           = 1000 * Mbit
	Tbit           = 1000 * Gbit
)

// MaxBandwidth is the largest rate that is accepted: well beyond any line, and
// small enough for exact arithmetic in nanoseconds.
const MaxBandwidth = 100 * Tbit

// unit is one accepted spelling and its value; the first with a given value is
// the one that is printed.
type unit struct {
	name  string
	value uint64
}

var bandwidthUnits = []unit{
	{"tbit", uint64(Tbit)}, {"gbit", uint64(Gbit)}, {"mbit", uint64(Mbit)}, {"kbit", uint64(Kbit)}, {"bit", 1},
	{"TB/s", 8e12}, {"GB/s", 8e9}, {"MB/s", 8e6}, {"kB/s", 8e3}, {"B/s", 8},
	{"Tbit", uint64(Tbit)}, {"Gbit", uint64(Gbit)}, {"Mbit", uint64(Mbit)}, {"Kbit", uint64(Kbit)}, // as tc prints them
	{"TiB/s", 8 << 40}, {"GiB/s", 8 << 30}, {"MiB/s", 8 << 20}, {"KiB/s", 8 << 10},
}

// ParseBandwidth reads "10mbit", "1.5gbit", "5MB/s" or "5MiB/s": a decimal
// number and a unit, with or without a space between. bit, kbit, mbit, gbit and
// tbit, also as tc prints them (Kbit), are bits per second; B/s, kB/s, MB/s, GB/s, TB/s bytes per second, all
// powers of 1000; KiB/s, MiB/s, GiB/s, TiB/s bytes per second in powers of
// 1024.
//
// A bare number, "mbps" and "5M" are refused with their possible readings
// spelt out: every tool reads them differently ("mbps" is megabytes to tc and
// megabits to most people). The result is exact or an error: a fraction of a
// bit and anything above [MaxBandwidth] are refused. Zero is refused too.
func ParseBandwidth(s string) (Bandwidth, error) {
	v, err := parseQuantity(s, bandwidthUnits, "bit", bandwidthAdvice)
	if zero := strings.TrimSpace(s); err != nil && (zero == "" || strings.Trim(zero, "0") != "") {
		return 0, err
	}
	if v == 0 {
		return 0, fmt.Errorf("%q is no bandwidth; the kernel cannot shape to nothing, the least is \"8bit\"", s)
	}
	if Bandwidth(v) > MaxBandwidth {
		return 0, fmt.Errorf("%q is more than %v", s, MaxBandwidth)
	}
	return Bandwidth(v), nil
}

// String prints b in the largest unit that holds it without a fraction:
// "940mbit", "1500kbit". ParseBandwidth reads the same value back. Zero prints
// as "0bit".
func (b Bandwidth) String() string { return printQuantity(uint64(b), bandwidthUnits[:5]) }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (b Bandwidth) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler with ParseBandwidth.
func (b *Bandwidth) UnmarshalText(t []byte) error {
	v, err := ParseBandwidth(string(t))
	if err == nil {
		*b = v
	}
	return err
}

// Kernel is the rate that the kernel keeps for b: whole bytes per second,
// rounded down, at least one (psched_ratecfg_precompute,
// net/sched/sch_generic.c, v6.12).
func (b Bandwidth) Kernel() Bandwidth {
	if b < 8 {
		return 8
	}
	return b / 8 * 8
}

// parseQuantity reads a decimal number with one of the units exactly.
// Smallest is what the result counts, in one word.
func parseQuantity(s string, units []unit, smallest string, advice func(num, unit string) string) (uint64, error) {
	t := strings.TrimSpace(s)
	i := 0
	for i < len(t) && (t[i] >= '0' && t[i] <= '9' || t[i] == '.') {
		i++
	}
	num, u := t[:i], strings.TrimLeft(t[i:], " ")
	if t == "" {
		return 0, fmt.Errorf("%q is empty: %s", s, advice("10", ""))
	}
	if strings.HasPrefix(t, "-") {
		return 0, fmt.Errorf("%q is negative", s)
	}
	if num == "" || num == "." || strings.Count(num, ".") > 1 || strings.HasSuffix(num, ".") || num[0] == '.' {
		return 0, fmt.Errorf("%q does not begin with a number: write one and its unit, as in %q", s, "10"+units[min(2, len(units)-1)].name)
	}
	if len(num) > 30 {
		return 0, fmt.Errorf("%q has too many digits", s)
	}
	for _, x := range units {
		if x.name != u {
			continue
		}
		if !strings.Contains(num, ".") {
			n, err := strconv.ParseUint(num, 10, 64)
			if err != nil || n > ^uint64(0)/x.value {
				return 0, fmt.Errorf("%q is too large", s)
			}
			return n * x.value, nil
		}
		r, ok := new(big.Rat).SetString(num)
		if !ok {
			return 0, fmt.Errorf("%q does not begin with a number: write one and its unit, as in %q", s, "10"+units[min(2, len(units)-1)].name)
		}
		r.Mul(r, new(big.Rat).SetInt(new(big.Int).SetUint64(x.value)))
		if !r.IsInt() {
			return 0, fmt.Errorf("%q is not a whole number of %ss: use fewer digits behind the point", s, smallest)
		}
		if !r.Num().IsUint64() {
			return 0, fmt.Errorf("%q is too large", s)
		}
		return r.Num().Uint64(), nil
	}
	return 0, fmt.Errorf("%q is not understood: %s", s, advice(num, u))
}

// printQuantity prints v in the largest of units that divides it.
func printQuantity(v uint64, units []unit) string {
	for _, x := range units {
		if v != 0 && v%x.value == 0 {
			return strconv.FormatUint(v/x.value, 10) + x.name
		}
	}
	return strconv.FormatUint(v, 10) + units[len(units)-1].name
}
