package rig_test

import (
	"fmt"
	"os"
	"regexp"
	"strings"
	"testing"

	apps "k8s.io/api/apps/v1"
	"sigs.k8s.io/yaml"

	"github.com/vifshape/vifshape/cmd/vifshape-nri/rig"
	"github.com/vifshape/vifshape/examples"
)

// nodePolicy has all that the DaemonSet's has: both directions, what the node itself does, pods.
const nodePolicy = `version = 1
[interface.eth0]
rate = "60mbit"
ingress = "60mbit"
[interface.eth0.system]
rate = "10mbit"
bind = ["user:4711"]
[interface.eth0.shop]
rate = "30mbit"
ceil = "40mbit"
pods = ["shop/*"]
`

// required is what the help has for containerd's configuration, so that no pod starts without the
// plugin.
func required(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile("../../vifshape/topics/kubernetes.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, lines := range regexp.MustCompile(`(?m)^  \[plugins\..*\n(  .*\n)+`).FindAllString(string(b), -1) {
		if strings.Contains(lines, "required_plugins") {
			return lines
		}
	}
	t.Fatalf("no table of containerd in\n%s", b)
	return ""
}

// without holds that a pod's containers do not start while the plugin is away, unless it says that
// they may.
func (n *node) without(s rig.Spec) {
	n.t.Helper()
	p := n.Pod(s)
	if _, err := p.TryStart("true"); err == nil || !strings.Contains(err.Error(), `required plugin "vifshape" not present`) {
		n.t.Errorf("without the plugin a container of %s starts: %v", s.Name, err)
	}
	p.Remove()
	s.Namespace, s.Annotations = "system", map[string]string{"without-plugin.vifshape.dev/pod": "true"}
	p = n.Pod(s)
	if code := p.Init("true"); code != 0 {
		n.t.Errorf("a container of %s that may start without the plugin: exit status %d", s.Name, code)
	}
	p.Remove()
}

// TestKernelManifest: the pod of the DaemonSet, with no more than its manifest gives it, has the
// policy of a ConfigMap in force, and other pods in their branches from their first packet on; its
// exporter tells of them, to the node alone. It is ready when the policy is in force, and not when
// that is refused. No other pod starts while its plugin is away.
func TestKernelManifest(t *testing.T) {
	var set apps.DaemonSet
	if err := yaml.UnmarshalStrict([]byte(examples.DaemonSet), &set); err != nil {
		t.Fatal(err)
	}
	// after two seconds instead of fifteen it is known that the API server is reached
	agent := &set.Spec.Template.Spec.Containers[0]
	agent.Args = append(agent.Args, "--confirm", "4s")
	n := newNode(t)
	n.Image("rig.invalid/vifshape:1", "/usr/bin/vifshape", map[string]string{"/usr/bin/vifshape": n.vifshape, "/usr/bin/vifshape-nri": n.nri})
	n.ConfigMap("vifshape", map[string]string{"fleet.toml": nodePolicy})
	n.Configure(required(t))
	n.without(shop("early"))
	own := n.Deploy("vifshape", "vifshape-x7k2p", set.Spec.Template, rig.Cluster{
		Images: map[string]string{"vifshape": "rig.invalid/vifshape:1"},
		// of IPv6, where an address and a port are harder to tell apart
		Env: map[string]string{"KUBERNETES_SERVICE_HOST": n.Far6.String(), "KUBERNETES_SERVICE_PORT": fmt.Sprint(rig.Port)},
	})
	own.Says("agent", "msg=ready interfaces=1")
	own.Says("plugin", "tells of its pods")
	if code, said := own.Exec("agent", "/usr/bin/vifshape", "doctor"); code != 0 {
		t.Errorf("doctor in the agent's container: exit status %d:\n%s", code, said)
	}

	ready := func() bool { is, _ := own.Ready("agent"); return is }
	n.Until("the policy is confirmed", ready)

	before := n.sent()
	web := n.sending(shop("web"))
	own.Says("plugin", "msg=pod pod=shop/web branch=eth0/shop")
	n.holds("eth0/shop", web)
	n.carried(before, map[string][]*rig.Pod{"eth0/shop": {web}})

	for _, has := range []string{
		`vifshape_policy_in_force{policy="/etc/vifshape/fleet.toml"} 1`,
		`vifshape_branch_bytes_total{`,
	} {
		n.Until("the exporter says "+has, func() bool {
			page, err := n.Output("/usr/bin/busybox", "wget", "-qO-", "http://127.0.0.1:9719/metrics")
			return err == nil && strings.Contains(page, "\n"+has)
		})
	}

	n.ConfigMap("vifshape", map[string]string{"fleet.toml": strings.Replace(nodePolicy, "30mbit", "much", 1)})
	const refused = `/etc/vifshape/fleet.toml:9:8: eth0/shop: rate`
	is, said := own.Ready("agent")
	if is || !strings.Contains(said, `exit status 1: `) || !strings.Contains(said, refused) {
		t.Errorf("with a policy that is refused the agent is ready: %t: %s", is, said)
	}
	own.Says("agent", refused)
	n.holds("eth0/shop", web) // what was in force
	n.ConfigMap("vifshape", map[string]string{"fleet.toml": strings.Replace(nodePolicy, "30mbit", "20mbit", 1)})
	n.Until("the agent is ready", ready)
	if shown := n.ok("show", "eth0/shop"); !strings.Contains(shown, "20mbit") {
		t.Errorf("ready with another policy in force:\n%s", shown)
	}
	n.holds("eth0/shop", web)

	own.Stop("plugin")
	n.without(shop("late"))
	n.holds("eth0/shop", web)
	own.Start("plugin")
	own.Says("plugin", "tells of its pods\" pods=2")
	before = n.sent()
	api := n.sending(shop("api"))
	n.carried(before, map[string][]*rig.Pod{"eth0/shop": {api}})

	web.Remove()
	api.Remove()
	for _, name := range []string{"agent", "exporter"} { // the plugin may have had to wait for the agent
		for line := range strings.Lines(own.Log(name)) {
			if !strings.Contains(line, "level=INFO") && !strings.Contains(line, refused) {
				t.Errorf("%s says %s", name, line)
			}
		}
	}
	own.Remove()
	n.Until("nothing is left of pods", func() bool { return len(n.Left()) == 0 })
}
