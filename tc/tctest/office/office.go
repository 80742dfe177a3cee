// Package office is a machine with interfaces of many kinds, for tests of what lists them
// and of what follows from their places.
package office

import (
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
)

// Links are its interfaces, as [link.List] lists them.
func Links() []link.Link {
	const gbit = hierarchy.Gbit
	up := func(l link.Link) link.Link {
		l.Up, l.Carrier, l.OperState, l.MTU, l.TxQueues, l.LowerNetNS = true, true, "up", 1500, 1, -1
		if l.Qdisc == "" {
			l.Qdisc = "noqueue"
		}
		return l
	}
	links := []link.Link{
		up(link.Link{Index: 1, Name: "lo", Nature: link.Loopback}),
		up(link.Link{Index: 2, Name: "eth0", Nature: link.Physical, Speed: gbit, Master: 4, Qdisc: "mq"}),
		up(link.Link{Index: 3, Name: "eth1", Nature: link.Physical, Speed: gbit, Master: 4, Qdisc: "mq"}),
		up(link.Link{Index: 4, Name: "bond0", Kind: "bond", Nature: link.Bond, Speed: 2 * gbit, Members: []string{"eth0", "eth1"}, Qdisc: "htb"}),
		up(link.Link{Index: 5, Name: "bond0.5", Kind: "vlan", Nature: link.VLAN, Speed: 2 * gbit, Lower: 4, LowerName: "bond0", Master: 9}),
		up(link.Link{Index: 6, Name: "bond0.6", Kind: "vlan", Nature: link.VLAN, Speed: 2 * gbit, Lower: 4, LowerName: "bond0"}),
		up(link.Link{Index: 7, Name: "mac6", Kind: "macvlan", Nature: link.Virtual, Speed: 2 * gbit, Lower: 6, LowerName: "bond0.6"}),
		up(link.Link{Index: 8, Name: "wg0", Kind: "wireguard", Nature: link.Tunnel, ByRoute: true}),
		up(link.Link{Index: 9, Name: "br0", Kind: "bridge", Nature: link.Bridge, Speed: 2 * gbit, Members: []string{"bond0.5", "vnet0", "vnet1", "vnet2", "vnet3", "vnet4"}}),
		up(link.Link{Index: 10, Name: "vnet0", Kind: "veth", Nature: link.Virtual, Lower: 2, Master: 9}),
		up(link.Link{Index: 11, Name: "a0", Kind: "veth", Nature: link.Virtual, Lower: 12, LowerName: "b0"}),
		up(link.Link{Index: 12, Name: "b0", Kind: "veth", Nature: link.Virtual, Lower: 11, LowerName: "a0"}),
		up(link.Link{Index: 13, Name: "mac9", Kind: "macvlan", Nature: link.Virtual, Lower: 2, LowerName: "eth7"}),
		{Index: 14, Name: "wwan0", Nature: link.Physical, Up: true, OperState: "down", LowerNetNS: -1, MTU: 1428, TxQueues: 1, Qdisc: "pfifo_fast"},
		{Index: 15, Name: "tun0", Kind: "tun", Nature: link.Tunnel, OperState: "down", LowerNetNS: -1, MTU: 1500, TxQueues: 1, Qdisc: "noop"},
		up(link.Link{Index: 16, Name: "gre1", Kind: "gre", Nature: link.Tunnel, Lower: 17, LowerName: "gre2"}),
		up(link.Link{Index: 17, Name: "gre2", Kind: "gre", Nature: link.Tunnel, Lower: 16, LowerName: "gre1"}),
		up(link.Link{Index: 18, Name: "wlan0", Nature: link.Physical, Qdisc: "tbf"}),
	}
	links[9].LowerNetNS, links[12].LowerNetNS = 3, 4
	links[17].OperState = "dormant"
	return links
}
