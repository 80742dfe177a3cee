//go:build linux

package adopt

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc/survey"
)

// rule is a filter as far as it is taken over: packets that fit go to a branch.
type rule struct {
	match  match.Match
	family survey.Family
	to     *branch
}

// sieve gives branches the matches of filters. tc asks filters in their order, and the first
// that fits decides; of matches the most specific does: see [ordered].
func (top *branch) sieve(x *survey.Interface) {
	by := map[hierarchy.ClassID]*branch{}
	for _, b := range top.all() {
		by[b.id] = b
	}
	at := map[*branch][]survey.Filter{}
	for _, f := range x.Filters {
		scope := by[f.Parent]
		if scope == nil || f.Parent == x.Root.Handle {
			scope = top
		}
		at[scope] = append(at[scope], f)
	}
	into := map[*branch][]rule{} // rules above that lead to a branch, or through it, in their order
	for queue := []*branch{top}; len(queue) > 0; queue = queue[1:] {
		scope := queue[0]
		if scope != top && len(scope.spec.Match) == 0 {
			continue // all that leads to it is never asked
		}
		rules := scope.within(into[scope], scope.rules(at[scope], by))
		delete(at, scope)
		rules = twins(tagged(rules))
		for i, r := range rules {
			r.to.targeted = append(r.to.targeted, r)
			rules[i].to = scope.gate(r.to, rules)
			if to := rules[i].to; !to.leaf() {
				if into[to] == nil {
					queue = append(queue, to)
				}
				into[to] = append(into[to], r)
			}
		}
		rules = joined(rules)
		for i := range rules {
			rules[i].narrow()
		}
		scope.assign(ordered(reached(rules)))
	}
	for b, filters := range at {
		for _, f := range filters {
			b.note("", "Not taken over: %s: no filter leads to the class where it stands.", f.Name())
		}
	}
}

// within are the rules inside of a branch, given those that lead to it or through it. What
// leads through goes on to where it leads, but for packets that one before it leads to the
// branch itself, where its own rules decide.
func (b *branch) within(into, own []rule) (rules []rule) {
	last := len(into) - 1
	for last >= 0 && into[last].to == b {
		last--
	}
	for _, r := range into[:last+1] {
		if r.to != b {
			rules = append(rules, r)
			continue
		}
		rest := b.rest()
		if rest == nil {
			rest = &branch{spec: &hierarchy.BranchSpec{Name: hierarchy.RestName}}
			rest.note("", "What no filter below class %v claimed went to the default class.", b.id)
			b.add(rest)
		}
		for _, o := range append(own[:len(own):len(own)], rule{to: rest}) {
			if both, ok := r.meet(o); ok {
				rules = append(rules, both)
			}
		}
	}
	return append(rules, own...)
}

// meet is a rule for what fits r and o, which leads to where o does.
func (r rule) meet(o rule) (both rule, ok bool) {
	switch both = (rule{family: r.family, to: o.to}); {
	case r.family == 0:
		both.family = o.family
	case o.family != 0 && o.family != r.family:
		return both, false
	}
	both.match, ok = match.Meet(&r.match, &o.match)
	return both, ok
}

// gate is the uppermost branch between scope and to that rules lead to as well, else to
// itself: what is below such a branch is held only against what that carries.
func (scope *branch) gate(to *branch, rules []rule) (through *branch) {
	through = to
	for p := to.parent; p != nil && p != scope; p = p.parent {
		if slices.ContainsFunc(rules, func(r rule) bool { return r.to == p }) {
			through = p
		}
	}
	return through
}

// rules are what the filters of one place say, in their order.
func (scope *branch) rules(filters []survey.Filter, by map[hierarchy.ClassID]*branch) (rules []rule) {
	taken := survey.Family(0)
	const all = survey.IPv4 | survey.IPv6
	for _, f := range filters {
		to := by[f.Class]
		family := f.Family
		if family == 0 {
			family = all
		}
		refuse := func(b *branch, why string) {
			b.note("", "Not taken over: %s: %s.", f.Name(), why)
		}
		switch {
		case family&^taken == 0:
			refuse(scope, "one before it takes everything")
			continue
		case f.Class == 0 && len(f.Unsaid) == 0:
			refuse(scope, "it gives packets to no class")
			continue
		case f.Class != 0 && to == nil:
			refuse(scope, fmt.Sprintf("there is no class %v", f.Class))
			continue
		case len(f.Unsaid) > 0 && to == nil:
			refuse(scope, strings.Join(f.Unsaid, "; "))
			continue
		case len(f.Unsaid) > 0:
			refuse(to, strings.Join(f.Unsaid, "; ")+asked(&f))
			continue
		case f.Redirect != 0:
			refuse(to, "it sends packets to another interface")
			continue
		case to == scope:
			if !f.All {
				refuse(scope, "it leads to the class where it stands")
			}
			continue
		case !to.under(scope):
			refuse(scope, fmt.Sprintf("it leads to class %v, which does not lie below", f.Class))
			continue
		}
		if f.Unsure {
			to.note("", "A guess: that %s stands where it leads here, for the kernel lists it at several places.", f.Name())
		}
		if f.Police != 0 {
			to.note("", "Not taken over: %s drops what comes faster than %v: write a ceil.", f.Name(), f.Police)
		}
		for _, what := range f.Beside {
			to.note("match", "a filter asked besides: %s", what)
		}
		if family &^= taken; family == all {
			family = 0
		}
		if !f.All {
			rules = append(rules, rule{f.Match, family, to})
			continue
		}
		first := taken == 0
		if taken |= family; family == 0 {
			taken = all
		}
		rest := scope.rest()
		switch {
		case to == rest:
		case to.leaf() && rest == nil && to.parent == scope:
			to.becomeRest(scope)
			if taken != all {
				to.note("", "It took what no other filter claimed of one family; a rest takes all.")
			} else {
				to.note("", "It took what no other filter claimed.")
			}
		case to.leaf() && rest != nil && to.parent == scope && family == 0 && first: // the default class gets nothing
			rest.spec.Name = ""
			rest.note("", "Nothing came to it: a filter took what was left.")
			to.becomeRest(scope)
		default:
			rules = append(rules, rule{family: family, to: to})
		}
	}
	return rules
}

// asked is what of a filter could have been taken over.
func asked(f *survey.Filter) string {
	if text := f.Match.Text(); text != "{}" {
		return "; the rest of it is " + text
	}
	return ""
}

// narrow has a match for one family, or for everything, say so.
func (r *rule) narrow() {
	switch {
	case len(r.match.From)+len(r.match.To) > 0:
	case r.family != 0:
		r.match.To = match.Whole()[r.family>>1 : r.family>>1+1]
	case r.match.Text() == "{}":
		r.match.To = match.Whole()
	}
}

// tagged puts rules for frames with a tag before those of a family, which do not see such
// frames in tc; a match does.
func tagged(rules []rule) []rule {
	for i := range rules {
		for j := i; j > 0 && len(rules[j].match.VLAN) > 0 && len(rules[j-1].match.VLAN) == 0 && rules[j-1].family != 0; j-- {
			rules[j-1], rules[j] = rules[j], rules[j-1]
		}
	}
	return rules
}

// reached are rules without those that one before them leaves nothing.
func reached(rules []rule) (out []rule) {
	for _, r := range rules {
		i := slices.IndexFunc(out, func(o rule) bool {
			both, ok := match.Meet(&o.match, &r.match)
			return ok && both.Text() == r.match.Text()
		})
		if i >= 0 {
			if out[i].to != r.to {
				r.to.note("match", "a filter besides was never asked: %v", r.match)
			}
			continue
		}
		out = append(out, r)
	}
	return out
}

// twins makes one of two rules that say the same of both families, where none between them
// says otherwise.
func twins(rules []rule) (out []rule) {
	for _, r := range rules {
		i := slices.IndexFunc(out, func(o rule) bool {
			return o.to == r.to && o.match.Text() == r.match.Text() && (o.family == r.family || o.family == 0 || o.family|r.family == survey.IPv4|survey.IPv6)
		})
		if i < 0 {
			out = append(out, r)
			continue
		}
		if out[i].family == r.family || out[i].family == 0 {
			continue // it is never asked
		}
		between := slices.ContainsFunc(out[i+1:], func(o rule) bool {
			_, both := match.Meet(&o.match, &r.match)
			return both && o.to != r.to && o.family != out[i].family
		})
		if between {
			out = append(out, r)
			continue
		}
		out[i].family = 0
	}
	return out
}

// joined makes one of rules that follow each other to one branch and differ in one key.
func joined(rules []rule) (out []rule) {
next:
	for _, r := range rules {
		for i := len(out) - 1; i >= 0 && out[i].to == r.to; i-- {
			if one, ok := join(&out[i].match, &r.match); ok && out[i].family == r.family {
				out[i].match = one
				continue next
			}
		}
		out = append(out, r)
	}
	return out
}

// join is [match.Join] of matches that have a rank each: with prefixes of one length.
func join(a, b *match.Match) (one match.Match, ok bool) {
	length := func(of []netip.Prefix) int {
		if len(of) == 0 {
			return -1
		}
		return of[0].Bits()
	}
	if length(a.From) != length(b.From) || length(a.To) != length(b.To) {
		return one, false
	}
	return match.Join(a, b)
}

// most bounds the matches of one place that are made for the sake of the order, beside those
// that filters say.
const most = 200

// ordered makes of rules of which the first that fits decides such of which the most
// specific does, with the same outcome: where a later one would win, an earlier one gets
// keys that hold for every packet, or a match more for what fits both.
func ordered(rules []rule) (out []rule) {
	for i := len(rules) - 1; i >= 0; i-- {
		f := rules[i]
		rivals := f.rivals(out)
		f.match = f.padded(rivals, nil)
		out = append(out, f)
		for _, r := range rivals {
			if compare(&f.match, &r.match) > 0 {
				continue
			}
			if len(out) > len(rules)+most {
				f.to.note("match", "not taken over: matches for all that filters further back fit as well: there are too many")
				continue
			}
			both, _ := f.meet(r)
			both.to = f.to
			both.match = both.padded(both.rivals(out), &r.match)
			out = append(out, both)
		}
	}
	slices.Reverse(out)
	return out
}

// rivals are the rules that lead elsewhere with packets that r fits, too.
func (r rule) rivals(rules []rule) (rivals []rule) {
	for _, s := range rules {
		if _, both := match.Meet(&r.match, &s.match); both && s.to != r.to {
			rivals = append(rivals, s)
		}
	}
	return rivals
}

// padded is the match of r with as many keys that hold for every packet as are best: that
// it wins over must, if there is one, that it is of one rank with no rival, which would be
// a mistake, and that it wins over many.
func (r rule) padded(rivals []rule, must *match.Match) match.Match {
	best, least := r.match, -1
	for m, ok := r.match, true; ok; ok = pad(&m) {
		bad := max(len(m.From), len(m.To)) / 2 // of prefixes fewer are better
		if must != nil && compare(&m, must) <= 0 {
			bad += 1_000_000
		}
		for _, s := range rivals {
			switch compare(&m, &s.match) {
			case 0:
				bad += 1000
			case -1:
				bad++
			}
		}
		if least < 0 || bad < least {
			best, least = m, bad
		}
	}
	return best
}

// compare says which of two matches wins where both fit: 1 the first, -1 the second, 0 none.
func compare(a, b *match.Match) int {
	both, ok := match.Meet(a, b)
	if !ok {
		return 1
	}
	p, ok := both.Sample(false)
	if !ok {
		return 1
	}
	return cmp.Compare(a.Rank(&p), b.Rank(&p))
}

// pad makes a match more specific that fits the same packets: by a key that holds for all of
// them, and then by halves of the prefixes that it has; false where that is of no use any more.
func pad(m *match.Match) bool {
	switch {
	case len(m.To) == 0:
		m.To = families(m.From)
	case len(m.From) == 0:
		m.From = families(m.To)
	default:
		return halve(&m.From) || halve(&m.To)
	}
	return true
}

// halve makes two of each prefix; false where they are many already, or addresses.
func halve(of *[]netip.Prefix) bool {
	const many = 16
	var halves []netip.Prefix
	for _, p := range *of {
		if p.IsSingleIP() || len(*of) > many/2 {
			return false
		}
		b := p.Addr().AsSlice()
		for range 2 {
			a, _ := netip.AddrFromSlice(b)
			halves = append(halves, netip.PrefixFrom(a, p.Bits()+1))
			b[p.Bits()/8] |= 0x80 >> (p.Bits() % 8)
		}
	}
	*of = halves
	return true
}

// families are all addresses of the families that some prefixes have; none: of both.
func families(of []netip.Prefix) (all []netip.Prefix) {
	for _, w := range match.Whole() {
		if len(of) == 0 || slices.ContainsFunc(of, func(p netip.Prefix) bool { return p.Addr().Is4() == w.Addr().Is4() }) {
			all = append(all, w)
		}
	}
	return all
}

// assign writes rules to their branches, those of one rank as one match.
func (scope *branch) assign(rules []rule) {
	for _, r := range rules {
		s := r.to.spec
		i := slices.IndexFunc(s.Match, func(m match.Match) bool { _, ok := join(&m, &r.match); return ok })
		if i < 0 {
			s.Match = append(s.Match, r.match)
			continue
		}
		s.Match[i], _ = join(&s.Match[i], &r.match)
	}
}

// name names branches by what they carry, where that is one thing, else by their class.
func (top *branch) name() {
	for _, b := range top.all() {
		if b == top || b.spec.Name != "" {
			continue
		}
		name := telling(b.targeted)
		taken := func(n string) bool {
			return slices.ContainsFunc(b.parent.children, func(o *branch) bool { return strings.EqualFold(o.spec.Name, n) })
		}
		if name == "" || name == hierarchy.RestName || hierarchy.CheckName(name) != nil || taken(name) {
			name = fmt.Sprintf("%x-%x", b.id.Major(), b.id.Minor())
		}
		b.spec.Name = name
	}
}

// telling is the name of what all of some matches are for; empty where they are not for one
// thing that has a name.
func telling(all []rule) (name string) {
	for _, r := range all {
		m := r.match
		n := ""
		switch {
		case len(m.From)+len(m.MAC)+len(m.VLAN) > 0 || len(m.To) > 0 && m.To[0].Bits() > 0:
		case len(m.DPort) == 1 && len(m.SPort) == 0 && m.DPort[0].First == m.DPort[0].Last:
			n = match.Service(m.DPort[0].First)
		case len(m.SPort) == 1 && len(m.DPort) == 0 && m.SPort[0].First == m.SPort[0].Last:
			n = match.Service(m.SPort[0].First)
		case len(m.SPort)+len(m.DPort) > 0:
		case len(m.Mark) == 1 && len(m.DSCP)+len(m.Proto) == 0:
			n = "mark-" + strings.ReplaceAll(m.Mark[0].String(), "/", "-")
		case len(m.DSCP) == 1 && len(m.Mark)+len(m.Proto) == 0:
			if n = m.DSCP[0].String(); n[0] <= '9' {
				n = "dscp-" + n
			}
		case len(m.Proto) == 1 && len(m.Mark)+len(m.DSCP) == 0:
			n = m.Proto[0].String()
		}
		if n == "" || name != "" && n != name {
			return ""
		}
		name = n
	}
	return name
}
