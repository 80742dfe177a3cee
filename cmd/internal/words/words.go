// Package words puts values into words for people: counts and quantities, and names that
// others choose, of which none may do anything to a terminal.
package words

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Short prints a bandwidth for people: exactly where three digits do, else with
// one digit more.
func Short(b hierarchy.Bandwidth) string {
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

// Bytes prints a number of bytes for people.
func Bytes(n uint64) string {
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

// Printable is s as it is, or quoted where it would do something to a terminal:
// names of processes, cgroups and files are other people's to choose.
func Printable(s string) string {
	if utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !strconv.IsPrint(r) }) {
		return s
	}
	return strconv.Quote(s)
}

// TargetText is a binding's target. A cgroup that is gone has only its number left.
func TargetText(target bind.Target) string {
	s := target.String()
	if target.Kind == bind.TargetCgroupID {
		s += " (gone)"
	}
	return Printable(s)
}

// Indented is the last part of a path behind two spaces for each level.
func Indented(p hierarchy.Path) string {
	return strings.Repeat("  ", strings.Count(string(p), "/")) + p.Base()
}

// Quoted is a name as a shell takes it for one word: sh, and where something in it is not
// printable bash, ksh and zsh.
func Quoted(s string) string {
	plain := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("@%+=,._-:/", r)
	}
	switch {
	case s == "":
		return "''"
	case !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }):
		return s
	case Printable(s) == s:
		return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
	}
	b := []byte("$'")
	for _, c := range []byte(s) {
		b = fmt.Appendf(b, `\x%02x`, c)
	}
	return string(append(b, '\''))
}

// List is what there is, with commas between, and "-" where there is nothing.
func List[T fmt.Stringer](all []T) string {
	if len(all) == 0 {
		return "-"
	}
	s := make([]string, len(all))
	for i, x := range all {
		s[i] = x.String()
	}
	return strings.Join(s, ", ")
}

// Number is a number of something.
func Number(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}
