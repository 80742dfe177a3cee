//go:build linux

package survey

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"

	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Attributes of u32 in linux/pkt_cls.h.
const (
	tcaU32Link = 3
	tcaU32Sel  = 5
	tcaU32Mark = 10
)

// u32Own is the first table that the kernel makes by itself: packets begin in these
// (gen_new_htid, net/sched/cls_u32.c, v6.12).
const u32Own = 0x80000000

// u32 reads the filter by bytes of the packet.
func (x *Filter) u32(f *rtnl.Filter) error {
	if f.Handle < u32Own {
		x.unsaid("it stands in hash table %x:, which packets come to only from another filter", f.Handle>>20)
	}
	b, behind := octets{}, false
	err := rtnl.EachAttr(f.Options, func(typ uint16, v []byte) error {
		switch typ {
		case tcaU32Link:
			x.unsaid("it leads to a hash table")
		case tcaU32Mark: // struct tc_u32_mark
			if len(v) < 8 {
				return rtnl.ErrMalformed
			}
			m := match.Mark{Value: binary.NativeEndian.Uint32(v), Mask: binary.NativeEndian.Uint32(v[4:])}
			if m.Mask != 0 && m.Value&^m.Mask == 0 {
				x.Match.Mark = []match.Mark{m}
			}
		case tcaU32Sel:
			var err error
			behind, err = b.selector(v)
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	if behind {
		x.unsaid("it looks behind a header of variable length (nexthdr), which takes a hash table to find")
	}
	x.All = len(b) == 0 && !behind && len(x.Match.Mark) == 0
	if len(b) > 0 {
		x.octets(b)
	}
	return nil
}

// selector collects the bytes that struct tc_u32_sel asks for, but for those behind a header
// of variable length.
func (b octets) selector(v []byte) (behind bool, err error) {
	const head, key = 16, 16
	if len(v) < head || len(v) < head+int(v[2])*key {
		return false, rtnl.ErrMalformed
	}
	for i := range int(v[2]) { // struct tc_u32_key
		k := v[head+i*key:]
		if binary.NativeEndian.Uint32(k[12:]) != 0 && binary.BigEndian.Uint32(k) != 0 {
			behind = true
			continue
		}
		off := int(int32(binary.NativeEndian.Uint32(k[8:])))
		for j := range 4 {
			b.ask(off+j, k[4+j], k[j])
		}
	}
	return behind, nil
}

// octet is one byte of a packet: the bits of mask are value.
type octet struct{ value, mask byte }

// octets are bytes that are asked for, by their place: from 0 the IP header, before that the
// one of Ethernet.
type octets map[int]octet

func (b octets) ask(at int, value, mask byte) {
	if mask != 0 {
		o := b[at]
		b[at] = octet{o.value | value&mask, o.mask | mask}
	}
}

// take are n bytes from a place, which are understood then.
func (b octets) take(at, n int) (value, mask []byte, any bool) {
	value, mask = make([]byte, n), make([]byte, n)
	for i := range n {
		o, ok := b[at+i]
		value[i], mask[i] = o.value, o.mask
		any = any || ok
		delete(b, at+i)
	}
	return value, mask, any
}

// layout is where an IP header has what a match may ask for.
type layout struct {
	from, to, addr   int
	proto, ports     int
	length, fragment int // -1: not there
}

func layoutOf(f Family) layout {
	if f == IPv6 {
		return layout{from: 8, to: 24, addr: 16, proto: 6, ports: 40, length: 4, fragment: -1}
	}
	return layout{from: 12, to: 16, addr: 4, proto: 9, ports: 20, length: 2, fragment: 6}
}

// octets makes of bytes what a match says.
func (x *Filter) octets(b octets) {
	if x.Family == 0 { // without a protocol: those of IPv4 are meant where nothing tells
		x.Family = IPv4
		if o := b[0]; o.mask>>4 == 0xf && o.value>>4 == 6 {
			x.Family = IPv6
		}
	}
	l := layoutOf(x.Family)
	x.ethernet(b)
	first := b[0]
	if o := first; o.mask&0xf0 != 0 { // the version says no more than the family
		b[0] = octet{o.value & 0x0f, o.mask & 0x0f}
	}
	var service octet
	if x.Family == IPv4 {
		if o := b[0]; o.mask == 0 || o.value&o.mask == 5&o.mask { // and no options are what all have
			delete(b, 0)
		}
		service = b[1]
		delete(b, 1)
	} else {
		service = octet{b[0].value<<4 | b[1].value>>4, b[0].mask<<4 | b[1].mask>>4}
		delete(b, 0)
		if b[1] = (octet{b[1].value & 0x0f, b[1].mask & 0x0f}); b[1].mask == 0 {
			delete(b, 1)
		}
	}
	x.service(service)
	if l.fragment >= 0 {
		if v, m, any := b.take(l.fragment, 2); any {
			switch value, mask := binary.BigEndian.Uint16(v), binary.BigEndian.Uint16(m); {
			case value == 0 && mask&^0x3fff == 0: // that ports are where they are looked for
				x.beside("that packets are no fragments")
			default:
				x.unsaid("it asks for fragments")
			}
		}
	}
	x.Match.From = x.address(b, l.from, l.addr, "sender")
	x.Match.To = x.address(b, l.to, l.addr, "receiver")
	if v, m, any := b.take(l.proto, 1); any {
		if m[0] != 0xff || v[0] == 0 {
			x.unsaid("it asks for protocols in bits (%#x/%#x)", v[0], m[0])
		} else {
			x.Match.Proto = []match.Proto{match.Proto(v[0])}
		}
	}
	ported := len(x.Match.Proto) == 0 || x.Match.Proto[0].Ported()
	if ported {
		x.Match.SPort = x.ports(b, l.ports)
		x.Match.DPort = x.ports(b, l.ports+2)
	}
	x.others(b, l, ported)
}

// others says what else is asked for.
func (x *Filter) others(b octets, l layout, ported bool) {
	at := slices.Sorted(maps.Keys(b))
	for len(at) > 0 {
		n := 1
		for n < len(at) && at[n] == at[0]+n {
			n++
		}
		what := fmt.Sprintf("bytes from %d", at[0])
		switch {
		case at[0] >= l.length && at[n-1] < l.length+2:
			what = "the packet's length"
		case at[0] == l.ports && !ported:
			what = "the type of a message"
		case at[0] == l.ports+13:
			what = "TCP's flags"
		}
		v, m, _ := b.take(at[0], n)
		x.unsaid("it asks for %s (%#x/%#x)", what, v, m)
		at = at[n:]
	}
}

// ethernet reads what is asked of the frame.
func (x *Filter) ethernet(b octets) {
	for _, side := range []struct {
		at   int
		name string
	}{{-14, "receiver"}, {-8, "sender"}} {
		v, m, any := b.take(side.at, 6)
		switch full := slices.Equal(m, []byte{255, 255, 255, 255, 255, 255}); {
		case !any:
		case full && len(x.Match.MAC) == 0:
			x.Match.MAC = []match.MAC{match.MAC(v)}
			x.beside("that the MAC address is the %s's", side.name)
		default:
			x.unsaid("it asks for MAC addresses in bits or on both sides")
		}
	}
	if v, m, any := b.take(-2, 2); any {
		want := map[Family]uint16{IPv4: 0x0800, IPv6: 0x86dd}[x.Family]
		if binary.BigEndian.Uint16(m) != 0xffff || binary.BigEndian.Uint16(v) != want {
			x.unsaid("it asks for frames of type %#x/%#x", v, m)
		}
	}
}

// service reads the byte of code point and ECN.
func (x *Filter) service(o octet) {
	const ecn = 3
	switch {
	case o.mask == 0:
		return
	case o.value&o.mask&ecn != 0:
		x.unsaid("it asks for bits of ECN (%#x/%#x)", o.value, o.mask)
		return
	case o.mask&ecn != 0:
		x.beside("that there is no ECN")
	}
	if o.mask&^ecn == 0 {
		x.unsaid("it asks for bits of ECN (%#x/%#x)", o.value, o.mask)
		return
	}
	for d := range byte(64) {
		if d<<2&o.mask == o.value&o.mask&^ecn {
			x.Match.DSCP = append(x.Match.DSCP, match.DSCP(d))
		}
	}
}

// address reads a prefix.
func (x *Filter) address(b octets, at, n int, of string) []netip.Prefix {
	v, m, any := b.take(at, n)
	if !any {
		return nil
	}
	return x.prefix(v, m, of)
}

func (x *Filter) prefix(value, mask []byte, of string) []netip.Prefix {
	a, ok := netip.AddrFromSlice(value)
	length := 0
	for _, m := range mask {
		length += bits.OnesCount8(m)
	}
	p, err := a.Prefix(length)
	if whole, _ := netip.AddrFromSlice(mask); !ok || err != nil || netip.PrefixFrom(ones(len(mask)), length).Masked().Addr() != whole {
		x.unsaid("it asks for bits of the %s's address (%#x/%#x)", of, value, mask)
		return nil
	}
	return []netip.Prefix{p}
}

// ones is the address with all bits.
func ones(n int) netip.Addr {
	a, _ := netip.AddrFromSlice(slices.Repeat([]byte{0xff}, n))
	return a
}

// ports reads a port, or those that share their upper bits.
func (x *Filter) ports(b octets, at int) []match.Ports {
	v, m, any := b.take(at, 2)
	if !any {
		return nil
	}
	value, mask := binary.BigEndian.Uint16(v), binary.BigEndian.Uint16(m)
	last := value | ^mask
	if bits.OnesCount16(^mask+1) > 1 || last == 0 {
		x.unsaid("it asks for bits of a port (%#x/%#x)", value, mask)
		return nil
	}
	return []match.Ports{{First: max(value, 1), Last: last}}
}
