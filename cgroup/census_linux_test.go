package cgroup_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// census is what a process has open, by class.
func census(t *testing.T, b *cgroup.Binder, x *tctest.Actor) (map[hierarchy.ClassID]int, cgroup.ProcessSockets) {
	t.Helper()
	all, err := b.Census(t.Context(), []int{x.PID()})
	if err != nil {
		t.Fatal(err)
	}
	p := all[x.PID()]
	n := map[hierarchy.ClassID]int{}
	for _, class := range p.Sockets {
		n[class]++
	}
	return n, p
}

// TestKernelCensus: the class that a socket is said to have is the one in which its
// packets arrive, before the classifier has seen any and after: of sockets that were
// made in the branch, somewhere below it, before their process was moved there, of
// bound users, and of those that attach carried over.
func TestKernelCensus(t *testing.T) {
	for _, way := range ways(t) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			if way == bind.WayClsCgroup && !hasCgroupFilter(t, n) {
				return
			}
			p := newPlace(t, way)
			a, below, free := sub(t, p.dir, "a"), sub(t, p.dir, "a", "x", "y"), sub(t, p.dir, "free")
			b := n.binder(t, way)
			bind := []hierarchy.Bound{bound(p.target(a), red)}
			if v2(way) {
				bind = append(bind, bound("uid:65534", green))
			}
			apply(t, b, bind...)
			to := n.Far4.String() + ":9"
			moved := red // tags follow a process
			if v2(way) {
				moved = rest
			}
			tests := []struct {
				name    string
				at      string
				prepare func(x *tctest.Actor)
				want    hierarchy.ClassID
				v2      bool
			}{
				{"in it", a, func(x *tctest.Actor) { x.Do("keep s %s", to) }, red, false},
				{"below it", below, func(x *tctest.Actor) { x.Do("keep s %s", to) }, red, false},
				{"outside", free, func(x *tctest.Actor) { x.Do("keep s %s", to) }, rest, false},
				{"moved by hand", free, func(x *tctest.Actor) { x.Do("keep s %s", to); x.Do("join %s", a) }, moved, false},
				{"moved out", a, func(x *tctest.Actor) { x.Do("keep s %s", to); x.Do("join %s", free) }, map[bool]hierarchy.ClassID{true: red, false: rest}[v2(way)], false},
				{"user", free, func(x *tctest.Actor) { x.Do("nobody"); x.Do("keep s %s", to) }, green, true},
				{"user in a cgroup", a, func(x *tctest.Actor) { x.Do("nobody"); x.Do("keep s %s", to) }, red, true},
				{"of the user before", free, func(x *tctest.Actor) { x.Do("keep s %s", to); x.Do("nobody") }, rest, true},
			}
			for i, tt := range tests {
				if tt.v2 && !v2(way) {
					continue
				}
				t.Run(tt.name, func(t *testing.T) {
					x := n.start(t, n.Near, tt.at)
					tt.prepare(x)
					x.Do("more s %s 1", to)
					if got, _ := census(t, b, x); got[tt.want] != 1 || len(got) != 1 {
						t.Errorf("sockets by class %v, want 1 of %v", got, tt.want)
					}
					// what the classifier knows of sockets goes with a change
					apply(t, b, append(bind, bound(p.target(sub(t, p.dir, fmt.Sprint("other", i))), blue))...)
					if got, all := census(t, b, x); got[tt.want] != 1 || len(got) != 1 || all.Elsewhere || all.Err != nil {
						t.Errorf("sockets by class %v, want 1 of %v", got, tt.want)
					}
					only(t, n.during(t, func() { x.Do("more s %s 20", to) }), tt.want, 20)
				})
			}
		})
	}
}

// TestKernelCensusAttached: a socket that was carried over has the branch's class,
// and so has what is accepted from a listener that was.
func TestKernelCensusAttached(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	free, to := sub(t, p.dir, "free"), sub(t, p.dir, "to")
	b := n.binder(t, bind.WayBPF)
	apply(t, b, bound(p.target(to), green))
	x, far := n.start(t, n.Near, free), n.start(t, n.Far, "")
	near, addr := n.Near4.String(), n.Far4.String()+":9"
	x.Do("keep udp %s", addr)
	x.Do("more udp %s 1", addr)
	x.Do("listen tcp %s:7200", near)
	if got, _ := census(t, b, x); got[rest] != 2 || len(got) != 1 {
		t.Errorf("sockets by class %v, want 2 in the rest", got)
	}
	n.attach(t, b, p.target(to), false, x.PID())
	if got, _ := census(t, b, x); got[green] != 2 || len(got) != 1 {
		t.Errorf("attached: sockets by class %v, want 2 of %v", got, green)
	}
	x.Do("more udp %s 1", addr)
	x.Begin("serve tcp 1 100000")
	far.Do("fetch %s:7200", near)
	x.End()
	if got, _ := census(t, b, x); got[green] != 2 || len(got) != 1 {
		t.Errorf("used: sockets by class %v, want 2 of %v", got, green)
	}
	apply(t, b, bound(p.target(sub(t, p.dir, "third")), blue))
	if got, _ := census(t, b, x); got[rest] != 2 || len(got) != 1 {
		t.Errorf("not bound any more: sockets by class %v, want 2 in the rest", got)
	}
}

// TestKernelCensusElsewhere: of a process in another network namespace nothing is
// said to be here, and a packet socket's class is said where it is known.
func TestKernelCensusElsewhere(t *testing.T) {
	for _, way := range ways(t) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			if way == bind.WayClsCgroup && !hasCgroupFilter(t, n) {
				return
			}
			p := newPlace(t, way)
			a := sub(t, p.dir, "a")
			b := n.binder(t, way)
			apply(t, b, bound(p.target(a), red))
			far := n.start(t, n.Far, a)
			far.Do("keep s %s:9", n.Near4)
			far.Do("more s %s:9 1", n.Near4)
			if got, all := census(t, b, far); len(got) != 0 || !all.Elsewhere {
				t.Errorf("of a process elsewhere: %v, elsewhere %v", got, all.Elsewhere)
			}
			x := n.start(t, n.Near, a)
			x.Do("keepPacket s")
			x.Do("morePacket s %d 1", n.device.Index)
			want := map[bind.Way]hierarchy.ClassID{bind.WayBPF: red, bind.WayNft: rest}[way] // with tags nobody tells
			got, all := census(t, b, x)
			// Nor is it told without the kernel's types, where borrowing would change a tag.
			if settings, err := cgroup.ReadSettings(); err != nil || !settings.BTF && got[0] == 1 {
				want = 0
			}
			if got[want] != 1 || len(got) != 1 || all.Elsewhere {
				t.Errorf("of a packet socket: %v, want 1 of %v", got, want)
			}
			if got, err := b.Census(t.Context(), []int{4_000_000}); err != nil || len(got[4_000_000].Sockets) != 0 || got[4_000_000].Err != nil {
				t.Errorf("of a process that is not there: %v, %v", got, err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			if got, err := b.Census(ctx, []int{x.PID()}); got != nil || !errors.Is(err, context.Canceled) {
				t.Errorf("with a context that has ended: %v, %v", got, err)
			}
		})
	}
}

// hasCgroupFilter puts the kernel's own classifier for net_cls on. Where it has none the
// test goes on in TestVM, and in a guest it is skipped.
func hasCgroupFilter(t *testing.T, n *network) bool {
	t.Helper()
	err := n.hook.AttachCgroupFilter()
	if errors.Is(err, rtnl.ErrNotSupported) && !vm.Inside() {
		return false
	}
	tctest.Require(t, !errors.Is(err, rtnl.ErrNotSupported), "filter kind cgroup (module cls_cgroup)")
	if err != nil {
		t.Fatal(err)
	}
	return true
}
