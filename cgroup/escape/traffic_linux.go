package escape

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// traffic is what honest programs send.
func traffic() []Attempt {
	const family = "traffic"
	return []Attempt{
		{Name: "udp", Family: family, Text: "UDP", do: (*stage).plain},
		{Name: "udp6", Family: family, Text: "UDP over IPv6", do: func(s *stage) error { return s.udp(true, nil) }},
		{Name: "udp-connected", Family: family, Text: "UDP, connected socket", do: func(s *stage) error {
			return s.with(unix.AF_INET, unix.SOCK_DGRAM, 0, func(fd int) error {
				return call("connect", unix.Connect(fd, s.addr(false)))
			}, s.flood(nil, payload))
		}},
		{Name: "tcp", Family: family, Text: "TCP", do: func(s *stage) error { return s.tcp(false, 0, nil, nil) }},
		{Name: "tcp6", Family: family, Text: "TCP over IPv6", do: func(s *stage) error { return s.tcp(true, 0, nil, nil) }},
		{Name: "tcp-reset", Family: family, Text: "TCP, ended by a reset", do: func(s *stage) error {
			return s.tcp(false, 0, func(fd int) error {
				return call("setsockopt SO_LINGER", unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}))
			}, nil)
		}},
		{Name: "mptcp", Family: family, Text: "Multipath TCP", do: func(s *stage) error { return s.tcp(false, unix.IPPROTO_MPTCP, nil, nil) }},
		{Name: "sctp", Family: family, Text: "SCTP", do: func(s *stage) error { return s.handshake(unix.SOCK_STREAM, unix.IPPROTO_SCTP) }},
		{Name: "dccp", Family: family, Text: "DCCP", do: func(s *stage) error { return s.handshake(unix.SOCK_DCCP, unix.IPPROTO_DCCP) }},
		{Name: "udplite", Family: family, Text: "UDP-Lite", do: func(s *stage) error {
			return s.with(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, s.flood(s.addr(false), payload))
		}},
		{Name: "sendmmsg", Family: family, Text: "UDP, sendmmsg", do: func(s *stage) error {
			return s.udp(false, func(fd int) error {
				type mmsghdr struct {
					unix.Msghdr
					_ [8]byte // how much was sent, and padding
				}
				if err := unix.Connect(fd, s.addr(false)); err != nil {
					return call("connect", err)
				}
				iov := unix.Iovec{Base: &payload[0]}
				iov.SetLen(len(payload))
				var m [packets]mmsghdr
				for i := range m {
					m[i].Iov = &iov
					m[i].SetIovlen(1)
				}
				n, _, e := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&m)), packets, 0, 0, 0)
				if e != 0 {
					return call("sendmmsg", e)
				}
				s.Sent += int(n)
				return nil
			})
		}},
		{Name: "udp-gso", Family: family, Text: "UDP, segmented by the kernel", do: func(s *stage) error {
			return s.udp(false, option("UDP_SEGMENT", unix.IPPROTO_UDP, unix.UDP_SEGMENT, len(payload)/4))
		}},
		{Name: "zerocopy", Family: family, Text: "UDP, MSG_ZEROCOPY", do: func(s *stage) error {
			return s.with(unix.AF_INET, unix.SOCK_DGRAM, 0, option("SO_ZEROCOPY", unix.SOL_SOCKET, unix.SO_ZEROCOPY, 1), func(fd int) error {
				for range packets {
					if err := unix.Sendto(fd, payload, unix.MSG_ZEROCOPY, s.addr(false)); err != nil {
						return call("sendto MSG_ZEROCOPY", err)
					}
					s.Sent++
				}
				return nil
			})
		}},
		{Name: "sendfile", Family: family, Text: "TCP, sendfile", do: func(s *stage) error {
			return s.tcp(false, 0, nil, func(fd int) error {
				f, err := os.Open("/proc/self/exe")
				if err != nil {
					return call("open", err)
				}
				defer f.Close()
				_, err = unix.Sendfile(fd, int(f.Fd()), nil, 20000)
				s.Sent++
				return call("sendfile", err)
			})
		}},
		{Name: "splice", Family: family, Text: "TCP, splice from a pipe", do: func(s *stage) error {
			return s.tcp(false, 0, nil, func(fd int) error {
				var p [2]int
				if err := unix.Pipe2(p[:], unix.O_CLOEXEC); err != nil {
					return call("pipe2", err)
				}
				defer unix.Close(p[0])
				defer unix.Close(p[1])
				for range packets {
					if _, err := unix.Write(p[1], payload); err != nil {
						return call("write", err)
					}
				}
				_, err := unix.Splice(p[0], nil, fd, nil, packets*len(payload), 0)
				s.Sent++
				return call("splice", err)
			})
		}},
		{Name: "fragments", Family: family, Text: "UDP in fragments", do: func(s *stage) error { return s.fragments(false) }},
		{Name: "fragments6", Family: family, Text: "UDP in fragments over IPv6", do: func(s *stage) error { return s.fragments(true) }},
		{Name: "multicast", Family: family, Text: "UDP multicast", do: func(s *stage) error {
			return s.with(unix.AF_INET, unix.SOCK_DGRAM, 0, func(fd int) error {
				m := &unix.IPMreqn{Ifindex: int32(s.Index)}
				return call("setsockopt IP_MULTICAST_IF", unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, m))
			}, s.flood(&unix.SockaddrInet4{Port: int(s.Port), Addr: [4]byte{239, 1, 2, 3}}, payload))
		}},
		{Name: "broadcast", Family: family, Text: "UDP broadcast", do: func(s *stage) error {
			a := s.Near4.As4()
			a[3] = 255
			return s.with(unix.AF_INET, unix.SOCK_DGRAM, 0, option("SO_BROADCAST", unix.SOL_SOCKET, unix.SO_BROADCAST, 1),
				s.flood(&unix.SockaddrInet4{Port: int(s.Port), Addr: a}, payload))
		}},
		{Name: "ping", Family: family, Text: "ICMP echo, datagram socket", do: func(s *stage) error {
			return s.with(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, s.flood(s.addr(false), echo))
		}},
	}
}

// echo is the question of ICMP; its checksum is filled in by the kernel.
var echo = []byte{8, 0, 0, 0, 0, 0, 0, 1}

// handshake opens a connection that the far end does not take.
func (s *stage) handshake(typ, proto int) error {
	var prepare func(fd int) error
	if proto == unix.IPPROTO_DCCP {
		// linux/dccp.h: DCCP_SOCKOPT_SERVICE in SOL_DCCP
		prepare = option("DCCP_SOCKOPT_SERVICE", 269, 2, 1)
	}
	return s.with(unix.AF_INET, typ, proto, prepare, func(fd int) error {
		s.Strays += 2
		if err := unix.Connect(fd, s.addr(false)); err != unix.ECONNREFUSED {
			return call("connect", err)
		}
		s.Sent++
		return nil
	})
}

// fragments sends datagrams that are two packets each.
func (s *stage) fragments(v6 bool) error {
	err := s.with(inet(v6), unix.SOCK_DGRAM, 0, s.flood(s.addr(v6), make([]byte, 2500)))
	s.Sent *= 2
	return err
}
