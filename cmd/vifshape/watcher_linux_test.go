package main

import (
	"encoding/json"
	"errors"
	"fmt"
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
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// service is a service that is started again whenever it sends.
type service struct {
	*tctest.Actor
	n   *network
	dir string // its cgroup
}

func (n *network) service(dir string) *service {
	n.Helper()
	return &service{tctest.Start(n, n.Near), n, dir}
}

// send has it send, by a socket that is born in its cgroup, and says when it did. With
// remade the cgroup, whose binding is the only one, is removed before, and made again once
// the agent has taken back what was bound; times count from then.
func (s *service) send(count int, pause time.Duration, remade bool) []time.Duration {
	s.n.Helper()
	if remade {
		s.Do("vacate %s", s.dir)
		s.n.bound(map[string]hierarchy.Path{})
	}
	var sent []time.Duration
	if err := json.Unmarshal([]byte(s.Do("burst %v:9 %s %d %v", s.n.Far4, s.dir, count, pause)), &sent); err != nil {
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
	return n.startAgentBy(n.command(append([]string{"agent"}, args...)...))
}

// startAgentBy starts it by a command that becomes it.
func (n *network) startAgentBy(c *exec.Cmd) *watcher {
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
