package cgroup_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/caps"
	rules "github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// house is what stands behind a router at home: hosts whose addresses it masquerades, and one
// whose addresses it leaves.
type house struct {
	*receiver
	alice, bob, carol *host
}

type host struct {
	*tctest.Actor
	v4, v6 netip.Addr
}

// masked is how many bytes the addresses of those that are masqueraded begin with.
var masked = map[nftables.TableFamily][]byte{
	nftables.TableFamilyIPv4: {10, 1, 1},
	nftables.TableFamilyIPv6: {0xfd, 0, 0, 1},
}

func newHouse(t testing.TB) *house {
	t.Helper()
	h := &house{receiver: newReceiver(t)}
	h.write(t, "ipv4/ip_forward")
	h.write(t, "ipv6/conf/eth0/mldv2_unsolicited_report_interval") // in ms: a router speaks of its groups twice, and packets are counted
	h.write(t, "ipv6/conf/all/forwarding")
	h.alice = h.host(t, "lan1", "10.1.1.10", "fd00:1:1::10")
	h.bob = h.host(t, "lan2", "10.1.1.139", "fd00:1:2::11")
	h.carol = h.host(t, "lan3", "10.1.2.12", "fd00:2:1::12")
	return h
}

func (h *house) write(t testing.TB, file string) {
	t.Helper()
	if err := h.Near.Do(func() error { return os.WriteFile("/proc/sys/net/"+file, []byte("1"), 0) }); err != nil {
		t.Fatal(err)
	}
}

func (h *house) host(t testing.TB, port, v4, v6 string) *host {
	t.Helper()
	x := &host{v4: netip.MustParseAddr(v4), v6: netip.MustParseAddr(v6)}
	inner := tctest.NetNS(t)
	out := lab.Link{Name: port, Addrs: []netip.Prefix{netip.PrefixFrom(x.v4.Prev(), 25), netip.PrefixFrom(x.v6.Prev(), 64)}}
	in := lab.Link{Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(x.v4, 25), netip.PrefixFrom(x.v6, 64)}}
	if err := lab.AddVeth(h.Near, out, inner, in); err != nil {
		t.Fatal(err)
	}
	for _, r := range []struct{ here, far, gateway, back netip.Addr }{{x.v4, h.Far4, x.v4.Prev(), h.Near4}, {x.v6, h.Far6, x.v6.Prev(), h.Near6}} {
		bits := map[bool]int{true: 24, false: 64}[r.here.Is4()]
		far, _ := r.far.Prefix(bits)
		if err := inner.AddRoute(far, r.gateway, "eth0"); err != nil {
			t.Fatal(err)
		}
		if err := h.Far.AddRoute(netip.PrefixFrom(r.here, r.here.BitLen()), r.back, h.FarDev); err != nil {
			t.Fatal(err)
		}
	}
	x.Actor = h.start(t, inner, "")
	return x
}

// translate has the router masquerade, and forward port 7900 to a host. The test is skipped on
// a kernel that cannot.
func (h *house) translate(t testing.TB, to *host) {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(h.Near.FD()))
	if err != nil {
		t.Fatal(err)
	}
	for f, from := range masked {
		table := c.AddTable(&nftables.Table{Name: "nat", Family: f})
		post := c.AddChain(&nftables.Chain{Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource})
		pre := c.AddChain(&nftables.Chain{Name: "pre", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest})
		at, addr := uint32(12), to.v4
		if f == nftables.TableFamilyIPv6 {
			at, addr = 8, to.v6
		}
		c.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name16(h.Dev)},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: at, Len: uint32(len(from))},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: from},
			&expr.Masq{},
		}})
		c.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: []expr.Any{
			&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name16(h.Dev)},
			&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2},
			&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint16(7900)},
			&expr.Immediate{Register: 1, Data: addr.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: uint32(f), RegAddrMin: 1},
		}})
	}
	err = c.Flush()
	tctest.Require(t, !errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP), "nf_tables")
	if err != nil {
		t.Fatal(err)
	}
}

func name16(s string) []byte { return append([]byte(s), make([]byte, 16-len(s))...) }

// hosts are matches of the hosts of a house.
func (h *house) hosts(t testing.TB) []hierarchy.Matched {
	t.Helper()
	top := []hierarchy.ClassID{rest}
	all := []hierarchy.Matched{
		matched(t, red, top, "host="+h.alice.v4.String()+" host="+h.alice.v6.String()),
		matched(t, green, top, "host="+h.bob.v4.String()+" host="+h.bob.v6.String()),
		matched(t, blue, top, "host="+h.carol.v4.String()+" host="+h.carol.v6.String()),
	}
	for i := range all {
		all[i].Received = true
	}
	return all
}

func (h *house) set(t testing.TB, b *cgroup.Binder, all []hierarchy.Matched) {
	t.Helper()
	want := hierarchy.State{Device: "eth0", Matched: all}
	var err error
	if want.Hook, err = b.Hook(h.flows, all...); err != nil {
		t.Fatal(err)
	}
	converge(t, b, want)
}

// both are the packets that went out, and that came in, while fn ran, by their class.
func (h *house) both(t testing.TB, fn func()) (sent, received counts) {
	t.Helper()
	sent = h.during(t, func() { received = h.received(t, fn) })
	delete(sent, 0)
	return sent, received
}

// TestKernelMatchedHost: behind masquerade host is the address before translation, in both
// directions, for TCP and UDP; what connection tracking does not tell goes by the wire.
func TestKernelMatchedHost(t *testing.T) {
	require(t, bind.WayBPF)
	h := newHouse(t)
	h.translate(t, h.alice)
	b := h.binder(t, bind.WayBPF)
	h.set(t, b, h.hosts(t))
	far := h.start(t, h.Far, "")
	far.Do("sink u4 %s:7000", h.Far4)
	far.Do("sink u6 [%s]:7000", h.Far6)
	far.Do("sink p4 %s:9000", h.Far4)
	far.Do("sink p6 [%s]:9000", h.Far6)
	far.Do("listen t4 %s:7000", h.Far4)
	far.Do("listen t6 [%s]:7000", h.Far6)
	check := func(what string, out, in counts, fn func()) {
		t.Helper()
		sent, received := h.both(t, fn)
		if d := cmp.Diff(out, sent); d != "" {
			t.Errorf("%s: packets a class, sent (-want +got):\n%s", what, d)
		}
		if d := cmp.Diff(in, received); d != "" {
			t.Errorf("%s: packets a class, received (-want +got):\n%s", what, d)
		}
	}
	for _, v := range []struct{ name, far, near string }{{"4", h.Far4.String(), h.Near4.String()}, {"6", "[" + h.Far6.String() + "]", "[" + h.Near6.String() + "]"}} {
		to := v.far + ":7000"
		for _, x := range []struct {
			who   *host
			class hierarchy.ClassID
		}{{h.alice, red}, {h.bob, green}, {h.carol, blue}} {
			what := fmt.Sprintf("IPv%s, class %v", v.name, x.class)
			check(what+", UDP", counts{x.class: 20}, counts{x.class: 20}, func() {
				far.Begin("answer u%s 20", v.name)
				x.who.Do("ask q%s %s 20", v.name, to)
				far.End()
			})
			check(what+", parts", counts{x.class: 1}, counts{x.class: 3}, func() {
				far.Begin("answer u%s 1 4000", v.name)
				x.who.Do("ask q%s %s 1", v.name, to)
				far.End()
			})
			check(what+", parts that are sent", counts{x.class: 30}, counts{}, func() { x.who.Do("large %s:9000 10 4000", v.far) })
			sent, received := h.both(t, func() {
				far.Begin("serve t%s 1 100000", v.name)
				x.who.Do("fetch %s", to)
				far.End()
			})
			only(t, sent, x.class, 3)
			only(t, received, x.class, 3)
			echo := rest
			if x.who == h.carol {
				echo = blue
			}
			check(what+", echo", counts{echo: 3}, counts{echo: 3}, func() { x.who.Do("ping %s:0 3", v.far) })
		}
		// From outside: before the first packet has passed, nobody knows where it goes.
		inside := map[string]string{"4": h.alice.v4.String(), "6": "[" + h.alice.v6.String() + "]"}[v.name]
		h.alice.Do("sink in%s %s:7900", v.name, inside)
		check("IPv"+v.name+", UDP from outside", counts{red: 20}, counts{rest: 1, red: 19}, func() {
			h.alice.Begin("answer in%s 20", v.name)
			far.Do("ask out%s %s:7900 20", v.name, v.near)
			h.alice.End()
		})
		h.alice.Do("listen l%s %s:7900", v.name, inside)
		sent, received := h.both(t, func() {
			h.alice.Begin("serve l%s 1 100000", v.name)
			far.Do("fetch %s:7900", v.near)
			h.alice.End()
		})
		only(t, sent, red, 3)
		if received[rest] != 1 || received[red] < 3 || len(received) != 2 {
			t.Errorf("IPv%s, TCP from outside: packets a class, received: %v", v.name, received)
		}
		// The router itself is nobody's host.
		near := h.start(t, h.Near, "")
		check("IPv"+v.name+", the router", counts{rest: 20}, counts{rest: 20}, func() {
			far.Begin("answer u%s 20", v.name)
			near.Do("ask q%s %s 20", v.name, to)
			far.End()
		})
	}
}

// untold keeps from this process what the kernel has to be asked by.
func untold() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if _, err := os.Stat("/sys/kernel/btf"); err != nil {
		return nil // nothing is told here
	}
	return unix.Mount("none", "/sys/kernel/btf", "tmpfs", 0, "")
}

// matchUntold gives the near interface a match by a process that sees as much of the kernel as
// of one that does not tell addresses before translation.
func matchUntold(host string) (string, error) {
	if err := untold(); err != nil {
		return "", err
	}
	c, err := rtnl.Open(rtnl.Config{})
	if err != nil {
		return "", err
	}
	defer c.Close()
	dev, err := tc.Find(c, "eth0")
	if err != nil {
		return "", err
	}
	b, err := cgroup.NewBinder(cgroup.Config{Hook: hook.Of(dev.Interface), Interface: "eth0", Index: dev.Index, Ways: []bind.Way{bind.WayBPF}})
	if err != nil {
		return "", err
	}
	defer b.Close()
	m := hierarchy.Matched{ID: red, Class: red, From: []hierarchy.ClassID{rest}, Digest: 1, Match: make([]match.Match, 1)}
	if err := m.Match[0].Add("host", host); err != nil {
		return "", err
	}
	h, err := b.Hook(0, m)
	if err != nil {
		return err.Error(), nil
	}
	_, err = b.Do(context.Background(), []hierarchy.Step{{Action: hierarchy.Create, New: &h}, {Action: hierarchy.Create, New: &m}})
	return "", err
}

// TestKernelMatchedUntold: where the kernel does not say what addresses were before translation
// host is refused if somebody translates, and is the address on the wire if nobody does. Once
// the kernel says it, the next apply puts it right.
func TestKernelMatchedUntold(t *testing.T) {
	require(t, bind.WayBPF)
	h := newHouse(t)
	hidden := func(host netip.Addr) string {
		cmd := tctest.Command(t, "obey")
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS}
		return tctest.StartCommand(t, h.Near, cmd).Do("matchUntold %s", host)
	}
	far := h.start(t, h.Far, "")
	far.Do("sink u %s:7000", h.Far4)
	to := h.Far4.String() + ":7000"
	if got := hidden(h.carol.v4); got != "" {
		t.Fatalf("nobody translates: %s", got)
	}
	only(t, h.during(t, func() { h.carol.Do("udp %s 20", to) }), red, 20)
	only(t, h.during(t, func() { h.alice.Do("udp %s 20", to) }), rest, 20)
	b := h.binder(t, bind.WayBPF)
	tells := bpf.Tracks() == nil
	if got := read(t, b); (got.Hook.Match == bpf.Unfinished) != tells || (got.Hook.Match == way.Version) == tells {
		t.Errorf("the kernel tells: %v; found: %+v", tells, got.Hook)
	}
	h.translate(t, h.alice)
	if got := hidden(h.alice.v4); !strings.HasPrefix(got, "eth0: match: host: the firewall translates addresses here (") || !strings.Contains(got, "ip nat post") || !strings.Contains(got, `write mark = "0x10" instead`) {
		t.Errorf("masqueraded: %q", got)
	}
	if _, err := b.Hook(0, h.hosts(t)...); tells != (err == nil) || !tells && !errors.Is(err, caps.ErrNotSupported) {
		t.Errorf("the kernel tells: %v; error %v", tells, err)
	}
	if !tells {
		return
	}
	h.set(t, b, h.hosts(t))
	only(t, h.during(t, func() { h.alice.Do("udp %s 20", to) }), red, 20)
	only(t, h.during(t, func() { h.carol.Do("udp %s 20", to) }), blue, 20)
	if got := read(t, b); got.Hook.Match != way.Version || got.Hook.Receive != way.Version {
		t.Errorf("found: %+v", got.Hook)
	}
}

// TestKernelTranslations sees the rules that translate addresses of our side, and no others.
func TestKernelTranslations(t *testing.T) {
	n := tctest.NetNS(t)
	look := func(want ...string) {
		t.Helper()
		got, err := rules.Translations(n.FD(), "eth0", 7)
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("rules (-want +got):\n%s, error %v", d, err)
		}
	}
	look()
	add := func(table string, hook *nftables.ChainHook, exprs ...expr.Any) {
		t.Helper()
		c, err := nftables.New(nftables.WithNetNSFd(n.FD()))
		if err != nil {
			t.Fatal(err)
		}
		tb := c.AddTable(&nftables.Table{Name: table, Family: nftables.TableFamilyIPv4})
		chain := c.AddChain(&nftables.Chain{Name: "nat", Table: tb, Type: nftables.ChainTypeNAT, Hooknum: hook, Priority: nftables.ChainPriorityNATSource})
		c.AddRule(&nftables.Rule{Table: tb, Chain: chain, Exprs: exprs})
		err = c.Flush()
		tctest.Require(t, !errors.Is(err, unix.EPROTONOSUPPORT) && !errors.Is(err, unix.EAFNOSUPPORT) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.EOPNOTSUPP), "nf_tables")
		if err != nil {
			t.Fatal(err)
		}
	}
	reads := func(key expr.MetaKey, is []byte) []expr.Any {
		return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: is}}
	}
	index := func(i uint32) []byte { return binaryutil.NativeEndian.PutUint32(i) }
	out, in := nftables.ChainHookPostrouting, nftables.ChainHookPrerouting
	dnat := []expr.Any{&expr.Immediate{Register: 1, Data: []byte{10, 0, 0, 1}}, &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.AF_INET, RegAddrMin: 1}}
	add("none", out, &expr.Verdict{Kind: expr.VerdictAccept})
	add("other", out, append(reads(expr.MetaKeyOIFNAME, name16("eth1")), &expr.Masq{})...)
	add("longer", out, append(reads(expr.MetaKeyOIFNAME, name16("eth00")), &expr.Masq{})...)
	add("number", out, append(reads(expr.MetaKeyOIF, index(8)), &expr.Masq{})...)
	add("inside", in, append(reads(expr.MetaKeyIIFNAME, name16("eth1")), dnat...)...)
	look()
	from := []expr.Any{&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: 12, Len: 3}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{10, 1, 1}}}
	add("a", out, append(append(reads(expr.MetaKeyOIFNAME, name16("eth0")), from...), &expr.Masq{})...)
	add("b", out, append(reads(expr.MetaKeyOIFNAME, []byte("eth")), &expr.Masq{})...)
	add("c", out, append(reads(expr.MetaKeyOIF, index(7)), &expr.Masq{})...)
	add("d", out, append(reads(expr.MetaKeyIIFNAME, name16("eth1")), &expr.Masq{})...)
	add("e", in, append(reads(expr.MetaKeyIIFNAME, name16("eth0")), dnat...)...)
	look("ip a nat", "ip b nat", "ip c nat", "ip d nat", "ip e nat")
}
