package main

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/examples"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// nodePolicy has all that the DaemonSet's has: both directions, what the node itself does, pods.
const nodePolicy = `version = 1
[interface.eth0]
rate = "100mbit"
ingress = "90mbit"
[interface.eth0.system]
rate = "10mbit"
bind = ["user:4711"]
[interface.eth0.web]
rate = "50mbit"
pods = ["shop/*"]
`

// contain makes the calling thread what a container runtime makes of the agent of the DaemonSet:
// these capabilities are left to it, and a root and settings of the kernel that nobody may write to,
// but for the run directory and the cgroups; where cgroup v2 alone is there also a cgroup namespace, as to all that are
// not privileged (containerd, internal/cri/server/container_create.go).
func contain(capabilities []string) error {
	var err error
	if isV2("/sys/fs/cgroup") {
		err = unix.Unshare(unix.CLONE_NEWCGROUP)
	}
	if err == nil {
		err = unshareMounts()
	}
	if err == nil {
		err = os.MkdirAll(defaultRunDir, 0o755)
	}
	if err == nil {
		err = unix.Mount(defaultRunDir, defaultRunDir, "", unix.MS_BIND, "")
	}
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
	}
	for _, dir := range []string{"/proc/sys", "/proc/irq", "/proc/fs"} { // of a kubelet's readOnlyPaths
		if _, gone := os.Stat(dir); err == nil && gone == nil {
			err = unix.Mount(dir, dir, "", unix.MS_BIND, "")
			if err == nil {
				err = unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
			}
		}
	}
	if err == nil {
		err = unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	}
	if err != nil {
		return err
	}
	left := map[int]bool{}
	for _, name := range capabilities {
		c, err := caps.Number(name)
		if err != nil {
			return err
		}
		left[c] = true
	}
	for c := 0; c <= unix.CAP_LAST_CAP; c++ {
		if !left[c] { // root has at exec what is in the bounding set
			if err := unix.Prctl(unix.PR_CAPBSET_DROP, uintptr(c), 0, 0, 0); err != nil && err != unix.EINVAL { // which an older kernel does not know
				return err
			}
		}
	}
	return nil
}

// shapesPods says why an agent with these capabilities does not do what it is there for; empty:
// it does.
func (n *network) shapesPods(capabilities []string) (why string) {
	n.Helper()
	base, inner := tctest.Cgroup(n), tctest.NetNS(n)
	gateway, addr := netip.MustParseAddr("198.19.7.1"), netip.MustParseAddr("198.19.7.2")
	err := lab.AddVeth(n.Near, lab.Link{Name: "veth7", Addrs: []netip.Prefix{netip.PrefixFrom(gateway, 24)}}, inner, lab.Link{Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(addr, 24)}})
	if err == nil {
		err = inner.AddRoute(netip.PrefixFrom(n.Far4, 24), gateway, "eth0")
	}
	if err != nil {
		n.Fatal(err)
	}
	defer func() {
		if err := n.Near.DeleteLink("veth7"); err != nil {
			n.Error(err)
		}
	}()
	dir := filepath.Join(base, "burstable", "pod7")
	if err := os.MkdirAll(filepath.Join(dir, "c"), 0o755); err != nil {
		n.Fatal(err)
	}
	m := n.configMap(map[string]string{"fleet.toml": nodePolicy})
	defer os.RemoveAll(m.dir)
	a := n.startAgentBy(tctest.Command(n, "deeper", filepath.Join(base, "agent"), ";", "contain", strings.Join(capabilities, ","), ";", "vifshape", "agent", "--policies", m.dir, "--follow"))
	defer func() {
		if a.ProcessState == nil {
			a.end(syscall.SIGTERM)
		}
		n.ok("clear")
	}()
	for limit, ready := time.After(10*time.Second), false; !ready; {
		select {
		case s := <-a.states:
			ready = strings.Contains(s, "READY=1")
		case <-limit:
			return "it is not ready:\n" + a.said()
		case <-time.After(10 * time.Millisecond):
			if strings.Contains(a.said(), "vifshape: error: ") {
				return "it ended:\n" + a.said()
			}
		}
	}
	its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/cgroup", a.Process.Pid))
	if err != nil {
		n.Fatal(err)
	}
	if mine, err := os.Readlink("/proc/self/ns/cgroup"); err != nil || (its != mine) != isV2("/sys/fs/cgroup") {
		n.Errorf("the agent is in cgroup namespace %s, and the test in %s: %v", its, mine, err)
	}
	x := n.container(inner, filepath.Join(dir, "c"))
	defer x.Dismiss()
	x.Do("enter")
	path := strings.TrimPrefix(n.target(dir), "cgroup:")
	c := client.Client{Socket: n.store.AgentSocketFile()}
	pod := amend.Pod{RunningPod: bind.RunningPod{ID: "id7", Namespace: "shop", Name: "web-7", Cgroup: path}}
	if at, err := c.Pods(context.Background(), []amend.Pod{pod}, nil); err != nil || len(at) != 1 || len(at[0].Remarks) > 0 {
		return fmt.Sprintf("told of a pod: %+v, %v", at, err)
	}
	want := map[string]hierarchy.Path{"cgroup:" + path: "eth0/web", "link:veth7": "eth0/web", "uid:4711": "eth0/system"}
	if got := n.targets(); !maps.Equal(got, want) {
		return fmt.Sprintf("it has bound %v:\n%s", got, a.said())
	}
	if got := n.sentIn(func() { x.Do("udp %v:9 20", n.Far4) }); got["eth0/web"] != 20 {
		return fmt.Sprintf("the pod sends in %v", got)
	}
	if strings.Contains(a.said(), "level=WARN") || strings.Contains(a.said(), "level=ERROR") {
		return "it says:\n" + a.said()
	}
	return ""
}

// TestKernelDaemonSet: the capabilities that the DaemonSet gives the agent are enough, and it needs each.
func TestKernelDaemonSet(t *testing.T) {
	list := regexp.MustCompile(`(?s)- name: agent\n.*?add: \[([A-Z_, ]+)\]`).FindStringSubmatch(examples.DaemonSet)
	if list == nil {
		t.Fatalf("the agent adds no capabilities in\n%s", examples.DaemonSet)
	}
	all := strings.Split(list[1], ", ")
	n := newNetwork(t)
	if err := n.Near.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }); err != nil {
		t.Fatal(err)
	}
	if why := n.shapesPods(all); why != "" {
		t.Errorf("with %q: %s", all, why)
	}
	for _, c := range all {
		why := n.shapesPods(slices.DeleteFunc(slices.Clone(all), func(o string) bool { return o == c }))
		if why == "" {
			t.Errorf("it does as well without %s", c)
		}
		first, rest, _ := strings.Cut(why, "\n")
		t.Logf("without %s: %s %s", c, first, strings.TrimSpace(lastLine(rest)))
	}
}
