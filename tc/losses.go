//go:build linux

package tc

import (
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// WatchLosses starts to collect which interfaces, by their indices, each once, lose a
// queueing discipline, a class or a filter from now on, or have one of them replaced, by
// whatever hand. It needs no privileges, except CAP_SYS_ADMIN for the namespace of another.
func WatchLosses(cfg rtnl.Config) (*rtnl.Monitor[int], error) {
	return rtnl.Listen(cfg, "watch queues", unix.RTNLGRP_TC, losses)
}

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
