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

// children are the processes that one has started.
func (n *network) children(pid int) (pids []int) {
	n.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err != nil {
		n.Fatal(err)
	}
	for _, f := range strings.Fields(string(b)) {
		p, err := strconv.Atoi(f)
		if err != nil {
			n.Fatal(err)
		}
		pids = append(pids, p)
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
