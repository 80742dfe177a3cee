package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
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
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

const agentPolicy = `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.web]
rate = "50mbit"
bind = [%q]
[interface.eth0.batch]
rate = "20mbit"
`

// TestKernelAgentRestart: a unit that is started while the agent runs is bound, and so
// is its next cgroup; not a packet of it goes elsewhere once it is.
func TestKernelAgentRestart(t *testing.T) { agentRestart(t, "auto") }

// TestAgentRestartNft is the same by nf_tables, which not all guests have.
func TestAgentRestartNft(t *testing.T) { agentRestart(t, "nft") }

func agentRestart(t *testing.T, binding string) {
	n := newNetwork(t)
	slice := systemSlice(t)
	svc := strings.TrimSuffix(filepath.Join(slice, filepath.Base(slice)), ".slice") + ".service"
	n.ok("apply", "--binding", binding, n.policy("policy.toml", fmt.Sprintf(agentPolicy, "unit:"+filepath.Base(svc))))
	a := n.agent()
	a.says("waits: the unit is not running")
	if err := os.Mkdir(svc, 0o755); err != nil {
		t.Fatal(err)
	}
	n.bound(map[string]hierarchy.Path{n.target(svc): "eth0/web"})
	s := n.service(svc)
	got := n.sentIn(func() { s.send(100, 10*time.Microsecond, false) })
	if diff := cmp.Diff(map[hierarchy.Path]uint64{"eth0/web": 100}, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	for range 3 {
		got := n.sentIn(func() { s.send(1, 0, true) })
		if got["eth0/web"]+got["eth0/rest"] != 1 {
			t.Errorf("sent at once: %v", got)
		}
		n.bound(map[string]hierarchy.Path{n.target(svc): "eth0/web"})
		got = n.sentIn(func() { s.send(100, 10*time.Microsecond, false) })
		if diff := cmp.Diff(map[hierarchy.Path]uint64{"eth0/web": 100}, got); diff != "" {
			t.Errorf("after a new start (-want +got)\n%s", diff)
		}
	}
	if code := a.end(syscall.SIGTERM); code != 0 {
		t.Errorf("SIGTERM: exit status %d", code)
	}
	a.told("STOPPING=1")
	if left, err := filepath.Glob(n.store.Dir + "/agent*"); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
	if r := n.run("clear"); r.code != 0 {
		t.Error(r)
	}
	n.clean()
}

// TestKernelAgent: what appears, goes and is bound by others is in force at once.
func TestKernelAgent(t *testing.T) {
	n := newNetwork(t)
	base := tctest.Cgroup(t)
	worker := n.target(base) + "/worker-*"
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(agentPolicy, worker)))
	a := n.agent("--log-level", "debug")
	make := func(name string) string {
		t.Helper()
		dir := filepath.Join(base, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		return dir
	}
	want := map[string]hierarchy.Path{}
	first := make("worker-1")
	want[n.target(first)] = "eth0/web"
	n.bound(want)
	make("other")
	for i := range 20 {
		want[n.target(make(fmt.Sprintf("worker-x%d", i)))] = "eth0/web"
	}
	n.bound(want)
	if err := unix.Rmdir(first); err != nil {
		t.Fatal(err)
	}
	delete(want, n.target(first))
	n.bound(want)

	// What others change the agent takes in: also a directory above that is not there yet.
	deep := filepath.Join(base, "deep", "below")
	n.ok("bind", "eth0/batch", n.target(deep), "link:in0")
	n.bound(want)
	make("deep")
	if err := os.Mkdir(deep, 0o755); err != nil {
		t.Fatal(err)
	}
	want[n.target(deep)] = "eth0/batch"
	n.bound(want)

	if err := lab.AddVeth(n.Near, lab.Link{Name: "in0"}, n.Far, lab.Link{Name: "in1"}); err != nil {
		t.Fatal(err)
	}
	want["link:in0"] = "eth0/batch"
	n.bound(want)
	if err := n.Near.DeleteLink("in0"); err != nil {
		t.Fatal(err)
	}
	delete(want, "link:in0")
	n.bound(want)
	behind := n.behind("in0")
	want["link:in0"] = "eth0/batch"
	n.bound(want)
	const port = 6000
	sink, err := lab.NewSink(context.WithoutCancel(t.Context()), n.Far, port) // or they are refused
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	got := n.sentIn(func() {
		_, err := lab.Send(t.Context(), lab.Traffic{NetNS: behind, Protocol: "udp", To: netip.AddrPortFrom(n.Far4, port), Size: 100, Bytes: 3000, Rate: hierarchy.Mbit})
		if err != nil {
			t.Fatal(err)
		}
		n.until("what was sent", func() bool { return sink.Count(port).Packets >= 30 })
	})
	if diff := cmp.Diff(map[hierarchy.Path]uint64{"eth0/batch": 30}, got); diff != "" {
		t.Errorf("brought in by in0 (-want +got)\n%s", diff)
	}

	n.ok("unbind", "eth0/batch", n.target(deep), "link:in0")
	delete(want, n.target(deep))
	delete(want, "link:in0")
	n.bound(want)

	// Another policy, and none.
	n.ok("apply", n.policy("other.toml", fmt.Sprintf(agentPolicy, n.target(base)+"/late")))
	late := make("late")
	n.bound(map[string]hierarchy.Path{n.target(late): "eth0/web"})
	n.ok("clear")
	a.says("not shaped any more")
	if code := a.end(os.Interrupt); code != 0 {
		t.Errorf("SIGINT: exit status %d", code)
	}
	n.clean()
}

// TestKernelAgentAlone: one agent for a network namespace, and the next one goes on
// where one was killed.
func TestKernelAgentAlone(t *testing.T) {
	n := newNetwork(t)
	base := tctest.Cgroup(t)
	app := filepath.Join(base, "app")
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(agentPolicy, n.target(app))))
	a := n.agent()
	if want := "READY=1\nSTATUS=1 interface, 1 binding waits for what is not there yet"; a.ready != want {
		t.Errorf("told systemd %q, not %q", a.ready, want)
	}
	n.fails(exitLocked, fmt.Sprintf("vifshape agent (process %d) is already running in this network namespace", a.Process.Pid), "agent")
	if code := a.end(syscall.SIGKILL); code != -1 {
		t.Errorf("SIGKILL: exit status %d", code)
	}
	if err := os.Mkdir(app, 0o755); err != nil {
		t.Fatal(err)
	}
	n.bound(map[string]hierarchy.Path{})
	b := n.agent()
	n.bound(map[string]hierarchy.Path{n.target(app): "eth0/web"})
	if code := b.end(syscall.SIGKILL); code != -1 {
		t.Errorf("SIGKILL: exit status %d", code)
	}
	// What it left goes with the last record.
	n.ok("clear")
	n.clean()
	if _, err := os.Stat(n.store.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the run directory is still there: %v", err)
	}
}

// TestKernelAgentTrouble: nothing that goes wrong around it ends the agent or makes it
// miss what comes after.
func TestKernelAgentTrouble(t *testing.T) {
	n := newNetwork(t)
	base := tctest.Cgroup(t)
	dir := func(name string) string { return filepath.Join(base, name) }
	worker := n.target(base) + "/w*"
	file := n.policy("policy.toml", fmt.Sprintf(agentPolicy, worker))
	want := map[string]hierarchy.Path{}
	appears := func(name string) {
		t.Helper()
		if err := os.Mkdir(dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		want[n.target(dir(name))] = "eth0/web"
	}
	record := n.store.File("eth0")
	const queue = "/proc/sys/fs/inotify/max_queued_events"
	if vm.Inside() { // the setting is the whole machine's
		if err := os.WriteFile(queue, []byte("256"), 0); err != nil {
			t.Fatal(err)
		}
	}
	a := n.agent("--log-level", "debug") // before there is anything to do
	n.ok("apply", file)
	appears("w1")
	n.bound(want)

	t.Run("overflow", func(t *testing.T) {
		a.freeze()
		b, err := os.ReadFile(queue)
		if err != nil {
			t.Fatal(err)
		}
		var most int
		if _, err := fmt.Sscan(string(b), &most); err != nil {
			t.Fatal(err)
		}
		// Two names in turn: the same notice twice is kept once.
		for i := range most {
			for _, name := range []string{"x.json", "y.json"} {
				file := filepath.Join(n.store.Dir, name)
				if err := os.WriteFile(file, nil, 0o600); err != nil {
					t.Fatal(err, i)
				}
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
		}
		appears("w2") // of which no notice comes
		if err := a.Process.Signal(syscall.SIGCONT); err != nil {
			t.Fatal(err)
		}
		n.bound(want)
		a.says("all is read anew")
		appears("w3")
		n.bound(want)
	})
	t.Run("damaged record", func(t *testing.T) {
		good, err := os.ReadFile(record)
		if err != nil {
			t.Fatal(err)
		}
		replace := func(b []byte) {
			t.Helper()
			if err := os.WriteFile(record+".new", b, 0o644); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(record+".new", record); err != nil {
				t.Fatal(err)
			}
		}
		replace([]byte("{"))
		a.says("is damaged")
		replace(good)
		appears("w4")
		n.bound(want)
		if c := strings.Count(a.said(), "is damaged"); c != 1 {
			t.Errorf("said %d times", c)
		}
		replace([]byte("{"))
		n.until("the second word of it", func() bool { return strings.Count(a.said(), "is damaged") == 2 })
		if err := a.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		if got := a.told("RELOADING=1"); !strings.Contains(got, "MONOTONIC_USEC=") {
			t.Errorf("told systemd %q", got)
		}
		if got := a.told("READY=1"); !strings.Contains(got, "STATUS=1 interface, 1 error: see the log") {
			t.Errorf("told systemd %q", got)
		}
		n.until("the third", func() bool { return strings.Count(a.said(), "is damaged") == 3 })
		replace(good)
	})
	t.Run("run directory", func(t *testing.T) {
		for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); { // while it is made anew, too
			err := os.RemoveAll(n.store.Dir)
			for errors.Is(err, unix.ENOTEMPTY) { // the agent writes in it
				err = os.RemoveAll(n.store.Dir)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		a.says("it is made anew")
		n.until("the lock", func() bool { _, err := os.Stat(n.store.AgentFile()); return err == nil })
		n.ok("apply", file)
		appears("w5")
		n.bound(want)
		n.fails(exitLocked, "already running", "agent")
	})
	t.Run("another writer", func(t *testing.T) {
		unlock, err := n.store.Lock(t.Context(), "test")
		if err != nil {
			t.Fatal(err)
		}
		before := n.targets()
		appears("w6")
		appears("w7")
		time.Sleep(100 * time.Millisecond)
		if diff := cmp.Diff(before, n.targets()); diff != "" {
			t.Errorf("changed without the lock (-want +got)\n%s", diff)
		}
		unlock()
		n.bound(want)
	})
	t.Run("interface", func(t *testing.T) {
		if err := lab.AddVeth(n.Near, lab.Link{Name: "eth1"}, n.Far, lab.Link{Name: "far1"}); err != nil {
			t.Fatal(err)
		}
		if err := n.Near.DeleteLink(n.Dev); err != nil {
			t.Fatal(err)
		}
		a.says(`eth0: no such interface"`) // and not that eth1 may be meant
		near := lab.Link{Name: n.Dev, Addrs: []netip.Prefix{netip.PrefixFrom(n.Near4, 24)}}
		far := lab.Link{Name: n.FarDev, Addrs: []netip.Prefix{netip.PrefixFrom(n.Far4, 24)}}
		if err := lab.AddVeth(n.Near, near, n.Far, far); err != nil {
			t.Fatal(err)
		}
		a.says("eth0 is not shaped")
		n.ok("apply", file)
		appears("w8")
		n.bound(want)
	})
	if code := a.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
	n.ok("clear")
}

// TestAgentRemembers: what the agent waits for it does not forget over a look that
// failed.
func TestAgentRemembers(t *testing.T) {
	tctest.RequireRoot(t)
	n := newNetwork(t)
	n.ok("apply", "--binding", "bpf", n.policy("policy.toml", fmt.Sprintf(agentPolicy, "link:late0")))
	a := n.agent()
	record := n.store.File("eth0")
	good, err := os.ReadFile(record)
	if err != nil {
		t.Fatal(err)
	}
	// In place, of which the agent hears nothing.
	if err := os.WriteFile(record, []byte("{"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := a.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	a.says("is damaged")
	if err := os.WriteFile(record, good, 0o644); err != nil {
		t.Fatal(err)
	}
	n.behind("late0")
	n.bound(map[string]hierarchy.Path{"link:late0": "eth0/web"})
}

// TestAgentReplaced: an agent that another one has taken the place of ends, and leaves
// that one what is its.
func TestAgentReplaced(t *testing.T) {
	tctest.RequireRoot(t)
	needsPidfd(t)
	n := newNetwork(t)
	n.public()
	n.ok("apply", n.policy("policy.toml", delegatedPolicy))
	first := n.agent()
	first.freeze()
	if err := os.Remove(n.store.AgentFile()); err != nil {
		t.Fatal(err)
	}
	second := n.agent()
	// Silent, it keeps neither of them from ending.
	defer n.dial(t, alice).Close()
	if code := first.end(syscall.SIGCONT); code != exitLocked || !strings.Contains(first.said(), "already running") {
		t.Errorf("the first one ended with exit status %d", code)
	}
	if a := n.petition(t, alice, `{"version":1,"op":"add","path":"eth0/a/x"}`+"\n"); a.Code != exitOK {
		t.Errorf("the second one: %+v", a)
	}
	if code := second.end(syscall.SIGTERM); code != 0 || strings.Contains(second.said(), "level=WARN") {
		t.Errorf("the second one ended with exit status %d", code)
	}
	n.ok("clear")
	if _, err := os.Stat(n.store.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the run directory is left: %v", err)
	}
}

// TestAgentPrivileges: who may not change bindings is told at once. Guests lack
// setpriv.
func TestAgentPrivileges(t *testing.T) {
	n := newNetwork(t)
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(agentPolicy, "user:65534")))
	for _, args := range [][]string{{"--reuid", "65534", "--regid", "65534", "--clear-groups"}, {"--inh-caps=-all", "--bounding-set=-sys_admin"}} {
		c := exec.CommandContext(t.Context(), tctest.RequireProgram(t, "setpriv"), append(args, n.bin, "agent")...)
		n.failed(n.start(c).wait(), exitPrivilege, "")
	}
}

// TestAgentUnitRuns: the capabilities that the example leaves it are enough. It reads a
// file that guests do not have.
func TestAgentUnitRuns(t *testing.T) {
	unit := readAgentUnit(t)
	n := newNetwork(t)
	base := tctest.Cgroup(t)
	app := filepath.Join(base, "app")
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(agentPolicy, n.target(app))))
	caps := strings.Fields(strings.ToLower(unit["Service"]["CapabilityBoundingSet"]))
	for i := range caps {
		caps[i] = "+" + strings.TrimPrefix(caps[i], "cap_")
	}
	setpriv := tctest.RequireProgram(t, "setpriv")
	n.bin = filepath.Join(n.dir, "with-less")
	script := fmt.Sprintf("#!/bin/sh\nexec %s --no-new-privs --inh-caps=-all --bounding-set=-all,%s %s \"$@\"\n", setpriv, strings.Join(caps, ","), filepath.Join(program(t), "vifshape"))
	if err := os.WriteFile(n.bin, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	a := n.agent()
	if err := os.Mkdir(app, 0o755); err != nil {
		t.Fatal(err)
	}
	n.bound(map[string]hierarchy.Path{n.target(app): "eth0/web"})
	if code := a.end(syscall.SIGTERM); code != 0 {
		t.Errorf("exit status %d", code)
	}
	if out := a.said(); strings.Contains(out, "level=WARN") {
		t.Errorf("log:\n%s", out)
	}
}
