package iface

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// ErrNone: there is no such interface. It is an [fs.ErrNotExist].
var ErrNone error = noLink{}

type noLink struct{}

func (noLink) Error() string { return "no such interface" }

func (noLink) Is(target error) bool { return target == fs.ErrNotExist }

// Link is an interface of the network namespace.
type Link struct {
	Index  uint32
	Name   string
	Master uint32 // index of the bridge, bond or other interface that it belongs to, 0: none
	Kind   string // "veth", "bridge" ...
	Peer   uint32 // index of its other end, or of what it lies on, 0: none
	PeerNS int32  // number of the network namespace of its other end, -1: none but this
	Up     bool
	Local  bool // it is the loopback interface
}

// Conn asks the kernel about one network namespace, any number of times over one socket: who has
// many questions saves opening one for each, which takes longer than the answer.
type Conn struct{ c *netlink.Conn }

// Dial opens one.
func Dial(netNS int) (*Conn, error) {
	c, err := netlink.Dial(unix.NETLINK_ROUTE, &netlink.Config{NetNS: netNS})
	if err != nil {
		return nil, err
	}
	return &Conn{c}, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return c.c.Close() }

func (c *Conn) ask(typ netlink.HeaderType, flags netlink.HeaderFlags, body []byte) ([]netlink.Message, error) {
	return Whole(func() ([]netlink.Message, error) {
		return c.c.Execute(netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request | flags}, Data: body})
	})
}

// Get is [Get].
func (c *Conn) Get(index uint32, name string) (Link, error) {
	ae := netlink.NewAttributeEncoder()
	if name != "" {
		ae.String(unix.IFLA_IFNAME, name)
	}
	attrs, err := ae.Encode()
	if err != nil {
		return Link{}, err
	}
	msg := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(msg[4:], index)
	answers, err := c.ask(unix.RTM_GETLINK, 0, append(msg, attrs...))
	if errors.Is(err, unix.ENODEV) {
		return Link{}, ErrNone
	}
	if err == nil && len(answers) == 0 {
		err = errors.New("no answer of the kernel")
	}
	if err != nil {
		return Link{}, fmt.Errorf("look for interfaces: %w", err)
	}
	return decodeLink(answers[0].Data)
}

// Get asks the kernel for the interface that has an index or, where that is 0,
// a name. The error is ErrNone where there is none.
func Get(netNS int, index uint32, name string) (Link, error) {
	c, err := Dial(netNS)
	if err != nil {
		return Link{}, fmt.Errorf("look for interfaces: %w", err)
	}
	defer c.Close()
	return c.Get(index, name)
}

// Ask sends a request to the kernel's rtnetlink in a network namespace.
func Ask(netNS int, typ netlink.HeaderType, flags netlink.HeaderFlags, body []byte) ([]netlink.Message, error) {
	c, err := Dial(netNS)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ask(typ, flags, body)
}

// Whole asks again where what is listed was changed meanwhile: such a list may lack
// what was there all the time (nl_dump_check_consistent, include/net/netlink.h, v6.12).
func Whole(ask func() ([]netlink.Message, error)) ([]netlink.Message, error) {
	const most = 100
	for range most {
		answers, err := ask()
		if err != nil || !slices.ContainsFunc(answers, func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }) {
			return answers, err
		}
	}
	return nil, errors.New("it changes faster than it can be read")
}

// Ports lists the interfaces whose other ends are in other network namespaces.
func Ports(netNS int) ([]Link, error) {
	all, err := List(netNS)
	return slices.DeleteFunc(all, func(l Link) bool { return l.PeerNS < 0 || l.Kind != "veth" && l.Kind != "netkit" }), err
}

// List lists the interfaces of a network namespace.
func List(netNS int) ([]Link, error) {
	answers, err := Ask(netNS, unix.RTM_GETLINK, netlink.Dump, make([]byte, unix.SizeofIfInfomsg))
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	var all []Link
	for _, m := range answers {
		l, err := decodeLink(m.Data)
		if err != nil {
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

// Number is the number by which the network namespace knows another one; below 0 is none. Those of
// other ends get theirs when their interfaces are listed (rtnl_fill_link_netnsid,
// net/core/rtnetlink.c, v6.12).
func (c *Conn) Number(ns *os.File) (int32, error) {
	const nsID, nsFD = 1, 3 // NETNSA_NSID, NETNSA_FD, include/uapi/linux/net_namespace.h
	ae := netlink.NewAttributeEncoder()
	ae.Uint32(nsFD, uint32(ns.Fd()))
	attrs, err := ae.Encode()
	if err != nil {
		return -1, err
	}
	answers, err := c.ask(unix.RTM_GETNSID, 0, append(make([]byte, 4), attrs...)) // behind a struct rtgenmsg
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

// Number is [Conn.Number] for a network namespace.
func Number(netNS int, ns *os.File) (int32, error) {
	c, err := Dial(netNS)
	if err != nil {
		return -1, fmt.Errorf("number of a network namespace: %w", err)
	}
	defer c.Close()
	return c.Number(ns)
}

// decodeLink reads an RTM_NEWLINK message.
func decodeLink(b []byte) (Link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return Link{}, errors.New("look for interfaces: the kernel's answer is too short")
	}
	flags := binary.NativeEndian.Uint32(b[8:])
	l := Link{Index: binary.NativeEndian.Uint32(b[4:]), PeerNS: -1, Up: flags&unix.IFF_UP != 0, Local: flags&unix.IFF_LOOPBACK != 0}
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return Link{}, err
	}
	for ad.Next() {
		switch ad.Type() {
		case unix.IFLA_IFNAME:
			l.Name = ad.String()
		case unix.IFLA_MASTER:
			l.Master = ad.Uint32()
		case unix.IFLA_LINK:
			l.Peer = ad.Uint32()
		case unix.IFLA_LINK_NETNSID:
			l.PeerNS = ad.Int32()
		case unix.IFLA_LINKINFO:
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() == unix.IFLA_INFO_KIND {
						l.Kind = ad.String()
					}
				}
				return nil
			})
		}
	}
	return l, ad.Err()
}

// NetNS is the inode of a network namespace.
func NetNS(netNS int) (uint64, error) {
	var (
		st  unix.Stat_t
		err error
	)
	if netNS == 0 {
		err = unix.Stat("/proc/thread-self/ns/net", &st)
	} else {
		err = unix.Fstat(netNS, &st)
	}
	return st.Ino, err
}
