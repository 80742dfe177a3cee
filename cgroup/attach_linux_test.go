package cgroup_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
)

// attach attaches processes to a bound cgroup.
func (n *network) attach(t *testing.T, b *cgroup.Binder, target string, tree bool, pids ...int) (a *cgroup.Attachment) {
	t.Helper()
	err := n.Near.Do(func() (err error) {
		a, err = b.Attach(t.Context(), target, pids, tree)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *actor) pid() int { return a.cmd.Process.Pid }

// TestKernelAttach: what a process had open follows it into the branch, with what
// is accepted from its listeners and what waits there; so it does when the branch's
// class changes, until the branch is bound no more.
func TestKernelAttach(t *testing.T) {
	require(t, hierarchy.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, hierarchy.WayBPF)
	free, to := sub(t, p.dir, "free"), sub(t, p.dir, "to")
	b := n.binder(t, hierarchy.WayBPF)
	apply(t, b, bound(p.target(to), green), bound(p.target(free), red))
	x, far := n.start(t, n.Near, free), n.start(t, n.Far, "")
	addr, near := n.Far4.String()+":9", n.Near4.String()
	x.do("keep udp %s", addr)
	x.do("keepPacket packet")
	x.do("listen tcp %s:7200", near)
	x.do("listen waiting %s:7201", near)
	far.do("connect waits %s:7201", near)
	sends := map[string]func(){
		"udp":    func() { x.do("more udp %s 20", addr) },
		"packet": func() { x.do("morePacket packet %d 20", n.hook.Index) },
		"accepted": func() {
			x.begin("serve tcp 1 100000")
			far.do("fetch %s:7200", near)
			x.end()
		},
	}
	check := func(class hierarchy.ClassID) {
		t.Helper()
		for name, send := range sends {
			if got := n.during(t, send); got[class] < 5 || len(got) != 1 {
				t.Errorf("%s: packets a class %v, want all in %v", name, got, class)
			}
		}
	}
	check(red)
	a := n.attach(t, b, p.target(to), false, x.pid())
	var protocols []string
	for _, s := range a.Sockets {
		if s.PID != x.pid() || len(s.Shared) != 0 {
			t.Errorf("socket %+v, want process %d's alone", s, x.pid())
		}
		protocols = append(protocols, s.Protocol)
	}
	if diff := cmp.Diff([]string{"packet", "tcp", "tcp", "udp"}, protocols); diff != "" {
		t.Errorf("sockets that follow (-want +got):\n%s\n%+v", diff, a)
	}
	// Without a description of its types the kernel shows nobody what waits.
	settings, err := cgroup.ReadSettings()
	if err != nil {
		t.Fatal(err)
	}
	waiting, waits := 0, red
	if settings.BTF {
		waiting, waits = 1, green
	}
	if len(a.Processes) != 1 || a.Waiting != waiting || len(a.Failed) != 0 || a.Stay != "" {
		t.Errorf("attached: %+v", a)
	}
	check(green)
	only(t, n.during(t, func() {
		x.begin("serve waiting 1 100000")
		far.do("drain waits")
		x.end()
	}), waits, 5)
	apply(t, b, bound(p.target(to), blue), bound(p.target(free), red))
	check(blue)
	apply(t, b, bound(p.target(free), red))
	if got := n.during(t, sends["udp"]); got[red] != 20 {
		t.Errorf("packets a class %v once the branch is not bound any more, want all in %v", got, red)
	}
}
