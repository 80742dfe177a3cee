package escape

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// raw are sockets below UDP and TCP.
func raw() []Attempt {
	const family = "raw sockets"
	return []Attempt{
		{Name: "raw-udp", Family: family, Text: "raw socket, UDP", do: func(s *stage) error {
			return s.rawSend(unix.AF_INET, unix.IPPROTO_UDP, s.udpHeader(payload), nil)
		}},
		{Name: "raw-udp6", Family: family, Text: "raw socket, UDP over IPv6", do: func(s *stage) error {
			return s.rawSend(unix.AF_INET6, unix.IPPROTO_UDP, s.udpHeader(payload), nil)
		}},
		{Name: "raw-priority", Family: family, Text: "raw socket and SO_PRIORITY", do: func(s *stage) error {
			return s.rawSend(unix.AF_INET, unix.IPPROTO_UDP, s.udpHeader(payload), priority(uint32(s.Root)))
		}},
		{Name: "ip-hdrincl", Family: family, Text: "IP_HDRINCL", do: func(s *stage) error {
			return s.rawSend(unix.AF_INET, unix.IPPROTO_RAW, s.ipPacket(s.Near4), nil)
		}},
		{Name: "ip-hdrincl-forged", Family: family, Text: "IP_HDRINCL, another's address, SO_PRIORITY", do: func(s *stage) error {
			return s.rawSend(unix.AF_INET, unix.IPPROTO_RAW, s.ipPacket(anothers(s.Near4)), priority(uint32(s.Other)))
		}},
		{Name: "raw-icmp", Family: family, Text: "ICMP echo, raw socket", do: func(s *stage) error {
			return s.rawSend(unix.AF_INET, unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xfe, 0, 0, 0, 1}, nil)
		}},
	}
}

// anothers is an address beside one that nobody here has.
func anothers(a netip.Addr) netip.Addr {
	b := a.AsSlice()
	b[len(b)-1] += 99
	another, _ := netip.AddrFromSlice(b)
	return another
}

func (s *stage) rawSend(family, proto int, b []byte, prepare func(int) error) error {
	to := s.addr(family == unix.AF_INET6)
	switch a := to.(type) {
	case *unix.SockaddrInet4:
		a.Port = 0
	case *unix.SockaddrInet6:
		a.Port = 0
	}
	return s.with(family, unix.SOCK_RAW, proto, prepare, s.flood(to, b))
}

// udpHeader is a datagram without a checksum.
func (s *stage) udpHeader(b []byte) []byte { return udpDatagram(s.source, s.Port, b) }

func udpDatagram(from, to uint16, b []byte) []byte {
	h := make([]byte, 8, 8+len(b))
	binary.BigEndian.PutUint16(h, from)
	binary.BigEndian.PutUint16(h[2:], to)
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(b)))
	return append(h, b...)
}

// ipPacket is a datagram with its IPv4 header.
func (s *stage) ipPacket(from netip.Addr) []byte {
	return ipv4(from, s.Far4, unix.IPPROTO_UDP, 0, s.udpHeader(payload))
}

// ipv4 is a packet, or the part of one that the second word of the header tells, which has
// the number of the whole and the offset.
func ipv4(from, to netip.Addr, proto byte, part uint32, b []byte) []byte {
	h := make([]byte, 20, 20+len(b))
	h[0], h[8], h[9] = 0x45, 64, proto
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(b)))
	binary.BigEndian.PutUint32(h[4:], part)
	src, dst := from.As4(), to.As4()
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	binary.BigEndian.PutUint16(h[10:], checksum(h))
	return append(h, b...)
}

// ipv6 is a packet behind so many headers with options for the destination.
func ipv6(from, to netip.Addr, proto byte, headers int, b []byte) []byte {
	h := make([]byte, 40, 40+8*headers+len(b))
	h[0], h[6], h[7] = 6<<4, proto, 64
	binary.BigEndian.PutUint16(h[4:], uint16(8*headers+len(b)))
	src, dst := from.As16(), to.As16()
	copy(h[8:], src[:])
	copy(h[24:], dst[:])
	for i := range headers {
		next := byte(unix.IPPROTO_DSTOPTS)
		if i == 0 {
			h[6] = next
		}
		if i == headers-1 {
			next = proto
		}
		h = append(h, next, 0, 1, 4, 0, 0, 0, 0) // padding
	}
	return append(h, b...)
}

// checksum is that of the Internet protocols (RFC 1071).
func checksum(parts ...[]byte) uint16 {
	sum := uint32(0)
	for _, b := range parts {
		for i := 0; i+1 < len(b); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(b[i:]))
		}
		if len(b)%2 == 1 {
			sum += uint32(b[len(b)-1]) << 8
		}
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return ^uint16(sum)
}

// frame is the same with an Ethernet header.
func (s *stage) frame() []byte {
	f := append(append([]byte{}, s.FarMAC...), s.NearMAC...)
	return append(append(f, 0x08, 0x00), s.ipPacket(s.Near4)...)
}
