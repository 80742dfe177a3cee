package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/tc/tctest"
)

const (
	openPolicy = "version = 1\n[interface.eth0]\nrate = \"100mbit\"\n[interface.eth0.web]\nbind = [\"user:4711\"]\n"
	// What nobody has bound, a session of ssh too, gets nothing through.
	cutPolicy = "version = 1\n[interface.eth0]\nrate = \"90mbit\"\n[interface.eth0.rest]\nqdisc = { kind = \"bfifo\", limit = \"1b\" }\n"
)

// guards are the processes of this network that go back from what nobody confirms.
func (n *network) guards() (pids []int) {
	n.Helper()
	var mine unix.Stat_t
	if err := n.Near.Do(func() error { return unix.Stat("/proc/thread-self/ns/net", &mine) }); err != nil {
		n.Fatal(err)
	}
	all, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		n.Fatal(err)
	}
	for _, p := range all {
		var its unix.Stat_t
		b, err := os.ReadFile(p + "/cmdline")
		if err != nil || !strings.HasSuffix(string(b), "\x00confirm\x00guard\x00") || unix.Stat(p+"/ns/net", &its) != nil || its.Ino != mine.Ino {
			continue // or it has ended
		}
		pid, err := strconv.Atoi(filepath.Base(p))
		if err != nil {
			n.Fatal(err)
		}
		pids = append(pids, pid)
	}
	return pids
}

// TestKernelConfirmCut: who cuts himself off by an apply gets back in, though his session,
// his shell and his terminal are gone.
func TestKernelConfirmCut(t *testing.T) {
	n := newNetwork(t)
	ssh := tctest.RequireProgram(t, "ssh")
	server := n.sshd(n.Near, n.Near4)
	open, cut := n.policy("open.toml", openPolicy), n.policy("cut.toml", cutPolicy)
	n.ok("apply", open)
	login := func(command string) *exec.Cmd {
		args := append([]string{"-p", "7600", "-o", "ConnectTimeout=5"}, n.sshOptions()...)
		return exec.CommandContext(t.Context(), ssh, append(args, "root@"+n.Near4.String(), command)...)
	}
	if r := n.startIn(n.Far, login("echo in")).wait(); r.stdout != "in\n" {
		t.Fatalf("%v\n%s", r, server.stderr.String())
	}

	// The apply's answer does not come any more; nor does anybody get in.
	session := login(fmt.Sprintf("%s apply --confirm 4s %s; exec cat", n.bin, cut))
	in, err := session.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	r := n.startIn(n.Far, session)
	n.until("the apply", func() bool { return len(n.guards()) == 1 && n.run("plan", "--detailed-exitcode", cut).code == 0 })
	err = n.Far.Do(func() error {
		c, err := net.DialTimeout("tcp4", n.Near4.String()+":7600", 500*time.Millisecond)
		if err == nil {
			c.Close()
		}
		return err
	})
	if err == nil {
		t.Error("the policy that cuts everybody off does not")
	}
	guard := n.guards()
	if len(guard) == 1 {
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", guard[0])); err != nil || strings.Contains(string(b), "0::") && !strings.Contains(string(b), "0::/\n") {
			t.Errorf("the guard is in the cgroup of the session, which may end it: %s%v", b, err)
		}
		if sid, err := unix.Getsid(guard[0]); err != nil || sid != guard[0] {
			t.Errorf("the guard is in session %d, %v", sid, err)
		}
	}
	for _, p := range n.children(server.Process.Pid) { // sshd's for the session, and so its shell
		_ = unix.Kill(p, unix.SIGKILL)
	}
	if err := r.Process.Kill(); err != nil {
		t.Error(err)
	}
	r.wait()

	n.until("a way back in", func() bool { return n.startIn(n.Far, login("echo in")).wait().stdout == "in\n" })
	if r := n.run("plan", "--detailed-exitcode", open); r.code != 0 {
		t.Errorf("what was before is not back: %v", r)
	}
	n.until("the guard's end", func() bool { return len(n.guards()) == 0 })
	n.ok("clear")
	n.clean()
}

// children are the processes that one has started, by any of its threads.
func (n *network) children(pid int) (pids []int) {
	n.Helper()
	all, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil || len(all) == 0 {
		n.Fatalf("process %d has no threads: %v", pid, err)
	}
	for _, file := range all {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		for _, f := range strings.Fields(string(b)) {
			p, err := strconv.Atoi(f)
			if err != nil {
				n.Fatal(err)
			}
			pids = append(pids, p)
		}
	}
	return pids
}

// TestKernelConfirmGuardKilled: where nobody is left who would go back, the next vifshape
// does, before it does what it was told.
func TestKernelConfirmGuardKilled(t *testing.T) {
	n := newNetwork(t)
	open, cut := n.policy("open.toml", openPolicy), n.policy("cut.toml", cutPolicy)
	n.ok("apply", open)
	n.ok("bind", "eth0/web", "user:4712")
	n.run("apply", "--confirm", "3s", cut)
	for _, g := range n.guards() {
		if err := unix.Kill(g, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	n.until("the time's end", func() bool {
		r := n.run("add", "eth0/web/more")
		return r.code == 0 && strings.Contains(r.stderr, "eth0 was not confirmed, and is again what it was before "+cut)
	})
	if r := n.run("show"); !strings.Contains(r.stdout, "user:4712") || !strings.Contains(r.stdout, "    more ") {
		t.Errorf("%v", r)
	}

	// An apply that was killed before it began leaves nothing to go back from.
	n.ok("apply", "--confirm", "1s", open)
	if r := n.run("confirm"); r.code != 1 {
		t.Errorf("%v", r)
	}
	n.ok("clear")
	n.until("the guards' end", func() bool { return len(n.guards()) == 0 })
	n.clean()
}

// unconfirmed applies what waits for a word, with nobody who would go back.
func (n *network) unconfirmed(policy string) {
	n.Helper()
	n.ok("apply", "--confirm", "1h", policy)
	for _, g := range n.guards() {
		if err := unix.Kill(g, syscall.SIGKILL); err != nil {
			n.Fatal(err)
		}
	}
	n.until("the guard's end", func() bool { return len(n.guards()) == 0 })
}

// late ends the time to confirm.
func (n *network) late() {
	n.Helper()
	u, err := n.store.Unconfirmed()
	if err != nil || u == nil {
		n.Fatalf("what waits: %+v, %v", u, err)
	}
	u.After(-time.Second)
	if err := n.store.SetUnconfirmed(u); err != nil {
		n.Fatal(err)
	}
}

// TestKernelConfirmHindered: what happens to interfaces and records while an apply waits
// keeps from going back nothing but what cannot, and that is said.
func TestKernelConfirmHindered(t *testing.T) {
	tctest.RequireProgram(t, "setpriv")
	n := newNetwork(t)
	ip := func(args ...string) { t.Helper(); tctest.Output(t, n.Near, "ip", args...) }
	second := "[interface.eth1]\nrate = \"10mbit\"\n"
	open, cut := n.policy("open.toml", openPolicy), n.policy("cut.toml", cutPolicy)
	both, cutBoth := n.policy("both.toml", openPolicy+second), n.policy("cutboth.toml", cutPolicy+strings.Replace(second, "10", "20", 1))
	goesBack := func(words ...string) {
		t.Helper()
		r := n.run("confirm")
		for _, w := range words {
			if r.code != 1 || !strings.Contains(r.stderr, w) {
				t.Errorf("%v\nwant %q", r, w)
			}
		}
	}

	ip("link", "add", "eth1", "type", "ifb")
	n.ok("apply", both)
	n.unconfirmed(cutBoth)
	ip("link", "del", "eth1")
	n.late()
	goesBack("eth0 was not confirmed, and is again what it was", "eth1 was not confirmed, and could not go back to what it was: eth1: no such interface")
	if r := n.run("plan", "--detailed-exitcode", open); r.code != 0 {
		t.Errorf("what is there is kept from going back by what is not: %v", r)
	}
	n.ok("clear")

	for _, saved := range []bool{false, true} { // under the new name
		n.ok("apply", open)
		n.unconfirmed(cut)
		ip("link", "set", "eth0", "down")
		ip("link", "set", "eth0", "name", "lan0")
		name := "eth0"
		if saved {
			n.ok("bind", "lan0/rest", "user:4713")
			name = "lan0"
		}
		n.late()
		goesBack(name + " was not confirmed, and is again what it was")
		renamed := n.policy("renamed.toml", strings.ReplaceAll(openPolicy, "eth0", "lan0"))
		if r := n.run("plan", "--detailed-exitcode", renamed); r.code != 0 {
			t.Errorf("what has another name is not what it was: %v", r)
		}
		n.ok("clear")
		ip("link", "set", "lan0", "name", "eth0")
		ip("link", "set", "eth0", "up")
	}

	for words, text := range map[string]string{"the record of that is gone": "", "is damaged": "{"} {
		n.ok("apply", open)
		n.unconfirmed(cut)
		file := n.store.File("eth0")
		file = strings.TrimSuffix(file, record.Suffix) + ".2.before"
		if err := os.Remove(file); err != nil { // it is a link of the record itself
			t.Fatal(err)
		}
		if text != "" {
			if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		n.late()
		goesBack("eth0 was not confirmed, and could not go back to what it was: ", words)
		n.ok("clear")
	}

	// Who may not go back leaves it to who may.
	n.ok("apply", open)
	n.unconfirmed(cut)
	n.late()
	n.failed(n.under([]string{"setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"}, "clear"), exitPrivilege, "CAP_NET_ADMIN")
	goesBack("eth0 was not confirmed, and is again what it was")
	n.ok("clear")
	n.clean()
}

// TestKernelRollbackAgain: a rollback that comes too late does not bring back what nobody
// confirmed.
func TestKernelRollbackAgain(t *testing.T) {
	n := newNetwork(t)
	open, cut := n.policy("open.toml", openPolicy), n.policy("cut.toml", cutPolicy)
	n.ok("apply", open)
	n.unconfirmed(cut)
	n.late()
	n.failed(n.run("rollback"), exitError, "eth0 waits no more to be confirmed")
	n.failed(n.run("rollback"), exitError, "`vifshape rollback --to 1 eth0` applies again what was not confirmed")
	if r := n.run("plan", "--detailed-exitcode", open); r.code != 0 {
		t.Errorf("%v", r)
	}
	n.ok("rollback", "--to", "1")
	if r := n.run("plan", "--detailed-exitcode", cut); r.code != 0 {
		t.Errorf("%v", r)
	}
	n.ok("clear")
	n.clean()
}

// TestKernelRollbackAbsent: an interface that is gone, or has another name, keeps a rollback
// from nothing.
func TestKernelRollbackAbsent(t *testing.T) {
	n := newNetwork(t)
	ip := func(args ...string) { t.Helper(); tctest.Output(t, n.Near, "ip", args...) }
	both := func(rate string) string {
		return n.policy("policy"+rate+".toml", historyPolicy(rate)+"[interface.eth1]\nrate = \""+rate+"\"\n")
	}
	ip("link", "add", "eth1", "type", "ifb")
	n.ok("apply", both("10mbit"))
	n.ok("apply", both("20mbit"))
	ip("link", "del", "eth1")
	if r := n.run("rollback"); r.code != exitAbsent || !strings.Contains(r.stderr, "eth1: no such interface; it is left out") {
		t.Errorf("%v", r)
	}
	if r := n.run("plan", "--detailed-exitcode", n.policy("one.toml", historyPolicy("10mbit"))); r.code != 0 {
		t.Errorf("%v", r)
	}
	ip("link", "set", "eth0", "down")
	ip("link", "set", "eth0", "name", "lan0")
	n.ok("rollback")
	if r := n.run("plan", "--detailed-exitcode", n.policy("two.toml", strings.ReplaceAll(historyPolicy("20mbit"), "eth0", "lan0"))); r.code != 0 {
		t.Errorf("%v", r)
	}
	n.ok("clear")
	ip("link", "set", "lan0", "name", "eth0")
	n.clean()
}

// TestKernelRollbackClock: the last apply is that even where the clock was set back since the
// one before it.
func TestKernelRollbackClock(t *testing.T) {
	n := newNetwork(t)
	tctest.Output(t, n.Near, "ip", "link", "add", "eth1", "type", "ifb")
	n.ok("apply", n.policy("other.toml", "version = 1\n[interface.eth1]\nrate = \"30mbit\"\n"))
	r, err := n.store.Load("eth1")
	if err != nil {
		t.Fatal(err)
	}
	r.Applied = r.Applied.Add(time.Hour)
	if err := n.store.Save(r); err != nil {
		t.Fatal(err)
	}
	one := n.policy("one.toml", historyPolicy("10mbit"))
	n.ok("apply", one)
	n.ok("apply", n.policy("two.toml", historyPolicy("20mbit")))
	n.ok("rollback")
	if r := n.run("plan", "--detailed-exitcode", one); r.code != 0 {
		t.Errorf("another apply was taken back: %v", r)
	}
	n.ok("clear")
	tctest.Output(t, n.Near, "ip", "link", "del", "eth1")
	n.clean()
}
