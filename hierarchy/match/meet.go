package match

import (
	"net/netip"
	"slices"
)

// Meet is the match of the packets that fit both, ok where there are some. Neither has host,
// and not both have port or mac, which hold on either side.
func Meet(a, b *Match) (both Match, ok bool) {
	both.From, ok = meetPrefixes(a.From, b.From)
	if !ok {
		return Match{}, false
	}
	if both.To, ok = meetPrefixes(a.To, b.To); !ok {
		return Match{}, false
	}
	var sets [4]bool
	both.MAC, sets[0] = meetSets(a.MAC, b.MAC)
	both.Proto, sets[1] = meetSets(a.Proto, b.Proto)
	both.DSCP, sets[2] = meetSets(a.DSCP, b.DSCP)
	both.VLAN, sets[3] = meetSets(a.VLAN, b.VLAN)
	var marks bool
	both.Mark, marks = meetMarks(a.Mark, b.Mark)
	if sets != [4]bool{true, true, true, true} || !marks {
		return Match{}, false
	}
	for _, p := range []struct {
		a, b []Ports
		to   *[]Ports
	}{{a.Port, b.Port, &both.Port}, {a.SPort, b.SPort, &both.SPort}, {a.DPort, b.DPort, &both.DPort}} {
		if len(p.a)+len(p.b) == 0 {
			continue
		}
		if *p.to = meetPorts(p.a, p.b); len(*p.to) == 0 {
			return Match{}, false
		}
	}
	_, text, _ := both.Check()
	return both, text == "" || both.count() == 0
}

// meetPrefixes is meetSets for addresses.
func meetPrefixes(a, b []netip.Prefix) (both []netip.Prefix, ok bool) {
	switch {
	case len(a) == 0:
		return b, true
	case len(b) == 0:
		return a, true
	}
	both = narrow(a, b)
	return both, len(both) > 0
}

// Whole are the prefixes of all addresses, of IPv4 and of IPv6.
func Whole() []netip.Prefix { return []netip.Prefix{whole(v4), whole(v6)} }

// Join is one match for the packets that fit a or b, ok where there is one of the same rank
// for each packet: they differ in the values of one key at most, which neither leaves out.
func Join(a, b *Match) (one Match, ok bool) {
	differ := 0
	one.From = join(a.From, b.From, &differ)
	one.To = join(a.To, b.To, &differ)
	one.Host = join(a.Host, b.Host, &differ)
	one.MAC = join(a.MAC, b.MAC, &differ)
	one.Proto = join(a.Proto, b.Proto, &differ)
	one.Port = joinPorts(a.Port, b.Port, &differ)
	one.SPort = joinPorts(a.SPort, b.SPort, &differ)
	one.DPort = joinPorts(a.DPort, b.DPort, &differ)
	one.DSCP = join(a.DSCP, b.DSCP, &differ)
	one.Mark = join(a.Mark, b.Mark, &differ)
	one.VLAN = join(a.VLAN, b.VLAN, &differ)
	return one, differ <= 1
}

// join are the values of both lists, and 1 more in differ where they are not the same; 2
// where one is empty, which stands for all.
func join[T comparable](a, b []T, differ *int) []T {
	more := false
	all := append([]T(nil), a...)
	for _, v := range b {
		if !slices.Contains(a, v) {
			all, more = append(all, v), true
		}
	}
	switch {
	case (len(a) == 0) != (len(b) == 0):
		*differ += 2
	case more || len(a) != len(b):
		*differ++
	}
	return all
}

// joinPorts is join for ports, of which those beside each other become one range.
func joinPorts(a, b []Ports, differ *int) []Ports {
	before := *differ
	all := join(a, b, differ)
	if *differ == before || len(all) == 0 {
		return all
	}
	return normal(all)
}
