package match

import (
	"iter"
	"net/netip"
)

// Case is some of the packets that a match fits in one direction, all of one rank. It is
// what a match comes to where packets are looked up by what they are, not held against one
// match after the other.
type Case struct {
	Family           int          // of the addresses: 4, 6, or 0 for packets that are not IP
	Sender, Receiver netip.Prefix // of all addresses of the family where the match has none
	Host             bool         // the one on our side is as it is before translation
	Far, Near        []Ports      // on either side, none twice and in ascending order; nil: any, and none
	MAC              []MAC        // on one side; nil, as the following: any, and none
	MACFar           bool         // that is the far one
	Proto            []Proto
	DSCP             []DSCP
	Mark             []Mark
	VLAN             []VLAN
	Rank             Rank
}

// Cases are those of the match for what is sent, or what is received: the rank of a packet
// is the greatest of the cases that it is in.
func (m *Match) Cases(received bool) iter.Seq[Case] {
	return func(yield func(Case) bool) {
		for c := range m.sides(received) {
			for _, portFar := range []bool{true, false} {
				for _, macFar := range []bool{true, false} {
					if !portFar && len(m.Port) == 0 || !macFar && len(m.MAC) == 0 {
						continue
					}
					x := c
					far, near := m.DPort, m.SPort
					if received {
						far, near = near, far
					}
					x.Far, x.Near = onEither(far, m.Port, portFar), onEither(near, m.Port, !portFar)
					if x.Far != nil && len(x.Far) == 0 || x.Near != nil && len(x.Near) == 0 {
						continue
					}
					x.MACFar = macFar
					x.Rank = rank(max(c.Sender.Bits(), 0)+max(c.Receiver.Bits(), 0), m.count(), portFar, macFar, x.Host)
					if !yield(x) {
						return
					}
				}
			}
		}
	}
}

// sides are cases of which neither ports nor the rank is filled in.
func (m *Match) sides(received bool) iter.Seq[Case] {
	return func(yield func(Case) bool) {
		all := Case{Host: len(m.Host) > 0, MAC: m.MAC, Proto: m.Proto, DSCP: m.DSCP, Mark: m.Mark, VLAN: m.VLAN}
		if len(m.From)+len(m.To)+len(m.Host) == 0 && !yield(all) {
			return
		}
		for f, r := range m.rules(Place{}, received) {
			x := all
			x.Family, x.Sender, x.Receiver = 4, r.sender, r.receiver
			if f == v6 {
				x.Family = 6
			}
			if !yield(x) {
				return
			}
		}
	}
}

// onEither are the ports that a side's own key and, if here, that for either side leave.
func onEither(own, either []Ports, here bool) []Ports {
	switch here = here && len(either) > 0; {
	case here:
		return append([]Ports{}, meetPorts(own, either)...)
	case len(own) > 0:
		return normal(own)
	}
	return nil
}
