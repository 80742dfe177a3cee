package cgroup

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strconv"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

var (
	errLinksByBPF = fmt.Errorf("interfaces can be bound with BPF only, not with nf_tables or net_cls: %w", ErrNotSupported)
	errNoLink     = errors.New("no such interface")
)

// resolveLink is the target of a bound interface, or why there is none at present.
func (b *Binder) resolveLink(name string) (target, reason string, err error) {
	switch {
	case b.way != hierarchy.WayBPF:
		return "", "", errLinksByBPF
	case name == b.cfg.Interface:
		return "", "", errors.New("it is the shaped interface itself: what comes in by it and leaves by it again is the rest's")
	}
	// it may be another of its names
	err = b.getLink(0, name, func(_ uint32, name string) { target = linkTarget + name })
	if errors.Is(err, errNoLink) {
		return "", err.Error(), nil
	}
	return target, "", err
}

// linkIndex is the index of an interface of the network namespace, errNoLink where
// there is none of that name.
func (b *Binder) linkIndex(name string) (index uint32, err error) {
	err = b.getLink(0, name, func(n uint32, _ string) { index = n })
	return index, err
}

// linkTarget names the interface of an index, which may be gone.
func (b *Binder) linkTarget(index uint32) (target string, err error) {
	err = b.getLink(index, "", func(_ uint32, name string) { target = linkTarget + name })
	if errors.Is(err, errNoLink) {
		return linkGoneTarget + strconv.FormatUint(uint64(index), 10), nil
	}
	return target, err
}

// getLink asks the kernel for the interface that has an index or, where that is 0,
// a name.
func (b *Binder) getLink(index uint32, name string, fn func(index uint32, name string)) error {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: b.cfg.NetNSFD})
	if err != nil {
		return fmt.Errorf("look for interfaces: %w", err)
	}
	defer c.Close()
	ae := netlink.NewAttributeEncoder()
	if name != "" {
		ae.String(unix.IFLA_IFNAME, name)
	}
	attrs, err := ae.Encode()
	if err != nil {
		return err
	}
	msg := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(msg[4:], index)
	answers, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request},
		Data:   append(msg, attrs...),
	})
	if errors.Is(err, unix.ENODEV) {
		return errNoLink
	}
	if err != nil || len(answers) == 0 || len(answers[0].Data) < unix.SizeofIfInfomsg {
		return errors.Join(errors.New("look for interfaces: no answer of the kernel"), err)
	}
	data := answers[0].Data
	ad, err := netlink.NewAttributeDecoder(data[unix.SizeofIfInfomsg:])
	if err != nil {
		return err
	}
	for ad.Next() {
		if ad.Type() == unix.IFLA_IFNAME {
			name = ad.String()
		}
	}
	fn(binary.NativeEndian.Uint32(data[4:]), name)
	return ad.Err()
}
