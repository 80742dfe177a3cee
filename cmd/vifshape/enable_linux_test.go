package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

const twoInterfaces = `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.web]
rate = "50mbit"
[interface.wg0]
rate = "10mbit"
[interface.wg0.web]
rate = "5mbit"
`

// on is what stands on an interface of the near namespace; nothing where it is not there.
func (n *network) on(iface string) hierarchy.PortState {
	n.Helper()
	c, err := rtnl.Open(rtnl.Config{NetNS: n.Near.FD()})
	if err != nil {
		n.Fatal(err)
	}
	defer c.Close()
	d, err := tc.Find(c, iface)
	var s hierarchy.State
	if err == nil {
		err = d.Read(n.Context(), &s)
	}
	if err != nil {
		return hierarchy.PortState{} // or it goes just now
	}
	return s.On(d.Port())
}

// root is the root qdisc of an interface.
func (n *network) root(iface string) hierarchy.Root { return n.on(iface).Root }

// rate is that of an interface; 0: it is not shaped.
func (n *network) rate(iface string) hierarchy.Bandwidth {
	for _, class := range n.on(iface).Classes {
		if class.ID == hierarchy.ID(hierarchy.RootMinor) {
			return class.Rate
		}
	}
	return 0
}

// shaped waits until an interface has a tree of ours.
func (n *network) shaped(iface string) {
	n.Helper()
	n.until("the tree of "+iface, func() bool { return n.root(iface).Ours() })
}

// plug makes an interface with an end in the far namespace.
func (n *network) plug(iface string) {
	n.Helper()
	if err := lab.AddVeth(n.Near, lab.Link{Name: iface}, n.Far, lab.Link{Name: "far-" + iface}); err != nil {
		n.Fatal(err)
	}
}

func (n *network) unplug(iface string) {
	n.Helper()
	if err := n.Near.DeleteLink(iface); err != nil {
		n.Fatal(err)
	}
}

// enabled is a directory of policies that is not there yet.
func (n *network) enabled() string { return filepath.Join(n.dir, "etc", "vifshape") }

// TestKernelEnable: an enabled policy waits for interfaces, and the agent shapes them whenever
// they appear; one that was bound at run time stays bound when it is made anew.
func TestKernelEnable(t *testing.T) {
	n := newNetwork(t)
	dir := n.enabled()
	file := n.policy("home.toml", twoInterfaces)
	list := func(want ...string) {
		t.Helper()
		var got []string
		for i, line := range strings.Split(strings.TrimSpace(n.ok("enable", "--list", "--policies", dir)), "\n") {
			if i > 0 {
				got = append(got, strings.Join(strings.Fields(line), " "))
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("enable --list (-want +got)\n%s", diff)
		}
	}
	n.ok("enable", "--policies", dir, file)
	if !n.root("eth0").Ours() {
		t.Error("enable has not shaped eth0")
	}
	list("home eth0 in force", "home wg0 waits")
	if st, err := os.Stat(filepath.Join(dir, "home.toml")); err != nil || st.Mode() != 0o644 {
		t.Errorf("the copy: %v %v", st, err)
	}
	if r := n.run("enable", "--policies", dir, "--detailed-exitcode", file); r.code != 0 {
		t.Errorf("once more: %v", r)
	}

	if r := n.run("enable", "--list", "--policies", dir); !strings.Contains(r.stderr, "no agent runs in this network namespace") {
		t.Errorf("without an agent: %v", r)
	}
	a := n.agent("--policies", dir)
	if r := n.run("enable", "--list", "--policies", dir); r.stderr != "" {
		t.Errorf("with an agent: %v", r)
	}
	target := n.target(tctest.Cgroup(t))
	for i := range 4 {
		n.plug("wg0")
		n.shaped("wg0")
		if i == 0 {
			n.until("its record", func() bool { r := n.run("bind", "wg0/web", target); return r.code == 0 })
		}
		n.until("the binding of run time", func() bool {
			r := n.run("bindings", "wg0")
			return r.code == 0 && strings.Contains(r.stdout, target)
		})
		n.unplug("wg0")
	}
	// One that gets the name later, and one that comes from another namespace.
	n.plug("wg9")
	n.shell("ip link set wg9 down; ip link set wg9 name wg0; ip link set wg0 up") // before Linux 6.3 none is renamed that is up
	n.shaped("wg0")
	n.shell(fmt.Sprintf("ip link set wg0 netns /proc/%d/fd/%d", os.Getpid(), n.Far.FD()))
	n.until("its move", func() bool { return !n.root("wg0").Ours() })
	out := tctest.Output(t, n.Far, "sh", "-ec", fmt.Sprintf("ip link set wg0 netns /proc/%d/fd/%d && ip -o link", os.Getpid(), n.Near.FD()))
	if strings.Contains(out, "wg0@") && strings.Contains(out, " wg0:") {
		t.Errorf("wg0 did not move back:\n%s", out)
	}
	n.shaped("wg0")
	// Its bursts go by its MTU.
	n.shell("ip link set eth0 mtu 9000")
	n.until("what follows from the MTU", func() bool {
		return n.run("plan", "--detailed-exitcode", "--policies", dir).code == 0
	})

	// What is edited is brought into force by apply without a file, and by a signal.
	edit := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(dir, "home.toml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	edit(strings.Replace(twoInterfaces, "5mbit", "6mbit", 1))
	n.until("the change of wg0", func() bool { return n.root("wg0").Ours() })
	list("home eth0 in force", "home wg0 changed")
	if r := n.run("plan", "--detailed-exitcode", "--policies", dir); r.code != exitChanges || !strings.Contains(r.stdout, "rate 5mbit -> 6mbit") {
		t.Errorf("plan: %v", r)
	}
	n.ok("apply", "--policies", dir)
	list("home eth0 in force", "home wg0 in force")
	edit(strings.Replace(twoInterfaces, "5mbit", "7mbit", 1))
	if err := a.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	n.until("what HUP brings into force", func() bool { return strings.Contains(n.ok("show", "wg0"), "7mbit") })

	// A mistake is said, and changes nothing; the other files are in force.
	other := filepath.Join(dir, "other.toml")
	if err := os.WriteFile(other, []byte("version = 1\n[interface.eth0]\nrate = \"5mbit\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "wrong.toml"), []byte("version = 1\n[interface.eth1]\nrate = \"5M\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	r := n.run("apply", "--policies", dir)
	for _, want := range []string{"other.toml: eth0 belongs to " + filepath.Join(dir, "home.toml") + " already", "wrong.toml:3:8: eth1: "} {
		if r.code != exitError || !strings.Contains(r.stderr, want) {
			t.Errorf("not exit status 1 and %q: %v", want, r)
		}
	}
	if err := a.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	a.says("other.toml: eth0 belongs to ")
	a.says("wrong.toml:3:8: eth1: ")
	n.fails(exitError, "eth0 belongs to "+filepath.Join(dir, "home.toml")+" already", "enable", "--policies", dir, "--name", "third", file)

	// What a file names no more is cleared when it is enabled again.
	for _, f := range []string{"other.toml", "wrong.toml"} {
		if err := os.Remove(filepath.Join(dir, f)); err != nil {
			t.Fatal(err)
		}
	}
	n.ok("enable", "--policies", dir, n.policy("home.toml", twoInterfaces[:strings.Index(twoInterfaces, "[interface.wg0]")]))
	if n.root("wg0").Ours() {
		t.Error("wg0 is shaped, and its policy has it no more")
	}
	n.fails(exitError, "no policy homes is enabled in "+dir+": did you mean home?", "disable", "--policies", dir, "homes")
	n.ok("disable", "--policies", dir, "home")
	a.says("not shaped any more")
	if code := a.end(os.Interrupt); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the directory is still there: %v", err)
	}
	n.clean()
}

// TestKernelEnableFails: what cannot be kept is not applied, and what cannot be applied is not kept.
func TestKernelEnableFails(t *testing.T) {
	n := newNetwork(t)
	good := n.policy("good.toml", "version = 1\n[interface.eth0]\nrate = \"5mbit\"\n")
	bad := n.policy("bad.toml", "version = 1\n[interface.eth0]\nrate = \"5M\"\n")
	n.fails(exitError, "cannot be kept, and nothing was changed", "enable", "--policies", "/proc/vifshape", good)
	n.fails(exitUsage, "write --name NAME", "enable", "-")
	n.fails(exitUsage, `"../x" is no name`, "enable", "--policies", n.enabled(), "--name", "../x", good)
	n.shell("tc qdisc add dev eth0 root handle 5: htb")
	n.fails(exitError, "not made by vifshape", "enable", "--policies", n.enabled(), good)
	n.shell("tc qdisc del dev eth0 root")
	if r := n.run("enable", "--policies", n.enabled(), bad); r.code != exitError || !strings.Contains(r.stderr, "bad.toml:3:8: eth0: ") {
		t.Errorf("a mistake: %v", r)
	}
	if ents, err := os.ReadDir(n.enabled()); err != nil && !errors.Is(err, fs.ErrNotExist) || len(ents) > 0 {
		t.Errorf("kept: %v %v", ents, err)
	}
	n.clean()
}

// TestKernelEnableOdd: what else may lie in the directory, how it may be named, and what is left
// when somebody else removes a policy.
func TestKernelEnableOdd(t *testing.T) {
	n := newNetwork(t)
	file := n.policy("line.toml", smallPolicy)
	dir := n.enabled()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-24 * time.Hour)
	for _, name := range []string{".my-secrets", ".line.toml.new-123"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(filepath.Join(dir, name), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe.toml"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(dir, filepath.Join(n.dir, "link")); err != nil {
		t.Fatal(err)
	}
	at := func(args ...string) *exec.Cmd { // a relative name
		c := n.command(args...)
		c.Dir = n.dir
		return c
	}
	if r := n.start(at("enable", "--policies", "etc/vifshape", file)).wait(); r.code != 0 {
		t.Fatal(r)
	}
	for _, name := range []string{"etc/vifshape", "link", dir} {
		r := n.start(at("enable", "--list", "--policies", name)).wait()
		if r.code != exitError || !strings.Contains(r.stdout, "line  eth0       in force") || !strings.Contains(r.stderr, "pipe.toml is a named pipe") {
			t.Errorf("as %s: %v", name, r)
		}
	}
	got := map[string]bool{}
	ents, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		got[e.Name()] = true
	}
	if diff := cmp.Diff(map[string]bool{".my-secrets": true, "line.toml": true, "pipe.toml": true}, got); diff != "" {
		t.Errorf("in the directory (-want +got)\n%s", diff)
	}
	n.fails(exitUsage, "a directory without a name", "enable", "--policies", "", file)
	n.fails(exitError, "/etc/vifshape is the machine's", "enable", file)

	// What somebody removes leaves its tree, and disable ends that, too.
	if err := os.Remove(filepath.Join(dir, "line.toml")); err != nil {
		t.Fatal(err)
	}
	n.ok("disable", "--policies", filepath.Join(n.dir, "link"), "line")
	n.clean()
	n.fails(exitError, "no policy line is enabled", "disable", "--policies", dir, "line")

	// A table that names nothing but what another one names better is none that waits.
	both := n.policy("both.toml", smallPolicy+"[interface.\"e*0\"]\nrate = \"1mbit\"\n")
	n.ok("apply", "--all-or-nothing", both)
	n.converged(both)
	n.ok("enable", "--policies", dir, both)
	if out := n.run("enable", "--list", "--policies", dir).stdout; !strings.Contains(out, "both  eth0       in force") || !strings.Contains(out, "both  e*0        another's") {
		t.Errorf("enable --list:\n%s", out)
	}
	// It goes on below a pattern what branches were called before.
	n.ok("disable", "--policies", dir, "both")
	moved := strings.ReplaceAll("version = 1\n[interface.\"eth*\"]\nrate = \"9mbit\"\n[interface.\"eth*\".off.web]\nrenamed_from = \"eth*/web\"\n", "\t", "")
	n.ok("apply", n.policy("before.toml", "version = 1\n[interface.\"eth*\"]\nrate = \"9mbit\"\n[interface.\"eth*\".web]\n"))
	if out := n.ok("plan", n.policy("moved.toml", moved)); strings.Contains(out, "anew") {
		t.Errorf("plan:\n%s", out)
	}
	n.ok("apply", filepath.Join(n.dir, "moved.toml"))
	n.ok("clear")
	n.clean()
}

// TestKernelEnableOneWrong: an interface that cannot be shaped keeps no other from it, and what
// waits for a confirmation is shaped as soon as that is over.
func TestKernelEnableOneWrong(t *testing.T) {
	n := newNetwork(t)
	n.plug("wg1")
	n.plug("wg2")
	n.shell("tc qdisc add dev wg1 root handle 5: pfifo")
	n.ok("apply", n.policy("eth0.toml", smallPolicy))
	if err := os.MkdirAll(n.enabled(), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.enabled(), "vpn.toml"), []byte("version = 1\n[interface.\"wg*\"]\nrate = \"5mbit\"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	a := n.agent("--policies", n.enabled())
	n.shaped("wg2")
	a.says("wg1: the root qdisc pfifo 5: is not made by vifshape")
	n.shell("tc qdisc del dev wg1 root")
	n.shaped("wg1")

	n.ok("apply", "--confirm", "1h", n.policy("edited.toml", editedPolicy))
	n.plug("wg3")
	a.says("waits to be confirmed")
	if n.root("wg3").Ours() {
		t.Error("wg3 is shaped, and eth0 waits to be confirmed")
	}
	n.ok("confirm")
	n.shaped("wg3")
	n.ok("disable", "--policies", n.enabled(), "vpn")
	a.end(os.Interrupt)
	n.ok("clear")
	n.clean()
}

// BenchmarkPlug prints how long an interface is there before it has its tree.
func BenchmarkPlug(b *testing.B) {
	n := newNetwork(b)
	n.ok("enable", "--policies", n.enabled(), n.policy("home.toml", twoInterfaces))
	n.agent("--policies", n.enabled())
	var all time.Duration
	for b.Loop() {
		begin := time.Now()
		n.plug("wg0")
		made := time.Now()
		n.shaped("wg0")
		all += time.Since(made)
		b.ReportMetric(float64(made.Sub(begin).Milliseconds()), "ms-to-make-it")
		n.unplug("wg0")
		n.until("its end", func() bool { return !n.root("wg0").Ours() })
	}
	b.ReportMetric(float64(all.Microseconds())/float64(b.N)/1000, "ms/plug")
}

// TestKernelEnablePatterns: what a pattern or a hardware address stands for is shaped when it
// appears, by the policy that fits best.
func TestKernelEnablePatterns(t *testing.T) {
	n := newNetwork(t)
	for name, text := range map[string]string{
		"1-any": "version = 1\n[interface.\"w*\"]\nrate = \"1mbit\"\n",
		"2-lan": "version = 1\n[interface.\"wlan*\"]\nrate = \"2mbit\"\n[interface.\"mac=52:54:00:00:00:03\"]\nrate = \"3mbit\"\n",
		"3-one": "version = 1\n[interface.wlan9]\nrate = \"4mbit\"\n",
	} {
		n.ok("enable", "--policies", n.enabled(), n.policy(name+".toml", text))
	}
	a := n.agent("--policies", n.enabled())
	want := map[string]hierarchy.Bandwidth{"wifi0": hierarchy.Mbit, "wlan0": 2 * hierarchy.Mbit, "wlan3": 3 * hierarchy.Mbit, "wlan9": 4 * hierarchy.Mbit}
	for i, iface := range []string{"wifi0", "wlan0", "wlan3", "wlan9"} {
		n.shell(fmt.Sprintf("ip link add name %s address 52:54:00:00:00:%02x type veth peer name peer%d", iface, map[int]int{2: 3, 3: 3}[i], i))
		n.until("the tree of "+iface, func() bool { return n.rate(iface) == want[iface] })
	}
	out := n.ok("enable", "--list", "--policies", n.enabled())
	for _, line := range []string{`1-any  wifi0`, `2-lan  wlan0`, `2-lan  wlan3`, `3-one  wlan9`} {
		if !strings.Contains(out, line+"      in force") {
			t.Errorf("%q is not in\n%s", line, out)
		}
	}
	// Without its own policy it belongs to the next that fits.
	n.ok("disable", "--policies", n.enabled(), "3-one")
	n.ok("apply", "--policies", n.enabled())
	if got := n.rate("wlan9"); got != 3*hierarchy.Mbit {
		t.Errorf("wlan9 has %v", got)
	}
	n.ok("disable", "--policies", n.enabled(), "1-any", "2-lan.toml")
	for iface := range want {
		if n.root(iface).Ours() {
			t.Errorf("%s is shaped", iface)
		}
	}
	a.end(os.Interrupt)
	n.clean()
}

// TestPlaybook: the playbook of the examples changes what has to be changed, and says when that
// is nothing.
func TestPlaybook(t *testing.T) {
	tctest.RequireRoot(t)
	tctest.RequireProgram(t, "ansible-playbook")
	n := newNetwork(t)
	play := func(policy string) (changed bool, out string, err error) {
		t.Helper()
		c := exec.CommandContext(t.Context(), "ansible-playbook", "-i", "here,", "-c", "local", "../../examples/ansible.yml",
			"-e", "vifshape="+n.bin, "-e", "policy="+policy, "-e", "policies="+n.enabled(), "-e", "incoming="+filepath.Join(n.dir, "incoming"))
		c.Env = append(os.Environ(), "ANSIBLE_HOME="+filepath.Join(n.dir, "ansible"), "ANSIBLE_LOCAL_TEMP="+n.dir, "ANSIBLE_REMOTE_TEMP="+n.dir, "ANSIBLE_NOCOLOR=1", "LC_ALL=C.UTF-8")
		r := n.start(c)
		done := r.wait()
		if done.code != 0 {
			err = fmt.Errorf("exit status %d", done.code)
		}
		return !strings.Contains(done.stdout, "changed=0 "), done.stdout + done.stderr, err
	}
	good := n.policy("line.toml", smallPolicy)
	for i, want := range []bool{true, false} {
		changed, out, err := play(good)
		if err != nil || changed != want {
			t.Fatalf("run %d: changed %v, not %v: %v\n%s", i, changed, want, err, out)
		}
		if !n.root("eth0").Ours() {
			t.Errorf("run %d: eth0 is not shaped", i)
		}
	}
	if _, out, err := play(n.policy("wrong.toml", strings.Replace(smallPolicy, "50mbit", "50M", 1))); err == nil || !strings.Contains(out, ":5:8: eth0/web: rate") {
		t.Errorf("a mistake: %v\n%s", err, out)
	}
	n.ok("disable", "--policies", n.enabled(), "line")
	n.clean()
}

// TestCloudInit: what the example for cloud-init has written and run is a policy that can be
// enabled.
func TestCloudInit(t *testing.T) {
	b, err := os.ReadFile("../../examples/cloud-init.yaml")
	if err != nil {
		t.Fatal(err)
	}
	_, content, ok := strings.Cut(string(b), "    content: |\n")
	content, commands, ok2 := strings.Cut(content, "runcmd:\n")
	_, file, ok3 := strings.Cut(string(b), "  - path: ")
	file, _, _ = strings.Cut(file, "\n")
	if !ok || !ok2 || !ok3 || commands != "  - [/usr/local/bin/vifshape, enable, "+file+"]\n" {
		t.Fatalf("it is not written as this test reads it:\n%s", b)
	}
	text := strings.ReplaceAll(content, "\n      ", "\n")[len("      "):]
	if _, err := policy.Parse(file, strings.NewReader(text), qdisc.Kinds()); err != nil {
		t.Errorf("%v\n%s", err, text)
	}
}

// TestEnableInit: without systemd a script of init has the agent started with the machine. The
// machine is one of its own here, as far as mounts, processes and interfaces go.
func TestEnableInit(t *testing.T) {
	tctest.RequireRoot(t)
	for _, p := range []string{"unshare", "start-stop-daemon", "update-rc.d", "tc"} {
		tctest.RequireProgram(t, p)
	}
	n := newNetwork(t)
	n.policy("home.toml", smallPolicy)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "unshare", "--mount", "--pid", "--fork", "--mount-proc", "sh", "-exc", `
mkdir etc && cp -a /etc/. etc && mount --bind etc /etc
for d in /usr/local/bin /var/log /run/systemd; do [ ! -d $d ] || mount -t tmpfs none $d; done
cp "$0" /usr/local/bin/vifshape
PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
vifshape enable home.toml
ls /etc/rcS.d/S*vifshape
/etc/init.d/vifshape status
vifshape enable --detailed-exitcode home.toml

# The machine starts again.
/etc/init.d/vifshape stop
vifshape clear
if tc qdisc show dev eth0 | grep htb; then exit 1; fi
/etc/init.d/vifshape start
tc qdisc show dev eth0 | grep htb
/etc/init.d/vifshape status
sed -i s/20mbit/21mbit/ /etc/vifshape/home.toml
/etc/init.d/vifshape reload
tc class show dev eth0 | grep 21Mbit

vifshape disable home
if /etc/init.d/vifshape status; then exit 1; fi
if ls -d /etc/init.d/vifshape /etc/rcS.d/S*vifshape /etc/vifshape | grep .; then exit 1; fi
if tc qdisc show dev eth0 | grep htb; then exit 1; fi
`, self)
	c.Dir = n.dir
	if r := n.start(c).wait(); r.code != 0 {
		t.Error(r)
	}
	n.clean()
}
