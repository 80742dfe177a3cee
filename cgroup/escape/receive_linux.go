package escape

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// What is known of what is received.
const (
	blindWhy    = "what answers to nothing is in the rest where nobody can be looked for"
	firstWhy    = "where nobody can be looked for, a flow is of who is seen sending by it first, until its owner sends"
	manyWhy     = "what is for many is nobody's"
	errorWhy    = "ICMP errors are nobody's"
	unfoundWhy  = "the kernel lets nobody be looked for but by TCP and UDP: what answers to nothing is in the rest"
	sniffWhy    = "what a packet socket sees is for nobody here"
	headersWhy  = "behind more than six extension headers of IPv6 nothing is looked at"
	reversedWhy = "a fragment has no port but for the first: one that comes before that is in the rest"
)

// received are ways to receive past the own branch.
func received() []Attempt {
	const family = "what it receives"
	a := func(name, text string, do func(s *stage) error, holes ...Hole) Attempt {
		return Attempt{Name: name, Family: family, Text: text, Holes: holes, Whose: Its, do: flowing(do)}
	}
	blind, seen := Hole{Blind: true, Why: blindWhy}, Hole{Blind: true, Why: firstWhy}
	dgram := func(s *stage, v6 bool, all ...func(fd int) error) error {
		return s.with(inet(v6), unix.SOCK_DGRAM, 0, all...)
	}
	asked := func(s *stage, what string) error {
		_, err := s.ask(fmt.Sprintf("%s %d", what, s.Flow))
		return err
	}
	from := func(socket func(s *stage) (int, error)) func(s *stage) error {
		return func(s *stage) error {
			fd, err := socket(s)
			if err != nil {
				return err
			}
			return steps(fd, s.questions(false), s.port, s.answers(false))
		}
	}
	return []Attempt{
		a("receive-udp", "answers over UDP", func(s *stage) error {
			return dgram(s, false, s.bound(false), s.questions(false), s.answers(false), s.gets)
		}),
		a("receive-udp6", "the same over IPv6", func(s *stage) error {
			return dgram(s, true, s.bound(true), s.questions(true), s.answers(true), s.gets)
		}),
		a("receive-tcp", "a download over TCP", func(s *stage) error { return s.download(0) }),
		a("receive-mptcp", "a download over Multipath TCP", func(s *stage) error { return s.download(unix.IPPROTO_MPTCP) }),
		a("receive-fragments", "answers in fragments", func(s *stage) error {
			return dgram(s, false, s.bound(false), s.questions(false), s.large, s.gets)
		}),
		a("receive-connection", "a connection from outside", func(s *stage) error {
			return s.with(unix.AF_INET, unix.SOCK_STREAM, 0, s.bound(false), func(fd int) error {
				if err := unix.Listen(fd, 1); err != nil {
					return call("listen", err)
				}
				s.Sent += 2
				return s.far(wish{What: "connect", To: s.here(false)})
			})
		}, blind),
		a("receive-silent", "a socket that never sends", func(s *stage) error {
			return dgram(s, false, s.bound(false), s.answers(false), s.gets)
		}, blind),
		a("receive-silent-udplite", "the same, UDP-Lite", func(s *stage) error {
			return s.with(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_UDPLITE, s.bound(false), func(int) error {
				return s.arrive(s.framed(ipv4(s.Far4, s.Near4, unix.IPPROTO_UDPLITE, 0, s.udplite())))
			}, s.gets)
		}, Hole{Why: unfoundWhy}),
		a("receive-silent-raw", "the same, a raw socket", func(s *stage) error {
			const silent = experimental + 1 // nobody has sent by it
			return s.with(unix.AF_INET, unix.SOCK_RAW, silent, func(int) error {
				return s.arrive(s.framed(ipv4(s.Far4, s.Near4, silent, 0, payload)))
			}, s.gets)
		}, Hole{Level: Tag, User: Root, Why: unfoundWhy}),
		a("receive-packet", "a packet socket sees it, of a port that nobody has", func(s *stage) error {
			return s.with(unix.AF_PACKET, unix.SOCK_RAW, 0x0008, s.answers(false), s.gets) // ETH_P_IP
		}, Hole{Level: Tag, User: Root, Why: sniffWhy}),
		a("receive-closed", "answers to a socket that is closed", func(s *stage) error {
			if err := dgram(s, false, s.bound(false), s.questions(false)); err != nil {
				return err
			}
			return s.answers(false)(-1)
		}),
		a("receive-successor", "on the port of another branch's socket that was closed, never sending", func(s *stage) error {
			return s.past(s.Outsider.Closed, s.bound(false))
		}, seen),
		a("receive-beside", "on the port of another branch's socket, connected, never sending", func(s *stage) error {
			return s.past(s.Outsider.Shared, shared, s.bound(false), func(fd int) error { return call("connect", unix.Connect(fd, s.addr(false))) })
		}, seen),
		a("receive-asked-raw", "an outsider asks in its place, raw socket", func(s *stage) error {
			if err := asked(s, "forge"); err != nil {
				return err
			}
			return dgram(s, false, s.bound(false), s.answers(false), s.gets)
		}, Hole{Blind: true, Why: helperWhy}),
		a("receive-asked-pktinfo", "an outsider asks in its place, IP_PKTINFO", func(s *stage) error {
			return dgram(s, false, s.bound(false), func(int) error { return asked(s, "pretend") }, s.answers(false), s.gets)
		}, blind),
		a("receive-multicast", "multicast", func(s *stage) error {
			return dgram(s, false, s.anywhere, func(int) error {
				s.Sent += packets
				return s.far(wish{What: "udp", To: netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 0, 1}), s.Flow)})
			}, s.gets)
		}, Hole{Why: manyWhy}),
		a("receive-broadcast", "broadcast", func(s *stage) error {
			all := s.Near4.As4()
			all[3] = 255
			return dgram(s, false, s.anywhere, func(int) error { return s.toAll(netip.AddrFrom4(all)) }, s.gets)
		}, Hole{Why: manyWhy}),
		a("receive-broadcast-frames", "to its address, in frames for all", func(s *stage) error {
			return dgram(s, false, s.bound(false), s.questions(false), func(int) error { return s.toAll(s.Near4) }, s.gets)
		}, Hole{Why: manyWhy}),
		a("receive-priority-tag", "frames with a VLAN tag of no VLAN", func(s *stage) error {
			return dgram(s, false, s.bound(false), s.questions(false), func(int) error {
				return s.arrive(tagged(s.framed(ipv4(s.Far4, s.Near4, unix.IPPROTO_UDP, 0, udpDatagram(s.Port, s.Flow, payload)))))
			}, s.gets)
		}),
		a("receive-dscp", "answers with a code point", func(s *stage) error {
			b := ipv4(s.Far4, s.Near4, unix.IPPROTO_UDP, 0, udpDatagram(s.Port, s.Flow, payload))
			return dgram(s, false, s.bound(false), s.questions(false), func(int) error { return s.arrive(s.framed(expedited(b))) }, s.gets)
		}),
		a("receive-ports", "datagrams from every other port", func(s *stage) error {
			var frames [][]byte
			for i := range uint16(packets) {
				frames = append(frames, s.framed(ipv4(s.Far4, s.Near4, unix.IPPROTO_UDP, 0, udpDatagram(1+i*1600, s.Flow, payload))))
			}
			return dgram(s, false, s.bound(false), s.questions(false), func(int) error { return s.arriveOnce(frames) }, s.gets)
		}, blind),
		a("receive-from", "datagrams from an address that is another's", func(s *stage) error {
			b := ipv4(anothers(s.Far4), s.Near4, unix.IPPROTO_UDP, 0, udpDatagram(s.Port, s.Flow, payload))
			return dgram(s, false, s.bound(false), s.questions(false), func(int) error { return s.arrive(s.framed(b)) }, s.gets)
		}, blind),
		a("receive-echo", "ICMP echoes, datagram socket", func(s *stage) error {
			return s.with(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP, s.flood(s.addr(false), echo), s.gets)
		}),
		a("receive-raw", "answers by a protocol without ports, raw socket", func(s *stage) error {
			return s.with(unix.AF_INET, unix.SOCK_RAW, experimental, func(fd int) error {
				s.Strays++ // the far end says that it does not speak it
				return call("sendto", unix.Sendto(fd, payload, 0, &unix.SockaddrInet4{Addr: s.Far4.As4()}))
			}, func(int) error {
				return s.arrive(s.framed(ipv4(s.Far4, s.Near4, experimental, 0, payload)))
			}, s.gets)
		}),
		a("receive-headers", "seven extension headers of IPv6", func(s *stage) error { return s.headers(7) }, Hole{Why: headersWhy}),
		a("receive-reversed", "fragments, the last one first", func(s *stage) error {
			var frames [][]byte
			u := udpDatagram(s.Port, s.Flow, payload)
			for i := range uint32(packets) {
				id := uint32(s.Flow)*packets + i // a number that had no first fragment yet
				for _, part := range []struct {
					at uint32
					b  []byte
				}{{32 / 8, u[32:]}, {0x2000, u[:32]}} {
					frames = append(frames, s.framed(ipv4(s.Far4, s.Near4, unix.IPPROTO_UDP, id<<16|part.at, part.b)))
				}
			}
			return dgram(s, false, s.bound(false), s.questions(false), func(int) error { return s.arriveOnce(frames) }, s.gets)
		}, Hole{Why: reversedWhy}),
		a("receive-errors", "ICMP errors, by IP_RECVERR", func(s *stage) error {
			return dgram(s, false, option("IP_RECVERR", unix.IPPROTO_IP, unix.IP_RECVERR, 1), s.bound(false), s.questions(false), func(int) error {
				b := append([]byte{3, 10, 0, 0, 0, 0, 0, 0}, ipv4(s.Near4, s.Far4, unix.IPPROTO_UDP, 0, udpDatagram(s.Flow, s.Port, make([]byte, 400)))...)
				binary.BigEndian.PutUint16(b[2:], checksum(b))
				return s.arrive(s.framed(ipv4(s.Far4, s.Near4, unix.IPPROTO_ICMP, 0, b)))
			}, func(fd int) error {
				_, _, _, _, err := unix.Recvmsg(fd, make([]byte, 1024), make([]byte, 256), unix.MSG_ERRQUEUE)
				return call("recvmsg MSG_ERRQUEUE", err)
			})
		}, Hole{Why: errorWhy}),
		a("receive-inherited", "by a socket that was open at the start", from(func(*stage) (int, error) { return 3, nil }),
			Hole{Level: Tag, Ways: v2Ways, Why: givenWhy + "; level lock closes all but standard input and output"}),
		a("receive-stdin", "by a socket that is standard input", from(func(*stage) (int, error) { return 0, nil }), Hole{Ways: v2Ways, Why: givenWhy, Impossible: true}),
		a("receive-passed", "by a socket that an outsider passes", from(func(s *stage) (int, error) { return s.ask("socket") }), Hole{Ways: v2Ways, Why: givenWhy, Impossible: true}),
		a("receive-lent", "by a connection that is passed to an outsider, and kept", func(s *stage) error {
			return s.download(0, func(fd int) error {
				_, err := s.ask("keep", fd)
				return err
			})
		}, Hole{Ways: tagWays, Why: lentWhy, Impossible: true}),
		a("receive-transparent", "at an address that is nobody's, IP_TRANSPARENT", func(s *stage) error {
			nobodys := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 123, 0, 9}), s.Flow)
			return dgram(s, false, option("IP_TRANSPARENT", unix.IPPROTO_IP, unix.IP_TRANSPARENT, 1), func(fd int) error {
				return call("bind", unix.Bind(fd, sockaddr(nobodys)))
			}, s.questions(false), func(int) error {
				return s.arrive(s.framed(ipv4(s.Far4, nobodys.Addr(), unix.IPPROTO_UDP, 0, udpDatagram(s.Port, s.Flow, payload))))
			})
		}),
		a("receive-moved", "moved by cgroup.procs", func(s *stage) error {
			if len(s.OtherDirs) == 0 {
				return missing("no hierarchy of cgroups with the branch is mounted")
			}
			for _, d := range s.OtherDirs {
				if err := s.move1("cgroup.procs", d); err != nil {
					return err
				}
			}
			return dgram(s, false, s.bound(false), s.questions(false), s.answers(false))
		}, Hole{Level: Tag, User: Root, Why: moveWhy}),
		spoiling(a("receive-ifb-delete", "delete the IFB", func(s *stage) error {
			at, err := index(s.IFB)
			if err != nil {
				return err
			}
			b := make([]byte, unix.SizeofIfInfomsg)
			binary.NativeEndian.PutUint32(b[4:], uint32(at))
			return s.rtnetlink("RTM_DELLINK", netlink.Message{Header: netlink.Header{Type: unix.RTM_DELLINK}, Data: b})
		}, Hole{Level: Tag, User: Root, Why: treeWhy})),
		spoiling(a("receive-flows-rewrite", "another class in the table of flows", func(s *stage) error {
			return dgram(s, false, s.bound(false), s.questions(false), func(int) error { return rewrite(s.Note, s.Own, s.Other) }, s.answers(false))
		}, Hole{Level: Tag, User: Root, Why: "root may write any map; level lock refuses bpf"})),
	}
}

// experimental is a protocol that nobody speaks, as is the one behind it (RFC 3692).
const experimental = 253

// spoiling has the network made anew after an attempt.
func spoiling(a Attempt) Attempt {
	a.Spoils = true
	return a
}

// flowing has an attempt send to the port that answers, and from one of its own.
func flowing(do func(s *stage) error) func(s *stage) error {
	return func(s *stage) error {
		s.Port, s.source = s.Answers, s.Flow
		return do(s)
	}
}

// far has the far end send.
func (s *stage) far(w wish) error {
	b, err := json.Marshal(w)
	if err != nil {
		return err
	}
	_, err = question("the far end", s.Far, b)
	return err
}

// here is the address of the near end at which the attempt receives.
func (s *stage) here(v6 bool) netip.AddrPort {
	if v6 {
		return netip.AddrPortFrom(s.Near6, s.Flow)
	}
	return netip.AddrPortFrom(s.Near4, s.Flow)
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// bound gives a socket the address at which the attempt receives.
func (s *stage) bound(v6 bool) func(fd int) error {
	return func(fd int) error { return call("bind", unix.Bind(fd, sockaddr(s.here(v6)))) }
}

// port takes the port that a socket has.
func (s *stage) port(fd int) error {
	a, err := unix.Getsockname(fd)
	if in, ok := a.(*unix.SockaddrInet4); ok {
		s.Flow = uint16(in.Port)
	}
	return call("getsockname", err)
}

// shared lets others have a socket's port too.
func shared(fd int) error {
	return option("SO_REUSEPORT", unix.SOL_SOCKET, unix.SO_REUSEPORT, 1)(fd)
}

// questions are what may be answered.
func (s *stage) questions(v6 bool) func(fd int) error {
	return func(fd int) error {
		for range 5 {
			if err := unix.Sendto(fd, payload, 0, s.addr(v6)); err != nil {
				return call("sendto", err)
			}
		}
		return nil
	}
}

// answers has the far end send datagrams.
func (s *stage) answers(v6 bool) func(fd int) error {
	return func(int) error {
		s.Sent += packets
		return s.far(wish{What: "udp", To: s.here(v6)})
	}
}

// large has it send datagrams that are two packets each.
func (s *stage) large(int) error {
	s.Sent += 2 * packets
	return s.far(wish{What: "udp", To: s.here(false), Size: 2500})
}

// arrive has it send a frame, as often as an attempt sends.
func (s *stage) arrive(frame []byte) error {
	return s.arriveOnce(slices.Repeat([][]byte{frame}, packets))
}

func (s *stage) arriveOnce(frames [][]byte) error {
	s.Sent += len(frames)
	return s.far(wish{What: "frames", Frames: frames})
}

// gets waits for something that is received: that it was counted elsewhere is no
// escape when it did not come.
func (s *stage) gets(fd int) error {
	t := unix.NsecToTimeval(int64(patience))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &t); err != nil {
		return call("setsockopt SO_RCVTIMEO", err)
	}
	_, err := unix.Read(fd, make([]byte, 4096))
	return call("read", err)
}

// past receives at a port of the outsider, who has sent from it more than a second ago.
func (s *stage) past(port uint16, with ...func(fd int) error) error {
	s.Flow = port
	if _, err := s.ask(fmt.Sprintf("past %d", port)); err != nil {
		return err
	}
	err := s.with(unix.AF_INET, unix.SOCK_DGRAM, 0, append(with, s.answers(false), s.gets)...)
	_, e := s.ask(fmt.Sprintf("again %d", port)) // for the next one
	return errors.Join(err, e)
}

// download opens a connection by which the far end sends, once something was done with it.
func (s *stage) download(proto int, do ...func(fd int) error) error {
	return s.with(unix.AF_INET, unix.SOCK_STREAM, proto, s.bound(false), func(fd int) error {
		if err := unix.Connect(fd, s.addr(false)); err != nil {
			return call("connect", err)
		}
		if err := steps(fd, do...); err != nil {
			return err
		}
		s.Sent += 2 // of the handshake, and of what is sent then: how much goes together is TCP's
		return s.far(wish{What: "tcp", To: s.here(false)})
	}, s.gets)
}

// anywhere binds a socket to the port alone.
func (s *stage) anywhere(fd int) error {
	return call("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: int(s.Flow)}))
}

// toAll has the far end send to an address in frames for everybody.
func (s *stage) toAll(to netip.Addr) error {
	f := s.framed(ipv4(s.Far4, to, unix.IPPROTO_UDP, 0, udpDatagram(s.Port, s.Flow, payload)))
	copy(f, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
	return s.arrive(f)
}

// framed is a packet in a frame from the far end.
func (s *stage) framed(b []byte) []byte {
	f := append(append([]byte{}, s.NearMAC...), s.FarMAC...)
	proto := uint16(0x0800)
	if b[0]>>4 == 6 {
		proto = 0x86dd
	}
	return append(binary.BigEndian.AppendUint16(f, proto), b...)
}

// tagged is a frame with a VLAN tag that names no VLAN, only a priority.
func tagged(frame []byte) []byte { return slices.Insert(slices.Clone(frame), 12, 0x81, 0, 0, 0) }

// udplite is a datagram of UDP-Lite (RFC 3828) from the far end, checked as a whole.
func (s *stage) udplite() []byte {
	b := udpDatagram(s.Port, s.Flow, payload)
	b[4], b[5] = 0, 0
	src, dst := s.Far4.As4(), s.Near4.As4()
	binary.BigEndian.PutUint16(b[6:], checksum(src[:], dst[:], []byte{0, unix.IPPROTO_UDPLITE, 0, byte(len(b))}, b))
	return b
}

// headers has the far end send datagrams over IPv6 behind so many headers with options
// for the destination.
func (s *stage) headers(n int) error {
	return s.with(unix.AF_INET6, unix.SOCK_DGRAM, 0, s.bound(true), s.questions(true), func(int) error {
		u := udpDatagram(s.Port, s.Flow, payload)
		src, dst := s.Far6.As16(), s.Near6.As16()
		binary.BigEndian.PutUint16(u[6:], checksum(src[:], dst[:], []byte{0, byte(len(u)), 0, unix.IPPROTO_UDP}, u))
		return s.arrive(s.framed(ipv6(s.Far6, s.Near6, unix.IPPROTO_UDP, n, u)))
	}, s.gets)
}
