package match

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Packet is one as it is on the wire of an interface: Proto is what lies behind the
// headers of IP and its extensions, VLAN the outermost tag, and the parts of a packet have
// the ports of the first. What is zero is not there, and no key that asks for it fits; a
// mark and a code point are always there, 0 where nobody set them.
type Packet struct {
	Received       bool // by the interface; else it is sent
	From, To       netip.Addr
	Host           netip.Addr // of our side before translation; zero: none has translated it
	FromMAC, ToMAC MAC
	Proto          Proto
	SPort, DPort   uint16
	DSCP           DSCP
	Mark           uint32
	VLAN           VLAN
}

// words are those by which a packet is described, in the order in which they are printed.
var words = []string{"in", "from", "to", "host", "proto", "mac", "dscp", "mark", "vlan"}

// Describes says whether a word is one of those that describe a packet.
func Describes(word string) bool { return slices.Contains(words, word) }

// ParsePacket reads the description of a packet, as `vifshape which` takes it: words such
// as "to", each with its value, "1.2.3.4:443". From and to are an address, a port behind a
// colon, or both; in needs no value; mac is that of the far side.
func ParsePacket(of map[string]string) (Packet, error) {
	var p Packet
	var errs []error
	for _, w := range slices.Sorted(maps.Keys(of)) {
		if !Describes(w) {
			errs = append(errs, fmt.Errorf("a packet has no %q: known are %s", w, strings.Join(words, ", ")))
		}
	}
	for _, w := range words {
		v, ok := of[w]
		if !ok {
			continue
		}
		var err error
		switch w {
		case "in":
			if p.Received = v != "false"; p.Received && v != "" && v != "true" {
				err = fmt.Errorf("%q says nothing more of a packet that comes in: leave it out", v)
			}
		case "from":
			p.From, p.SPort, err = parseEnd(v)
		case "to":
			p.To, p.DPort, err = parseEnd(v)
		case "host":
			var port uint16
			if p.Host, port, err = parseEnd(v); err == nil && (port != 0 || !p.Host.IsValid()) {
				err = fmt.Errorf("%q: write an address alone, that of our side before translation", v)
			}
		case "proto":
			p.Proto, err = parseProto(v)
		case "mac":
			var far MAC
			if far, err = parseMAC(v); p.Received {
				p.FromMAC = far
			} else {
				p.ToMAC = far
			}
		case "dscp":
			p.DSCP, err = parseDSCP(v)
		case "mark":
			var m Mark
			if m, err = parseMark(v); err == nil && strings.Contains(v, "/") {
				err = fmt.Errorf("%q has a mask, but a packet has one mark: write %#x", v, m.Value)
			}
			p.Mark = m.Value
		case "vlan":
			p.VLAN, err = parseVLAN(v)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", w, err))
		}
	}
	switch ported := p.SPort != 0 || p.DPort != 0; {
	case len(errs) > 0:
		return Packet{}, errors.Join(errs...)
	case p.From.IsValid() && p.To.IsValid() && p.From.Is4() != p.To.Is4():
		return Packet{}, fmt.Errorf("from %v to %v: no packet has addresses of IPv4 and IPv6 at once", p.From, p.To)
	case p.Host.IsValid() && (p.From.IsValid() && p.From.Is4() != p.Host.Is4() || p.To.IsValid() && p.To.Is4() != p.Host.Is4()):
		return Packet{}, fmt.Errorf("host %v: translation stays within IPv4, or within IPv6", p.Host)
	case ported && p.Proto == 0:
		return Packet{}, fmt.Errorf("a packet with a port is of some protocol: say proto tcp, or udp")
	case ported && !p.Proto.Ported():
		return Packet{}, fmt.Errorf("proto %v has no ports: leave them out, or say %s", p.Proto, portedNames)
	}
	return p, nil
}

// parseEnd reads "1.2.3.4", "1.2.3.4:443", "2001:db8::1", "[2001:db8::1]:443" or ":443".
// A port may have a name.
func parseEnd(s string) (netip.Addr, uint16, error) {
	none := netip.Addr{}
	text, port := s, ""
	switch i := strings.LastIndexByte(s, ':'); {
	case strings.HasPrefix(s, "["):
		inside, behind, closed := strings.Cut(s[1:], "]")
		if !closed || behind != "" && behind[0] != ':' {
			return none, 0, fmt.Errorf("%q: write an address of IPv6 and its port as \"[2001:db8::1]:443\"", s)
		}
		text, port = inside, strings.TrimPrefix(behind, ":")
		if text == "" || behind == ":" {
			return none, 0, fmt.Errorf("%q: write an address of IPv6 and its port as \"[2001:db8::1]:443\"", s)
		}
	case i >= 0 && strings.Count(s, ":") == 1:
		if text, port = s[:i], s[i+1:]; port == "" {
			return none, 0, fmt.Errorf("%q has no port behind the colon", s)
		}
	}
	var a netip.Addr
	if text != "" || port == "" {
		p, err := parsePrefix(text)
		if err != nil {
			return none, 0, err
		}
		if !p.IsSingleIP() || strings.Contains(text, "/") {
			return none, 0, fmt.Errorf("%q is a prefix, but a packet has one address: write one such as %q", s, p.Addr())
		}
		a = p.Addr()
	}
	if port == "" {
		return a, 0, nil
	}
	p, err := parsePorts(port)
	if err == nil && p.First != p.Last {
		err = fmt.Errorf("%q is a range, but a packet has one port", port)
	}
	if err != nil {
		return none, 0, err
	}
	return a, p.First, nil
}

// String describes the packet by the words of [ParsePacket]: "in from 1.2.3.4:443 proto
// tcp". Of the MAC addresses it has the far side's.
func (p Packet) String() string {
	var all []string
	say := func(there bool, format string, v ...any) {
		if there {
			all = append(all, fmt.Sprintf(format, v...))
		}
	}
	far := p.ToMAC
	if p.Received {
		far = p.FromMAC
	}
	say(p.Received, "in")
	say(p.From.IsValid() || p.SPort != 0, "from %s", end(p.From, p.SPort))
	say(p.To.IsValid() || p.DPort != 0, "to %s", end(p.To, p.DPort))
	say(p.Host.IsValid(), "host %v", p.Host)
	say(p.Proto != 0, "proto %v", p.Proto)
	say(far != MAC{}, "mac %v", far)
	say(p.DSCP != 0, "dscp %v", p.DSCP)
	say(p.Mark != 0, "mark %#x", p.Mark)
	say(p.VLAN != 0, "vlan %v", p.VLAN)
	return strings.Join(all, " ")
}

func end(a netip.Addr, port uint16) string {
	switch {
	case !a.IsValid():
		return fmt.Sprintf(":%d", port)
	case port == 0:
		return a.String()
	}
	return netip.AddrPortFrom(a, port).String()
}
