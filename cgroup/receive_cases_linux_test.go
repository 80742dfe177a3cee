package cgroup_test

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelReceiveSockets: what is received has the class of the socket that it is for,
// whatever that was made to be, and what is for many is the rest's and reaches all.
func TestKernelReceiveSockets(t *testing.T) {
	require(t, bind.WayBPF)
	n := newReceiver(t)
	p := newPlace(t, bind.WayBPF)
	a, c := sub(t, p.dir, "a"), sub(t, p.dir, "c")
	b := n.binder(t, bind.WayBPF)
	n.apply(t, b, bound(p.target(a), red), bound(p.target(c), green))
	far := n.start(t, n.Far, "")
	near4, near6 := n.Near4.String(), "["+n.Near6.String()+"]"
	found := rest // who receives and never sends
	if looks(t, bind.WayBPF) {
		found = red
	}
	port := 7700
	at := func(addr string) string { return fmt.Sprintf("%s:%d", addr, port) }
	for _, tt := range []struct {
		name string
		run  func(x *tctest.Actor)
		want hierarchy.ClassID
		n    uint64 // packets; 0: more than a few
		// first are those of each peer before it is answered, where nobody is looked for
		first uint64
	}{
		{"IPv4 options", func(x *tctest.Actor) {
			far.Do("sink s%d %s", port, at(n.Far4.String()))
			far.Do("set s%d 0 4 01010100", port) // IP_OPTIONS: three times nothing
			x.Do("keep q %s", at(n.Far4.String()))
			x.Do("set q 0 4 01010101")
			far.Begin("answer s%d 20", port)
			x.Do("ask q %s 20", at(n.Far4.String()))
			far.End()
		}, red, 20, 0},
		{"IPv6 extension headers", func(x *tctest.Actor) {
			to := at("[" + n.Far6.String() + "]")
			far.Do("sink s%d %s", port, to)
			x.Do("keep q %s", to)
			for _, option := range []int{54, 59} { // IPV6_HOPOPTS, IPV6_DSTOPTS
				far.Do("set s%d 41 %d 0000010400000000", port, option)
				x.Do("set q 41 %d 0000010400000000", option)
			}
			far.Begin("answer s%d 20", port)
			x.Do("ask q %s 20", to)
			far.Begin("answer s%d 5 5000", port) // and in parts
			x.Do("ask q %s 5", to)
			far.End()
		}, red, 40, 0},
		{"bound to the interface", func(x *tctest.Actor) {
			x.Do("keep s %s", at(near4))
			x.Do("set s 1 25 %x", "eth0\x00") // SO_BINDTODEVICE
			x.Do("bind s %s", at("0.0.0.0"))
			far.Do("udp %s 20", at(near4))
		}, found, 20, 0},
		{"both kinds of addresses", func(x *tctest.Actor) {
			x.Do("sink s %s", at("[::]"))
			far.Do("udp %s 20", at(near4))
			far.Do("udp %s 20", at(near6))
		}, found, 40, 0},
		{"connection to both kinds of addresses", func(x *tctest.Actor) {
			x.Do("listen s %s", at("[::]"))
			x.Begin("serve s 1 1000000")
			far.Do("fetch %s", at(near4))
			x.End()
		}, red, 0, 1},
		{"one peer", func(x *tctest.Actor) {
			far.Do("sink s%d %s", port, at(n.Far4.String()))
			x.Do("sink s %s", at(near4))
			x.Do("plug s %s", at(n.Far4.String()))
			far.Do("more s%d %s 20", port, at(near4))
		}, found, 20, 0},
		{"many peers", func(x *tctest.Actor) {
			x.Do("sink s %s", at(near4))
			x.Begin("answer s 60")
			for i := range 30 {
				far.Do("ask many%d-%d %s 2", port, i, at(near4))
			}
			x.End()
		}, red, 60, 30},
		{"many receive it", func(x *tctest.Actor) {
			y := n.start(t, n.Near, c)
			const group = "239.1.2.3"
			for _, z := range []*tctest.Actor{x, y} {
				z.Do("keep s %s", at(near4))
				z.Do("set s 1 2 01000000") // SO_REUSEADDR
				z.Do("bind s %s", at("0.0.0.0"))
				z.Do("set s 0 35 %x%x", netip.MustParseAddr(group).AsSlice(), n.Near4.AsSlice()) // IP_ADD_MEMBERSHIP
			}
			far.Do("keep m%d %s", port, at(group))
			far.Do("set m%d 0 32 %x", port, n.Far4.AsSlice()) // IP_MULTICAST_IF
			far.Do("more m%d %s 20", port, at(group))
			everybody := frame{}.encode(netip.AddrPortFrom(n.Far4, 7), netip.MustParseAddrPort(at("198.18.0.255")), bytes.Repeat([]byte{0xff}, 6))
			far.Do("frame %d %x 20", hardware(t, n.Far, n.FarDev).Index, everybody)
			for _, z := range []*tctest.Actor{x, y} {
				wait(t, z, "s", 40)
			}
		}, rest, 40, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			port++
			x := n.start(t, n.Near, a)
			got := n.received(t, func() { tt.run(x) })
			if found == rest && tt.first > 0 {
				if got[rest] != tt.first {
					t.Errorf("%d packets went to the rest, want %d", got[rest], tt.first)
				}
				got[tt.want] += got[rest]
				delete(got, rest)
			}
			if tt.n == 0 {
				only(t, got, tt.want, 5)
			} else if diff := cmp.Diff(counts{tt.want: tt.n}, got); diff != "" {
				t.Errorf("packets a class (-want +got):\n%s", diff)
			}
		})
	}

	// Two who share a port are told apart as the kernel does it.
	port++
	x, y := n.start(t, n.Near, a), n.start(t, n.Near, c)
	for _, z := range []*tctest.Actor{x, y} {
		z.Do("keep s %s", at(near4))
		z.Do("set s 1 15 01000000") // SO_REUSEPORT
		z.Do("bind s %s", at(near4))
	}
	got := n.received(t, func() {
		for range 64 {
			far.Do("udp %s 1", at(near4))
		}
	})
	want := counts{red: count(t, x, "s"), green: count(t, y, "s")}
	if found == rest {
		want = counts{rest: 64}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("packets a class with a port that two share (-want +got):\n%s", diff)
	}
}

// count is how many datagrams a socket has got.
func count(t testing.TB, x *tctest.Actor, name string) uint64 {
	t.Helper()
	n, err := strconv.ParseUint(x.Do("count %s", name), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// wait fails unless a socket gets so many datagrams, and no more, before long.
func wait(t testing.TB, x *tctest.Actor, name string, want uint64) {
	t.Helper()
	var got uint64
	for i := 0; i < 1000 && got < want; i++ {
		got += count(t, x, name)
	}
	if got != want {
		t.Errorf("%s has got %d datagrams, want %d", name, got, want)
	}
}

// frame is one that may be answered: its layers in front of IP, and what lies between IP
// and UDP.
type frame struct {
	v6     bool
	link   []byte // from the type of the frame on; nil: IP alone
	within []byte // IPv4 options or IPv6 extension headers, of which each but the last names the next
	first  byte   // protocol of the first of them
}

// encode has the frame go from one address to another.
func (f frame) encode(from, to netip.AddrPort, dst []byte) []byte {
	b := append(slices.Clone(dst), 2, 0, 0, 0, 0, 9)
	udp := make([]byte, 16)
	binary.BigEndian.PutUint16(udp, from.Port())
	binary.BigEndian.PutUint16(udp[2:], to.Port())
	udp[5] = 16
	rest := append(slices.Clone(f.within), udp...)
	if f.v6 {
		b = append(b, append(f.linked(0x86dd), 0x60, 0, 0, 0, 0, byte(len(rest)), f.first, 64)...)
	} else {
		b = append(b, append(f.linked(0x0800), byte(0x45+len(f.within)/4), 0, 0, byte(20+len(rest)), 0, 1, 0, 0, 64, 17, 0, 0)...)
	}
	b = append(append(b, from.Addr().AsSlice()...), to.Addr().AsSlice()...)
	b = append(b, rest...)
	if !f.v6 {
		ip := b[len(b)-20-len(rest):]
		sum := uint32(0)
		for i := 0; i < 20+len(f.within); i += 2 {
			sum += uint32(binary.BigEndian.Uint16(ip[i:]))
		}
		binary.BigEndian.PutUint16(ip[10:], ^uint16(sum+sum>>16))
	}
	return append(b, make([]byte, 40)...)
}

func (f frame) linked(proto uint16) []byte {
	if f.link == nil {
		return binary.BigEndian.AppendUint16(nil, proto)
	}
	return slices.Clone(f.link)
}

// TestKernelReceiveFrames: an answer is told whatever lies in front of its ports, and only
// where the same does.
func TestKernelReceiveFrames(t *testing.T) {
	require(t, bind.WayBPF)
	n := newReceiver(t)
	p := newPlace(t, bind.WayBPF)
	a := sub(t, p.dir, "a")
	b := n.binder(t, bind.WayBPF)
	n.apply(t, b, bound(p.target(a), red))
	near, far := n.start(t, n.Near, a), n.start(t, n.Far, "")
	hex6 := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	frames := map[string]frame{
		"IPv4":                   {},
		"IPv4 options":           {within: hex6("01010100")},
		"IPv6":                   {v6: true, first: 17},
		"IPv6 hop-by-hop":        {v6: true, first: 0, within: hex6("1100010400000000")},
		"IPv6 four headers":      {v6: true, first: 0, within: hex6("3c000104000000002b0001040000000033000000000000001102000000000000" + "0000000100000000")},
		"IPv6 whole fragment":    {v6: true, first: 44, within: hex6("1100000000000007")},
		"VLAN":                   {link: hex6("810000050800")},
		"another VLAN":           {link: hex6("810000060800")},
		"VLAN, IPv6":             {link: hex6("8100000586dd"), v6: true, first: 17},
		"VLAN in a VLAN":         {link: hex6("88a80005810000070800")},
		"the other way round":    {link: hex6("88a80007810000050800")},
		"PPPoE":                  {link: hex6("886411000001003e0021")},
		"PPPoE, another session": {link: hex6("886411000002003e0021")},
		"PPPoE, IPv6":            {link: hex6("886411000001003e0057"), v6: true, first: 17},
		"PPPoE in a VLAN":        {link: hex6("81000005886411000001003e0021")},
	}
	// A frame for the far end would be answered by an ICMP error, some time later.
	nobody, mac := []byte{2, 0, 0, 0, 0, 8}, hardware(t, n.Near, n.Dev).HardwareAddr
	index := map[bool]int{false: hardware(t, n.Near, n.Dev).Index, true: hardware(t, n.Far, n.FarDev).Index}
	port := uint16(20_000)
	for name, f := range frames {
		t.Run(name, func(t *testing.T) {
			port++
			here, there := netip.AddrPortFrom(n.Near4, port), netip.AddrPortFrom(n.Far4, 7)
			if f.v6 {
				here, there = netip.AddrPortFrom(n.Near6, port), netip.AddrPortFrom(n.Far6, 7)
			}
			near.Do("frame %d %x 1", index[false], f.encode(here, there, nobody))
			for other, g := range frames {
				want := rest
				if other == name || f.v6 == g.v6 && f.link == nil && g.link == nil {
					want = red
				}
				if f.v6 != g.v6 {
					continue
				}
				got := n.received(t, func() { far.Do("frame %d %x 3", index[true], g.encode(there, here, mac)) })
				if diff := cmp.Diff(counts{want: 3}, got); diff != "" {
					t.Errorf("answer by %s: packets a class (-want +got):\n%s", other, diff)
				}
			}
		})
	}
}

// TestKernelReceiveVLAN: the flows of interfaces above, one in the other, are those of the
// processes that use them.
func TestKernelReceiveVLAN(t *testing.T) {
	require(t, bind.WayBPF)
	tctest.RequireLink(t, "vlan")
	n := newReceiver(t)
	d := &docker{network: n.network, t: t}
	p := newPlace(t, bind.WayBPF)
	a, free := sub(t, p.dir, "a"), sub(t, p.dir, "free")
	b := n.binder(t, bind.WayBPF)
	n.apply(t, b, bound(p.target(a), red))
	parents := map[*lab.NetNS]string{n.Near: n.Dev, n.Far: n.FarDev}
	for i, id := range []uint16{5, 7} {
		addr := func(host byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, byte(100 + i), host}) }
		name := fmt.Sprint("vlan", id)
		for j, ns := range []*lab.NetNS{n.Near, n.Far} {
			onlyIPv4(t, ns)
			if err := ns.AddLink(lab.Link{Name: name, Kind: "vlan", VLAN: id, Parent: parents[ns], Addrs: []netip.Prefix{netip.PrefixFrom(addr(byte(1+j)), 24)}}); err != nil {
				t.Fatal(err)
			}
			parents[ns] = name
		}
		d.neighbour(n.Near, name, addr(2), hardware(t, n.Far, name))
		d.neighbour(n.Far, name, addr(1), hardware(t, n.Near, name))
		for _, x := range []struct {
			dir  string
			want hierarchy.ClassID
		}{{a, red}, {free, rest}} {
			near, far, to := n.start(t, n.Near, x.dir), n.start(t, n.Far, ""), fmt.Sprintf("%v:%d", addr(2), 7000+len(x.dir))
			far.Do("sink s %s", to)
			got := n.received(t, func() {
				far.Begin("answer s 20")
				near.Do("ask q %s 20", to)
				far.Begin("answer s 5 5000")
				near.Do("ask q %s 5", to)
				far.End()
			})
			if diff := cmp.Diff(counts{x.want: 40}, got); diff != "" {
				t.Errorf("by %s: packets a class (-want +got):\n%s", name, diff)
			}
		}
	}
}

// TestKernelReceiveTranslated: translation, at random too, and containers behind a bridge
// and routed ones.
func TestKernelReceiveTranslated(t *testing.T) {
	require(t, bind.WayBPF)
	n := newReceiver(t)
	routed := n.routed(t, "veth3", 4)
	d := n.docker(t, 3)
	p := newPlace(t, bind.WayBPF)
	a, free := sub(t, p.dir, "a"), sub(t, p.dir, "free")
	one, two := d.container("veth1", 11), d.container("veth2", 12)
	b := n.binder(t, bind.WayBPF)
	n.apply(t, b, bound("link:veth1", red), bound("link:veth3", blue), bound(p.target(a), green))
	far, to := n.start(t, n.Far, ""), n.Far4.String()+":7800"
	far.Do("sink s %s", to)
	far.Do("listen l %s", n.Far4.String()+":7801")
	who := []struct {
		name string
		x    *tctest.Actor
		want hierarchy.ClassID
	}{
		{"bridged", n.start(t, one, free), red},
		{"bridged, unbound", n.start(t, two, free), rest},
		{"routed", n.start(t, routed, free), blue},
		{"here", n.start(t, n.Near, a), green},
	}
	for _, translated := range []bool{false, true} {
		if translated && !d.masqueradeBy(&expr.Masq{Random: true, FullyRandom: true}) {
			return // the kernel has none
		}
		for _, w := range who {
			t.Run(fmt.Sprintf("%s/%v", w.name, translated), func(t *testing.T) {
				got := n.received(t, func() {
					far.Begin("answer s 20")
					w.x.Do("ask q%v %s 20", translated, to)
					far.End()
				})
				if diff := cmp.Diff(counts{w.want: 20}, got); diff != "" {
					t.Errorf("packets a class (-want +got):\n%s", diff)
				}
				only(t, n.received(t, func() {
					far.Begin("serve l 1 1000000")
					w.x.Do("fetch %s", n.Far4.String()+":7801")
					far.End()
				}), w.want, 5)
			})
		}
	}

	// An open flow goes with its container's binding.
	n.apply(t, b, bound("link:veth1", blue), bound("link:veth3", blue), bound(p.target(a), green))
	if diff := cmp.Diff(counts{blue: 20}, n.received(t, func() {
		far.Begin("answer s 20")
		who[0].x.Do("ask qtrue %s 20", to)
		far.End()
	})); diff != "" {
		t.Errorf("bound anew: packets a class (-want +got):\n%s", diff)
	}
	n.apply(t, b, bound("link:veth1", red), bound("link:veth3", blue), bound(p.target(a), green))

	// From outside to a container: the first packet answers to nothing.
	d.forwardPort(7900, d.addr(11))
	who[0].x.Do("sink in %s", d.addr(11).String()+":7900")
	got := n.received(t, func() {
		who[0].x.Begin("answer in 20")
		far.Do("ask out %s 20", n.Near4.String()+":7900")
		who[0].x.End()
	})
	if diff := cmp.Diff(counts{rest: 1, red: 19}, got); diff != "" {
		t.Errorf("packets a class of a port that is forwarded (-want +got):\n%s", diff)
	}
}

// forwardPort sends what comes in for a port of the near end to a container.
func (d *docker) forwardPort(port uint16, to netip.Addr) {
	d.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(d.Near.FD()))
	if err != nil {
		d.t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Name: "nat", Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{
		Name: "pre", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(port)},
		&expr.Immediate{Register: 1, Data: to.AsSlice()},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(nftables.TableFamilyIPv4), RegAddrMin: 1},
	}})
	if err := c.Flush(); err != nil {
		d.t.Fatal(err)
	}
}

// TestKernelReceiveMPTCP: connections below a socket of MPTCP are its own.
func TestKernelReceiveMPTCP(t *testing.T) {
	require(t, bind.WayBPF)
	enabled, err := os.ReadFile("/proc/sys/net/mptcp/enabled")
	tctest.Require(t, err == nil && bytes.HasPrefix(enabled, []byte("1")), "MPTCP")
	n := newReceiver(t)
	p := newPlace(t, bind.WayBPF)
	a := sub(t, p.dir, "a")
	b := n.binder(t, bind.WayBPF)
	n.apply(t, b, bound(p.target(a), red))
	near, far, to := n.start(t, n.Near, a), n.start(t, n.Far, ""), n.Far4.String()+":7000"
	const mptcp = 262
	far.Do("listen l %s %d", to, mptcp)
	got := n.received(t, func() {
		far.Begin("serve l 1 1000000")
		near.Do("fetch %s 1 %d", to, mptcp)
		far.End()
	})
	if got[rest] <= 3 { // of the kernel, in answer to what it says at the end without a socket
		delete(got, rest)
	}
	only(t, got, red, 5)
}

// TestKernelReceiveTunnel: what a tunnel receives is the rest's, whoever used it first.
func TestKernelReceiveTunnel(t *testing.T) {
	require(t, bind.WayBPF)
	for i, kind := range []string{"vxlan", "gre"} {
		t.Run(kind, func(t *testing.T) {
			tctest.RequireLink(t, kind)
			n := newReceiver(t)
			p := newPlace(t, bind.WayBPF)
			a := sub(t, p.dir, "a")
			b := n.binder(t, bind.WayBPF)
			n.apply(t, b, bound(p.target(a), red))
			addr := func(host byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 51, byte(110 + i), host}) }
			for j, ns := range []*lab.NetNS{n.Near, n.Far} {
				onlyIPv4(t, ns)
				local, remote := n.Near4, n.Far4
				if j > 0 {
					local, remote = remote, local
				}
				l := lab.Link{Name: "tun0", Kind: kind, Addrs: []netip.Prefix{netip.PrefixFrom(addr(byte(1+j)), 24)}}
				l.Data = func(ae *netlink.AttributeEncoder) {
					if kind == "gre" {
						ae.Bytes(6, local.AsSlice())  // IFLA_GRE_LOCAL
						ae.Bytes(7, remote.AsSlice()) // IFLA_GRE_REMOTE
						return
					}
					ae.Uint32(1, 3)                              // IFLA_VXLAN_ID
					ae.Bytes(2, remote.AsSlice())                // IFLA_VXLAN_GROUP
					ae.Bytes(4, local.AsSlice())                 // IFLA_VXLAN_LOCAL
					ae.Bytes(15, []byte{4789 >> 8, 4789 & 0xff}) // IFLA_VXLAN_PORT
				}
				if err := ns.AddLink(l); err != nil {
					t.Fatal(err)
				}
			}
			near, far, to := n.start(t, n.Near, a), n.start(t, n.Far, ""), addr(2).String()+":7000"
			far.Do("sink s %s", to)
			far.Do("listen l %s", addr(2).String()+":7001")
			only(t, n.received(t, func() {
				far.Begin("answer s 20")
				near.Do("ask q %s 20", to)
				far.End()
				far.Begin("serve l 1 100000")
				near.Do("fetch %s", addr(2).String()+":7001")
				far.End()
			}), rest, 20)
		})
	}
}
