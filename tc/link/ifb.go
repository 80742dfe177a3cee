//go:build linux

package link

import (
	"errors"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// HasIFB says whether this kernel has interfaces of kind ifb. The lists of its
// modules say so first: loading that module makes two of them. Else the kernel is
// asked for one with an address that no interface may have, which a kernel that
// has the kind refuses for the address (ifb_validate, drivers/net/ifb.c, v5.4 to
// v6.18). Nothing is made. Needs CAP_NET_ADMIN where there are no lists.
func HasIFB(c *rtnl.Conn) (bool, error) {
	if has, _ := rtnl.HasModule("ifb"); has {
		return true, nil
	}
	e := rtnl.Encoder{B: make([]byte, unix.SizeofIfInfomsg)}
	e.Attr(unix.IFLA_ADDRESS, func() { e.B = append(e.B, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) })
	e.Nest(unix.IFLA_LINKINFO, func() { e.AttrString(unix.IFLA_INFO_KIND, "ifb") })
	_, err := c.Send([]netlink.Message{rtnl.Message(unix.RTM_NEWLINK, netlink.Create|netlink.Excl, e.B)})
	switch rtnl.Errno(err) {
	case unix.EADDRNOTAVAIL:
		return true, nil
	case unix.EOPNOTSUPP:
		return false, nil
	}
	if err == nil {
		err = errors.New("the kernel took what it should have refused")
	}
	return false, rtnl.Fail("look for interface kind ifb", "", err)
}
