package cgroup_test

import (
	"encoding/binary"
	"testing"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// loaded is how many packets are sent while something changes: a tenth of n in a
// guest, which takes many times as long for one, and where hundreds of changes
// still come to pass.
func loaded(n int) int {
	if vm.Inside() {
		return n / 10
	}
	return n
}

// flipBinding binds the target to another class than the last time.
func flipBinding(t *testing.T, _ *network, b *cgroup.Binder, target string, i int) {
	apply(t, b, bound(target, []hierarchy.ClassID{red, green}[i%2]))
}

// flipHook does the same by a classifier of its own, in place of the one that is
// there.
func flipHook(t *testing.T, _ *network, b *cgroup.Binder, target string, i int) {
	hook, err := b.Hook(0)
	if err != nil {
		t.Fatal(err)
	}
	bind := bound(target, []hierarchy.ClassID{red, green}[i%2])
	steps := []hierarchy.Step{{Action: hierarchy.Change, Old: &hook, New: &hook}, {Action: hierarchy.Create, New: &bind}}
	if _, err := b.Do(t.Context(), steps); err != nil {
		t.Fatal(err)
	}
	// the way back would return to the former maps: start afresh
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// whileSending has x send some packets at a time and calls change over and over
// meanwhile, not less than least times. It returns how many packets were sent, and
// those of each class.
func (n *network) whileSending(t *testing.T, x *tctest.Actor, some, least int, change func(i int)) (packets uint64, got counts) {
	t.Helper()
	changes := 0
	got = n.during(t, func() {
		for changes < least {
			packets += uint64(some)
			x.Begin("udp %s:9 %d", n.Far4, some)
			done := make(chan struct{})
			go func() { x.End(); close(done) }()
			for sending := true; sending; {
				select {
				case <-done:
					sending = false
				default:
					changes++
					change(changes)
				}
			}
		}
	})
	t.Logf("%d changes, packets a class: %v", changes, got)
	return packets, got
}

// TestKernelUnderLoad: 0 packets in a wrong class or unshaped while bindings
// change, and while the whole classifier is replaced.
func TestKernelUnderLoad(t *testing.T) {
	for _, tt := range []struct {
		name string
		way  bind.Way
		flip func(t *testing.T, n *network, b *cgroup.Binder, target string, i int)
	}{
		{"bindings", bind.WayBPF, flipBinding},
		{"net_cls tags", bind.WayNetCls, flipBinding},
		{"sets of nf_tables", bind.WayNft, flipBinding},
		{"all of nf_tables", bind.WayNft, flipHook},
		{"net_cls tags with nf_tables", bind.WayNetClsNft, flipBinding},
		{"classifier of an older version", bind.WayBPF, func(t *testing.T, n *network, b *cgroup.Binder, target string, i int) {
			older(t, n)
			if err := b.Close(); err != nil { // it knows better
				t.Fatal(err)
			}
			if got := read(t, b); got.Hook.Version != 1 || len(got.Bound) != 0 {
				t.Errorf("an older classifier is seen as %+v with bindings %v", got.Hook, got.Bound)
			}
			flipBinding(t, n, b, target, i)
		}},
		{"classifier", bind.WayBPF, flipHook},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require(t, tt.way)
			n := newNetwork(t)
			p := newPlace(t, tt.way)
			a := sub(t, p.dir, "a")
			b := n.binder(t, tt.way)
			apply(t, b, bound(p.target(a), red))
			x := n.start(t, n.Near, a)
			packets, got := n.whileSending(t, x, loaded(200_000), 10, func(i int) { tt.flip(t, n, b, p.target(a), i) })
			if got[red]+got[green] != packets || len(got) != 2 {
				t.Errorf("packets a class: %v, want %d in %v and %v together and no other", got, packets, red, green)
			}
		})
	}
}

// older makes the classifier on the hook say that it is the first version's.
func older(t testing.TB, n *network) {
	t.Helper()
	config, put := n.config(t)
	binary.NativeEndian.PutUint32(config, 1)
	put()
}

// TestKernelWayUnderLoad: no packet is in a wrong class, in the rest or unshaped
// while the way changes to and fro. None is lost either, but where clsact comes or
// goes: then the kernel stops the device for a moment (qdisc_graft,
// net/sched/sch_api.c, v6.12).
func TestKernelWayUnderLoad(t *testing.T) {
	for _, tt := range []struct {
		name  string
		ways  []bind.Way
		stops bool
	}{
		{"programs", []bind.Way{bind.WayBPF, bind.WayNetCls}, false},
		{"rules", []bind.Way{bind.WayNft, bind.WayNetClsNft}, false},
		{"programs and rules", []bind.Way{
			bind.WayBPF, bind.WayNft, bind.WayNetCls, bind.WayNetClsNft, bind.WayBPF, bind.WayNetClsNft, bind.WayNetCls, bind.WayNft,
		}, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, w := range tt.ways {
				require(t, w)
			}
			n := newNetwork(t)
			tags, cgroups := newPlace(t, bind.WayNetCls), newPlace(t, bind.WayBPF)
			change := func(i int) {
				way := tt.ways[i%len(tt.ways)]
				bind := bound(tags.target(tags.dir), green)
				if v2(way) {
					bind = bound(cgroups.target(cgroups.dir), red)
				}
				apply(t, n.binder(t, way), bind)
			}
			change(0)
			x := n.start(t, n.Near, cgroups.dir)
			x.Do("join %s", tags.dir)
			packets, got := n.whileSending(t, x, loaded(100_000), len(tt.ways), change)
			if sum := got[red] + got[green]; sum != packets && !(tt.stops && sum < packets) || len(got) != 2 {
				t.Errorf("packets a class: %v, want %d in %v and %v together and no other", got, packets, red, green)
			}
		})
	}
}
