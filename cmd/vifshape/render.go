package main

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/vifshape/vifshape/hierarchy"
)

// short prints a bandwidth for people: exactly where three digits do, else with
// one digit more.
func short(b hierarchy.Bandwidth) string {
	for _, u := range []struct {
		name string
		v    hierarchy.Bandwidth
	}{{"tbit", hierarchy.Tbit}, {"gbit", hierarchy.Gbit}, {"mbit", hierarchy.Mbit}, {"kbit", hierarchy.Kbit}} {
		if b >= u.v {
			digits := 2
			if b >= 100*u.v {
				digits = 1
			}
			s := fmt.Sprintf("%.*f", digits, float64(b)/float64(u.v))
			return strings.TrimRight(strings.TrimRight(s, "0"), ".") + u.name
		}
	}
	return b.String()
}

// bytes prints a number of bytes for people.
func bytes(n uint64) string {
	const units = "kMGTPE"
	if n < 1000 {
		return fmt.Sprintf("%dB", n)
	}
	v := float64(n)
	i := -1
	for v >= 1000 && i < len(units)-1 {
		v /= 1000
		i++
	}
	return fmt.Sprintf("%.1f%cB", v, units[i])
}

// printable is s as it is, or quoted where it would do something to a terminal:
// names of processes, cgroups and files are other people's to choose.
func printable(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return s
	}
	return strconv.Quote(s)
}

// targetText is a binding's target. A cgroup that is gone has only its number left.
func targetText(target string) string {
	if strings.HasPrefix(target, "cgroup-id:") {
		target += " (gone)"
	}
	return printable(target)
}

// indented is the last part of a path behind two spaces for each level.
func indented(p hierarchy.Path) string {
	return strings.Repeat("  ", strings.Count(string(p), "/")) + p.Base()
}
