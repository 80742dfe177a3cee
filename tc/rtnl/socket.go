//go:build linux

package rtnl

import (
	"encoding/binary"
	"fmt"
	"iter"
	"os"
	"runtime"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// socket is one of rtnetlink's for requests. The kernel has answered a request when it was
// sent (rtnetlink_rcv, net/core/rtnetlink.c, v6.12), and what a dump still has to say it says
// whoever reads: there is nothing to wait for. The library's sockets can be waited for, by a
// goroutine for each message either way, which costs more than the message.
type socket struct {
	fd  int
	pid uint32
	buf [messageBuffer]byte
}

// dial opens one in the network namespace that a descriptor holds; 0: the caller's.
func dial(ns int) (s *socket, err error) {
	if ns == 0 {
		return dialHere()
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // for good: it ends with the goroutine
		if err = os.NewSyscallError("setns", unix.Setns(ns, unix.CLONE_NEWNET)); err == nil {
			s, err = dialHere()
		}
	}()
	<-done
	return s, err
}

func dialHere() (*socket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	s := &socket{fd: fd}
	if err := s.prepare(); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

func (s *socket) prepare() error {
	if err := unix.Bind(s.fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("bind", err)
	}
	at, err := unix.Getsockname(s.fd)
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	if a, ok := at.(*unix.SockaddrNetlink); ok {
		s.pid = a.Pid
	}
	if err := unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1); err != nil {
		return os.NewSyscallError("setsockopt", err)
	}
	for _, o := range []struct{ force, ask int }{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o.force, socketBuffer) == nil {
			continue
		}
		// without CAP_NET_ADMIN: as much as everybody may have
		if err := unix.SetsockoptInt(s.fd, unix.SOL_SOCKET, o.ask, socketBuffer); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

// Close implements [netlink.Socket].
func (s *socket) Close() error {
	fd := s.fd
	s.fd = -1
	return os.NewSyscallError("close", unix.Close(fd))
}

// Send implements [netlink.Socket].
func (s *socket) Send(m netlink.Message) error { return s.SendMessages([]netlink.Message{m}) }

// SendMessages implements [netlink.Socket].
func (s *socket) SendMessages(all []netlink.Message) error {
	var b []byte
	for _, m := range all {
		x, err := m.MarshalBinary()
		if err != nil {
			return err
		}
		b = append(b, x...)
	}
	for {
		err := unix.Sendto(s.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return os.NewSyscallError("sendto", err)
		}
	}
}

// Receive implements [netlink.Socket].
func (s *socket) Receive() (all []netlink.Message, err error) {
	for m, err := range s.ReceiveIter() {
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
	return all, nil
}

// ReceiveIter implements [netlink.Socket].
func (s *socket) ReceiveIter() iter.Seq2[netlink.Message, error] {
	return func(yield func(netlink.Message, error) bool) {
		b, err := s.receive()
		if err != nil {
			yield(netlink.Message{}, err)
			return
		}
		for len(b) > 0 {
			m, rest, err := cutMessage(b)
			if !yield(m, err) || err != nil {
				return
			}
			b = rest
		}
	}
}

// receive reads what the kernel gives at once. It is the caller's to keep.
func (s *socket) receive() ([]byte, error) {
	for {
		n, _, flags, _, err := unix.Recvmsg(s.fd, s.buf[:], nil, 0)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return nil, os.NewSyscallError("recvmsg", err)
		case flags&unix.MSG_TRUNC != 0:
			return nil, fmt.Errorf("%w: it is longer than %d bytes", ErrMalformed, len(s.buf))
		}
		return append([]byte(nil), s.buf[:n]...), nil
	}
}

// cutMessage takes a message off b. The last one may be without what fills it up to four
// bytes.
func cutMessage(b []byte) (m netlink.Message, rest []byte, err error) {
	if len(b) < unix.SizeofNlMsghdr {
		return m, nil, ErrMalformed
	}
	m.Header = netlink.Header{
		Length:   binary.NativeEndian.Uint32(b),
		Type:     netlink.HeaderType(binary.NativeEndian.Uint16(b[4:])),
		Flags:    netlink.HeaderFlags(binary.NativeEndian.Uint16(b[6:])),
		Sequence: binary.NativeEndian.Uint32(b[8:]),
		PID:      binary.NativeEndian.Uint32(b[12:]),
	}
	n := uint64(m.Header.Length)
	if n < unix.SizeofNlMsghdr || n > uint64(len(b)) {
		return m, nil, ErrMalformed
	}
	m.Data = b[unix.SizeofNlMsghdr:n:n]
	return m, b[min((n+3)&^3, uint64(len(b))):], nil
}
