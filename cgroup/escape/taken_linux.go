package escape

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// taken are ways to have what others receive counted in the own branch.
func taken() []Attempt {
	const family = "what others receive"
	a := func(name, text string, do func(s *stage) error, holes ...Hole) Attempt {
		return Attempt{Name: name, Family: family, Text: text, Holes: holes, Whose: Theirs, do: flowing(do)}
	}
	// from tries something once the outsider has done something, whose answers come then.
	from := func(what string, do func(s *stage) error) func(s *stage) error {
		return func(s *stage) error {
			if _, err := s.ask(fmt.Sprintf("%s %d", what, s.Flow)); err != nil {
				return err
			}
			n := s.Sent
			err := do(s)
			if s.Sent = n; err != nil {
				return err
			}
			return s.answers(false)(-1)
		}
	}
	raw := func(s *stage) error { return s.rawSend(unix.AF_INET, unix.IPPROTO_UDP, s.udpHeader(payload), nil) }
	first := Hole{Blind: true, Why: blindWhy}
	return []Attempt{
		a("take-raw", "its address forged, raw socket", from("talk", raw)),
		a("take-raw-first", "the same, before it has sent", from("listen", raw), first),
		a("take-hdrincl", "its address forged, IP_HDRINCL", from("talk", func(s *stage) error {
			return s.rawSend(unix.AF_INET, unix.IPPROTO_RAW, s.ipPacket(s.Near4), nil)
		})),
		a("take-fragments", "the same, in fragments", from("talk", func(s *stage) error {
			return s.rawSend(unix.AF_INET, unix.IPPROTO_RAW, ipv4(s.Near4, s.Far4, unix.IPPROTO_UDP, 0x2000, s.udpHeader(payload)), nil)
		})),
		a("take-packet", "its frames forged, AF_PACKET", from("talk", func(s *stage) error { return s.packets(unix.AF_PACKET, unix.SOCK_RAW, nil) })),
		a("take-packet-first", "the same, before it has sent", from("listen", func(s *stage) error { return s.packets(unix.AF_PACKET, unix.SOCK_RAW, nil) }), first),
		a("take-packet-tagged", "the same, with a VLAN tag of no VLAN", from("listen", func(s *stage) error {
			return s.with(unix.AF_PACKET, unix.SOCK_RAW, 0, func(fd int) error {
				to := &unix.SockaddrLinklayer{Protocol: 0x0081, Ifindex: s.Index, Halen: 6} // ETH_P_8021Q
				copy(to.Addr[:], s.FarMAC)
				return s.flood(to, tagged(s.frame()))(fd)
			})
		}), first),
		a("take-pktinfo", "its address on another socket's packets, IP_PKTINFO", from("talk", (*stage).pretend)),
		a("take-pktinfo-first", "the same, before it has sent", from("listen", (*stage).pretend), first),
		a("take-port", "a second socket on its port", from("talk", func(s *stage) error {
			return s.with(unix.AF_INET, unix.SOCK_DGRAM, 0, s.bound(false), s.questions(false))
		})),
		a("take-segments", "segments of its connection forged, raw socket", func(s *stage) error {
			if _, err := s.ask(fmt.Sprintf("connect %d", s.Flow)); err != nil {
				return err
			}
			h := make([]byte, 20)
			binary.BigEndian.PutUint16(h, s.Flow)
			binary.BigEndian.PutUint16(h[2:], s.Port)
			h[12], h[13] = 5<<4, 0x10 // an acknowledgement
			err := s.rawSend(unix.AF_INET, unix.IPPROTO_TCP, h, nil)
			if s.Sent = 0; err != nil {
				return err
			}
			s.Sent++
			return s.far(wish{What: "tcp", To: s.here(false)})
		}),
		{Name: "take-free", Family: family, Text: "the address of somebody who is bound by nothing forged, raw socket", Whose: Nobodys,
			do: flowing(func(s *stage) error {
				if err := s.far(wish{What: "nobody"}); err != nil {
					return err
				}
				s.Flow, s.source = s.Answers, s.Answers
				err := raw(s)
				if s.Sent = 0; err != nil {
					return err
				}
				return s.answers(false)(-1)
			})},
	}
}

// pretend sends by a socket of another address, as if from the one at which is received.
func (s *stage) pretend() error {
	return s.with(unix.AF_INET, unix.SOCK_DGRAM, 0, func(fd int) error {
		return call("bind", unix.Bind(fd, &unix.SockaddrInet4{Port: int(s.source), Addr: [4]byte{127, 0, 0, 1}}))
	}, func(fd int) error {
		oob := make([]byte, unix.CmsgSpace(unix.SizeofInet4Pktinfo))
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		h.Level, h.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		h.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		(*unix.Inet4Pktinfo)(unsafe.Pointer(&oob[unix.CmsgLen(0)])).Spec_dst = s.Near4.As4()
		for range 5 {
			if err := unix.Sendmsg(fd, payload, oob, s.addr(false), 0); err != nil {
				return call("sendmsg IP_PKTINFO", err)
			}
		}
		return nil
	})
}

// flows is what the outsider has to receive by.
type flows struct {
	one    int // the socket by which it receives what attempts are to leave it, 0: none
	shared int // one whose port another one may have too
	ours   Served
	sent   map[uint16]time.Time // when from which port of ours
}

// newFlows sends from two ports.
func (s *stage) newFlows() (f flows, err error) {
	f.sent = map[uint16]time.Time{}
	for _, port := range []*uint16{&f.ours.Closed, &f.ours.Shared} {
		if f.shared > 0 {
			unix.Close(f.shared)
		}
		if f.shared, err = s.socket(unix.AF_INET, unix.SOCK_DGRAM, 0); err != nil {
			return f, err
		}
		own := newStage(s.Place)
		own.Flow = 0 // the kernel takes one
		if err := steps(f.shared, shared, own.bound(false), own.port); err != nil {
			return f, err
		}
		*port = own.Flow
	}
	return f, errors.Join(f.again(s, f.ours.Closed), f.again(s, f.ours.Shared))
}

// again sends once more from one of its ports, so that the flow is the outsider's.
func (f *flows) again(s *stage, port uint16) error {
	f.sent[port] = time.Now()
	s = newStage(s.Place)
	s.Flow = port
	return flowing(func(s *stage) error {
		if port == f.ours.Shared {
			return s.questions(false)(f.shared)
		}
		return s.with(unix.AF_INET, unix.SOCK_DGRAM, 0, s.bound(false), s.questions(false))
	})(s)
}

// receive is what the outsider does so that it, or who tries, is answered at a port.
func (o *outsider) receive(what, port string) error {
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil // nothing of the kind was asked
	}
	s := newStage(o.Place)
	s.Flow = uint16(n)
	open := func(typ int) (int, error) {
		if o.flows.one > 0 {
			unix.Close(o.flows.one)
		}
		var err error
		if o.flows.one, err = s.socket(unix.AF_INET, typ, 0); err != nil {
			return -1, err
		}
		return o.flows.one, s.bound(false)(o.flows.one)
	}
	return flowing(func(s *stage) error {
		switch what {
		case "past": // a unit of the time that flows are held against is about a second
			time.Sleep(time.Until(o.flows.sent[s.Flow].Add(1300 * time.Millisecond)))
		case "again":
			return o.flows.again(o.stage, s.Flow)
		case "listen":
			_, err := open(unix.SOCK_DGRAM)
			return err
		case "talk":
			fd, err := open(unix.SOCK_DGRAM)
			if err != nil {
				return err
			}
			return s.questions(false)(fd)
		case "connect":
			fd, err := open(unix.SOCK_STREAM)
			if err != nil {
				return err
			}
			return call("connect", unix.Connect(fd, s.addr(false)))
		case "forge":
			return s.rawSend(unix.AF_INET, unix.IPPROTO_UDP, s.udpHeader(payload), nil)
		case "pretend":
			return s.pretend()
		}
		return nil
	})(s)
}
