//go:build linux

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/rtnl"
)

const (
	ifbKind = "ifb"
	// ifbQueues is how many queues an IFB of ours has. Each has a tasklet of its own,
	// which hands packets on: several would let a flow's packets overtake each other
	// when the processor that receives them changes, and HTB has one lock for all of
	// them anyway.
	ifbQueues = 1
	// IFBQueueLen is how many packets may have left the tree without having been handed
	// on: with that many the driver stops the queue (ifb_xmit, drivers/net/ifb.c, v5.10
	// to v6.18). It is few, so that packets wait in the tree, and what the driver comes
	// with, unless somebody has another opinion of all interfaces. Speed does not depend
	// on it: with 2, 32 and 1,000 it is the same. A class holds as many before it gets
	// a queue of its own.
	IFBQueueLen = 32
)

// HasIFB says whether this kernel has interfaces of kind ifb. The lists of its
// modules say so first: loading that module makes two of them. Else the kernel is
// asked for one with an address that no interface may have, which a kernel that
// has the kind refuses for the address (ifb_validate, drivers/net/ifb.c, v5.4 to
// v6.18). Nothing is made. Needs CAP_NET_ADMIN where there are no lists.
func HasIFB(c *rtnl.Conn) (bool, error) {
	if has, _ := rtnl.HasModule(ifbKind); has {
		return true, nil
	}
	e := rtnl.Encoder{B: make([]byte, unix.SizeofIfInfomsg)}
	e.Attr(unix.IFLA_ADDRESS, func() { e.B = append(e.B, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff) })
	e.Nest(unix.IFLA_LINKINFO, func() { e.AttrString(unix.IFLA_INFO_KIND, ifbKind) })
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

// NoIFB is the error of a kernel without interfaces of kind ifb, which is
// [rtnl.ErrNotSupported]: what dev receives cannot be shaped there.
func NoIFB(dev string) error {
	return rtnl.Fail("make an interface of kind ifb (kernel module ifb)", dev, unix.EOPNOTSUPP)
}

// FindIFB finds the IFB of ours that belongs to the interface of that index; nil: there
// is none. It needs no privileges.
func FindIFB(c *rtnl.Conn, of int) (*Link, error) {
	// of the kind alone, by a filter of rtnl_dump_ifinfo, net/core/rtnetlink.c, v5.10
	links, err := getLinks(c, netlink.Dump, 0, func(e *rtnl.Encoder) {
		e.Nest(unix.IFLA_LINKINFO, func() { e.AttrString(unix.IFLA_INFO_KIND, ifbKind) })
	})
	if err != nil {
		return nil, rtnl.Fail("list interfaces of kind ifb", "", err)
	}
	if i := slices.IndexFunc(links, func(l Link) bool { return of != 0 && l.Receives == of }); i >= 0 {
		return &links[i], nil
	}
	return nil, nil
}

// EnsureIFB makes the IFB of an interface, or puts that right which is there, and says
// whether it made it: one queue, as long as it should be, up. Nobody else's is touched,
// whatever its name is. Where the kernel has none the error is that of [NoIFB].
//
// Where ifb is a module, the kernel loads it for this, and the module then makes ifb0
// and ifb1 in the machine's first namespace, down and without a tree, unless its
// parameter numifbs says otherwise (ifb_init_module, drivers/net/ifb.c, v5.10 to v6.18).
// They are not ours, and stay.
func EnsureIFB(c *rtnl.Conn, of Link) (ifb Link, made bool, err error) {
	found, err := FindIFB(c, of.Index)
	if err == nil && found == nil {
		made = true
		if err = addIFB(c, of); err == nil {
			found, err = FindIFB(c, of.Index)
		}
		if err == nil && found == nil {
			err = rtnl.Fail("make its ifb", of.Name, unix.ENODEV)
		}
	}
	if err != nil {
		return Link{}, false, err
	}
	if err := found.raise(c, of); err != nil {
		if made {
			err = errors.Join(err, RemoveIFB(c, *found))
		}
		return Link{}, false, err
	}
	found.Up, found.TxQueueLen = true, IFBQueueLen
	return *found, made, nil
}

// RemoveIFB takes an IFB of ours away with all that stands on it. One that is gone
// already is no error.
func RemoveIFB(c *rtnl.Conn, ifb Link) error {
	e := rtnl.Encoder{B: make([]byte, unix.SizeofIfInfomsg)}
	binary.NativeEndian.PutUint32(e.B[4:], uint32(ifb.Index))
	_, err := c.Send([]netlink.Message{rtnl.Message(unix.RTM_DELLINK, 0, e.B)})
	if rtnl.Errno(err) == unix.ENODEV {
		return nil
	}
	return rtnl.Fail("remove", ifb.Name, err)
}

// Orphans are the IFBs of ours whose interface is not in the namespace any more: it was
// removed, or moved to another. It needs no privileges.
func Orphans(c *rtnl.Conn) ([]Link, error) {
	links, err := readLinks(c)
	if err != nil {
		return nil, rtnl.Fail("list interfaces", "", err)
	}
	there := make(map[int]bool, len(links))
	for _, l := range links {
		there[l.Index] = true
	}
	return slices.DeleteFunc(links, func(l Link) bool { return l.Receives == 0 || there[l.Receives] }), nil
}

// Sound says whether packets get through an IFB of ours as they should: one that is down
// drops them all.
func (l *Link) Sound() bool { return l.Up && l.TxQueueLen == IFBQueueLen }

// mark is the hardware address of the IFB that belongs to the interface of that index:
// "vi", which is a local address, and the index, which a rename does not change. An IFB
// is known by it, because it is given in the message that makes it, as the alias cannot
// be: that one is passed over there (rtnl_create_link, net/core/rtnetlink.c, v5.10 to
// v6.18), and who was killed before the next message would leave an IFB that nobody
// knows. No packet shows the address, and udev leaves alone what was set on purpose.
func mark(of int) []byte {
	return binary.BigEndian.AppendUint32([]byte("vi"), uint32(of))
}

// receives is the index of the interface of which an IFB of ours carries what it receives,
// 0 for one of others. An address like ours may be anybody's by chance, one in 16,384 of
// those that are made up: ours has its name or its alias as well.
func (l *Link) receives(address []byte, alias string) int {
	if len(address) != 6 || string(address[:2]) != "vi" || !strings.HasPrefix(l.Name, ifbPrefix) && !strings.HasPrefix(alias, ifbAlias) {
		return 0
	}
	return max(int(int32(binary.BigEndian.Uint32(address[2:]))), 0)
}

const ifbPrefix, ifbAlias = "vif-", "vifshape: "

// addIFB makes the IFB, down.
func addIFB(c *rtnl.Conn, of Link) (err error) {
	// As long as names of others are in the way: a few may be, by chance or on purpose.
	for try := range 10 {
		e := rtnl.Encoder{B: make([]byte, unix.SizeofIfInfomsg)}
		e.AttrString(unix.IFLA_IFNAME, IFBName(of.Name, try))
		e.Attr(unix.IFLA_ADDRESS, func() { e.B = append(e.B, mark(of.Index)...) })
		e.Attr32(unix.IFLA_MTU, uint32(of.MTU)) // by which codel and fq_codel know a queue of one packet; it stays when the interface's changes
		e.Attr32(unix.IFLA_TXQLEN, IFBQueueLen)
		e.Attr32(unix.IFLA_NUM_TX_QUEUES, ifbQueues)
		e.Attr32(unix.IFLA_NUM_RX_QUEUES, ifbQueues)
		e.Nest(unix.IFLA_LINKINFO, func() { e.AttrString(unix.IFLA_INFO_KIND, ifbKind) })
		_, err = c.Send([]netlink.Message{rtnl.Message(unix.RTM_NEWLINK, netlink.Create|netlink.Excl, e.B)})
		switch rtnl.Errno(err) {
		case unix.EEXIST:
			continue
		case unix.EOPNOTSUPP:
			return NoIFB(of.Name)
		}
		break
	}
	return rtnl.Fail("make its ifb", of.Name, err)
}

// IFBName is the name of the IFB that belongs to an interface, as long as names may be,
// and another at each try.
func IFBName(of string, try int) string {
	if name := ifbPrefix + of; try == 0 && len(name) < unix.IFNAMSIZ {
		return name
	}
	h := fnv.New32a()
	fmt.Fprint(h, of, try)
	sum := fmt.Sprintf("-%04x", h.Sum32()&0xffff)
	head := of[:min(len(of), unix.IFNAMSIZ-1-len(ifbPrefix)-len(sum))]
	return ifbPrefix + strings.ToValidUTF8(head, "") + sum
}

// raise puts an IFB right, says in words whose it is, and brings it up.
func (l *Link) raise(c *rtnl.Conn, of Link) error {
	set := func(flags uint32, put func(*rtnl.Encoder)) error {
		e := rtnl.Encoder{B: make([]byte, unix.SizeofIfInfomsg)}
		binary.NativeEndian.PutUint32(e.B[4:], uint32(l.Index))
		binary.NativeEndian.PutUint32(e.B[8:], flags)
		binary.NativeEndian.PutUint32(e.B[12:], flags)
		put(&e)
		_, err := c.Send([]netlink.Message{rtnl.Message(unix.RTM_NEWLINK, 0, e.B)})
		return err
	}
	// Without an address of its own it says nothing by itself, which would be counted
	// in the tree, and dropped. A kernel without IPv6 knows no such setting.
	err := set(0, func(e *rtnl.Encoder) {
		e.Nest(unix.IFLA_AF_SPEC, func() {
			e.Nest(unix.AF_INET6, func() { e.Attr8(unix.IFLA_INET6_ADDR_GEN_MODE, addrGenModeNone) })
		})
	})
	if err == nil || rtnl.Errno(err) == unix.EAFNOSUPPORT {
		err = set(unix.IFF_UP, func(e *rtnl.Encoder) {
			e.Attr(unix.IFLA_IFALIAS, func() { e.B = append(e.B, fmt.Sprintf(ifbAlias+"what ifindex %d receives", of.Index)...) })
			e.Attr32(unix.IFLA_TXQLEN, IFBQueueLen)
		})
	}
	return rtnl.Fail("bring up", l.Name, err)
}

// addrGenModeNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenModeNone = 1
