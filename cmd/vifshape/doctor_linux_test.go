package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vifshape/vifshape/cmd/internal/doctor"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/tctest"
)

// diagnosis is what doctor --json prints, as somebody else would read it.
type diagnosis struct {
	Verdict, Kernel, Way string
	OK                   bool
	Findings             []struct {
		Group, Topic, State, Text, Follows, Interface, Path, File string
		Needed                                                    bool
		Fix, Names                                                []string
		Line, Column                                              int
	}
}

// diagnose runs doctor --json; the code has to be that of its verdict.
func (n *network) diagnose(args ...string) diagnosis {
	n.Helper()
	r := n.run(append([]string{"doctor", "--json"}, args...)...)
	var d diagnosis
	if err := json.Unmarshal([]byte(r.stdout), &d); err != nil {
		n.Fatalf("%v: %v", err, r)
	}
	if want := map[string]int{"can": 0, "cannot": 1, "unclear": 5, "partial": exitAbsent}[d.Verdict]; r.code != want || d.OK != (want == 0) {
		n.Errorf("verdict %q: %v", d.Verdict, r)
	}
	return d
}

// find is the finding about a topic, of a group; there may be one at most.
func (d *diagnosis) find(t testing.TB, group, topic string) (state, text string, fix, names []string) {
	t.Helper()
	found := false
	for _, f := range d.Findings {
		if f.Group != group || f.Topic != topic {
			continue
		}
		if found {
			t.Errorf("two findings about %s", topic)
		}
		found, state, text, fix, names = true, f.State, f.Text, f.Fix, f.Names
	}
	return
}

// TestKernelDoctorFacts holds what doctor says against what others say.
func TestKernelDoctorFacts(t *testing.T) {
	n := newNetwork(t)
	d := n.diagnose()
	state := func(group, topic string) string {
		t.Helper()
		s, _, _, _ := d.find(t, group, topic)
		return s
	}
	is := func(yes bool) string {
		if yes {
			return "good"
		}
		return "missing"
	}
	for _, kind := range []string{"htb", "clsact"} {
		if got, want := state("queueing", kind), is(tctest.HasQdisc(t, kind)); got != want {
			t.Errorf("%s is %q, not %q", kind, got, want)
		}
	}
	_, _, _, have := d.find(t, "queueing", "leaf qdiscs")
	_, _, _, lack := d.find(t, "queueing", "other leaf qdiscs")
	var all []string
	for _, k := range qdisc.Kinds() {
		all = append(all, k.Name)
		if has := tctest.HasQdisc(t, k.Name); has != slices.Contains(have, k.Name) || has == slices.Contains(lack, k.Name) {
			t.Errorf("the kernel has %s: %t; doctor says it has %q and lacks %q", k.Name, has, have, lack)
		}
	}
	if d := cmp.Diff(all, append(have, lack...), cmpopts.SortSlices(strings.Compare)); d != "" {
		t.Errorf("kinds (-want +got):\n%s", d)
	}
	if got, want := state("queueing", "ifb"), is(tctest.HasLink(t, "ifb")); got != want {
		t.Errorf("ifb is %q, not %q", got, want)
	}
	psched, err := os.ReadFile("/proc/net/psched")
	if err != nil {
		t.Fatal(err)
	}
	if got, high := state("machine", "timers"), strings.HasSuffix(strings.TrimSpace(string(psched)), "3b9aca00"); (got == "good") != high {
		t.Errorf("timers are %q, and psched says %s", got, psched)
	}
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if want := strings.TrimSpace(string(release)); err != nil || d.Kernel != want {
		t.Errorf("kernel %q, not %q (%v)", d.Kernel, want, err)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	if got, v2 := state("binding", "cgroup v2"), strings.Contains(string(mounts), " cgroup2 "); (got == "good") != v2 {
		t.Errorf("cgroup v2 is %q, mounted: %t", got, v2)
	}
	for _, f := range d.Findings {
		if f.Group == "binding" && f.Topic == d.Way && f.State != "good" && f.State != "weaker" {
			t.Errorf("auto takes %s, which is %s: %s", d.Way, f.State, f.Text)
		}
	}

	if want, ok := os.LookupEnv(wayEnv); ok && d.Way != want {
		t.Errorf("auto takes %q, want %q", d.Way, want)
	}

	// The way that it names is the one that apply takes, and it takes one when
	// the verdict says so.
	r := n.run("apply", n.policy("policy.toml", smallPolicy))
	if (r.code == 0) != d.OK {
		t.Errorf("the verdict is %q, and apply: %v", d.Verdict, r)
	}
	if r.code == 0 {
		if rec, err := n.store.Load(n.Dev); err != nil || string(rec.Way) != d.Way {
			t.Errorf("apply took %q (%v), doctor says %q", rec.Way, err, d.Way)
		}
		n.ok("clear")
	}
}

// TestKernelDoctorInterface makes what doctor warns of, holds that it does, and
// that the command it names mends it.
func TestKernelDoctorInterface(t *testing.T) {
	for _, x := range []struct {
		name  string
		pair  lab.PairConfig
		make  string // shell
		topic string
		text  string // of the finding
		mends bool
	}{
		{"foreign root qdisc", lab.PairConfig{}, "tc qdisc add dev eth0 root handle 7: pfifo limit 9", "root qdisc", "pfifo 7:", true},
		{"foreign root with classes", lab.PairConfig{}, "tc qdisc add dev eth0 root handle 7: htb && tc class add dev eth0 classid 7:1 htb rate 1mbit", "root qdisc", "htb 7:", true},
		{"ingress", lab.PairConfig{}, "tc qdisc add dev eth0 ingress", "egress hook", "qdisc ingress", true},
		{"filter in our place", lab.PairConfig{}, "tc qdisc add dev eth0 clsact && tc filter add dev eth0 egress pref 1 protocol ip u32 match u32 0 0", "egress hook", "u32 with preference 1", true},
		{"filter behind us", lab.PairConfig{}, "tc qdisc add dev eth0 clsact && tc filter add dev eth0 egress pref 9 protocol ip u32 match u32 0 0", "egress hook", "u32 with preference 9", false},
		{"bridge of containers", lab.PairConfig{}, "ip link add br0 type bridge && ip link set eth0 master br0", "bridge", "none of them on hardware", false},
		{"three queues", lab.PairConfig{Queues: 3}, "true", "transmit queues", "3", false},
	} {
		t.Run(x.name, func(t *testing.T) {
			n := newNetwork(t)
			n.Pair = tctest.New(t, x.pair)
			dev := "eth0"
			if x.topic == "bridge" {
				tctest.RequireLink(t, "bridge")
				dev = "br0"
			} else if s, text, _, _ := n.of(n.diagnose(dev), x.topic); s != "good" && x.pair == (lab.PairConfig{}) {
				t.Errorf("before: %s: %s", s, text)
			}
			n.shell(x.make)
			s, text, fix, _ := n.of(n.diagnose(dev), x.topic)
			if s != "weaker" || !strings.Contains(text, x.text) {
				t.Errorf("%s: %s; want weaker and %q", s, text, x.text)
			}
			if !x.mends {
				return
			}
			if len(fix) != 1 {
				t.Fatalf("commands %q", fix)
			}
			n.shell(fix[0])
			if s, text, _, _ := n.of(n.diagnose("eth0"), x.topic); s != "good" {
				t.Errorf("after %s: %s: %s", fix[0], s, text)
			}
		})
	}
}

func (n *network) of(d diagnosis, topic string) (state, text string, fix, names []string) {
	n.Helper()
	return d.find(n, "interface", topic)
}

// TestKernelDoctorPackets: what is said about large packets follows from the
// policy's rates, and the command mends it.
func TestKernelDoctorPackets(t *testing.T) {
	for _, x := range []struct {
		rate string
		fix  string // how it begins; empty: nothing to mend
	}{
		{"900mbit", ""},
		{"106mbit", ""},
		{"100mbit", "ip link set dev eth0 gso_max_size 62500"},
		{"1mbit", "ip link set dev eth0 gso_max_segs 1"},
	} {
		t.Run(x.rate, func(t *testing.T) {
			n := newNetwork(t)
			file := n.policy("policy.toml", "version = 1\n[interface.eth0]\nrate = \""+x.rate+"\"\n")
			d := n.diagnose("--policy", file)
			s, text, fix, _ := d.find(t, "policy", "packets")
			if (s == "weaker") != (x.fix != "") || !d.OK {
				t.Fatalf("%s: %s, verdict %s", s, text, d.Verdict)
			}
			if x.fix == "" {
				return
			}
			if len(fix) == 0 || fix[0] != x.fix {
				t.Fatalf("commands %q, want %s first", fix, x.fix)
			}
			n.shell(fix[0])
			d = n.diagnose("--policy", file)
			if s, text, _, _ := d.find(t, "policy", "packets"); s == "weaker" {
				t.Errorf("after %s: %s", fix[0], text)
			}
		})
	}
}

// TestKernelDoctorMTU: packets larger than a policy's mtu are said, and what mends it
// does.
func TestKernelDoctorMTU(t *testing.T) {
	for _, x := range []struct{ mtu, fix string }{
		{"65536b", ""},
		{"9014b", "ip link set dev eth0 gso_max_size 9014"},
		{"1514b", "ip link set dev eth0 gso_max_segs 1"},
	} {
		t.Run(x.mtu, func(t *testing.T) {
			n := newNetwork(t)
			file := n.policy("policy.toml", "version = 1\n[interface.eth0]\nrate = \"900mbit\"\nmtu = \""+x.mtu+"\"\n")
			d := n.diagnose("--policy", file)
			s, text, fix, _ := d.find(t, "policy", "mtu")
			if (s == "weaker") != (x.fix != "") || strings.Join(fix, "\n") != x.fix {
				t.Fatalf("%s: %s; commands %q, want %q", s, text, fix, x.fix)
			}
			if x.fix == "" {
				return
			}
			n.shell(fix[0])
			d = n.diagnose("--policy", file)
			if s, text, _, _ := d.find(t, "policy", "mtu"); s != "" {
				t.Errorf("after %s: %s: %s", fix[0], s, text)
			}
		})
	}
}

// TestKernelDoctorVerdict: doctor says of a policy what apply then does.
func TestKernelDoctorVerdict(t *testing.T) {
	lacking := ""
	for _, k := range qdisc.Kinds() {
		if !tctest.HasQdisc(t, k.Name) {
			lacking = k.Name
		}
	}
	const eth0 = "version = 1\n[interface.eth0]\nrate = \"100mbit\"\n"
	type verdict struct {
		name   string
		make   string // shell
		policy string
		group  string // of the finding that stops it; empty: nothing does
		line   int
	}
	verdicts := []verdict{
		{"right", "true", eth0, "", 0},
		{"missing interface", "true", "version = 1\n[interface.eth5]\nrate = \"1mbit\"\n", "interface", 2},
		{"another that is missing", "true", eth0 + "[interface.eth5]\nrate = \"1mbit\"\n", "", 0},
		{"tags for one that is there", "true", strings.Replace(eth0, "\n", "\nbinding = \"net_cls\"\n", 1) + "[interface.eth5]\nrate = \"1mbit\"\n", "", 0},
		{"foreign root", "tc qdisc add dev eth0 root handle 7: pfifo", eth0, "root qdisc", 2},
		{"foreign root, replaced", "tc qdisc add dev eth0 root handle 7: pfifo", eth0 + "replace = true\n", "", 0},
		{"ingress", "tc qdisc add dev eth0 ingress", eth0, "egress hook", 2},
		{"filter in our place", "tc qdisc add dev eth0 clsact && tc filter add dev eth0 egress pref 1 protocol ip u32 match u32 0 0", eth0, "egress hook", 2},
		{"filter elsewhere", "tc qdisc add dev eth0 clsact && tc filter add dev eth0 egress pref 2 protocol ip u32 match u32 0 0", eth0, "", 0},
		{"filter where what is received is told apart", "tc qdisc add dev eth0 clsact && tc filter add dev eth0 ingress pref 2 protocol ip u32 match u32 0 0", eth0 + "ingress = \"50mbit\"\n", "ingress hook", 4},
		{"filter where flows are noted", "tc qdisc add dev eth0 clsact && tc filter add dev eth0 egress pref 2 protocol ip u32 match u32 0 0", eth0 + "ingress = \"50mbit\"\n", "egress hook", 4},
		{"matches", "true", eth0 + "[interface.eth0.a]\nmatch = [{ dport = 80 }]\n", "", 0},
		{"filter in the place of that of matches", "tc qdisc add dev eth0 clsact && tc filter add dev eth0 egress pref 3 protocol ip u32 match u32 0 0", eth0 + "[interface.eth0.a]\nmatch = [{ dport = 80 }]\n", "egress hook", 2},
		{"matches by tags", "true", strings.Replace(eth0, "\n", "\nbinding = \"net_cls\"\n", 1) + "[interface.eth0.a]\nmatch = [{ dport = 80 }]\n", "match", 3},
		{"matches of what is received", "true", eth0 + "ingress = \"50mbit\"\n[interface.eth0.a]\nmatch = [{ dport = 80 }]\n", "", 0},
		{"filter elsewhere at ingress", "tc qdisc add dev eth0 clsact && tc filter add dev eth0 ingress pref 1 protocol ip u32 match u32 0 0", eth0 + "ingress = \"50mbit\"\n", "", 0},
		{"burst", "true", eth0 + "[interface.eth0.a]\nrate = \"8kbit\"\nburst = \"1gb\"\n", "policy", 6},
		{"one cgroup twice", "true", eth0 + "[interface.eth0.a]\nbind = [\"user:0\"]\n[interface.eth0.b]\nbind = [\"user:root\"]\n", "binding", 2},
		{"switched off", "ip link set dev eth0 down", eth0, "", 0},
		{"two by tags", "ip link add eth1 type veth peer name far1", strings.Replace(eth0, "\n", "\nbinding = \"net_cls\"\n", 1) + "[interface.eth1]\nrate = \"1mbit\"\n", "binding", 2},
	}
	if lacking != "" { // as user-mode Linux does fq_pie
		verdicts = append(verdicts,
			verdict{"leaf kind", "true", eth0 + "[interface.eth0.a]\nqdisc = \"" + lacking + "\"\n", "qdisc", 5},
			verdict{"leaf kind for what is received", "true", eth0 + "ingress = \"50mbit\"\n[interface.eth0.a]\ningress = { qdisc = \"" + lacking + "\" }\n", "qdisc", 6})
	}
	for _, x := range verdicts {
		t.Run(x.name, func(t *testing.T) {
			n := newNetwork(t)
			tctest.Require(t, n.diagnose().OK, "a kernel on which trees can be bound")
			n.shell(x.make)
			file := n.policy("policy.toml", x.policy)
			d := n.diagnose("--policy", file)
			var stops []string
			for _, f := range d.Findings {
				if f.Group == "policy" && f.Needed && f.State == "missing" {
					stops = append(stops, f.Topic)
					if f.Line != x.line {
						t.Errorf("%s: line %d, not %d", f.Text, f.Line, x.line)
					}
				}
			}
			var want []string
			if x.group != "" {
				want = []string{x.group}
			}
			if d := cmp.Diff(want, stops); d != "" {
				t.Errorf("what stands in the way (-want +got):\n%s", d)
			}
			r := n.run("apply", file)
			if (r.code == 0) != d.OK || (r.code == exitAbsent) != (d.Verdict == string(doctor.Partial)) {
				t.Errorf("verdict %s, and apply: %v", d.Verdict, r)
			}
			n.run("clear")
		})
	}
}

// TestKernelDoctorTags: a second interface by net_cls tags is refused by doctor as it
// is by apply.
func TestKernelDoctorTags(t *testing.T) {
	n := newNetwork(t)
	all := n.diagnose()
	s, _, _, _ := all.find(t, "binding", "net_cls")
	tctest.Require(t, s == "good", "net_cls tags read by BPF")
	tctest.Output(t, n.Near, "ip", "link", "add", "eth1", "type", "veth", "peer", "name", "far1")
	by := func(dev string) string {
		return n.policy(dev+".toml", "version = 1\nbinding = \"net_cls\"\n[interface."+dev+"]\nrate = \"1mbit\"\n")
	}
	n.ok("apply", by("eth1"))
	file := by("eth0")
	d := n.diagnose("--policy", file)
	if s, text, _, _ := d.find(t, "policy", "binding"); d.OK || s != "missing" || !strings.Contains(text, "eth1 uses it already") {
		t.Errorf("%s: %s; verdict %s", s, text, d.Verdict)
	}
	if r := n.run("apply", file); r.code == 0 {
		t.Errorf("apply: %v", r)
	}
	n.ok("clear")
}

// TestKernelDoctorDelegated: who may move processes out of a bound cgroup is named.
func TestKernelDoctorDelegated(t *testing.T) {
	n := newNetwork(t)
	tctest.Require(t, n.diagnose().OK, "a kernel on which trees can be bound")
	top := filepath.Join(tctest.Cgroup2Mount(t), "vifshape-delegated")
	for _, dir := range []string{top, filepath.Join(top, "in")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
	}
	if err := os.Chown(filepath.Join(top, "cgroup.procs"), 4242, -1); err != nil {
		t.Fatal(err)
	}
	file := n.policy("policy.toml", "version = 1\n[interface.eth0]\nrate = \"1mbit\"\n[interface.eth0.a]\nbind = [\"cgroup:/vifshape-delegated/in\"]\n")
	d := n.diagnose("--policy", file)
	if s, text, _, _ := d.find(t, "policy", "binding"); !d.OK || s != "weaker" || !strings.Contains(text, "user 4242 may move processes") {
		t.Errorf("%s: %s; verdict %s", s, text, d.Verdict)
	}
}

// TestDoctorSubordinate: who has further numbers is named, and where they are bound.
func TestDoctorSubordinate(t *testing.T) {
	tctest.RequireRoot(t)
	n := newNetwork(t)
	tctest.Require(t, n.diagnose().OK, "a kernel on which trees can be bound")
	subuid := n.policy("subuid", "root:100000:65536\n\n4242:300000:10\n4242:400000:1\n#\n4243:x:1\n")
	file := n.policy("policy.toml", "version = 1\n[interface.eth0]\nrate = \"1mbit\"\n[interface.eth0.a]\nbind = [\"user:4242\", \"user:4243\"]\n[interface.eth0.b]\nbind = [\"user:root\"]\n")
	tctest.RequireProgram(t, "unshare")
	_, err := os.Stat("/etc/subuid")
	tctest.Require(t, err == nil, "a file /etc/subuid")
	r := n.inMounts("mount --bind "+subuid+" /etc/subuid", "doctor", "--policy", file, "eth0")
	for _, want := range []string{
		"eth0/a: user:4242 does not hold what the user starts under its other numbers, 300000-300009, 400000-400000 of /etc/subuid",
		"bind cgroup:/user.slice/user-4242.slice as well",
		"eth0/b: user:root does not hold what the user starts under its other numbers, 100000-165535",
	} {
		if !strings.Contains(r.stdout, want) {
			t.Errorf("no %q in %v", want, r)
		}
	}
	if r.code != 0 || strings.Contains(r.stdout, "user:4243") {
		t.Errorf("who has none: %v", r)
	}
}

// TestKernelDoctorTwice: a VLAN and what it lies on are not to be shaped both.
func TestKernelDoctorTwice(t *testing.T) {
	tctest.RequireLink(t, "vlan")
	n := newNetwork(t)
	tctest.Require(t, n.diagnose().OK, "a kernel on which trees can be bound")
	tctest.Output(t, n.Near, "ip", "link", "add", "link", "eth0", "name", "eth0.5", "type", "vlan", "id", "5")
	vlan := "[interface.\"eth0.5\"]\nrate = \"200mbit\"\n"
	both := n.policy("both.toml", "version = 1\n[interface.eth0]\nrate = \"900mbit\"\n"+vlan)
	d := n.diagnose("--policy", both)
	if s, text, _, _ := d.find(t, "policy", "shaped twice"); s != "weaker" || !strings.Contains(text, "eth0.5") || !d.OK {
		t.Errorf("%s: %s; verdict %s", s, text, d.Verdict)
	}
	one := n.policy("one.toml", "version = 1\n"+vlan)
	d = n.diagnose("--policy", one)
	if s, text, _, _ := d.find(t, "policy", "shaped twice"); s != "" {
		t.Errorf("%s: %s", s, text)
	}
	n.ok("apply", n.policy("lower.toml", "version = 1\n[interface.eth0]\nrate = \"900mbit\"\n"))
	d = n.diagnose("--policy", one)
	if s, _, _, _ := d.find(t, "policy", "shaped twice"); s != "weaker" {
		t.Errorf("with eth0 shaped: %q", s)
	}
	n.ok("clear")
}

// TestKernelDoctorUnprivileged: without privileges nothing is said to be missing
// that was not tried, and a mistake of the policy still is one.
func TestKernelDoctorUnprivileged(t *testing.T) {
	setpriv := tctest.RequireProgram(t, "setpriv")
	n := newNetwork(t)
	file := n.policy("policy.toml", smallPolicy)
	for _, dir := range []string{n.dir, filepath.Dir(n.bin)} { // those of the test are root's alone
		for ; dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	}
	doctor := func(args ...string) (diagnosis, result) {
		t.Helper()
		c := exec.CommandContext(t.Context(), setpriv, append([]string{"--reuid", "65534", "--regid", "65534", "--clear-groups", n.bin, "doctor", "--json"}, args...)...)
		r := n.start(c).wait()
		var d diagnosis
		if err := json.Unmarshal([]byte(r.stdout), &d); err != nil {
			t.Fatalf("%v: %v", err, r)
		}
		return d, r
	}
	d, r := doctor("--policy", file)
	if r.code != exitPrivilege || d.Verdict != "unclear" {
		t.Errorf("verdict %s: %v", d.Verdict, r)
	}
	for _, f := range d.Findings {
		if f.State == "missing" {
			t.Errorf("%s %s is said to be missing: %s", f.Group, f.Topic, f.Text)
		}
	}
	if d, r := doctor("--policy", n.policy("bad.toml", "version = 2\n")); r.code != exitError || d.Verdict != "cannot" {
		t.Errorf("verdict %s: %v", d.Verdict, r)
	}
}

// TestKernelDoctorRefused: a check that fails is one line, and the others are made.
func TestKernelDoctorRefused(t *testing.T) {
	n := newNetwork(t)
	file := n.policy("policy.toml", smallPolicy)
	topics := func(d diagnosis) map[string]bool {
		all := map[string]bool{}
		for _, f := range d.Findings {
			all[f.Group+" "+f.Topic] = true
		}
		return all
	}
	args := []string{"doctor", "--json", "--policy", file, n.Dev}
	before := topics(n.diagnose(args[2:]...))
	for _, tt := range []struct {
		what, topic, state, text string
		without                  []string // which may be missing
	}{
		{"nfnetlink", "binding firewall", "good", "no rule writes the priority of packets", nil},
		{"firewall", "binding firewall", "unknown", "could not be looked at: look for firewall rules: ", nil},
		{"namespaces", "queueing classifiers", "unknown", "could not be looked at: make a network namespace to ask the kernel in: ", []string{"queueing cls_bpf", "queueing cls_cgroup", "queueing ifb", "queueing act_mirred"}},
	} {
		t.Run(tt.what, func(t *testing.T) {
			r := n.start(tctest.Command(n, append([]string{"refuse", tt.what, ";", "vifshape"}, args...)...)).wait()
			var d diagnosis
			if err := json.Unmarshal([]byte(r.stdout), &d); err != nil || r.stderr != "" {
				t.Fatalf("%v: %v", err, r)
			}
			group, topic, _ := strings.Cut(tt.topic, " ")
			if state, text, _, _ := d.find(t, group, topic); state != tt.state || !strings.HasPrefix(text, tt.text) {
				t.Errorf("%s: %s: %s", tt.topic, state, text)
			}
			now := topics(d)
			for x := range before {
				if !now[x] && !slices.Contains(tt.without, x) {
					t.Errorf("nothing is said of %s", x)
				}
			}
		})
	}
}
