//go:build linux

package tc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"runtime"
	"slices"
	"syscall"
	"unsafe"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Nature says what a network interface really is.
type Nature string

// The natures. Everything that is none of the others is virtual: veth, dummy,
// ifb, macvlan, ipvlan, vrf and whatever a later kernel brings.
const (
	NaturePhysical Nature = "physical"
	NatureVirtual  Nature = "virtual"
	NatureLoopback Nature = "loopback"
	NatureBridge   Nature = "bridge" // bridges and Open vSwitch
	NatureBond     Nature = "bond"   // bonds and teams
	NatureVLAN     Nature = "vlan"
	NatureTunnel   Nature = "tunnel" // packets leave inside others, or to a process: WireGuard, GRE, VXLAN, tun, PPP ...
)

// Link is one network interface as the kernel describes it. Its JSON form is
// stable; what is unknown or none is left out of it.
type Link struct {
	Index    int      `json:"ifindex"`
	Name     string   `json:"name"`
	AltNames []string `json:"alt_names,omitempty"`
	Kind     string   `json:"kind,omitempty"` // rtnetlink's word: "veth", "bridge", "wireguard" ...; empty for hardware
	Nature   Nature   `json:"nature"`

	MTU        int            `json:"mtu"` // bytes, without the link-layer header
	TxQueues   int            `json:"tx_queues"`
	RxQueues   int            `json:"rx_queues,omitempty"`    // 0 on a kernel built for one processor
	TxQueueLen int            `json:"tx_queue_len"`           // packets
	GSOMaxSize hierarchy.Size `json:"gso_max_size,omitempty"` // largest packet before segmentation
	GSOMaxSegs int            `json:"gso_max_segs,omitempty"`

	Up        bool   `json:"up"`         // switched on
	Carrier   bool   `json:"carrier"`    // the line is there; false while it is switched off
	OperState string `json:"oper_state"` // RFC 2863: "up", "down", "unknown" ...

	// Speed is that of the line, 0 where it is unknown. What is not hardware has
	// the speed of what it lies on, a bond that of its members together, a
	// bridge that of the fastest: veth and tun report numbers that mean nothing.
	Speed hierarchy.Bandwidth `json:"speed,omitempty"`

	Master  int      `json:"master,omitempty"`  // index of the bridge, bond or VRF it belongs to, 0: none
	Members []string `json:"members,omitempty"` // names of those that belong to this one

	// Lower is the index of the interface that this one lies on, for a veth
	// that of its other end; 0: none. LowerNetNS is the id of the namespace
	// where Lower is, as "ip netns list-id" shows it, and -1 where it is in
	// the link's own. Its name in another namespace takes CAP_NET_ADMIN there
	// to know, and is empty without.
	Lower      int    `json:"lower,omitempty"`
	LowerNetNS int    `json:"lower_netns"`
	LowerName  string `json:"lower_name,omitempty"`

	// ByRoute says that its packets leave inside others, by whatever interface
	// the route to the tunnel's other end takes.
	ByRoute bool `json:"by_route,omitempty"`

	Qdisc string `json:"qdisc"` // kind of the root qdisc

	ParentDev string `json:"parent_dev,omitempty"` // hardware: the device on its bus, "0000:00:03.0"; empty before kernel 5.14
	ParentBus string `json:"parent_bus,omitempty"` // "pci", "usb", "virtio" ...
}

// Links lists the interfaces of the namespace in the kernel's order. It needs
// no privileges.
func Links(c *rtnl.Conn) ([]Link, error) {
	links, err := readLinks(c)
	if err != nil {
		return nil, rtnl.Fail("list interfaces", "", err)
	}
	connect(links,
		func(name string) hierarchy.Bandwidth { return speed(c, name) },
		func(netNS, index int) string { return nameIn(c, netNS, index) })
	return links, nil
}

// Roots reads the root qdisc of every interface of the namespace that somebody
// has given one, by the index of the interface. It needs no privileges.
func Roots(c *rtnl.Conn) (map[int]hierarchy.Root, error) {
	roots := map[int]hierarchy.Root{}
	err := c.Dump(unix.RTM_GETQDISC, make([]byte, rtnl.SizeofTcMsg), func(body []byte) error {
		m, _, err := rtnl.DecodeTcMsg(body)
		if err != nil || m.Parent != rtnl.RootParent || m.Handle == 0 {
			return err
		}
		q, err := rtnl.DecodeQdisc(body)
		roots[int(m.Index)] = q.Root()
		return err
	})
	return roots, rtnl.Fail("read qdiscs", "", err)
}

// rtextSkipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h: counters are
// most of a message otherwise.
const rtextSkipStats = 1 << 3

// executor sends a request and returns the answers: an [rtnl.Conn].
type executor interface {
	Execute(netlink.Message) ([]netlink.Message, error)
}

// readLinks reads all interfaces of the namespace that c is in.
func readLinks(c executor) ([]Link, error) {
	return getLinks(c, netlink.Dump, 0, func(*rtnl.Encoder) {})
}

// readLink reads the interface called name, also by one of its alternative
// names. The error is ENODEV when there is none.
func readLink(c executor, name string) (Link, error) {
	links, err := getLinks(c, 0, 0, func(e *rtnl.Encoder) {
		if len(name) < unix.IFNAMSIZ {
			e.AttrString(unix.IFLA_IFNAME, name)
		} else {
			e.AttrString(unix.IFLA_ALT_IFNAME, name)
		}
	})
	if err != nil {
		return Link{}, err
	}
	if len(links) != 1 {
		return Link{}, fmt.Errorf("interface %s: %d answers: %w", name, len(links), rtnl.ErrMalformed)
	}
	return links[0], nil
}

// nameIn is the name of an interface in another namespace, empty where the caller
// may not look into it (rtnl_get_net_ns_capable, net/core/rtnetlink.c, v6.12).
func nameIn(c executor, netNS, index int) string {
	links, err := getLinks(c, 0, uint32(index), func(e *rtnl.Encoder) { e.Attr32(unix.IFLA_TARGET_NETNSID, uint32(netNS)) })
	if err != nil || len(links) != 1 {
		return ""
	}
	return links[0].Name
}

// getLinks asks for interfaces, by their index unless that is 0.
func getLinks(c executor, flags netlink.HeaderFlags, index uint32, ask func(*rtnl.Encoder)) ([]Link, error) {
	e := rtnl.Encoder{B: make([]byte, unix.SizeofIfInfomsg)}
	binary.NativeEndian.PutUint32(e.B[4:], index)
	e.Attr32(unix.IFLA_EXT_MASK, rtextSkipStats)
	ask(&e)
	const most = 100
	var msgs []netlink.Message
	for try := 0; ; try++ {
		var err error
		if msgs, err = c.Execute(rtnl.Message(unix.RTM_GETLINK, flags, e.B)); err != nil {
			return nil, err
		}
		// a list that was changed meanwhile may lack what was there all the time
		// (nl_dump_check_consistent, include/net/netlink.h, v6.12)
		if !slices.ContainsFunc(msgs, func(m netlink.Message) bool { return m.Header.Flags&netlink.DumpInterrupted != 0 }) {
			break
		}
		if try == most {
			return nil, errors.New("interfaces come and go faster than they can be read")
		}
	}
	var links []Link
	for _, m := range msgs {
		if m.Header.Type != unix.RTM_NEWLINK {
			continue
		}
		l, err := decodeLink(m.Data)
		if err != nil {
			return nil, err
		}
		links = append(links, l)
	}
	return links, nil
}

// decodeLink reads the body of an RTM_NEWLINK message (rtnl_fill_ifinfo,
// net/core/rtnetlink.c, v6.12).
func decodeLink(b []byte) (Link, error) {
	if len(b) < unix.SizeofIfInfomsg {
		return Link{}, rtnl.ErrMalformed
	}
	hardware := binary.NativeEndian.Uint16(b[2:])
	flags := binary.NativeEndian.Uint32(b[8:])
	l := Link{
		Index:      int(binary.NativeEndian.Uint32(b[4:])),
		Up:         flags&unix.IFF_UP != 0,
		OperState:  "unknown",
		LowerNetNS: -1,
	}
	number := func(v []byte, to *int) error {
		n, err := rtnl.Uint32(v)
		*to = int(int32(n))
		return err
	}
	var data []byte // of the kind
	err := rtnl.EachAttr(b[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) error {
		switch typ {
		case unix.IFLA_IFNAME:
			l.Name = rtnl.String(v)
		case unix.IFLA_MTU:
			return number(v, &l.MTU)
		case unix.IFLA_NUM_TX_QUEUES:
			return number(v, &l.TxQueues)
		case unix.IFLA_NUM_RX_QUEUES:
			return number(v, &l.RxQueues)
		case unix.IFLA_TXQLEN:
			return number(v, &l.TxQueueLen)
		case unix.IFLA_GSO_MAX_SIZE:
			n, err := rtnl.Uint32(v)
			l.GSOMaxSize = hierarchy.Size(n)
			return err
		case unix.IFLA_GSO_MAX_SEGS:
			return number(v, &l.GSOMaxSegs)
		case unix.IFLA_MASTER:
			return number(v, &l.Master)
		case unix.IFLA_LINK:
			return number(v, &l.Lower)
		case unix.IFLA_LINK_NETNSID:
			return number(v, &l.LowerNetNS)
		case unix.IFLA_QDISC:
			l.Qdisc = rtnl.String(v)
		case unix.IFLA_CARRIER:
			l.Carrier = l.Up && len(v) > 0 && v[0] != 0
		case unix.IFLA_OPERSTATE:
			if len(v) > 0 && int(v[0]) < len(operStates) {
				l.OperState = operStates[v[0]]
			}
		case unix.IFLA_PARENT_DEV_NAME:
			l.ParentDev = rtnl.String(v)
		case unix.IFLA_PARENT_DEV_BUS_NAME:
			l.ParentBus = rtnl.String(v)
		case unix.IFLA_LINKINFO:
			return rtnl.EachAttr(v, func(typ uint16, v []byte) error {
				switch typ {
				case unix.IFLA_INFO_KIND:
					l.Kind = rtnl.String(v)
				case unix.IFLA_INFO_DATA:
					data = v
				}
				return nil
			})
		case unix.IFLA_PROP_LIST:
			return rtnl.EachAttr(v, func(typ uint16, v []byte) error {
				if typ == unix.IFLA_ALT_IFNAME {
					l.AltNames = append(l.AltNames, rtnl.String(v))
				}
				return nil
			})
		}
		return nil
	})
	if l.Kind == "vxlan" && err == nil { // says it among its own attributes alone
		err = rtnl.EachAttr(data, func(typ uint16, v []byte) error {
			if typ == unix.IFLA_VXLAN_LINK {
				return number(v, &l.Lower)
			}
			return nil
		})
	}
	l.Nature = nature(l.Kind, hardware, flags)
	l.ByRoute = l.Lower == 0 && encapsulates(l.Kind)
	return l, err
}

// operStates are the names of IF_OPER_UNKNOWN and on, of linux/if.h.
var operStates = [...]string{"unknown", "notpresent", "down", "lowerlayerdown", "testing", "dormant", "up"}

// nature tells what an interface is by its kind, and by the type of its
// hardware where the kernel names no kind: drivers of hardware have none, and
// few others.
func nature(kind string, hardware uint16, flags uint32) Nature {
	switch kind {
	case "":
		switch {
		case flags&unix.IFF_LOOPBACK != 0:
			return NatureLoopback
		case hardware == unix.ARPHRD_ETHER || hardware == unix.ARPHRD_INFINIBAND || hardware == unix.ARPHRD_IEEE80211:
			return NaturePhysical
		case flags&unix.IFF_POINTOPOINT != 0:
			return NatureTunnel
		}
	case "ipoib", "dsa", "wwan":
		return NaturePhysical
	case "bridge", "openvswitch":
		return NatureBridge
	case "bond", "team":
		return NatureBond
	case "vlan":
		return NatureVLAN
	case "tun", "ppp", "macsec":
		return NatureTunnel
	}
	if encapsulates(kind) {
		return NatureTunnel
	}
	return NatureVirtual
}

// encapsulates says whether interfaces of the kind send their packets inside
// others to an address, and so by a route.
func encapsulates(kind string) bool {
	switch kind {
	case "wireguard", "ovpn", "xfrm", "vti", "vti6",
		"vxlan", "geneve", "bareudp", "gtp", "amt", "pfcp",
		"gre", "gretap", "erspan", "ip6gre", "ip6gretap", "ip6erspan",
		"ipip", "sit", "ip6tnl":
		return true
	}
	return false
}

// linkSettings is struct ethtool_link_settings of linux/ethtool.h with room for
// the bit sets behind it, of which the kernel says how many words it has.
type linkSettings struct {
	cmd       uint32
	speed     uint32 // megabits per second
	_         [7]uint8
	maskWords int8
	_         [32]uint8
	_         [3 * math.MaxInt8]uint32
}

// speed asks the driver for the speed of the line, 0 when it does not say. It
// is asked over c itself, because a socket that is opened elsewhere may be in
// another namespace: any socket takes this ioctl (dev_ioctl,
// net/core/dev_ioctl.c, v6.12), and without privileges.
func speed(c *rtnl.Conn, name string) hierarchy.Bandwidth {
	s := &linkSettings{}
	// struct ifreq of linux/if.h.
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(s)}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	var errno syscall.Errno
	// The first call tells the number of words, the second the settings
	// (ethtool_get_link_ksettings, net/ethtool/ioctl.c, v6.12).
	for range 2 {
		s.cmd, s.maskWords = unix.ETHTOOL_GLINKSETTINGS, -s.maskWords
		err := c.Control(func(fd uintptr) {
			_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
		})
		if err != nil || errno != 0 {
			return 0
		}
	}
	runtime.KeepAlive(s)
	if s.speed > math.MaxInt32 { // SPEED_UNKNOWN is -1
		return 0
	}
	return hierarchy.Bandwidth(s.speed) * hierarchy.Mbit
}
