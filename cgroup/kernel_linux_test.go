package cgroup_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/netcls"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// place is a cgroup hierarchy as a test uses it.
type place struct {
	mount string // of the hierarchy
	dir   string // of the test's own cgroup
}

// newPlace makes a cgroup where the way looks for it.
func newPlace(t testing.TB, way bind.Way) place {
	t.Helper()
	if v2(way) {
		return place{tctest.Cgroup2Mount(t), tctest.Cgroup(t)}
	}
	dir := tctest.NetCls(t)
	return place{filepath.Dir(dir), dir}
}

// v2 says whether a way goes by cgroup v2.
func v2(w bind.Way) bool { return w == bind.WayBPF || w == bind.WayNft }

func (p place) target(dir string) string { return "cgroup:" + strings.TrimPrefix(dir, p.mount) }

// require skips the test where the kernel lacks the way.
func require(t testing.TB, way bind.Way) {
	t.Helper()
	tctest.RequireRoot(t)
	err := report(t, way).Err
	tctest.Require(t, !errors.Is(err, caps.ErrNotSupported), fmt.Sprintf("binding %s (%v)", way, err))
}

// ways are those to test here: not cgroup v2 in one of the guests, with v1 alone,
// where TestKernelNotMounted goes on.
func ways(t testing.TB) []bind.Way {
	t.Helper()
	all := []bind.Way{bind.WayBPF, bind.WayNft, bind.WayNetCls, bind.WayNetClsNft, bind.WayClsCgroup}
	if vm.Inside() && !mountsV2(t) {
		return slices.DeleteFunc(all, v2)
	}
	return all
}

// report is what is known of a way here.
func report(t testing.TB, way bind.Way) cgroup.WayReport {
	t.Helper()
	for _, w := range cgroup.Probe().Ways {
		if w.Way == way {
			return w
		}
	}
	t.Fatalf("no report of way %s", way)
	return cgroup.WayReport{}
}

// mountsV2 says whether the machine mounts cgroup v2.
func mountsV2(t testing.TB) bool {
	t.Helper()
	all, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		t.Fatal(err)
	}
	return len(all) > 0
}

// exact are those of ways that overwrite whatever a socket asks for.
func exact(t testing.TB) []bind.Way {
	t.Helper()
	return slices.DeleteFunc(ways(t), func(w bind.Way) bool { return w == bind.WayClsCgroup })
}

// apply goes from what is there to the given bindings.
func apply(t testing.TB, b *cgroup.Binder, bound ...hierarchy.Bound) {
	t.Helper()
	want := hierarchy.State{Device: "eth0", Bound: bound}
	var err error
	if want.Hook, err = b.Hook(0); err != nil {
		t.Fatal(err)
	}
	converge(t, b, want)
}

// converge carries out the plan to want and checks that none is left after it.
func converge(t testing.TB, b *cgroup.Binder, want hierarchy.State) {
	t.Helper()
	steps := classifier(hierarchy.Diff(read(t, b), want))
	if done, err := b.Do(t.Context(), steps); err != nil || done != len(steps) {
		t.Fatalf("%d of %d steps done: %v", done, len(steps), err)
	}
	now := read(t, b)
	if left := classifier(hierarchy.Diff(now, want)); len(left) != 0 {
		t.Fatalf("left to do: %v\nstate: %+v", left, now)
	}
}

// classifier leaves out the step that removes the root qdisc.
func classifier(p hierarchy.Plan) []hierarchy.Step {
	return slices.DeleteFunc(p.Steps, func(s hierarchy.Step) bool {
		_, root := s.Item().(*hierarchy.Root)
		return root
	})
}

// read is the binder's state with a root of ours, so that a difference is one of
// the classifier's.
func read(t testing.TB, b *cgroup.Binder) hierarchy.State {
	t.Helper()
	s := hierarchy.State{Device: "eth0"}
	if err := b.Read(t.Context(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

func bound(target string, class hierarchy.ClassID) hierarchy.Bound {
	return hierarchy.Bound{Target: targetOf(target), Class: class}
}

// targetOf reads a target that a test gives.
func targetOf(s string) bind.Target {
	t, err := bind.ParseTarget(s)
	if err != nil {
		panic(err)
	}
	return t
}

type counts = map[hierarchy.ClassID]uint64

// only fails unless every packet was of one class, and there were some.
func only(t *testing.T, got counts, class hierarchy.ClassID, least uint64) {
	t.Helper()
	if got[class] < least || len(got) != 1 {
		t.Errorf("packets a class: %v, want %d or more, all of class %v", got, least, class)
	}
}

// TestKernelMoved: with cgroup v2 a socket stays where it was made, with net_cls
// it follows its process.
func TestKernelMoved(t *testing.T) {
	for _, way := range exact(t) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			kept := map[bool]hierarchy.ClassID{true: red, false: green}[v2(way)]
			n := newNetwork(t)
			p := newPlace(t, way)
			from, to := sub(t, p.dir, "from"), sub(t, p.dir, "to")
			apply(t, n.binder(t, way), bound(p.target(from), red), bound(p.target(to), green))
			x, addr := n.start(t, n.Near, from), n.Far4.String()+":9"
			x.Do("keep s %s", addr)
			only(t, n.during(t, func() { x.Do("more s %s 50", addr) }), red, 50)
			x.Do("join %s", to)
			only(t, n.during(t, func() { x.Do("more s %s 50", addr) }), kept, 50)
			only(t, n.during(t, func() { x.Do("udp %s 50", addr) }), green, 50)
		})
	}
}

// TestKernelRebind: changes reach sockets that are open, and a binding that goes
// leaves the next one above.
func TestKernelRebind(t *testing.T) {
	for _, way := range exact(t) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			p := newPlace(t, way)
			a, inner := sub(t, p.dir, "a"), sub(t, p.dir, "a", "inner")
			b := n.binder(t, way)
			apply(t, b)
			x, addr := n.start(t, n.Near, inner), n.Far4.String()+":9"
			x.Do("keep s %s", addr)
			for _, tt := range []struct {
				bound []hierarchy.Bound
				want  hierarchy.ClassID
			}{
				{nil, rest},
				{[]hierarchy.Bound{bound(p.target(a), red)}, red},
				{[]hierarchy.Bound{bound(p.target(a), red), bound(p.target(inner), green)}, green},
				{[]hierarchy.Bound{bound(p.target(a), green), bound(p.target(inner), red)}, red},
				{[]hierarchy.Bound{bound(p.target(a), blue)}, blue},
				{nil, rest},
			} {
				apply(t, b, tt.bound...)
				only(t, n.during(t, func() { x.Do("more s %s 20", addr) }), tt.want, 20)
			}
		})
	}
}

// TestKernelTimeWait: what the kernel answers for a socket in TIME_WAIT is not user
// 65534's, whom it names for sockets without one.
func TestKernelTimeWait(t *testing.T) {
	for _, way := range exact(t) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			b := n.binder(t, way)
			if v2(way) {
				apply(t, b, bound("uid:65534", green))
			} else {
				apply(t, b)
			}
			near, far := n.start(t, n.Near, ""), n.start(t, n.Far, "")
			for i, addr := range []string{n.Far4.String() + ":7003", "[" + n.Far6.String() + "]:7003"} {
				far.Do("listen %d %s", i, addr)
				got := n.during(t, func() {
					near.Do("leave %s", addr)
					far.Do("serve %d 1 0", i) // only now it closes too: TIME_WAIT answers
				})
				const packets = 4 // SYN, ACK, FIN, and the last ACK
				if diff := cmp.Diff(counts{rest: packets}, got); diff != "" {
					t.Errorf("%s: packets a class (-want +got):\n%s", addr, diff)
				}
			}
		})
	}
}

// TestKernelFoundAgain: a second Binder goes on where the first stopped, from
// what the hook holds alone, and clearing leaves nothing.
func TestKernelFoundAgain(t *testing.T) {
	for _, way := range exact(t) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			p := newPlace(t, way)
			a, c := sub(t, p.dir, "a"), sub(t, p.dir, "c")
			first := n.binder(t, way)
			apply(t, first, bound(p.target(a), red))
			if err := first.Close(); err != nil {
				t.Fatal(err)
			}
			x, addr := n.start(t, n.Near, a), n.Far4.String()+":9"
			x.Do("keep s %s", addr)
			only(t, n.during(t, func() { x.Do("more s %s 20", addr) }), red, 20)

			second := n.binder(t, way)
			want := []hierarchy.Bound{bound(p.target(a), red)}
			if diff := cmp.Diff(want, read(t, second).Bound); diff != "" {
				t.Errorf("bindings found again (-want +got):\n%s", diff)
			}
			apply(t, second, bound(p.target(a), green), bound(p.target(c), blue))
			only(t, n.during(t, func() { x.Do("more s %s 20", addr) }), green, 20)

			converge(t, second, hierarchy.State{Device: "eth0"})
			if diff := cmp.Diff(hierarchy.State{Device: "eth0"}, read(t, second)); diff != "" {
				t.Errorf("state after clearing (-want +got):\n%s", diff)
			}
			if id, err := n.hook.EgressProgram(); id != 0 || err != nil {
				t.Errorf("program %d on the hook after clearing, error %v", id, err)
			}
			only(t, n.during(t, func() { x.Do("more s %s 20", addr) }), rest, 20)
		})
	}
}

// TestKernelGone: the binding of a removed cgroup shows under its number and can
// be taken away.
func TestKernelGone(t *testing.T) {
	for _, way := range slices.DeleteFunc(exact(t), func(w bind.Way) bool { return !v2(w) }) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			p := newPlace(t, way)
			a := sub(t, p.dir, "a")
			b := n.binder(t, way)
			apply(t, b, bound(p.target(a), red))
			remove(t, a)
			got := read(t, b).Bound
			if len(got) != 1 || got[0].Target.Kind != bind.TargetCgroupID {
				t.Fatalf("bindings after the cgroup went: %v, want one cgroup-id:N", got)
			}
			sub(t, p.dir, "a")
			if got := read(t, b).Bound; got[0].Target.Kind != bind.TargetCgroupID {
				t.Errorf("a new cgroup of the same name took the binding of the old one over: %v", got)
			}
			apply(t, b, bound(p.target(a), green))
			x := n.start(t, n.Near, a)
			only(t, n.during(t, func() { x.Do("udp %s 10", n.Far4.String()+":9") }), green, 10)
		})
	}
}

// TestKernelOrder: bindings may also come before the classifier.
func TestKernelOrder(t *testing.T) {
	for _, way := range exact(t) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			p := newPlace(t, way)
			a := sub(t, p.dir, "a")
			b := n.binder(t, way)
			bind := bound(p.target(a), red)
			if _, err := b.Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Create, New: &bind}}); err != nil {
				t.Fatal(err)
			}
			hook, err := b.Hook(0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Create, New: &hook}}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff([]hierarchy.Bound{bind}, read(t, b).Bound); diff != "" {
				t.Errorf("bindings (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKernelChangeOfWay goes from net_cls to BPF and back.
func TestKernelChangeOfWay(t *testing.T) {
	require(t, bind.WayBPF)
	require(t, bind.WayNetCls)
	n := newNetwork(t)
	v1, v2 := newPlace(t, bind.WayNetCls), newPlace(t, bind.WayBPF)
	a1, a2 := sub(t, v1.dir, "a"), sub(t, v2.dir, "a")
	x := n.start(t, n.Near, a1)
	x.Do("join %s", a2)
	addr := n.Far4.String() + ":9"
	for _, tt := range []struct {
		way   bind.Way
		bound hierarchy.Bound
		want  hierarchy.ClassID
	}{
		{bind.WayNetCls, bound(v1.target(a1), red), red},
		{bind.WayBPF, bound(v2.target(a2), green), green},
		{bind.WayNetCls, bound(v1.target(a1), blue), blue},
	} {
		b := n.binder(t, tt.way)
		apply(t, b, tt.bound)
		only(t, n.during(t, func() { x.Do("udp %s 20", addr) }), tt.want, 20)
	}
	converge(t, n.binder(t), hierarchy.State{Device: "eth0"})
	if got := read(t, n.binder(t, bind.WayNetCls)); got.Hook.Way != bind.WayNone || len(got.Bound) != 0 {
		t.Errorf("state after clearing: %+v", got)
	}
}

// TestKernelRefused: what would send packets past the shaper, or can never work.
func TestKernelRefused(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	deep := sub(t, p.dir, slices.Repeat([]string{"d"}, 32)...)
	b := n.binder(t, bind.WayBPF)
	apply(t, b)
	for _, tt := range []struct {
		name string
		bind hierarchy.Bound
		want string
	}{
		{"unshaped queue", bound(p.target(p.dir), hierarchy.ID(0)), "minor number 0"},
		{"foreign class", bound(p.target(p.dir), 1<<16|1), "no class of ours"},
		{"too deep", bound(p.target(deep), red), "33 levels below the root, more than 31"},
		{"no such cgroup", bound(p.target(p.dir)+"/none", red), "no such file"},
		{"no such target", bound("", red), "it names nothing"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			done, err := b.Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Create, New: &tt.bind}})
			if done != 0 || err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%d steps done, error %v, want one with %q", done, err, tt.want)
			}
		})
	}
	if got := read(t, b).Bound; len(got) != 0 {
		t.Errorf("bindings after refusals: %v", got)
	}
}

// TestKernelReadInterrupted: who reads many bindings need not wait for the last of them.
func TestKernelReadInterrupted(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	b := n.binder(t, bind.WayBPF)
	apply(t, b, bound(p.target(p.dir), red))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var s hierarchy.State
	if err := b.Read(ctx, &s); !errors.Is(err, context.Canceled) {
		t.Errorf("bindings %v, error %v, want it interrupted", s.Bound, err)
	}
}

// TestKernelForeignProgram: a program in our place that is not this version's is
// replaced, and comes back when an apply is undone.
func TestKernelForeignProgram(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer empty.Close()
	if err := n.hook.AttachEgress(empty.FD(), "older"); err != nil {
		t.Fatal(err)
	}
	before, err := n.hook.EgressProgram()
	if err != nil {
		t.Fatal(err)
	}
	b := n.binder(t, bind.WayBPF)
	old := read(t, b)
	if want := (hierarchy.Hook{Way: bind.WayBPF}); old.Hook != want || len(old.Bound) != 0 {
		t.Errorf("state with it on the hook: %+v", old)
	}
	apply(t, b, bound(p.target(p.dir), red))
	x := n.start(t, n.Near, p.dir)
	only(t, n.during(t, func() { x.Do("udp %s:9 10", n.Far4) }), red, 10)
	converge(t, b, old)
	if after, err := n.hook.EgressProgram(); after != before || err != nil {
		t.Errorf("program %d on the hook after going back, error %v, want %d", after, err, before)
	}
}

// TestKernelTCX: a program that runs before the classifier, and may keep packets
// from it, is pointed out once.
func TestKernelTCX(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	verdict, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "pass_all", Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer verdict.Close()
	info, err := verdict.Info()
	if err != nil {
		t.Fatal(err)
	}
	id, _ := info.ID()
	x, addr := n.start(t, n.Near, p.dir), n.Far4.String()+":9"
	check := func(want string, class hierarchy.ClassID) {
		t.Helper()
		var got string
		b, err := cgroup.NewBinder(cgroup.Config{Hook: n.hook, Interface: n.Dev, Index: n.device.Index, Warn: func(s string) { got += s + "\n" }})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		err = n.Near.Do(func() error {
			apply(t, b, bound(p.target(p.dir), red))
			_, err := b.Why()
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(got, want) || strings.Count(got, "\n") != strings.Count(want, "eth0") {
			t.Errorf("warnings %q, want %q...", got, want)
		}
		got = ""
		if err := n.Near.Do(func() error { _, err := b.Why(); return err }); err != nil || got != "" {
			t.Errorf("warnings %q the second time, error %v", got, err)
		}
		only(t, n.during(t, func() { x.Do("udp %s 20", addr) }), class, 20)
	}
	check("", red)
	var on link.Link
	err = n.Near.Do(func() (err error) {
		on, err = link.AttachTCX(link.TCXOptions{Interface: int(n.device.Index), Program: verdict, Attach: ebpf.AttachTCXEgress})
		return err
	})
	if errors.Is(err, ebpf.ErrNotSupported) && vm.Inside() {
		return // Linux 6.1 has no TCX: nothing was to be said
	}
	tctest.Require(t, !errors.Is(err, ebpf.ErrNotSupported), "TCX (Linux 6.6)")
	if err != nil {
		t.Fatal(err)
	}
	defer on.Close()
	only(t, n.during(t, func() { x.Do("udp %s 20", addr) }), rest, 20)
	check(fmt.Sprintf("%s: a TCX program (id %d, pass_all) runs before the classifier and can keep packets from it", n.Dev, id), rest)
	if err := on.Close(); err != nil {
		t.Fatal(err)
	}
	check("", red)
}

// TestKernelTagsEnd: reading the tags of many cgroups ends with its context.
func TestKernelTagsEnd(t *testing.T) {
	require(t, bind.WayNetCls)
	p := newPlace(t, bind.WayNetCls)
	tree, err := cgroupfs.FindNetCls()
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	tags := netcls.Tags{Find: func() (*cgroupfs.Tree, error) { return tree, nil }, Classes: map[hierarchy.ClassID]hierarchy.Path{red: "eth0/red"}}
	for _, name := range []string{"a", "b"} {
		if err := tree.SetClass(strings.TrimPrefix(sub(t, p.dir, name), p.mount), red); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	for _, want := range []int{1, 0} { // it ends with the first; it has ended
		seen := 0
		err := tags.All(ctx, func(way.Key, hierarchy.ClassID) error {
			seen++
			cancel()
			return nil
		})
		if seen != want || !errors.Is(err, context.Canceled) {
			t.Errorf("%d tags, want %d: %v", seen, want, err)
		}
	}
}

// TestKernelOthers: where another interface is bound by tags, no second one is.
func TestKernelOthers(t *testing.T) {
	require(t, bind.WayNetCls)
	newPlace(t, bind.WayNetCls)
	unread := errors.New("records cannot be read")
	for _, tt := range []struct {
		name   string
		others []string
		err    error
		want   string
	}{
		{"none", nil, nil, ""},
		{"two", []string{"eth1", "eth2"}, nil, "eth0: binding net_cls: one process has one net_cls tag for all interfaces, and eth1 uses it already: bind with bpf or nft, or shape one interface"},
		{"not known", nil, unread, "eth0: binding net_cls: records cannot be read"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, err := cgroup.NewBinder(cgroup.Config{
				Hook: blind{}, Interface: "eth0", Ways: []bind.Way{bind.WayNetCls},
				Others: func() ([]string, error) { return tt.others, tt.err },
			})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			_, err = b.Hook(0)
			if got := fmt.Sprint(err); got != tt.want && (tt.want != "" || err != nil) {
				t.Errorf("error %q, want %q", got, tt.want)
			}
		})
	}
}

// TestKernelTwoInterfaces: with net_cls each interface sees its own tags only and
// does not take another's over.
func TestKernelTwoInterfaces(t *testing.T) {
	require(t, bind.WayNetCls)
	n := newNetwork(t)
	p := newPlace(t, bind.WayNetCls)
	a, c := sub(t, p.dir, "a"), sub(t, p.dir, "c")
	binder := func(mine hierarchy.ClassID) *cgroup.Binder {
		b, err := cgroup.NewBinder(cgroup.Config{
			Hook: n.hook, Interface: n.Dev, Ways: []bind.Way{bind.WayNetCls},
			Classes: map[hierarchy.ClassID]hierarchy.Path{mine: "eth0"},
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { b.Close() })
		return b
	}
	one, two := binder(red), binder(green)
	apply(t, one, bound(p.target(a), red))
	apply(t, two, bound(p.target(c), green))
	if diff := cmp.Diff([]hierarchy.Bound{bound(p.target(a), red)}, read(t, one).Bound); diff != "" {
		t.Errorf("bindings of the first (-want +got):\n%s", diff)
	}
	bind := bound(p.target(a), green)
	_, err := two.Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Create, New: &bind}})
	if err == nil || !strings.Contains(err.Error(), "bound to 71f:10 of another interface") {
		t.Errorf("error %v", err)
	}
}
