//go:build linux

package link

import (
	"cmp"
	"encoding/binary"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// DefaultRoute is an interface by which packets leave that no other route is for.
type DefaultRoute struct {
	Index  int    // of the interface
	IPv6   bool   // else it is a route of IPv4
	Metric uint32 // the lower one comes first, among those of one family: the kernel gives 0 to IPv4's and 1024 to IPv6's
}

// DefaultRoutes lists the default routes of the main table, those of IPv4 before those of
// IPv6, and of a family the lowest metric first; none is no error. One with several next
// hops is as many, in their order, each interface once; those of one source alone, as
// routers have them for IPv6, count. Left out are what refuses packets (unreachable,
// blackhole, prohibit), what is for one type of service, next hops that are dead, and
// routes in other tables, as of a VPN that has rules of its own. Next hops that are objects
// of their own count where net.ipv4.nexthop_compat_mode is on, as it is by default. It needs
// no privileges.
func DefaultRoutes(c *rtnl.Conn) ([]DefaultRoute, error) {
	var all []DefaultRoute
	// Of all families in one dump: a kernel that lacks IPv6 answers a question about it with
	// all families, too (rtnetlink_rcv_msg, net/core/rtnetlink.c, v6.12).
	err := c.Dump(unix.RTM_GETROUTE, make([]byte, unix.SizeofRtMsg), func(body []byte) error {
		hops, err := decodeDefault(body)
		all = append(all, hops...)
		return err
	})
	if err != nil {
		return nil, rtnl.Fail("read routes", "", err)
	}
	slices.SortStableFunc(all, func(a, b DefaultRoute) int {
		return cmp.Or(family(a)-family(b), cmp.Compare(a.Metric, b.Metric))
	})
	seen := map[DefaultRoute]bool{}
	return slices.DeleteFunc(all, func(r DefaultRoute) bool {
		was := seen[r]
		seen[r] = true
		return was
	}), nil
}

// Uplinks are the interfaces by which packets leave that no other route is for: that of the
// default route of IPv4 with the lowest metric, of IPv6 where IPv4 has none; several where it
// has several next hops. None is no error.
func Uplinks(c *rtnl.Conn) (indices []int, err error) {
	all, err := DefaultRoutes(c)
	for _, r := range all {
		if r.IPv6 == all[0].IPv6 && r.Metric == all[0].Metric {
			indices = append(indices, r.Index)
		}
	}
	return indices, err
}

// concernsDefault says whether a message is of a default route that [DefaultRoutes] may list.
func concernsDefault(b []byte) bool {
	return len(b) >= unix.SizeofRtMsg && (b[0] == unix.AF_INET || b[0] == unix.AF_INET6) &&
		b[1] == 0 && b[4] == unix.RT_TABLE_MAIN && binary.NativeEndian.Uint32(b[8:])&unix.RTM_F_CLONED == 0
}

func family(r DefaultRoute) int {
	if r.IPv6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

// decodeDefault reads the body of an RTM_NEWROUTE message (fib_dump_info,
// net/ipv4/fib_semantics.c, and rt6_fill_node, net/ipv6/route.c, v6.12): the next hops of
// a default route, none of any other.
func decodeDefault(b []byte) (hops []DefaultRoute, err error) {
	if len(b) < unix.SizeofRtMsg {
		return nil, rtnl.ErrMalformed
	}
	// struct rtmsg of linux/rtnetlink.h
	family, length, tos, table, kind := b[0], b[1], b[3], b[4], b[7]
	flags := binary.NativeEndian.Uint32(b[8:])
	if family != unix.AF_INET && family != unix.AF_INET6 || length != 0 || tos != 0 ||
		table != unix.RT_TABLE_MAIN || kind != unix.RTN_UNICAST || flags&(unix.RTM_F_CLONED|unix.RTNH_F_DEAD) != 0 {
		return nil, nil
	}
	route := DefaultRoute{IPv6: family == unix.AF_INET6}
	add := func(index uint32) {
		if index != 0 {
			hops = append(hops, DefaultRoute{Index: int(index), IPv6: route.IPv6})
		}
	}
	err = rtnl.EachAttr(b[unix.SizeofRtMsg:], func(typ uint16, v []byte) (err error) {
		switch typ {
		case unix.RTA_PRIORITY:
			route.Metric, err = rtnl.Uint32(v)
		case unix.RTA_OIF:
			var index uint32
			index, err = rtnl.Uint32(v)
			add(index)
		case unix.RTA_MULTIPATH:
			for len(v) > 0 {
				// struct rtnexthop of linux/rtnetlink.h, with attributes behind it
				if len(v) < unix.SizeofRtNexthop {
					return rtnl.ErrMalformed
				}
				n := int(binary.NativeEndian.Uint16(v))
				if n < unix.SizeofRtNexthop || n > len(v) {
					return rtnl.ErrMalformed
				}
				if v[2]&unix.RTNH_F_DEAD == 0 {
					add(binary.NativeEndian.Uint32(v[4:]))
				}
				v = v[min((n+3)&^3, len(v)):]
			}
		}
		return err
	})
	for i := range hops {
		hops[i].Metric = route.Metric
	}
	return hops, err
}

// RouteTo is the interface by which the kernel sends packets to an address, 0 for none: by all
// tables that its rules lead to for this process, as those of a VPN. It needs no privileges.
func RouteTo(c *rtnl.Conn, to netip.Addr) (index int, err error) {
	index, err = Route(c, Flow{To: to})
	if index == LoopbackIndex {
		index = 0
	}
	return index, err
}

// Flow is that by which rules and routes tell packets of a socket.
type Flow struct {
	From, To netip.Addr // From may be the zero value, and is this machine's
	Mark     uint32
	UID      uint32 // of the socket; 0 counts as that of this process
}

// LoopbackIndex is the index of the interface for what stays on the machine, the same in every
// network namespace (LOOPBACK_IFINDEX, include/net/flow.h, v6.12).
const LoopbackIndex = 1

// Route is the interface by which the kernel sends packets of a flow, [LoopbackIndex] where they are
// for this machine, 0 for none.
func Route(c *rtnl.Conn, f Flow) (index int, err error) {
	e := rtnl.Encoder{B: make([]byte, unix.SizeofRtMsg)}
	e.B[0], e.B[1] = unix.AF_INET, byte(f.To.BitLen()) // struct rtmsg of linux/rtnetlink.h
	if f.To.Is6() {
		e.B[0] = unix.AF_INET6
	}
	e.Attr(unix.RTA_DST, func() { e.B = append(e.B, f.To.AsSlice()...) })
	if f.From.IsValid() {
		e.B[2] = byte(f.From.BitLen())
		e.Attr(unix.RTA_SRC, func() { e.B = append(e.B, f.From.AsSlice()...) })
	}
	if f.Mark != 0 {
		e.Attr(unix.RTA_MARK, func() { e.B = binary.NativeEndian.AppendUint32(e.B, f.Mark) })
	}
	if f.UID != 0 {
		e.Attr(unix.RTA_UID, func() { e.B = binary.NativeEndian.AppendUint32(e.B, f.UID) })
	}
	answers, err := c.Execute(rtnl.Message(unix.RTM_GETROUTE, 0, e.B))
	switch rtnl.Errno(err) {
	case unix.ENETUNREACH, unix.EHOSTUNREACH, unix.EACCES, unix.EINVAL, // none; unreachable, prohibit, blackhole
		unix.EOPNOTSUPP, unix.EAFNOSUPPORT: // the kernel lacks the family
		return 0, nil
	}
	for _, m := range answers {
		if m.Header.Type != unix.RTM_NEWROUTE {
			continue
		}
		if len(m.Data) < unix.SizeofRtMsg {
			err = rtnl.ErrMalformed
			break
		}
		if m.Data[7] == unix.RTN_LOCAL {
			index = LoopbackIndex
		}
		if m.Data[7] != unix.RTN_UNICAST {
			continue
		}
		err = rtnl.EachAttr(m.Data[unix.SizeofRtMsg:], func(typ uint16, v []byte) (err error) {
			if typ == unix.RTA_OIF {
				var oif uint32
				oif, err = rtnl.Uint32(v)
				index = int(oif)
			}
			return err
		})
	}
	if err != nil {
		return 0, rtnl.Fail("ask for the route to "+f.To.String(), "", err)
	}
	return index, nil
}
