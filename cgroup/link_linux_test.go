package cgroup_test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// routed makes a network namespace whose way out leads through the near one, there
// by the interface name.
func (n *network) routed(t testing.TB, name string, subnet byte) *lab.NetNS {
	t.Helper()
	inner := tctest.NetNS(t)
	outside4, inside4 := netip.AddrFrom4([4]byte{198, 19, subnet, 1}), netip.AddrFrom4([4]byte{198, 19, subnet, 2})
	outside := lab.Link{Name: name, Addrs: []netip.Prefix{netip.PrefixFrom(outside4, 24)}}
	inside := lab.Link{Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(inside4, 24)}}
	outside6, inside6 := netip.MustParseAddr(fmt.Sprintf("2001:2:0:%d::1", subnet)), netip.MustParseAddr(fmt.Sprintf("2001:2:0:%d::2", subnet))
	set := []string{"ipv4/ip_forward 1"}
	if n.Near6.IsValid() {
		outside.Addrs = append(outside.Addrs, netip.PrefixFrom(outside6, 64))
		inside.Addrs = append(inside.Addrs, netip.PrefixFrom(inside6, 64))
		// A router joins the group of all routers and says so twice, the second time within
		// a second (mld_ifc_work, net/ipv6/mcast.c, v6.12): at once, because packets are counted.
		set = append(set, "ipv6/conf/eth0/mldv2_unsolicited_report_interval 1", "ipv6/conf/all/forwarding 1")
	}
	if err := lab.AddVeth(n.Near, outside, inner, inside); err != nil {
		t.Fatal(err)
	}
	route := func(ns *lab.NetNS, dst netip.Addr, bits int, via netip.Addr, dev string) {
		t.Helper()
		if err := ns.AddRoute(netip.PrefixFrom(dst, bits), via, dev); err != nil {
			t.Fatal(err)
		}
	}
	route(inner, n.Far4, 24, outside4, "eth0")
	route(n.Far, inside4, 24, n.Near4, n.FarDev)
	if n.Near6.IsValid() {
		route(inner, n.Far6, 64, outside6, "eth0")
		route(n.Far, inside6, 64, n.Near6, n.FarDev)
	}
	err := n.Near.Do(func() error {
		for _, x := range set {
			name, value, _ := strings.Cut(x, " ")
			if err := os.WriteFile("/proc/sys/net/"+name, []byte(value), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return inner
}

// TestKernelLink: what a bound interface brings in is of its class, whatever its
// sender asks for, and what another brings in is the rest's. Who sends from here
// is none of its business.
func TestKernelLink(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	a, free := sub(t, p.dir, "a"), sub(t, p.dir, "free")
	one, other := n.routed(t, "veth1", 1), n.routed(t, "veth2", 2)
	b := n.binder(t, bind.WayBPF)
	apply(t, b, bound(p.target(a), green), bound("link:veth1", red), bound("uid:0", blue))

	far := n.start(t, n.Far, "")
	local, user, behind, beside := n.start(t, n.Near, a), n.start(t, n.Near, free), n.start(t, one, a), n.start(t, other, a)
	addrs := []string{n.Far4.String()}
	if n.Near6.IsValid() {
		addrs = append(addrs, "["+n.Far6.String()+"]")
	}
	// What the kernel says about groups while it comes to be a router is root's, its own
	// user's: of class blue where that is bound, else of the rest.
	during := func(want, kernels hierarchy.ClassID, f func()) map[hierarchy.ClassID]uint64 {
		t.Helper()
		got := n.during(t, f)
		if got[kernels] < 5 && want != kernels {
			delete(got, kernels)
		}
		return got
	}
	port := 7100
	for i, host := range addrs {
		for _, tt := range []struct {
			name string
			from *tctest.Actor
			want hierarchy.ClassID
		}{{"local", local, green}, {"user", user, blue}, {"bound", behind, red}, {"not bound", beside, rest}} {
			t.Run(fmt.Sprintf("%s IPv%d", tt.name, 4+2*i), func(t *testing.T) {
				only(t, during(tt.want, blue, func() { tt.from.Do("udp %s:9 50", host) }), tt.want, 50)
				only(t, during(tt.want, blue, func() { tt.from.Do("udp %s:9 50 %v", host, blue) }), tt.want, 50)
				port++
				far.Do("listen %d %s:%d", port, host, port)
				got := during(tt.want, blue, func() {
					tt.from.Begin("tcp %s:%d 300000 %v", host, port, blue)
					far.Do("serve %d 1 0", port)
					tt.from.End()
				})
				if tt.want == green || tt.want == blue { // the last ACK may be of TIME_WAIT
					delete(got, rest)
				}
				only(t, got, tt.want, 5)
			})
		}
	}

	// It changes, goes, and is another of the same name.
	send := func() { t.Helper(); behind.Do("udp %s:9 20", n.Far4) }
	apply(t, b, bound("link:veth1", blue))
	only(t, during(blue, rest, send), blue, 20)
	if err := n.Near.DeleteLink("veth1"); err != nil {
		t.Fatal(err)
	}
	gone := read(t, b).Bound
	if len(gone) != 1 || gone[0].Target.Kind != bind.TargetLinkIndex {
		t.Errorf("bound once the interface is gone: %v, want its number alone", gone)
	}
	again := n.start(t, n.routed(t, "veth1", 1), "")
	only(t, n.during(t, func() { again.Do("udp %s:9 20", n.Far4) }), rest, 20)
	apply(t, b, bound("link:veth1", red))
	only(t, during(red, rest, func() { again.Do("udp %s:9 20", n.Far4) }), red, 20)
	apply(t, b)
	only(t, n.during(t, func() { again.Do("udp %s:9 20", n.Far4) }), rest, 20)
}

// TestKernelLinkBridged: a packet from behind a bridge still has its socket. Its
// cgroup says more than its interface, and that more than its user.
func TestKernelLinkBridged(t *testing.T) {
	require(t, bind.WayBPF)
	tctest.RequireLink(t, "bridge")
	n := newNetwork(t)
	onlyIPv4(t, n.Near)
	p := newPlace(t, bind.WayBPF)
	a, free := sub(t, p.dir, "a"), sub(t, p.dir, "free")
	inner := tctest.NetNS(t)
	onlyIPv4(t, inner)
	if err := n.Near.AddLink(lab.Link{Name: "br0", Kind: "bridge"}); err != nil {
		t.Fatal(err)
	}
	if err := lab.AddVeth(n.Near, lab.Link{Name: "veth1"}, inner, lab.Link{Name: "eth0"}); err != nil {
		t.Fatal(err)
	}
	n.enslave(t, "br0", n.Dev, "veth1")
	index := 0
	if err := inner.Do(func() error {
		i, err := net.InterfaceByName("eth0")
		if err == nil {
			index = i.Index
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	b := n.binder(t, bind.WayBPF)
	bind := []hierarchy.Bound{bound(p.target(a), green), bound("uid:0", blue)}
	apply(t, b, bind...)
	inA, inFree := n.start(t, inner, a), n.start(t, inner, free)
	inFree.Do("keepPacket s")
	sends := map[string]func(){
		"bound cgroup": func() { inA.Do("packet %d 20", index) },
		"free cgroup":  func() { inFree.Do("packet %d 20 %v", index, green) },
		"open socket":  func() { inFree.Do("morePacket s %d 20", index) },
	}
	check := func(want map[string]hierarchy.ClassID) {
		t.Helper()
		for name, send := range sends {
			got := n.during(t, send)
			if got[rest] < 3 { // the port may have a word of its own
				delete(got, rest)
			}
			if diff := cmp.Diff(counts{want[name]: 20}, got); diff != "" {
				t.Errorf("%s: packets a class (-want +got):\n%s", name, diff)
			}
		}
	}
	check(map[string]hierarchy.ClassID{"bound cgroup": green, "free cgroup": blue, "open socket": blue})
	apply(t, b, append(bind, bound("link:veth1", red))...)
	check(map[string]hierarchy.ClassID{"bound cgroup": green, "free cgroup": red, "open socket": red})
	apply(t, b, bind...)
	check(map[string]hierarchy.ClassID{"bound cgroup": green, "free cgroup": blue, "open socket": blue})
}

// enslave makes interfaces of the near namespace ports of a bridge.
func (n *network) enslave(t testing.TB, bridge string, ports ...string) {
	t.Helper()
	c, err := n.Near.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	var index int
	if err := n.Near.Do(func() error {
		i, err := net.InterfaceByName(bridge)
		if err == nil {
			index = i.Index
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	for _, port := range ports {
		ae := netlink.NewAttributeEncoder()
		ae.String(unix.IFLA_IFNAME, port)
		ae.Bytes(unix.IFLA_MASTER, binary.NativeEndian.AppendUint32(nil, uint32(index)))
		attrs, err := ae.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_NEWLINK, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(make([]byte, unix.SizeofIfInfomsg), attrs...),
		}); err != nil {
			t.Fatalf("%s to %s: %v", port, bridge, err)
		}
		forwarding(t, c, port)
	}
}

// forwarding waits until a port of a bridge takes packets, which the kernel lets it in
// a work queue where the carrier has just come (br_port_carrier_check,
// net/bridge/br_if.c, v6.12).
func forwarding(t testing.TB, c *netlink.Conn, port string) {
	t.Helper()
	const brportState, brStateForwarding = 1, 3 // IFLA_BRPORT_STATE, BR_STATE_FORWARDING
	ae := netlink.NewAttributeEncoder()
	ae.String(unix.IFLA_IFNAME, port)
	attrs, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	state := uint8(0)
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		answers, err := c.Execute(netlink.Message{
			Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request},
			Data:   append(make([]byte, unix.SizeofIfInfomsg), attrs...),
		})
		if err != nil {
			t.Fatal(err)
		}
		ad, err := netlink.NewAttributeDecoder(answers[0].Data[unix.SizeofIfInfomsg:])
		if err != nil {
			t.Fatal(err)
		}
		for ad.Next() {
			if ad.Type() != unix.IFLA_LINKINFO {
				continue
			}
			ad.Nested(func(ad *netlink.AttributeDecoder) error {
				for ad.Next() {
					if ad.Type() != unix.IFLA_INFO_SLAVE_DATA {
						continue
					}
					ad.Nested(func(ad *netlink.AttributeDecoder) error {
						for ad.Next() {
							if ad.Type() == brportState {
								state = ad.Uint8()
							}
						}
						return nil
					})
				}
				return nil
			})
		}
		if err := ad.Err(); err != nil {
			t.Fatal(err)
		}
		if state == brStateForwarding {
			return
		}
	}
	t.Fatalf("%s: state %d as a port of a bridge after 30s", port, state)
}

// TestKernelLinkResolve: an interface that is not there is waited for, and what
// can never work is refused.
func TestKernelLinkResolve(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	b := n.binder(t, bind.WayBPF)
	r := resolved(t, b, tree(t, "link:veth1"))
	if len(r.Bound) != 0 || len(r.Pending) != 1 || r.Pending[0].Reason != "no such interface" {
		t.Errorf("missing interface: %+v", r)
	}
	n.routed(t, "veth1", 1)
	r = resolved(t, b, tree(t, "link:veth1"))
	if len(r.Bound) != 1 || r.Bound[0].Target != bind.ToLink("veth1") || len(r.Pending) != 0 {
		t.Errorf("interface: %+v", r)
	}
	refused := func(b *cgroup.Binder, bind, want string) {
		t.Helper()
		r, err := b.Resolve(t.Context(), resolve.Branches(tree(t, bind)), nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.Err(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, not %q", bind, err, want)
		}
	}
	refused(b, "link:"+n.Dev, "the shaped interface itself")
	for _, way := range []bind.Way{bind.WayNft, bind.WayNetCls} {
		if _, err := n.binder(t, way).Hook(0); err != nil {
			continue // not here
		}
		refused(n.binder(t, way), "link:veth1", "with BPF only")
	}
}
