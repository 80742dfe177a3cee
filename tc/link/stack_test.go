//go:build linux

package link

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
)

// TestStack is a machine with one of each: what carries what, and at what speed.
func TestStack(t *testing.T) {
	says := map[string]hierarchy.Bandwidth{
		"eth0": hierarchy.Gbit, "eth1": hierarchy.Gbit, "eth2": 100 * hierarchy.Mbit, "bond0": 2 * hierarchy.Gbit, "mac9": 25 * hierarchy.Gbit,
		"eth8": 100 * hierarchy.Mbit, "eth9": hierarchy.Gbit,
		// What is not asked for: they answer with a speed all the same.
		"veth0": 10 * hierarchy.Gbit, "tap0": 10 * hierarchy.Mbit, "veth0.5": 10 * hierarchy.Gbit, "bond7": 10 * hierarchy.Gbit,
	}
	type want struct {
		Name     string
		Carriers []string
		Speed    hierarchy.Bandwidth
		Lower    string
		Members  []string
	}
	var links []Link
	var wants []want
	add := func(l Link, w want) {
		l.Name, l.Index, l.Carrier = w.Name, len(links)+1, w.Name != "eth9"
		if l.LowerNetNS == 0 {
			l.LowerNetNS = -1
		}
		links, wants = append(links, l), append(wants, w)
	}
	const gbit, mbit = hierarchy.Gbit, hierarchy.Mbit
	add(Link{Nature: Loopback}, want{Name: "lo"})
	add(Link{Nature: Physical, Master: 5}, want{Name: "eth0", Speed: gbit})
	add(Link{Nature: Physical, Master: 5}, want{Name: "eth1", Speed: gbit})
	add(Link{Nature: Physical, Master: 7}, want{Name: "eth2", Speed: 100 * mbit})
	add(Link{Nature: Bond, Kind: "bond"}, want{Name: "bond0", Speed: 2 * gbit, Carriers: []string{"eth0", "eth1"}, Members: []string{"eth0", "eth1"}})
	add(Link{Nature: VLAN, Kind: "vlan", Lower: 5, Master: 7}, want{Name: "bond0.5", Speed: 2 * gbit, Carriers: []string{"bond0", "eth0", "eth1"}, Lower: "bond0"})
	add(Link{Nature: Bridge, Kind: "bridge"}, want{Name: "br0", Speed: 2 * gbit,
		Carriers: []string{"eth2", "bond0.5", "veth0", "vx0", "bond0", "eth0", "eth1"}, Members: []string{"eth2", "bond0.5", "veth0", "vx0"}})
	add(Link{Nature: Virtual, Kind: "veth", Lower: 9, Master: 7}, want{Name: "veth0", Lower: "veth1"})
	add(Link{Nature: Virtual, Kind: "veth", Lower: 8}, want{Name: "veth1", Lower: "veth0"})
	add(Link{Nature: VLAN, Kind: "vlan", Lower: 8}, want{Name: "veth0.5", Carriers: []string{"veth0"}, Lower: "veth0"})
	add(Link{Nature: Tunnel, Kind: "tun"}, want{Name: "tap0"})
	// In a ring, which bridges and tunnels allow, nothing carries the rest.
	add(Link{Nature: Tunnel, Kind: "vxlan", Lower: 7, Master: 7}, want{Name: "vx0", Lower: "br0",
		Carriers: []string{"br0", "eth2", "bond0.5", "veth0", "bond0", "eth0", "eth1"}})
	add(Link{Nature: Virtual, Kind: "macvlan", Lower: 2, LowerNetNS: 3}, want{Name: "mac9", Speed: 25 * gbit, Lower: "2 in 3"})
	add(Link{Nature: Virtual, Kind: "veth", Lower: 2, LowerNetNS: 4}, want{Name: "veth9", Lower: "2 in 4"})
	add(Link{Nature: Bond, Kind: "bond"}, want{Name: "bond7", Carriers: []string{"tap7"}, Members: []string{"tap7"}})
	add(Link{Nature: Tunnel, Kind: "tun", Master: 15}, want{Name: "tap7"})
	add(Link{Nature: Bridge, Kind: "bridge"}, want{Name: "br1", Speed: 100 * mbit, Carriers: []string{"eth8", "eth9"}, Members: []string{"eth8", "eth9"}})
	add(Link{Nature: Physical, Master: 17}, want{Name: "eth8", Speed: 100 * mbit})
	add(Link{Nature: Physical, Master: 17}, want{Name: "eth9", Speed: gbit})
	add(Link{Nature: Tunnel, Kind: "wireguard", ByRoute: true}, want{Name: "wg0"})

	add(Link{Nature: Physical, Kind: "ipoib", Lower: 2}, want{Name: "ib0.8001", Lower: "eth0"})

	connect(links,
		func(name string) hierarchy.Bandwidth { return says[name] },
		func(netNS, index int) string { return fmt.Sprintf("%d in %d", index, netNS) })
	var got []want
	for _, l := range links {
		w := want{Name: l.Name, Speed: l.Speed, Lower: l.LowerName, Members: l.Members}
		for _, c := range Carriers(links, l) {
			w.Carriers = append(w.Carriers, c.Name)
		}
		got = append(got, w)
	}
	if d := cmp.Diff(wants, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
}
