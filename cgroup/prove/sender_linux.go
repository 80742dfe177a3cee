package prove

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// Where [Run] sends to: groups that nobody is in, in the range set aside for
// one's own use (RFC 2365, RFC 4291) and no further than the next link, and an address
// that belongs to nobody (RFC 5737), for what is to be forwarded; at all of them the
// port that discards. A group needs neither route nor neighbour nor an address here.
var (
	group4 = netip.MustParseAddr("239.255.7.31")
	group6 = netip.MustParseAddr("ff12::71f")
	noOne  = netip.MustParseAddr("192.0.2.1")
	ours   = netip.MustParseAddr("192.0.2.2") // for what is never sent
)

const port = 9

// order is what a sender is to send.
type order struct {
	Index uint32 // of the interface by which it leaves
	Run   uint64
	Way   uint32
	N     int    // packets
	User  uint32 // whose they are to be
	// Ask has a socket kept open until the next order, which asks a question of somebody
	// where Of is an address; its packet has the number Asking.
	Ask    bool
	Of     netip.Addr
	Asking uint32
}

// answer is what came of an order.
type answer struct {
	Sent int
	Port uint16 // of the socket that asks
	Err  string
}

// Sender is the program of the process by which [Run] sends from within
// cgroups and as users: it carries out orders until there are no more.
func Sender(orders io.Reader, answers io.Writer) error {
	runtime.LockOSThread() // it becomes other users, and has the tag of net_cls
	in, out := json.NewDecoder(orders), json.NewEncoder(answers)
	asks := -1
	for {
		var o order
		err := in.Decode(&o)
		if asks >= 0 {
			unix.Close(asks)
		}
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		var a answer
		if a, asks, err = o.send(); err != nil {
			a.Err = err.Error()
		}
		if err := out.Encode(a); err != nil {
			return err
		}
	}
}

// send sends half of the packets by each version of IP, or all by the one that there is. It
// returns the socket that asks, -1 where there is none.
func (o *order) send() (a answer, asks int, err error) {
	// A socket is whose the file system takes its maker for (sock_alloc, net/socket.c, v6.12).
	if err := setFSUser(o.User); err != nil {
		return a, -1, err
	}
	defer func() { err = errors.Join(err, setFSUser(0)) }()
	sent, err6 := o.group(unix.AF_INET6, o.N/2)
	more, err4 := o.group(unix.AF_INET, o.N-sent)
	a.Sent = sent + more
	switch {
	case a.Sent == o.N:
		err4 = nil
	case err4 == nil:
		err4 = err6
	}
	asks = -1
	if o.Ask && err4 == nil {
		asks, a.Port, err4 = o.ask()
	}
	return a, asks, err4
}

// ask opens the socket that asks.
func (o *order) ask() (s int, at uint16, err error) {
	if s, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return -1, 0, err
	}
	defer func() {
		if err != nil {
			unix.Close(s)
			s = -1
		}
	}()
	// a port, and any address
	if err := errors.Join(bindToIndex(s, o.Index), unix.Bind(s, &unix.SockaddrInet4{})); err != nil {
		return s, 0, err
	}
	is, err := unix.Getsockname(s)
	if err != nil {
		return s, 0, err
	}
	at = uint16(is.(*unix.SockaddrInet4).Port)
	if !o.Of.IsValid() {
		return s, at, nil
	}
	err = unix.SetsockoptInt(s, unix.IPPROTO_IP, unix.IP_TTL, 1)
	if err == nil {
		question := *o
		question.Way = o.Asking
		_, err = question.to(s, &unix.SockaddrInet4{Port: port, Addr: o.Of.As4()}, 1)
	}
	return s, at, err
}

func bindToIndex(s int, index uint32) error {
	const option = 62 // SO_BINDTOIFINDEX, include/uapi/asm-generic/socket.h
	return unix.SetsockoptInt(s, unix.SOL_SOCKET, option, int(index))
}

func setFSUser(uid uint32) error {
	if _, err := unix.SetfsuidRetUid(int(uid)); err != nil {
		return err
	}
	if now, err := unix.SetfsuidRetUid(-1); err != nil || uint32(now) != uid {
		return fmt.Errorf("become user %d: %w", uid, caps.Explain(unix.EPERM, unix.CAP_SETUID))
	}
	return nil
}

func (o *order) group(family, n int) (sent int, err error) {
	s, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	index := int(o.Index)
	to := unix.Sockaddr(&unix.SockaddrInet4{Port: port, Addr: group4.As4()})
	if family == unix.AF_INET {
		err = errors.Join(
			unix.SetsockoptIPMreqn(s, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(index)}),
			unix.SetsockoptByte(s, unix.IPPROTO_IP, unix.IP_MULTICAST_LOOP, 0),
			unix.SetsockoptByte(s, unix.IPPROTO_IP, unix.IP_MULTICAST_TTL, 1))
	} else {
		to = &unix.SockaddrInet6{Port: port, Addr: group6.As16(), ZoneId: o.Index}
		err = errors.Join(
			unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_IF, index),
			unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_LOOP, 0),
			unix.SetsockoptInt(s, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 1))
	}
	if err != nil {
		return 0, err
	}
	return o.to(s, to, n)
}

// forwarded sends to nobody, by an interface of the calling thread's network namespace
// and on from there: to be forwarded once.
func (o *order) forwarded(to netip.Addr) (sent int, err error) {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(s)
	err = errors.Join(
		bindToIndex(s, o.Index),
		unix.SetsockoptInt(s, unix.IPPROTO_IP, unix.IP_TTL, 2))
	if err != nil {
		return 0, err
	}
	return o.to(s, &unix.SockaddrInet4{Port: port, Addr: to.As4()}, o.N)
}

// to sends struct vif_probe of bpf/prove.bpf.c.
func (o *order) to(s int, to unix.Sockaddr, n int) (sent int, err error) {
	msg := binary.NativeEndian.AppendUint64(nil, o.Run)
	msg = binary.NativeEndian.AppendUint32(msg, o.Way)
	msg = binary.NativeEndian.AppendUint32(msg, 0)
	for sent < n {
		if err := unix.Sendto(s, msg, 0, to); err != nil && err != unix.ENOBUFS { // the queue is full: it counts as sent
			return sent, err
		}
		sent++
	}
	return sent, nil
}
