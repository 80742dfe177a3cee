package cgroup_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc/tctest"
)

// matched is a leaf with matches, such as "to=10.0.0.0/8 dport=80", for packets of classes.
func matched(t testing.TB, class hierarchy.ClassID, from []hierarchy.ClassID, matches ...string) hierarchy.Matched {
	t.Helper()
	m := hierarchy.Matched{ID: class, Class: class, From: from, Digest: 1}
	for _, text := range matches {
		var x match.Match
		for f := range strings.FieldsSeq(text) {
			key, value, _ := strings.Cut(f, "=")
			if err := x.Add(key, value); err != nil {
				t.Fatal(err)
			}
		}
		m.Match = append(m.Match, x)
		for _, b := range []byte(text) {
			m.Digest = m.Digest*31 + hierarchy.Digest(b)
		}
	}
	return m
}

// applyMatched is apply with branches that have matches.
func applyMatched(t testing.TB, b *cgroup.Binder, all []hierarchy.Matched, bound ...hierarchy.Bound) {
	t.Helper()
	want := hierarchy.State{Device: "eth0", Bound: bound, Matched: all}
	var err error
	if want.Hook, err = b.Hook(0, all...); err != nil {
		t.Fatal(err)
	}
	converge(t, b, want)
}

// TestKernelMatched: what nobody has bound goes by the matches from the interface down,
// what is bound by those below its branch alone, whatever it sends.
func TestKernelMatched(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	inRed, inGreen, inRest, free := sub(t, p.dir, "red"), sub(t, p.dir, "green"), sub(t, p.dir, "rest"), sub(t, p.dir, "free")
	b := n.binder(t, bind.WayBPF)
	top := []hierarchy.ClassID{rest}
	bounds := []hierarchy.Bound{bound(p.target(inRed), red), bound(p.target(inGreen), green), bound(p.target(inRest), rest)}
	bounds[2].Stays = true
	all := []hierarchy.Matched{
		matched(t, red, top, "dport=7001", "dport=7003 proto=tcp"),
		matched(t, green, top, "to="+n.Far6.String()),
		matched(t, blue, []hierarchy.ClassID{red}, "dport=7002", "dport=7005 dscp=CS0"),
	}
	applyMatched(t, b, all, bounds...)
	four, six := n.Far4.String(), "["+n.Far6.String()+"]"
	send := func(dir, addr string, class hierarchy.ClassID) {
		t.Helper()
		x := n.start(t, n.Near, dir)
		got := n.during(t, func() { x.Do("udp %s 20", addr) })
		if diff := cmp.Diff(counts{class: 20}, got); diff != "" {
			t.Errorf("from %s to %s: packets a class (-want +got):\n%s", dir, addr, diff)
		}
	}
	send(free, four+":7001", red)
	send(free, four+":7002", rest)
	send(free, four+":7003", rest) // it is not TCP
	send(free, four+":9", rest)
	send(free, six+":9", green)
	send(free, six+":7001", green) // more bits of addresses
	send(inRed, four+":9", red)
	send(inRed, four+":7002", blue)
	send(inRed, six+":9", red)
	send(inGreen, four+":7001", green)
	send(inGreen, four+":7002", green)
	send(inRest, four+":7001", rest)
	send(inRest, six+":9", rest)

	far, near := n.start(t, n.Far, ""), n.start(t, n.Near, free)
	far.Do("listen l %s:7003", four)
	only(t, n.during(t, func() { near.Do("connect c %s:7003", four) }), red, 2) // SYN and ACK, which an interrupt sends

	// Open sockets follow a change.
	near.Do("keep s %s:7001", four)
	only(t, n.during(t, func() { near.Do("more s %s:7001 20", four) }), red, 20)
	other := []hierarchy.Matched{all[1], matched(t, blue, top, "dport=7001")}
	applyMatched(t, b, other, bounds...)
	only(t, n.during(t, func() { near.Do("more s %s:7001 20", four) }), blue, 20)
	send(free, six+":9", green)
	send(inRed, four+":7002", red)

	// Another Binder finds them, and takes them away.
	second := n.binder(t, bind.WayBPF)
	found := read(t, second)
	if found.Hook.Match != way.Version || len(found.Matched) != 2 || found.Matched[0].Digest != all[1].Digest || found.Matched[1].ID != blue || found.Matched[1].Class != blue {
		t.Errorf("found: %+v", found)
	}
	if i := slices.IndexFunc(found.Bound, func(x hierarchy.Bound) bool { return x.Stays }); i < 0 || found.Bound[i].Class != rest {
		t.Errorf("found: %+v", found.Bound)
	}
	bounds[2].Stays = false
	apply(t, second, bounds...)
	send(free, four+":7001", rest)
	send(inRest, four+":7001", rest)
	if id, err := n.hook.MatchProgram(); id != 0 || err != nil {
		t.Errorf("program %d, error %v", id, err)
	}
	applyMatched(t, second, all, bounds...)
	send(free, four+":7001", red)
	converge(t, second, hierarchy.State{Device: "eth0"})
	if diff := cmp.Diff(hierarchy.State{Device: "eth0"}, read(t, second)); diff != "" {
		t.Errorf("state after clearing (-want +got):\n%s", diff)
	}
}

// TestKernelMatchedUndo: the way back, with which an apply that fails ends, needs no more
// than what the kernel shows and the Binder saw before.
func TestKernelMatchedUndo(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	b := n.binder(t, bind.WayBPF)
	top := []hierarchy.ClassID{rest}
	all := []hierarchy.Matched{matched(t, red, top, "dport=7001"), matched(t, green, top, "dport=7002 dport=8000-9000")}
	applyMatched(t, b, all)
	before := read(t, b)
	x, addr := n.start(t, n.Near, ""), n.Far4.String()
	for _, next := range [][]hierarchy.Matched{
		{matched(t, red, top, "dport=7002"), matched(t, blue, top, "dport=7001")},
		{all[0]},
		nil,
	} {
		applyMatched(t, b, next)
		converge(t, b, before)
		only(t, n.during(t, func() { x.Do("udp %s:7001 10", addr) }), red, 10)
		only(t, n.during(t, func() { x.Do("udp %s:8500 10", addr) }), green, 10)
	}
	// Who knows no more than what the kernel shows takes away what goes, and stays with the rest.
	second := n.binder(t, bind.WayBPF)
	some := read(t, second)
	some.Matched = some.Matched[1:]
	converge(t, second, some)
	only(t, n.during(t, func() { x.Do("udp %s:7001 10", addr) }), rest, 10)
	only(t, n.during(t, func() { x.Do("udp %s:8500 10", addr) }), green, 10)
}

// TestKernelMatchedEdit: while matches change no packet goes by some of the former and some
// of the new, and none by neither.
func TestKernelMatchedEdit(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	b := n.binder(t, bind.WayBPF)
	top := []hierarchy.ClassID{rest}
	many := func(from, to int) (texts []string) {
		for i := from; i < to; i++ {
			texts = append(texts, fmt.Sprintf("to=10.%d.%d.0/24 dport=%d", i/256, i%256, 1+i))
		}
		return texts
	}
	near, addr := n.start(t, n.Near, ""), n.Far4.String()+":7001"
	applyMatched(t, b, []hierarchy.Matched{matched(t, red, top, "to="+n.Far4.String(), "dport=7001")})
	near.Do("keep s %s", addr)
	const changes, packets = 20, 20_000
	got := n.during(t, func() {
		for i := range changes {
			// What the packets fit is in the tree of each step, at other places.
			all := []hierarchy.Matched{matched(t, red, top, append(many(0, 100*(i%5)), "dport=7001", "to="+n.Far4.String())...)}
			if i%2 == 0 {
				all = []hierarchy.Matched{matched(t, blue, top, many(0, 3000*(i%3))...), matched(t, red, top, "to="+n.Far4.String()+" dport=7000-7100", "port=7001 proto=udp")}
			}
			near.Begin("more s %s %d", addr, packets)
			applyMatched(t, b, all)
			near.End()
		}
	})
	if diff := cmp.Diff(counts{red: changes * packets}, got); diff != "" {
		t.Errorf("packets a class (-want +got):\n%s", diff)
	}
}

// TestKernelMatchedWays: a way that does not know matches says so before anything changes.
func TestKernelMatchedWays(t *testing.T) {
	for _, w := range ways(t) {
		if w == bind.WayBPF {
			continue
		}
		t.Run(string(w), func(t *testing.T) {
			require(t, w)
			n := newNetwork(t)
			_, err := n.binder(t, w).Hook(0, matched(t, red, []hierarchy.ClassID{rest}, "dport=7001"))
			if err == nil || errors.Is(err, caps.ErrNotSupported) || !strings.Contains(err.Error(), "eth0: match: with binding "+string(w)+" ") || !strings.Contains(err.Error(), "it takes binding bpf") { // which this kernel may well have
				t.Errorf("error %v", err)
			}
			if got := read(t, n.binder(t, w)); got.Hook != (hierarchy.Hook{}) {
				t.Errorf("changed: %+v", got.Hook)
			}
		})
	}
}

// TestKernelMatchedReceived: what is received is held against the matches below whoever it is
// for, and goes on being so when the maps are replaced by larger ones.
func TestKernelMatchedReceived(t *testing.T) {
	require(t, bind.WayBPF)
	n := newReceiver(t)
	p := newPlace(t, bind.WayBPF)
	inRed, inRest, free := sub(t, p.dir, "red"), sub(t, p.dir, "rest"), sub(t, p.dir, "free")
	b := n.binder(t, bind.WayBPF)
	bounds := []hierarchy.Bound{bound(p.target(inRed), red), bound(p.target(inRest), rest)}
	bounds[1].Stays = true
	set := func(all []hierarchy.Matched) {
		t.Helper()
		for i := range all {
			all[i].Received = true
		}
		want := hierarchy.State{Device: "eth0", Bound: bounds, Matched: all}
		var err error
		if want.Hook, err = b.Hook(1, all...); err != nil {
			t.Fatal(err)
		}
		converge(t, b, want)
	}
	top := []hierarchy.ClassID{rest}
	some := []hierarchy.Matched{
		matched(t, green, top, "dport=7001", "from="+n.Far6.String()),
		matched(t, blue, []hierarchy.ClassID{red}, "port=7002"),
	}
	var prefixes []string
	for i := range 3000 {
		prefixes = append(prefixes, fmt.Sprintf("to=10.%d.%d.0/24", i/256, i%256))
	}
	far := n.start(t, n.Far, "")
	near := map[string]*tctest.Actor{}
	for i, dir := range []string{inRed, inRest, free} {
		x := n.start(t, n.Near, dir)
		x.Do("sink a %s:%d", n.Near4, 7101+i)
		x.Do("sink b [%s]:%d", n.Near6, 7101+i)
		near[dir] = x
	}
	near[free].Do("sink c %s:7001", n.Near4)
	near[inRed].Do("sink c %s:7002", n.Near4)
	send := func(addr string, class hierarchy.ClassID) {
		t.Helper()
		got := n.received(t, func() { far.Do("udp %s 20", addr) })
		if diff := cmp.Diff(counts{class: 20}, got); diff != "" {
			t.Errorf("to %s: packets a class (-want +got):\n%s", addr, diff)
		}
	}
	check := func(matches bool) {
		t.Helper()
		or := func(class, without hierarchy.ClassID) hierarchy.ClassID {
			if matches {
				return class
			}
			return without
		}
		send(n.Near4.String()+":7103", rest)
		send(n.Near4.String()+":7001", or(green, rest))
		send("["+n.Near6.String()+"]:7103", or(green, rest))
		send(n.Near4.String()+":9", rest) // to nobody
		if looks(t, bind.WayBPF) {
			send(n.Near4.String()+":7101", red)
			send("["+n.Near6.String()+"]:7101", red)
			send(n.Near4.String()+":7002", or(blue, red))
			send(n.Near4.String()+":7102", rest)
			send("["+n.Near6.String()+"]:7102", rest)
		}
	}
	set(some)
	check(true)
	set(append([]hierarchy.Matched{matched(t, green, top, append(prefixes, "dport=7001", "from="+n.Far6.String())...)}, some[1]))
	check(true)
	set(some)
	check(true)
	bounds[1].Stays = false
	set(nil)
	check(false)
	bounds[1].Stays = true
	set(some)
	check(true)

	// Answers are of who asked, and go on from there.
	far.Do("sink s %s:7002", n.Far4)
	for dir, class := range map[string]hierarchy.ClassID{inRed: blue, free: rest} {
		got := n.received(t, func() {
			far.Begin("answer s 20")
			near[dir].Do("ask q %s:7002 20", n.Far4)
			far.End()
		})
		if diff := cmp.Diff(counts{class: 20}, got); diff != "" {
			t.Errorf("answers to %s: packets a class (-want +got):\n%s", dir, diff)
		}
	}
}
