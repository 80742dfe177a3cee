package hierarchy

import (
	"fmt"
	"iter"

	"github.com/vifshape/vifshape/hierarchy/match"
)

// Rule is a match of a branch, by which a packet gets into it.
type Rule struct {
	Branch *Branch
	Match  int // in Branch.Match
}

// Of is the match itself.
func (r Rule) Of() *match.Match { return &r.Branch.Match[r.Match] }

// Rules are those that the packets of a branch are held against: of the nearest branches
// below that have a match.
func (b *Branch) Rules() iter.Seq[Rule] {
	return func(yield func(Rule) bool) {
		for _, c := range b.matched(nil) {
			for i := range c.Match {
				if !yield(Rule{c, i}) {
					return
				}
			}
		}
	}
}

// Decide is the leaf below b, in a tree for sending, that carries a packet, sent or
// received, and the rules by which it gets there. Decisions start at the branch to which
// the packet's sender is bound, of a received one its receiver, and at the top where nobody
// claims it: a match refines, it never releases.
//
// Of the [Branch.Rules] that fit, the most specific says which branch carries the packet, and
// from there it goes on. Branches without a match are on the way and carry nothing that was
// not bound to them. Where none fits, the packet stays with the branch's own leaf, nil where
// it has none: see [Branch.Entry].
func (b *Branch) Decide(p *match.Packet) (leaf *Branch, by []Rule) {
	for {
		var next Rule
		var most match.Rank
		for r := range b.Rules() {
			if rank := r.Of().Rank(p); rank > most {
				next, most = r, rank
			}
		}
		if most == 0 {
			return b.Entry(), by
		}
		b, by = next.Branch, append(by, next)
	}
}

// Scope is the branch whose matches go before those of b: the next above that has some, or
// the top.
func (t *Tree) Scope(b *Branch) *Branch {
	scope := t.Root
	for c := range t.All() {
		if c != b && len(c.Match) > 0 && b.Path.Below(c.Path) {
			scope = c // parents come first
		}
	}
	return scope
}

// matched adds the nearest branches below b that have a match.
func (b *Branch) matched(to []*Branch) []*Branch {
	for _, c := range b.Children {
		if len(c.Match) > 0 {
			to = append(to, c)
		} else {
			to = c.matched(to)
		}
	}
	return to
}

// clashes reports matches that the order of [match.Rank] does not tell apart, at the
// places of both. What is held against each other is the same from a branch in between,
// only less.
func (r *resolver) clashes(t *Tree) {
	if r.unclear {
		return
	}
	for b := range t.All() {
		if b != t.Root && len(b.Match) == 0 {
			continue
		}
		branches := b.matched(nil)
		if len(branches) < 2 {
			continue
		}
		all := make([][]match.Match, len(branches))
		for i, c := range branches {
			all[i] = c.Match
		}
		known := map[match.Place]bool{}
		report := func(found []match.Clash, packets string) {
			for _, c := range found {
				if known[c.A] || known[c.B] {
					continue
				}
				known[c.A], known[c.B] = true, true
				for _, x := range [][2]match.Place{{c.A, c.B}, {c.B, c.A}} {
					this, that := branches[x[0].Branch], branches[x[1].Branch]
					more := "to"
					if len(this.Match[x[0].Match].To) > 0 {
						more = "from"
					}
					r.problems = append(r.problems, Problem{Path: this.Path, Key: "match", Index: x[0].Match,
						Text: fmt.Sprintf("this and match %d of %s fit the same %s, %v, and neither is more specific", x[1].Match+1, that.Path, packets, c.Packets),
						Hint: `longer prefixes win, then more keys: take them out of one, or let it win by a key more, such as ` + more + ` = ["0.0.0.0/0", "::/0"], which says nothing else`})
				}
			}
		}
		report(match.Clashes(all, false), "packets")
		if t.Ingress != nil {
			report(match.Clashes(all, true), "received packets")
		}
	}
}
