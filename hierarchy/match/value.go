package match

import (
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

const (
	maxPort = 65535
	maxDSCP = 63
	maxVLAN = 4094 // 4095 is reserved (IEEE 802.1Q)
)

// number reads a whole number in decimal, or in hexadecimal behind 0x. Ok is false for
// anything else; one too large for 64 bits is the largest.
func number(s string) (n uint64, ok bool) {
	digits, base := s, 10
	if d, hex := strings.CutPrefix(strings.ToLower(s), "0x"); hex {
		digits, base = d, 16
	}
	if digits == "" || strings.Trim(digits, "0123456789abcdef") != "" || base == 10 && strings.Trim(digits, "0123456789") != "" {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, base, 64)
	if err != nil {
		n = 1<<64 - 1
	}
	return n, true
}

// everything is what other tools call no condition at all.
func everything(s string) bool {
	return slices.Contains([]string{"any", "all", "*"}, strings.ToLower(s))
}

// parsePrefix reads an address or prefix of IPv4 or IPv6.
func parsePrefix(s string) (netip.Prefix, error) {
	none := netip.Prefix{}
	text, length, ok := strings.Cut(s, "/")
	a, err := netip.ParseAddr(text)
	if err != nil {
		return none, noAddress(s, text, length)
	}
	if a.Zone() != "" {
		return none, fmt.Errorf("%q has a zone, which no packet has: write %q", s, strings.Replace(s, "%"+a.Zone(), "", 1))
	}
	n := uint64(a.BitLen())
	if ok {
		n, ok = decimal(length)
		if mask, err := netip.ParseAddr(length); err == nil && mask.BitLen() == a.BitLen() {
			ones, contiguous := maskLength(mask)
			if !contiguous {
				return none, fmt.Errorf("%q has a mask with gaps: write prefixes", s)
			}
			return none, fmt.Errorf("%q has a mask: write its length, \"%s/%d\"", s, text, ones)
		}
		if !ok || n > uint64(a.BitLen()) {
			return none, fmt.Errorf("%q: the length of the prefix is from 0 to %d", s, a.BitLen())
		}
	}
	if a.Is4In6() && n >= 96 {
		return none, fmt.Errorf("%q is of IPv4: write %q", s, prefixText(netip.PrefixFrom(a.Unmap(), int(n)-96)))
	}
	p := netip.PrefixFrom(a, int(n))
	if p.Masked() != p {
		return none, fmt.Errorf("%q has bits behind its length: write %q, or %q for that address alone", s, p.Masked(), a)
	}
	return p, nil
}

// decimal reads digits alone, without a zero in front.
func decimal(s string) (uint64, bool) {
	n, err := strconv.ParseUint(s, 10, 64)
	return n, err == nil && strconv.FormatUint(n, 10) == s
}

func maskLength(mask netip.Addr) (ones int, contiguous bool) {
	for _, b := range mask.AsSlice() {
		ones += bits.OnesCount8(b)
	}
	p, err := mask.Prefix(ones)
	return ones, err == nil && p.Addr() == mask && (ones == 0 || mask.AsSlice()[0] >= 0x80)
}

// noAddress says what s, whose part before a slash is no address, may be instead.
func noAddress(s, text, length string) error {
	first, last, isRange := strings.Cut(text, "-")
	ap, port := netip.ParseAddrPort(s)
	switch {
	case everything(s):
		return fmt.Errorf("%q is every address: leave the key out, or write [\"0.0.0.0/0\", \"::/0\"] if it is the only one", s)
	case port == nil:
		return fmt.Errorf("%q has a port: write %q, and the port with dport, sport or port", s, ap.Addr())
	case isRange && address(first) && address(last):
		return fmt.Errorf("%q is a range: write it as prefixes, such as \"10.0.0.0/28\"", s)
	case text != "" && strings.Trim(text, "0123456789.") == "" && strings.Count(strings.Trim(text, "."), ".") < 3:
		whole := strings.Trim(text, ".") + strings.Repeat(".0", 3-strings.Count(strings.Trim(text, "."), "."))
		n, ok := decimal(length)
		if length == "" {
			n, ok = uint64(8*(1+strings.Count(strings.Trim(text, "."), "."))), true
		}
		if ok && n <= 32 && address(whole) {
			return fmt.Errorf("%q is not written in full: write \"%s/%d\"", s, whole, n)
		}
	case strings.Trim(text, "0123456789.:") != "" && strings.Contains(text, ".") && !strings.ContainsAny(text, ":*/ "):
		return fmt.Errorf("%q is no address, and names are not looked up, for what they stand for changes: write the addresses", s)
	}
	return fmt.Errorf("%q is no address: write one such as \"10.0.0.1\" or \"2001:db8::1\", or a prefix such as \"10.0.0.0/8\"", s)
}

func address(s string) bool {
	_, err := netip.ParseAddr(strings.TrimSpace(s))
	return err == nil
}

// prefixText is a prefix as it is written, without a length where that is an address's.
func prefixText(p netip.Prefix) string {
	if p.IsSingleIP() {
		return p.Addr().String()
	}
	return p.String()
}

// Ports are the ports from First to Last.
type Ports struct{ First, Last uint16 }

// parsePorts reads "443", "8000-8100" or "https".
func parsePorts(s string) (Ports, error) {
	first, last, isRange := strings.Cut(s, "-")
	a, okA := decimal(first)
	b, okB := decimal(last)
	name, behind, slash := strings.Cut(s, "/")
	colonA, colonB, colon := strings.Cut(s, ":")
	switch port := service(s); {
	case port != 0:
		return Ports{port, port}, nil
	case everything(s):
		return Ports{}, fmt.Errorf("%q is every port: leave the key out", s)
	case !isRange && okA && a >= 1 && a <= maxPort:
		return Ports{uint16(a), uint16(a)}, nil
	case !isRange && okA && a == 0:
		return Ports{}, fmt.Errorf("port 0 is in no packet: ports are from 1 to %d", maxPort)
	case !isRange && okA:
		return Ports{}, fmt.Errorf("port %s is not between 1 and %d", s, maxPort)
	case isRange && okA && (last == "" || okB && b > maxPort):
		return Ports{}, fmt.Errorf("%q: write the range with its end, \"%s-%d\"", s, first, maxPort)
	case isRange && okB && b > 0 && (first == "" || okA && a == 0):
		return Ports{}, fmt.Errorf("%q: ports begin with 1: write \"1-%s\"", s, last)
	case isRange && okA && okB && a > b:
		return Ports{}, fmt.Errorf("%q goes down: write \"%s-%s\"", s, last, first)
	case isRange && okA && okB && a > 0:
		return Ports{uint16(a), uint16(b)}, nil
	case colon && digits(colonA) && digits(colonB):
		return Ports{}, fmt.Errorf("%q: write a range as \"%s-%s\"", s, colonA, colonB)
	case slash:
		return Ports{}, fmt.Errorf("%q: write the port alone, %q, and the protocol as proto", s, portOf(name, behind))
	case service(strings.ToLower(s)) != 0:
		return Ports{}, fmt.Errorf("%q: names of ports are in lower case: write %q", s, strings.ToLower(s))
	}
	return Ports{}, fmt.Errorf("%q is no port: write a number from 1 to %d, a range such as \"8000-8100\", or a name such as \"https\"", s, maxPort)
}

func digits(s string) bool { return s != "" && strings.Trim(s, "0123456789") == "" }

// portOf is the part of "443/tcp" or "tcp/443" that is no protocol.
func portOf(before, behind string) string {
	if _, ok := protoNamed(strings.ToLower(before)); ok {
		return behind
	}
	return before
}

// String prints the ports as they are written: "443", "8000-8100".
func (p Ports) String() string {
	if p.First == p.Last {
		return strconv.Itoa(int(p.First))
	}
	return fmt.Sprintf("%d-%d", p.First, p.Last)
}

// holds says whether a port is one of these.
func (p Ports) holds(port uint16) bool { return p.First <= port && port <= p.Last }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (p Ports) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: it reads what a policy has.
func (p *Ports) UnmarshalText(t []byte) error { return read(p, t, parsePorts) }

// read is UnmarshalText of any value.
func read[T any](v *T, text []byte, parse func(string) (T, error)) error {
	x, err := parse(string(text))
	if err == nil {
		*v = x
	}
	return err
}

// Proto is what IP carries, by its number in the header. Zero is none.
type Proto uint8

// The protocols that have ports.
const (
	TCP     Proto = 6
	UDP     Proto = 17
	dccp    Proto = 33
	sctp    Proto = 132
	udplite Proto = 136
)

const portedNames = `"tcp", "udp", "dccp", "sctp" or "udplite"`

// protos are the names of protocols that machines send, as /etc/protocols has them but
// for icmpv6.
var protos = []struct {
	name string
	is   Proto
}{
	{"tcp", TCP}, {"udp", UDP}, {"icmp", 1}, {"icmpv6", 58}, {"dccp", dccp}, {"sctp", sctp}, {"udplite", udplite},
	{"igmp", 2}, {"ipip", 4}, {"ipv6", 41}, {"gre", 47}, {"esp", 50}, {"ah", 51}, {"eigrp", 88}, {"ospf", 89}, {"pim", 103}, {"vrrp", 112}, {"l2tp", 115},
}

// parseProto reads a name such as "tcp", or a number.
func parseProto(s string) (Proto, error) {
	if p, ok := protoNamed(s); ok {
		return p, nil
	}
	n, ok := number(s)
	low := strings.ToLower(s)
	_, lower := protoNamed(low)
	name, port, _ := strings.Cut(low, "/")
	_, before := protoNamed(name)
	switch {
	case ok && n >= 1 && n <= 255:
		return Proto(n), nil
	case ok:
		return 0, fmt.Errorf("protocol %s is not between 1 and 255", s)
	case everything(s) || low == "ip":
		return 0, fmt.Errorf("%q is every protocol: leave the key out", s)
	case low == "ipv4" || low == "inet":
		return 0, fmt.Errorf("%q is no protocol inside of IP: write to = \"0.0.0.0/0\" for all of IPv4", s)
	case low == "ip6" || low == "inet6":
		return 0, fmt.Errorf("%q is no protocol inside of IP: write to = \"::/0\" for all of IPv6", s)
	case low == "icmp6" || low == "ipv6-icmp":
		return 0, fmt.Errorf("%q: write \"icmpv6\"", s)
	case before && port != "":
		return 0, fmt.Errorf("%q has a port: write proto = %q and dport = %q", s, name, port)
	case lower:
		return 0, fmt.Errorf("%q: names of protocols are in lower case: write %q", s, low)
	}
	return 0, fmt.Errorf("%q is no protocol: write a name such as \"tcp\", \"udp\" or \"icmp\", or a number from 1 to 255", s)
}

func protoNamed(name string) (Proto, bool) {
	for _, p := range protos {
		if p.name == name {
			return p.is, true
		}
	}
	return 0, false
}

// Ported says whether the protocol has ports.
func (p Proto) Ported() bool {
	return p == TCP || p == UDP || p == dccp || p == sctp || p == udplite
}

// String is the name of the protocol, or its number.
func (p Proto) String() string {
	for _, x := range protos {
		if x.is == p {
			return x.name
		}
	}
	return strconv.Itoa(int(p))
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (p Proto) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: it reads what a policy has.
func (p *Proto) UnmarshalText(t []byte) error { return read(p, t, parseProto) }

// DSCP is the code point of a packet's service: the upper six bits of what was the type
// of service.
type DSCP uint8

// codePoints are the names of code points (RFC 2474, 2597, 3246, 5865, 8622).
var codePoints = []struct {
	name string
	is   DSCP
}{
	{"CS0", 0}, {"CS1", 8}, {"CS2", 16}, {"CS3", 24}, {"CS4", 32}, {"CS5", 40}, {"CS6", 48}, {"CS7", 56},
	{"AF11", 10}, {"AF12", 12}, {"AF13", 14}, {"AF21", 18}, {"AF22", 20}, {"AF23", 22},
	{"AF31", 26}, {"AF32", 28}, {"AF33", 30}, {"AF41", 34}, {"AF42", 36}, {"AF43", 38},
	{"EF", 46}, {"VA", 44}, {"LE", 1},
}

// parseDSCP reads a name such as "EF", or a number.
func parseDSCP(s string) (DSCP, error) {
	up := strings.ToUpper(s)
	for _, c := range codePoints {
		if c.name == s {
			return c.is, nil
		}
		if c.name == up {
			return 0, fmt.Errorf("%q: names of code points are in upper case: write %q", s, up)
		}
	}
	n, ok := number(s)
	switch {
	case ok && n <= maxDSCP:
		return DSCP(n), nil
	case ok && n <= 255 && n%4 == 0:
		return 0, fmt.Errorf("dscp %s is above %d; if it is the whole byte (TOS), write its upper six bits, %q", s, maxDSCP, DSCP(n/4))
	case ok:
		return 0, fmt.Errorf("dscp %s is not between 0 and %d", s, maxDSCP)
	case up == "BE" || up == "DF" || up == "DEFAULT":
		return 0, fmt.Errorf("%q: write \"CS0\"", s)
	}
	return 0, fmt.Errorf("%q is no code point: write a name such as \"EF\", \"AF41\", \"CS1\" or \"LE\", or a number from 0 to %d", s, maxDSCP)
}

// String is the name of the code point, or its number.
func (d DSCP) String() string {
	for _, c := range codePoints {
		if c.is == d {
			return c.name
		}
	}
	return strconv.Itoa(int(d))
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (d DSCP) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: it reads what a policy has.
func (d *DSCP) UnmarshalText(t []byte) error { return read(d, t, parseDSCP) }

// Mark is the marks that are Value in the bits of Mask.
type Mark struct{ Value, Mask uint32 }

// parseMark reads "0x10", "16" or "0x10/0xff".
func parseMark(s string) (Mark, error) {
	value, mask, masked := strings.Cut(s, "/")
	v, ok := number(value)
	m := uint64(1<<32 - 1)
	if masked {
		var good bool
		m, good = number(mask)
		ok = ok && good
	}
	switch {
	case !ok:
		return Mark{}, fmt.Errorf("%q is no mark: write a number such as \"0x10\", or one with a mask, \"0x10/0xff\"", s)
	case v > 1<<32-1 || m > 1<<32-1:
		return Mark{}, fmt.Errorf("%q: a mark has 32 bits", s)
	case m == 0:
		return Mark{}, fmt.Errorf("%q has an empty mask, which fits every packet: leave the key out", s)
	case v&^m != 0:
		return Mark{}, fmt.Errorf("%q fits no packet, for its value has bits that its mask leaves out: write %q", s, Mark{uint32(v & m), uint32(m)})
	}
	return Mark{uint32(v), uint32(m)}, nil
}

// String prints the marks as they are written: "0x10", "0x10/0xff".
func (m Mark) String() string {
	if m.Mask == 1<<32-1 {
		return fmt.Sprintf("%#x", m.Value)
	}
	return fmt.Sprintf("%#x/%#x", m.Value, m.Mask)
}

func (m Mark) holds(mark uint32) bool { return mark&m.Mask == m.Value }

// MarshalText implements encoding.TextMarshaler with the form of String.
func (m Mark) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: it reads what a policy has.
func (m *Mark) UnmarshalText(t []byte) error { return read(m, t, parseMark) }

// MAC is an address of Ethernet. Zero is none.
type MAC [6]byte

// parseMAC reads "52:54:00:12:34:56".
func parseMAC(s string) (MAC, error) {
	var m MAC
	hex := strings.NewReplacer(":", "", "-", "", ".", "").Replace(strings.ToLower(s))
	if len(hex) != 12 || strings.Trim(hex, "0123456789abcdef") != "" {
		return MAC{}, fmt.Errorf("%q is no MAC address: write six bytes such as \"52:54:00:12:34:56\"", s)
	}
	for i := range m {
		n, _ := strconv.ParseUint(hex[2*i:2*i+2], 16, 8)
		m[i] = byte(n)
	}
	switch {
	case m == MAC{}:
		return MAC{}, fmt.Errorf("%q is nobody's MAC address", s)
	case m.String() != strings.ToLower(s):
		return MAC{}, fmt.Errorf("%q: write it with colons, %q", s, m)
	}
	return m, nil
}

// String prints the address as it is written, in lower case.
func (m MAC) String() string {
	return fmt.Sprintf("%02x:%02x:%02x:%02x:%02x:%02x", m[0], m[1], m[2], m[3], m[4], m[5])
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (m MAC) MarshalText() ([]byte, error) { return []byte(m.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler: it reads what a policy has.
func (m *MAC) UnmarshalText(t []byte) error { return read(m, t, parseMAC) }

// VLAN is the number in the outermost tag of a frame. Zero is no tag.
type VLAN uint16

// parseVLAN reads a number.
func parseVLAN(s string) (VLAN, error) {
	n, ok := number(s)
	switch {
	case ok && n >= 1 && n <= maxVLAN:
		return VLAN(n), nil
	case ok:
		return 0, fmt.Errorf("vlan %s is not between 1 and %d", s, maxVLAN)
	}
	return 0, fmt.Errorf("%q is no VLAN: write its number, from 1 to %d", s, maxVLAN)
}

// String is the number.
func (v VLAN) String() string { return strconv.Itoa(int(v)) }
