//go:build linux

package tc

import (
	"errors"
	"os"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// LacksFilters says which of the given kinds of classifiers ("bpf", "cgroup") this
// kernel has not. It makes a clsact qdisc on the interface, where none may stand,
// and leaves it: it is for a network namespace that was made to be asked in. Asking
// loads modules. Needs CAP_NET_ADMIN; without clsact the error is [rtnl.ErrNotSupported].
func (d *Device) LacksFilters(kinds ...string) (lacking []string, err error) {
	if err := d.Conn.TC().Qdisc().Add(d.clsactObject()); err != nil {
		return nil, d.Fail("create clsact qdisc", err)
	}
	for i, kind := range kinds {
		e := rtnl.Encoder{}
		e.TcMsg(rtnl.TcMsg{Index: d.Index, Parent: egressParent, Info: uint32(i+1)<<16 | allProtocols()})
		e.AttrString(unix.TCA_KIND, kind)
		_, err := d.Conn.Send([]netlink.Message{rtnl.Message(unix.RTM_NEWTFILTER, netlink.Create|netlink.Excl, e.B)})
		// The kind is looked up first (tcf_proto_lookup_ops, net/sched/cls_api.c,
		// v5.4 to v6.18); what else is wrong, and without options much is, comes
		// after it.
		switch e := rtnl.NewOpError("look for filter "+kind, d.Name, err); {
		case err == nil:
		case errors.Is(e, rtnl.ErrNotSupported):
			lacking = append(lacking, kind)
		case errors.Is(e, rtnl.ErrNotPrivileged), errors.Is(e, rtnl.ErrGone):
			return nil, e
		}
	}
	return lacking, nil
}

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

// HasBPF says whether this kernel has the classifier that [Device.AttachEgress]
// uses, as far as the lists of its modules and functions tell: it can be asked for
// only where it is used. A no proves nothing where known is false.
func HasBPF() (has, known bool) {
	if has, known = rtnl.HasModule("cls_bpf"); has {
		return true, true
	}
	// Part of the kernel itself; what is in neither list cannot be loaded.
	b, err := os.ReadFile("/proc/kallsyms")
	return err == nil && strings.Contains(string(b), " cls_bpf_classify"), known
}
