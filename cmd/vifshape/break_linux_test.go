package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

const smallPolicy = `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.web]
rate = "50mbit"
[interface.eth0.web.api]
rate = "20mbit"
`

// manyLeaves is so many that an apply takes long enough to be hit in its middle.
const manyLeaves = 2000

// TestKernelInterrupt holds that Ctrl-C during an apply leaves the tree as it
// was: none, or the former one.
func TestKernelInterrupt(t *testing.T) {
	n := newNetwork(t)
	first, second := n.policy("first.toml", many(manyLeaves, "1mbit")), n.policy("second.toml", many(manyLeaves+500, "2mbit"))
	// Ctrl-C comes with the first change that the kernel tells of. Where this test gets no
	// processor until the apply is done, it makes what was before again and tries once more.
	interrupt := func(file string, again ...string) {
		t.Helper()
		for range 20 {
			c := n.listener()
			r := n.start(n.command("apply", file))
			if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Receive(); err != nil && !errors.Is(err, unix.ENOBUFS) { // more than it holds: they have begun
				t.Fatal(err)
			}
			if err := r.Process.Signal(os.Interrupt); err != nil && !errors.Is(err, os.ErrProcessDone) {
				t.Fatal(err)
			}
			if r := r.wait(); r.code != 0 {
				n.failed(r, exitInterrupted, "error: interrupted; everything is as it was before")
				return
			}
			n.ok(again...)
		}
		t.Fatal("20 applies were done before they heard of it")
	}
	interrupt(first, "clear")
	n.clean()

	n.ok("apply", first)
	before := n.state()
	interrupt(second, "apply", first)
	if d := cmp.Diff(before, n.state()); d != "" {
		t.Errorf("the tree is another one (-want +got):\n%s", d)
	}
	if got := n.ok("plan", "--detailed-exitcode", first); got != "eth0: no changes\n" {
		t.Errorf("plan says %s", got)
	}
	n.ok("clear")
	n.clean()
}

func same(a, b hierarchy.State) bool { return hierarchy.Diff(a, b).Empty() }

// TestKernelKill holds that an apply that is killed, wherever it is, leaves an
// interface that passes traffic, and a state from which the next apply and clear
// go on.
func TestKernelKill(t *testing.T) {
	tctest.RequireProgram(t, "tc")
	n := newNetwork(t)
	leaves := 600
	if vm.Inside() { // where an apply takes longer
		leaves = 150
	}
	first, second := n.policy("first.toml", many(leaves, "1mbit")), n.policy("second.toml", many(leaves*4/3, "2mbit"))
	took := func(file string) time.Duration {
		start := time.Now()
		n.ok("apply", file)
		return time.Since(start)
	}
	killed := 0
	// kill kills an apply at a part of the time that one takes at most, as far as is known.
	kill := func(file string, part float64, takes *time.Duration) {
		t.Helper()
		after := time.Duration(part * float64(*takes))
		r := n.start(n.command("apply", file))
		time.Sleep(after)
		if err := r.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		if r.wait().code == -1 {
			killed++
		} else { // the machine has more time for it than before
			*takes = after
		}
	}
	made := took(first)
	changed := took(second)
	n.ok("clear")
	traffic := n.stream()
	const moments = 6
	for i := range moments {
		kill(first, (float64(i)+0.5)/moments, &made)
		if i%2 == 0 { // from what is there on
			n.ok("apply", first)
			n.converged(first)
		}
		n.ok("clear")
		n.clean()
	}
	n.ok("apply", first)
	// The kernel drops what is sent while it exchanges a root qdisc, for tc as
	// for us (dev_deactivate, net/sched/sch_generic.c, v6.12): a few datagrams.
	traffic.passed()
	traffic = n.stream()
	for i := range moments {
		kill(second, (float64(i)+0.5)/moments, &changed)
		n.ok("apply", []string{first, second}[i%2])
		n.converged([]string{first, second}[i%2])
		n.ok("apply", first)
	}
	if lost := traffic.passed(); lost > 0 {
		t.Errorf("%d datagrams were lost while a tree changed", lost)
	}
	n.ok("clear")
	n.clean()
	if killed < moments {
		t.Errorf("only %d of %d were killed before their end", killed, 2*moments)
	}
}

// converged holds that nothing is left to do for a policy.
func (n *network) converged(file string) {
	n.Helper()
	if r := n.run("plan", "--detailed-exitcode", file); r.code != 0 || r.stderr != "" {
		n.Errorf("plan after apply: %v", r)
	}
}

// TestKernelTwoWriters holds that of two applies at the same time one waits for
// the other, and that the tree is whole then.
func TestKernelTwoWriters(t *testing.T) {
	n := newNetwork(t)
	files := []string{n.policy("a.toml", many(300, "1mbit")), n.policy("b.toml", many(400, "2mbit"))}
	for range 3 {
		a, b := n.start(n.command("apply", files[0])), n.start(n.command("apply", files[1]))
		for _, r := range []*running{a, b} {
			if r := r.wait(); r.code != 0 || r.stderr != "" {
				t.Errorf("apply: %v", r)
			}
		}
		record, err := n.store.Load(n.Dev)
		if err != nil {
			t.Fatal(err)
		}
		n.converged(record.Policy)
	}
}

// TestKernelLocked holds that a writer that waits too long says for whom.
func TestKernelLocked(t *testing.T) {
	t.Parallel() // it only waits
	n := newNetwork(t)
	file := n.policy("policy.toml", smallPolicy)
	unlock, err := n.store.Lock(t.Context(), "apply other.toml")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	n.fails(exitLocked, fmt.Sprintf("vifshape apply other.toml (process %d) is changing the interfaces", os.Getpid()), "apply", file)
	n.ok("plan", file) // reading waits for nobody
}

// TestKernelDeviceGone takes the interface away in the middle of things.
func TestKernelDeviceGone(t *testing.T) {
	n := newNetwork(t)
	file, small := n.policy("many.toml", many(manyLeaves, "1mbit")), n.policy("small.toml", smallPolicy)
	gone := func() {
		t.Helper()
		if err := n.Near.DeleteLink(n.Dev); err != nil {
			t.Fatal(err)
		}
	}
	back := func() {
		t.Helper()
		if err := lab.AddVeth(n.Near, lab.Link{Name: n.Dev}, n.Far, lab.Link{Name: n.FarDev}); err != nil {
			t.Fatal(err)
		}
	}
	// During an apply.
	r := n.start(n.command("apply", file))
	n.until("the first class", func() bool { return len(n.sending().Classes) > 0 })
	gone()
	n.failed(r.wait(), exitError, "eth0: interface is gone: it vanished while it was being changed")
	if i, err := n.store.Interfaces(); err != nil || len(i) != 0 {
		t.Errorf("a record is left: %v, %v", i, err)
	}
	back()

	// A branch has its class again when the interface is back.
	n.ok("apply", small)
	before := n.state()
	gone()
	n.fails(exitError, "eth0: no such interface", "apply", small)
	n.fails(exitError, "eth0: no such interface", "show", "eth0")
	if r := n.run("show"); !strings.Contains(r.stderr, "eth0 has a policy and is not there now") {
		t.Errorf("show: %v", r)
	}
	back()
	n.ok("apply", small)
	if d := cmp.Diff(before, n.state()); d != "" {
		t.Errorf("the tree is another one (-want +got):\n%s", d)
	}

	// During show, between its two looks.
	for wait := 150 * time.Millisecond; ; wait *= 2 {
		r := n.start(n.command("show", "--sample", (4 * wait).String()))
		time.Sleep(wait)
		gone()
		end := r.wait()
		if wait < 5*time.Second && strings.Contains(end.stderr, "is not there now") { // it had not looked yet
			back()
			n.ok("apply", small)
			continue
		}
		n.failed(end, exitError, "eth0")
		break
	}

	// Clear forgets it.
	if r := n.run("clear"); r.code != 0 || !strings.Contains(r.stderr, "eth0 is gone, and its tree with it") {
		t.Errorf("clear: %v", r)
	}
	back()
	n.clean()
}

// TestKernelSecondFails holds that a policy is applied to all of its interfaces
// or to none.
func TestKernelSecondFails(t *testing.T) {
	n := newNetwork(t)
	if err := lab.AddVeth(n.Near, lab.Link{Name: "eth1"}, n.Far, lab.Link{Name: "far1"}); err != nil {
		t.Fatal(err)
	}
	for _, former := range []string{"", smallPolicy} {
		if former != "" {
			n.ok("apply", n.policy("small.toml", former))
		}
		before := n.state()
		both := n.policy("both.toml", many(manyLeaves, "1mbit")+"[interface.eth1]\nrate = \"10mbit\"\n")
		r := n.start(n.command("apply", both))
		n.until("the first class", func() bool { return len(n.sending().Classes) > len(before.Ports[0].Classes) })
		if err := n.Near.DeleteLink("eth1"); err != nil {
			t.Fatal(err)
		}
		n.failed(r.wait(), exitError, "eth1")
		if d := cmp.Diff(before, n.state()); d != "" {
			t.Errorf("eth0 is not as before (-want +got):\n%s", d)
		}
		want := []string(nil)
		if former != "" {
			want = []string{"eth0"}
			n.converged(filepath.Join(n.dir, "small.toml"))
		}
		got, err := n.store.Interfaces()
		if d := cmp.Diff(want, got); d != "" || err != nil {
			t.Errorf("records: %v (-want +got):\n%s", err, d)
		}
		if err := lab.AddVeth(n.Near, lab.Link{Name: "eth1"}, n.Far, lab.Link{Name: "far1"}); err != nil {
			t.Fatal(err)
		}
	}
}

// TestKernelForeignKill holds that a root qdisc that vifshape was told to replace
// comes back, however an apply ends and whenever.
func TestKernelForeignKill(t *testing.T) {
	n := newNetwork(t)
	root := func() string { return tctest.TC(t, n.Near, "qdisc", "show", "dev", n.Dev, "root") }
	tctest.TC(t, n.Near, "qdisc", "add", "dev", n.Dev, "root", "handle", "7:", "tbf", "rate", "50mbit", "burst", "64kb", "limit", "100kb")
	before := root()
	file := n.policy("replace.toml", strings.Replace(many(1000, "1mbit"), "[interface.eth0]", "[interface.eth0]\nreplace = true", 1))
	for _, after := range []time.Duration{5, 20, 40, 60, 100} {
		r := n.start(n.command("apply", file))
		time.Sleep(after * time.Millisecond)
		if err := r.Process.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		switch r := r.wait(); {
		case r.code == 0:
			n.ok("clear") // it was done already
		case r.code != exitInterrupted && r.code != -1: // -1: before it listened for signals
			t.Errorf("after %d ms: %v", after, r)
		}
		if got := root(); got != before {
			t.Errorf("interrupted after %d ms: %s, not %s", after, got, before)
		}
		r = n.start(n.command("apply", file))
		time.Sleep(after * time.Millisecond)
		if err := r.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Fatal(err)
		}
		r.wait()
		n.ok("clear")
		if got := root(); got != before {
			t.Errorf("killed after %d ms and cleared: %s, not %s", after, got, before)
		}
	}
}

// public is a copy of the program that every user can start.
func (n *network) public() {
	n.Helper()
	from, err := os.Open("/proc/self/exe")
	if err != nil {
		n.Fatal(err)
	}
	defer from.Close()
	n.bin = filepath.Join(n.dir, "vifshape")
	to, err := os.OpenFile(n.bin, os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		n.Fatal(err)
	}
	_, err = io.Copy(to, from)
	// A temporary directory is its owner's alone.
	if err = errors.Join(err, to.Close(), os.Chmod(filepath.Dir(n.dir), 0o755)); err != nil {
		n.Fatal(err)
	}
}

// TestKernelNobody runs the program as a user without any privilege.
func TestKernelNobody(t *testing.T) {
	n := newNetwork(t)
	n.public()
	file, other := n.policy("policy.toml", smallPolicy), n.policy("other.toml", many(3, "1mbit"))
	as := func(args ...string) result {
		t.Helper()
		c := n.command(args...)
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		return n.start(c).wait()
	}
	reads := func(words string, args ...string) {
		t.Helper()
		if r := as(args...); r.code != 0 || !strings.Contains(r.stdout, words) {
			t.Errorf("%s: not %q: %v", args, words, r)
		}
	}
	refused := func(args ...string) {
		t.Helper()
		r := as(args...)
		n.failed(r, exitPrivilege, "")
		if strings.Count(r.stderr, "\n") != 2 || !strings.Contains(r.stderr, "hint: run it as root") {
			t.Errorf("%s: not one message and one hint: %v", args, r)
		}
	}
	reads("", "check", file)
	reads("eth0", "ls")
	refused("apply", file)
	n.clean()
	n.ok("apply", file)
	n.ok("run", "eth0/web/api", "--", "true")
	reads("shaped_by\": \"vifshape", "ls", "--json")
	reads("    api", "show")
	reads("    api", "show", "eth0/web")
	reads("eth0/b1", "plan", other)
	reads("eth0: no changes", "plan", file)
	before := n.state()
	refused("apply", other)
	refused("clear")
	refused("run", "--level", "tag", "eth0/web/api", "--", "true") // what lock lacks here is told besides
	if d := cmp.Diff(before, n.state()); d != "" {
		t.Errorf("the tree is another one (-want +got):\n%s", d)
	}
}

// TestKernelNoCapability runs the program as root in a container would be: uid 0
// without CAP_NET_ADMIN.
func TestKernelNoCapability(t *testing.T) {
	tctest.RequireProgram(t, "setpriv")
	n := newNetwork(t)
	file, other := n.policy("policy.toml", smallPolicy), n.policy("other.toml", many(3, "1mbit"))
	without := func(args ...string) result {
		t.Helper()
		return n.under([]string{"setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"}, args...)
	}
	n.failed(without("apply", file), exitPrivilege, "CAP_NET_ADMIN")
	n.clean()
	n.ok("apply", file)
	before := n.state()
	n.failed(without("apply", other), exitPrivilege, "CAP_NET_ADMIN")
	n.failed(without("clear"), exitPrivilege, "CAP_NET_ADMIN")
	if r := without("show"); r.code != 0 {
		t.Errorf("show: %v", r)
	}
	if d := cmp.Diff(before, n.state()); d != "" {
		t.Errorf("the tree is another one (-want +got):\n%s", d)
	}
	n.converged(file)
}

// under runs the program as an argument of another one.
func (n *network) under(outer []string, args ...string) result {
	n.Helper()
	c := n.command()
	c.Path = tctest.RequireProgram(n, outer[0])
	c.Args = append(append(outer, n.bin), args...)
	return n.start(c).wait()
}

// inMounts runs the program behind a shell script, in mounts of its own.
func (n *network) inMounts(script string, args ...string) result {
	n.Helper()
	return n.under([]string{"unshare", "--mount", "sh", "-c", script + `; exec "$@"`, "sh"}, args...)
}

// TestKernelFull holds that a run directory without room for a byte, or for a file,
// keeps nobody from shaping an interface, and from taking the tree away, and that
// what could not be written is said, and made up for.
func TestKernelFull(t *testing.T) {
	for _, p := range []string{"dd", "tc"} {
		tctest.RequireProgram(t, p)
	}
	n := newNetwork(t)
	file := n.policy("policy.toml", smallPolicy)
	// The root, what is above the run directory, and that.
	for name, mount := range map[string]string{"bytes": "size=64k", "files": "size=64k,nr_inodes=3"} {
		t.Run(name, func(t *testing.T) {
			script := `exec 3>&2 2>/dev/null
mount -t tmpfs -o ` + mount + ` none /run && mkdir -p ` + n.store.Dir + `
dd if=/dev/zero of=/run/fill bs=4k
code() { "$V" "$@" >&3 2>&3; echo "code $?" >&3; }
V=` + n.bin + ` F=` + file + `
code apply $F
code plan --detailed-exitcode $F
code add eth0/more
rm -f /run/fill
mount -o remount,nr_inodes=100 /run
code plan --detailed-exitcode $F
code apply $F
code plan --detailed-exitcode $F
dd if=/dev/zero of=/run/fill bs=4k
exec 2>&3 "$@"`
			r := n.under([]string{"unshare", "--mount", "sh", "-c", script, "sh"}, "clear")
			if r.code != exitOK {
				t.Errorf("clear: %v", r)
			}
			n.clean()
			text := r.stderr
			for _, want := range []string{
				"error: eth0 is shaped as " + file + " says, but there is no room for the record of it (", "hint: make room in the run directory (`df " + n.store.Dir + "`)", "code 3\n",
				"eth0: the record of its tree is lost: apply writes it anew", "eth0: no changes\ncode 2\n",
				"code 1\n",
				"eth0: the record of its tree is lost: apply writes it anew", "eth0: no changes\ncode 2\n",
				"code 0\neth0: no changes\ncode 0\n",
			} {
				_, rest, ok := strings.Cut(text, want)
				if !ok {
					t.Fatalf("no %q in\n%s\nof\n%s", want, text, r.stderr)
				}
				text = rest
			}
			if warns := strings.Contains(r.stderr, "warning: there is no room for a lock in "); warns != (name == "files") {
				t.Errorf("of the lock:\n%s", r.stderr)
			}
		})
	}
}

// TestKernelMounts runs the program where file systems are not as usual.
func TestKernelMounts(t *testing.T) {
	tctest.RequireProgram(t, "tc")
	tctest.RequireProgram(t, "setpriv")
	n := newNetwork(t)
	n.public()
	file := n.policy("policy.toml", smallPolicy+"bind = [\"user:65534\"]\n")
	const (
		sysfs    = "mount -t sysfs sysfs /sys" // as ip netns exec does: hides the cgroups
		readOnly = "mount -t tmpfs -o ro none /run"
		empty    = "mount -t tmpfs none /run"
	)
	t.Run("no cgroups in sight", func(t *testing.T) {
		if r := n.inMounts(sysfs, "apply", file); r.code != 0 {
			t.Fatalf("apply: %v", r)
		}
		n.converged(file)
		r := n.inMounts(sysfs, "run", "--level", "tag", "eth0/web/api", "--", "cat", "/proc/self/cgroup")
		if r.code != 0 || !strings.Contains(r.stdout, n.store.NetNS+"/eth0/web/api\n") {
			t.Errorf("run: %v", r)
		}
		if r := n.inMounts(sysfs, "show"); r.code != 0 || !strings.Contains(r.stdout, "bound by bpf") {
			t.Errorf("show: %v", r)
		}
		nobody := sysfs + `; exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"`
		if r := n.inMounts(nobody, "show"); r.code != 0 || !strings.Contains(r.stdout, "    api") {
			t.Errorf("show as nobody: %v", r)
		}
		n.failed(n.inMounts(nobody, "which", "--pid", "1"), exitPrivilege, "run it as root")
		if r := n.inMounts(sysfs, "clear"); r.code != 0 {
			t.Errorf("clear: %v", r)
		}
		n.clean()
	})
	t.Run("run directory read-only", func(t *testing.T) {
		n.failed(n.inMounts(readOnly, "apply", file), exitError, "/run/vifshape")
		n.clean()
	})
	t.Run("run directory full", func(t *testing.T) {
		big := n.policy("big.toml", many(1000, "1mbit"))
		// What could not go back is not begun.
		n.failed(n.inMounts("mount -t tmpfs -o size=16k none /run", "apply", "--confirm", "1h", big), exitError, "its record cannot be written, and nothing was changed")
		n.clean()
		n.failed(n.inMounts("mount -t tmpfs -o size=16k none /run", "apply", big), exitPartly, "there is no room for the record of it")
		n.ok("clear")
		n.clean()
	})
	t.Run("run directory empty", func(t *testing.T) {
		n.ok("apply", file)
		before := n.state()
		// The memory is lost; the tree is not, and is known again after an apply.
		r := n.inMounts(empty+"; \"$1\" apply "+file+" || exit", "show", "--json")
		if r.code != 0 || !strings.Contains(r.stdout, "eth0/web/api") {
			t.Errorf("apply and show: %v", r)
		}
		if d := cmp.Diff(before, n.state()); d != "" {
			t.Errorf("the tree is another one (-want +got):\n%s", d)
		}
		n.ok("clear")
	})
}

// TestKernelDamagedRecord holds that what cannot be understood is not guessed.
func TestKernelDamagedRecord(t *testing.T) {
	n := newNetwork(t)
	file := n.policy("policy.toml", smallPolicy)
	n.ok("apply", file)
	before := n.state()
	record := n.store.File(n.Dev)
	if err := os.WriteFile(record, []byte(`{"version": 1, "inter`), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"plan", file}, {"apply", file}, {"show"}, {"show", "eth0"}, {"ls"}, {"run", "eth0/web/api", "--", "true"}, {"clear"}} {
		n.fails(exitError, record+" is damaged", args...)
	}
	if d := cmp.Diff(before, n.state()); d != "" {
		t.Errorf("the tree is another one (-want +got):\n%s", d)
	}
	// The way on that the message gives.
	if err := os.Remove(record); err != nil {
		t.Fatal(err)
	}
	n.ok("apply", file)
	if d := cmp.Diff(before, n.state()); d != "" {
		t.Errorf("the classes have other ids (-want +got):\n%s", d)
	}
	n.ok("clear")
	n.clean()
}

// TestKernelNoMemory holds that clear takes a tree away whose record is lost.
func TestKernelNoMemory(t *testing.T) {
	n := newNetwork(t)
	n.ok("apply", n.policy("policy.toml", smallPolicy))
	n.ok("run", "eth0/web/api", "--", "true")
	if err := os.RemoveAll(n.store.Dir); err != nil {
		t.Fatal(err)
	}
	n.ok("clear")
	n.clean()
	if err := unix.Access(n.store.File(n.Dev), unix.F_OK); err != unix.ENOENT {
		t.Errorf("record: %v", err)
	}
}
