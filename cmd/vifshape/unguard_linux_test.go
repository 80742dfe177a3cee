package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"

	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelUnguard holds that the program against sockets past the queues, which is on a bound
// cgroup and not on the interface, goes with the interface's name, with its tree, and with what
// was there before it.
func TestKernelUnguard(t *testing.T) {
	tctest.RequireProgram(t, "ip")
	n := newNetwork(t)
	ip := func(args ...string) { tctest.Output(t, n.Near, "ip", args...) }
	first, second := n.cgroupPath("first"), n.cgroupPath("second")
	policy := func(iface, cgroup string) string {
		return n.policy(iface+".toml", fmt.Sprintf("version = 1\n[interface.%s]\nrate = \"10mbit\"\n[interface.%[1]s.web]\nrate = \"1mbit\"\nbind = [%q]\n", iface, "cgroup:"+cgroup))
	}
	holds := func(when string, onFirst, onSecond int) {
		t.Helper()
		for i, want := range []int{onFirst, onSecond} {
			if got := n.setsockopts([]string{first, second}[i]); got != want {
				t.Errorf("%s: the %s cgroup has %d programs, not %d", when, []string{"first", "second"}[i], got, want)
			}
		}
	}
	rename := func(from, to string) {
		ip("link", "set", from, "down")
		ip("link", "set", from, "name", to)
		ip("link", "set", to, "up")
	}

	n.ok("apply", policy("eth0", first))
	holds("bound", 1, 0)
	rename("eth0", "wan0")
	n.ok("apply", policy("wan0", first))
	holds("under another name", 1, 0)
	rename("wan0", "eth0")
	n.ok("apply", policy("eth0", second))
	holds("another cgroup, under the name before", 0, 1)
	rename("eth0", "wan0")
	n.ok("clear")
	holds("cleared under another name", 0, 0)
	rename("wan0", "eth0")

	n.plug("eth1")
	n.ok("apply", policy("eth1", first))
	holds("bound to one that goes", 1, 0)
	n.unplug("eth1")
	n.plug("eth1")
	n.ok("apply", policy("eth1", second))
	holds("bound to one made anew", 0, 1)
	n.unplug("eth1")
	n.ok("clear")
	holds("cleared after it went", 0, 0)
}

// setsockopts is how many programs a cgroup has that see what is asked of sockets.
func (n *network) setsockopts(cgroup string) int {
	n.Helper()
	d, err := os.Open(tctest.Cgroup2Mount(n) + cgroup)
	if err != nil {
		n.Fatal(err)
	}
	defer d.Close()
	q, err := link.QueryPrograms(link.QueryOptions{Target: int(d.Fd()), Attach: ebpf.AttachCGroupSetsockopt})
	if err != nil {
		n.Fatal(err)
	}
	return len(q.Programs)
}
