package match

import (
	"cmp"
	"encoding/binary"
	"iter"
	"maps"
	"math"
	"net/netip"
	"slices"
)

// Place is where a match stands: the branch, as an index, and its match.
type Place struct{ Branch, Match int }

// Clash is two matches of different branches that fit the same packets, of which neither
// is more specific. Packets are some of those.
type Clash struct {
	A, B    Place
	Packets Match
}

// rule is a match with one prefix for each side, in one direction. A side for which
// it has none has the prefix of all addresses.
type rule struct {
	at               Place
	m                *Match
	hull             *hull
	sender, receiver netip.Prefix
}

// hull is the least and the greatest value of each key but those for addresses, so that
// most of the many matches that differ in one key are told apart at a glance.
type hull [8]struct{ least, most uint64 }

func (m *Match) hull() *hull {
	h := new(hull)
	of(h, 0, m.DPort, func(p Ports) (uint64, uint64) { return uint64(p.First), uint64(p.Last) })
	of(h, 1, m.Port, func(p Ports) (uint64, uint64) { return uint64(p.First), uint64(p.Last) })
	of(h, 2, m.SPort, func(p Ports) (uint64, uint64) { return uint64(p.First), uint64(p.Last) })
	of(h, 3, m.MAC, func(a MAC) (uint64, uint64) {
		n := binary.BigEndian.Uint64(append([]byte{0, 0}, a[:]...))
		return n, n
	})
	of(h, 4, m.Mark, func(x Mark) (uint64, uint64) { return uint64(x.Value), uint64(x.Value | ^x.Mask) })
	of(h, 5, m.VLAN, func(v VLAN) (uint64, uint64) { return uint64(v), uint64(v) })
	of(h, 6, m.DSCP, func(d DSCP) (uint64, uint64) { return uint64(d), uint64(d) })
	of(h, 7, m.Proto, func(p Proto) (uint64, uint64) { return uint64(p), uint64(p) })
	return h
}

func of[T any](h *hull, key int, values []T, ends func(T) (least, most uint64)) {
	x := &h[key]
	x.least, x.most = math.MaxUint64, 0
	for _, v := range values {
		least, most := ends(v)
		x.least, x.most = min(x.least, least), max(x.most, most)
	}
	if len(values) == 0 {
		x.least, x.most = 0, math.MaxUint64
	}
}

func (h *hull) apart(o *hull) bool {
	for i := range h {
		if h[i].least > o[i].most || o[i].least > h[i].most {
			return true
		}
	}
	return false
}

// group is what rules that can be of one rank have in common.
type group struct{ family, bits, keys, host int }

// shape is the lengths of prefixes.
type shape struct{ sender, receiver int }

func (r *rule) shape() shape { return shape{r.sender.Bits(), r.receiver.Bits()} }

// Clashes finds for each match the first of another branch with which it clashes, among
// the matches of branches that a packet is held against at once, for what is sent, or what
// is received. A match is in one clash at most. They are in the order of A.
func Clashes(branches [][]Match, received bool) []Clash {
	groups := map[group][]rule{}
	for i, all := range branches {
		for j := range all {
			for f, r := range all[j].rules(Place{i, j}, received) {
				g := group{f, r.sender.Bits() + r.receiver.Bits(), r.m.count(), min(len(r.m.Host), 1)}
				groups[g] = append(groups[g], r)
			}
		}
	}
	var found []Clash
	for _, g := range slices.SortedFunc(maps.Keys(groups), func(a, b group) int {
		return cmp.Or(cmp.Compare(a.family, b.family), cmp.Compare(a.bits, b.bits), cmp.Compare(a.keys, b.keys), cmp.Compare(a.host, b.host))
	}) {
		found = append(found, clashes(groups[g], received)...)
	}
	slices.SortStableFunc(found, func(a, b Clash) int {
		return cmp.Or(cmp.Compare(a.A.Branch, b.A.Branch), cmp.Compare(a.A.Match, b.A.Match))
	})
	seen := map[Place]bool{}
	return slices.DeleteFunc(found, func(c Clash) bool {
		if seen[c.A] || seen[c.B] {
			return true
		}
		seen[c.A], seen[c.B] = true, true
		return false
	})
}

// whole is the prefix of all addresses of a family.
func whole(f int) netip.Prefix {
	if f == v4 {
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// rules are those that a match comes to in one direction, each with its family.
func (m *Match) rules(at Place, received bool) iter.Seq2[int, rule] {
	return func(yield func(int, rule) bool) {
		h := m.hull()
		for _, f := range []int{v4, v6} {
			from, to, host := ofFamily(m.From, f), ofFamily(m.To, f), ofFamily(m.Host, f)
			if received {
				to = narrow(to, host)
			} else {
				from = narrow(from, host)
			}
			for _, s := range from {
				for _, r := range to {
					if !yield(f, rule{at, m, h, s.Masked(), r.Masked()}) {
						return
					}
				}
			}
		}
	}
}

// ofFamily are the prefixes of a family, all addresses where a key has none at all.
func ofFamily(of []netip.Prefix, f int) []netip.Prefix {
	if len(of) == 0 {
		return []netip.Prefix{whole(f)}
	}
	return slices.DeleteFunc(slices.Clone(of), func(p netip.Prefix) bool { return family(p.Addr()) != f })
}

// narrow are the prefixes that lie in one of both lists.
func narrow(a, b []netip.Prefix) (both []netip.Prefix) {
	for _, x := range a {
		for _, y := range b {
			if x.Overlaps(y) {
				both = append(both, longer(x, y))
			}
		}
	}
	return both
}

func longer(a, b netip.Prefix) netip.Prefix {
	if a.Bits() >= b.Bits() {
		return a
	}
	return b
}

// clashes holds rules of one group against each other. Those of two shapes can meet only
// where their prefixes are the same when both are cut to the shorter one's length.
func clashes(rules []rule, received bool) (found []Clash) {
	byShape := map[shape][]int{}
	for i := range rules {
		s := rules[i].shape()
		byShape[s] = append(byShape[s], i)
	}
	shapes := slices.SortedFunc(maps.Keys(byShape), func(a, b shape) int { return cmp.Compare(a.sender, b.sender) })
	seen := map[Place]bool{}
	for i, a := range shapes {
		for _, b := range shapes[:i+1] {
			s := shape{min(a.sender, b.sender), min(a.receiver, b.receiver)}
			type ends struct{ sender, receiver netip.Prefix }
			cut := func(r *rule) ends {
				from, _ := r.sender.Addr().Prefix(s.sender)
				to, _ := r.receiver.Addr().Prefix(s.receiver)
				return ends{from, to}
			}
			at := make(map[ends][]int, len(byShape[b]))
			for _, k := range byShape[b] {
				e := cut(&rules[k])
				at[e] = append(at[e], k)
			}
			for _, k := range byShape[a] {
				x := &rules[k]
				for _, l := range at[cut(x)] {
					y := &rules[l]
					switch {
					case x.at.Branch == y.at.Branch, a == b && x.at.Branch < y.at.Branch: // the same pair comes the other way round
						continue
					case x.hull.apart(y.hull), seen[x.at], seen[y.at]:
						continue
					}
					if both, ok := x.meet(y, received); ok {
						c := Clash{x.at, y.at, both}
						if c.A.Branch > c.B.Branch {
							c.A, c.B = c.B, c.A
						}
						seen[x.at], seen[y.at] = true, true
						found = append(found, c)
					}
				}
			}
		}
	}
	return found
}

// meet is what two rules of one group, whose prefixes overlap, fit at one rank.
func (r *rule) meet(o *rule, received bool) (both Match, ok bool) {
	a, b := r.m, o.m
	farA, nearA, farB, nearB := a.DPort, a.SPort, b.DPort, b.SPort
	if received {
		farA, nearA, farB, nearB = nearA, farA, nearB, farB
	}
	far, near, port := meetPorts(farA, farB), meetPorts(nearA, nearB), meetPorts(a.Port, b.Port)
	ported := len(a.Port)+len(b.Port)+len(a.SPort)+len(b.SPort)+len(a.DPort)+len(b.DPort) > 0
	protos, okProto := meetSets(a.Proto, b.Proto)
	if ported && len(protos) > 0 {
		okProto = slices.ContainsFunc(protos, Proto.Ported)
	}
	macs, okMAC := meetSets(a.MAC, b.MAC)
	dscps, okDSCP := meetSets(a.DSCP, b.DSCP)
	vlans, okVLAN := meetSets(a.VLAN, b.VLAN)
	marks, okMark := meetMarks(a.Mark, b.Mark)
	switch {
	case !okProto, !okMAC, !okDSCP, !okVLAN, !okMark, len(far) == 0 || len(near) == 0 || len(port) == 0:
		return Match{}, false
	case len(meetPorts(far, port)) > 0: // on the far side
	case len(a.Port) == 0 || len(b.Port) == 0 || len(meetPorts(near, port)) == 0 || len(without(far, a.Port, b.Port)) == 0: // nor on ours alone
		return Match{}, false
	}
	both = Match{MAC: macs, Proto: protos, DSCP: dscps, Mark: marks, VLAN: vlans, Port: said(port)}
	both.DPort, both.SPort = said(far), said(near)
	if received {
		both.DPort, both.SPort = both.SPort, both.DPort
	}
	// The prefix of all addresses tells a family only where the match has one.
	if from := longer(r.sender, o.sender); from.Bits() > 0 {
		both.From = []netip.Prefix{from}
	}
	if to := longer(r.receiver, o.receiver); to.Bits() > 0 {
		both.To = []netip.Prefix{to}
	}
	if near := &both.From; len(a.Host) > 0 {
		if received {
			near = &both.To
		}
		both.Host, *near = *near, nil
	}
	if f := families(a.From) & families(a.To) & families(a.Host) & families(b.From) & families(b.To) & families(b.Host); both.From == nil && both.To == nil && both.Host == nil && f != v4|v6 {
		if both.From = []netip.Prefix{whole(f)}; len(a.To)+len(b.To) > 0 {
			both.From, both.To = nil, both.From
		}
	}
	return both, true
}

var allPorts = []Ports{{1, maxPort}}

// said are ports that are not all.
func said(p []Ports) []Ports {
	if slices.Equal(p, allPorts) {
		return nil
	}
	return p
}

// meetPorts are the ports in both of two lists; no list is all of them.
func meetPorts(a, b []Ports) []Ports {
	a, b = normal(a), normal(b)
	var both []Ports
	for i, j := 0, 0; i < len(a) && j < len(b); {
		if x := (Ports{max(a[i].First, b[j].First), min(a[i].Last, b[j].Last)}); x.First <= x.Last {
			both = append(both, x)
		}
		if a[i].Last < b[j].Last {
			i++
		} else {
			j++
		}
	}
	return both
}

// without are ports that are in neither of two other lists.
func without(of []Ports, lists ...[]Ports) []Ports {
	for _, l := range lists {
		var others []Ports
		next := 1
		for _, p := range normal(l) {
			if int(p.First) > next {
				others = append(others, Ports{uint16(next), p.First - 1})
			}
			next = int(p.Last) + 1
		}
		if next <= maxPort {
			others = append(others, Ports{uint16(next), maxPort})
		}
		if len(others) == 0 {
			return nil
		}
		if of = meetPorts(of, others); len(of) == 0 {
			return nil
		}
	}
	return of
}

// normal are the ports of a list in ascending order, none twice; no list is all of them.
func normal(l []Ports) []Ports {
	switch len(l) {
	case 0:
		return allPorts
	case 1:
		return l
	}
	l = slices.Clone(l)
	slices.SortFunc(l, func(a, b Ports) int { return cmp.Compare(a.First, b.First) })
	n := l[:1]
	for _, p := range l[1:] {
		if last := &n[len(n)-1]; int(p.First) <= int(last.Last)+1 {
			last.Last = max(last.Last, p.Last)
		} else {
			n = append(n, p)
		}
	}
	return n
}

// meetSets are the values in both of two lists, those of the other where one is not
// there; ok where there are some, or neither is there.
func meetSets[T comparable](a, b []T) (both []T, ok bool) {
	switch {
	case len(a) == 0:
		return b, true
	case len(b) == 0:
		return a, true
	}
	for _, v := range a {
		if slices.Contains(b, v) {
			both = append(both, v)
		}
	}
	return both, len(both) > 0
}

// meetMarks is meetSets for marks.
func meetMarks(a, b []Mark) (both []Mark, ok bool) {
	switch {
	case len(a) == 0:
		return b, true
	case len(b) == 0:
		return a, true
	}
	for _, x := range a {
		for _, y := range b {
			if (x.Value^y.Value)&x.Mask&y.Mask == 0 {
				both = append(both, Mark{x.Value | y.Value, x.Mask | y.Mask})
			}
		}
	}
	return both, len(both) > 0
}
