package cgroup_test

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelHeadless: where a process is, is where its living threads are. Its own
// files tell of the first one, which may have ended: with cgroup v1 that one is
// nowhere, with v2 it stays where it ended while the others are moved. Where what it
// has open does not follow, attach says so.
func TestKernelHeadless(t *testing.T) {
	for _, way := range []bind.Way{bind.WayBPF, bind.WayNetCls} {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			p := newPlace(t, way)
			from, to := sub(t, p.dir, "from"), sub(t, p.dir, "to")
			t.Cleanup(func() { empty(t, from, to) })
			b := n.binder(t, way)
			apply(t, b, bound(p.target(from), red), bound(p.target(to), green))
			x := tctest.Start(t, n.Near, "join", from, ";", "headless")
			addr := n.Far4.String() + ":9"
			x.Do("keep udp %s", addr)
			in := func(dir string, class hierarchy.ClassID) {
				t.Helper()
				got, whole, err := cgroupfs.Of(way, x.PID())
				if diff := cmp.Diff([]bind.Target{targetOf(p.target(dir))}, got); diff != "" || !whole || err != nil {
					t.Errorf("it is seen in (-want +got), whole %t, %v:\n%s", whole, err, diff)
				}
				only(t, n.during(t, func() { x.Do("udp %s 5", addr) }), class, 5)
			}
			in(from, red)
			a := n.attach(t, b, p.target(to), false, x.PID())
			want := home.Process{PID: x.PID(), Name: "headless", From: strings.TrimPrefix(p.target(from), "cgroup:")}
			if len(a.Processes) == 1 {
				want.Name = a.Processes[0].Name // that of the test binary, cut
			}
			if diff := cmp.Diff([]home.Process{want}, a.Processes); diff != "" {
				t.Errorf("attached (-want +got):\n%s", diff)
			}
			in(to, green)
			got := n.during(t, func() { x.Do("more udp %s 5", addr) })
			told := len(a.Failed) == 1 && strings.Contains(a.Failed[0].Err.Error(), "its first thread has ended")
			if got[green] < 5 && (!told || got[red] < 5) {
				t.Errorf("packets of its open socket a class %v, and attach says %v", got, a.Failed)
			}
			want.There, want.From = true, strings.TrimPrefix(p.target(to), "cgroup:")
			a = n.attach(t, b, p.target(to), false, x.PID())
			if diff := cmp.Diff([]home.Process{want}, a.Processes); diff != "" {
				t.Errorf("attached again (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKernelOfThreads: threads of one process may be in different cgroups of version 1.
func TestKernelOfThreads(t *testing.T) {
	require(t, bind.WayNetCls)
	p := newPlace(t, bind.WayNetCls)
	one, two := sub(t, p.dir, "one"), sub(t, p.dir, "two")
	t.Cleanup(func() { empty(t, one, two) })
	x := tctest.Start(t, tctest.NetNS(t), "join", one)
	x.Do("scatter %s", two)
	got, whole, err := cgroupfs.Of(bind.WayNetCls, x.Process.Pid)
	if diff := cmp.Diff([]bind.Target{targetOf(p.target(one)), targetOf(p.target(two))}, got); diff != "" || !whole || err != nil {
		t.Errorf("it is seen in (-want +got), whole %t, %v:\n%s", whole, err, diff)
	}
}

// scatter gives the process a thread in another cgroup, which keeps from saying where it is.
func scatter(x tctest.Told) (string, error) {
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		done <- os.WriteFile(x.Args[0]+"/tasks", []byte(fmt.Sprint(unix.Gettid())), 0)
		select {}
	}()
	if err := <-done; err != nil {
		return "", err
	}
	_, _, err := cgroupfs.Own(bind.WayNetCls)
	if err == nil || !strings.Contains(err.Error(), "the threads of this process are in different cgroups: ") {
		return "", fmt.Errorf("its own cgroup: %v", err)
	}
	return "", nil
}

// TestOfEnded: of a process that has ended nothing is said.
func TestOfEnded(t *testing.T) {
	x := tctest.Command(t, "no-such-verb")
	x.Stderr = nil
	if err := x.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, x.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil { // it stays a zombie
		t.Fatal(err)
	}
	for _, way := range []bind.Way{bind.WayBPF, bind.WayNetCls} {
		if got, _, err := cgroupfs.Of(way, x.Process.Pid); !errors.Is(err, unix.ESRCH) {
			t.Errorf("%s: %q, %v; want %v", way, got, err, unix.ESRCH)
		}
	}
	_ = x.Wait()
	for _, way := range []bind.Way{bind.WayBPF, bind.WayNetCls} {
		if got, _, err := cgroupfs.Of(way, x.Process.Pid); !errors.Is(err, unix.ESRCH) {
			t.Errorf("%s, waited for: %q, %v; want %v", way, got, err, unix.ESRCH)
		}
	}
}
