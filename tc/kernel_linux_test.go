package tc_test

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

func TestMain(m *testing.M) { tctest.Main(m, nil) }

// bench is one shaped interface of a test.
type bench struct {
	*tc.Device
	t        testing.TB
	net      *lab.NetNS
	conn     *tc.Conn
	warnings []string
}

// open opens dev in n for the length of the test.
func open(t testing.TB, n *lab.NetNS, dev string) *bench {
	t.Helper()
	b := &bench{t: t, net: n}
	c, err := tc.Open(tc.Config{NetNS: n.FD(), Warn: func(s string) { b.warnings = append(b.warnings, s) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	b.conn = c
	if b.Device, err = c.Device(dev); err != nil {
		t.Fatal(err)
	}
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
	if err := b.Settle(t); err != nil {
		b.t.Fatal(err)
	}
	return t
}

// resolve is a tree with class ids, not settled.
func resolve(t testing.TB, s hierarchy.Spec) *hierarchy.Tree {
	t.Helper()
	tree, problems := hierarchy.Resolve(&s, tc.Kinds())
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

// apply makes the tree real and fails the test unless the kernel then shows it,
// value for value.
func (b *bench) apply(tree *hierarchy.Tree) {
	b.t.Helper()
	want := tree.State()
	plan := hierarchy.Diff(b.read(), want)
	n, err := b.Do(b.t.Context(), plan.Steps)
	if err != nil || n != len(plan.Steps) {
		b.t.Fatalf("%d of %d steps: %v", n, len(plan.Steps), err)
	}
	if d := cmp.Diff(bare(want), bare(b.read())); d != "" {
		b.t.Fatalf("state (-want +got)\n%s", d)
	}
}

// bare is a state without names, by class id.
func bare(s hierarchy.State) hierarchy.State {
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
	if s := b.read(); s.Root != (hierarchy.Root{}) || s.Classes != nil {
		t.Fatalf("untouched interface reads %+v", s)
	}
	prio := uint8(0)
	api := leaf("api", 100*hierarchy.Mbit, "pfifo", "limit=50")
	api.Prio, api.Burst, api.Quantum = &prio, 40000, 3000
	slow := leaf("slow", 10*hierarchy.Kbit, "bfifo")
	tree := b.treeOf(hierarchy.Spec{
		Interface: b.Name,
		Link:      hierarchy.LinkLayer{Overhead: 22, MPU: 64},
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
	root := b.read().Root
	if _, err := b.Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Delete, Old: &root}}); err != nil {
		t.Fatal(err)
	}
	if s := b.read(); s.Root != (hierarchy.Root{}) || s.Classes != nil || s.Leaves != nil {
		t.Errorf("after deletion: %+v", s)
	}
}

var _ = errors.Is
var _ = context.Background
var _ = netip.Addr{}
var _ = time.Now
var _ = unix.EPERM
