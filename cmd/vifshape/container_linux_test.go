package main

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// container is the first process of a container in the near namespace, as a runtime
// brings it up: it is in a cgroup, and enters its network namespace later.
func (n *network) container(inner *lab.NetNS, dir string) *tctest.Actor {
	n.Helper()
	cmd := tctest.Command(n, "join", dir, ";", "obey")
	cmd.ExtraFiles = []*os.File{os.NewFile(uintptr(dup(n, inner.FD())), "netns")}
	defer cmd.ExtraFiles[0].Close()
	return tctest.StartCommand(n, n.Near, cmd)
}

// TestKernelAgentContainer: a container behind a bridge, whose network namespace is
// ready before its cgroup is, as with Kubernetes. Its process enters that last, of
// which nobody tells the agent.
func TestKernelAgentContainer(t *testing.T) {
	tctest.RequireLink(t, "bridge")
	n := newNetwork(t)
	base := tctest.Cgroup(t)
	gateway, pod := netip.MustParsePrefix("198.19.3.1/24"), netip.MustParsePrefix("198.19.3.2/24")
	if err := n.Near.AddLink(lab.Link{Name: "br0", Kind: "bridge"}); err != nil {
		t.Fatal(err)
	}
	if err := n.Near.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }); err != nil {
		t.Fatal(err)
	}
	start := fmt.Sprintf("%012x", os.Getpid())
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(agentPolicy, "container:"+start)))
	a := n.agent()
	a.says("waits: no container whose id begins so is running")
	for i := range 2 { // it is started again
		inner := tctest.NetNS(t)
		port := fmt.Sprintf("veth%d", i)
		// The bridge takes what is for its port's address for itself.
		err := lab.AddVeth(n.Near, lab.Link{Name: port, Master: "br0", Addrs: []netip.Prefix{gateway}}, inner, lab.Link{Name: "eth0", Addrs: []netip.Prefix{pod}})
		if err == nil {
			err = inner.AddRoute(netip.PrefixFrom(n.Far4, 24), gateway.Addr(), "eth0")
		}
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Join(base, "cri-containerd-"+start+strings.Repeat(fmt.Sprint(i), 52)+".scope")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		c := n.container(inner, dir)
		n.bound(map[string]hierarchy.Path{n.target(dir): "eth0/web"})
		c.Do("enter")
		n.bound(map[string]hierarchy.Path{n.target(dir): "eth0/web", "link:" + port: "eth0/web"})
		if diff := cmp.Diff(map[hierarchy.Path]uint64{"eth0/web": 20}, n.sentIn(func() { c.Do("udp %v:9 20", n.Far4) })); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if i == 1 { // what is on its port goes with the rest
			n.ok("clear")
			a.says("not shaped any more")
			if out := tctest.TC(t, n.Near, "qdisc", "show", "dev", port); strings.Contains(out, "clsact") {
				t.Errorf("left behind: %s", out)
			}
		}
		c.Dismiss()
		if err := errors.Join(n.Near.DeleteLink(port), unix.Rmdir(dir)); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			n.bound(map[string]hierarchy.Path{})
		}
	}
	if code := a.end(syscall.SIGTERM); code != 0 {
		t.Errorf("SIGTERM: exit status %d", code)
	}
	n.clean()
}

// TestKernelAgentPods: pods that come while the agent runs, several levels below a bound
// slice. Their processes enter their network namespaces late, and one of these gets its
// interface last of all.
func TestKernelAgentPods(t *testing.T) {
	n := newNetwork(t)
	base := tctest.Cgroup(t)
	if err := n.Near.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }); err != nil {
		t.Fatal(err)
	}
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(agentPolicy, n.target(base))))
	a := n.agent()
	want := map[string]hierarchy.Path{n.target(base): "eth0/web"}
	n.bound(want)
	pods := map[string]*tctest.Actor{}
	for i, port := range []string{"veth0", "veth1", "veth2"} {
		inner := tctest.NetNS(t)
		gateway, pod := netip.AddrFrom4([4]byte{198, 19, byte(i), 1}), netip.AddrFrom4([4]byte{198, 19, byte(i), 2})
		connect := func() {
			err := lab.AddVeth(n.Near, lab.Link{Name: port, Addrs: []netip.Prefix{netip.PrefixFrom(gateway, 24)}},
				inner, lab.Link{Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(pod, 24)}})
			if err == nil {
				err = inner.AddRoute(netip.PrefixFrom(n.Far4, 24), gateway, "eth0")
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		dir := filepath.Join(base, fmt.Sprintf("burstable/pod%d/c", i))
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if i != 1 {
			connect()
		}
		c := n.container(inner, dir)
		c.Do("enter")
		if i == 1 {
			connect()
		}
		want["link:"+port] = "eth0/web"
		n.bound(want)
		if diff := cmp.Diff(map[hierarchy.Path]uint64{"eth0/web": 20}, n.sentIn(func() { c.Do("udp %v:9 20", n.Far4) })); diff != "" {
			t.Errorf("%s (-want +got)\n%s", port, diff)
		}
		pods[port] = c
	}
	if out := n.ok("bindings"); !strings.Contains(out, "link:veth2") {
		t.Errorf("bindings: %s", out)
	}
	if out := n.ok("show"); !strings.Contains(out, fmt.Sprintf("eth0/web: %s (link:veth1)", n.target(base))) || strings.Contains(out, "not held") {
		t.Errorf("show: %s", out)
	}
	// One goes, and its interface stays.
	pods["veth0"].Dismiss()
	delete(pods, "veth0")
	delete(want, "link:veth0")
	n.bound(want)
	for _, c := range pods {
		c.Dismiss()
	}
	n.bound(map[string]hierarchy.Path{n.target(base): "eth0/web"})
	n.ok("clear")
	if code := a.end(syscall.SIGTERM); code != 0 {
		t.Errorf("SIGTERM: exit status %d", code)
	}
	n.clean()
}

// TestKernelAttachSpaces: a process in another network namespace is attached, and limited, with
// the interface that leads there, and where there is none for it, that is said.
func TestKernelAttachSpaces(t *testing.T) {
	n := newNetwork(t)
	base := tctest.Cgroup(t)
	if err := n.Near.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }); err != nil {
		t.Fatal(err)
	}
	inner := tctest.NetNS(t)
	gateway, pod := netip.MustParsePrefix("198.19.3.1/24"), netip.MustParsePrefix("198.19.3.2/24")
	err := lab.AddVeth(n.Near, lab.Link{Name: "veth1", Addrs: []netip.Prefix{gateway}}, inner, lab.Link{Name: "eth0", Addrs: []netip.Prefix{pod}})
	if err == nil {
		err = inner.AddRoute(netip.PrefixFrom(n.Far4, 24), gateway.Addr(), "eth0")
	}
	if err != nil {
		t.Fatal(err)
	}
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(agentPolicy, "user:65534")))
	first, second := n.container(inner, base), n.container(inner, base)
	for _, c := range []*tctest.Actor{first, second} {
		c.Do("enter")
	}
	pid := func(c *tctest.Actor) string { return strconv.Itoa(c.PID()) }
	r := n.run("attach", "eth0/web", pid(second))
	said := fmt.Sprintf("vifshape: error: eth0/web: 1 process is in another network namespace: packets from there come by veth1 and go to the rest: process %s was there before, and is bound to nothing", pid(first))
	if r.code != 3 || !strings.Contains(r.stderr, said) || !strings.Contains(r.stdout, "1 process in eth0/web") {
		t.Errorf("beside one that was there before: %v", r)
	}
	for _, command := range []string{"show", "doctor"} {
		if out := n.ok(command); !strings.Contains(out, "not held: its own cgroup: 1 process is in another network namespace: packets from there come by veth1") {
			t.Errorf("%s: %s", command, out)
		}
	}
	n.ok("attach", "eth0/batch", pid(first))
	if diff := cmp.Diff(map[hierarchy.Path]uint64{"eth0/batch": 20}, n.sentIn(func() { first.Do("udp %v:9 20", n.Far4) })); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	r = n.run("attach", "eth0/web", pid(second))
	if said = "packets from there come by veth1 and go to eth0/batch: process " + pid(first) + " of that was there before"; r.code != 3 || !strings.Contains(r.stderr, said) {
		t.Errorf("beside one of another branch: %v", r)
	}
	n.ok("attach", "eth0/batch", pid(second))
	n.ok("limit", "pid:"+pid(first), "--on", "eth0", "--prio", "2")
	limited := hierarchy.Path("eth0/batch/pid-" + pid(first))
	if diff := cmp.Diff(map[hierarchy.Path]uint64{"eth0/batch": 20, limited: 20}, n.sentIn(func() { first.Do("udp %v:9 20", n.Far4) })); diff != "" {
		t.Errorf("limited (-want +got)\n%s", diff)
	}
	r = n.run("limit", "pid:"+pid(second), "--on", "eth0", "--prio", "2")
	said = "does not hold all of it: 1 process is in another network namespace: packets from there come by veth1 and go to " + string(limited)
	if r.code != 0 || !strings.Contains(r.stderr, said) {
		t.Errorf("limited beside it: %v", r)
	}
	n.ok("unlimit", "--all")
	for _, c := range []*tctest.Actor{first, second} {
		c.Dismiss()
	}
	n.ok("clear")
	n.clean()
}

// TestKernelPortLeft: what is on a bound port of a bridge goes although the shaped
// interface has gone before, or is another of the same name.
func TestKernelPortLeft(t *testing.T) {
	tctest.RequireLink(t, "bridge")
	n := newNetwork(t)
	file := n.policy("policy.toml", fmt.Sprintf(agentPolicy, "link:veth1"))
	marks := func(want int) {
		t.Helper()
		if out := tctest.TC(t, n.Near, "filter", "show", "dev", "veth1", "ingress"); strings.Count(out, "direct-action") != want {
			t.Errorf("%d programs wanted:\n%s", want, out)
		}
	}
	anew := func() {
		t.Helper()
		if err := n.Near.DeleteLink(n.Dev); err != nil {
			t.Fatal(err)
		}
		if err := lab.AddVeth(n.Near, lab.Link{Name: n.Dev}, n.Far, lab.Link{Name: "far1"}); err != nil {
			t.Fatal(err)
		}
	}
	err := n.Near.AddLink(lab.Link{Name: "br0", Kind: "bridge"})
	if err == nil {
		err = lab.AddVeth(n.Near, lab.Link{Name: "veth1", Master: "br0"}, n.Far, lab.Link{Name: "veth2"})
	}
	if err != nil {
		t.Fatal(err)
	}
	n.ok("apply", file)
	marks(1)
	anew()
	n.ok("apply", file)
	marks(1)
	anew()
	n.ok("clear")
	marks(0)
	n.ok("apply", file)
	marks(1)
	if err := n.Near.DeleteLink(n.Dev); err != nil {
		t.Fatal(err)
	}
	if r := n.run("clear"); r.code != 0 || !strings.Contains(r.stderr, "eth0 is gone, and its tree with it") {
		t.Error(r)
	}
	marks(0)
	if out := tctest.TC(t, n.Near, "qdisc", "show", "dev", "veth1"); strings.Contains(out, "clsact") {
		t.Errorf("left behind: %s", out)
	}
}

func dup(t testing.TB, fd int) int {
	t.Helper()
	fd, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
