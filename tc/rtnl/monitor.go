//go:build linux

package rtnl

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrMissed says that notices were lost because they were not read in time: what
// happened in between is to be read from the kernel.
var ErrMissed = errors.New("changes of interfaces were missed")

// Monitor tells of what happens in a network namespace, as read makes it of the notices
// that the kernel gives everybody who listens to one of rtnetlink's groups. One
// goroutine may wait in Receive while another one calls Close.
type Monitor[T any] struct {
	nl   *netlink.Conn
	what string
	read func([]netlink.Message) ([]T, error)
}

// Listen starts to collect the notices of groups, for what errors then say. It needs
// no privileges, except CAP_SYS_ADMIN for the namespace of another.
func Listen[T any](cfg Config, what string, read func([]netlink.Message) ([]T, error), groups ...int) (*Monitor[T], error) {
	var bits uint32
	for _, g := range groups {
		bits |= 1 << (g - 1)
	}
	nl, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{
		NetNS: cfg.NetNS, Groups: bits, MessageBufferSize: messageBuffer,
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	if err := nl.SetReadBuffer(socketBuffer); err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", what, err), nl.Close())
	}
	return &Monitor[T]{nl, what, read}, nil
}

// Receive waits for something to tell. After [ErrMissed] it goes on; any other error is
// the end, also that of ctx and that of Close.
func (m *Monitor[T]) Receive(ctx context.Context) ([]T, error) {
	stop := context.AfterFunc(ctx, func() { _ = m.nl.SetReadDeadline(time.Unix(1, 0)) }) // long past
	defer stop()
	for {
		msgs, err := m.nl.Receive()
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		if errors.Is(err, unix.ENOBUFS) {
			if err = drain(m.nl); err == nil {
				return nil, ErrMissed
			}
		}
		var events []T
		if err == nil {
			events, err = m.read(msgs)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.what, err)
		}
		if len(events) > 0 {
			return events, nil
		}
	}
}

// Close ends a Receive that waits.
func (m *Monitor[T]) Close() error { return m.nl.Close() }

// drain throws away what waits. Once it had no room the kernel keeps nothing more, and
// does not say so again, until all was read (netlink_overrun and netlink_rcv_wake,
// net/netlink/af_netlink.c, v6.12).
func drain(nl *netlink.Conn) error {
	raw, err := nl.SyscallConn()
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
