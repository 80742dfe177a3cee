package hierarchy

import (
	"fmt"
	"strings"
)

// bandwidthAdvice says what to write instead of a spelling that is refused, for each of
// its readings. What tc reads is said where it is not what most people do (get_rate64,
// lib/utils_math.c, iproute2 v6.12).
func bandwidthAdvice(num, u string) string {
	if u == "" {
		if large(num) {
			return fmt.Sprintf("a bandwidth needs a unit: write \"%sbit\" for bits, as tc reads it, or \"%sB/s\" for bytes a second", num, num)
		}
		return fmt.Sprintf("a bandwidth needs a unit: write \"%smbit\" for megabits or \"%sMB/s\" for megabytes a second; tc reads a bare number as bits", num, num)
	}
	if u == "%" {
		return "a percentage has no meaning here, only in a branch's rate and ceil"
	}
	if strings.HasPrefix(u, ",") {
		return pointAdvice(num, u, "gbit", func(s string) bool { _, err := ParseBandwidth(s); return err == nil })
	}
	r, ok := readingOf(u)
	if !ok {
		var names []string
		for _, x := range bandwidthUnits[:5] {
			names = append(names, x.name)
		}
		letters := strings.Trim(strings.ToLower(u), "abcdefghijklmnopqrstuvwxyz") == ""
		if near := Near(u, names); letters && len(near) == 1 {
			return fmt.Sprintf("did you mean \"%s%s\"?", num, near[0])
		}
		return "units are bit, kbit, mbit, gbit, tbit (bits a second) and B/s, kB/s, MB/s, MiB/s, GB/s ... (bytes a second)"
	}
	bits := quoted(num, r.bits())
	bytes := quoted(num, r.bytes())
	if r.binary { // there is no unit for such bits
		bits = quoted(inBits(num, r.factor()), "")
	} else if b := inBits(num, 8*r.factor()); b != "" {
		bytes += " (" + b + ")"
	}
	switch {
	case bits == `""`:
		return "write " + bytes
	case r.of == "bit" && r.binary:
		return fmt.Sprintf("write %s for powers of 1024, or %s for powers of 1000", bits, quoted(num, strings.Replace(r.bits(), "i", "", 1)))
	case r.of == "bit":
		return "write " + bits
	case r.of == "byte", r.of == "B" && r.per == "/s":
		return "write " + quoted(num, r.bytes())
	case r.of == "B":
		return fmt.Sprintf("%q means bytes to most people: write %s for bytes a second or %s for bits", u, bytes, bits)
	case r.of == "b" && r.per == "ps":
		return fmt.Sprintf("%q means bits to most people, and tc reads it as %sbytes a second: write %s for bits or %s for bytes a second", u, r.name(), bits, bytes)
	case r.of == "b":
		return fmt.Sprintf("a small b in %q may mean bits or bytes: write %s for bits or %s for bytes a second", u, bits, bytes)
	}
	return fmt.Sprintf("%q may mean bits or bytes: write %s for bits or %s for bytes a second", u, bits, bytes)
}

// reading is what a spelling of a unit that is not accepted consists of.
type reading struct {
	prefix string // k, m, g, t or none
	binary bool   // powers of 1024
	of     string // "bit", "byte", "b", "B", or nothing
	per    string // "/s", "ps", or nothing
}

var prefixes = []struct{ letter, name string }{{"k", "kilo"}, {"m", "mega"}, {"g", "giga"}, {"t", "tera"}}

// readingOf takes a unit apart: "Mbps", "MiB", "megabits/second", "M".
func readingOf(u string) (r reading, ok bool) {
	rest := u
	for _, s := range []string{"/second", "/sec", "/s", "ps"} {
		if before, cut := cutSuffixFold(rest, s); cut {
			rest, r.per = before, "/s"
			if s == "ps" {
				r.per = s
			}
			break
		}
	}
	for _, s := range []string{"bits", "bit", "bytes", "byte", "b"} {
		if before, cut := cutSuffixFold(rest, s); cut {
			r.of = strings.TrimSuffix(s, "s")
			if s == "b" {
				r.of = rest[len(before):]
			}
			rest = before
			break
		}
	}
	rest = strings.ToLower(rest)
	for _, p := range prefixes {
		switch rest {
		case p.letter, p.name:
			r.prefix = p.letter
		case p.letter + "i":
			r.prefix, r.binary = p.letter, true
		}
	}
	return r, (rest == "" || r.prefix != "") && (r.of != "" || r.prefix != "" && r.per != "ps")
}

func cutSuffixFold(s, suffix string) (before string, ok bool) {
	if i := len(s) - len(suffix); i >= 0 && strings.EqualFold(s[i:], suffix) {
		return s[:i], true
	}
	return s, false
}

// name is the prefix in full.
func (r reading) name() string {
	for _, p := range prefixes {
		if p.letter == r.prefix {
			return p.name
		}
	}
	return ""
}

// bits and bytes are the units for what it counts, in bits and in bytes.
func (r reading) bits() string {
	if r.binary {
		return r.prefix + "ibit"
	}
	return r.prefix + "bit"
}

func (r reading) bytes() string {
	switch p := strings.ToUpper(r.prefix); {
	case r.binary:
		return p + "iB/s"
	case p == "K":
		return "kB/s"
	default:
		return p + "B/s"
	}
}

// factor is how many bits the unit is, where it counts those.
func (r reading) factor() uint64 {
	base, f := uint64(1000), uint64(1)
	if r.binary {
		base = 1024
	}
	for i, p := range prefixes {
		if p.letter == r.prefix {
			for range i + 1 {
				f *= base
			}
		}
	}
	return f
}

func quoted(num, u string) string { return `"` + num + u + `"` }

// inBits is a number of so many bits as one writes it; empty: it is no bandwidth.
func inBits(num string, each uint64) string {
	v, err := parseQuantity(num+"x", []unit{{"x", each}}, "bit", nil)
	if err != nil || v == 0 || Bandwidth(v) > MaxBandwidth {
		return ""
	}
	return Bandwidth(v).String()
}

// pointAdvice says how to write a number with a comma in it: of a fraction, or of thousands.
func pointAdvice(num, u, example string, good func(string) bool) string {
	behind := u[1:]
	i := 0
	for i < len(behind) && behind[i] >= '0' && behind[i] <= '9' {
		i++
	}
	point, none := num+"."+behind, num+behind
	switch {
	case i == 3 && good(point) && good(none):
		return fmt.Sprintf("write %q for thousands, or %q for a fraction", none, point)
	case i > 0 && good(point):
		return fmt.Sprintf("write the fraction behind a point: %q", point)
	}
	return "write the fraction behind a point, as in 1.5" + example
}

// large says whether a number without a unit is rather one of bits than of
// megabits: a whole one of 10,000 and more.
func large(num string) bool {
	return !strings.Contains(num, ".") && len(strings.TrimLeft(num, "0")) > 4
}
