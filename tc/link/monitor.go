//go:build linux

package link

import (
	"slices"

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
	return rtnl.Listen(cfg, "watch interfaces", events, unix.RTNLGRP_LINK)
}

// RouteEvent says that something became of a default route.
type RouteEvent struct{}

// WatchDefaultRoutes starts to collect changes of default routes from now on. That one went
// because its interface did, or was switched off, is told by that of the interface alone:
// the kernel has no notice of it (fib_table_flush, net/ipv4/fib_trie.c, v6.12). It needs no
// privileges, except CAP_SYS_ADMIN for the namespace of another.
func WatchDefaultRoutes(cfg rtnl.Config) (*rtnl.Monitor[RouteEvent], error) {
	return rtnl.Listen(cfg, "watch routes", func(msgs []netlink.Message) (all []RouteEvent, err error) {
		if slices.ContainsFunc(msgs, func(m netlink.Message) bool { return concernsDefault(m.Data) }) {
			all = append(all, RouteEvent{})
		}
		return all, nil
	}, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV6_ROUTE)
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
