package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

const podsPolicy = `
version = 1
[interface.eth0]
rate = "900mbit"
[interface.eth0.web]
rate = "300mbit"
pods = ["shop/*"]
[interface.eth0.batch]
rate = "100mbit"
pods = [%s]
[interface.eth0.own]
rate = "100mbit"
`

// TestKernelPods: pods of which the container runtime tells are bound when the agent answers, by
// their cgroup and the host's end of their veth; who asks for more than the policy allows does
// not get it; a ceiling of a pod is held in its branch, and goes with it and with the policy.
func TestKernelPods(t *testing.T) {
	n := newNetwork(t)
	base := n.forwardsPods()
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(podsPolicy, `"ops/*", "shop/job-*"`)))
	a := n.agent()
	c := client.Client{Socket: n.store.AgentSocketFile()}
	tell := n.tellPods
	want := map[string]hierarchy.Path{}
	actors := map[string]*tctest.Actor{}
	ports := map[string]string{}
	start := func(i int, name, wish string, up, down hierarchy.Bandwidth) (amend.Pod, string) {
		t.Helper()
		p, port, x := n.pod(base, i, name)
		p.Wish, actors[name], ports[p.ID] = wish, x, port
		if up > 0 {
			p.Up = hierarchy.Absolute(up)
		}
		if down > 0 {
			p.Down = hierarchy.Absolute(down)
		}
		return p, port
	}
	sends := func(name string, in hierarchy.Path) {
		t.Helper()
		got := n.sentIn(func() { actors[name].Do("udp %v:9 20", n.Far4) })
		maps.DeleteFunc(got, func(p hierarchy.Path, _ uint64) bool { return p != in && in.Below(p) }) // what a branch above counts, too
		if diff := cmp.Diff(map[hierarchy.Path]uint64{in: 20}, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
	in := func(p amend.Pod, port string, at hierarchy.Path) {
		want["cgroup:"+p.Cgroup], want["link:"+port] = at, at
	}

	web, webPort := start(1, "shop/web-1", "", 0, 0)
	if got, want := tell([]amend.Pod{web}), []client.Place{{ID: "id1", Branches: []hierarchy.Path{"eth0/web"}}}; !cmp.Equal(got, want) {
		t.Errorf("told: %+v", got)
	}
	sends("shop/web-1", "eth0/web")
	in(web, webPort, "eth0/web")
	n.bound(want)

	// What it may have it gets, what it may not it does not.
	job, jobPort := start(2, "shop/job-1", "batch", 0, 0)
	climber, climberPort := start(3, "ops/x", "own", 0, 0)
	got := tell([]amend.Pod{job, climber})
	if want := []client.Place{
		{ID: "id2", Branches: []hierarchy.Path{"eth0/batch"}},
		{ID: "id3", Branches: []hierarchy.Path{"eth0/batch"}, Remarks: []string{"ops/x would like own, and is not among the pods of that"}},
	}; !cmp.Equal(got, want) {
		t.Errorf("told: %+v", got)
	}
	sends("shop/job-1", "eth0/batch")
	sends("ops/x", "eth0/batch")
	in(job, jobPort, "eth0/batch")
	in(climber, climberPort, "eth0/batch")
	n.bound(want)

	// A ceiling of its own is a branch of its own below.
	capped, cappedPort := start(4, "shop/web-2", "", 20*hierarchy.Mbit, 0)
	limit := hierarchy.Path("eth0/web/pod-shop-web-2")
	if got := tell([]amend.Pod{capped}); !cmp.Equal(got, []client.Place{{ID: "id4", Branches: []hierarchy.Path{limit}}}) {
		t.Errorf("told: %+v", got)
	}
	sends("shop/web-2", limit)
	sends("shop/web-1", "eth0/web/rest")
	in(capped, cappedPort, limit)
	in(web, webPort, "eth0/web")
	if out := n.ok("limits"); !strings.Contains(out, "pod:shop/web-2") || !strings.Contains(out, "pod ends") || !strings.Contains(out, "20mbit") {
		t.Errorf("limits:\n%s", out)
	}

	// Another policy gives pods other branches, limits with them, without a word of the runtime.
	n.ok("apply", n.policy("policy.toml", strings.Replace(fmt.Sprintf(podsPolicy, `"*/*"`), `pods = ["shop/*"]`, "", 1)))
	moved := hierarchy.Path("eth0/batch/pod-shop-web-2")
	n.until("the limit to be in the other branch", func() bool {
		return slices.ContainsFunc(tell(nil), func(p client.Place) bool { return p.ID == "id4" && cmp.Equal(p.Branches, []hierarchy.Path{moved}) })
	})
	sends("shop/web-2", moved)
	sends("shop/web-1", "eth0/batch/rest")

	// What is known stays so with another agent. What has ended is let go of.
	if code := a.end(syscall.SIGKILL); code != -1 {
		t.Errorf("SIGKILL: exit status %d", code)
	}
	if _, err := c.Pods(context.Background(), nil, []string{"id4"}); err == nil || !strings.Contains(err.Error(), "no agent of vifshape listens") && !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("without an agent: %v", err)
	}
	b := n.agent()
	if got := tell(nil); len(got) != 4 {
		t.Errorf("known: %+v", got)
	}
	end := func(ids ...string) { // and their networks with them
		t.Helper()
		for _, id := range ids {
			if err := n.Near.DeleteLink(ports[id]); err != nil {
				t.Fatal(err)
			}
		}
		tell(nil, append(ids, "none")...)
	}
	end("id4", "id2", "id3")
	n.until("the limit to be gone", func() bool { return !strings.Contains(n.ok("limits", "--json"), "pod:") })
	sends("shop/web-1", "eth0/batch")
	if got := tell(nil); !cmp.Equal(got, []client.Place{{ID: "id1", Branches: []hierarchy.Path{"eth0/batch"}}}) {
		t.Errorf("left: %+v", got)
	}
	end("id1")
	n.bound(map[string]hierarchy.Path{})

	if code := b.end(syscall.SIGTERM); code != 0 {
		t.Errorf("SIGTERM: exit status %d", code)
	}
	n.ok("clear")
	n.clean()
}

// forwardsPods has the machine forward what pods send, and makes a cgroup for theirs.
func (n *network) forwardsPods() string {
	n.Helper()
	if err := n.Near.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) }); err != nil {
		n.Fatal(err)
	}
	return tctest.Cgroup(n)
}

// tellPods tells the agent of pods that run, and of others that have ended.
func (n *network) tellPods(run []amend.Pod, gone ...string) []client.Place {
	n.Helper()
	c := client.Client{Socket: n.store.AgentSocketFile()}
	at, err := c.Pods(context.Background(), run, gone)
	if err != nil {
		n.Fatal(err)
	}
	return at
}

// pod makes one as a runtime does, whose first process is in its network when it is told of. Port is
// the host's end of its veth.
func (n *network) pod(base string, i int, name string) (p amend.Pod, port string, x *tctest.Actor) {
	n.Helper()
	inner := tctest.NetNS(n)
	gateway, addr := netip.AddrFrom4([4]byte{198, 19, byte(i), 1}), netip.AddrFrom4([4]byte{198, 19, byte(i), 2})
	port = fmt.Sprintf("veth%d", i)
	err := lab.AddVeth(n.Near, lab.Link{Name: port, Addrs: []netip.Prefix{netip.PrefixFrom(gateway, 24)}},
		inner, lab.Link{Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(addr, 24)}})
	if err == nil {
		err = inner.AddRoute(netip.PrefixFrom(n.Far4, 24), gateway, "eth0")
	}
	if err == nil {
		err = n.Far.AddRoute(netip.PrefixFrom(addr, 24), n.Near4, n.FarDev)
	}
	if err != nil {
		n.Fatal(err)
	}
	dir := filepath.Join(base, fmt.Sprintf("pod%d", i))
	if err := os.MkdirAll(filepath.Join(dir, "c"), 0o755); err != nil {
		n.Fatal(err)
	}
	x = n.container(inner, filepath.Join(dir, "c"))
	x.Do("enter")
	space, short, _ := strings.Cut(name, "/")
	return amend.Pod{RunningPod: bind.RunningPod{ID: fmt.Sprintf("id%d", i), Namespace: space, Name: short, Cgroup: strings.TrimPrefix(n.target(dir), "cgroup:")}}, port, x
}

// TestKernelPodsEnded: what the sockets of a pod hold that has ended is sent by its branch, and held
// to its own ceiling, as long as its network is there.
func TestKernelPodsEnded(t *testing.T) {
	for _, x := range []struct {
		name string
		ceil hierarchy.Bandwidth
		in   hierarchy.Path
	}{
		{"a branch", 0, "eth0/web"},
		{"its own ceiling", 6 * hierarchy.Mbit, "eth0/web/pod-shop-web"},
	} {
		t.Run(x.name, func(t *testing.T) { testPodEnded(t, x.ceil, x.in) })
	}
}

func testPodEnded(t *testing.T, ceil hierarchy.Bandwidth, in hierarchy.Path) {
	n := newNetwork(t)
	base := n.forwardsPods()
	n.ok("apply", n.policy("policy.toml", strings.ReplaceAll(fmt.Sprintf(podsPolicy, `"ops/*"`), `rate = "300mbit"`, `rate = "8mbit"
ceil = "8mbit"`)))
	n.agent()
	p, port, x := n.pod(base, 1, "shop/web")
	if ceil > 0 {
		p.Up = hierarchy.Absolute(ceil)
	}
	n.tellPods([]amend.Pod{p})
	n.bound(map[string]hierarchy.Path{"cgroup:" + p.Cgroup: in, "link:" + port: in})

	var l net.Listener
	if err := n.Far.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(n.Far4, 9).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	read, all := make(chan bool), make(chan int64, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		<-read
		got, _ := io.Copy(io.Discard, c) // up to its end, or that of the test
		all <- got
	}()
	rests := func() uint64 { return n.packets()["eth0/rest"] + n.packets()["eth0/web/rest"] }
	before := rests()
	x.Begin("pour %v:9 0 %d", n.Far4, 2*hierarchy.MiB)
	// The far end has taken what it has room for by then, and the pod's socket is full.
	for was := uint64(0); was == 0 || was != n.packets()[in]; time.Sleep(300 * time.Millisecond) {
		was = n.packets()[in]
	}
	// As runtimes do it: first its processes, then its cgroups, then its network.
	if err := x.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = x.Wait() // it was killed
	n.until("its cgroups to be empty", func() bool {
		return unix.Rmdir(filepath.Join(base, "pod1", "c")) == nil && unix.Rmdir(filepath.Join(base, "pod1")) == nil
	})
	if at := n.tellPods(nil, p.ID); len(at) > 0 {
		t.Errorf("it has ended, and runs: %+v", at)
	}
	n.bound(map[string]hierarchy.Path{"link:" + port: in})
	killed := n.packets()[in]
	close(read)
	got := <-all
	sent := n.packets()[in] - killed
	t.Logf("%d bytes, and %d packets after it had ended", got, sent)
	if sent < 50 {
		t.Errorf("after it had ended only %d packets came", sent)
	}
	if n := rests() - before; n > 0 {
		t.Errorf("%d packets went to the rest", n)
	}

	if err := n.Near.DeleteLink(port); err != nil {
		t.Fatal(err)
	}
	n.bound(map[string]hierarchy.Path{})
	n.podsOver()
}

// podsOver waits until nothing is known of any pod, nor held of it.
func (n *network) podsOver() {
	n.Helper()
	n.until("the pods to be over", func() bool {
		pods, err := n.store.Pods()
		if err != nil {
			n.Fatal(err)
		}
		return len(pods) == 0 && !strings.Contains(n.ok("limits", "--json"), "pod:")
	})
}

// TestKernelPodsQueue: what waits in the branch of a pod's own ceiling when its network goes is sent,
// and nobody waits for that meanwhile.
func TestKernelPodsQueue(t *testing.T) {
	n := newNetwork(t)
	base := n.forwardsPods()
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(podsPolicy, `"ops/*"`)))
	n.agent()
	p, port, x := n.pod(base, 1, "shop/web")
	p.Up = hierarchy.Absolute(40 * hierarchy.Kbit)
	n.tellPods([]amend.Pod{p})
	const in = "eth0/web/pod-shop-web"
	x.Do("udp %v:9 400", n.Far4)
	if err := n.Near.DeleteLink(port); err != nil {
		t.Fatal(err)
	}
	n.tellPods(nil, p.ID)
	if out := n.ok("limits", "--json"); !strings.Contains(out, "pod:shop/web") {
		t.Errorf("the limit is gone, and packets waited: %d of 400 have left", n.packets()[in])
	}

	// One that comes again under the same name takes it over, with its own ceiling.
	again, port, _ := n.pod(base, 2, "shop/web")
	again.Up = hierarchy.Absolute(80 * hierarchy.Kbit)
	left := n.packets()[in]
	if at := n.tellPods([]amend.Pod{again}); len(at) != 1 || !slices.Equal(at[0].Branches, []hierarchy.Path{in}) {
		t.Errorf("come again: %+v", at)
	}
	if out := n.ok("limits", "--json"); !strings.Contains(out, "80kbit") || strings.Contains(out, "40kbit") {
		t.Errorf("limits:\n%s", out)
	}
	if now := n.packets()[in]; left == 0 || now < left {
		t.Errorf("another class: %d packets have left it, and %d had before", now, left)
	}
	if err := n.Near.DeleteLink(port); err != nil {
		t.Fatal(err)
	}
	n.tellPods(nil, again.ID)
	n.podsOver()
}

// TestKernelPodsBoundElse: who binds a pod's cgroup for itself has all of the pod.
func TestKernelPodsBoundElse(t *testing.T) {
	n := newNetwork(t)
	base := n.forwardsPods()
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(podsPolicy, `"ops/*"`)))
	n.agent()
	p, port, x := n.pod(base, 1, "shop/web")
	n.tellPods([]amend.Pod{p})
	n.bound(map[string]hierarchy.Path{"cgroup:" + p.Cgroup: "eth0/web", "link:" + port: "eth0/web"})
	n.ok("bind", "eth0/own", "cgroup:"+p.Cgroup)
	n.bound(map[string]hierarchy.Path{"cgroup:" + p.Cgroup: "eth0/own", "link:" + port: "eth0/own"})
	n.tellPods([]amend.Pod{p}) // again
	n.bound(map[string]hierarchy.Path{"cgroup:" + p.Cgroup: "eth0/own", "link:" + port: "eth0/own"})
	if got := n.sentIn(func() { x.Do("udp %v:9 20", n.Far4) }); got["eth0/own"] != 20 || len(got) != 1 {
		t.Errorf("sent: %v", got)
	}
}

// TestKernelPodsAside: what goes wrong with one pod or one interface is no other pod's loss: a limit
// that cannot be made, an interface that went. And no pod alone has what the machine receives go
// through a tree.
func TestKernelPodsAside(t *testing.T) {
	n := newNetwork(t)
	base := n.forwardsPods()
	if err := lab.AddVeth(n.Near, lab.Link{Name: "gone0"}, n.Near, lab.Link{Name: "gone1"}); err != nil {
		t.Fatal(err)
	}
	deep, text := hierarchy.Path("eth0"), fmt.Sprintf(podsPolicy, `"ops/*"`)
	for range hierarchy.MaxDepth - 1 {
		deep = deep.Join("deep")
		text += fmt.Sprintf("[interface.%s]\nrate = \"50mbit\"\n", strings.ReplaceAll(string(deep), "/", "."))
	}
	text += "pods = [\"deep/*\"]\n[interface.gone0]\nrate = \"900mbit\"\n[interface.gone0.ops]\nrate = \"1mbit\"\npods = [\"ops/*\"]\n"
	n.ok("apply", n.policy("policy.toml", text))
	a := n.agent()
	if err := n.Near.DeleteLink("gone0"); err != nil {
		t.Fatal(err)
	}

	stuck, _, _ := n.pod(base, 1, "deep/x")
	stuck.Up = hierarchy.Absolute(hierarchy.Mbit)
	c := client.Client{Socket: n.store.AgentSocketFile()}
	if _, err := c.Pods(t.Context(), []amend.Pod{stuck}, nil); err == nil || !strings.Contains(err.Error(), "deep/x is not held") {
		t.Errorf("a limit at the lowest level: %v", err)
	}

	p, port, x := n.pod(base, 2, "shop/web")
	p.Down = hierarchy.Absolute(5 * hierarchy.Mbit)
	want := []client.Place{{ID: "id2", Branches: []hierarchy.Path{"eth0/web"}, Remarks: []string{
		"shop/web has a bandwidth for what it receives, to which it is not held: no policy here has ingress"}}}
	got := n.tellPods([]amend.Pod{p})
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	n.bound(map[string]hierarchy.Path{"cgroup:" + stuck.Cgroup: deep, "link:veth1": deep, "cgroup:" + p.Cgroup: "eth0/web", "link:" + port: "eth0/web"})
	if got := n.sentIn(func() { x.Do("udp %v:9 20", n.Far4) }); got["eth0/web"] != 20 || len(got) != 1 {
		t.Errorf("sent: %v", got)
	}
	if out := n.ok("limits"); strings.Contains(out, "pod:") {
		t.Errorf("limits:\n%s", out)
	}
	p.Up, p.Down = hierarchy.Absolute(5*hierarchy.Mbit), hierarchy.Amount{}
	if diff := cmp.Diff([]client.Place{{ID: "id2", Branches: []hierarchy.Path{"eth0/web/pod-shop-web"}}}, n.tellPods([]amend.Pod{p})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	n.until("the agent to say why one has no limit", func() bool { return strings.Contains(a.said(), "deep/x is not held") })
}

// TestKernelPodsTwice: where the CNI plugin bandwidth holds a pod to its annotations as well, that is
// named; where there is none, or the pod has no such annotation, it is not.
func TestKernelPodsTwice(t *testing.T) {
	const plugin = "/usr/lib/cni/bandwidth"
	_, err := os.Stat(plugin)
	tctest.Require(t, err == nil, "program "+plugin)
	n := newNetwork(t)
	base := n.forwardsPods()
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(podsPolicy, `"ops/*"`)))
	n.agent()
	remarks := func(p amend.Pod) []string {
		t.Helper()
		at := n.tellPods([]amend.Pod{p})
		if len(at) != 1 {
			t.Fatal(at)
		}
		return at[0].Remarks
	}
	plain, _, _ := n.pod(base, 1, "shop/plain")
	p, port, x := n.pod(base, 2, "shop/capped")
	p.Up = hierarchy.Absolute(20 * hierarchy.Mbit)
	if got := remarks(p); len(got) > 0 {
		t.Errorf("without the other: %q", got)
	}
	conf := fmt.Sprintf(`{"cniVersion": "0.4.0", "name": "pods", "type": "bandwidth",
		"runtimeConfig": {"bandwidth": {"ingressRate": 20000000, "ingressBurst": 2000000, "egressRate": 20000000, "egressBurst": 2000000}},
		"prevResult": {"cniVersion": "0.4.0", "interfaces": [{"name": %q}, {"name": "eth0", "sandbox": "/proc/%d/ns/net"}]}}`, port, x.Process.Pid)
	cmd := exec.Command(plugin)
	cmd.Env = []string{"CNI_COMMAND=ADD", "CNI_CONTAINERID=capped", fmt.Sprintf("CNI_NETNS=/proc/%d/ns/net", x.Process.Pid), "CNI_IFNAME=eth0", "CNI_PATH=/usr/lib/cni"}
	cmd.Stdin = strings.NewReader(conf)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := n.Near.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatalf("%v: %s", err, &out)
	}
	if got := remarks(p); len(got) != 1 || !strings.HasPrefix(got[0], "the CNI plugin bandwidth holds pods to the same annotations (bwp") {
		t.Errorf("beside the other: %q", got)
	}
	if got := remarks(plain); len(got) > 0 {
		t.Errorf("one without a ceiling: %q", got)
	}
}

// TestKernelPodsDenied: only root tells of pods, from outside of all branches, and only such as
// there can be.
func TestKernelPodsDenied(t *testing.T) {
	n := newNetwork(t)
	n.public()
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(podsPolicy, `"ops/*"`)))
	n.agent()
	good := `{"version":1,"op":"pods","run":[{"id":"1","namespace":"shop","name":"x","cgroup":"/pod"}]}`
	for _, x := range []struct {
		path    string
		uid     uint32
		request string
		code    int
		want    string
	}{
		{"", 0, good, 0, ""},
		{"", 1234, good, exitPrivilege, "no branch is delegated to user 1234"},
		{"eth0/own", 0, good, exitPrivilege, "only root may tell of pods, and from outside of all branches"},
		{"", 0, `{"version":1,"op":"pods","path":"eth0/web"}`, exitUsage, `"pods" has no path`},
		{"", 0, `{"version":1,"op":"enter","path":"eth0/web","gone":["1"]}`, exitUsage, `pods are told of by "pods"`},
		{"", 0, strings.Replace(good, `"id":"1"`, `"id":"a\nb"`, 1), exitUsage, `is no id of a pod`},
		{"", 0, strings.Replace(good, `"name":"x"`, `"name":"*"`, 1), exitUsage, `"shop/*" is no pod`},
		{"", 0, strings.Replace(good, `"/pod"`, `"/"`, 1), exitUsage, `"/" is no cgroup of a pod`},
		{"", 0, strings.Replace(good, `"/pod"`, `"/../.."`, 1), exitUsage, `is no cgroup of a pod`},
		{"", 0, strings.Replace(good, `"name":"x"`, `"name":"x","up":"5%"`, 1), exitUsage, `its ceilings are bandwidths`},
		{"", 0, strings.Replace(good, `"name":"x"`, `"name":"x","wish":"a\u0000"`, 1), exitUsage, `is no branch`},
	} {
		if got := n.petitionFrom(x.path, x.uid, x.request); got.Code != x.code || !strings.Contains(got.Error, x.want) {
			b, _ := json.Marshal(got)
			t.Errorf("%s as %d in %q: %s", x.request, x.uid, x.path, b)
		}
	}
}

// podsNode is a node whose agent is told of pods.
type podsNode struct {
	*network
	agent *watcher
	base  string // the pods' cgroup
}

// newPodsNode is one with a number of pods of the shop.
func newPodsNode(b *testing.B, policy string, pods int) *podsNode {
	n := newNetwork(b)
	n.built()
	base := tctest.Cgroup(b)
	n.ok("apply", n.policy("policy.toml", policy))
	p := &podsNode{n, n.agent(), base}
	var all []amend.Pod
	for i := range pods {
		all = append(all, p.pod(i))
	}
	for some := range slices.Chunk(all, 16) { // as the plugin does
		p.tell(some)
	}
	return p
}

// pod is one as a container runtime leaves it: with a network of its own, to which a veth leads,
// and two containers with a process in each.
func (n *podsNode) pod(i int) amend.Pod {
	n.Helper()
	inner := tctest.NetNS(n)
	if err := lab.AddVeth(n.Near, lab.Link{Name: fmt.Sprintf("veth%d", i)}, inner, lab.Link{Name: "eth0"}); err != nil {
		n.Fatal(err)
	}
	dir := filepath.Join(n.base, fmt.Sprintf("pod%d", i))
	for _, container := range []string{"pause", "app"} {
		sleeps := exec.Command("sleep", "1000")
		if err := inner.Start(sleeps); err != nil {
			n.Fatal(err)
		}
		n.Cleanup(func() {
			_ = sleeps.Process.Kill()
			_ = sleeps.Wait() // it was killed
		})
		in := filepath.Join(dir, container)
		err := os.MkdirAll(in, 0o755)
		if err == nil {
			err = os.WriteFile(filepath.Join(in, "cgroup.procs"), []byte(fmt.Sprint(sleeps.Process.Pid)), 0)
		}
		if err != nil {
			n.Fatal(err)
		}
	}
	return amend.Pod{RunningPod: bind.RunningPod{ID: fmt.Sprintf("%064d", i), Namespace: "shop", Name: fmt.Sprintf("web-%d", i), Cgroup: strings.TrimPrefix(n.target(dir), "cgroup:")}}
}

// tell tells the agent, and returns how long that took.
func (n *podsNode) tell(run []amend.Pod, gone ...string) time.Duration {
	n.Helper()
	start := time.Now()
	n.tellPods(run, gone...)
	return time.Since(start)
}

// BenchmarkPods is how long a pod's start waits for the agent, on a node with as many other pods,
// and how long its end does; and how long the agent's own look at all of them takes, which comes
// soon after and which a start may have to wait for as well.
func BenchmarkPods(b *testing.B) {
	for _, others := range []int{0, 125, 250} {
		b.Run(fmt.Sprint(others), func(b *testing.B) {
			n := newPodsNode(b, fmt.Sprintf(podsPolicy, `"ops/*"`), others)
			x := n.pod(others)
			var starts, ends, looks []time.Duration
			for b.Loop() {
				starts = append(starts, n.tell([]amend.Pod{x}))
				b.StopTimer()
				ends = append(ends, n.tell(nil, x.ID))
				b.StartTimer()
			}
			for range 10 {
				time.Sleep(200 * time.Millisecond) // until it has looked
				start := time.Now()
				if err := n.agent.Process.Signal(syscall.SIGHUP); err != nil {
					b.Fatal(err)
				}
				n.agent.told("READY=1")
				looks = append(looks, time.Since(start))
			}
			b.ReportMetric(ms(slices.Min(looks)), "ms-look-best")
			b.ReportMetric(ms(slices.Min(starts)), "ms-start-best")
			b.ReportMetric(ms(quantile(starts, 0.5)), "ms-start-median")
			b.ReportMetric(ms(slices.Min(ends)), "ms-end-best")
			b.ReportMetric(ms(quantile(ends, 0.5)), "ms-end-median")
		})
	}
}

// BenchmarkPodsPolicy is what another policy costs a node with 250 pods, the whole command: one
// that changes a rate, and one that gives all of them another branch.
func BenchmarkPodsPolicy(b *testing.B) {
	text := fmt.Sprintf(podsPolicy, `"ops/*"`) + "[interface.eth0.system]\nrate = \"50mbit\"\n"
	moved := strings.Replace(strings.Replace(text, `pods = ["shop/*"]`, "", 1), `"ops/*"`, `"shop/*"`, 1)
	for _, x := range []struct{ name, text, class string }{
		{"rate", strings.Replace(text, "300mbit", "200mbit", 1), "eth0/web"},
		{"all moved", moved, "eth0/batch"},
	} {
		b.Run(x.name, func(b *testing.B) {
			n := newPodsNode(b, text, 250)
			files := [2]string{n.policy("two.toml", x.text), n.policy("one.toml", text)}
			var took []time.Duration
			for b.Loop() {
				start := time.Now()
				n.ok("apply", files[len(took)%2])
				took = append(took, time.Since(start))
			}
			in := hierarchy.Path(x.class)
			if len(took)%2 == 0 {
				in = "eth0/web"
			}
			for _, at := range n.targets() {
				if at != in {
					b.Fatalf("a pod is in %s, and not in %s", at, in)
				}
			}
			b.ReportMetric(ms(slices.Min(took)), "ms-best")
			b.ReportMetric(ms(quantile(took, 0.5)), "ms-median")
		})
	}
}
