package tc_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// standing is what stands on the port of a part.
func standing(t testing.TB, p hierarchy.Part) hierarchy.PortState {
	t.Helper()
	var s hierarchy.State
	if err := p.Read(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	return s.On(p.Port())
}

// receiver is the receiving side of a test's interface.
type receiver struct {
	*tc.Receiver
	*bench
	t testing.TB
}

func receiving(t testing.TB, b *bench) *receiver {
	t.Helper()
	tctest.RequireLink(t, "ifb")
	return &receiver{b.Receiver(), b, t}
}

func (r *receiver) Port() hierarchy.Port { return r.Receiver.Port() }

// received is a settled tree for what the interface receives.
func (r *receiver) received(rate hierarchy.Bandwidth, children ...*hierarchy.BranchSpec) *hierarchy.Tree {
	r.t.Helper()
	both := hierarchy.BranchSpec{Rate: hierarchy.Absolute(rate), Ingress: &hierarchy.BranchSpec{Rate: hierarchy.Absolute(rate)}, Children: children}
	for _, c := range children {
		as := *c
		c.Ingress = &as
	}
	tree := resolve(r.t, hierarchy.Spec{Interface: r.Name, BranchSpec: both}).Ingress
	if err := r.Receiver.Settle(r.t.Context(), tree); err != nil {
		r.t.Fatal(err)
	}
	return tree
}

// plan is what leads to what is wanted; nil is nothing.
func (r *receiver) plan(tree *hierarchy.Tree) []hierarchy.Step {
	r.t.Helper()
	old, want := hierarchy.State{Device: r.Name}, hierarchy.State{Device: r.Name}
	old.Set(standing(r.t, r.Receiver))
	want.Set(hierarchy.PortState{Port: r.Port()})
	if tree != nil {
		want = tree.State()
	}
	return hierarchy.Diff(old, want).Steps
}

// make carries out the plan and holds that the kernel then shows what was wanted.
func (r *receiver) make(tree *hierarchy.Tree) {
	r.t.Helper()
	steps := r.plan(tree)
	if n, err := r.Receiver.Do(r.t.Context(), steps); err != nil || n != len(steps) {
		r.t.Fatalf("%d of %d steps: %v", n, len(steps), err)
	}
	if left := r.plan(tree); len(left) > 0 {
		r.t.Fatalf("left to do: %v", left)
	}
}

// ifb is the interface that carries the tree.
func (r *receiver) ifb() *link.Link {
	r.t.Helper()
	l, err := link.FindIFB(r.conn, int(r.Device.Index))
	if err != nil {
		r.t.Fatal(err)
	}
	index, err := r.Receiver.Index()
	if err != nil {
		r.t.Fatal(err)
	}
	if l == nil && index != 0 || l != nil && int(index) != l.Index {
		r.t.Fatalf("index %d, and found: %v", index, l)
	}
	return l
}

func (r *receiver) run(args string) { r.t.Helper(); tctest.TC(r.t, r.net, strings.Fields(args)...) }

func (r *receiver) ip(args string) { r.t.Helper(); ip(r.t, r.net, args) }

func ip(t testing.TB, n *lab.NetNS, args string) string {
	t.Helper()
	return tctest.Output(t, n, "ip", strings.Fields(args)...)
}

// redirect has what arrives take the way through the tree, or no longer.
func (r *receiver) redirect(on bool) {
	r.t.Helper()
	if !on {
		r.run("qdisc delete dev " + r.Name + " ingress")
		return
	}
	r.run("qdisc add dev " + r.Name + " ingress")
	r.run("filter add dev " + r.Name + " ingress protocol ip pref 7 u32 match u32 0 0 action mirred egress redirect dev " + r.ifb().Name)
}

// arrive sends packets of 1,000 bytes on the wire to the interface.
func arrive(t testing.TB, p *lab.Pair, packets int) {
	t.Helper()
	const size = 1000 - 42
	if _, err := lab.Send(t.Context(), lab.Traffic{NetNS: p.Far, Protocol: "udp", To: netip.AddrPortFrom(p.Near4, 9), Size: size, Bytes: uint64(packets) * size}); err != nil {
		t.Fatal(err)
	}
}

func sink(t testing.TB, n *lab.NetNS) *lab.Sink {
	t.Helper()
	s, err := lab.NewSink(t.Context(), n, 9)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// TestKernelReceiver: the IFB comes and goes with the tree, is what it should be, and
// a packet counts on it as it counted where it was sent.
func TestKernelReceiver(t *testing.T) {
	far, p := func() (*bench, *lab.Pair) {
		_, p := veth(t)
		return open(t, p.Far, p.FarDev), p
	}()
	r := receiving(t, open(t, p.Near, p.Dev))
	// As an interface of a machine, not of a laboratory, which speaks by itself.
	if p.Near6.IsValid() {
		if err := p.Near.Do(func() error {
			return os.WriteFile("/proc/sys/net/ipv6/conf/default/addr_gen_mode", []byte("0"), 0)
		}); err != nil {
			t.Fatal(err)
		}
	}
	if s := standing(t, r.Receiver); s.Root.Ours() || r.ifb() != nil {
		t.Fatalf("before anything was made: %v", s)
	}
	if got, err := r.Receiver.Stats(); len(got) > 0 || err != nil {
		t.Errorf("counters of nothing: %v, %v", got, err)
	}
	tree := r.received(1*hierarchy.Gbit, leaf("a", 10*hierarchy.Mbit, "pfifo", "limit=1000"))
	r.make(tree)
	l := r.ifb()
	if l.Name != "vif-eth0" || l.Kind != "ifb" || l.TxQueues != 1 || l.TxQueueLen != 32 || !l.Up || l.MTU != 1500 || l.Receives != int(r.Device.Index) {
		t.Errorf("the ifb: %+v", l)
	}
	show := ip(t, p.Near, "-o link show dev vif-eth0")
	if want := fmt.Sprintf("alias vifshape: what ifindex %d receives", l.Receives); !strings.Contains(show, want) {
		t.Errorf("no %q in %s", want, show)
	}
	if addrs := ip(t, p.Near, "-o -6 addr show dev vif-eth0"); addrs != "" {
		t.Errorf("it has an address: %s", addrs)
	}

	out := far.tree(10*hierarchy.Gbit, leaf("a", 10*hierarchy.Mbit, "pfifo", "limit=1000"))
	far.apply(out)
	r.redirect(true)
	near := sink(t, p.Near)
	same := func() {
		t.Helper()
		here, there := stats(t, r, tree, "eth0"), far.stats(out, "far0")
		if here.Bytes != there.Bytes || here.Packets != there.Packets || here.Drops != 0 {
			t.Errorf("%d packets of %d bytes were sent, and %d of %d came through the tree, %d lost", there.Packets, there.Bytes, here.Packets, here.Bytes, here.Drops)
		}
		t.Logf("%d packets of %d bytes", there.Packets, there.Bytes)
	}
	arrive(t, p, 200)
	eventually(t, "all datagrams arrive", func() bool { return near.Count(9).Packets == 200 })
	if got := stats(t, r, tree, "eth0").Bytes; got != 200_000 {
		t.Errorf("200 datagrams of 1,000 bytes count %d bytes", got)
	}
	same()
	if _, err := lab.Send(t.Context(), lab.Traffic{NetNS: p.Far, Protocol: "tcp", To: netip.AddrPortFrom(p.Near4, 9), Bytes: 5_000_000}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all has passed both trees", func() bool {
		return stats(t, r, tree, "eth0").Bytes == far.stats(out, "far0").Bytes
	})
	same()
	if all, err := r.Receiver.LeafStats(); err != nil || len(all) != 2 {
		t.Errorf("counters of queues: %v, %v", all, err)
	}

	r.redirect(false)
	r.make(nil)
	if l := r.ifb(); l != nil {
		t.Errorf("left behind: %v", l)
	}
	if n, err := r.Receiver.Do(t.Context(), []hierarchy.Step{{Port: r.Port(), Action: hierarchy.Delete, Old: &hierarchy.Root{Kind: "htb", Handle: hierarchy.ID(0)}}}); n != 1 || err != nil {
		t.Errorf("taking away what is not there: %d, %v", n, err)
	}
}

// TestKernelReceiverMends: where the IFB is not as it should be a plan sees that, and
// puts it right without making another, to which nobody redirects.
func TestKernelReceiverMends(t *testing.T) {
	b, p := veth(t)
	r := receiving(t, b)
	tree := r.received(1*hierarchy.Gbit, leaf("a", 10*hierarchy.Mbit, "pfifo", "limit=100"))
	// Killed before the tree was made, or before the IFB was up.
	if _, _, err := link.EnsureIFB(b.conn, *linkOf(t, b)); err != nil {
		t.Fatal(err)
	}
	index := r.ifb().Index
	near := sink(t, p.Near)
	arrived := uint64(0)
	for i, spoil := range []func(){
		func() {},
		func() { r.ip("link set dev vif-eth0 down") },
		func() { r.ip("link set dev vif-eth0 txqueuelen 3") },
		func() { r.ip("link set dev vif-eth0 alias nothing down") },
		func() { r.run("qdisc delete dev vif-eth0 root") },
		func() { r.run("qdisc replace dev vif-eth0 root handle 5: tbf rate 1gbit burst 1mb limit 1mb") },
		func() { // which changes nothing
			r.ip("link set dev vif-eth0 down")
			r.ip("link set dev vif-eth0 name other0")
			r.ip("link set dev other0 up")
		},
	} {
		spoil()
		if missing := r.plan(tree); i < 6 && !slices.ContainsFunc(missing, func(s hierarchy.Step) bool {
			return s.Action == hierarchy.Create && s.Item().String() == "root qdisc htb 71f:"
		}) {
			t.Errorf("%d: the plan is %v", i, missing)
		}
		r.make(tree)
		if l := r.ifb(); l == nil || l.Index != index || !l.Sound() {
			t.Fatalf("%d: the ifb is %+v", i, l)
		}
		if i == 0 {
			r.redirect(true)
		}
		arrive(t, p, 20)
		arrived += 20
		eventually(t, "all arrive", func() bool { return near.Count(9).Packets == arrived })
	}
	// Gone, it is made again, and read as nothing in between.
	r.redirect(false)
	r.ip("link delete dev other0")
	if s := standing(t, r.Receiver); s.Root.Ours() {
		t.Errorf("without an ifb: %v", s)
	}
	var s hierarchy.State
	s.Set(tree.State().On(r.Port()))
	if err := r.Receiver.Reread(t.Context(), &s, []hierarchy.Step{{Port: r.Port(), Action: hierarchy.Change, New: &tree.Root.Class}}); err != nil || s.On(r.Port()).Root.Ours() {
		t.Errorf("read again without an ifb: %v, %v", s, err)
	}
	if n, err := r.Receiver.Do(t.Context(), []hierarchy.Step{{Port: r.Port(), Action: hierarchy.Create, New: &tree.Root.Class}}); n != 0 || err == nil || !strings.Contains(err.Error(), "eth0: create class 71f:1: its ifb is gone") {
		t.Errorf("a class without an ifb: %d, %v", n, err)
	}
	r.make(tree)
}

// linkOf reads the interface of a bench.
func linkOf(t testing.TB, b *bench) *link.Link {
	t.Helper()
	l, err := link.Find(b.conn, b.Name)
	if err != nil {
		t.Fatal(err)
	}
	return &l
}

// TestKernelReceiverFails: a tree that cannot be made leaves no IFB.
func TestKernelReceiverFails(t *testing.T) {
	b, _ := veth(t)
	r := receiving(t, b)
	k := hierarchy.Kernel{Device: "eth0", Parts: []hierarchy.Part{r.Receiver}}
	none, err := k.Read(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := r.received(1*hierarchy.Gbit, leaf("a", 10*hierarchy.Mbit, "pfifo", "limit=100")).State()
	want.Ports[0].Classes[1].Parent = hierarchy.ID(0x77)
	err = k.Apply(t.Context(), none, want, hierarchy.Diff(none, want))
	var failed *hierarchy.ApplyError
	if !errors.As(err, &failed) || failed.Undo != nil {
		t.Errorf("error %v", err)
	}
	if l := r.ifb(); l != nil {
		t.Errorf("left behind: %v", l)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if n, err := r.Receiver.Do(ended, r.plan(r.received(hierarchy.Gbit))); n != 0 || !errors.Is(err, context.Canceled) || r.ifb() != nil {
		t.Errorf("%d steps, %v, and the ifb is %v", n, err, r.ifb())
	}
	if err := link.NoIFB("eth0"); !errors.Is(err, rtnl.ErrNotSupported) || err.Error() != "eth0: make an interface of kind ifb (kernel module ifb): operation not supported" {
		t.Errorf("without ifb: %v", err)
	}
}

// TestKernelReceiverDrains: what waits when a tree is taken away is handed on, and what
// takes too long for that is told.
func TestKernelReceiverDrains(t *testing.T) {
	b, p := veth(t)
	r := receiving(t, b)
	near := sink(t, p.Near)
	// 1,000 bytes take 40 ms at the first rate, and a second at the other.
	for _, x := range []struct {
		rate hierarchy.Bandwidth
		lost bool
	}{{200 * hierarchy.Kbit, false}, {8 * hierarchy.Kbit, true}} {
		r.make(r.received(x.rate, leaf("rest", x.rate, "pfifo", "limit=100")))
		r.redirect(true)
		before := near.Count(9).Packets
		b.warnings = nil
		arrive(t, p, 20)
		r.redirect(false)
		r.make(nil)
		lost := uint64(0)
		if x.lost {
			if len(b.warnings) != 1 {
				t.Fatalf("told: %q", b.warnings)
			}
			if _, err := fmt.Sscanf(b.warnings[0], "eth0 (receive): vif-eth0 is removed with %d packets (", &lost); err != nil || lost == 0 {
				t.Errorf("told: %q (%v)", b.warnings, err)
			}
		} else if len(b.warnings) > 0 {
			t.Errorf("told: %q", b.warnings)
		}
		eventually(t, "what is not lost arrives", func() bool { return near.Count(9).Packets-before >= 20-lost })
		// One may be sent between the last look at the queue and its end.
		if got := near.Count(9).Packets - before; got != 20-lost && !(x.lost && got == 20-lost+1) {
			t.Errorf("%d of 20 packets arrived, and %d were said to be lost", got, lost)
		}
	}
}

// TestKernelReceiverForeign: interfaces of others are not touched, whatever they are
// called, and an IFB keeps its owner when that gets another name.
func TestKernelReceiverForeign(t *testing.T) {
	b, p := veth(t)
	r := receiving(t, b)
	other := tctest.NetNS(t)
	r.ip("link add name ifb0 type ifb")
	r.ip("link add name vif-eth0 type ifb")
	r.ip("link set dev vif-eth0 up alias vifshape:what")
	foreign := func() string { t.Helper(); return ip(t, p.Near, "-d -o link show") }
	before := foreign()
	r.make(r.received(hierarchy.Gbit))
	name := r.ifb().Name
	if name == "vif-eth0" || !strings.HasPrefix(name, "vif-eth0-") || len(name) > 15 {
		t.Errorf("the ifb is called %s", name)
	}
	r.make(nil)
	if d := cmp.Diff(before, foreign()); d != "" {
		t.Errorf("others' were changed (-before +after)\n%s", d)
	}

	// Names of every length, alike in front, each with its own.
	names := map[string]bool{}
	for _, n := range []string{"a", "elevenbytes", "twelve-bytes", "fifteen-bytes-1", "fifteen-bytes-2", "größe-größe"} {
		if err := lab.AddVeth(p.Near, lab.Link{Name: n}, other, lab.Link{Name: n}); err != nil {
			t.Fatal(err)
		}
		x := receiving(t, open(t, p.Near, n))
		x.make(x.received(hierarchy.Gbit))
		got := x.ifb().Name
		if len(got) > 15 || !strings.HasPrefix(got, "vif-") || names[got] || len(n) <= 11 && got != "vif-"+n {
			t.Errorf("the ifb of %s is called %s", n, got)
		}
		names[got] = true
		// Renamed, the interface still has it.
		x.ip("link set dev " + n + " down")
		x.ip("link set dev " + n + " name new")
		renamed := receiving(t, open(t, p.Near, "new"))
		if l := renamed.ifb(); l == nil || l.Name != got {
			t.Errorf("of %s, which was renamed: %v", n, l)
		}
		if s := standing(t, renamed.Receiver); !s.Root.Ours() || s.Port.Device != "new" {
			t.Errorf("on %s, which was renamed: %v", n, s)
		}
		renamed.make(nil)
		x.ip("link delete dev new")
	}
}

// TestKernelReceiverOrphans: an IFB whose interface has left the namespace is found, and
// no other.
func TestKernelReceiverOrphans(t *testing.T) {
	b, p := veth(t)
	other := tctest.NetNS(t)
	for _, l := range []string{"stays", "goes", "moves"} {
		if err := lab.AddVeth(p.Near, lab.Link{Name: l}, other, lab.Link{Name: l}); err != nil {
			t.Fatal(err)
		}
		x := receiving(t, open(t, p.Near, l))
		x.make(x.received(hierarchy.Gbit))
	}
	r := receiving(t, b)
	r.ip("link add name ifb0 type ifb")
	orphans := func(want ...string) {
		t.Helper()
		all, err := link.Orphans(b.conn)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, l := range all {
			got = append(got, l.Name)
		}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("orphans (-want +got)\n%s", d)
		}
	}
	orphans()
	r.ip("link delete dev goes")
	away := tctest.NetNS(t)
	r.ip(fmt.Sprintf("link set dev moves netns /proc/%d/fd/%d", os.Getpid(), away.FD()))
	orphans("vif-goes", "vif-moves")
	all, err := link.Orphans(b.conn)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // a second time they are gone already
		for _, l := range all {
			if err := link.RemoveIFB(b.conn, l); err != nil {
				t.Error(err)
			}
		}
	}
	orphans()
	if show := ip(t, p.Near, "-o link show"); !strings.Contains(show, "vif-stays") || !strings.Contains(show, "ifb0") {
		t.Errorf("more is gone: %s", show)
	}
}

// TestKernelReceiverLacks: a kernel without IFBs is told of before anything changes, with
// the module that it takes.
func TestKernelReceiverLacks(t *testing.T) {
	b, _ := veth(t)
	has := tctest.HasLink(t, "ifb")
	tree := resolve(t, hierarchy.Spec{Interface: b.Name, BranchSpec: hierarchy.BranchSpec{
		Rate: hierarchy.Absolute(hierarchy.Gbit), Ingress: &hierarchy.BranchSpec{Rate: hierarchy.Absolute(hierarchy.Gbit)}}}).Ingress
	r := b.Receiver()
	_, made := r.Do(t.Context(), []hierarchy.Step{{Port: r.Port(), Action: hierarchy.Create, New: &hierarchy.Root{Kind: "htb", Handle: hierarchy.ID(0)}}})
	for what, err := range map[string]error{"settle": r.Settle(t.Context(), tree), "make": made} {
		lacks := errors.Is(err, rtnl.ErrNotSupported) && strings.Contains(err.Error(), "kernel module ifb")
		if lacks == has || has && err != nil {
			t.Errorf("%s: there are IFBs: %v; %v", what, has, err)
		}
	}
	if s := standing(t, r); s.Root.Ours() != has {
		t.Errorf("%v", s)
	}
}
