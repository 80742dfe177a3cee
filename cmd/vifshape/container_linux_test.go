package main

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// containerProgram is the first process of a container, as a runtime brings it up: it
// joins a cgroup, and enters its network namespace later: container CGROUP ADDRESS,
// with the namespace as descriptor 3, and a line of input for each step: "enter", and
// "send". It answers each by a line.
func containerProgram(args []string) error {
	runtime.LockOSThread()
	if err := join(args[0]); err != nil {
		return err
	}
	fmt.Println("joined")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var err error
		switch in.Text() {
		case "enter":
			// the whole process, whose first thread this may not be
			if err = unix.Setns(3, unix.CLONE_NEWNET); err == nil {
				err = syscall.Exec("/proc/self/exe", os.Args, os.Environ())
			}
		case "send":
			var c net.Conn
			if c, err = net.Dial("udp4", args[1]); err == nil {
				for range 20 {
					_, e := c.Write(make([]byte, 100))
					err = errors.Join(err, e)
				}
				err = errors.Join(err, c.Close())
			}
		}
		if err != nil {
			return err
		}
		fmt.Println("done")
	}
	return in.Err()
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
		c := tctest.Command(t, "container", dir, netip.AddrPortFrom(n.Far4, 9).String())
		c.ExtraFiles = []*os.File{os.NewFile(uintptr(dup(t, inner.FD())), "netns")}
		in, err := c.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := c.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := n.Near.Start(c); err != nil {
			t.Fatal(err)
		}
		c.ExtraFiles[0].Close()
		lines := bufio.NewScanner(out)
		step := func(s string) {
			t.Helper()
			if s != "" {
				if _, err := fmt.Fprintln(in, s); err != nil {
					t.Fatal(err)
				}
			}
			if !lines.Scan() {
				t.Fatalf("the container has ended: %v", lines.Err())
			}
		}
		step("")
		n.bound(map[string]hierarchy.Path{n.target(dir): "eth0/web"})
		step("enter")
		n.bound(map[string]hierarchy.Path{n.target(dir): "eth0/web", "link:" + port: "eth0/web"})
		if diff := cmp.Diff(map[hierarchy.Path]uint64{"eth0/web": 20}, n.sentIn(func() { step("send") })); diff != "" {
			t.Errorf("(-want +got)\n%s", diff)
		}
		if i == 1 { // what is on its port goes with the rest
			n.ok("clear")
			a.says("not shaped any more")
			if out := tctest.TC(t, n.Near, "qdisc", "show", "dev", port); strings.Contains(out, "clsact") {
				t.Errorf("left behind: %s", out)
			}
		}
		in.Close()
		if err := c.Wait(); err != nil {
			t.Fatal(err)
		}
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
