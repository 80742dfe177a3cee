package escape

import (
	"encoding/binary"
	"unsafe"

	"golang.org/x/sys/unix"
)

// options are what a program can ask of its sockets.
func options() []Attempt {
	const family = "socket options"
	prio := func(name, text string, v6, tcp bool, v func(s *stage) uint32) Attempt {
		return Attempt{Name: name, Family: family, Text: text, do: func(s *stage) error {
			if tcp {
				return s.tcp(v6, 0, priority(v(s)), nil)
			}
			return s.udp(v6, priority(v(s)))
		}}
	}
	other := func(s *stage) uint32 { return uint32(s.Other) }
	root := func(s *stage) uint32 { return uint32(s.Root) }
	set := func(name, text string, v6 bool, prepare func(s *stage) func(int) error) Attempt {
		return Attempt{Name: name, Family: family, Text: text, do: func(s *stage) error { return s.udp(v6, prepare(s)) }}
	}
	all := []Attempt{
		prio("so-priority-class", "SO_PRIORITY: another branch's class, UDP", false, false, other),
		prio("so-priority-class-udp6", "the same over IPv6", true, false, other),
		prio("so-priority-class-tcp", "the same over TCP", false, true, other),
		prio("so-priority-class-tcp6", "the same over TCP and IPv6", true, true, other),
		prio("so-priority-root", "SO_PRIORITY: the queue itself, UDP", false, false, root),
		prio("so-priority-root-udp6", "the same over IPv6", true, false, root),
		prio("so-priority-root-tcp", "the same over TCP", false, true, root),
		prio("so-priority-low", "SO_PRIORITY: 6", false, false, func(*stage) uint32 { return 6 }),
		{Name: "so-priority-cmsg", Family: family, Text: "SO_PRIORITY with each datagram", do: func(s *stage) error { return s.control(unix.SO_PRIORITY, uint32(s.Other)) }},
		{Name: "so-priority-io-uring", Family: family, Text: "SO_PRIORITY by io_uring", do: ringPriority},
		set("so-mark", "SO_MARK: another branch's class", false, func(s *stage) func(int) error {
			return option("SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(s.Other))
		}),
		{Name: "so-mark-cmsg", Family: family, Text: "SO_MARK with each datagram", do: func(s *stage) error { return s.control(unix.SO_MARK, uint32(s.Other)) }},
		set("ip-tos", "IP_TOS", false, func(*stage) func(int) error {
			return option("IP_TOS", unix.IPPROTO_IP, unix.IP_TOS, 0xb8)
		}),
		set("ipv6-tclass", "IPV6_TCLASS", true, func(*stage) func(int) error {
			return option("IPV6_TCLASS", unix.IPPROTO_IPV6, unix.IPV6_TCLASS, 0xb8)
		}),
		set("ipv6-flow-label", "IPv6 flow labels", true, func(*stage) func(int) error {
			return option("IPV6_AUTOFLOWLABEL", unix.IPPROTO_IPV6, unix.IPV6_AUTOFLOWLABEL, 1)
		}),
		set("ipv6-destination-options", "an IPv6 extension header", true, func(*stage) func(int) error {
			return func(fd int) error { // padding, eight bytes
				return call("setsockopt IPV6_DSTOPTS", unix.SetsockoptString(fd, unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, "\x00\x00\x01\x04\x00\x00\x00\x00"))
			}
		}),
		set("ip-options", "options in the IPv4 header", false, func(*stage) func(int) error {
			return func(fd int) error { // nothing, four times
				return call("setsockopt IP_OPTIONS", unix.SetsockoptString(fd, unix.IPPROTO_IP, unix.IP_OPTIONS, "\x01\x01\x01\x00"))
			}
		}),
		set("so-bindtodevice", "SO_BINDTODEVICE", false, func(s *stage) func(int) error {
			return func(fd int) error {
				return call("setsockopt SO_BINDTODEVICE", unix.BindToDevice(fd, s.Dev))
			}
		}),
		set("ip-transparent", "IP_TRANSPARENT", false, func(*stage) func(int) error {
			return option("IP_TRANSPARENT", unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1)
		}),
		set("so-txtime", "SO_TXTIME", false, func(*stage) func(int) error {
			return func(fd int) error {
				b := make([]byte, 8) // struct sock_txtime: CLOCK_MONOTONIC
				binary.NativeEndian.PutUint32(b, unix.CLOCK_MONOTONIC)
				return call("setsockopt SO_TXTIME", unix.SetsockoptString(fd, unix.SOL_SOCKET, unix.SO_TXTIME, string(b)))
			}
		}),
	}
	return all
}

// control sends datagrams with a control message of the socket level.
func (s *stage) control(typ int32, v uint32) error {
	oob := make([]byte, unix.CmsgSpace(4))
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
	h.Level, h.Type = unix.SOL_SOCKET, typ
	h.SetLen(unix.CmsgLen(4))
	binary.NativeEndian.PutUint32(oob[unix.CmsgLen(0):], v)
	return s.with(unix.AF_INET, unix.SOCK_DGRAM, 0, func(fd int) error {
		for range packets {
			if err := unix.Sendmsg(fd, payload, oob, s.addr(false), 0); err != nil {
				return call("sendmsg", err)
			}
			s.Sent++
		}
		return nil
	})
}
