package rig_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vifshape/vifshape/cmd/vifshape-nri/rig"
)

// node is a rig whose uplink is shaped, with an agent.
type node struct {
	*rig.Rig
	t        *testing.T
	vifshape string // the program
	agent    *rig.Program
	nri      string // the plugin's program
	plugin   *rig.Program
}

func newNode(t *testing.T) *node {
	t.Helper()
	r := rig.Start(t)
	n := &node{Rig: r, t: t, vifshape: rig.Repository(t, ".", "./cmd/vifshape"), nri: rig.Repository(t, "cmd/vifshape-nri", ".")}
	t.Cleanup(func() { n.ok("clear") }) // programs on cgroups outlive a network namespace
	return n
}

func (n *node) ok(args ...string) string {
	n.t.Helper()
	out, err := n.Output(n.vifshape, args...)
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// apply has the text in force as the node's policy.
func (n *node) apply(policy string) {
	n.t.Helper()
	n.ok("apply", n.Write("policy.toml", policy))
}

func (n *node) startAgent() {
	n.t.Helper()
	n.agent = n.Run(n.vifshape, "agent")
	n.agent.Says("ready")
}

func (n *node) startPlugin(flags ...string) {
	n.t.Helper()
	n.plugin = n.Run(n.nri, flags...)
	n.plugin.Says("tells of its pods")
}

// sent is what each branch has sent since the interface was shaped, in bytes.
func (n *node) sent() map[string]uint64 {
	n.t.Helper()
	var shown struct {
		Interfaces []struct {
			Branches []struct {
				Path  string
				Bytes uint64
			}
		}
	}
	if err := json.Unmarshal([]byte(n.ok("show", "--json")), &shown); err != nil {
		n.t.Fatal(err)
	}
	sent := map[string]uint64{}
	for _, i := range shown.Interfaces {
		for _, b := range i.Branches {
			sent[b.Path] = b.Bytes
		}
	}
	return sent
}

// sending is a pod that sends as much as it can by IPv4, and has begun to.
func (n *node) sending(s rig.Spec) *rig.Pod {
	n.t.Helper()
	p := n.Pod(s)
	p.Send(n.Far4)
	n.begun(p.Addrs[0])
	return p
}

func (n *node) begun(a netip.Addr) {
	n.t.Helper()
	was := n.Sink.Bytes(a)
	n.Until(fmt.Sprintf("%v sends", a), func() bool { return n.Sink.Bytes(a) > was })
}

const mbit = 1e6 / 8 // in bytes a second

// fleet is the policy of the node: two tenants, and what is nobody's.
const fleet = `version = 1
[interface.eth0]
rate = "60mbit"
[interface.eth0.shop]
rate = %q
ceil = %q
pods = ["shop/*"]
[interface.eth0.lab]
rate = "5mbit"
ceil = "10mbit"
pods = ["lab/*"]
`

// TestKernelFleet: a node's pods are in the branches of their tenants, whatever is killed, started
// again or changed meanwhile. What is measured is at the far end, by who sent it, and by class;
// rates have room for a machine with much else to do.
func TestKernelFleet(t *testing.T) {
	n := newNode(t)
	n.applyRate(30, 40)
	n.startAgent()
	n.startPlugin()
	begin := time.Now()
	// no tests of their own: what one starts the next one goes on with
	for _, step := range []struct {
		name string
		run  func(*node)
	}{
		{"ceilings", ceilings},
		{"guarantees", guarantees},
		{"from the first packet", firstPackets},
		{"a branch that it may not have", denied},
		{"a ceiling of its own", capped},
		{"plugin killed", pluginKilled},
		{"no pod without its branch", strict},
		{"agent killed", agentKilled},
		{"containerd killed", containerdKilled},
		{"policy changed", policyChanged},
		{"many", manyPods},
	} {
		t.Logf("%5.1fs: %s", time.Since(begin).Seconds(), step.name)
		step.run(n)
		n.nothingLeft()
	}
	t.Logf("%5.1fs: all", time.Since(begin).Seconds())
}

// nothingLeft holds that soon nothing is there of pods that were removed, of the agent's nor of the
// runtime's.
func (n *node) nothingLeft() {
	n.t.Helper()
	var left []string
	for range 200 {
		if left = append(n.Left(), n.bound()...); len(left) == 0 {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
	n.t.Fatalf("left of pods: %q", left)
}

// applyRate has a rate and a ceiling in force for the shop, in mbit/s.
func (n *node) applyRate(rate, ceil int) {
	n.t.Helper()
	n.apply(fmt.Sprintf(fleet, fmt.Sprintf("%dmbit", rate), fmt.Sprintf("%dmbit", ceil)))
}

// shop and lab are pods of the tenants.
func shop(name string) rig.Spec { return rig.Spec{Namespace: "shop", Name: name} }
func lab(name string) rig.Spec  { return rig.Spec{Namespace: "lab", Name: name} }

// between holds that a rate is at least and at most what it shall be, with room for a machine
// that has little time for it, and for a burst.
func (n *node) between(what string, bytes uint64, d time.Duration, least, most float64) {
	n.t.Helper()
	rate := float64(bytes) / d.Seconds() / mbit
	n.t.Logf("%s: %.1f mbit/s", what, rate)
	if rate < 0.6*least || rate > 1.1*most {
		n.t.Errorf("%s sends %.1f mbit/s, not %v to %v", what, rate, least, most)
	}
}

// ceilings: each tenant's pods send as much as its ceiling together, and nothing of it goes
// elsewhere.
func ceilings(n *node) {
	before := n.sent()
	web, api := n.sending(shop("web")), n.sending(shop("api"))
	job := n.sending(lab("job"))
	const d = 3 * time.Second
	w := n.Sink.Window(d, web.Addrs[0], api.Addrs[0], job.Addrs[0])
	n.between("shop", w[0]+w[1], d, 40, 40)
	n.between("lab", w[2], d, 10, 10)
	n.carried(before, map[string][]*rig.Pod{"eth0/shop": {web, api}, "eth0/lab": {job}})
	for _, p := range []*rig.Pod{web, api, job} {
		p.Remove()
	}
}

// carried holds that branches have carried at least what arrived of pods, and that the rest has
// carried less than what one packet of a pod that sends is long: the node itself may look whether
// the far end is still there (ARP, 42 bytes).
func (n *node) carried(before map[string]uint64, by map[string][]*rig.Pod) {
	n.t.Helper()
	arrived := map[string]uint64{}
	for branch, pods := range by {
		for _, p := range pods {
			arrived[branch] += n.Sink.Bytes(p.Addrs...)
		}
	}
	after := n.sent()
	for branch, bytes := range arrived {
		if got := after[branch] - before[branch]; got < bytes {
			n.t.Errorf("%s has sent %d bytes, and %d of its pods have arrived", branch, got, bytes)
		}
	}
	// The node's own: neighbours, and errors of ICMP, 94 bytes each, for what still comes to pods of
	// before. The first packets of a pod in the wrong place would be some 15 kB.
	if rest := after["eth0/rest"] - before["eth0/rest"]; rest > 4000 {
		n.t.Errorf("the rest has sent %d bytes", rest)
	}
}

// guarantees: where all want more than there is, each tenant has its rate.
func guarantees(n *node) {
	web := n.sending(shop("web"))
	job := n.sending(lab("job"))
	greedy := n.sending(rig.Spec{Namespace: "other", Name: "greedy"})
	const d = 3 * time.Second
	w := n.Sink.Window(d, web.Addrs[0], job.Addrs[0], greedy.Addrs[0])
	n.between("shop", w[0], d, 30, 40)
	n.between("lab", w[1], d, 5, 10)
	n.between("all", w[0]+w[1]+w[2], d, 60, 60)
	for _, p := range []*rig.Pod{web, job, greedy} {
		p.Remove()
	}
}

// firstPackets: init containers, IPv6, and pods in the network of the node.
func firstPackets(n *node) {
	const much = 1 << 20
	before := n.sent()
	p := n.Pod(shop("init"))
	p.SendBytes(n.Far4, much)
	p.SendBytes(n.Far6, much)
	n.carried(before, map[string][]*rig.Pod{"eth0/shop": {p}})
	p.Remove()

	before = n.sent()
	host := n.Pod(rig.Spec{Namespace: "lab", Name: "host", HostNetwork: true})
	host.SendBytes(n.Far4, much)
	host.SendBytes(n.Far6, much)
	after := n.sent()
	if got := after["eth0/lab"] - before["eth0/lab"]; got < 2*much || after["eth0/rest"] != before["eth0/rest"] {
		n.t.Errorf("of %d bytes of a pod in the node's network its branch has sent %d, and the rest %d", 2*much, got, after["eth0/rest"]-before["eth0/rest"])
	}
	host.Remove()
}

// denied: whose pods may be in a branch says the policy, and no annotation.
func denied(n *node) {
	before := n.sent()
	s := lab("thief")
	s.Annotations = map[string]string{"vifshape.dev/branch": "shop"}
	thief := n.sending(s)
	n.plugin.Says("lab/thief would like shop, and is not among the pods of that")
	n.holds("eth0/lab", thief)
	if got := n.sent()["eth0/shop"] - before["eth0/shop"]; got > 0 {
		n.t.Errorf("the shop's branch has sent %d bytes of another's pod", got)
	}
	thief.Remove()
}

// capped: the annotation by which the CNI plugin bandwidth goes is a ceiling in the pod's branch,
// which goes with the pod.
func capped(n *node) {
	s := shop("capped")
	s.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "4M"}
	p := n.sending(s)
	const d = 3 * time.Second
	n.between("a pod of 4 mbit/s", n.Sink.Window(d, p.Addrs[0])[0], d, 4, 4)
	n.holds("eth0/shop/pod-shop-capped", p)
	p.Remove()
	n.Until("its limit has gone", func() bool { return !strings.Contains(n.ok("limits", "--json"), "capped") })
}

// pluginKilled: what is bound holds without the plugin, and one that is started again has those
// bound that came meanwhile, and lets go of those that went.
func pluginKilled(n *node) {
	web, gone := n.sending(shop("web")), n.Pod(shop("gone"))
	n.plugin.Kill()
	job := n.sending(lab("job"))
	gone.Remove()
	before := n.sent()
	n.begun(job.Addrs[0])
	if n.sent()["eth0/rest"] == before["eth0/rest"] {
		n.t.Error("who is told of by nobody is not in the rest: what follows says nothing")
	}
	n.startPlugin()
	n.holds("eth0/lab", job)
	n.holds("eth0/shop", web)
	web.Remove()
	job.Remove()
}

// strict: with --strict no pod starts that the agent cannot be told of.
func strict(n *node) {
	n.plugin.Stop()
	n.startPlugin("--strict")
	n.agent.Kill()
	if p, err := n.TryPod(shop("web")); err == nil {
		n.t.Error("a pod starts without an agent")
		p.Remove()
	}
	n.startAgent()
	web := n.sending(shop("web"))
	n.holds("eth0/shop", web)
	web.Remove()
	n.plugin.Stop()
	n.startPlugin()
}

// agentKilled: what is bound holds without an agent, and one that is started again binds what came
// meanwhile.
func agentKilled(n *node) {
	web := n.sending(shop("web"))
	n.agent.Kill()
	n.holds("eth0/shop", web)
	job := n.sending(lab("job"))
	n.startAgent()
	n.holds("eth0/lab", job)
	web.Remove()
	job.Remove()
}

// containerdKilled: what is bound holds without containerd, and what comes when it is back is bound.
func containerdKilled(n *node) {
	web := n.sending(shop("web"))
	n.KillContainerd()
	n.holds("eth0/shop", web)
	n.StartContainerd()
	job := n.sending(lab("job"))
	n.holds("eth0/lab", job)
	n.holds("eth0/shop", web)
	web.Remove()
	job.Remove()
}

// holds waits until a megabyte of a pod is carried by its branch and nothing by the rest, where no
// other pod sends by either.
func (n *node) holds(branch string, p *rig.Pod) {
	n.t.Helper()
	const much = 1 << 20
	n.Until(branch+" carries all of it", func() bool {
		before, was := n.sent(), n.Sink.Bytes(p.Addrs[0])
		n.Until("a megabyte more", func() bool { return n.Sink.Bytes(p.Addrs[0]) >= was+much })
		after := n.sent()
		return after["eth0/rest"] == before["eth0/rest"] && after[branch]-before[branch] > much/2
	})
}

// together does something for each number below count, four at a time, and ends the test when
// one of it fails.
func (n *node) together(count int, do func(i int) error) {
	n.t.Helper()
	var w sync.WaitGroup
	next := make(chan int)
	var failed atomic.Bool
	for range 4 {
		w.Go(func() {
			for i := range next {
				if err := do(i); err != nil {
					n.t.Errorf("%d: %v", i, err)
					failed.Store(true)
				}
			}
		})
	}
	for i := range count {
		next <- i
	}
	close(next)
	w.Wait()
	if failed.Load() {
		n.t.FailNow()
	}
}

// policyChanged: while 30 pods send, what they may send changes in place: all go on, and none
// sends anything past its branch.
func policyChanged(n *node) {
	before := n.sent()
	pods := make([]*rig.Pod, 30)
	by := map[string][]*rig.Pod{}
	var shops []netip.Addr
	n.together(len(pods), func(i int) (err error) {
		pods[i], err = n.TryPod(rig.Spec{Namespace: []string{"shop", "lab"}[i%2], Name: fmt.Sprintf("p%d", i)})
		if err == nil {
			_, err = pods[i].TrySend(n.Far4)
		}
		return err
	})
	for i, p := range pods {
		n.begun(p.Addrs[0])
		branch := []string{"eth0/shop", "eth0/lab"}[i%2]
		by[branch] = append(by[branch], p)
		if i%2 == 0 {
			shops = append(shops, p.Addrs[0])
		}
	}
	for _, rate := range []int{10, 50, 20} {
		n.applyRate(rate, rate)
		const d = 2 * time.Second
		var sum uint64
		for _, bytes := range n.Sink.Window(d, shops...) {
			sum += bytes
		}
		n.between("shop", sum, d, float64(rate), float64(rate))
	}
	for _, p := range pods {
		n.begun(p.Addrs[0])
	}
	n.carried(before, by)
	n.together(len(pods), func(i int) error { return pods[i].TryRemove() })
}

// manyPods: 200 pods one after the other, or those that a slow machine has time for, leave nothing,
// and none waits long for us.
func manyPods(n *node) {
	count := 0
	for begin := time.Now(); count < 200 && time.Since(begin) < 2*time.Minute; count++ {
		n.Pod(rig.Spec{Namespace: []string{"shop", "lab"}[count%2], Name: fmt.Sprintf("many%d", count)}).Remove()
	}
	var waits []time.Duration
	for _, m := range regexp.MustCompile(`pod=(?:shop|lab)/many\d+ .*waited=(\S+)`).FindAllStringSubmatch(n.plugin.Log(), -1) {
		d, err := time.ParseDuration(m[1])
		if err != nil {
			n.t.Fatal(err)
		}
		waits = append(waits, d)
	}
	if len(waits) != count {
		n.t.Fatalf("%d pods are logged, not %d", len(waits), count)
	}
	slices.Sort(waits)
	p99 := waits[count*99/100]
	n.t.Logf("a pod of %d waits for us %v, the 99th of a hundred %v, none more than %v", count, waits[count/2], p99, waits[count-1])
	if p99 > time.Second { // half of what containerd gives a plugin
		n.t.Errorf("the 99th of a hundred pods waits %v", p99)
	}
}

// bound are the targets of the bindings in force.
func (n *node) bound() []string {
	n.t.Helper()
	var all struct {
		Bindings []struct{ Bound []string }
	}
	if err := json.Unmarshal([]byte(n.ok("bindings", "--json")), &all); err != nil {
		n.t.Fatal(err)
	}
	var targets []string
	for _, b := range all.Bindings {
		targets = append(targets, b.Bound...)
	}
	return targets
}
