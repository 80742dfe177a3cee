//go:build linux

package tc

import (
	"errors"
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrMissed says that a monitor did not keep up: what happened in between is to be
// read from the kernel.
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
type LinkMonitor struct{ monitor }

// MonitorLinks starts to collect what happens from now on. It needs no privileges,
// except CAP_SYS_ADMIN for the namespace of another.
func MonitorLinks(cfg Config) (*LinkMonitor, error) {
	m, err := newMonitor(cfg, "watch interfaces", unix.RTNLGRP_LINK)
	if err != nil {
		return nil, err
	}
	return &LinkMonitor{m}, nil
}

// Receive waits for changes. After [ErrMissed] it goes on; any other error is the
// end, also that of Close.
func (m *LinkMonitor) Receive() ([]LinkEvent, error) { return receive(&m.monitor, linkEvents) }

// LossMonitor tells of interfaces of a network namespace that have lost a queueing
// discipline, a class or a filter, or had one of them replaced, by whatever hand. One
// goroutine may wait in Receive while another one calls Close.
type LossMonitor struct{ monitor }

// MonitorLosses starts to collect what happens from now on. It needs no privileges,
// except CAP_SYS_ADMIN for the namespace of another.
func MonitorLosses(cfg Config) (*LossMonitor, error) {
	m, err := newMonitor(cfg, "watch queues", unix.RTNLGRP_TC)
	if err != nil {
		return nil, err
	}
	return &LossMonitor{m}, nil
}

// Receive waits for losses and returns the indices of the interfaces, each once. After
// [ErrMissed] it goes on; any other error is the end, also that of Close.
func (m *LossMonitor) Receive() ([]int, error) { return receive(&m.monitor, losses) }

// losses reads notices. What goes with something above it is not told of: classes with
// their qdisc, filters with clsact. A filter that is replaced is told of as a new one.
func losses(msgs []netlink.Message) ([]int, error) {
	var all []int
	for _, m := range msgs {
		switch m.Header.Type {
		case unix.RTM_DELQDISC, unix.RTM_DELTCLASS, unix.RTM_DELTFILTER, unix.RTM_DELCHAIN, unix.RTM_NEWTFILTER:
		default:
			continue
		}
		t, _, err := decodeTcMsg(m.Data)
		if err != nil {
			return nil, err
		}
		if m.Header.Type == unix.RTM_DELQDISC && t.handle == 0 {
			continue // the kernel's own, which made room
		}
		if !slices.Contains(all, int(t.index)) {
			all = append(all, int(t.index))
		}
	}
	return all, nil
}

// monitor is a connection to a group of rtnetlink's notices.
type monitor struct {
	nl   *netlink.Conn
	what string
}

func newMonitor(cfg Config, what string, group int) (monitor, error) {
	nl, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{
		NetNS: cfg.NetNS, Groups: 1 << (group - 1), MessageBufferSize: messageBuffer,
	})
	if err != nil {
		return monitor{}, fmt.Errorf("%s: %w", what, err)
	}
	if err := nl.SetReadBuffer(socketBuffer); err != nil {
		return monitor{}, errors.Join(fmt.Errorf("%s: %w", what, err), nl.Close())
	}
	return monitor{nl, what}, nil
}

// receive waits for notices of which read makes something.
func receive[T any](m *monitor, read func([]netlink.Message) ([]T, error)) ([]T, error) {
	for {
		msgs, err := m.nl.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			if err = m.drain(); err == nil {
				return nil, ErrMissed
			}
		}
		var events []T
		if err == nil {
			events, err = read(msgs)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", m.what, err)
		}
		if len(events) > 0 {
			return events, nil
		}
	}
}

// drain throws away what waits. Once it had no room the kernel keeps nothing more, and
// does not say so again, until all was read (netlink_overrun and netlink_rcv_wake,
// net/netlink/af_netlink.c, v6.12).
func (m *monitor) drain() error {
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

// Close ends a Receive that waits.
func (m *monitor) Close() error { return m.nl.Close() }

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
			return nil, err
		}
		events = append(events, LinkEvent{l, gone})
	}
	return events, nil
}
