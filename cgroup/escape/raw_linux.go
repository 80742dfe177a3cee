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
			a := s.Near4.As4()
			a[3] += 99
			return s.rawSend(unix.AF_INET, unix.IPPROTO_RAW, s.ipPacket(netip.AddrFrom4(a)), priority(uint32(s.Other)))
		}},
		{Name: "raw-icmp", Family: family, Text: "ICMP echo, raw socket", do: func(s *stage) error {
			return s.rawSend(unix.AF_INET, unix.IPPROTO_ICMP, []byte{8, 0, 0xf7, 0xfe, 0, 0, 0, 1}, nil)
		}},
	}
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
func (s *stage) udpHeader(b []byte) []byte {
	h := make([]byte, 8, 8+len(b))
	binary.BigEndian.PutUint16(h, 4000)
	binary.BigEndian.PutUint16(h[2:], s.Port)
	binary.BigEndian.PutUint16(h[4:], uint16(8+len(b)))
	return append(h, b...)
}

// ipPacket is a datagram with its IPv4 header.
func (s *stage) ipPacket(from netip.Addr) []byte {
	u := s.udpHeader(payload)
	h := make([]byte, 20, 20+len(u))
	h[0], h[8], h[9] = 0x45, 64, unix.IPPROTO_UDP
	binary.BigEndian.PutUint16(h[2:], uint16(20+len(u)))
	src, dst := from.As4(), s.Far4.As4()
	copy(h[12:], src[:])
	copy(h[16:], dst[:])
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(h[i:]))
	}
	sum = sum>>16 + sum&0xffff
	sum += sum >> 16
	binary.BigEndian.PutUint16(h[10:], ^uint16(sum))
	return append(h, u...)
}

// frame is the same with an Ethernet header.
func (s *stage) frame() []byte {
	f := append(append([]byte{}, s.FarMAC...), s.NearMAC...)
	return append(append(f, 0x08, 0x00), s.ipPacket(s.Near4)...)
}
