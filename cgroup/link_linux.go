package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

var errLinksByBPF = fmt.Errorf("interfaces can be bound with BPF only, not with nf_tables or net_cls: %w", caps.ErrNotSupported)

// errNoLink is an fs.ErrNotExist: that nothing is there any more may end a change.
var errNoLink error = noLink{}

type noLink struct{}

func (noLink) Error() string { return "no such interface" }

func (noLink) Is(target error) bool { return target == fs.ErrNotExist }

// resolveLink is the target of a bound interface, or why there is none at present.
func (b *Binder) resolveLink(name string) (target bind.Target, reason string, err error) {
	refused := b.way.store.holds(bind.TargetLink)
	switch {
	case refused != nil:
		return bind.Target{}, "", refused
	case name == b.cfg.Interface:
		return bind.Target{}, "", errors.New("it is the shaped interface itself: what comes in by it and leaves by it again is the rest's")
	}
	// it may be another of its names
	l, err := b.getLink(0, name)
	if errors.Is(err, errNoLink) {
		return bind.Target{}, err.Error(), nil
	}
	return bind.ToLink(l.name), "", err
}

// netLink is an interface of the network namespace.
type netLink struct {
	index  uint32
	name   string
	master uint32 // index of the bridge, bond or other interface that it belongs to, 0: none
	kind   string // "veth", "bridge" ...
	peer   uint32 // index of its other end, or of what it lies on, 0: none
	peerNS int32  // number of the network namespace of its other end, -1: none but this
	up     bool
	local  bool // it is the loopback interface
}

// getLink asks the kernel for the interface that has an index or, where that is 0,
// a name. The error is errNoLink where there is none.
func (b *Binder) getLink(index uint32, name string) (netLink, error) {
	ae := netlink.NewAttributeEncoder()
	if name != "" {
		ae.String(unix.IFLA_IFNAME, name)
	}
	attrs, err := ae.Encode()
	if err != nil {
		return netLink{}, err
	}
	msg := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(msg[4:], index)
	answers, err := b.ask(unix.RTM_GETLINK, 0, append(msg, attrs...))
	if errors.Is(err, unix.ENODEV) {
		return netLink{}, errNoLink
	}
	if err == nil && len(answers) == 0 {
		err = errors.New("no answer of the kernel")
	}
	if err != nil {
		return netLink{}, fmt.Errorf("look for interfaces: %w", err)
	}
	return decodeLink(answers[0].Data)
}

// ask sends a request to the kernel's rtnetlink in the interface's namespace.
func (b *Binder) ask(typ netlink.HeaderType, flags netlink.HeaderFlags, body []byte) ([]netlink.Message, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: b.cfg.NetNSFD})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return whole(func() ([]netlink.Message, error) {
		return c.Execute(netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request | flags}, Data: body})
	})
}

// whole asks again where what is listed was changed meanwhile: such a list may lack
// what was there all the time (nl_dump_check_consistent, include/net/netlink.h, v6.12).
func whole(ask func() ([]netlink.Message, error)) ([]netlink.Message, error) {
	const most = 100
	for range most {
		answers, err := ask()
		if err != nil || !slices.ContainsFunc(answers, func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }) {
			return answers, err
		}
	}
	return nil, errors.New("it changes faster than it can be read")
}

// listPorts lists the interfaces whose other ends are in other network namespaces.
func (b *Binder) listPorts() ([]netLink, error) {
	all, err := b.listLinks()
	return slices.DeleteFunc(all, func(l netLink) bool { return l.peerNS < 0 || l.kind != "veth" && l.kind != "netkit" }), err
}

// listLinks lists the interfaces of the network namespace.
func (b *Binder) listLinks() ([]netLink, error) {
	answers, err := b.ask(unix.RTM_GETLINK, netlink.Dump, make([]byte, unix.SizeofIfInfomsg))
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var all []netLink
	for _, m := range answers {
		l, err := decodeLink(m.Data)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// netNSNumber is the number by which the interface's network namespace knows
// another one; below 0 is none. Those of other ends get theirs when their interfaces
// are listed (rtnl_fill_link_netnsid, net/core/rtnetlink.c, v6.12).
func (b *Binder) netNSNumber(ns *os.File) (int32, error) {
	const nsID, nsFD = 1, 3 // NETNSA_NSID, NETNSA_FD, include/uapi/linux/net_namespace.h
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(nsFD, uint32(ns.Fd()))
	attrs, err := ae.Encode()
	if err != nil {
		return -1, err
	}
	answers, err := b.ask(unix.RTM_GETNSID, 0, append(make([]byte, 4), attrs...)) // behind a struct rtgenmsg
	if err == nil && (len(answers) == 0 || len(answers[0].Data) < 4) {
		err = errors.New("no answer of the kernel")
	}
	if err != nil {
		return -1, fmt.Errorf("number of a network namespace: %w", err)
	}
	ad, err := netlink.NewAttributeDecoder(answers[0].Data[4:])
	if err != nil {
		return -1, err
	}
	number := int32(-1)
	for ad.Next() {
		if ad.Type() == nsID {
			number = ad.Int32()
		}
	}
	return number, ad.Err()
}

// decodeLink reads an RTM_NEWLINK message.
func decodeLink(b []byte) (netLink, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return netLink{}, errors.New("look for interfaces: the kernel's answer is too short")
	}
	flags := binary.NativeEndian.Uint32(b[8:])
	l := netLink{index: binary.NativeEndian.Uint32(b[4:]), peerNS: -1, up: flags&unix.IFF_UP != 0, local: flags&unix.IFF_LOOPBACK != 0}
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return netLink{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			l.name = ad.String()
		case unix.IFLA_MASTER:
			l.master = ad.Uint32()
		case unix.IFLA_LINK:
			l.peer = ad.Uint32()
		case unix.IFLA_LINK_NETNSID:
			l.peerNS = ad.Int32()
		case unix.IFLA_LINKINFO:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == unix.IFLA_INFO_KIND {
						l.kind = ad.String()
					}
				}
				return nil
			})
		}
	}
	return l, ad.Err()
}
