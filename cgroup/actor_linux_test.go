package cgroup_test

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/prove"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// start starts an actor in a namespace and, unless dir is empty, in the cgroup dir.
func (n *network) start(t testing.TB, ns *lab.NetNS, dir string) *tctest.Actor {
	t.Helper()
	a := tctest.Start(t, ns)
	if dir != "" {
		a.Do("join %s", dir)
	}
	return a
}

// verbs are what an actor can be told.
var verbs = tctest.Verbs{
	"join": func(x tctest.Told) (string, error) { // DIR
		return "", os.WriteFile(x.Args[0]+"/cgroup.procs", []byte("0"), 0)
	},
	"nobody": func(x tctest.Told) (string, error) {
		return "", unix.Setuid(65534)
	},
	"udp": func(x tctest.Told) (string, error) { // TO N [PRIORITY]
		return "", datagrams(x.Args[0], x.Number(1), x.Args[2:])
	},
	"marked": func(x tctest.Told) (string, error) { // TO N MARK
		s, err := open(x.Args[0], unix.SOCK_DGRAM, 0, nil)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, x.Number(2)); err != nil {
			return "", err
		}
		return "", send(s, x.Args[0], x.Number(1), true)
	},
	"connected": func(x tctest.Told) (string, error) { // TO N [PRIORITY]
		s, err := open(x.Args[0], unix.SOCK_DGRAM, 0, x.Args[2:])
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.Connect(s, sockaddr(x.Args[0])); err != nil {
			return "", err
		}
		return "", send(s, x.Args[0], x.Number(1), false)
	},
	"segments": func(x tctest.Told) (string, error) { // TO N: one system call, N datagrams
		s, err := open(x.Args[0], unix.SOCK_DGRAM, 0, nil)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		const size, udpSegment = 100, 103 // UDP_SEGMENT, include/uapi/linux/udp.h
		if err := unix.SetsockoptInt(s, unix.SOL_UDP, udpSegment, size); err != nil {
			return "", err
		}
		return "", unix.Sendto(s, make([]byte, x.Number(1)*size), 0, sockaddr(x.Args[0]))
	},
	"raw": func(x tctest.Told) (string, error) { // TO N [PRIORITY]
		s, err := open(x.Args[0], unix.SOCK_RAW, unix.IPPROTO_UDP, x.Args[2:])
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		return "", send(s, x.Args[0], x.Number(1), true)
	},
	"packet": func(x tctest.Told) (string, error) { // INDEX N [PRIORITY]
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := prioritise(s, x.Args[2:]); err != nil {
			return "", err
		}
		return "", frames(s, x.Number(0), x.Number(1))
	},
	"keepPacket": func(x tctest.Told) (string, error) { // NAME
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		x.Kept[x.Args[0]] = s
		return "", err
	},
	"morePacket": func(x tctest.Told) (string, error) { // NAME INDEX N
		return "", frames(x.Kept[x.Args[0]], x.Number(1), x.Number(2))
	},
	"keep": func(x tctest.Told) (string, error) { // NAME TO
		s, err := open(x.Args[1], unix.SOCK_DGRAM, 0, nil)
		x.Kept[x.Args[0]] = s
		return "", err
	},
	"fill": func(x tctest.Told) (string, error) { // NAME INDEX: an IPv6 socket, until the kernel gives it no more memory for options
		for i := 0; ; i++ {
			m := unix.IPv6Mreq{Multiaddr: [16]byte{0xff, 0x15, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}, Interface: uint32(x.Number(1))}
			if err := unix.SetsockoptIPv6Mreq(x.Kept[x.Args[0]], unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &m); err != nil {
				return err.Error(), nil
			}
		}
	},
	"set": func(x tctest.Told) (string, error) { // NAME LEVEL OPTION HEX
		b, err := hex.DecodeString(x.Args[3])
		if err != nil {
			return "", err
		}
		return "", unix.SetsockoptString(x.Kept[x.Args[0]], x.Number(1), x.Number(2), string(b))
	},
	"bind": func(x tctest.Told) (string, error) { // NAME ADDR
		return "", unix.Bind(x.Kept[x.Args[0]], sockaddr(x.Args[1]))
	},
	"plug": func(x tctest.Told) (string, error) { // NAME TO: has no other peer from now on
		return "", unix.Connect(x.Kept[x.Args[0]], sockaddr(x.Args[1]))
	},
	"close": func(x tctest.Told) (string, error) { // NAME
		return "", unix.Close(x.Kept[x.Args[0]])
	},
	"count": func(x tctest.Told) (string, error) { // NAME: how many datagrams it has got
		for n := 0; ; n++ {
			if _, _, err := unix.Recvfrom(x.Kept[x.Args[0]], make([]byte, 1<<16), unix.MSG_DONTWAIT); err != nil {
				if err == unix.EAGAIN {
					err = nil
				}
				return fmt.Sprint(n), err
			}
		}
	},
	"frame": func(x tctest.Told) (string, error) { // INDEX HEX N
		b, err := hex.DecodeString(x.Args[1])
		if err != nil {
			return "", err
		}
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		for range x.Number(2) {
			if err := unix.Sendto(s, b, 0, &unix.SockaddrLinklayer{Ifindex: x.Number(0), Protocol: uint16(b[13])<<8 | uint16(b[12])}); err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"sink": func(x tctest.Told) (string, error) { // NAME ADDR: a socket that nobody reads
		s, err := open(x.Args[1], unix.SOCK_DGRAM, 0, nil)
		x.Kept[x.Args[0]] = s
		return "", errors.Join(err, unix.Bind(s, sockaddr(x.Args[1])))
	},
	"answer": func(x tctest.Told) (string, error) { // NAME N [SIZE]: answers N datagrams, with what they hold or so many bytes
		b := make([]byte, 1<<16)
		for range x.Number(1) {
			n, from, err := unix.Recvfrom(x.Kept[x.Args[0]], b, 0)
			if len(x.Args) > 2 {
				n = x.Number(2)
			}
			if err == nil {
				err = unix.Sendto(x.Kept[x.Args[0]], b[:n], 0, from)
			}
			if err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"ask": func(x tctest.Told) (string, error) { // NAME TO N: of a socket that may be kept; waits for each answer
		s, ok := x.Kept[x.Args[0]]
		if !ok {
			var err error
			if s, err = open(x.Args[1], unix.SOCK_DGRAM, 0, nil); err != nil {
				return "", err
			}
			x.Kept[x.Args[0]] = s
		}
		for range x.Number(2) {
			if err := unix.Sendto(s, make([]byte, 18), 0, sockaddr(x.Args[1])); err != nil {
				return "", err
			}
			if _, _, err := unix.Recvfrom(s, make([]byte, 1<<16), 0); err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"large": func(x tctest.Told) (string, error) { // TO N SIZE: datagrams of a size, in parts where it is more than fits
		s, err := open(x.Args[0], unix.SOCK_DGRAM, 0, nil)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		for range x.Number(1) {
			if err := unix.Sendto(s, make([]byte, x.Number(2)), 0, sockaddr(x.Args[0])); err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"ping": func(x tctest.Told) (string, error) { // TO N: waits for each answer
		proto, request := unix.IPPROTO_ICMP, byte(8)
		if netip.MustParseAddrPort(x.Args[0]).Addr().Is6() {
			proto, request = unix.IPPROTO_ICMPV6, 128
		}
		s, err := open(x.Args[0], unix.SOCK_RAW, proto, nil)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		id := uint16(os.Getpid())
		for range x.Number(1) {
			m := []byte{request, 0, 0, 0, byte(id >> 8), byte(id), 0, 1}
			if proto == unix.IPPROTO_ICMP { // of IPv6 it is the kernel's work
				sum := uint32(request)<<8 + uint32(id) + 1
				binary.BigEndian.PutUint16(m[2:], ^uint16(sum+sum>>16))
			}
			to := netip.MustParseAddrPort(x.Args[0])
			if err := unix.Sendto(s, m, 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0).String())); err != nil {
				return "", err
			}
			for b := make([]byte, 1500); ; {
				n, _, err := unix.Recvfrom(s, b, 0)
				if err != nil {
					return "", err
				}
				if at := map[bool]int{true: 20}[proto == unix.IPPROTO_ICMP]; n > at && b[at] != request { // its own on a loopback
					break
				}
			}
		}
		return "", nil
	},
	"forge": func(x tctest.Told) (string, error) { // PROTOCOL FROM TO N: IPv4 packets with the addresses and ports of somebody else
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		from, to := netip.MustParseAddrPort(x.Args[1]), netip.MustParseAddrPort(x.Args[2])
		m := make([]byte, 48)
		m[0], m[8], m[9] = 0x45, 64, byte(x.Number(0))
		copy(m[12:], from.Addr().AsSlice())
		copy(m[16:], to.Addr().AsSlice())
		binary.BigEndian.PutUint16(m[20:], from.Port())
		binary.BigEndian.PutUint16(m[22:], to.Port())
		binary.BigEndian.PutUint16(m[24:], 28) // of UDP the length; of TCP a number far from any window
		m[32] = 5 << 4
		for range x.Number(3) {
			if err := unix.Sendto(s, m, 0, sockaddr(netip.AddrPortFrom(to.Addr(), 0).String())); err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"pretend": func(x tctest.Told) (string, error) { // FROM TO N: datagrams by a loopback socket, with an address of this machine on them
		from, to := netip.MustParseAddrPort(x.Args[0]), x.Args[1]
		loopback, level, typ, info := netip.AddrFrom4([4]byte{127, 0, 0, 1}), unix.IPPROTO_IP, unix.IP_PKTINFO, make([]byte, unix.SizeofInet4Pktinfo)
		if copy(info[4:], from.Addr().AsSlice()); from.Addr().Is6() { // of struct in_pktinfo the second word, of in6_pktinfo the first
			loopback, level, typ, info = netip.IPv6Loopback(), unix.IPPROTO_IPV6, unix.IPV6_PKTINFO, make([]byte, unix.SizeofInet6Pktinfo)
			copy(info, from.Addr().AsSlice())
		}
		s, err := open(to, unix.SOCK_DGRAM, 0, nil)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.Bind(s, sockaddr(netip.AddrPortFrom(loopback, from.Port()).String())); err != nil {
			return "", err
		}
		oob := make([]byte, unix.CmsgSpace(len(info)))
		h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[0]))
		h.Level, h.Type = int32(level), int32(typ)
		h.SetLen(unix.CmsgLen(len(info)))
		copy(oob[unix.CmsgLen(0):], info)
		for range x.Number(2) {
			if err := unix.Sendmsg(s, make([]byte, 100), oob, sockaddr(to), 0); err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"name": func(x tctest.Told) (string, error) { // NAME: the socket's own address
		sa, err := unix.Getsockname(x.Kept[x.Args[0]])
		switch a := sa.(type) {
		case *unix.SockaddrInet4:
			return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String(), err
		case *unix.SockaddrInet6:
			return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String(), err
		}
		return "", err
	},
	"burst": func(x tctest.Told) (string, error) { // NAME TO N [PRIORITY]: answers with the processor time of a packet in ns
		s, ok := x.Kept[x.Args[0]]
		if !ok {
			var err error
			if s, err = open(x.Args[1], unix.SOCK_DGRAM, 0, x.Args[3:]); err != nil {
				return "", err
			}
			if err := unix.Connect(s, sockaddr(x.Args[1])); err != nil {
				return "", err
			}
			x.Kept[x.Args[0]] = s
		}
		before, err := processorTime()
		if err == nil {
			err = send(s, x.Args[1], x.Number(2), false)
		}
		after, err2 := processorTime()
		return fmt.Sprint(float64(after-before) / float64(x.Number(2))), errors.Join(err, err2)
	},
	"strangers": func(x tctest.Told) (string, error) { // TO N: as burst, each datagram from another port
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_UDP)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		m, to := make([]byte, 8+18), netip.MustParseAddrPort(x.Args[0])
		binary.BigEndian.PutUint16(m[2:], to.Port())
		binary.BigEndian.PutUint16(m[4:], uint16(len(m)))
		before, err := processorTime()
		for i := 0; i < x.Number(1) && err == nil; i++ {
			binary.BigEndian.PutUint16(m, uint16(1024+i))
			// Nobody waits for a raw socket's room (__ip_append_data, net/ipv4/ip_output.c, v6.12).
			for err = unix.Sendto(s, m, 0, sockaddr(x.Args[0])); err == unix.ENOBUFS; err = unix.Sendto(s, m, 0, sockaddr(x.Args[0])) {
				time.Sleep(time.Millisecond)
			}
		}
		after, err2 := processorTime()
		return fmt.Sprint(float64(after-before) / float64(x.Number(1))), errors.Join(err, err2)
	},
	"spread": func(x tctest.Told) (string, error) { // NAME TO N [PRIORITY]: as burst, each datagram to another address
		s, ok := x.Kept[x.Args[0]]
		if !ok {
			var err error
			if s, err = open(x.Args[1], unix.SOCK_DGRAM, 0, x.Args[3:]); err != nil {
				return "", err
			}
			x.Kept[x.Args[0]] = s
		}
		r, msg, to := rand.New(rand.NewPCG(3, 4)), make([]byte, 18), sockaddr(x.Args[1]).(*unix.SockaddrInet4)
		before, err := processorTime()
		for i := 0; i < x.Number(2) && err == nil; i++ {
			binary.BigEndian.PutUint32(to.Addr[:], 1<<24+r.Uint32N(99<<24))
			err = unix.Sendto(s, msg, 0, to)
		}
		after, err2 := processorTime()
		return fmt.Sprint(float64(after-before) / float64(x.Number(2))), errors.Join(err, err2)
	},
	"bulk": func(x tctest.Told) (string, error) { // NAME N: answers with the processor time of 64 KiB in ns
		before, err := processorTime()
		for i, b := 0, make([]byte, 1<<16); i < x.Number(1) && err == nil; i++ {
			_, err = unix.Write(x.Kept[x.Args[0]], b)
		}
		after, err2 := processorTime()
		return fmt.Sprint(float64(after-before) / float64(x.Number(1))), errors.Join(err, err2)
	},
	"more": func(x tctest.Told) (string, error) { // NAME TO N
		return "", send(x.Kept[x.Args[0]], x.Args[1], x.Number(2), true)
	},
	"tcp": func(x tctest.Told) (string, error) { // TO BYTES [PRIORITY]
		s, err := open(x.Args[0], unix.SOCK_STREAM, 0, x.Args[2:])
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.Connect(s, sockaddr(x.Args[0])); err != nil {
			return "", err
		}
		for left := x.Number(1); left > 0; {
			n, err := unix.Write(s, make([]byte, min(left, 1<<16)))
			if err != nil {
				return "", err
			}
			left -= n
		}
		// done when the far end has closed too
		if err := unix.Shutdown(s, unix.SHUT_WR); err != nil {
			return "", err
		}
		_, err = unix.Read(s, make([]byte, 1))
		return "", err
	},
	"spill": func(x tctest.Told) (string, error) { // TO BYTES: connects, and closes while most is still to be sent
		s, err := open(x.Args[0], unix.SOCK_STREAM, 0, nil)
		if err == nil {
			err = errors.Join(unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_SNDBUF, x.Number(1)), unix.Connect(s, sockaddr(x.Args[0])))
		}
		if err == nil {
			_, err = unix.Write(s, make([]byte, x.Number(1)))
		}
		return "", errors.Join(err, unix.Close(s))
	},
	"leave": func(x tctest.Told) (string, error) { // TO: connects and closes; the kernel does the rest
		s, err := open(x.Args[0], unix.SOCK_STREAM, 0, nil)
		if err == nil {
			err = unix.Connect(s, sockaddr(x.Args[0]))
		}
		return "", errors.Join(err, unix.Close(s))
	},
	"listen": func(x tctest.Told) (string, error) { // NAME ADDR [PROTOCOL]
		s, err := open(x.Args[1], unix.SOCK_STREAM, protocol(x, 2), nil)
		if err != nil {
			return "", err
		}
		x.Kept[x.Args[0]] = s
		if err := unix.Bind(s, sockaddr(x.Args[1])); err != nil {
			return "", err
		}
		return "", unix.Listen(s, 128)
	},
	"accept": func(x tctest.Told) (string, error) { // NAME LISTENER
		s, _, err := unix.Accept(x.Kept[x.Args[1]])
		x.Kept[x.Args[0]] = s
		return "", err
	},
	"prompt": func(x tctest.Told) (string, error) { // NAME: does not wait for more to send
		return "", unix.SetsockoptInt(x.Kept[x.Args[0]], unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	},
	"hand": func(x tctest.Told) (string, error) { // NAME COMMAND; ...: has a child that gets the socket as its first descriptor behind the standard ones, and gives it away
		file := os.NewFile(uintptr(x.Kept[x.Args[0]]), "socket")
		defer file.Close()
		delete(x.Kept, x.Args[0])
		cmd := exec.Command("/proc/self/exe", "obey")
		commands := strings.Split(strings.Join(x.Args[1:], " "), ";")
		cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
		cmd.ExtraFiles = []*os.File{file}
		out, err := cmd.Output()
		if err == nil && strings.Count(string(out), "ok") != len(commands) {
			err = errors.New(strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "; "))
		}
		return "", err
	},
	"take": func(x tctest.Told) (string, error) { // NAME: the first descriptor behind the standard ones
		x.Kept[x.Args[0]] = 3
		return "", nil
	},
	"write": func(x tctest.Told) (string, error) { // NAME BYTES
		_, err := unix.Write(x.Kept[x.Args[0]], make([]byte, x.Number(1)))
		return "", err
	},
	"writeFile": func(x tctest.Told) (string, error) { // NAME BYTES: without the process seeing them
		f, err := os.Open("/proc/self/exe")
		if err != nil {
			return "", err
		}
		defer f.Close()
		_, err = unix.Sendfile(x.Kept[x.Args[0]], int(f.Fd()), nil, x.Number(1))
		return "", err
	},
	"finish": func(x tctest.Told) (string, error) { // NAME: up to the last ACK
		c := x.Kept[x.Args[0]]
		defer unix.Close(c)
		err := unix.Shutdown(c, unix.SHUT_WR)
		for buf := make([]byte, 1<<16); err == nil; {
			var n int
			if n, err = unix.Read(c, buf); n == 0 {
				break
			}
		}
		return "", errors.Join(err, closed(c))
	},
	"serve": func(x tctest.Told) (string, error) { // NAME N BYTES: accepts N connections one after the other and answers each, up to the last ACK
		for range x.Number(1) {
			c, _, err := unix.Accept(x.Kept[x.Args[0]])
			if err != nil {
				return "", err
			}
			_, err = unix.Write(c, make([]byte, x.Number(2)))
			if err == nil {
				err = unix.Shutdown(c, unix.SHUT_WR)
			}
			for buf := make([]byte, 1<<16); err == nil; {
				var n int
				if n, err = unix.Read(c, buf); n == 0 {
					break
				}
			}
			if err == nil {
				err = closed(c)
			}
			unix.Close(c)
			if err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"dial": func(x tctest.Told) (string, error) { // TO N: connects and resets
		for range x.Number(1) {
			s, err := open(x.Args[0], unix.SOCK_STREAM, 0, nil)
			if err == nil {
				err = unix.Connect(s, sockaddr(x.Args[0]))
			}
			if err == nil {
				err = unix.SetsockoptLinger(s, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			}
			unix.Close(s)
			if err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"swarm": func(x tctest.Told) (string, error) { // TO: until it is told otherwise, forks children that open, share and use sockets
		to := x.Args[0]
		old, err := open(to, unix.SOCK_DGRAM, 0, nil)
		if err != nil {
			return "", err
		}
		file := os.NewFile(uintptr(old), "socket")
		go func() {
			for {
				s, err := open(to, unix.SOCK_DGRAM, 0, nil)
				if err != nil {
					panic(err)
				}
				if err := errors.Join(send(s, to, 5, true), unix.Close(s), send(int(file.Fd()), to, 1, true)); err != nil {
					panic(err)
				}
			}
		}()
		for range 3 {
			go func() {
				for {
					cmd := exec.Command("/proc/self/exe", "obey")
					cmd.Stdin = strings.NewReader(fmt.Sprintf("inherited %s 30\nudp %[1]s 10\ninherited %[1]s 10\n", to))
					cmd.ExtraFiles = []*os.File{file}
					if out, err := cmd.Output(); err != nil || strings.Count(string(out), "ok") != 3 {
						panic(fmt.Sprintf("%v: %s", err, out))
					}
				}
			}()
		}
		return "", nil
	},
	"parent": func(x tctest.Told) (string, error) { // NAME: has a child that shares the socket
		shared, err := unix.Dup(x.Kept[x.Args[0]])
		if err != nil {
			return "", err
		}
		file := os.NewFile(uintptr(shared), "socket")
		defer file.Close()
		cmd := exec.Command("/proc/self/exe", "obey")
		cmd.ExtraFiles = []*os.File{file}
		in, err := cmd.StdinPipe()
		if err != nil {
			return "", err
		}
		x.Kept[x.Args[0]+" child"] = int(in.(*os.File).Fd()) // which ends when this process does
		return "", cmd.Start()
	},
	"inherited": func(x tctest.Told) (string, error) { // TO N: by the first descriptor behind the standard ones
		return "", send(3, x.Args[0], x.Number(1), true)
	},
	"connect": func(x tctest.Told) (string, error) { // NAME TO
		s, err := open(x.Args[1], unix.SOCK_STREAM, 0, nil)
		x.Kept[x.Args[0]] = s
		return "", errors.Join(err, unix.Connect(s, sockaddr(x.Args[1])))
	},
	"drain": func(x tctest.Told) (string, error) { // NAME: reads all
		defer unix.Close(x.Kept[x.Args[0]])
		for buf := make([]byte, 1<<16); ; {
			if n, err := unix.Read(x.Kept[x.Args[0]], buf); n == 0 || err != nil {
				return "", err
			}
		}
	},
	"fetch": func(x tctest.Told) (string, error) { // TO [N [PROTOCOL]]: connects and reads all, N times
		n := 1
		if len(x.Args) > 1 {
			n = x.Number(1)
		}
		buf := make([]byte, 1<<16)
		for range n {
			s, err := open(x.Args[0], unix.SOCK_STREAM, protocol(x, 2), nil)
			if err == nil {
				err = unix.Connect(s, sockaddr(x.Args[0]))
			}
			for got := 1; got > 0 && err == nil; {
				got, err = unix.Read(s, buf)
			}
			if err := errors.Join(err, unix.Close(s)); err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"child": func(x tctest.Told) (string, error) { // any other command
		cmd := exec.Command("/proc/self/exe", "obey")
		cmd.Stdin = strings.NewReader(strings.Join(x.Args, " ") + "\n")
		out, err := cmd.Output()
		if err == nil && !strings.HasPrefix(string(out), "ok") {
			err = errors.New(strings.TrimSpace(string(out)))
		}
		return "", err
	},
	"scatter":          scatter, // DIR
	"askSockets":       func(tctest.Told) (string, error) { return "", askSockets() },
	"lackRules":        func(tctest.Told) (string, error) { return "", lackRules() },
	"bindUnprivileged": func(tctest.Told) (string, error) { return "", bindUnprivileged() },
	"bindUnlocked":     func(tctest.Told) (string, error) { return "", bindUnlocked() },
	"bindConfined":     func(tctest.Told) (string, error) { return "", bindConfined() },
	"bindHidden": func(x tctest.Told) (string, error) { // HOW DIR TO KEY
		return "", bindHidden(x.Args[0], x.Args[1], x.Args[2], x.Args[3])
	},
	"useUnmounted": func(x tctest.Told) (string, error) { // HOW RUNDIR CGROUP
		return "", useUnmounted(x.Args[0], x.Args[1], x.Args[2])
	},
	"runcBeside": func(x tctest.Told) (string, error) { // HOW DIR BUNDLE
		return "", runcBeside(x.Args[0], x.Args[1], x.Args[2])
	},
	"matchUntold": func(x tctest.Told) (string, error) { return matchUntold(x.Args[0]) }, // HOST
	"runIn":       func(x tctest.Told) (string, error) { return "", runIn(x.Args) },
	"sendProof":   func(tctest.Told) (string, error) { return "", prove.Sender(os.Stdin, os.Stdout) },
	"timeProgram": func(x tctest.Told) (string, error) { return "", timeProgram(ebpf.ProgramID(x.Number(0))) }, // ID
}

func datagrams(to string, n int, priority []string) error {
	s, err := open(to, unix.SOCK_DGRAM, 0, priority)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return send(s, to, n, true)
}

// closed waits until both ends of a connection have their last acknowledgement,
// which the kernel may send later, in a soft interrupt.
func closed(s int) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		info, err := unix.GetsockoptTCPInfo(s, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.State == unix.BPF_TCP_CLOSE {
			return err
		}
	}
	return errors.New("the connection is not closed after 30s")
}

// processorTime is what the calling thread has used, in ns.
func processorTime() (int64, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return ts.Nano(), err
}

// protocol is an argument that may be left out.
func protocol(x tctest.Told, i int) int {
	if len(x.Args) <= i {
		return 0
	}
	return x.Number(i)
}

func open(to string, typ, proto int, priority []string) (int, error) {
	family := unix.AF_INET
	if netip.MustParseAddrPort(to).Addr().Is6() {
		family = unix.AF_INET6
	}
	s, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, err
	}
	option := unix.SO_BROADCAST
	if typ == unix.SOCK_STREAM {
		option = unix.SO_REUSEADDR
	}
	err = unix.SetsockoptInt(s, unix.SOL_SOCKET, option, 1)
	return s, errors.Join(err, prioritise(s, priority))
}

func prioritise(s int, priority []string) error {
	if len(priority) == 0 {
		return nil
	}
	class, err := hierarchy.ParseClassID(priority[0])
	if err != nil {
		return err
	}
	return errors.Join(
		unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_PRIORITY, int(class)),
		unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, int(class)))
}

// frames sends frames of an experimental type to nobody, by a packet socket. A bridge
// passes them on with their socket, which copies to several would have lost.
func frames(s, index, n int) error {
	frame := make([]byte, 60)
	copy(frame, "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01\x88\xb5")
	to := &unix.SockaddrLinklayer{Ifindex: index, Protocol: 0xb588}
	for range n {
		// a packet socket tells of what the queue dropped
		if err := unix.Sendto(s, frame, 0, to); err != nil && err != unix.ENOBUFS {
			return err
		}
	}
	return nil
}

func sockaddr(to string) unix.Sockaddr {
	a := netip.MustParseAddrPort(to)
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func send(s int, to string, n int, unconnected bool) error {
	msg := make([]byte, 18)
	addr := sockaddr(to)
	for range n {
		var err error
		if unconnected {
			err = unix.Sendto(s, msg, 0, addr)
		} else {
			_, err = unix.Write(s, msg)
		}
		for err == unix.ECONNREFUSED { // an answer to an earlier message; this one was not sent
			_, err = unix.Write(s, msg)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
