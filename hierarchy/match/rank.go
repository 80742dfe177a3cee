package match

import (
	"net/netip"
	"reflect"
	"slices"
)

// Rank says how specific a match is for a packet that it fits: the greater the more. Zero
// is that it does not fit.
type Rank uint32

// rank is made of the bits of addresses that are fixed, the number of keys, whether port and
// mac fit on the far side, where they are there, and whether host is.
func rank(bits, keys int, port, mac, host bool) Rank {
	r := Rank(bits)<<7 | Rank(keys)<<3
	if port {
		r |= 4
	}
	if mac {
		r |= 2
	}
	if host {
		r |= 1
	}
	return r
}

// Rank is that of the match for a packet, 0 where it does not fit.
func (m *Match) Rank(p *Packet) Rank {
	n := m.count()
	from, to := p.From, p.To
	ours := &from
	if p.Received {
		ours = &to
	}
	if len(m.Host) > 0 && p.Host.IsValid() {
		*ours = p.Host
	}
	sender, okS := longest(m.From, from)
	receiver, okR := longest(m.To, to)
	side := &sender
	if p.Received {
		side = &receiver
	}
	host, okH := longest(m.Host, *ours)
	*side = max(*side, host)
	nearPort, farPort, nearMAC, farMAC := p.SPort, p.DPort, p.FromMAC, p.ToMAC
	if p.Received {
		nearPort, farPort, nearMAC, farMAC = farPort, nearPort, farMAC, nearMAC
	}
	port, okP := onSide(len(m.Port), ports(m.Port, farPort), ports(m.Port, nearPort))
	mac, okM := onSide(len(m.MAC), slices.Contains(m.MAC, farMAC), slices.Contains(m.MAC, nearMAC))
	switch {
	case n == 0 || !okS || !okR || !okH || !okP || !okM,
		len(m.SPort) > 0 && !ports(m.SPort, p.SPort),
		len(m.DPort) > 0 && !ports(m.DPort, p.DPort),
		len(m.Proto) > 0 && !slices.Contains(m.Proto, p.Proto),
		len(m.DSCP) > 0 && !slices.Contains(m.DSCP, p.DSCP),
		len(m.Mark) > 0 && !slices.ContainsFunc(m.Mark, func(x Mark) bool { return x.holds(p.Mark) }),
		len(m.VLAN) > 0 && !slices.Contains(m.VLAN, p.VLAN):
		return 0
	}
	return rank(sender+receiver, n, port, mac, len(m.Host) > 0)
}

// Misses is the match with those of its keys alone that do not hold for a packet; with none
// where it fits.
func (m *Match) Misses(p *Packet) (missed Match) {
	all, no := reflect.ValueOf(m).Elem(), reflect.ValueOf(&missed).Elem()
	for i := range all.NumField() {
		var alone Match
		reflect.ValueOf(&alone).Elem().Field(i).Set(all.Field(i))
		if alone.count() > 0 && alone.Rank(p) == 0 {
			no.Field(i).Set(all.Field(i))
		}
	}
	return missed
}

// longest is the length of the longest prefix that has an address; ok where one has, and
// where none is there.
func longest(of []netip.Prefix, a netip.Addr) (length int, ok bool) {
	ok = len(of) == 0
	for _, p := range of {
		if p.Contains(a) {
			length, ok = max(length, p.Bits()), true
		}
	}
	return length, ok
}

func ports(of []Ports, port uint16) bool {
	return slices.ContainsFunc(of, func(p Ports) bool { return p.holds(port) })
}

// onSide says whether a key of so many values fits on the far side, or need not, and
// whether it fits at all.
func onSide(values int, far, near bool) (onFar, ok bool) {
	return values == 0 || far, values == 0 || far || near
}
