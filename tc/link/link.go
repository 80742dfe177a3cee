//go:build linux

package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"

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
	Physical Nature = "physical"
	Virtual  Nature = "virtual"
	Loopback Nature = "loopback"
	Bridge   Nature = "bridge" // bridges and Open vSwitch
	Bond     Nature = "bond"   // bonds and teams
	VLAN     Nature = "vlan"
	Tunnel   Nature = "tunnel" // packets leave inside others, or to a process: WireGuard, GRE, VXLAN, tun, PPP ...
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
	Header     hierarchy.Size `json:"-"`   // what a packet has of it when it comes to a queueing discipline
	TxQueues   int            `json:"tx_queues"`
	RxQueues   int            `json:"rx_queues,omitempty"`    // 0 on a kernel built for one processor
	TxQueueLen int            `json:"tx_queue_len"`           // packets
	GSOMaxSize hierarchy.Size `json:"gso_max_size,omitempty"` // largest packet before segmentation
	GSOMaxSegs int            `json:"gso_max_segs,omitempty"`
	GROMaxSize hierarchy.Size `json:"-"` // largest packet that what arrives is put together to; 0 before kernel 5.19

	// Receives is the index of the interface for which this one, an IFB of ours,
	// carries the tree for what is received; 0: it is none of ours.
	Receives int `json:"-"`

	// MAC is the hardware address that it was made with, or has if that is not known; empty
	// where it has none, or that of an interface which it lies on, as bridges, bonds and
	// VLANs do.
	MAC string `json:"-"`

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

	// XDP says that programs at XDP see what arrives before anything else does.
	XDP bool `json:"xdp,omitempty"`

	ParentDev string `json:"parent_dev,omitempty"` // hardware: the device on its bus, "0000:00:03.0"; empty before kernel 5.14
	ParentBus string `json:"parent_bus,omitempty"` // "pci", "usb", "virtio" ...
}

// Find reads the interface of that name, also of that alternative name. The error
// is a [*NotFoundError] when there is none.
func Find(c *rtnl.Conn, name string) (Link, error) {
	err := error(unix.ENODEV)
	var l Link
	if name != "" {
		l, err = readLink(c, name)
	}
	if errors.Is(err, unix.ENODEV) {
		return Link{}, &NotFoundError{Name: name, Nearest: nearest(c, name)}
	}
	return l, rtnl.Fail("find interface", name, err)
}

// NotFoundError says that there is no interface of that name.
type NotFoundError struct {
	Name    string
	Nearest string // the name most like it, empty when none is alike
}

// Error names the interface and what may have been meant.
func (e *NotFoundError) Error() string {
	if hierarchy.Selector(e.Name) == hierarchy.DefaultRoute {
		return e.Name + ": there is none, and so no interface of it"
	}
	if e.Nearest != "" {
		return fmt.Sprintf("%s: no such interface: did you mean %s?", e.Name, e.Nearest)
	}
	return e.Name + ": no such interface"
}

// nearest is the name of an interface that is like name, empty if there is none.
func nearest(c *rtnl.Conn, name string) string {
	links, err := readLinks(c)
	if err != nil {
		return "" // the name is wrong all the same
	}
	names := make([]string, len(links))
	for i, l := range links {
		names[i] = l.Name
	}
	// Behind an @ `ip link` prints what an interface is linked to.
	if before, _, ok := strings.Cut(name, "@"); ok && slices.Contains(names, before) {
		return before
	}
	return hierarchy.Nearest(name, names)
}

// List lists the interfaces of the namespace in the kernel's order. It needs
// no privileges.
func List(c *rtnl.Conn) ([]Link, error) {
	links, err := readLinks(c)
	if err != nil {
		return nil, rtnl.Fail("list interfaces", "", err)
	}
	connect(links,
		func(name string) hierarchy.Bandwidth { return speed(c, name) },
		func(netNS, index int) string { return nameIn(c, netNS, index) })
	return links, nil
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
		Header:     header(hardware),
		Up:         flags&unix.IFF_UP != 0,
		OperState:  "unknown",
		LowerNetNS: -1,
	}
	number := func(v []byte, to *int) error {
		n, err := rtnl.Uint32(v)
		*to = int(int32(n))
		return err
	}
	var address, made, data []byte // made: that it was made with; data: of the kind
	var alias string
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
		case unix.IFLA_GRO_MAX_SIZE:
			n, err := rtnl.Uint32(v)
			l.GROMaxSize = hierarchy.Size(n)
			return err
		case unix.IFLA_ADDRESS:
			address = v
		case unix.IFLA_PERM_ADDRESS:
			made = v
		case unix.IFLA_IFALIAS:
			alias = rtnl.String(v)
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
		case unix.IFLA_XDP:
			return rtnl.EachAttr(v, func(typ uint16, v []byte) error {
				if typ == unix.IFLA_XDP_ATTACHED {
					l.XDP = len(v) > 0 && v[0] != 0 // XDP_ATTACHED_NONE of linux/if_link.h
				}
				return nil
			})
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
	if l.Kind == ifbKind {
		l.Receives = l.receives(address, alias)
	}
	l.Nature = nature(l.Kind, hardware, flags)
	l.MAC = l.mac(address, made)
	l.ByRoute = l.Lower == 0 && encapsulates(l.Kind)
	return l, err
}

// mac is the hardware address that an interface is known by.
func (l *Link) mac(address, made []byte) string {
	switch {
	case l.Nature == Loopback, l.Nature == Bridge, l.Nature == Bond, l.Nature == VLAN, slices.Contains([]string{"ipvlan", "ipvtap", "macsec"}, l.Kind):
		return "" // that of another
	case len(made) > 0:
		address = made
	}
	if len(address) != 6 && len(address) != 20 { // Ethernet's, InfiniBand's; tunnels have others
		return ""
	}
	return net.HardwareAddr(address).String()
}

// Identity is what the interface is known by, where the default route goes by those of the
// indices of [Uplinks]; nil where nobody asks for that.
func (l *Link) Identity(uplinks []int) hierarchy.Identity {
	return hierarchy.Identity{Name: l.Name, AltNames: l.AltNames, MAC: l.MAC, Uplink: slices.Contains(uplinks, l.Index)}
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
			return Loopback
		case hardware == unix.ARPHRD_ETHER || hardware == unix.ARPHRD_INFINIBAND || hardware == unix.ARPHRD_IEEE80211:
			return Physical
		case flags&unix.IFF_POINTOPOINT != 0:
			return Tunnel
		}
	case "ipoib", "dsa", "wwan":
		return Physical
	case "bridge", "openvswitch":
		return Bridge
	case "bond", "team":
		return Bond
	case "vlan":
		return VLAN
	case "tun", "ppp", "macsec":
		return Tunnel
	}
	if encapsulates(kind) {
		return Tunnel
	}
	return Virtual
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

// What is the nature of an interface, with the kernel's word for its kind.
func (l Link) What() string {
	n := string(l.Nature)
	if l.Kind != "" && !strings.EqualFold(l.Kind, n) {
		n += " (" + l.Kind + ")"
	}
	return n
}
