package match

import (
	"net/netip"
	"slices"
)

// Addresses that are nobody's (RFC 5737, RFC 3849) and a protocol that nobody speaks (RFC
// 3692), for what a match leaves open.
var (
	nobodys4 = [2]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")}
	nobodys6 = [2]netip.Addr{netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::2")}
)

const nobodysProto Proto = 253

// Sample is a packet, sent or received, that fits the match; ok is false where none does, for
// its keys exclude each other.
func (m *Match) Sample(received bool) (p Packet, ok bool) {
	p.Received = received
	if p.From, p.To, ok = m.ends(received); !ok {
		return p, false
	}
	p.Proto = nobodysProto
	if len(m.Proto) > 0 {
		p.Proto = m.Proto[0]
	}
	if len(m.Port)+len(m.SPort)+len(m.DPort) > 0 {
		p.Proto = UDP
		if i := slices.IndexFunc(m.Proto, Proto.Ported); i >= 0 {
			p.Proto = m.Proto[i]
		}
		p.SPort, p.DPort = m.ports()
	}
	if len(m.MAC) > 0 && received {
		p.FromMAC = m.MAC[0]
	} else if len(m.MAC) > 0 {
		p.ToMAC = m.MAC[0]
	}
	if len(m.DSCP) > 0 {
		p.DSCP = m.DSCP[0]
	}
	if len(m.Mark) > 0 {
		p.Mark = m.Mark[0].Value
	}
	if len(m.VLAN) > 0 {
		p.VLAN = m.VLAN[0]
	}
	return p, m.Rank(&p) > 0
}

// ends are addresses of one family that From, To and Host have.
func (m *Match) ends(received bool) (from, to netip.Addr, ok bool) {
	senders, receivers := m.From, within(m.To, m.Host)
	if !received {
		senders, receivers = within(m.From, m.Host), m.To
	}
	for _, is4 := range []bool{true, false} {
		nobodys := nobodys6
		if is4 {
			nobodys = nobodys4
		}
		from, okFrom := first(senders, is4, len(m.From) > 0 || !received && len(m.Host) > 0, nobodys[0])
		to, okTo := first(receivers, is4, len(m.To) > 0 || received && len(m.Host) > 0, nobodys[1])
		if okFrom && okTo {
			return from, to, true
		}
	}
	return from, to, false
}

// within are the prefixes that lie in both keys, of which either may be left out.
func within(a, b []netip.Prefix) (both []netip.Prefix) {
	if len(a) == 0 || len(b) == 0 {
		return slices.Concat(a, b)
	}
	for _, x := range a {
		for _, y := range b {
			switch {
			case !x.Overlaps(y):
			case x.Bits() > y.Bits():
				both = append(both, x)
			default:
				both = append(both, y)
			}
		}
	}
	return both
}

// first is the first address of a family, or where there is no key another one.
func first(of []netip.Prefix, is4, key bool, other netip.Addr) (netip.Addr, bool) {
	if !key {
		return other, true
	}
	for _, p := range of {
		if p.Addr().Is4() == is4 {
			return p.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// ports are a sender's and a receiver's that SPort, DPort and Port have.
func (m *Match) ports() (sport, dport uint16) {
	either := func(of, other []Ports) (uint16, uint16) {
		for _, x := range of {
			for _, y := range m.Port {
				if first := max(x.First, y.First); first <= min(x.Last, y.Last) {
					if len(other) > 0 {
						return first, other[0].First
					}
					return first, 0
				}
			}
		}
		return 0, 0
	}
	if len(m.SPort) > 0 {
		sport = m.SPort[0].First
	}
	if len(m.DPort) > 0 {
		dport = m.DPort[0].First
	}
	switch {
	case len(m.Port) == 0:
	case dport == 0:
		dport = m.Port[0].First
	case sport == 0:
		sport = m.Port[0].First
	default:
		if a, b := either(m.SPort, m.DPort); a > 0 {
			return a, b
		}
		dport, sport = either(m.DPort, m.SPort)
	}
	return sport, dport
}
