//go:build linux

package tc

import (
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// Change is what has become of an interface's queueing disciplines, classes and filters.
type Change struct {
	Index int
	Gone  bool // one was taken away, or a filter replaced; else one was made or changed
}

// WatchChanges starts to collect of which interfaces, each once, a queueing discipline, a class
// or a filter is made, changed or taken away from now on, by whatever hand but that of a connection: not only what it changes would be told of, but each class and
// qdisc that it asks for by name, as the kernel tells the answer to everybody (tclass_notify
// and qdisc_notify, net/sched/sch_api.c, v5.10 to v6.18). nil: by any hand. It needs no
// privileges, except CAP_SYS_ADMIN for the namespace of another.
func WatchChanges(cfg rtnl.Config, but *rtnl.Conn) (*rtnl.Monitor[Change], error) {
	own := uint32(0) // the kernel's
	if but != nil {
		own = but.Port()
	}
	return rtnl.Listen(cfg, "watch queues", func(msgs []netlink.Message) ([]Change, error) {
		return changes(slices.DeleteFunc(msgs, func(m netlink.Message) bool { return own != 0 && m.Header.PID == own }))
	}, unix.RTNLGRP_TC)
}

// changes reads notices. What goes with something above it is not told of: classes with
// their qdisc, filters with clsact. A filter that is replaced is told of as a new one.
func changes(msgs []netlink.Message) ([]Change, error) {
	var all []Change
	for _, m := range msgs {
		gone := false
		switch m.Header.Type {
		case unix.RTM_DELQDISC, unix.RTM_DELTCLASS, unix.RTM_DELTFILTER, unix.RTM_DELCHAIN, unix.RTM_NEWTFILTER:
			gone = true
		case unix.RTM_NEWQDISC, unix.RTM_NEWTCLASS:
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
		i := slices.IndexFunc(all, func(c Change) bool { return c.Index == int(t.Index) })
		if i < 0 {
			i, all = len(all), append(all, Change{Index: int(t.Index)})
		}
		all[i].Gone = all[i].Gone || gone
	}
	return all, nil
}
