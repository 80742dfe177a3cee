package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

var errLinksByBPF = fmt.Errorf("interfaces can be bound with BPF only, not with nf_tables or net_cls: %w", ErrNotSupported)

// errNoLink is an fs.ErrNotExist: that nothing is there any more may end a change.
var errNoLink error = noLink{}

type noLink struct{}

func (noLink) Error() string { return "no such interface" }

func (noLink) Is(target error) bool { return target == fs.ErrNotExist }

// resolveLink is the target of a bound interface, or why there is none at present.
func (b *Binder) resolveLink(name string) (target, reason string, err error) {
	switch {
	case b.way != hierarchy.WayBPF:
		return "", "", errLinksByBPF
	case name == b.cfg.Interface:
		return "", "", errors.New("it is the shaped interface itself: what comes in by it and leaves by it again is the rest's")
	}
	// it may be another of its names
	l, err := b.getLink(0, name)
	if errors.Is(err, errNoLink) {
		return "", err.Error(), nil
	}
	return linkTarget + l.name, "", err
}

// netLink is an interface of the network namespace.
type netLink struct {
	index  uint32
	name   string
	master uint32 // index of the bridge, bond or other interface that it belongs to, 0: none
}

// getLink asks the kernel for the interface that has an index or, where that is 0,
// a name. The error is errNoLink where there is none.
func (b *Binder) getLink(index uint32, name string) (netLink, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: b.cfg.NetNSFD})
	if err != nil {
		return netLink{}, fmt.Errorf("look for interfaces: %w", err)
	}
	defer c.Close()
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
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request},
		Data:   append(msg, attrs...),
	})
	if errors.Is(err, unix.ENODEV) {
		return netLink{}, errNoLink
	}
	if err != nil || len(answers) == 0 {
		return netLink{}, errors.Join(errors.New("look for interfaces: no answer of the kernel"), err)
	}
	return decodeLink(answers[0].Data)
}

// decodeLink reads an RTM_NEWLINK message.
func decodeLink(b []byte) (netLink, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return netLink{}, errors.New("look for interfaces: the kernel's answer is too short")
	}
	l := netLink{index: binary.NativeEndian.Uint32(b[4:])}
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
		}
	}
	return l, ad.Err()
}
