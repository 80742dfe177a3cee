//go:build linux

package survey

import (
	"encoding/binary"
	"fmt"
	"maps"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Attributes of flower in linux/pkt_cls.h.
const (
	flowerClass      = 1
	flowerDev        = 2
	flowerAction     = 3
	flowerMACTo      = 4
	flowerMACFrom    = 6
	flowerEtherType  = 8
	flowerProto      = 9
	flowerFrom4      = 10
	flowerTo4        = 12
	flowerFrom6      = 14
	flowerTo6        = 16
	flowerTCPFrom    = 18
	flowerTCPTo      = 19
	flowerUDPFrom    = 20
	flowerUDPTo      = 21
	flowerFlags      = 22
	flowerVLAN       = 23
	flowerVLANType   = 25
	flowerTCPFromM   = 35
	flowerTCPToM     = 36
	flowerUDPFromM   = 37
	flowerUDPToM     = 38
	flowerSCTPFromM  = 39
	flowerSCTPToM    = 40
	flowerSCTPFrom   = 41
	flowerSCTPTo     = 42
	flowerService    = 73
	flowerServiceM   = 74
	flowerHardware   = 86
	flowerFromFirst  = 87
	flowerFromLast   = 88
	flowerToFirst    = 89
	flowerToLast     = 90
	flowerKnownUntil = 111
)

// flower reads the filter by what the kernel dissects of packets. Masks stand behind what
// they are of.
func (x *Filter) flower(f *rtnl.Filter) error {
	at := map[uint16][]byte{}
	err := rtnl.EachAttr(f.Options, func(typ uint16, v []byte) error {
		at[typ] = v
		return nil
	})
	if err != nil {
		return err
	}
	take := func(typ uint16, n int) []byte {
		v := at[typ]
		delete(at, typ)
		if len(v) < n {
			return nil
		}
		return v[:n]
	}
	for _, typ := range []uint16{flowerClass, flowerDev, flowerAction, flowerFlags, flowerHardware} {
		delete(at, typ)
	}
	for _, typ := range []uint16{flowerEtherType, flowerVLANType} {
		v := take(typ, 2)
		if v == nil {
			continue
		}
		switch binary.BigEndian.Uint16(v) {
		case unix.ETH_P_IP:
			x.Family = IPv4
		case unix.ETH_P_IPV6:
			x.Family = IPv6
		case unix.ETH_P_8021Q, unix.ETH_P_8021AD:
		default:
			x.unsaid("it is for packets of protocol %#04x", binary.BigEndian.Uint16(v))
		}
	}
	if v := take(flowerProto, 1); v != nil && v[0] != 0 {
		x.Match.Proto = []match.Proto{match.Proto(v[0])}
	}
	prefix := func(typ uint16, n int, of string) {
		v, m := take(typ, n), take(typ+1, n)
		if v == nil {
			return
		}
		if m == nil {
			m = slices.Repeat([]byte{0xff}, n)
		}
		p := x.prefix(v, m, of)
		if of == "sender" {
			x.Match.From = append(x.Match.From, p...)
		} else {
			x.Match.To = append(x.Match.To, p...)
		}
	}
	prefix(flowerFrom4, 4, "sender")
	prefix(flowerTo4, 4, "receiver")
	prefix(flowerFrom6, 16, "sender")
	prefix(flowerTo6, 16, "receiver")
	for _, p := range []struct {
		port, mask uint16
		to         *[]match.Ports
	}{
		{flowerTCPFrom, flowerTCPFromM, &x.Match.SPort}, {flowerUDPFrom, flowerUDPFromM, &x.Match.SPort}, {flowerSCTPFrom, flowerSCTPFromM, &x.Match.SPort},
		{flowerTCPTo, flowerTCPToM, &x.Match.DPort}, {flowerUDPTo, flowerUDPToM, &x.Match.DPort}, {flowerSCTPTo, flowerSCTPToM, &x.Match.DPort},
	} {
		v, m := take(p.port, 2), take(p.mask, 2)
		if v == nil {
			continue
		}
		b := octets{}
		for i := range v {
			mask := byte(0xff)
			if m != nil {
				mask = m[i]
			}
			b.ask(i, v[i], mask)
		}
		*p.to = append(*p.to, x.ports(b, 0)...)
	}
	span := func(first, last uint16, to *[]match.Ports) {
		if a, b := take(first, 2), take(last, 2); a != nil && b != nil {
			*to = append(*to, match.Ports{First: max(binary.BigEndian.Uint16(a), 1), Last: binary.BigEndian.Uint16(b)})
		}
	}
	span(flowerFromFirst, flowerFromLast, &x.Match.SPort)
	span(flowerToFirst, flowerToLast, &x.Match.DPort)
	if v, m := take(flowerService, 1), take(flowerServiceM, 1); v != nil {
		mask := byte(0xff)
		if m != nil {
			mask = m[0]
		}
		x.service(octet{v[0] & mask, mask})
	}
	if v := take(flowerVLAN, 2); v != nil {
		x.Match.VLAN = []match.VLAN{match.VLAN(binary.NativeEndian.Uint16(v))}
	} else if p := uint16(f.Info); p == htons(unix.ETH_P_8021Q) || p == htons(unix.ETH_P_8021AD) {
		x.unsaid("it is for frames with any tag: a match names one")
	}
	b := octets{}
	for _, m := range []struct {
		typ uint16
		at  int
	}{{flowerMACTo, -14}, {flowerMACFrom, -8}} {
		v, mask := take(m.typ, 6), take(m.typ+1, 6)
		for i := range v {
			if mask == nil {
				b.ask(m.at+i, v[i], 0xff)
			} else {
				b.ask(m.at+i, v[i], mask[i])
			}
		}
	}
	x.ethernet(b)
	// masks of what is not asked for are there, too
	masks := []uint16{flowerMACTo + 1, flowerMACFrom + 1, flowerFrom4 + 1, flowerTo4 + 1, flowerFrom6 + 1, flowerTo6 + 1}
	for _, typ := range slices.Sorted(maps.Keys(at)) {
		if int(typ) <= flowerKnownUntil && !slices.Contains(masks, typ) {
			x.unsaid("it asks for %s", flowerName(typ))
		}
	}
	x.All = len(x.Unsaid) == 0 && x.Match.Text() == "{}"
	return nil
}

// flowerName says what an attribute of flower is about.
func flowerName(typ uint16) string {
	switch {
	case typ == 24 || typ == 78:
		return "the priority of a VLAN"
	case typ >= 26 && typ <= 34 || typ >= 43 && typ <= 46 || typ >= 80 && typ <= 85:
		return "a tunnel"
	case typ == 47 || typ == 48:
		return "fragments"
	case typ >= 49 && typ <= 56:
		return "the type of a message"
	case typ >= 57 && typ <= 66:
		return "ARP"
	case typ >= 67 && typ <= 70 || typ == 99:
		return "MPLS"
	case typ == 71 || typ == 72:
		return "TCP's flags"
	case typ == 75 || typ == 76:
		return "a time to live"
	case typ == 77 || typ == 79:
		return "an inner VLAN"
	case typ >= 91 && typ <= 98:
		return "the state of the connection"
	}
	return fmt.Sprintf("attribute %d of flower", typ)
}

func htons(v uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, v))
}
