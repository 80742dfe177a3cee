package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
)

// configMap has a directory hold files as kubelet mounts a ConfigMap: each is a link through
// ..data into a folder of its time, and all change at once, when another link is renamed to
// ..data (AtomicWriter, pkg/volume/util/atomic_writer.go of Kubernetes).
type configMap struct {
	n       *network
	dir     string
	version int
}

func (n *network) configMap(files map[string]string) *configMap {
	n.Helper()
	c := &configMap{n: n, dir: n.enabled()}
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		n.Fatal(err)
	}
	c.update(files)
	return c
}

func (c *configMap) update(files map[string]string) {
	c.n.Helper()
	c.version++
	folder := fmt.Sprintf("..2026_11_30_07_00_00.%09d", c.version)
	do := func(err error) {
		c.n.Helper()
		if err != nil {
			c.n.Fatal(err)
		}
	}
	do(os.Mkdir(filepath.Join(c.dir, folder), 0o755))
	for name, text := range files {
		do(os.WriteFile(filepath.Join(c.dir, folder, name), []byte(text), 0o644))
	}
	was, _ := os.Readlink(filepath.Join(c.dir, "..data"))
	do(os.Symlink(folder, filepath.Join(c.dir, "..data_tmp")))
	do(os.Rename(filepath.Join(c.dir, "..data_tmp"), filepath.Join(c.dir, "..data")))
	for name := range files {
		if _, err := os.Lstat(filepath.Join(c.dir, name)); err != nil {
			do(os.Symlink("..data/"+name, filepath.Join(c.dir, name)))
		}
	}
	old, err := filepath.Glob(filepath.Join(c.dir, "*.toml"))
	do(err)
	for _, f := range old {
		if files[filepath.Base(f)] == "" {
			do(os.Remove(f))
		}
	}
	if was != "" {
		do(os.RemoveAll(filepath.Join(c.dir, was)))
	}
}

// inForce waits until an exporter says of a policy that it is in force, or is not.
func (n *network) inForce(s scraper, file string, is int) {
	n.Helper()
	line := fmt.Sprintf("\nvifshape_policy_in_force{policy=%q} %d\n", file, is)
	n.until(strings.TrimSpace(line), func() bool { return strings.Contains(s.page(n), line) })
}

const followed = `version = 1
[interface.eth0]
rate = "%s"
[interface.eth0.web]
rate = "1mbit"
`

// TestKernelFollow: an agent that follows a ConfigMap applies what it says now, keeps what was in
// force where that is wrong, says so, and clears what nothing names any more.
func TestKernelFollow(t *testing.T) {
	n := newNetwork(t)
	m := n.configMap(map[string]string{"fleet.toml": fmt.Sprintf(followed, "10mbit")})
	file := filepath.Join(m.dir, "fleet.toml")
	a := n.agent("--policies", m.dir, "--follow")
	s, end := n.exporter()
	defer end()
	rate := func(want hierarchy.Bandwidth) {
		t.Helper()
		n.until("the rate "+want.String(), func() bool { return n.rate("eth0") == want })
	}
	rate(10 * hierarchy.Mbit)
	n.inForce(s, file, 1)
	if r := n.run("enable", "--list", "--policies", m.dir, "--detailed-exitcode"); r.code != exitOK {
		t.Errorf("in force: %v", r)
	}

	before := n.packets()
	m.update(map[string]string{"fleet.toml": fmt.Sprintf(followed, "20mbit")})
	rate(20 * hierarchy.Mbit)
	for path, sent := range before {
		if n.packets()[path] < sent {
			t.Errorf("%s lost its counters", path)
		}
	}

	m.update(map[string]string{"fleet.toml": fmt.Sprintf(followed, "20M")})
	n.inForce(s, file, 0)
	a.says("fleet.toml:3:")
	if got := n.rate("eth0"); got != 20*hierarchy.Mbit {
		t.Errorf("with a mistake it is %v", got)
	}
	if r := n.run("enable", "--list", "--policies", m.dir, "--detailed-exitcode"); r.code != exitError {
		t.Errorf("a mistake: %v", r)
	}

	m.update(map[string]string{"fleet.toml": fmt.Sprintf(followed, "30mbit")})
	rate(30 * hierarchy.Mbit)
	n.inForce(s, file, 1)

	// By hand, as an editor does: in place, and by another file that is renamed.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	n.until("nothing on eth0", func() bool { return !n.root("eth0").Ours() })
	n.policy("etc/vifshape/fleet.toml", fmt.Sprintf(followed, "40mbit"))
	rate(40 * hierarchy.Mbit)
	if err := os.Rename(n.policy("new", fmt.Sprintf(followed, "50mbit")), file); err != nil {
		t.Fatal(err)
	}
	rate(50 * hierarchy.Mbit)

	// What is laid over it, in a folder that was not there.
	if err := os.Mkdir(file+".d", 0o755); err != nil {
		t.Fatal(err)
	}
	over := n.policy("etc/vifshape/fleet.toml.d/node.toml", "version = 1\n[interface.eth0]\nrate = \"55mbit\"\n")
	rate(55 * hierarchy.Mbit)
	n.policy("etc/vifshape/fleet.toml.d/node.toml", "version = 1\n[interface.eth0]\nrate = \"56mbit\"\n")
	rate(56 * hierarchy.Mbit)
	if err := os.Remove(over); err != nil {
		t.Fatal(err)
	}
	rate(50 * hierarchy.Mbit)
	if err := os.Remove(file + ".d"); err != nil {
		t.Fatal(err)
	}

	// The folder goes and comes.
	if err := os.Rename(m.dir, m.dir+".away"); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * 200 * time.Millisecond) // that it does nothing takes a time
	if got := n.rate("eth0"); got != 50*hierarchy.Mbit {
		t.Errorf("without the folder it is %v", got)
	}
	if err := os.Rename(m.dir+".away", m.dir); err != nil {
		t.Fatal(err)
	}
	n.policy("etc/vifshape/fleet.toml", fmt.Sprintf(followed, "60mbit"))
	rate(60 * hierarchy.Mbit)
	if code := a.end(syscall.SIGTERM); code != 0 {
		t.Errorf("the agent ended with %d", code)
	}
	if page := s.page(n); strings.Contains(page, "vifshape_policy_in_force{") {
		t.Error("without an agent it is known what is in force")
	}
	n.ok("clear")
	n.clean()
}

// answers has somebody answer at an address of the far end, and says where.
func (n *network) answers() (at string, end func()) {
	n.Helper()
	var l net.Listener
	if err := n.Far.Do(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(n.Far4.String(), "0"))
		return err
	}); err != nil {
		n.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return l.Addr().String(), func() { l.Close() }
}

// TestKernelFollowContact: a policy that cuts the machine off goes back by itself, once, and one
// that does not stays; so it is when the agent is killed meanwhile.
func TestKernelFollowContact(t *testing.T) {
	n := newNetwork(t)
	contact, end := n.answers()
	defer end()
	m := n.configMap(map[string]string{"fleet.toml": openPolicy})
	file := filepath.Join(m.dir, "fleet.toml")
	args := []string{"--policies", m.dir, "--follow", "--contact", contact, "--confirm", "4s"}
	a := n.agent(args...)
	s, endExporter := n.exporter()
	defer endExporter()
	a.says("kept: the contact can be reached")
	n.inForce(s, file, 1)
	if got := n.rate("eth0"); got != 100*hierarchy.Mbit {
		t.Fatalf("eth0 has %v", got)
	}

	began := time.Now()
	m.update(map[string]string{"fleet.toml": cutPolicy})
	n.until("the policy that cuts off", func() bool { return n.rate("eth0") == 90*hierarchy.Mbit })
	n.inForce(s, file, 0)
	if r := n.run("enable", "--list", "--policies", m.dir, "--detailed-exitcode"); r.code != exitChanges {
		t.Errorf("while it waits: %v", r)
	}
	n.until("the way back", func() bool { return n.rate("eth0") == 100*hierarchy.Mbit })
	t.Logf("cut off, and back after %v", time.Since(began).Round(100*time.Millisecond))
	a.says("goes back to what it was: " + contact + " could not be reached")
	n.inForce(s, file, 0)
	if r := n.run("enable", "--list", "--policies", m.dir, "--detailed-exitcode"); r.code != exitChanges {
		t.Errorf("when it went back: %v", r)
	}
	// What happens to the interface does not bring it into force again.
	n.shell("ip link set eth0 mtu 1400")
	time.Sleep(time.Second)
	if got := n.rate("eth0"); got != 100*hierarchy.Mbit {
		t.Errorf("it was tried again: %v", got)
	}

	m.update(map[string]string{"fleet.toml": strings.Replace(openPolicy, "100mbit", "80mbit", 1)})
	n.until("the next policy", func() bool { return n.rate("eth0") == 80*hierarchy.Mbit })
	n.inForce(s, file, 1)
	if strings.Count(a.said(), "kept: the contact can be reached") != 2 {
		t.Error("it was not kept as the first one was")
	}

	// Who is killed while an apply waits leaves one behind who goes back.
	m.update(map[string]string{"fleet.toml": cutPolicy})
	n.until("the policy that cuts off", func() bool { return n.rate("eth0") == 90*hierarchy.Mbit })
	a.end(syscall.SIGKILL)
	n.until("the way back", func() bool { return n.rate("eth0") == 80*hierarchy.Mbit })

	// While nobody answers nothing is changed, and it is as soon as somebody does.
	end()
	m.update(map[string]string{"fleet.toml": strings.Replace(openPolicy, "100mbit", "70mbit", 1)})
	a = n.agent(args...)
	a.says("stays as it is until " + contact + " can be reached")
	n.inForce(s, file, 0)
	if got := n.rate("eth0"); got != 80*hierarchy.Mbit {
		t.Errorf("without a contact it is %v", got)
	}
	n.listenAgain(n.Far, contact)
	n.until("the policy that waited", func() bool { return n.rate("eth0") == 70*hierarchy.Mbit })
	n.inForce(s, file, 1)
	a.end(os.Interrupt)
	n.ok("clear")
	n.clean()
}

// listenAgain has somebody accept connections at an address until the test ends.
func (n *network) listenAgain(in *lab.NetNS, at string) {
	n.Helper()
	var l net.Listener
	if err := in.Do(func() (err error) {
		l, err = net.Listen("tcp", at)
		return err
	}); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { l.Close() })
}

// TestKernelPoliciesLater: what keeps an agent from reading the policies at its start is tried again,
// without --follow, too.
func TestKernelPoliciesLater(t *testing.T) {
	n := newNetwork(t)
	dir := filepath.Join(n.dir, "policies")
	if err := os.WriteFile(dir, nil, 0o644); err != nil { // no directory
		t.Fatal(err)
	}
	a := n.agent("--policies", dir)
	n.until("it to say so", func() bool { return strings.Contains(a.said(), "the enabled policies cannot be read") })
	if err := errors.Join(os.Remove(dir), os.Mkdir(dir, 0o755)); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "policy.toml"), lostPolicy)
	n.until("it to be applied", func() bool { return strings.Contains(a.said(), "msg=applied") })
	n.ok("show")
}

// TestKernelPoliciesMeanwhile: an agent that waits for the lock does not apply what it has read before,
// when whoever had the lock has enabled something else.
func TestKernelPoliciesMeanwhile(t *testing.T) {
	n := newNetwork(t)
	dir := filepath.Join(n.dir, "policies")
	file := filepath.Join(dir, "policy.toml")
	text := func(rate string) string {
		return "version = 1\n[interface.eth0]\nrate = \"" + rate + "\"\n"
	}
	write(t, file, text("100mbit"))
	a := n.agent("--policies", dir)
	n.until("it to be applied", func() bool { return strings.Contains(a.said(), "msg=applied") })
	unlock, err := n.store.Lock(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	write(t, file, text("50mbit"))
	n.shell("ip link set eth0 mtu 1400") // for which it looks at eth0 again
	time.Sleep(500 * time.Millisecond)   // it has read that by now; else this tries nothing, and fails nothing
	write(t, file+".new", text("20mbit"))
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
	unlock()
	n.until("the last one to be applied", func() bool { return n.rate("eth0") == 20*hierarchy.Mbit })
	if out := n.ok("rollback", "--list"); strings.Count(out, "created") != 2 {
		t.Errorf("it was applied more than twice:\n%s", out)
	}
}

// TestKernelPoliciesForgotten: what was wrong with an interface that is gone is not said any more.
func TestKernelPoliciesForgotten(t *testing.T) {
	n := newNetwork(t)
	dir := filepath.Join(n.dir, "policies")
	write(t, filepath.Join(dir, "policy.toml"), "version = 1\n[interface.gone0]\nrate = \"100mbit\"\n")
	if err := lab.AddVeth(n.Near, lab.Link{Name: "gone0"}, n.Near, lab.Link{Name: "gone1"}); err != nil {
		t.Fatal(err)
	}
	n.shell("tc qdisc add dev gone0 root handle 5: tbf rate 1mbit burst 10kb limit 10kb")
	n.agent("--policies", dir)
	why := func() string {
		all, err := n.store.Enabled()
		if err != nil || len(all) != 1 {
			return "not told"
		}
		return all[0].Why
	}
	n.until("it to say that it is refused", func() bool { return strings.Contains(why(), "tbf") })
	if err := n.Near.DeleteLink("gone0"); err != nil {
		t.Fatal(err)
	}
	n.until("that to be forgotten", func() bool { return why() == "" })
}
