package tc_test

import (
	"net/netip"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// route is a route as the test has the kernel make it.
type route struct {
	to      string // empty: a default route of IPv4, "::" of IPv6
	table   byte   // 0: the main one
	kind    byte   // 0: unicast
	tos     byte
	metric  uint32
	devices []string // of its next hops; several are possible with IPv6, on every kernel
}

func (r route) message(t *testing.T, index map[string]int) netlink.Message {
	t.Helper()
	e := rtnl.Encoder{B: make([]byte, unix.SizeofRtMsg)}
	e.B[0], e.B[3], e.B[4], e.B[5], e.B[6], e.B[7] = unix.AF_INET, r.tos, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, unix.RT_SCOPE_LINK, unix.RTN_UNICAST
	switch {
	case r.to == "::":
		e.B[0] = unix.AF_INET6
	case r.to != "":
		p := netip.MustParsePrefix(r.to)
		e.B[1] = byte(p.Bits())
		e.Attr(unix.RTA_DST, func() { e.B = append(e.B, p.Addr().AsSlice()...) })
	}
	if r.table != 0 {
		e.B[4] = r.table
	}
	if r.kind != 0 {
		e.B[7] = r.kind
	}
	if r.metric != 0 {
		e.Attr32(unix.RTA_PRIORITY, r.metric)
	}
	if len(r.devices) == 1 {
		e.Attr32(unix.RTA_OIF, uint32(index[r.devices[0]]))
	} else if len(r.devices) > 1 {
		e.Attr(unix.RTA_MULTIPATH, func() {
			for i, d := range r.devices {
				gateway := netip.MustParseAddr("fe80::1:0").As16()
				gateway[15] = byte(i) // next hops differ
				e.Uint16(unix.SizeofRtNexthop + unix.SizeofRtAttr + uint16(len(gateway)))
				e.Uint16(0)
				e.Uint32(uint32(index[d]))
				e.Attr(unix.RTA_GATEWAY, func() { e.B = append(e.B, gateway[:]...) })
			}
		})
	}
	return rtnl.Message(unix.RTM_NEWROUTE, netlink.Create|netlink.Append, e.B)
}

// TestKernelDefaultRoutes: which of all routes are default ones, and in which order.
func TestKernelDefaultRoutes(t *testing.T) {
	n := tctest.NetNS(t)
	for i, name := range []string{"eth0", "eth1", "eth2"} {
		a, b := netip.AddrFrom4([4]byte{192, 0, 2, byte(1 + 16*i)}), netip.AddrFrom4([4]byte{192, 0, 2, byte(2 + 16*i)})
		if err := lab.AddVeth(n, lab.Link{Name: name, Addrs: []netip.Prefix{netip.PrefixFrom(a, 28)}},
			n, lab.Link{Name: "far" + name, Addrs: []netip.Prefix{netip.PrefixFrom(b, 28)}}); err != nil {
			t.Fatal(err)
		}
	}
	index := map[string]int{}
	for _, l := range links(t, n) {
		index[l.Name] = l.Index
	}
	c, err := rtnl.Open(rtnl.Config{NetNS: n.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	defaults := func() []link.DefaultRoute {
		t.Helper()
		got, err := link.DefaultRoutes(c)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	if got := defaults(); len(got) != 0 {
		t.Errorf("without any: %v", got)
	}
	for _, r := range []route{
		{to: "::", metric: 50, devices: []string{"eth2"}},
		{to: "::", metric: 20, devices: []string{"eth1", "eth0", "eth1"}},
		{to: "::", metric: 5, kind: unix.RTN_UNREACHABLE},
		{metric: 600, devices: []string{"eth1"}},
		{metric: 100, devices: []string{"eth2"}},
		{metric: 100, tos: 0x10, devices: []string{"eth1"}},
		{metric: 10, kind: unix.RTN_BLACKHOLE},
		{metric: 11, kind: unix.RTN_UNREACHABLE},
		{metric: 12, table: 100, devices: []string{"eth1"}},
		{to: "0.0.0.0/1", devices: []string{"eth1"}},
		{to: "198.51.100.0/24", devices: []string{"eth1"}},
	} {
		if _, err := c.Send([]netlink.Message{r.message(t, index)}); err != nil {
			t.Fatalf("%+v: %v", r, err)
		}
	}
	want := []link.DefaultRoute{
		{Index: index["eth2"], Metric: 100},
		{Index: index["eth1"], Metric: 600},
		{Index: index["eth1"], IPv6: true, Metric: 20}, // by two gateways
		{Index: index["eth0"], IPv6: true, Metric: 20},
		{Index: index["eth2"], IPv6: true, Metric: 50},
	}
	if diff := cmp.Diff(want, defaults()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got, err := link.Uplinks(c); err != nil || !slices.Equal(got, []int{index["eth2"]}) {
		t.Errorf("the default route goes by %v, %v; want eth2 of %v", got, err, index)
	}
	for to, want := range map[string]int{
		"10.0.0.1":     index["eth1"], // by half of the world
		"198.51.100.1": index["eth1"],
		"192.0.2.2":    0, // of this machine
		"203.0.113.1":  0, // blackhole
		"2001:db8::1":  0, // unreachable
	} {
		if got, err := link.RouteTo(c, netip.MustParseAddr(to)); err != nil || got != want {
			t.Errorf("to %s: interface %d, %v; want %d", to, got, err, want)
		}
	}
	for _, x := range []struct {
		from, to string
		want     int
	}{{"192.0.2.2", "10.0.0.1", index["eth1"]}, {"192.0.2.2", "192.0.2.2", link.LoopbackIndex}, {"127.0.0.1", "127.0.0.1", link.LoopbackIndex}} {
		f := link.Flow{From: netip.MustParseAddr(x.from), To: netip.MustParseAddr(x.to), UID: 65534}
		if got, err := link.Route(c, f); err != nil || got != x.want {
			t.Errorf("%+v: interface %d, %v; want %d", f, got, err, x.want)
		}
	}
}
