package hierarchy

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// mostNear is how many names a question offers.
const mostNear = 3

// Nearest is the one of the known names that name was most likely meant to be,
// or empty when none is close: at most one letter differs, or a third of them.
func Nearest(name string, known []string) string {
	if near := Near(name, known); len(near) > 0 {
		return near[0]
	}
	return ""
}

// Near are the known names that name was most likely meant to be, three at most, the
// likeliest first; none when none is as close as [Nearest] asks.
func Near(name string, known []string) []string {
	return likeliest(known, func(k string) (int, bool) { return likeness(name, k) })
}

// likeness is the number of letters in which two names differ, and whether that is few.
func likeness(name, k string) (d int, near bool) {
	d = distance(strings.ToLower(name), strings.ToLower(k))
	return d, d <= max(1, len(name)/3) && d < min(len(k), len(name))
}

// likeliest are the first of what is known by a rank; what is not near is left out.
func likeliest[T cmp.Ordered](known []T, rank func(T) (d int, near bool)) (all []T) {
	ranks := map[T]int{}
	for _, k := range known {
		if d, near := rank(k); near && !slices.Contains(all, k) {
			ranks[k], all = d, append(all, k)
		}
	}
	slices.SortStableFunc(all, func(a, b T) int { return ranks[a] - ranks[b] })
	return all[:min(len(all), mostNear)]
}

// DidYouMean is the question for names, to stand behind what is wrong; empty: there are none.
func DidYouMean[T ~string](near []T) string {
	if len(near) == 0 {
		return ""
	}
	return "; did you mean " + listed(near, "or") + "?"
}

// listed are names with commas between, and a word before the last.
func listed[T ~string](names []T, word string) string {
	var b strings.Builder
	for i, n := range names {
		switch {
		case i == 0:
		case i == len(names)-1:
			b.WriteString(" " + word + " ")
		default:
			b.WriteString(", ")
		}
		b.WriteString(string(n))
	}
	return b.String()
}

// NoBranch is the error of a path that none of the branches of its interface has. It names
// those that may have been meant: of a like path, or of the same or a like name elsewhere
// in the tree. Where none is like it, it names the first that there are.
func NoBranch(p Path, known []Path) error {
	known = slices.DeleteFunc(slices.Clone(known), func(k Path) bool { return k.Parent() == "" })
	slices.Sort(known)
	below := func(p Path) string { return strings.TrimPrefix(string(p), p.Interface()) }
	near := likeliest(known, func(k Path) (int, bool) {
		if p.Below(k) { // who is there already does not mean it
			return 0, false
		}
		if d, near := likeness(below(p), below(k)); near {
			return d, true
		}
		d, near := likeness(p.Base(), k.Base())
		return d + 1, near
	})
	if len(near) > 0 {
		return fmt.Errorf("there is no branch %s%s", p, DidYouMean(near))
	}
	const few = 6
	if more := len(known) - few; more > 1 {
		known = append(known[:few], Path(fmt.Sprintf("%d more", more)))
	}
	switch len(known) {
	case 0:
		return fmt.Errorf("there is no branch %s", p)
	case 1:
		return fmt.Errorf("there is no branch %s; the only one is %s", p, known[0])
	}
	return fmt.Errorf("there is no branch %s; there are %s", p, listed(known, "and"))
}

// ParseBinding is [bind.Parse] of what somebody has written: where the kind is none that there
// is, the error names the one that was most likely meant.
func ParseBinding(s string) (bind.Binding, error) {
	b, err := bind.Parse(s)
	if e := (*bind.KindError)(nil); errors.As(err, &e) {
		if k := Nearest(e.Kind, bind.Kinds()); k != "" {
			err = fmt.Errorf("binding %q is of unknown kind %q: did you mean %q?", s, e.Kind, k+":"+e.Name)
		}
	}
	return b, err
}

// distance is the number of letters to insert, delete, replace or swap with the
// next one to turn a into b (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var rows [3][65]int
	for j := range b {
		rows[1][j+1] = j + 1
	}
	prev2, prev, cur := &rows[0], &rows[1], &rows[2]
	for i := range a {
		cur[0] = i + 1
		for j := range b {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			cur[j+1] = min(prev[j+1]+1, cur[j]+1, prev[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				cur[j+1] = min(cur[j+1], prev2[j-1]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
