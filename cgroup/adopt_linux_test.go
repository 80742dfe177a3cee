package cgroup_test

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelAdopt: what runs already when it is bound has its sockets carried along
// that somebody else opened, and nothing else: neither what is bound by itself, nor
// what a process has that is not bound.
func TestKernelAdopt(t *testing.T) {
	requireTypes(t)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	free, a, to := sub(t, p.dir, "free"), sub(t, p.dir, "a"), sub(t, p.dir, "to")
	addr := n.Far4.String() + ":9"
	at := n.Near4.String() + ":7400"
	x, user, own, far := n.start(t, n.Near, free), n.start(t, n.Near, free), n.start(t, n.Near, a), n.start(t, n.Far, "")
	for _, y := range []*tctest.Actor{x, user, own} {
		y.Do("keep udp %s", addr)
		y.Do("more udp %s 1", addr)
	}
	x.Do("keepPacket packet")
	x.Do("listen l %s", at)
	far.Do("connect waits %s", at)
	x.Do("join %s", to)
	user.Do("nobody")
	own.Do("join %s", to)
	b := n.binder(t, bind.WayBPF)
	check := func(name string, want hierarchy.ClassID, send func()) {
		t.Helper()
		if got := n.during(t, send); got[want] == 0 || len(got) != 1 {
			t.Errorf("%s: packets a class %v, want all in %v", name, got, want)
		}
	}
	all := func(class, users, owns hierarchy.ClassID) {
		t.Helper()
		check("udp", class, func() { x.Do("more udp %s 20", addr) })
		check("packet", class, func() { x.Do("morePacket packet %d 20", n.device.Index) })
		check("udp of a user", users, func() { user.Do("more udp %s 20", addr) })
		check("udp bound by itself", owns, func() { own.Do("more udp %s 20", addr) })
	}
	apply(t, b, bound(p.target(a), red))
	all(rest, rest, red)
	err := n.Near.Do(func() error { // connections that wait are looked for where it is applied
		apply(t, b, bound(p.target(a), red), bound(p.target(to), green), bound("uid:65534", blue))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	all(green, blue, red)
	check("a connection that waits", green, func() {
		x.Begin("serve l 1 0") // sends its end alone
		far.Do("drain waits")
		x.End()
	})
	check("a connection from the SYN-ACK on", green, func() {
		x.Begin("serve l 1 100000")
		far.Do("fetch %s", at)
		x.End()
	})
	apply(t, b, bound(p.target(a), green), bound(p.target(to), red), bound("uid:65534", red))
	all(red, red, green)
	// what is its own again once its process' branch is no more
	apply(t, b, bound(p.target(a), green))
	all(rest, rest, green)
	check("another process", rest, func() { n.start(t, n.Near, free).Do("udp %s 20", addr) })
}

// TestKernelAdoptByNew: a classifier that takes the place of another's carries over
// what was handed to bound processes before it came.
func TestKernelAdoptByNew(t *testing.T) {
	requireTypes(t)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	free, to := sub(t, p.dir, "free"), sub(t, p.dir, "to")
	x, addr := n.start(t, n.Near, free), n.Far4.String()+":9"
	x.Do("keep udp %s", addr)
	x.Do("join %s", to)
	for _, way := range []bind.Way{bind.WayBPF, bind.WayNft, bind.WayBPF} {
		if way == bind.WayNft && report(t, way).Err != nil {
			continue // it has no nf_tables
		}
		apply(t, n.binder(t, way), bound(p.target(to), green))
		want := green
		if way == bind.WayNft {
			want = rest
		}
		only(t, n.during(t, func() { x.Do("more udp %s 20", addr) }), want, 20)
	}
}

// TestKernelAttachFull: a socket that has no memory left for its branch is named, and
// so is it by who looks for sockets that were handed to somebody.
func TestKernelAttachFull(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	free, to := sub(t, p.dir, "free"), sub(t, p.dir, "to")
	var said []string
	b := n.binderWith(t, cgroup.Config{Ways: []bind.Way{bind.WayBPF}, Warn: func(s string) { said = append(said, s) }})
	x, addr, addr6 := n.start(t, n.Near, free), n.Far4.String()+":9", "["+n.Far6.String()+"]:9"
	x.Do("keep full %s", addr6)
	if why := x.Do("fill full %d", n.device.Index); why != unix.ENOMEM.Error() && why != unix.ENOBUFS.Error() {
		t.Fatal(why)
	}
	x.Do("keep other %s", addr)
	x.Do("more full %s 1", addr6) // until then they have no port, and are in no table
	x.Do("more other %s 1", addr)
	apply(t, b, bound(p.target(to), green))
	a := n.attach(t, b, p.target(to), false, x.PID())
	if len(a.Processes) != 1 || len(a.Sockets) != 1 || len(a.Failed) != 1 || a.Failed[0].PID != x.PID() {
		t.Fatalf("attached %+v, want one process, one socket, and one that could not be", a)
	}
	if text := a.Failed[0].Err.Error(); !strings.Contains(text, "udp socket") || !strings.Contains(text, "optmem_max") {
		t.Errorf("error %q, want the socket and why", text)
	}
	// In the rest may be more: the kernel's reports of the groups that filled the socket.
	if got := n.during(t, func() { x.Do("more full %s 20", addr6) }); got[rest] < 20 || got[green] != 0 {
		t.Errorf("packets a class of the socket that stays: %v", got)
	}
	if got := n.during(t, func() { x.Do("more other %s 20", addr) }); got[green] != 20 {
		t.Errorf("packets a class of the socket that follows: %v", got)
	}
	s, err := cgroup.ReadSettings()
	if err != nil {
		t.Fatal(err)
	}
	said = nil
	apply(t, b)
	apply(t, b, bound(p.target(to), green))
	if s.BTF != (len(said) == 1 && strings.Contains(said[0], "optmem_max")) {
		t.Errorf("warnings %q when it is bound", said)
	}
}
