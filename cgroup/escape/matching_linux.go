package escape

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// matching are packets as the match of a branch outside asks for them: by what a sender can
// choose of them. Where the tree has matches they fit these and those of all other attempts.
func matching() []Attempt {
	const family = "what others match"
	nft := Hole{Level: Tag, User: Root, Ways: []bind.Way{bind.WayNft}, Why: packetWhy}
	a := func(name, text string, do func(s *stage) error, holes ...Hole) Attempt {
		return Attempt{Name: name, Family: family, Text: text, Holes: holes, do: do}
	}
	frames := func(proto uint16, frame func(s *stage) []byte) func(s *stage) error {
		return func(s *stage) error {
			to := &unix.SockaddrLinklayer{Protocol: binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, proto)), Ifindex: s.Index, Halen: 6}
			copy(to.Addr[:], s.FarMAC)
			return s.with(unix.AF_PACKET, unix.SOCK_RAW, 0, s.flood(to, frame(s)))
		}
	}
	return []Attempt{
		a("match-ports", "a source port that is matched", func(s *stage) error {
			return s.udp(false, func(fd int) error {
				return call("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: int(s.source)}))
			})
		}),
		a("match-every-port", "ports all over", func(s *stage) error {
			return s.each(false, func(fd, i int) error {
				return call("sendto", unix.Sendto(fd, payload, 0, &unix.SockaddrInet4{Port: 1 + i*1600, Addr: s.Far4.As4()}))
			})
		}),
		a("match-dscp", "code points, one after the other", func(s *stage) error {
			return s.each(false, func(fd, i int) error {
				if err := option("IP_TOS", unix.IPPROTO_IP, unix.IP_TOS, 4*(i+63-packets))(fd); err != nil {
					return err
				}
				return call("sendto", unix.Sendto(fd, payload, 0, s.addr(false)))
			})
		}),
		a("match-dscp6", "the same over IPv6", func(s *stage) error {
			return s.each(true, func(fd, i int) error {
				if err := option("IPV6_TCLASS", unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 4*(i+63-packets))(fd); err != nil {
					return err
				}
				return call("sendto", unix.Sendto(fd, payload, 0, s.addr(true)))
			})
		}),
		a("match-from", "another's address, IP_TRANSPARENT", func(s *stage) error {
			return s.udp(false, func(fd int) error {
				if err := option("IP_TRANSPARENT", unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)(fd); err != nil {
					return err
				}
				return call("bind", unix.Bind(fd, sockaddr(netip.AddrPortFrom(anothers(s.Near4), s.source))))
			})
		}),
		a("match-from6", "another's address of IPv6, with its header, a code point and a flow label", func(s *stage) error {
			return s.sixth(func() []byte {
				b := ipv6(anothers(s.Near6), s.Far6, unix.IPPROTO_UDP, 0, s.udpHeader(payload))
				b[0], b[1], b[3] = b[0]|0xb, 0x80, 7
				return b
			})
		}),
		a("match-headers", "behind seven extension headers of IPv6", func(s *stage) error {
			return s.sixth(func() []byte { return ipv6(s.Near6, s.Far6, unix.IPPROTO_UDP, 7, s.udpHeader(payload)) })
		}),
		a("match-protocols", "each protocol of IP", func(s *stage) error {
			return s.with(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW, func(fd int) error {
				to := &unix.SockaddrInet4{Addr: s.Far4.As4()}
				for proto := byte(1); proto > 0; proto++ {
					if err := unix.Sendto(fd, ipv4(s.Near4, s.Far4, proto, 0, s.udpHeader(payload)), 0, to); err != nil {
						return call("sendto", err)
					}
					s.Sent++
				}
				return nil
			})
		}),
		a("match-parts", "parts of packets of which the first never came, IP_HDRINCL", func(s *stage) error {
			return s.rawSend(unix.AF_INET, unix.IPPROTO_RAW, ipv4(s.Near4, s.Far4, unix.IPPROTO_UDP, 7<<16|32/8, payload), nil)
		}),
		a("match-vlan", "a VLAN tag, AF_PACKET", frames(0x8100, func(s *stage) []byte {
			b := tagged(s.frame())
			b[15] = 7
			return b
		}), nft),
		a("match-mac", "another's MAC address, AF_PACKET", frames(0x0800, func(s *stage) []byte {
			b := s.frame()
			b[11]++
			return b
		}), nft),
		a("match-arp", "no IP at all, AF_PACKET", frames(0x0806, func(s *stage) []byte {
			b := s.frame()[:14]
			b[13] = 6
			// an answer that nobody asked for (RFC 826)
			b = append(b, 0, 1, 8, 0, 6, 4, 0, 2)
			b = append(append(b, s.NearMAC...), s.Near4.AsSlice()...)
			return append(append(b, s.FarMAC...), s.Far4.AsSlice()...)
		}), nft),
	}
}

// each sends packets one by one by a UDP socket.
func (s *stage) each(v6 bool, send func(fd, i int) error) error {
	return s.with(inet(v6), unix.SOCK_DGRAM, 0, func(fd int) error {
		for i := range packets {
			if err := send(fd, i); err != nil {
				return err
			}
			s.Sent++
		}
		return nil
	})
}

// sixth sends a packet with its header of IPv6.
func (s *stage) sixth(packet func() []byte) error {
	if !s.Far6.IsValid() {
		return missing("the kernel has no IPv6")
	}
	return s.rawSend(unix.AF_INET6, unix.IPPROTO_RAW, packet(), nil)
}

// expedited is a packet of IPv4 with a code point.
func expedited(b []byte) []byte {
	b[1] = 0xb8
	b[10], b[11] = 0, 0
	binary.BigEndian.PutUint16(b[10:], checksum(b[:20]))
	return b
}
