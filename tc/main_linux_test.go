package tc_test

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

func TestMain(m *testing.M) {
	tctest.Main(m, tctest.Verbs{"readAndBeRefused": readAndBeRefused})
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
	return stats(b.t, b, tree, p)
}

// port is a part with a tree.
type port interface {
	hierarchy.Part
	hierarchy.Rereader
	Settle(context.Context, *hierarchy.Tree) error
	Stats() ([]tc.ClassStats, error)
}

// stats are the counters of one branch at a port.
func stats(t testing.TB, on port, tree *hierarchy.Tree, p hierarchy.Path) tc.ClassStats {
	t.Helper()
	all, err := on.Stats()
	if err != nil {
		t.Fatal(err)
	}
	id := tree.Find(p).ID
	i := slices.IndexFunc(all, func(s tc.ClassStats) bool { return s.Class == id })
	if i < 0 {
		t.Fatalf("%v: no counters of %s (%v)", on.Port(), p, id)
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
