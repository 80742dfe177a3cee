//go:build linux

package link

import (
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// Event is one change of an interface. What [Link] tells of others than the
// interface itself is not filled in: names of members and of what it lies on, and
// its speed.
type Event struct {
	Link Link
	Gone bool // removed, or moved to another network namespace
}

// Watch starts to collect which interfaces appear, change and vanish from now on.
// It needs no privileges, except CAP_SYS_ADMIN for the namespace of another.
func Watch(cfg rtnl.Config) (*rtnl.Monitor[Event], error) {
	return rtnl.Listen(cfg, "watch interfaces", unix.RTNLGRP_LINK, events)
}

// events reads notices. A bridge speaks of its ports in the same words, with a
// family of its own: one that leaves it is not gone (br_ifinfo_notify,
// net/bridge/br_netlink.c, v6.12).
func events(msgs []netlink.Message) ([]Event, error) {
	var all []Event
	for _, m := range msgs {
		gone := m.Header.Type == unix.RTM_DELLINK
		if !gone && m.Header.Type != unix.RTM_NEWLINK || len(m.Data) > 0 && m.Data[0] != unix.AF_UNSPEC {
			continue
		}
		l, err := decodeLink(m.Data)
		if err != nil {
			return nil, err
		}
		all = append(all, Event{l, gone})
	}
	return all, nil
}
