package lab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// vethInfoPeer is VETH_INFO_PEER of linux/veth.h.
const vethInfoPeer = 1

// Link describes a network interface to make. Zero values are the kernel's
// defaults.
type Link struct {
	Name       string
	Kind       string // rtnetlink's word: "ifb", "bridge", "vlan", "macvlan" ...; not used for a veth pair
	Addrs      []netip.Prefix
	MTU        int
	TxQueueLen int // packets
	Queues     int // transmit queues, and as many for receiving
	Parent     string
	Master     string
	VLAN       uint16 // id, for kind "vlan"
	NetNS      *NetNS // where it is to be, nil: where its parent is; not used for a veth pair
	Down       bool   // leave it down; it is brought up otherwise

	// Data writes what else a kind takes, its IFLA_INFO_DATA; nil: nothing. Not
	// used for a veth pair.
	Data func(*netlink.AttributeEncoder)
}

// AddVeth makes a veth pair, one end in each namespace, with addresses, up.
// Both namespaces may be the same. The ends speak neither ARP nor neighbour
// discovery: each knows the addresses of the other for good and no more, so that
// nothing of the kind is counted, or lost in a full queue.
func AddVeth(a *NetNS, la Link, b *NetNS, lb Link) error {
	la.Kind = "veth"
	if err := a.create(la, unix.IFF_NOARP, func(ae *netlink.AttributeEncoder) error {
		// The peer is a whole message of its own: header and attributes
		// (veth_newlink, drivers/net/veth.c, v6.12).
		ae.Do(vethInfoPeer, func() ([]byte, error) {
			peer := netlink.NewAttributeEncoder()
			lb.encode(peer)
			peer.Uint32(unix.IFLA_NET_NS_FD, uint32(b.FD()))
			attrs, err := peer.Encode()
			return append(ifinfo(0, unix.IFF_NOARP), attrs...), err
		})
		return nil
	}); err != nil {
		return err
	}
	ma, err := a.configure(la)
	if err != nil {
		return err
	}
	mb, err := b.configure(lb)
	if err != nil {
		return err
	}
	if err := a.neighbours(la.Name, lb.Addrs, mb); err != nil {
		return err
	}
	if err := b.neighbours(lb.Name, la.Addrs, ma); err != nil {
		return err
	}
	if la.Down || lb.Down {
		return nil
	}
	if err := a.ready(la); err != nil {
		return err
	}
	return b.ready(lb)
}

// AddLink makes an interface of l.Kind and configures it. The kernel loads the
// module of the kind if it has one; a kind that it lacks is an error that wraps
// EOPNOTSUPP.
func (n *NetNS) AddLink(l Link) error {
	home := n
	if l.NetNS != nil {
		home = l.NetNS
	}
	err := n.create(l, 0, func(ae *netlink.AttributeEncoder) error {
		if l.VLAN != 0 {
			ae.Uint16(unix.IFLA_VLAN_ID, l.VLAN)
		}
		if l.Data != nil {
			l.Data(ae)
		}
		return nil
	})
	if err != nil {
		return err
	}
	_, err = home.configure(l)
	return err
}

// DeleteLink removes an interface, and with it the other end of a veth.
func (n *NetNS) DeleteLink(name string) error {
	return n.request("delete "+name, unix.RTM_DELLINK, 0, ifinfo(0, 0), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
	})
}

// SetUp brings an interface up.
func (n *NetNS) SetUp(name string) error {
	return n.request("bring up "+name, unix.RTM_NEWLINK, 0, ifinfo(0, unix.IFF_UP), func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
	})
}

// SetDown takes an interface down.
func (n *NetNS) SetDown(name string) error {
	msg := ifinfo(0, 0)
	binary.NativeEndian.PutUint32(msg[12:], unix.IFF_UP) // the flags that change
	return n.request("take down "+name, unix.RTM_NEWLINK, 0, msg, func(ae *netlink.AttributeEncoder) {
		ae.String(unix.IFLA_IFNAME, name)
	})
}

// AddRoute sends what goes to dst through the interface dev, by the gateway via
// unless that is the zero Addr.
func (n *NetNS) AddRoute(dst netip.Prefix, via netip.Addr, dev string) error {
	i, _, err := n.index(dev)
	if err != nil {
		return err
	}
	scope := byte(unix.RT_SCOPE_UNIVERSE)
	if !via.IsValid() {
		scope = unix.RT_SCOPE_LINK
	}
	msg := make([]byte, unix.SizeofRtMsg)
	msg[0], msg[1] = family(dst.Addr()), byte(dst.Bits())
	msg[4], msg[5], msg[6], msg[7] = unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, scope, unix.RTN_UNICAST
	return n.request(fmt.Sprintf("route %v via %s", dst, dev), unix.RTM_NEWROUTE, netlink.Create|netlink.Replace, msg, func(ae *netlink.AttributeEncoder) {
		ae.Bytes(unix.RTA_DST, dst.Masked().Addr().AsSlice())
		ae.Uint32(unix.RTA_OIF, i)
		if via.IsValid() {
			ae.Bytes(unix.RTA_GATEWAY, via.AsSlice())
		}
	})
}

func (n *NetNS) create(l Link, flags uint32, data func(*netlink.AttributeEncoder) error) error {
	var parent, master uint32
	var err error
	if l.Parent != "" {
		if parent, _, err = n.index(l.Parent); err != nil {
			return err
		}
	}
	if l.Master != "" {
		if master, _, err = n.index(l.Master); err != nil {
			return err
		}
	}
	return n.request("make "+l.Kind+" "+l.Name, unix.RTM_NEWLINK, netlink.Create|netlink.Excl, ifinfo(0, flags), func(ae *netlink.AttributeEncoder) {
		l.encode(ae)
		if parent != 0 {
			ae.Uint32(unix.IFLA_LINK, parent)
		}
		if master != 0 {
			ae.Uint32(unix.IFLA_MASTER, master)
		}
		if l.NetNS != nil {
			ae.Uint32(unix.IFLA_NET_NS_FD, uint32(l.NetNS.FD()))
		}
		ae.Nested(unix.IFLA_LINKINFO, func(ae *netlink.AttributeEncoder) error {
			ae.String(unix.IFLA_INFO_KIND, l.Kind)
			ae.Nested(unix.IFLA_INFO_DATA, data)
			return nil
		})
	})
}

// encode adds what every kind of interface takes at its creation.
func (l Link) encode(ae *netlink.AttributeEncoder) {
	ae.String(unix.IFLA_IFNAME, l.Name)
	if l.MTU != 0 {
		ae.Uint32(unix.IFLA_MTU, uint32(l.MTU))
	}
	if l.TxQueueLen != 0 {
		ae.Uint32(unix.IFLA_TXQLEN, uint32(l.TxQueueLen))
	}
	if l.Queues != 0 {
		ae.Uint32(unix.IFLA_NUM_TX_QUEUES, uint32(l.Queues))
		ae.Uint32(unix.IFLA_NUM_RX_QUEUES, uint32(l.Queues))
	}
}

// configure adds the addresses, brings the interface up and returns its
// hardware address.
func (n *NetNS) configure(l Link) (net.HardwareAddr, error) {
	i, mac, err := n.index(l.Name)
	if err != nil {
		return nil, err
	}
	for _, p := range l.Addrs {
		msg := make([]byte, unix.SizeofIfAddrmsg)
		msg[0], msg[1] = family(p.Addr()), byte(p.Bits())
		if p.Addr().Is6() {
			msg[2] = unix.IFA_F_NODAD
		}
		binary.NativeEndian.PutUint32(msg[4:], i)
		err := n.request(fmt.Sprintf("address %v on %s", p, l.Name), unix.RTM_NEWADDR, netlink.Create|netlink.Replace, msg, func(ae *netlink.AttributeEncoder) {
			ae.Bytes(unix.IFA_LOCAL, p.Addr().AsSlice())
			ae.Bytes(unix.IFA_ADDRESS, p.Addr().AsSlice())
		})
		if err != nil {
			return nil, err
		}
	}
	if l.Down {
		return mac, nil
	}
	return mac, n.SetUp(l.Name)
}

// readyTime is how long the kernel may take for an address: user-mode Linux frees
// the maps of 200 BPF programs first, which took 15 s.
const readyTime = 2 * time.Minute

// ready waits until packets to the addresses of l are taken in. For IPv6 the
// kernel sees to that later, in a work queue (addrconf_dad_completed,
// net/ipv6/addrconf.c, v6.12), which a busy machine, or one that takes down what
// other tests left, may keep waiting for long.
func (n *NetNS) ready(l Link) error {
	deadline := time.Now().Add(readyTime)
	for _, p := range l.Addrs {
		for p.Addr().Is6() {
			ok, err := n.local(p.Addr())
			if err != nil {
				return err
			}
			if ok {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("address %v on %s is not ready after %v", p, l.Name, readyTime)
			}
			time.Sleep(time.Millisecond)
		}
	}
	return nil
}

// local says whether packets to a are for the namespace itself.
func (n *NetNS) local(a netip.Addr) (bool, error) {
	msg := make([]byte, unix.SizeofRtMsg)
	msg[0], msg[1] = family(a), byte(a.BitLen())
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.RTA_DST, a.AsSlice())
	replies, err := n.execute(unix.RTM_GETROUTE, 0, msg, ae)
	if errors.Is(err, unix.ENETUNREACH) || errors.Is(err, unix.EHOSTUNREACH) {
		return false, nil
	}
	if err != nil || len(replies) == 0 || len(replies[0].Data) < unix.SizeofRtMsg {
		return false, err
	}
	return replies[0].Data[7] == unix.RTN_LOCAL, nil
}

// neighbours tells dev for good that the addresses are at mac.
func (n *NetNS) neighbours(dev string, addrs []netip.Prefix, mac net.HardwareAddr) error {
	i, _, err := n.index(dev)
	if err != nil {
		return err
	}
	for _, p := range addrs {
		msg := make([]byte, unix.SizeofNdMsg)
		msg[0] = family(p.Addr())
		binary.NativeEndian.PutUint32(msg[4:], i)
		binary.NativeEndian.PutUint16(msg[8:], unix.NUD_PERMANENT)
		err := n.request(fmt.Sprintf("neighbour %v on %s", p.Addr(), dev), unix.RTM_NEWNEIGH, netlink.Create|netlink.Replace, msg, func(ae *netlink.AttributeEncoder) {
			ae.Bytes(unix.NDA_DST, p.Addr().AsSlice())
			ae.Bytes(unix.NDA_LLADDR, mac)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// index is the number and the hardware address of an interface.
func (n *NetNS) index(name string) (uint32, net.HardwareAddr, error) {
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.IFLA_IFNAME, name)
	msgs, err := n.execute(unix.RTM_GETLINK, 0, ifinfo(0, 0), ae)
	if err != nil {
		return 0, nil, fmt.Errorf("interface %s: %w", name, err)
	}
	if len(msgs) != 1 || len(msgs[0].Data) < unix.SizeofIfInfomsg {
		return 0, nil, fmt.Errorf("interface %s: odd answer from the kernel", name)
	}
	ad, err := netlink.NewAttributeDecoder(msgs[0].Data[unix.SizeofIfInfomsg:])
	if err != nil {
		return 0, nil, err
	}
	var mac net.HardwareAddr
	for ad.Next() {
		if ad.Type() == unix.IFLA_ADDRESS {
			mac = ad.Bytes()
		}
	}
	return binary.NativeEndian.Uint32(msgs[0].Data[4:]), mac, ad.Err()
}

// request sends one message that is only acknowledged.
func (n *NetNS) request(what string, typ netlink.HeaderType, flags netlink.HeaderFlags, msg []byte, attrs func(*netlink.AttributeEncoder)) error {
	ae := netlink.NewAttributeEncoder()
	attrs(ae)
	if _, err := n.execute(typ, flags|netlink.Acknowledge, msg, ae); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// execute opens a socket for one exchange: making a network is no hot path,
// and a NetNS stays without state of its own.
func (n *NetNS) execute(typ netlink.HeaderType, flags netlink.HeaderFlags, msg []byte, ae *netlink.AttributeEncoder) ([]netlink.Message, error) {
	attrs, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	c, err := n.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		return nil, err
	}
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: typ, Flags: flags | netlink.Request},
		Data:   append(msg, attrs...),
	})
	return msgs, errors.Join(err, c.Close())
}

// ifinfo is struct ifinfomsg with the given flags set.
func ifinfo(index, flags uint32) []byte {
	b := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(b[4:], index)
	binary.NativeEndian.PutUint32(b[8:], flags)
	binary.NativeEndian.PutUint32(b[12:], flags)
	return b
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
