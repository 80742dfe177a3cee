package hierarchy

import (
	"fmt"
	"strings"
)

// Size is a number of bytes: a burst, a quantum, a queue limit. The zero value
// means "not given" wherever a size is optional.
type Size uint64

// Units of size: kb, mb and gb are powers of 1000, kib, mib and gib of 1024.
const (
	Byte Size = 1
	KiB       = 1024 * Byte
	MiB       = 1024 * KiB
)

// MaxSize is the largest size that is accepted: the kernel keeps sizes in 32
// bits.
const MaxSize = Size(1<<32 - 1)

var sizeUnits = []unit{
	{"gib", 1 << 30}, {"mib", 1 << 20}, {"kib", 1 << 10},
	{"gb", 1e9}, {"mb", 1e6}, {"kb", 1e3}, {"b", 1},
}

// ParseSize reads "1600b", "15kb", "64kib" or "1.5mib": a decimal number and a
// unit. b is bytes; kb, mb, gb are powers of 1000, kib, mib, gib of 1024. A
// bare number and the letters k and m alone are refused, because tc reads "15k"
// as 15 × 1024 and others as 15 × 1000. At most [MaxSize].
func ParseSize(s string) (Size, error) {
	v, err := parseQuantity(s, sizeUnits, "byte", sizeAdvice)
	if err != nil {
		return 0, err
	}
	if Size(v) > MaxSize {
		return 0, fmt.Errorf("%q is more than the kernel's 4294967295b", s)
	}
	return Size(v), nil
}

// String prints s in the largest unit that holds it without a fraction, binary
// units first: "64kib", "1600b". ParseSize reads the same value back.
func (s Size) String() string { return printQuantity(uint64(s), sizeUnits) }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler with ParseSize.
func (s *Size) UnmarshalText(t []byte) error {
	v, err := ParseSize(string(t))
	if err == nil {
		*s = v
	}
	return err
}

func sizeAdvice(num, u string) string {
	l := strings.ToLower(u)
	switch {
	case u == "":
		return fmt.Sprintf("a size needs a unit: write \"%sb\" for bytes or \"%skb\" for kilobytes", num, num)
	case len(l) == 1 && strings.Contains("kmg", l):
		return fmt.Sprintf("%q may mean 1000 or 1024: write \"%s%sb\" for powers of 1000, or \"%s%sib\" for 1024, as tc reads it", u, num, l, num, l)
	case strings.HasPrefix(u, ","):
		return pointAdvice(num, u, "mib", func(s string) bool { _, err := ParseSize(s); return err == nil })
	case strings.HasSuffix(l, "bit"):
		return fmt.Sprintf("sizes are bytes: write \"%sb\", \"%skb\" or \"%smb\"", num, num, num)
	}
	for _, x := range sizeUnits {
		if x.name == l {
			return fmt.Sprintf("write \"%s%s\"", num, x.name)
		}
	}
	return "units are b, kb, mb, gb (powers of 1000) and kib, mib, gib (powers of 1024)"
}
