//go:build linux

package tc

import (
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrMissed says that a [LinkMonitor] did not keep up: what happened in between is
// to be read from [Conn.Links].
var ErrMissed = errors.New("changes of interfaces were missed")

// LinkEvent is one change of an interface. What [Link] tells of others than the
// interface itself is not filled in: names of members and of what it lies on, and
// its speed.
type LinkEvent struct {
	Link Link
	Gone bool // removed, or moved to another network namespace
}

// LinkMonitor tells of interfaces of a network namespace that appear, change and
// vanish. One goroutine may wait in Receive while another one calls Close.
type LinkMonitor struct{ nl *netlink.Conn }

// MonitorLinks starts to collect what happens from now on. It needs no privileges,
// except CAP_SYS_ADMIN for the namespace of another.
func MonitorLinks(cfg Config) (*LinkMonitor, error) {
	nl, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{
		NetNS: cfg.NetNS, Groups: 1 << (unix.RTNLGRP_LINK - 1), MessageBufferSize: messageBuffer,
	})
	if err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	if err := nl.SetReadBuffer(socketBuffer); err != nil {
		return nil, errors.Join(fmt.Errorf("watch interfaces: %w", err), nl.Close())
	}
	return &LinkMonitor{nl}, nil
}

// Receive waits for changes. After [ErrMissed] it goes on; any other error is the
// end, also that of Close.
func (m *LinkMonitor) Receive() ([]LinkEvent, error) {
	for {
		msgs, err := m.nl.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			if err = m.drain(); err == nil {
				return nil, ErrMissed
			}
		}
		if err != nil {
			return nil, fmt.Errorf("watch interfaces: %w", err)
		}
		events, err := linkEvents(msgs)
		if err != nil || len(events) > 0 {
			return events, err
		}
	}
}

// drain throws away what waits. Once it had no room the kernel keeps nothing more, and
// does not say so again, until all was read (netlink_overrun and netlink_rcv_wake,
// net/netlink/af_netlink.c, v6.12).
func (m *LinkMonitor) drain() error {
	raw, err := m.nl.SyscallConn()
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

// linkEvents reads notices. A bridge speaks of its ports in the same words, with a
// family of its own: one that leaves it is not gone (br_ifinfo_notify,
// net/bridge/br_netlink.c, v6.12).
func linkEvents(msgs []netlink.Message) ([]LinkEvent, error) {
	var events []LinkEvent
	for _, m := range msgs {
		gone := m.Header.Type == unix.RTM_DELLINK
		if !gone && m.Header.Type != unix.RTM_NEWLINK || len(m.Data) > 0 && m.Data[0] != unix.AF_UNSPEC {
			continue
		}
		l, err := decodeLink(m.Data)
		if err != nil {
			return nil, fmt.Errorf("watch interfaces: %w", err)
		}
		events = append(events, LinkEvent{l, gone})
	}
	return events, nil
}

// Close ends a Receive that waits.
func (m *LinkMonitor) Close() error { return m.nl.Close() }
