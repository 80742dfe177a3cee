package cgroup_test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// docker is what docker makes of a network: a bridge, whose ports are the veths of
// containers and whose packets are routed.
type docker struct {
	*network
	t      testing.TB
	subnet byte
	known  map[byte]*net.Interface // the ends in the containers
}

func (n *network) docker(t testing.TB, subnet byte) *docker {
	t.Helper()
	tctest.RequireLink(t, "bridge")
	d := &docker{n, t, subnet, map[byte]*net.Interface{}}
	onlyIPv4(t, n.Near)
	if err := n.Near.AddLink(lab.Link{Name: "br0", Kind: "bridge", Addrs: []netip.Prefix{netip.PrefixFrom(d.addr(1), 24)}}); err != nil {
		t.Fatal(err)
	}
	d.write(n.Near, "ipv4/ip_forward", "1")
	if err := n.Far.AddRoute(netip.PrefixFrom(d.addr(0), 24), n.Near4, n.FarDev); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *docker) addr(host byte) netip.Addr { return netip.AddrFrom4([4]byte{198, 19, d.subnet, host}) }

func (d *docker) write(ns *lab.NetNS, file, value string) {
	d.t.Helper()
	if err := ns.Do(func() error { return os.WriteFile("/proc/sys/net/"+file, []byte(value), 0) }); err != nil {
		d.t.Fatal(err)
	}
}

// container makes a network namespace that is connected by a port of the bridge.
func (d *docker) container(port string, host byte) *lab.NetNS {
	d.t.Helper()
	inner := tctest.NetNS(d.t)
	onlyIPv4(d.t, inner)
	d.connect(inner, port, host)
	return inner
}

func (d *docker) connect(inner *lab.NetNS, port string, host byte) {
	d.t.Helper()
	in := lab.Link{Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(d.addr(host), 24)}}
	if err := lab.AddVeth(d.Near, lab.Link{Name: port}, inner, in); err != nil {
		d.t.Fatal(err)
	}
	d.enslave(d.t, "br0", port)
	// the ends of a lab's veth do not ask
	d.neighbour(inner, "eth0", d.addr(1), hardware(d.t, d.Near, "br0"))
	d.known[host] = hardware(d.t, inner, "eth0")
	for host, end := range d.known { // a bridge whose address changed with its ports has forgotten them
		d.neighbour(d.Near, "br0", d.addr(host), end)
	}
	if err := inner.AddRoute(netip.PrefixFrom(d.Far4, 24), d.addr(1), "eth0"); err != nil {
		d.t.Fatal(err)
	}
}

func hardware(t testing.TB, ns *lab.NetNS, name string) *net.Interface {
	t.Helper()
	var i *net.Interface
	err := ns.Do(func() (err error) {
		i, err = net.InterfaceByName(name)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func (d *docker) neighbour(ns *lab.NetNS, dev string, addr netip.Addr, of *net.Interface) {
	d.t.Helper()
	c, err := ns.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		d.t.Fatal(err)
	}
	defer c.Close()
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.NDA_DST, addr.AsSlice())
	ae.Bytes(unix.NDA_LLADDR, of.HardwareAddr)
	attrs, err := ae.Encode()
	if err != nil {
		d.t.Fatal(err)
	}
	msg := make([]byte, 12) // struct ndmsg
	msg[0] = unix.AF_INET
	msg[4] = byte(hardware(d.t, ns, dev).Index)
	msg[8] = unix.NUD_PERMANENT
	if _, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_NEWNEIGH, Flags: netlink.Request | netlink.Create | netlink.Replace | netlink.Acknowledge},
		Data:   append(msg, attrs...),
	}); err != nil {
		d.t.Fatal(err)
	}
}

// masquerade hides the containers behind the near end's address, and says whether the
// kernel can.
func (d *docker) masquerade() bool { d.t.Helper(); return d.masqueradeBy(&expr.Masq{}) }

func (d *docker) masqueradeBy(masq *expr.Masq) bool {
	d.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(d.Near.FD()))
	if err != nil {
		d.t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Name: "nat", Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{
		Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	name := append([]byte(d.Dev), make([]byte, 16-len(d.Dev))...)
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
		masq,
	}})
	return c.Flush() == nil
}

// othersMark has a rule set a bit of every forwarded packet's mark, as Kubernetes does.
func (d *docker) othersMark(bit uint32) {
	d.t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(d.Near.FD()))
	if err != nil {
		d.t.Fatal(err)
	}
	table := c.AddTable(&nftables.Table{Name: "others", Family: nftables.TableFamilyIPv4})
	chain := c.AddChain(&nftables.Chain{
		Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	word := func(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: word(^bit), Xor: word(bit)},
		&expr.Meta{Key: expr.MetaKeyMARK, SourceRegister: true, Register: 1},
	}})
	if err := c.Flush(); err != nil {
		d.t.Fatal(err)
	}
}

// TestKernelMark: what a port of a bridge brings in is of its class when the bridge's
// packets are routed, also behind masquerade and netfilter's hooks in the bridge.
// Nobody who is not bound gets there by a mark.
func TestKernelMark(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	d := n.docker(t, 3)
	p := newPlace(t, bind.WayBPF)
	a, free := sub(t, p.dir, "a"), sub(t, p.dir, "free")
	one, two := d.container("veth1", 11), d.container("veth2", 12)
	b := n.binder(t, bind.WayBPF)
	bind := []hierarchy.Bound{bound("link:veth1", red), bound(p.target(a), green)}
	apply(t, b, bind...)
	mark, port1 := 0x71000000, hardware(t, n.Near, "veth1").Index

	inOne, inTwo, inA := n.start(t, one, free), n.start(t, two, free), n.start(t, two, a)
	local, localFree := n.start(t, n.Near, a), n.start(t, n.Near, free)
	far, to := n.start(t, n.Far, ""), n.Far4.String()+":9"
	overwrite := func(on bool) { // what root in the container can do to its packets
		c, err := rtnl.Open(rtnl.Config{NetNS: two.FD()})
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		eth0, err := tc.Find(c, "eth0")
		if err != nil {
			t.Fatal(err)
		}
		if !on {
			err = hook.Of(eth0.Interface).DetachEgress()
		} else {
			err = hook.Of(eth0.Interface).AttachEgress(marks(t, mark, port1).FD(), "marks")
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	port := 7100
	all := func(t *testing.T) {
		t.Helper()
		for _, tt := range []struct {
			name string
			send func()
			want hierarchy.ClassID
		}{
			{"bound", func() { inOne.Do("udp %s 20 %v", to, blue) }, red},
			{"not bound", func() { inTwo.Do("udp %s 20 %v", to, green) }, rest},
			{"bound cgroup behind a port that is not", func() { inA.Do("udp %s 20", to) }, rest},
			{"marked by its socket", func() { inTwo.Do("marked %s 20 %d", to, mark) }, rest},
			{"local, marked by its socket", func() { localFree.Do("marked %s 20 %d", to, mark) }, rest},
			{"local and bound, marked by its socket", func() { local.Do("marked %s 20 %d", to, mark) }, green},
		} {
			if diff := cmp.Diff(counts{tt.want: 20}, n.during(t, tt.send)); diff != "" {
				t.Errorf("%s: packets a class (-want +got):\n%s", tt.name, diff)
			}
		}
		overwrite(true)
		if diff := cmp.Diff(counts{rest: 20}, n.during(t, func() { inTwo.Do("udp %s 20", to) })); diff != "" {
			t.Errorf("marked by a program in its namespace (-want +got):\n%s", diff)
		}
		overwrite(false)
		port++
		far.Do("listen %d %s:%d", port, n.Far4, port)
		only(t, n.during(t, func() {
			inOne.Begin("tcp %s:%d 300000 %v", n.Far4, port, blue)
			far.Do("serve %d 1 0", port)
			inOne.End()
		}), red, 5)
	}
	t.Run("routed", all)
	if d.masquerade() {
		t.Run("masqueraded", all)
		d.othersMark(0x4000)
		t.Run("with others' bits in the mark", all)
	}
	for _, on := range []string{"0", "1"} {
		err := n.Near.Do(func() error { return os.WriteFile("/proc/sys/net/bridge/bridge-nf-call-iptables", []byte(on), 0) })
		if errors.Is(err, os.ErrNotExist) {
			t.Log("the kernel has no netfilter in bridges")
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Run("bridge-nf-call-iptables="+on, all)
	}

	// What the attempts above would come to if the mark were believed.
	near, err := rtnl.Open(rtnl.Config{NetNS: n.Near.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	lo, err := tc.Find(near, "lo")
	if err == nil {
		err = hook.Of(lo.Interface).AttachIngress("veth2", marks(t, mark, port1).FD(), "marks")
	}
	if err != nil {
		t.Fatal(err)
	}
	only(t, n.during(t, func() { inTwo.Do("udp %s 20", to) }), red, 20)
	if err := hook.Of(lo.Interface).DetachIngress("veth2"); err != nil {
		t.Fatal(err)
	}

	check := func(what string, one, two hierarchy.ClassID) {
		t.Helper()
		if diff := cmp.Diff(counts{one: 20}, n.during(t, func() { inOne.Do("udp %s 20", to) })); diff != "" {
			t.Errorf("%s: bound port (-want +got):\n%s", what, diff)
		}
		if diff := cmp.Diff(counts{two: 20}, n.during(t, func() { inTwo.Do("udp %s 20", to) })); diff != "" {
			t.Errorf("%s: other port (-want +got):\n%s", what, diff)
		}
	}
	apply(t, b, bound("link:veth1", red), bound("link:br0", blue))
	check("bridge bound too", red, blue)
	apply(t, b, bound("link:veth1", green))
	check("another class", green, rest)
	if err := n.hook.DetachIngress("veth1"); err != nil {
		t.Fatal(err)
	}
	if got := read(t, b).Bound; len(got) != 1 || !got[0].Open {
		t.Errorf("without the program: %+v", got)
	}
	apply(t, b, bound("link:veth1", green))
	check("put in order", green, rest)
	apply(t, b)
	check("unbound", rest, rest)
	if on, err := n.hook.HasIngress("veth1"); on || err != nil {
		t.Errorf("program on a port that is not bound: %v, %v", on, err)
	}
	// all goes with the classifier
	apply(t, b, bound("link:veth1", green))
	state := read(t, b)
	steps := classifier(hierarchy.Diff(state, hierarchy.State{Device: "eth0"}))
	if done, err := b.Do(t.Context(), steps); err != nil || done != len(steps) {
		t.Fatalf("%d of %d steps done: %v", done, len(steps), err)
	}
	if on, err := n.hook.HasIngress("veth1"); on || err != nil {
		t.Errorf("program on a port without a classifier: %v, %v", on, err)
	}
}

// marks is a program that marks as the one at a bound port does.
func marks(t testing.TB, mark, index int) *ebpf.Program {
	t.Helper()
	const markAt, tcIndexAt = 8, 44 // in struct __sk_buff, linux/bpf.h
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "MIT",
		Instructions: asm.Instructions{
			asm.Mov.Imm32(asm.R0, int32(mark)),
			asm.StoreMem(asm.R1, markAt, asm.R0, asm.Word),
			asm.Mov.Imm32(asm.R0, int32(index)),
			asm.StoreMem(asm.R1, tcIndexAt, asm.R0, asm.Word),
			asm.Mov.Imm(asm.R0, -1),
			asm.Return(),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close() })
	return p
}

// TestKernelMarkLate: an interface that becomes a port only after it was bound, and
// one that is made anew.
func TestKernelMarkLate(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	d := n.docker(t, 3)
	inner := tctest.NetNS(t)
	onlyIPv4(t, inner)
	in := lab.Link{Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(d.addr(11), 24)}}
	if err := lab.AddVeth(n.Near, lab.Link{Name: "veth1"}, inner, in); err != nil {
		t.Fatal(err)
	}
	b := n.binder(t, bind.WayBPF)
	apply(t, b, bound("link:veth1", red))
	if on, err := n.hook.HasIngress("veth1"); on || err != nil {
		t.Errorf("program on an interface that is no port: %v, %v", on, err)
	}
	d.enslave(t, "br0", "veth1")
	if got := read(t, b).Bound; len(got) != 1 || !got[0].Open {
		t.Errorf("as a port: %+v", got)
	}
	apply(t, b, bound("link:veth1", red))
	if on, err := n.hook.HasIngress("veth1"); !on || err != nil {
		t.Errorf("no program on a port: %v, %v", on, err)
	}
	if err := n.Near.DeleteLink("veth1"); err != nil {
		t.Fatal(err)
	}
	d.connect(inner, "veth1", 12)
	apply(t, b, bound("link:veth1", red))
	x := n.start(t, inner, "")
	only(t, n.during(t, func() { x.Do("udp %s:9 20", n.Far4) }), red, 20)
}

// TestKernelMarkForeign: what others have at a port's ingress stays and goes on, and
// where there is no place the binding holds all the same, as far as it can.
func TestKernelMarkForeign(t *testing.T) {
	require(t, bind.WayBPF)
	for _, tt := range []struct {
		name string
		set  []string
		warn string // and nothing is marked
	}{
		{"clsact", []string{"qdisc add dev veth1 clsact", "filter add dev veth1 ingress protocol ip pref 7 u32 match u32 0 0"}, ""},
		{"ingress", []string{"qdisc add dev veth1 ingress", "filter add dev veth1 ingress protocol ip pref 7 u32 match u32 0 0"}, ""},
		{"our place", []string{"qdisc add dev veth1 clsact", "filter add dev veth1 ingress protocol ip pref 1 u32 match u32 0 0"},
			"filter of kind u32 with preference 1 at ingress is not made by vifshape"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t)
			d := n.docker(t, 3)
			x := n.start(t, d.container("veth1", 11), "")
			for _, s := range tt.set {
				tctest.TC(t, n.Near, strings.Fields(s)...)
			}
			shown := func() string {
				return tctest.TC(t, n.Near, "qdisc", "show", "dev", "veth1") + tctest.TC(t, n.Near, "filter", "show", "dev", "veth1", "ingress")
			}
			before := shown()
			var warned []string
			b := n.binderWith(t, cgroup.Config{Ways: []bind.Way{bind.WayBPF}, Warn: func(s string) { warned = append(warned, s) }})
			apply(t, b, bound("link:veth1", red))
			want := map[bool]hierarchy.ClassID{true: red, false: rest}[tt.warn == ""]
			only(t, n.during(t, func() { x.Do("udp %s:9 20", n.Far4) }), want, 20)
			if told := slices.ContainsFunc(warned, func(s string) bool { return strings.Contains(s, tt.warn) }); told != (tt.warn != "") {
				t.Errorf("warnings: %q", warned)
			}
			apply(t, b)
			if after := shown(); after != before {
				t.Errorf("afterwards\n%swas\n%s", after, before)
			}
		})
	}
}
