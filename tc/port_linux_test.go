package tc_test

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// binder stands for the classifier and its bindings, which takes every step.
type binder struct {
	hierarchy.State
	ahead func() error         // is asked before a step is done
	then  func(hierarchy.Hook) // is told of a classifier that was put into place or taken away
}

func (*binder) Port() hierarchy.Port { return hierarchy.Port{} }

func (b *binder) Read(_ context.Context, s *hierarchy.State) error {
	s.Hook, s.Bound = b.Hook, b.Bound
	return nil
}

func (b *binder) Do(_ context.Context, steps []hierarchy.Step) (int, error) {
	for i, s := range steps {
		if err := b.ahead(); err != nil {
			return i, err
		}
		if h, ok := s.Item().(*hierarchy.Hook); ok {
			if b.Hook = *h; s.Action == hierarchy.Delete {
				b.Hook = hierarchy.Hook{}
			}
			b.then(b.Hook)
		}
	}
	return len(steps), nil
}

// TestKernelPorts holds that a tree for what an interface sends and one for what it
// receives, on an IFB, are made, changed, undone and taken away by one plan.
func TestKernelPorts(t *testing.T) {
	send, p := veth(t)
	tctest.RequireLink(t, "ifb")
	receive := send.Receiver()
	ports := []port{send.Device, receive}
	run := func(args string) { t.Helper(); tctest.TC(t, p.Near, strings.Fields(args)...) }

	var ids hierarchy.IDs
	trees := func(names ...string) (hierarchy.State, *hierarchy.Tree) {
		t.Helper()
		s := hierarchy.Spec{Interface: "eth0", BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(100 * hierarchy.Mbit),
			Ingress: &hierarchy.BranchSpec{Rate: hierarchy.Absolute(200 * hierarchy.Mbit)}}}
		for _, n := range names {
			x := leaf(n, 10*hierarchy.Mbit, "pfifo", "limit=1000")
			x.Ingress = leaf("", 10*hierarchy.Mbit, "pfifo", "limit=1000")
			s.Children = append(s.Children, x)
		}
		tree := resolve(t, s)
		if err := errors.Join(send.Settle(t.Context(), tree), receive.Settle(t.Context(), tree.Ingress)); err != nil {
			t.Fatal(err)
		}
		var err error
		if ids, err = ids.Assign(tree); err != nil {
			t.Fatal(err)
		}
		want := tree.State()
		want.Hook = hierarchy.Hook{Way: bind.WayBPF, Version: uint32(len(names))}
		return want, tree
	}
	both := func(ours bool) {
		t.Helper()
		for _, b := range ports {
			if got := standing(t, b).Root.Ours(); got != ours {
				t.Errorf("%v: there is a tree: %v", b.Port(), got)
			}
		}
	}
	classifier := &binder{then: func(h hierarchy.Hook) {
		if run("qdisc replace dev eth0 clsact"); h.Way == bind.WayNone {
			run("qdisc delete dev eth0 clsact")
		} else {
			run("filter replace dev eth0 ingress protocol ip pref 7 handle 800::800 u32 match u32 0 0 action mirred egress redirect dev vif-eth0")
		}
	}}
	k := hierarchy.Kernel{Device: "eth0", Parts: []hierarchy.Part{send.Device, receive, classifier}}
	read := func() hierarchy.State {
		t.Helper()
		s, err := k.Read(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}

	// From nothing: the classifier comes when both trees stand.
	none := read()
	want, tree := trees("a")
	classifier.ahead = func() error { both(true); return nil }
	if err := k.Apply(t.Context(), none, want, hierarchy.Diff(none, want)); err != nil {
		t.Fatal(err)
	}
	near, err := lab.NewSink(t.Context(), p.Near, 9)
	if err != nil {
		t.Fatal(err)
	}
	defer near.Close()
	far, err := lab.NewSink(t.Context(), p.Far, 9)
	if err != nil {
		t.Fatal(err)
	}
	defer far.Close()
	send.send(p, tree.Find("eth0/a").ID, 300)
	if _, err := lab.Send(t.Context(), lab.Traffic{NetNS: p.Far, Protocol: "udp", To: netip.AddrPortFrom(p.Near4, 9), Size: 1000, Bytes: 200_000}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all packets arrive", func() bool { return far.Count(9).Packets == 300 && near.Count(9).Packets == 200 })
	for _, x := range []struct {
		b    port
		tree *hierarchy.Tree
		path hierarchy.Path
		want uint64
	}{{send, tree, "eth0/a", 300}, {send, tree, "eth0", 300}, {receive, tree.Ingress, "eth0/rest", 200}, {receive, tree.Ingress, "eth0", 200}} {
		if got := stats(t, x.b, x.tree, x.path).Packets; got != x.want {
			t.Errorf("%v: %d packets went through %s, not %d", x.b.Port(), got, x.path, x.want)
		}
	}

	// A step that fails, of either port or of the classifier, is undone in both trees.
	before := read()
	want, tree = trees("b", "c")
	c := tree.Find("eth0/c").ID.String()
	no := errors.New("no such luck")
	for name, x := range map[string]struct {
		spoil func()
		why   string
	}{
		"send":       {func() { run("class add dev eth0 parent 71f:1 classid " + c + " htb rate 1mbit") }, "eth0/c: create class " + c + ": file exists"},
		"receive":    {func() { run("class add dev vif-eth0 parent 71f:1 classid " + c + " htb rate 1mbit") }, "eth0/c: on vif-eth0: create class " + c + ": file exists"},
		"classifier": {func() { classifier.ahead = func() error { classifier.ahead = func() error { return nil }; return no } }, no.Error()},
	} {
		t.Run(name, func(t *testing.T) {
			x.spoil()
			err := k.Apply(t.Context(), before, want, hierarchy.Diff(before, want))
			var failed *hierarchy.ApplyError
			if !errors.As(err, &failed) || failed.Undo != nil || !strings.Contains(err.Error(), x.why) {
				t.Errorf("error %v, want one with %q", err, x.why)
			}
			if d := cmp.Diff(before, read()); d != "" {
				t.Errorf("left behind (-before +after)\n%s", d)
			}
		})
	}

	// And without anything in its way it is carried out, and taken away.
	if err := k.Apply(t.Context(), before, want, hierarchy.Diff(before, want)); err != nil {
		t.Fatal(err)
	}
	before = read()
	if err := k.Apply(t.Context(), before, none, hierarchy.Diff(before, none)); err != nil {
		t.Fatal(err)
	}
	both(false)
	if d := cmp.Diff(none, read()); d != "" {
		t.Errorf("left behind (-before +after)\n%s", d)
	}
}
