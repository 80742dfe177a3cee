package cgroup_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// receiver is a network whose near end also has a tree for what it receives.
type receiver struct {
	*network
	in    *network // the near end by the IFB that carries that tree
	flows uint32   // that there is room for
}

func newReceiver(t testing.TB) *receiver {
	t.Helper()
	tctest.RequireLink(t, "ifb")
	n := newNetwork(t)
	noReports(t, n.Far) // which would be received
	if err := n.Near.AddLink(lab.Link{Name: "ifb0", Kind: "ifb", TxQueueLen: 32_767}); err != nil {
		t.Fatal(err)
	}
	if err := n.Near.SetUp("ifb0"); err != nil {
		t.Fatal(err)
	}
	c, err := rtnl.Open(rtnl.Config{NetNS: n.Near.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	pair := *n.Pair
	pair.Dev = "ifb0"
	in := &network{Pair: &pair}
	if in.device, err = tc.Find(c, "ifb0"); err != nil {
		t.Fatal(err)
	}
	in.tree(t)
	return &receiver{n, in, 1 << 16}
}

// binder makes a Binder for the near interface and the IFB.
func (n *receiver) binder(t testing.TB, ways ...bind.Way) *cgroup.Binder {
	t.Helper()
	return n.binderWith(t, cgroup.Config{Ways: ways, Receiver: func() (uint32, error) { return n.in.device.Index, nil }})
}

// apply is apply for both directions.
func (n *receiver) apply(t testing.TB, b *cgroup.Binder, bound ...hierarchy.Bound) {
	t.Helper()
	want := hierarchy.State{Device: "eth0", Bound: bound}
	var err error
	if want.Hook, err = b.Hook(n.flows); err != nil {
		t.Fatal(err)
	}
	if want.Hook.Receive != way.Version {
		t.Fatalf("the classifier wanted is %+v", want.Hook)
	}
	converge(t, b, want)
}

// received are the packets that came in while fn ran, by their class.
func (n *receiver) received(t testing.TB, fn func()) counts {
	t.Helper()
	got := n.in.during(t, fn)
	delete(got, 0) // of packets that were put together the device counts one
	return got
}

// looks says whether the programs look for who would receive what answers to nothing.
func looks(t testing.TB, w bind.Way) bool {
	t.Helper()
	s, err := cgroup.ReadSettings()
	if err != nil {
		t.Fatal(err)
	}
	return w == bind.WayBPF && s.BTF && !caps.Before(6, 4)
}

// TestKernelReceive: what is received has the class of whoever it is for, exactly. Where
// nothing can be looked up, what answers to nothing goes to the rest.
func TestKernelReceive(t *testing.T) {
	for _, w := range exact(t) {
		t.Run(string(w), func(t *testing.T) {
			require(t, w)
			testReceive(t, w)
		})
	}
}

func testReceive(t *testing.T, w bind.Way) {
	n := newReceiver(t)
	p := newPlace(t, w)
	a, free := sub(t, p.dir, "a"), sub(t, p.dir, "free")
	b := n.binder(t, w)
	n.apply(t, b, bound(p.target(a), red))
	inA, inFree, far := n.start(t, n.Near, a), n.start(t, n.Near, free), n.start(t, n.Far, "")
	port := 7400
	tests := []struct {
		name string
		// run has a process at the near end receive; at and to are addresses of both ends.
		run   func(near *tctest.Actor, at, to string)
		least uint64
		blind uint64 // packets that go to the rest where nothing is looked up; 1<<63: all
	}{
		{"download", func(near *tctest.Actor, _, to string) {
			far.Do("listen l%d %s", port, to)
			far.Begin("serve l%d 1 3000000", port)
			near.Do("fetch %s", to)
			far.End()
		}, 40, 0},
		{"upload", func(near *tctest.Actor, _, to string) {
			far.Do("listen l%d %s", port, to)
			far.Begin("serve l%d 1 0", port)
			near.Do("tcp %s 300000", to)
			far.End()
		}, 2, 0},
		{"connection from outside", func(near *tctest.Actor, at, _ string) {
			near.Do("listen l%d %s", port, at)
			near.Begin("serve l%d 1 0", port)
			far.Do("tcp %s 300000", at)
			near.End()
		}, 5, 1},
		{"question and answer", func(near *tctest.Actor, _, to string) {
			far.Do("sink s%d %s", port, to)
			far.Begin("answer s%d 20", port)
			near.Do("ask q%d %s 20", port, to)
			far.End()
		}, 20, 0},
		{"receiver that never sends", func(near *tctest.Actor, at, _ string) {
			near.Do("sink s%d %s", port, at)
			far.Do("udp %s 20", at)
		}, 20, 1 << 63},
		{"in parts", func(near *tctest.Actor, at, _ string) {
			near.Do("sink s%d %s", port, at)
			far.Do("large %s 5 5000", at)
		}, 20, 1 << 63},
		{"answers in parts", func(near *tctest.Actor, _, to string) {
			far.Do("sink s%d %s", port, to)
			far.Begin("answer s%d 5 5000", port)
			near.Do("ask q%d %s 5", port, to)
			far.End()
		}, 20, 0},
		{"echo", func(near *tctest.Actor, _, to string) { near.Do("ping %s 10", to) }, 10, 0},
	}
	for i, addr := range [][2]string{{n.Near4.String(), n.Far4.String()}, {"[" + n.Near6.String() + "]", "[" + n.Far6.String() + "]"}} {
		for _, tt := range tests {
			for _, x := range []struct {
				name string
				near *tctest.Actor
				want hierarchy.ClassID
			}{{"bound", inA, red}, {"free", inFree, rest}} {
				t.Run(fmt.Sprintf("%s/%s/IPv%d", tt.name, x.name, 4+2*i), func(t *testing.T) {
					port++
					got := n.received(t, func() { tt.run(x.near, fmt.Sprintf("%s:%d", addr[0], port), fmt.Sprintf("%s:%d", addr[1], port)) })
					want := x.want
					switch {
					case want == rest || looks(t, w):
					case tt.blind == 1<<63:
						want = rest
					case tt.blind > 0:
						most := tt.blind
						if w == bind.WayNft { // whose answer to the first packet is of the rest: what may be sent before the next one, ten segments and two acknowledgements
							most += 12
						}
						if got[rest] < tt.blind || got[rest] > most {
							t.Errorf("%d packets went to the rest, want %d to %d", got[rest], tt.blind, most)
						}
						delete(got, rest)
					}
					only(t, got, want, tt.least)
				})
			}
		}
	}
	if left := lastPlan(t, b); left != "" {
		t.Errorf("left to do: %s", left)
	}
}

// TestKernelReceiveFollows: an open download goes with its process' binding, and a process
// that is bound by nothing any more is in the rest.
func TestKernelReceiveFollows(t *testing.T) {
	require(t, bind.WayBPF)
	n := newReceiver(t)
	p := newPlace(t, bind.WayBPF)
	a := sub(t, p.dir, "a")
	b := n.binder(t, bind.WayBPF)
	near, far := n.start(t, n.Near, a), n.start(t, n.Far, "")
	at := n.Far4.String() + ":7500"
	far.Do("sink s %s", at)
	far.Do("listen l %s", n.Far4.String()+":7503")
	ask := func() counts {
		t.Helper()
		return n.received(t, func() {
			far.Begin("answer s 20")
			near.Do("ask q %s 20", at)
			far.End()
		})
	}
	for _, class := range []hierarchy.ClassID{rest, red, green, rest, blue} {
		if class == rest {
			n.apply(t, b)
		} else {
			n.apply(t, b, bound(p.target(a), class))
		}
		only(t, ask(), class, 20)
	}
	// A user's does, and with the user's end.
	other := n.start(t, n.Near, sub(t, p.dir, "free"))
	other.Do("nobody")
	for _, class := range []hierarchy.ClassID{green, blue, rest} {
		if class == rest {
			n.apply(t, b)
		} else {
			n.apply(t, b, bound("uid:65534", class))
		}
		only(t, n.received(t, func() {
			far.Begin("answer s 20")
			other.Do("ask q %s 20", at)
			far.End()
		}), class, 20)
	}
	// So does what a process had open when it was attached.
	n.apply(t, b, bound(p.target(a), red))
	late := n.start(t, n.Near, sub(t, p.dir, "late"))
	late.Do("sink q %s", n.Near4.String()+":7502")
	late.Do("more q %s 20", at)
	late.Do("connect c %s", n.Far4.String()+":7503")
	far.Do("accept c l")
	n.attach(t, b, p.target(a), false, late.PID())
	if looks(t, bind.WayBPF) {
		only(t, n.received(t, func() { far.Do("answer s 20") }), red, 20)
	} else { // only what it sends tells
		far.Do("answer s 20")
		late.Do("write c 1")
	}
	only(t, n.received(t, func() {
		far.Begin("answer s 20")
		late.Do("more q %s 20", at)
		far.End()
		far.Do("write c 100000")
		late.Begin("drain c")
		far.Do("finish c")
		late.End()
	}), red, 20)
	// What receives and never sends follows as well, where it is looked up, and what has sent
	// and does not any more.
	if !looks(t, bind.WayBPF) {
		return
	}
	n.apply(t, b, bound(p.target(a), red))
	near.Do("more q %s 40", at)
	for _, class := range []hierarchy.ClassID{red, green, rest, blue} {
		if class == rest {
			n.apply(t, b)
		} else {
			n.apply(t, b, bound(p.target(a), class))
		}
		only(t, n.received(t, func() { far.Do("answer s 10") }), class, 10)
	}
	sink := n.Near4.String() + ":7501"
	near.Do("sink r %s", sink)
	for _, class := range []hierarchy.ClassID{blue, red, rest, green} {
		if class == rest {
			n.apply(t, b)
		} else {
			n.apply(t, b, bound(p.target(a), class))
		}
		only(t, n.received(t, func() { far.Do("udp %s 20", sink) }), class, 20)
		only(t, n.received(t, func() { far.Do("keep k%d %s", class, sink); far.Do("more k%d %s 20", class, sink) }), class, 20)
	}
}

// TestKernelReceiveForged: nobody takes another's download into a branch of his own, or to
// the rest, by sending packets as if they were the other's.
func TestKernelReceiveForged(t *testing.T) {
	require(t, bind.WayBPF)
	n := newReceiver(t)
	p := newPlace(t, bind.WayBPF)
	a, c, free := sub(t, p.dir, "a"), sub(t, p.dir, "c"), sub(t, p.dir, "free")
	b := n.binder(t, bind.WayBPF)
	n.apply(t, b, bound(p.target(a), red), bound(p.target(c), green))
	far := n.start(t, n.Far, "")
	at := func(port int) string { return fmt.Sprintf("%v:%d", n.Far4, port) }
	port := 7600
	for name, who := range map[string]struct {
		owner, forger string
		want          hierarchy.ClassID
	}{
		"a bound one's by a bound one": {a, c, red},
		"a bound one's by a free one":  {a, free, red},
		"a free one's":                 {free, c, rest},
	} {
		t.Run(name, func(t *testing.T) {
			port++
			owner, forger := n.start(t, n.Near, who.owner), n.start(t, n.Near, who.forger)
			far.Do("sink s%d %s", port, at(port))
			ask := func() counts {
				t.Helper()
				return n.received(t, func() {
					far.Begin("answer s%d 20", port)
					owner.Do("ask q %s 20", at(port))
					far.End()
				})
			}
			only(t, ask(), who.want, 20)
			_, mine, _ := strings.Cut(owner.Do("name q"), ":")
			from := n.Near4.String() + ":" + mine
			// The far end's answers to what is forged would count.
			forger.Do("forge 17 %s %s 5", from, at(port))
			got := n.received(t, func() { far.Do("answer s%d 5", port) })
			if who.want != rest || looks(t, bind.WayBPF) { // else it is noted, until the owner sends again
				only(t, got, who.want, 5)
			}
			only(t, ask(), who.want, 20)

			// A flow that is not noted yet.
			port++
			far.Do("sink s%d %s", port, at(port))
			forger.Do("forge 17 %s %s 5", from, at(port))
			if looks(t, bind.WayBPF) {
				only(t, n.received(t, func() { far.Do("answer s%d 5", port) }), who.want, 5)
			} else {
				far.Do("answer s%d 5", port)
			}
			only(t, ask(), who.want, 20)
		})
	}
}

// lastPlan is what is left to do where nothing should be.
func lastPlan(t testing.TB, b *cgroup.Binder) string {
	t.Helper()
	now := read(t, b)
	want := now
	var err error
	if want.Hook, err = b.Hook(now.Hook.Flows); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, s := range classifier(hierarchy.Diff(now, want)) {
		left = append(left, s.String())
	}
	return strings.Join(left, ", ")
}
