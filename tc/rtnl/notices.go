//go:build linux

package rtnl

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrMissed says that notices were lost because they were not read in time: what
// happened in between is to be read from the kernel.
var ErrMissed = errors.New("changes of interfaces were missed")

// Notices are what the kernel tells everybody who listens to a group of rtnetlink's.
// One goroutine may wait in Receive while another one calls Close.
type Notices struct {
	nl   *netlink.Conn
	what string
}

// Listen starts to collect the notices of a group, for what errors then say. It needs
// no privileges, except CAP_SYS_ADMIN for the namespace of another.
func Listen(cfg Config, what string, group int) (*Notices, error) {
	nl, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{
		NetNS: cfg.NetNS, Groups: 1 << (group - 1), MessageBufferSize: messageBuffer,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	n := &Notices{nl, what}
	if err := nl.SetReadBuffer(socketBuffer); err != nil {
		return nil, errors.Join(n.Fail(err), nl.Close())
	}
	return n, nil
}

// Fail says what was being watched when err came.
func (n *Notices) Fail(err error) error { return fmt.Errorf("%s: %w", n.what, err) }

// Receive waits for notices. After [ErrMissed] it goes on; any other error is the
// end, also that of Close.
func (n *Notices) Receive() ([]netlink.Message, error) {
	msgs, err := n.nl.Receive()
	if errors.Is(err, unix.ENOBUFS) {
		if err = n.drain(); err == nil {
			return nil, ErrMissed
		}
	}
	if err != nil {
		return nil, n.Fail(err)
	}
	return msgs, nil
}

// drain throws away what waits. Once it had no room the kernel keeps nothing more, and
// does not say so again, until all was read (netlink_overrun and netlink_rcv_wake,
// net/netlink/af_netlink.c, v6.12).
func (n *Notices) drain() error {
	raw, err := n.nl.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		b := make([]byte, 1) // of each message; the rest of it goes, too
		for failed == nil {
			if _, _, e := unix.Recvfrom(int(fd), b, unix.MSG_DONTWAIT); e != nil && e != unix.ENOBUFS && e != unix.EINTR {
				failed = e
			}
		}
	})
	if failed == unix.EAGAIN {
		failed = nil
	}
	return errors.Join(err, failed)
}

// Close ends a Receive that waits.
func (n *Notices) Close() error { return n.nl.Close() }
