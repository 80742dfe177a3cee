//go:build linux

package tc

import (
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// LinkEvent is one change of an interface. What [Link] tells of others than the
// interface itself is not filled in: names of members and of what it lies on, and
// its speed.
type LinkEvent struct {
	Link Link
	Gone bool // removed, or moved to another network namespace
}

// LinkMonitor tells of interfaces of a network namespace that appear, change and
// vanish. One goroutine may wait in Receive while another one calls Close.
type LinkMonitor struct{ notices *rtnl.Notices }

// MonitorLinks starts to collect what happens from now on. It needs no privileges,
// except CAP_SYS_ADMIN for the namespace of another.
func MonitorLinks(cfg rtnl.Config) (*LinkMonitor, error) {
	m, err := rtnl.Listen(cfg, "watch interfaces", unix.RTNLGRP_LINK)
	if err != nil {
		return nil, err
	}
	return &LinkMonitor{m}, nil
}

// Receive waits for changes. After [rtnl.ErrMissed] it goes on; any other error is the
// end, also that of Close.
func (m *LinkMonitor) Receive() ([]LinkEvent, error) { return receive(m.notices, linkEvents) }

// Close ends a Receive that waits.
func (m *LinkMonitor) Close() error { return m.notices.Close() }

// LossMonitor tells of interfaces of a network namespace that have lost a queueing
// discipline, a class or a filter, or had one of them replaced, by whatever hand. One
// goroutine may wait in Receive while another one calls Close.
type LossMonitor struct{ notices *rtnl.Notices }

// MonitorLosses starts to collect what happens from now on. It needs no privileges,
// except CAP_SYS_ADMIN for the namespace of another.
func MonitorLosses(cfg rtnl.Config) (*LossMonitor, error) {
	m, err := rtnl.Listen(cfg, "watch queues", unix.RTNLGRP_TC)
	if err != nil {
		return nil, err
	}
	return &LossMonitor{m}, nil
}

// Receive waits for losses and returns the indices of the interfaces, each once. After
// [rtnl.ErrMissed] it goes on; any other error is the end, also that of Close.
func (m *LossMonitor) Receive() ([]int, error) { return receive(m.notices, losses) }

// Close ends a Receive that waits.
func (m *LossMonitor) Close() error { return m.notices.Close() }

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
		t, _, err := rtnl.DecodeTcMsg(m.Data)
		if err != nil {
			return nil, err
		}
		if m.Header.Type == unix.RTM_DELQDISC && t.Handle == 0 {
			continue // the kernel's own, which made room
		}
		if !slices.Contains(all, int(t.Index)) {
			all = append(all, int(t.Index))
		}
	}
	return all, nil
}

// receive waits for notices of which read makes something.
func receive[T any](n *rtnl.Notices, read func([]netlink.Message) ([]T, error)) ([]T, error) {
	for {
		msgs, err := n.Receive()
		if err != nil {
			return nil, err
		}
		events, err := read(msgs)
		if err != nil {
			return nil, n.Fail(err)
		}
		if len(events) > 0 {
			return events, nil
		}
	}
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
			return nil, err
		}
		events = append(events, LinkEvent{l, gone})
	}
	return events, nil
}
