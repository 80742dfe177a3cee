package tc_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/foreign"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

func TestMain(m *testing.M) {
	tctest.Main(m, tctest.Programs{"unprivileged": unprivileged})
}

// bench is one shaped interface of a test.
type bench struct {
	*tc.Device
	*hook.Hooks
	t        testing.TB
	net      *lab.NetNS
	conn     *rtnl.Conn
	warnings []string
}

// open opens dev in n for the length of the test.
func open(t testing.TB, n *lab.NetNS, dev string) *bench {
	t.Helper()
	b := &bench{t: t, net: n}
	c, err := rtnl.Open(rtnl.Config{NetNS: n.FD(), Warn: func(s string) { b.warnings = append(b.warnings, s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	b.conn = c
	if b.Device, err = tc.Find(c, dev); err != nil {
		t.Fatal(err)
	}
	b.Hooks = hook.Of(b.Interface)
	return b
}

// veth is one end of a veth pair whose other end is far0 in a namespace of its own.
func veth(t testing.TB) (*bench, *lab.Pair) {
	t.Helper()
	p := tctest.New(t, lab.PairConfig{})
	return open(t, p.Near, p.Dev), p
}

// tree is a settled tree for the interface.
func (b *bench) tree(rate hierarchy.Bandwidth, children ...*hierarchy.BranchSpec) *hierarchy.Tree {
	b.t.Helper()
	return b.treeOf(hierarchy.Spec{Interface: b.Name, BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(rate), Children: children}})
}

func (b *bench) treeOf(s hierarchy.Spec) *hierarchy.Tree {
	b.t.Helper()
	t := resolve(b.t, s)
	if err := b.Settle(b.t.Context(), t); err != nil {
		b.t.Fatal(err)
	}
	return t
}

// resolve is a tree with class ids, not settled.
func resolve(t testing.TB, s hierarchy.Spec) *hierarchy.Tree {
	t.Helper()
	tree, problems := hierarchy.Resolve(&s, qdisc.Kinds())
	for _, p := range problems {
		if !p.Warning {
			t.Fatalf("%s: %s: %s", p.Path, p.Key, p.Text)
		}
	}
	if _, err := (hierarchy.IDs{}).Assign(tree); err != nil {
		t.Fatal(err)
	}
	return tree
}

func branch(name string, rate hierarchy.Bandwidth, children ...*hierarchy.BranchSpec) *hierarchy.BranchSpec {
	return &hierarchy.BranchSpec{Name: name, Rate: hierarchy.Absolute(rate), Children: children}
}

// leaf is a branch with a qdisc; params are "name=value", the value in quotes
// where the parameter wants them.
func leaf(name string, rate hierarchy.Bandwidth, kind string, params ...string) *hierarchy.BranchSpec {
	b := branch(name, rate)
	b.Qdisc = &hierarchy.RawQdisc{Kind: kind}
	for _, p := range params {
		name, text, _ := strings.Cut(p, "=")
		q := strings.HasPrefix(text, `"`)
		b.Qdisc.Params = append(b.Qdisc.Params, hierarchy.RawParam{Name: name, Text: strings.Trim(text, `"`), Quoted: q})
	}
	return b
}

func (b *bench) read() hierarchy.State {
	b.t.Helper()
	var s hierarchy.State
	if err := b.Read(b.t.Context(), &s); err != nil {
		b.t.Fatal(err)
	}
	return s
}

// stands is what is on the interface.
func (b *bench) stands() hierarchy.PortState {
	b.t.Helper()
	return b.read().On(b.Port())
}

// apply makes the tree real and fails the test unless the kernel then shows it,
// value for value.
func (b *bench) apply(tree *hierarchy.Tree) {
	b.t.Helper()
	want := tree.State()
	b.do(hierarchy.Diff(b.read(), want).Steps...)
	if d := cmp.Diff(bare(want), bare(b.read())); d != "" {
		b.t.Fatalf("state (-want +got)\n%s", d)
	}
}

// do carries out steps and fails the test when one fails.
func (b *bench) do(steps ...hierarchy.Step) {
	b.t.Helper()
	if n, err := b.Do(b.t.Context(), steps); err != nil || n != len(steps) {
		b.t.Fatalf("%d of %d steps: %v", n, len(steps), err)
	}
}

// stats are the counters of one branch.
func (b *bench) stats(tree *hierarchy.Tree, p hierarchy.Path) tc.ClassStats {
	b.t.Helper()
	all, err := b.Stats()
	if err != nil {
		b.t.Fatal(err)
	}
	id := tree.Find(p).ID
	i := slices.IndexFunc(all, func(s tc.ClassStats) bool { return s.Class == id })
	if i < 0 {
		b.t.Fatalf("no counters of %s (%v)", p, id)
	}
	return all[i]
}

// into makes the packets of a socket belong to a class: HTB takes a priority
// that is a class id before it looks at any filter.
func into(class hierarchy.ClassID) func(fd int) error {
	return func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, int(class)) }
}

// send sends datagrams of 1,000 bytes on the wire into a branch.
func (b *bench) send(p *lab.Pair, class hierarchy.ClassID, packets int) {
	b.t.Helper()
	const size = 1000 - 42
	_, err := lab.Send(b.t.Context(), lab.Traffic{
		NetNS: p.Near, Protocol: "udp", To: netip.AddrPortFrom(p.Far4, 9), Size: size, Bytes: uint64(packets) * size, Control: into(class),
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// eventually waits for a condition, a minute at most.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("did not come about: %s", what)
		}
	}
}

// bare is what stands on the one port of a state, without names, by class id.
func bare(state hierarchy.State) hierarchy.PortState {
	s := state.Ports[0]
	s.Classes, s.Leaves = slices.Clone(s.Classes), slices.Clone(s.Leaves)
	for i := range s.Classes {
		s.Classes[i].Path = ""
	}
	for i := range s.Leaves {
		s.Leaves[i].Path = ""
	}
	slices.SortFunc(s.Classes, func(a, b hierarchy.Class) int { return int(a.ID) - int(b.ID) })
	slices.SortFunc(s.Leaves, func(a, b hierarchy.Leaf) int { return int(a.Class) - int(b.Class) })
	return s
}

func TestKernelApply(t *testing.T) {
	b, p := veth(t)
	if s := b.stands(); s.Root != (hierarchy.Root{}) || s.Classes != nil {
		t.Fatalf("untouched interface reads %+v", s)
	}
	prio := uint8(0)
	api := leaf("api", 100*hierarchy.Mbit, "pfifo", "limit=50")
	api.Prio, api.Burst, api.Quantum = &prio, 40000, 3000
	slow := leaf("slow", 10*hierarchy.Kbit, "bfifo")
	tree := b.treeOf(hierarchy.Spec{
		Interface: b.Name,
		Line:      hierarchy.Line{Overhead: 36, MPU: 64}, // Ethernet's 14 are counted already
		BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(100 * hierarchy.Gbit), Children: []*hierarchy.BranchSpec{
			branch("fast", 50*hierarchy.Gbit),
			branch("web", 500*hierarchy.Mbit, api, branch("static", 300*hierarchy.Mbit+7)),
			slow,
			leaf("tbf", 20*hierarchy.Mbit, "tbf", `rate="15mbit"`, `latency="30ms"`),
			leaf("peak", 20*hierarchy.Mbit, "tbf", `rate="10mbit"`, `peakrate="12mbit"`, `limit="1mib"`, "overhead=4", `mpu="64b"`, `linklayer="atm"`),
			leaf("wide", 40*hierarchy.Gbit, "tbf", `rate="36gbit"`, `peakrate="39gbit"`),
		}},
	})
	b.apply(tree)
	if len(b.warnings) != 0 {
		t.Errorf("warnings: %q", b.warnings)
	}

	// What tc, which shares no code with us, says about the same classes.
	byID := map[string]tctest.TCClass{}
	for _, c := range tctest.TCClasses(t, p.Near, p.Dev) {
		byID[c.ID] = c
	}
	type class struct{ Parent, Leaf, Rate, Ceil, Overhead string }
	want, got := map[hierarchy.Path]class{}, map[hierarchy.Path]class{}
	for _, x := range []struct {
		path       hierarchy.Path
		rate, ceil string
	}{
		{"eth0", "100Gbit", "100Gbit"},
		{"eth0/fast", "50Gbit", "100Gbit"},
		{"eth0/web", "500Mbit", "100Gbit"},
		{"eth0/web/api", "100Mbit", "100Gbit"},
		{"eth0/web/static", "300Mbit", "100Gbit"},
		{"eth0/slow", "10Kbit", "100Gbit"},
	} {
		br := tree.Find(x.path)
		w := class{Parent: br.Parent.String(), Rate: x.rate, Ceil: x.ceil, Overhead: "22"}
		if br.Leaf() {
			w.Leaf = fmt.Sprintf("%x:", br.ID.Minor())
		}
		if br == tree.Root {
			w.Parent = "root"
		}
		want[x.path] = w
		c := byID[br.ID.String()]
		got[x.path] = class{c.Parent, c.Leaf, c.Options["rate"], c.Options["ceil"], c.Options["overhead"]}
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("tc class show (-want +got)\n%s", d)
	}

	// The same policy again is nothing to do; without the tree all is as before.
	if plan := hierarchy.Diff(b.read(), tree.State()); !plan.Empty() {
		t.Errorf("second plan is not empty: %v", plan.Steps)
	}
	root := b.stands().Root
	b.do(hierarchy.Step{Action: hierarchy.Delete, Old: &root})
	if s := b.stands(); s.Root != (hierarchy.Root{}) || s.Classes != nil || s.Leaves != nil {
		t.Errorf("after deletion: %+v", s)
	}
}

// Packets of a socket go where its priority says, all of them, at the rate of
// the branch; those of no branch go to the rest.
func TestKernelShapes(t *testing.T) {
	b, p := veth(t)
	tree := b.tree(100*hierarchy.Mbit, &hierarchy.BranchSpec{
		Name: "slow", Rate: hierarchy.Absolute(8 * hierarchy.Mbit), Ceil: hierarchy.Absolute(8 * hierarchy.Mbit), Burst: 10000, CBurst: 10000,
		Qdisc: &hierarchy.RawQdisc{Kind: "bfifo", Params: []hierarchy.RawParam{{Name: "limit", Text: "1mb", Quoted: true}}},
	})
	b.apply(tree)
	sink, err := lab.NewSink(t.Context(), p.Far, 9)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	start := time.Now()
	b.send(p, tree.Find("eth0/slow").ID, 500)
	b.send(p, 0, 10)
	eventually(t, "all packets arrive", func() bool { return sink.Count(9).Packets == 510 })
	took := time.Since(start)
	type counts struct{ Bytes, Packets uint64 }
	got := map[hierarchy.Path]counts{}
	for br := range tree.All() {
		s := b.stats(tree, br.Path)
		got[br.Path] = counts{s.Bytes, s.Packets}
	}
	want := map[hierarchy.Path]counts{"eth0": {510_000, 510}, "eth0/slow": {500_000, 500}, "eth0/rest": {10_000, 10}}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("counters (-want +got)\n%s", d)
	}
	// 490 kB beyond the burst at 1 MB/s; the bound above is for a busy machine.
	if took < 480*time.Millisecond || took > 5*time.Second {
		t.Errorf("500 kB at 8 Mbit/s took %v", took)
	}
	leaves, err := b.LeafStats()
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(leaves, func(s tc.LeafStats) bool { return s.Class == tree.Find("eth0/slow").ID })
	if i < 0 || leaves[i].Kind != "bfifo" || leaves[i].Packets != 500 {
		t.Errorf("counters of the leaf qdisc: %+v", leaves)
	}
}

// stuffed is an interface with a branch whose leaf is all but closed and has 20
// packets in its queue.
func stuffed(t *testing.T, kind string) (*bench, *lab.Pair, func(rate hierarchy.Bandwidth, limit string) *hierarchy.Tree) {
	b, p := veth(t)
	tree := func(rate hierarchy.Bandwidth, limit string) *hierarchy.Tree {
		x := leaf("x", rate, kind, "limit="+limit)
		x.Ceil, x.Burst, x.CBurst = hierarchy.Absolute(rate), 1000, 1000
		return b.tree(100*hierarchy.Mbit, x)
	}
	limit := "100"
	if kind == "bfifo" {
		limit = `"100kb"`
	}
	slow := tree(8*hierarchy.Kbit, limit)
	b.apply(slow)
	b.send(p, slow.Find("eth0/x").ID, 22) // one within the burst, one on credit
	if s := b.stats(slow, "eth0/x"); s.QLen < 18 {
		t.Fatalf("queue is not full: %+v", s)
	}
	return b, p, tree
}

func TestKernelChangeKeepsBacklog(t *testing.T) {
	b, _, tree := stuffed(t, "bfifo")
	slow := tree(8*hierarchy.Kbit, `"100kb"`)
	before := b.stats(slow, "eth0/x")
	next := tree(16*hierarchy.Kbit, `"90kb"`)
	plan := hierarchy.Diff(b.read(), next.State())
	for _, s := range plan.Steps {
		if s.Action != hierarchy.Change {
			t.Errorf("plan has %v", s)
		}
	}
	b.apply(next)
	after := b.stats(next, "eth0/x")
	if after.QLen+2 < before.QLen || after.Packets < before.Packets || after.Drops != before.Drops {
		t.Errorf("before %+v, after %+v", before, after)
	}
	// Another kind is another queue.
	other := tree(16*hierarchy.Kbit, `"90kb"`)
	other.Find("eth0/x").Qdisc = hierarchy.Qdisc{Kind: "pfifo", Params: []hierarchy.Setting{{Name: "limit", Value: 7}}}
	b.apply(other)
	if s := b.stats(other, "eth0/x"); s.QLen != 0 {
		t.Errorf("after a change of kind: %+v", s)
	}
}

func TestKernelDeleteDrains(t *testing.T) {
	b, p, tree := stuffed(t, "bfifo")
	sink, err := lab.NewSink(t.Context(), p.Far, 9)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	fast := tree(2*hierarchy.Mbit, `"100kb"`)
	b.apply(fast)
	queued := uint64(b.stats(fast, "eth0/x").QLen)
	b.apply(b.tree(100 * hierarchy.Mbit))
	eventually(t, "what was queued arrives", func() bool { return sink.Count(9).Packets >= queued })
	if len(b.warnings) != 0 {
		t.Errorf("warnings: %q", b.warnings)
	}
}

func TestKernelDeleteGivesUp(t *testing.T) {
	b, _, tree := stuffed(t, "bfifo")
	slow := tree(8*hierarchy.Kbit, `"100kb"`)
	queued := b.stats(slow, "eth0/x")
	x := slow.Find("eth0/x")

	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if n, err := b.Do(ctx, []hierarchy.Step{{Action: hierarchy.Delete, Old: &x.Class}}); n != 0 || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a deadline: %d, %v", n, err)
	}
	b.do(hierarchy.Step{Action: hierarchy.Delete, Old: &x.Class})
	if len(b.warnings) != 1 || !strings.HasPrefix(b.warnings[0], "eth0/x: class "+x.ID.String()+" is deleted with ") {
		t.Errorf("warnings %q with %d packets queued", b.warnings, queued.QLen)
	}
}

// The step that failed is told, and what came before it stands.
func TestKernelBatchError(t *testing.T) {
	b, _ := veth(t)
	b.apply(b.tree(10 * hierarchy.Gbit))
	class := func(minor, parent uint16) *hierarchy.Class {
		return &hierarchy.Class{
			ID: hierarchy.ID(minor), Parent: hierarchy.ID(parent), Path: hierarchy.Path(fmt.Sprintf("eth0/%x", minor)),
			Rate: hierarchy.Mbit, Ceil: hierarchy.Mbit, Burst: 10000, CBurst: 10000, Quantum: 1514,
		}
	}
	create := func(i hierarchy.Item) hierarchy.Step { return hierarchy.Step{Action: hierarchy.Create, New: i} }
	pfifo := func(minor uint16) *hierarchy.Leaf {
		return &hierarchy.Leaf{Class: hierarchy.ID(minor), Path: "eth0/leaf", Qdisc: hierarchy.Qdisc{Kind: "pfifo", Params: []hierarchy.Setting{{Name: "limit", Value: 1}}}}
	}
	many := func(n int) (steps []hierarchy.Step) {
		for i := range n {
			steps = append(steps, create(class(uint16(0x1000+i), 1)))
		}
		return steps
	}
	deep := []hierarchy.Step{}
	for i := range uint16(8) {
		parent := 0x100 + i - 1
		if i == 0 {
			parent = 1
		}
		deep = append(deep, create(class(0x100+i, parent)))
	}
	tooMuch := class(0x21, 1)
	tooMuch.Burst = 1 << 40
	for _, tt := range []struct {
		name  string
		steps []hierarchy.Step
		done  int
		want  string // what an older kernel says; a newer one may add its reasons
		err   error
	}{
		{"exists", []hierarchy.Step{create(class(0x20, 1)), create(class(1, 0)), create(class(0x21, 1))}, 1,
			"eth0/1: create class 71f:1: file exists", unix.EEXIST},
		{"too deep", deep, 7, "eth0/107: create class 71f:107: invalid argument", unix.EINVAL},
		{"beyond a batch", append(many(500), create(class(1, 0)), create(class(0x20, 1))), 500, "eth0/1: create class 71f:1: file exists", unix.EEXIST},
		{"qdisc of an inner class", []hierarchy.Step{create(class(0x20, 1)), create(pfifo(0x20)), create(pfifo(1))}, 2,
			"eth0/leaf: create qdisc pfifo of class 71f:1: invalid argument", unix.EINVAL},
		{"not to be encoded", []hierarchy.Step{create(class(0x20, 1)), create(tooMuch), create(class(0x22, 1))}, 1,
			"eth0/21: create class 71f:21: burst 1024gib is more than the kernel can count at 1mbit: at most 34359738b", nil},
		{"changed and not there", []hierarchy.Step{{Action: hierarchy.Change, Old: class(0x20, 1), New: class(0x20, 1)}}, 0,
			"eth0/20: change class 71f:20: no such file or directory", unix.ENOENT},
		{"in use", []hierarchy.Step{create(class(0x20, 1)), create(class(0x21, 0x20)), {Action: hierarchy.Delete, Old: class(0x20, 1)}}, 2,
			"eth0/20: delete class 71f:20: device or resource busy", unix.EBUSY},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := b.read()
			n, err := b.Do(t.Context(), tt.steps)
			if n != tt.done || err == nil || !strings.HasPrefix(err.Error(), tt.want) || tt.err != nil && !errors.Is(err, tt.err) {
				t.Errorf("%d done, %v\nwant %d, %s", n, err, tt.done, tt.want)
			}
			have := map[hierarchy.ClassID]bool{}
			for _, c := range b.stands().Classes {
				have[c.ID] = true
			}
			for i, s := range tt.steps[:n] {
				if c, ok := s.New.(*hierarchy.Class); ok && !have[c.ID] {
					t.Errorf("step %d was done, and %v is not there", i, c.ID)
				}
			}
			b.do(hierarchy.Diff(b.read(), before).Steps...)
			if d := cmp.Diff(bare(before), bare(b.read())); d != "" {
				t.Errorf("not back at the start (-want +got)\n%s", d)
			}
		})
	}
}

// What others have in the namespace, on our interface too, is no obstacle.
func TestKernelForeignQdiscs(t *testing.T) {
	b, p := veth(t)
	if err := p.Near.AddLink(lab.Link{Name: "ifb0", Kind: "ifb"}); err != nil {
		t.Fatal(err)
	}
	run := func(args string) { tctest.TC(t, p.Near, strings.Fields(args)...) }
	run("qdisc add dev ifb0 root handle 71f: htb default 10")
	run("class add dev ifb0 parent 71f: classid 71f:77 htb rate 40gbit")
	run("qdisc add dev ifb0 parent 71f:77 handle 5: tbf rate 40gbit burst 1mb limit 1mb")
	run("qdisc add dev eth0 ingress")
	tree := b.tree(hierarchy.Gbit, branch("x", hierarchy.Mbit), branch("y", hierarchy.Mbit))
	b.apply(tree)
	x, y := tree.Find("eth0/x"), tree.Find("eth0/y")
	run(fmt.Sprintf("qdisc replace dev eth0 parent %v handle 9: htb default 1", x.ID))
	run("class add dev eth0 parent 9: classid 9:1 htb rate 1mbit")
	run("qdisc add dev eth0 parent 9:1 handle 10: pfifo_head_drop limit 5")
	run(fmt.Sprintf("qdisc replace dev eth0 parent %v handle 11: pfifo_head_drop limit 5", y.ID))

	want := tree.State()
	leaves := want.Ports[0].Leaves
	for i, l := range leaves {
		switch l.Class {
		case x.ID:
			leaves[i].Qdisc = hierarchy.Qdisc{Kind: "htb"}
		case y.ID:
			leaves[i].Qdisc = hierarchy.Qdisc{Kind: "pfifo_head_drop", Params: []hierarchy.Setting{{Name: "limit", Value: 5}}}
		}
	}
	if d := cmp.Diff(bare(want), bare(b.read())); d != "" {
		t.Fatalf("state (-want +got)\n%s", d)
	}
	if s, err := b.Stats(); err != nil || len(s) != 4 {
		t.Errorf("counters of %d classes, %v", len(s), err)
	}
	b.apply(tree) // and what was put into our leaves goes
	if kinds := rootKinds(t, p, "ifb0"); !slices.Equal(kinds, []string{"htb"}) {
		t.Errorf("root of ifb0: %v", kinds)
	}
}

// rootKinds are the kinds of the root qdiscs of an interface, as tc sees them.
func rootKinds(t *testing.T, p *lab.Pair, dev string) (kinds []string) {
	t.Helper()
	type qdisc struct {
		Kind string
		Root bool
	}
	for _, q := range tctest.TCJSON[qdisc](t, p.Near, "qdisc", "show", "dev", dev) {
		if q.Root {
			kinds = append(kinds, q.Kind)
		}
	}
	return kinds
}

func TestKernelForeignRoot(t *testing.T) {
	b, p := veth(t)
	run := func(args string) { tctest.TC(t, p.Near, strings.Fields(args)...) }
	show := func() string { return tctest.TC(t, p.Near, "qdisc", "show", "dev", "eth0", "root") }
	run("qdisc add dev eth0 root handle 8: tbf rate 10mbit burst 20kb limit 100kb")
	tbf := show()

	found := b.read()
	if want := (hierarchy.Root{Kind: "tbf", Handle: 8 << 16}); found.Ports[0].Root != want || found.Ports[0].Classes != nil {
		t.Fatalf("read %+v", found)
	}
	tree := b.tree(hierarchy.Gbit)
	ours := tree.State().Ports[0]
	const refusal = `eth0: root qdisc tbf 8: is not made by vifshape: set replace = true for the interface, or remove it with "tc qdisc del dev eth0 root"`
	for _, old := range []hierarchy.Item{nil, &hierarchy.Root{Kind: "tbf", Handle: 9 << 16}} {
		s := hierarchy.Step{Action: hierarchy.Create, New: &ours.Root}
		if old != nil {
			s.Action, s.Old = hierarchy.Change, old
		}
		if n, err := b.Do(t.Context(), []hierarchy.Step{s}); n != 0 || !errors.Is(err, rtnl.ErrForeign) || err.Error() != refusal {
			t.Errorf("%v: %d, %v", s, n, err)
		}
	}
	former, err := foreign.Root(b.Interface)
	if err != nil || former.Partial || former.Kind != "tbf" {
		t.Fatalf("former %+v, %v", former, err)
	}

	// Replaced and put back by the same Device.
	b.apply(tree)
	b.do(hierarchy.Diff(b.read(), found).Steps...)
	if got := show(); got != tbf {
		t.Errorf("put back: %q, was %q", got, tbf)
	}
	// By another, from what was kept.
	b.apply(tree)
	again := open(t, p.Near, "eth0")
	if err := foreign.Restore(again.Interface, former); err != nil {
		t.Fatal(err)
	}
	if got := show(); got != tbf {
		t.Errorf("restored: %q, was %q", got, tbf)
	}
	if err := foreign.Restore(again.Interface, former); !errors.Is(err, rtnl.ErrForeign) {
		t.Errorf("restoring over a foreign qdisc: %v", err)
	}

	// One with classes cannot come back.
	run("qdisc replace dev eth0 root handle 9: htb")
	run("class add dev eth0 parent 9: classid 9:1 htb rate 1mbit")
	if former, err = foreign.Root(b.Interface); err != nil || !former.Partial || former.Kind != "htb" {
		t.Errorf("former %+v, %v", former, err)
	}
	b.apply(tree)
	if err := foreign.Restore(b.Interface, former); err == nil {
		t.Error("htb with classes was restored")
	}
	if err := foreign.Restore(b.Interface, foreign.Former{}); err != nil {
		t.Error(err)
	}
	if root := b.stands().Root; root != (hierarchy.Root{}) {
		t.Errorf("left: %+v", root)
	}
	// Our handle, and not our doing.
	run("qdisc add dev eth0 root handle 71f: htb default 30")
	var s hierarchy.State
	if err := b.Read(t.Context(), &s); !errors.Is(err, rtnl.ErrForeign) {
		t.Errorf("htb with another default class: %v", err)
	}
}

func TestKernelGone(t *testing.T) {
	b, p := veth(t)
	tree := b.tree(hierarchy.Gbit, branch("x", hierarchy.Mbit))
	b.apply(tree)
	if err := p.Near.DeleteLink("eth0"); err != nil {
		t.Fatal(err)
	}
	// The same name is not the same interface.
	if err := p.Near.AddLink(lab.Link{Name: "eth0", Kind: "ifb"}); err != nil {
		t.Fatal(err)
	}
	var s hierarchy.State
	state := tree.State().Ports[0]
	for name, call := range map[string]func() error{
		"Read":      func() error { return b.Read(t.Context(), &s) },
		"Settle":    func() error { return b.Settle(t.Context(), tree) },
		"Stats":     func() error { _, err := b.Stats(); return err },
		"LeafStats": func() error { _, err := b.LeafStats(); return err },
		"Do class": func() error {
			_, err := b.Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Create, New: &state.Classes[0]}})
			return err
		},
		"Do root": func() error {
			_, err := b.Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Create, New: &state.Root}})
			return err
		},
	} {
		if err := call(); !errors.Is(err, rtnl.ErrGone) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestKernelNoDevice(t *testing.T) {
	_, p := veth(t)
	b := open(t, p.Near, "eth0")
	for name, want := range map[string]string{
		"eht0":                           "eht0: no such interface: did you mean eth0?",
		"eth0@if7":                       "eth0@if7: no such interface: did you mean eth0?",
		"wlp0s20f3":                      "wlp0s20f3: no such interface",
		"a-name-that-is-longer-than-any": "a-name-that-is-longer-than-any: no such interface",
		"":                               ": no such interface",
	} {
		_, err := tc.Find(b.conn, name)
		var no *link.NotFoundError
		if !errors.As(err, &no) || err.Error() != want {
			t.Errorf("%q: %v, want %s", name, err, want)
		}
	}
}

// An interface that was never up, and one whose queue the kernel made of parts.
func TestKernelRoots(t *testing.T) {
	n := tctest.NetNS(t)
	for _, l := range []lab.Link{{Name: "down0", Kind: "ifb", Down: true}, {Name: "multi0", Kind: "ifb", Queues: 4}, {Name: "br0", Kind: "bridge"}} {
		t.Run(l.Name, func(t *testing.T) {
			if l.Kind != "ifb" {
				tctest.RequireLink(t, l.Kind)
			}
			if err := n.AddLink(l); err != nil {
				t.Fatal(err)
			}
			b := open(t, n, l.Name)
			if root := b.stands().Root; root != (hierarchy.Root{}) {
				t.Errorf("untouched: %+v", root)
			}
			b.apply(b.tree(hierarchy.Gbit, branch("x", hierarchy.Mbit)))
			if _, err := b.Do(t.Context(), hierarchy.Diff(b.read(), hierarchy.State{}).Steps); err != nil {
				t.Fatal(err)
			}
			if root := b.stands().Root; root != (hierarchy.Root{}) {
				t.Errorf("cleared: %+v", root)
			}
		})
	}
}

// unprivileged is run by nobody in a namespace with a tree on eth0.
func unprivileged([]string) error {
	c, err := rtnl.Open(rtnl.Config{})
	if err != nil {
		return err
	}
	defer c.Close()
	d, err := tc.Find(c, "eth0")
	if err != nil {
		return err
	}
	var s hierarchy.State
	if err := d.Read(context.Background(), &s); err != nil {
		return err
	}
	stats, err := d.Stats()
	if err != nil {
		return err
	}
	is := s.On(d.Port())
	if len(is.Classes) != 3 || len(stats) != 3 {
		return fmt.Errorf("read %d classes, counters of %d", len(is.Classes), len(stats))
	}
	// A plan can be made, from what is known of the kernel's modules.
	plan := &hierarchy.Tree{Root: &hierarchy.Branch{Class: hierarchy.Class{Rate: 8, Ceil: 8}}}
	if err := d.Settle(context.Background(), plan); err != nil || plan.Root.Qdisc.Kind == "" {
		return fmt.Errorf("settle: %+v, %v", plan.Root, err)
	}
	for what, err := range map[string]error{
		"change root": second(d.Do(context.Background(), []hierarchy.Step{{Action: hierarchy.Delete, Old: &is.Root}})),
		"change class": second(d.Do(context.Background(), []hierarchy.Step{
			{Action: hierarchy.Change, Old: &is.Classes[2], New: &is.Classes[2]},
		})),
		"detach": hook.Of(d.Interface).DetachEgress(),
		"attach": hook.Of(d.Interface).AttachEgress(0, "x"),
	} {
		if what == "detach" && err == nil {
			continue // nothing to detach
		}
		if !errors.Is(err, rtnl.ErrNotPrivileged) || !strings.HasSuffix(err.Error(), "(needs root or CAP_NET_ADMIN)") {
			return fmt.Errorf("%s: %v", what, err)
		}
	}
	return nil
}

func second(_ int, err error) error { return err }

func TestKernelUnprivileged(t *testing.T) {
	b, p := veth(t)
	b.apply(b.tree(hierarchy.Gbit, branch("x", hierarchy.Mbit)))
	cmd := tctest.Command(t, "unprivileged")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	// The test binary lies in a directory that is root's alone.
	self, err := os.Open(cmd.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer self.Close()
	cmd.Path, cmd.ExtraFiles = "/proc/self/fd/3", []*os.File{self}
	if err := p.Near.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
}

// Asking what the kernel has changes nothing.
func TestKernelSettleTouchesNothing(t *testing.T) {
	b, p := veth(t)
	show := func() string { return tctest.TC(t, p.Near, "qdisc", "show") }
	before := show()
	tree := resolve(t, hierarchy.Spec{Interface: "eth0", BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(hierarchy.Gbit)}})
	for range 2 {
		if err := b.Settle(t.Context(), tree); err != nil {
			t.Fatal(err)
		}
		if after := show(); after != before {
			t.Fatalf("%q, was %q", after, before)
		}
		b.apply(tree)
		before = show()
	}
	bad := resolve(t, hierarchy.Spec{
		Interface:  "eth0",
		BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(hierarchy.Gbit), Children: []*hierarchy.BranchSpec{leaf("x", hierarchy.Mbit, "pfifo")}},
	})
	bad.Find("eth0/x").Qdisc.Kind = "none"
	bad.Line.Layer = "pppoa-vcmux"
	err := b.Settle(t.Context(), bad)
	if !errors.Is(err, rtnl.ErrNotSupported) || !strings.Contains(err.Error(), `eth0/x: qdisc "none" is not supported by this kernel: use `) || !strings.Contains(err.Error(), `eth0: overhead 10 of linklayer "pppoa-vcmux" is less than the 14 bytes of header`) {
		t.Errorf("refusal: %v", err)
	}
}
