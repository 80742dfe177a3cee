package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// serviceProgram is a service that is started again for each line of its input: it
// sends datagrams from a cgroup with a socket that is born there, and prints when:
// service ADDRESS CGROUP, and lines COUNT PAUSE MADE. With MADE it removes the cgroup
// before, and makes it again; times count from then.
func serviceProgram(args []string) error {
	to, err := net.ResolveUDPAddr("udp4", args[0])
	if err != nil {
		return err
	}
	dir := args[1]
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		var count int
		var pause time.Duration
		var remade bool
		if _, err := fmt.Sscan(in.Text(), &count, &pause, &remade); err != nil {
			return err
		}
		if remade {
			if err := join(filepath.Dir(dir)); err != nil {
				return err
			}
			if err := unix.Rmdir(dir); err != nil {
				return err
			}
			time.Sleep(20 * time.Millisecond) // for what follows from that
		}
		start := time.Now()
		if remade {
			if err := os.Mkdir(dir, 0o755); err != nil {
				return err
			}
		}
		if err := join(dir); err != nil {
			return err
		}
		c, err := net.ListenPacket("udp4", "")
		if err != nil {
			return err
		}
		sent := make([]time.Duration, count)
		for i := range sent {
			if i > 0 {
				rest := unix.NsecToTimespec(int64(pause)) // exacter than time.Sleep
				_ = unix.Nanosleep(&rest, nil)            // that a signal ends it early does no harm
			}
			sent[i] = time.Since(start)
			if _, err := c.WriteTo(make([]byte, 100), to); err != nil {
				return err
			}
		}
		if err := errors.Join(c.Close(), json.NewEncoder(os.Stdout).Encode(sent)); err != nil {
			return err
		}
	}
	return in.Err()
}

func join(dir string) error { return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0) }

// service is a running serviceProgram.
type service struct {
	n   *network
	in  io.Writer
	out *json.Decoder
}

func (n *network) service(dir string) *service {
	n.Helper()
	c := tctest.Command(n, "service", netip.AddrPortFrom(n.Far4, 9).String(), dir)
	in, err := c.StdinPipe()
	if err != nil {
		n.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		n.Fatal(err)
	}
	c.Stdout = w
	s := n.start(c)
	w.Close()
	n.Cleanup(func() {
		_ = s.Wait() // killed with the test
		r.Close()
	})
	return &service{n, in, json.NewDecoder(r)}
}

// send has it send, and says when it did.
func (s *service) send(count int, pause time.Duration, remade bool) []time.Duration {
	s.n.Helper()
	var sent []time.Duration
	_, err := fmt.Fprintln(s.in, count, int64(pause), remade)
	if err == nil {
		err = s.out.Decode(&sent)
	}
	if err != nil {
		s.n.Fatal(err)
	}
	return sent
}

// watcher is the agent, as systemd would have started it.
type watcher struct {
	*running
	states chan string // what it told systemd
	ready  string      // and when it was ready
	log    string      // its file
}

// agent starts one and waits until it is ready.
func (n *network) agent(args ...string) *watcher {
	n.Helper()
	w := n.startAgent(args...)
	w.ready = w.told("READY=1")
	return w
}

func (n *network) startAgent(args ...string) *watcher {
	n.Helper()
	f, err := os.CreateTemp(n.dir, "agent-*.log")
	if err != nil {
		n.Fatal(err)
	}
	defer f.Close()
	name := fmt.Sprintf("@vifshape-%s", filepath.Base(f.Name()))
	var socket net.PacketConn
	if err := n.Near.Do(func() (err error) {
		socket, err = net.ListenPacket("unixgram", name)
		return err
	}); err != nil {
		n.Fatal(err)
	}
	w := &watcher{states: make(chan string, 1000), log: f.Name()}
	go func() {
		defer close(w.states)
		b := make([]byte, 4096)
		for {
			c, _, err := socket.ReadFrom(b)
			if err != nil {
				return
			}
			w.states <- string(b[:c])
		}
	}()
	c := n.command(append([]string{"agent"}, args...)...)
	c.Env = append(c.Environ(), "NOTIFY_SOCKET="+name)
	w.running = &running{Cmd: c, n: n}
	c.Stdout, c.Stderr = &w.stdout, f
	if err := n.Near.Start(c); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() {
		if c.ProcessState == nil {
			w.end(syscall.SIGKILL)
		}
		socket.Close()
		if n.Failed() {
			n.Logf("%s:\n%s", filepath.Base(w.log), w.said())
		}
	})
	return w
}

// told waits for a word to systemd.
func (w *watcher) told(word string) string {
	w.n.Helper()
	for limit := time.After(time.Minute); ; {
		select {
		case s := <-w.states:
			if strings.Contains(s, word) {
				return s
			}
		case <-limit:
			w.n.Fatalf("the agent does not say %s:\n%s", word, w.said())
		}
	}
}

// said is its log.
func (w *watcher) said() string {
	w.n.Helper()
	b, err := os.ReadFile(w.log)
	if err != nil {
		w.n.Fatal(err)
	}
	return string(b)
}

// says waits for words in its log.
func (w *watcher) says(words string) {
	w.n.Helper()
	w.n.until(fmt.Sprintf("%q in the agent's log", words), func() bool { return strings.Contains(w.said(), words) })
}

// end ends it by a signal.
func (w *watcher) end(sig os.Signal) int {
	w.n.Helper()
	if err := w.Process.Signal(sig); err != nil {
		w.n.Fatal(err)
	}
	return w.wait().code
}

// freeze stops it until SIGCONT: the signal alone lets its threads go on for as long
// as they take to see it.
func (w *watcher) freeze() {
	w.n.Helper()
	if err := w.Process.Signal(syscall.SIGSTOP); err != nil {
		w.n.Fatal(err)
	}
	w.n.until("all threads of the agent to stand still", func() bool {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", w.Process.Pid))
		return err == nil && len(threads) > 0 && !slices.ContainsFunc(threads, func(file string) bool {
			stat, err := os.ReadFile(file)
			return err == nil && !strings.Contains(string(stat), ") T ")
		})
	})
}

// targets are those that are bound now, as the kernel has them, with their branches. One
// that lacks a program beside the classifier is not yet: from a port of a bridge packets
// go with the rest until then.
func (n *network) targets() map[string]hierarchy.Path {
	n.Helper()
	all := map[string]hierarchy.Path{}
	err := n.Near.Do(func() error {
		m, err := shaper.Open(defaultRunDir, func(shaper.Remark) {})
		if err != nil {
			return err
		}
		defer m.Close()
		x, err := m.Interface(n.Dev, "")
		if err != nil {
			return err
		}
		defer x.Binder.Close()
		var s hierarchy.State
		err = x.Binder.Read(n.Context(), &s)
		for _, b := range s.Bound {
			if !b.Open {
				all[b.Target.String()] = x.Kernel.Names[b.Class]
			}
		}
		return err
	})
	if err != nil {
		n.Fatal(err)
	}
	return all
}

// bound waits until exactly these are bound.
func (n *network) bound(want map[string]hierarchy.Path) {
	n.Helper()
	var diff string
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		if diff = cmp.Diff(want, n.targets()); diff == "" {
			return
		}
		if time.Now().After(deadline) {
			n.Fatalf("bound (-want +got)\n%s", diff)
		}
	}
}

// sentIn are the packets of each leaf while f runs.
func (n *network) sentIn(f func()) map[hierarchy.Path]uint64 {
	n.Helper()
	before := n.packets()
	f()
	after := n.packets()
	for p, c := range before {
		if after[p] -= c; after[p] == 0 {
			delete(after, p)
		}
	}
	return after
}

// systemSlice is a slice at the top of the cgroups, as systemd makes them.
func systemSlice(t testing.TB) (dir string) {
	t.Helper()
	tctest.RequireRoot(t)
	mount := tctest.Cgroup2Mount(t)
	dir, err := os.MkdirTemp(mount, "vifshape*.slice")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// A process that has just ended is in its cgroup a little longer.
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
			entries, err := os.ReadDir(dir)
			for _, e := range entries {
				if e.IsDir() {
					err = errors.Join(err, unix.Rmdir(filepath.Join(dir, e.Name())))
				}
			}
			if err = errors.Join(err, unix.Rmdir(dir)); err == nil {
				return
			}
			if time.Now().After(deadline) {
				t.Error(err)
				return
			}
		}
	})
	return dir
}

// behind makes a network namespace whose way out leads through the near one, there by
// the interface name.
func (n *network) behind(name string) *lab.NetNS {
	n.Helper()
	inner := tctest.NetNS(n)
	outside, inside := netip.MustParsePrefix("198.19.1.1/24"), netip.MustParsePrefix("198.19.1.2/24")
	err := lab.AddVeth(n.Near, lab.Link{Name: name, Addrs: []netip.Prefix{outside}}, inner, lab.Link{Name: "eth0", Addrs: []netip.Prefix{inside}})
	if err == nil {
		err = inner.AddRoute(netip.PrefixFrom(n.Far4, 24), outside.Addr(), "eth0")
	}
	if err == nil {
		err = n.Far.AddRoute(inside, n.Near4, n.FarDev)
	}
	if err == nil {
		err = n.Near.Do(func() error { return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0) })
	}
	if err != nil {
		n.Fatal(err)
	}
	return inner
}

// target is how a cgroup is called as a target.
func (n *network) target(dir string) string {
	return "cgroup:" + strings.TrimPrefix(dir, tctest.Cgroup2Mount(n))
}

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
		err := os.RemoveAll(n.store.Dir)
		for errors.Is(err, unix.ENOTEMPTY) { // the agent writes in it
			err = os.RemoveAll(n.store.Dir)
		}
		if err != nil {
			t.Fatal(err)
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
	unit := readUnit(t)
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

// quantile is the value that a part of all, sorted, is not above.
func quantile(all []time.Duration, part float64) time.Duration {
	slices.Sort(all)
	return all[min(len(all)-1, int(part*float64(len(all))))]
}

// BenchmarkAgentRestart is how long a unit that is started anew, and sends at once,
// is in the rest.
func BenchmarkAgentRestart(b *testing.B) {
	n := newNetwork(b)
	n.built()
	slice := systemSlice(b)
	svc := strings.TrimSuffix(filepath.Join(slice, filepath.Base(slice)), ".slice") + ".service"
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(agentPolicy, "unit:"+filepath.Base(svc))))
	if err := os.Mkdir(svc, 0o755); err != nil {
		b.Fatal(err)
	}
	n.agent()
	s := n.service(svc)
	const count, pause = 500, 50 * time.Microsecond
	rests := func() (c int) {
		n.device(func(d *tc.Device) error {
			all, err := d.Stats()
			for _, x := range all {
				if x.Class == hierarchy.ID(hierarchy.RestMinor) {
					c = int(x.Packets)
				}
			}
			return err
		})
		return c
	}
	var took, inRest []time.Duration // from when the cgroup was made, and from the first datagram
	var packets []int
	late := 0
	want := map[string]hierarchy.Path{n.target(svc): "eth0/web"}
	for b.Loop() {
		before := rests()
		sent := s.send(count, pause, true)
		rest := rests() - before
		if rest == count { // it took longer
			late++
			rest--
		}
		n.bound(want)
		took, inRest, packets = append(took, sent[rest]), append(inRest, sent[rest]-sent[0]), append(packets, rest)
	}
	slices.Sort(packets)
	b.ReportMetric(ms(quantile(inRest, 0.5)), "ms-in-rest-median")
	b.ReportMetric(ms(quantile(inRest, 0.99)), "ms-in-rest-p99")
	b.ReportMetric(ms(quantile(took, 0.5)), "ms-from-mkdir-median")
	b.ReportMetric(ms(quantile(took, 0.99)), "ms-from-mkdir-p99")
	b.ReportMetric(float64(packets[len(packets)/2]), "packets-median")
	b.ReportMetric(float64(packets[len(packets)-1]), "packets-most")
	b.ReportMetric(float64(late), "not-bound-at-the-end")
}

// BenchmarkAgentBurst is how long 1,000 cgroups take that appear one after the other
// as fast as they can be made, until the last one is bound.
func BenchmarkAgentBurst(b *testing.B) {
	const many = 1000
	n := newNetwork(b)
	n.built()
	base := tctest.Cgroup(b)
	n.ok("apply", n.policy("policy.toml", fmt.Sprintf(agentPolicy, n.target(base)+"/w*")))
	a := n.agent()
	var making, all []time.Duration
	for b.Loop() {
		start := time.Now()
		for i := range many {
			if err := os.Mkdir(fmt.Sprintf("%s/w%d", base, i), 0o755); err != nil {
				b.Fatal(err)
			}
		}
		making = append(making, time.Since(start))
		for len(n.targets()) < many {
			time.Sleep(10 * time.Millisecond)
		}
		all = append(all, time.Since(start))
		for i := range many {
			if err := unix.Rmdir(fmt.Sprintf("%s/w%d", base, i)); err != nil {
				b.Fatal(err)
			}
		}
		for len(n.targets()) > 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	a.end(syscall.SIGTERM)
	cpu := a.ProcessState.UserTime() + a.ProcessState.SystemTime()
	b.ReportMetric(ms(quantile(making, 0.5)), "ms-making")
	b.ReportMetric(ms(quantile(all, 0.5)), "ms-bound")
	b.ReportMetric(ms(cpu)/float64(len(all)), "ms-cpu/op")
}
