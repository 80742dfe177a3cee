package cgroup_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/caps"
	rules "github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// nft is the library's view of a namespace, to look at and to meddle with what is
// ours.
func nft(t testing.TB, ns *lab.NetNS) *nftables.Conn {
	t.Helper()
	c, err := nftables.New(nftables.WithNetNSFd(ns.FD()))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func flush(t testing.TB, c *nftables.Conn) {
	t.Helper()
	if err := c.Flush(); err != nil {
		t.Fatal(err)
	}
}

// chains names all in a namespace with their tables, and counts their rules.
func chains(t testing.TB, c *nftables.Conn) map[string]int {
	t.Helper()
	all, err := c.ListChains()
	if err != nil {
		t.Fatal(err)
	}
	m := map[string]int{}
	for _, x := range all {
		rules, err := c.GetRules(x.Table, x)
		if err != nil {
			t.Fatal(err)
		}
		m[fmt.Sprintf("%s:%s", x.Table.Name, x.Name)] += len(rules)
	}
	return m
}

// sleep does "nft add table FAMILY vifshape { flags dormant; }", for which the
// library has no flags.
func sleep(t testing.TB, ns *lab.NetNS, f nftables.TableFamily) {
	t.Helper()
	c, err := ns.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{
		{Type: unix.NFTA_TABLE_NAME, Data: []byte("vifshape\x00")},
		{Type: unix.NFTA_TABLE_FLAGS, Data: binary.BigEndian.AppendUint32(nil, unix.NFT_TABLE_F_DORMANT)},
	})
	if err != nil {
		t.Fatal(err)
	}
	header := func(family, subsystem byte) []byte { return []byte{family, unix.NFNETLINK_V0, 0, subsystem} }
	sent, err := c.SendMessages([]netlink.Message{
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: header(0, unix.NFNL_SUBSYS_NFTABLES)},
		{
			Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_NEWTABLE, Flags: netlink.Request | netlink.Acknowledge},
			Data:   append(header(byte(f), 0), attrs...),
		},
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request}, Data: header(0, unix.NFNL_SUBSYS_NFTABLES)},
	})
	if err != nil {
		t.Fatal(err)
	}
	answers, err := c.Receive()
	if err != nil || len(answers) != 1 || answers[0].Header.Sequence != sent[1].Header.Sequence {
		t.Fatalf("%d answers, error %v", len(answers), err)
	}
}

// TestKernelForeignRules: whatever others do to our rules shows as a difference and
// is mended, and what is theirs stays, in whichever table it is.
func TestKernelForeignRules(t *testing.T) {
	for _, way := range []bind.Way{bind.WayNft, bind.WayNetClsNft} {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			p := newPlace(t, way)
			a := sub(t, p.dir, "a")
			bind := []hierarchy.Bound{bound(p.target(a), red)}
			if v2(way) {
				bind = append(bind, bound("uid:65534", green))
			}
			b := n.binder(t, way)
			apply(t, b, bind...)
			c := nft(t, n.Near)
			theirs := c.AddTable(&nftables.Table{Name: "theirs", Family: nftables.TableFamilyINet})
			own := c.AddChain(&nftables.Chain{Name: "own", Table: theirs})
			c.AddRule(&nftables.Rule{Table: theirs, Chain: own, Exprs: []expr.Any{&expr.Counter{}}})
			inet := c.AddTable(&nftables.Table{Name: "vifshape", Family: nftables.TableFamilyINet})
			c.AddChain(&nftables.Chain{Name: "guest", Table: inet})
			flush(t, c)
			egress := &nftables.Chain{Name: fmt.Sprint("if", n.device.Index), Table: &nftables.Table{Name: "vifshape", Family: nftables.TableFamilyNetdev}}
			output := &nftables.Chain{Name: egress.Name, Table: inet}
			x, addr := n.start(t, n.Near, a), n.Far4.String()+":9"
			for _, tt := range []struct {
				name   string
				v2     bool // of use for cgroup v2 only
				meddle func(t *testing.T)
			}{
				{"a rule added", false, func(*testing.T) {
					c.AddRule(&nftables.Rule{Table: egress.Table, Chain: egress, Exprs: []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}})
				}},
				{"a rule that nobody knows", false, func(*testing.T) {
					c.InsertRule(&nftables.Rule{Table: egress.Table, Chain: egress, Exprs: []expr.Any{&expr.Counter{}}})
				}},
				{"the table asleep", false, func(t *testing.T) { sleep(t, n.Near, nftables.TableFamilyNetdev) }},
				{"the table of output asleep", true, func(t *testing.T) { sleep(t, n.Near, nftables.TableFamilyINet) }},
				{"rules flushed", false, func(*testing.T) { c.FlushChain(egress) }},
				{"the chain deleted", false, func(*testing.T) { c.FlushChain(egress); c.DelChain(egress) }},
				{"the chain at another hook", false, func(*testing.T) {
					c.FlushChain(egress)
					c.DelChain(egress)
					other := *egress
					other.Type, other.Hooknum, other.Priority, other.Device = nftables.ChainTypeFilter, nftables.ChainHookIngress, nftables.ChainPriorityFilter, n.Dev
					c.AddChain(&other)
				}},
				{"a rule of output deleted", true, func(t *testing.T) {
					rules, err := c.GetRules(inet, output)
					if err != nil || len(rules) < 3 {
						t.Fatalf("%d rules, error %v", len(rules), err)
					}
					if err := c.DelRule(rules[1]); err != nil {
						t.Fatal(err)
					}
				}},
				{"a level changed", true, func(t *testing.T) {
					rules, err := c.GetRules(inet, output)
					if err != nil || len(rules) < 3 {
						t.Fatalf("%d rules, error %v", len(rules), err)
					}
					r := rules[2] // the library does not read "socket"
					r.Exprs = append([]expr.Any{&expr.Socket{Key: expr.SocketKeyCgroupv2, Level: 1, Register: 1}}, r.Exprs...)
					c.ReplaceRule(r)
				}},
				{"output deleted", true, func(*testing.T) { c.FlushChain(output); c.DelChain(output) }},
				{"elements deleted", true, func(t *testing.T) {
					sets, err := c.GetSets(inet)
					if err != nil || len(sets) != 2 {
						t.Fatalf("%d sets, error %v", len(sets), err)
					}
					for _, s := range sets {
						c.FlushSet(s)
					}
				}},
				{"a user deleted, a set added", true, func(t *testing.T) {
					s, err := c.GetSets(inet)
					if err != nil {
						t.Fatal(err)
					}
					i := slices.IndexFunc(s, func(s *nftables.Set) bool { return strings.HasSuffix(s.Name, "users") })
					more := nftables.Set{Table: inet, Name: "more", KeyType: nftables.TypeUID, DataType: nftables.TypeClassID, IsMap: true}
					if err := errors.Join(c.AddSet(&more, nil), c.SetDeleteElements(s[i], []nftables.SetElement{{Key: []byte{0xfe, 0xff, 0, 0}}})); err != nil {
						t.Fatal(err)
					}
				}},
			} {
				if tt.v2 && !v2(way) {
					continue
				}
				t.Run(tt.name, func(t *testing.T) {
					tt.meddle(t)
					flush(t, c)
					want := hierarchy.State{Device: "eth0", Bound: bind}
					var err error
					if want.Hook, err = b.Hook(0); err != nil {
						t.Fatal(err)
					}
					if hierarchy.Diff(read(t, b), want).Empty() {
						t.Error("no difference to be seen")
					}
					converge(t, b, want)
					only(t, n.during(t, func() { x.Do("udp %s 20", addr) }), red, 20)
				})
			}
			converge(t, b, hierarchy.State{Device: "eth0"})
			left := chains(t, c)
			delete(left, "vifshape:guest")
			if diff := cmp.Diff(map[string]int{"theirs:own": 1}, left); diff != "" {
				t.Errorf("chains and rules after clearing (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKernelTablesGo: clearing leaves no table of ours, and neither does a change to
// another way.
func TestKernelTablesGo(t *testing.T) {
	for _, way := range []bind.Way{bind.WayNft, bind.WayNetClsNft} {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			require(t, bind.WayNetCls)
			n := newNetwork(t)
			p, q := newPlace(t, way), newPlace(t, bind.WayNetCls)
			c := nft(t, n.Near)
			for _, to := range []struct {
				name string
				do   func()
			}{
				{"clearing", func() { converge(t, n.binder(t), hierarchy.State{Device: "eth0"}) }},
				{"another way", func() { apply(t, n.binder(t, bind.WayNetCls), bound(q.target(q.dir), blue)) }},
			} {
				b := n.binder(t, way)
				apply(t, b, bound(p.target(p.dir), red))
				apply(t, b, bound(p.target(p.dir), green))
				if got := len(chains(t, c)); got == 0 {
					t.Fatal("no chain is there")
				}
				to.do()
				tables, err := c.ListTables()
				if err != nil || len(tables) != 0 {
					t.Errorf("after %s: %d tables, error %v", to.name, len(tables), err)
				}
			}
		})
	}
}

// TestKernelProbeLeavesNothing: neither trying the ways nor choosing one makes
// anything.
func TestKernelProbeLeavesNothing(t *testing.T) {
	require(t, bind.WayNft)
	n := newNetwork(t)
	newPlace(t, bind.WayNft)
	for _, way := range []bind.Way{bind.WayNft, bind.WayNetClsNft} {
		if _, err := n.binder(t, way).Hook(0); err != nil {
			t.Error(err)
		}
	}
	if err := n.Near.Do(func() error { cgroup.Probe(); return nil }); err != nil {
		t.Fatal(err)
	}
	tables, err := nft(t, n.Near).ListTables()
	if err != nil || len(tables) != 0 {
		t.Errorf("%d tables, error %v", len(tables), err)
	}
}

// TestKernelTwoTrees: two interfaces bound by nft, each with its own class for the
// same cgroup. A third is not touched, and what one leaves when it goes is cleaned
// up by the next change of the other.
func TestKernelTwoTrees(t *testing.T) {
	require(t, bind.WayNft)
	n := newNetwork(t)
	p := newPlace(t, bind.WayNft)
	a := sub(t, p.dir, "a")
	conn, err := rtnl.Open(rtnl.Config{NetNS: n.Near.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	onlyIPv4(t, n.Near)
	second := func(name string, last byte) (*network, netip.AddrPort) {
		near, far := netip.AddrFrom4([4]byte{198, 51, last, 1}), netip.AddrFrom4([4]byte{198, 51, last, 2})
		prefix := func(a netip.Addr) []netip.Prefix { return []netip.Prefix{netip.PrefixFrom(a, 24)} }
		err := lab.AddVeth(n.Near, lab.Link{Name: name, Addrs: prefix(near), TxQueueLen: 1000}, n.Far, lab.Link{Name: "far-" + name, Addrs: prefix(far)})
		if err != nil {
			t.Fatal(err)
		}
		pair := *n.Pair
		pair.Dev = name
		m := &network{Pair: &pair}
		if m.device, err = tc.Find(conn, name); err != nil {
			t.Fatal(err)
		}
		m.hook = hook.Of(m.device.Interface)
		m.tree(t)
		return m, netip.AddrPortFrom(far, 9)
	}
	two, to2 := second("eth1", 7)
	three, to3 := second("eth2", 8)
	first := n.binder(t, bind.WayNft)
	apply(t, first, bound(p.target(a), red))
	apply(t, two.binder(t, bind.WayNft), bound(p.target(a), blue), bound("uid:0", green))
	if diff := cmp.Diff([]hierarchy.Bound{bound(p.target(a), red)}, read(t, first).Bound); diff != "" {
		t.Errorf("bindings of the first (-want +got):\n%s", diff)
	}
	x, y := n.start(t, n.Near, a), n.start(t, n.Near, p.dir)
	only(t, n.during(t, func() { x.Do("udp %s:9 20", n.Far4) }), red, 20)
	only(t, n.during(t, func() { y.Do("udp %s:9 20", n.Far4) }), rest, 20)
	only(t, two.during(t, func() { x.Do("udp %s 20", to2) }), blue, 20)
	only(t, two.during(t, func() { y.Do("udp %s 20", to2) }), green, 20)
	only(t, three.during(t, func() { x.Do("udp %s 20 %s", to3, green) }), green, 20)

	if err := n.Near.DeleteLink("eth1"); err != nil {
		t.Fatal(err)
	}
	apply(t, first, bound(p.target(a), green))
	want := map[string]bool{fmt.Sprintf("vifshape:if%d", n.device.Index): true}
	got := map[string]bool{}
	for name := range chains(t, nft(t, n.Near)) {
		got[name] = true
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("chains once the second is gone (-want +got):\n%s", diff)
	}
	only(t, n.during(t, func() { x.Do("udp %s:9 20", n.Far4) }), green, 20)

	if err := n.Near.DeleteLink(n.Dev); err != nil {
		t.Fatal(err)
	}
	if err := rules.DropStale(n.Near.FD()); err != nil {
		t.Error(err)
	}
	if got := chains(t, nft(t, n.Near)); len(got) != 0 {
		t.Errorf("chains once all are gone: %v", got)
	}
}

// TestKernelManyRules: thousands of bindings at several levels are one transaction,
// and are read back as they are.
func TestKernelManyRules(t *testing.T) {
	require(t, bind.WayNft)
	n := newNetwork(t)
	p := newPlace(t, bind.WayNft)
	var all []hierarchy.Bound
	for i := range 1500 {
		dir := filepath.Join(p.dir, fmt.Sprintf("g%d", i/500), fmt.Sprint(i))
		if i%500 == 0 {
			sub(t, p.dir, fmt.Sprintf("g%d", i/500))
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		all = append(all, bound(p.target(dir), []hierarchy.ClassID{red, green, blue}[i%3]))
	}
	for uid := range 3000 {
		all = append(all, bound(fmt.Sprintf("uid:%d", 100_000+uid), blue))
	}
	all = append(all, bound(p.target(p.dir), green))
	b := n.binder(t, bind.WayNft)
	apply(t, b, all...)
	apply(t, b, all[1:]...)
	x := n.start(t, n.Near, filepath.Join(p.dir, "g2", "1400"))
	only(t, n.during(t, func() { x.Do("udp %s:9 20", n.Far4) }), blue, 20)
	y := n.start(t, n.Near, filepath.Join(p.dir, "g0", "0"))
	only(t, n.during(t, func() { y.Do("udp %s:9 20", n.Far4) }), green, 20)
}

// TestKernelRulesLimited: without privileges the rules can neither be read nor
// tried, and that is what is said.
func TestKernelRulesLimited(t *testing.T) {
	require(t, bind.WayNft)
	n := newNetwork(t)
	cmd := tctest.Command(t, "nobody", ";", "lackRules")
	cmd.Stdout = os.Stderr
	if err := n.Near.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// lackRules holds what the rules say without privileges.
func lackRules() error {
	b, err := cgroup.NewBinder(cgroup.Config{Hook: bare{}, Interface: "eth0", Index: 2, Ways: []bind.Way{bind.WayNft}})
	if err != nil {
		return err
	}
	defer b.Close()
	if _, err := b.Hook(0); !errors.Is(err, caps.ErrNotPrivileged) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		return fmt.Errorf("error %v, want one of privileges that names CAP_NET_ADMIN", err)
	}
	return nil
}

// TestKernelRulesRead: what is read is whole while others change the tables.
func TestKernelRulesRead(t *testing.T) {
	require(t, bind.WayNft)
	n := newNetwork(t)
	p := newPlace(t, bind.WayNft)
	want := []hierarchy.Bound{bound(p.target(p.dir), red)}
	for uid := range 300 {
		want = append(want, bound(fmt.Sprintf("uid:%d", 1000+uid), blue))
	}
	b := n.binder(t, bind.WayNft)
	apply(t, b, want...)
	// Fewer for each look than times that it tries, two for each word: how long a look takes is
	// the machine's affair.
	words, stopped := make(chan int, 5), make(chan error, 1)
	go func() {
		c, err := nftables.New(nftables.WithNetNSFd(n.Near.FD()))
		for i := range words {
			if err != nil {
				continue
			}
			time.Sleep(time.Millisecond)
			theirs := &nftables.Table{Name: fmt.Sprintf("%c", 'a'+i%26), Family: nftables.TableFamilyINet}
			c.AddTable(theirs)
			c.AddChain(&nftables.Chain{Name: "c", Table: theirs})
			if err = c.Flush(); err == nil {
				c.DelTable(theirs)
				err = c.Flush()
			}
		}
		stopped <- err
	}()
	for i := range 50 {
		for range cap(words) - len(words) {
			words <- i
		}
		s := read(t, b)
		if len(s.Bound) != len(want) || s.Hook.Version == 0 {
			t.Errorf("%d of %d bindings, hook %+v", len(s.Bound), len(want), s.Hook)
		}
	}
	close(words)
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}
