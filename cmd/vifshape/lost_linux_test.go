package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/tctest"
)

const lostPolicy = `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.a]
rate = "10mbit"
bind = ["user:54321"]
[interface.eth0.b]
rate = "20mbit"
`

// takeAway are ways in which others take something of a tree away, with what is gone
// then.
func (n *network) takeAway() map[string]func() {
	root := &hierarchy.Root{Kind: "htb", Handle: hierarchy.ID(0)}
	return map[string]func(){
		"the tree is gone, its root qdisc is ": func() {
			n.device(func(d *tc.Device) error {
				_, err := d.Do(n.Context(), []hierarchy.Step{{Action: hierarchy.Delete, Old: root}})
				return err
			})
		},
		"the classifier is gone from its egress hook, and nothing is bound": func() {
			n.device(func(d *tc.Device) error { return hook.Of(d.Interface).DetachEgress() })
		},
		"of eth0/b is gone": func() {
			r, err := n.store.Load(n.Dev)
			if err != nil {
				n.Fatal(err)
			}
			id, _, _ := r.IDs.Find("eth0/b")
			n.device(func(d *tc.Device) error {
				_, err := d.Do(n.Context(), []hierarchy.Step{{Action: hierarchy.Delete, Old: &hierarchy.Class{ID: id}}})
				return err
			})
		},
	}
}

// TestKernelAgentLoss: what others take away of a tree the agent says at once, with what
// to type. With --repair it puts it back by itself.
func TestKernelAgentLoss(t *testing.T) {
	tctest.RequireRoot(t)
	n := newNetwork(t)
	file := n.policy("policy.toml", lostPolicy)
	n.ok("apply", file)
	whole := n.state()
	a := n.agent()
	said := 0 // of the log, that was looked at
	says := func(words string) {
		t.Helper()
		n.until(fmt.Sprintf("%q in the agent's log", words), func() bool { return strings.Contains(a.said()[said:], words) })
		said = len(a.said())
	}
	for what, take := range n.takeAway() {
		take()
		says(what)
		if log := a.said(); !strings.Contains(log, "eth0 is not shaped as "+file+" says: ") || !strings.Contains(log, "`vifshape apply "+file+"` puts it back") {
			t.Errorf("it does not say what to do:\n%s", log)
		}
		n.fails(exitError, what, "show")
		n.ok("apply", file)
		n.until("the agent to see that it is there again", func() bool { return same(n.state(), whole) })
		n.ok("show")
		// It is said again when it is lost again.
		if err := a.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		a.told("READY=1")
		said = len(a.said())
	}
	a.end(syscall.SIGTERM)

	// Having planned what policies come to it knows what the kernel had then, and has to ask again.
	a, said = n.agent("--repair", "--policies", filepath.Dir(file)), 0
	for what, take := range n.takeAway() {
		take()
		says("put back what was lost")
		if log := a.said(); !strings.Contains(log, what) {
			t.Errorf("it does not say that %s:\n%s", what, log)
		}
		if !same(n.state(), whole) {
			t.Errorf("not as before: %v", hierarchy.Diff(n.state(), whole))
		}
		n.bound(map[string]hierarchy.Path{"uid:54321": "eth0/a"})
	}
	n.ok("clear")
	says("not shaped any more")
}

// boundClasses are the classes of what is bound, as the kernel has them, whatever a
// record says.
func (n *network) boundClasses() map[string]hierarchy.ClassID {
	n.Helper()
	all := map[string]hierarchy.ClassID{}
	n.device(func(d *tc.Device) error {
		return n.Near.Do(func() error {
			b, err := cgroup.NewBinder(cgroup.Config{Hook: hook.Of(d.Interface), Interface: n.Dev, Index: d.Index, NetNS: n.store.NetNS})
			if err != nil {
				return err
			}
			defer b.Close()
			var s hierarchy.State
			err = b.Read(n.Context(), &s)
			for _, b := range s.Bound {
				all[b.Target.String()] = b.Class
			}
			return err
		})
	})
	return all
}

// TestKernelAgentForged: a record that somebody has written anew is not obeyed where the
// kernel knows better, and said to be wrong.
func TestKernelAgentForged(t *testing.T) {
	tctest.RequireRoot(t)
	n := newNetwork(t)
	file := n.policy("policy.toml", lostPolicy)
	n.ok("apply", file)
	a := n.agent()
	n.ok("run", "--level", "tag", "eth0/a", "--", n.bin, "version") // from now on the kernel knows its class
	n.until("the home", func() bool { return len(n.targets()) == 2 })
	real, err := os.ReadFile(n.store.File(n.Dev))
	if err != nil {
		t.Fatal(err)
	}
	write := func(content []byte) {
		t.Helper()
		forged := filepath.Join(n.store.Dir, ".forged")
		if err := os.WriteFile(forged, content, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(forged, n.store.File(n.Dev)); err != nil {
			t.Fatal(err)
		}
	}
	before, classes := n.targets(), n.boundClasses()
	swap := func(r *record.Record) {
		m := r.IDs.Minors
		m["a"], m["b"] = m["b"], m["a"]
	}
	for _, x := range []struct {
		name  string
		forge func(*record.Record)
		want  string
	}{
		{"ids", swap, `eth0.json is damaged`},
		{"ids and bindings", func(r *record.Record) {
			swap(r)
			for i := range r.Bound {
				if _, class, ok := r.Leaf(r.Bound[i].Path); ok && r.Bound[i].Target.Kind != bind.TargetNone {
					r.Bound[i].Class = class
				}
			}
		}, "the record of eth0 contradicts the kernel, and nothing is done by it: the programs of eth0/a are in class "},
		{"a tree", func(r *record.Record) {
			r.IDs.Minors["a/b"] = r.IDs.Minors["b"]
			delete(r.IDs.Minors, "b")
			r.IDs.Minors["a/"] = r.IDs.Minors["a"]
			delete(r.IDs.Minors, "a")
			r.Order, r.Bound, r.Bindings = []hierarchy.Path{"eth0", "eth0/a", "eth0/a/b", "eth0/rest"}, nil, nil
		}, "the record of eth0 contradicts the kernel, and nothing is done by it: eth0/a/b is class "},
	} {
		t.Run(x.name, func(t *testing.T) {
			var r record.Record
			if err := json.Unmarshal(real, &r); err != nil {
				t.Fatal(err)
			}
			x.forge(&r)
			content, err := json.Marshal(r)
			if err != nil {
				t.Fatal(err)
			}
			write(content)
			a.says(x.want)
			if diff := cmp.Diff(classes, n.boundClasses()); diff != "" {
				t.Errorf("bound (-want +got)\n%s", diff)
			}
			if n.run("run", "--level", "tag", "eth0/a", "--", n.bin, "version").code == 0 {
				t.Error("run goes by it")
			}
			write(real)
			n.ok("apply", file)
			n.bound(before)
		})
	}
	for _, x := range tctest.Impostors(t) {
		t.Run(x.Name, func(t *testing.T) {
			if err := os.Remove(n.store.File(n.Dev)); err != nil {
				t.Fatal(err)
			}
			a.says("not shaped any more")
			if err := x.Make(filepath.Join(n.store.Dir, ".forged")); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(filepath.Join(n.store.Dir, ".forged"), n.store.File(n.Dev)); err != nil {
				t.Fatal(err)
			}
			a.says(x.Want)
			if err := os.RemoveAll(n.store.File(n.Dev)); err != nil {
				t.Fatal(err)
			}
			n.ok("apply", file)
			n.bound(before)
		})
	}
}

// TestKernelWatch: what others change is told of and, where it is wanted, put back, later each
// time; what vifshape changes is not.
func TestKernelWatch(t *testing.T) {
	tctest.RequireRoot(t)
	n := newNetwork(t)
	n.public()
	file := n.policy("policy.toml", lostPolicy)
	n.ok("apply", file)
	r, err := n.store.Load(n.Dev)
	if err != nil {
		t.Fatal(err)
	}
	b, _, _ := r.IDs.Find("eth0/b")
	alter := func(rate hierarchy.Bandwidth) {
		t.Helper()
		n.device(func(d *tc.Device) error {
			var s hierarchy.State
			if err := d.Read(n.Context(), &s); err != nil {
				return err
			}
			for _, c := range s.On(d.Port()).Classes {
				if c.ID == b {
					to := c
					to.Rate = rate
					_, err := d.Do(n.Context(), []hierarchy.Step{{Action: hierarchy.Change, Old: &c, New: &to}})
					return err
				}
			}
			return fmt.Errorf("no class %v", b)
		})
	}
	watch := func(args ...string) (w *running, next func(want string)) {
		t.Helper()
		out, err := os.Create(filepath.Join(t.TempDir(), "watch"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { out.Close() })
		c := n.command(append([]string{"watch"}, args...)...)
		c.Stdout = out
		w = n.start(c)
		at := 0
		return w, func(want string) {
			t.Helper()
			var line string
			n.until(want, func() bool {
				b, err := os.ReadFile(out.Name())
				if err != nil {
					t.Fatal(err)
				}
				var ok bool
				line, _, ok = strings.Cut(string(b[at:]), "\n")
				return ok
			})
			at += len(line) + 1
			if !strings.Contains(line, want) {
				t.Fatalf("it says %q, not %q", line, want)
			}
		}
	}
	a := n.agent()
	w, next := watch()
	n.shell("ip link set eth0 mtu 1400") // by which others bursts would be worked out: nobody's change
	alter(7 * hierarchy.Mbit)            // before or after it has begun to look
	next("eth0: not as it was applied: ~ class eth0/b")
	n.ok("apply", n.policy("other.toml", strings.Replace(lostPolicy, "20mbit", "30mbit", 1)))
	next("eth0: as applied") // nothing of what apply changed before
	n.ok("add", "--rate", "1mbit", "eth0/b/c")
	n.ok("remove", "eth0/b/c")
	n.silence()
	n.takeAway()["the classifier is gone from its egress hook, and nothing is bound"]()
	next("eth0: not as it was applied: the classifier is gone")
	n.ok("clear")
	if err := w.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if r := w.wait(); r.code != 0 {
		t.Errorf("its end: %v", r)
	}

	a.end(syscall.SIGTERM)
	n.ok("apply", file)
	whole := n.state()
	w, next = watch("--repair", "--json", "eth0")
	for i, rate := range []hierarchy.Bandwidth{7 * hierarchy.Mbit, 8 * hierarchy.Mbit} {
		alter(rate)
		next(`"interface":"eth0","event":"changed","what":["~ class eth0/b`)
		if i > 0 {
			next(`"event":"waits"`)
		}
		next(`"event":"repaired"`)
		if s := n.state(); !same(s, whole) {
			t.Errorf("not as before: %v", hierarchy.Diff(s, whole))
		}
	}
	if r := n.as(54321, "watch", "--repair").wait(); r.code != exitPrivilege {
		t.Errorf("without privileges: %v", r)
	}
	if err := w.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if r := w.wait(); r.code != 0 {
		t.Errorf("its end: %v", r)
	}
	a = n.agent("--repair")
	alter(9 * hierarchy.Mbit)
	a.says("put back what was lost")
	if s := n.state(); !same(s, whole) {
		t.Errorf("not as before: %v", hierarchy.Diff(s, whole))
	}
	a.end(syscall.SIGTERM)
	n.ok("clear")
}

// silence waits until the kernel has nothing to tell of queues: agent and watch look because of
// what it tells, and must not make it tell more.
func (n *network) silence() {
	n.Helper()
	c := n.listener()
	n.until("silence", func() bool {
		if err := c.SetReadDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
			n.Fatal(err)
		}
		_, err := c.Receive()
		return errors.Is(err, os.ErrDeadlineExceeded)
	})
}

// TestKernelRunMeanwhile: who starts a program while the tree is being changed, and has not all
// that its record tells of, waits until it has.
func TestKernelRunMeanwhile(t *testing.T) {
	n := newNetwork(t)
	n.ok("apply", n.policy("policy.toml", lostPolicy))
	n.ok("run", "--level", "tag", "eth0/b", "--", "true")
	whole := n.state()
	unlock, err := n.store.Lock(t.Context(), "apply other.toml")
	if err != nil {
		t.Fatal(err)
	}
	defer unlock()
	n.takeAway()["of eth0/b is gone"]()
	events, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	opened := os.NewFile(uintptr(events), "inotify")
	defer opened.Close()
	if _, err := unix.InotifyAddWatch(events, n.store.LockFile(), unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	r := n.start(n.command("run", "--level", "tag", "eth0/b", "--", "true"))
	if err := opened.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	if _, err := opened.Read(make([]byte, unix.SizeofInotifyEvent)); err != nil {
		t.Fatalf("it does not wait for the lock: %v: %v", err, r.wait())
	}
	n.device(func(d *tc.Device) error {
		_, err := d.Do(t.Context(), hierarchy.Diff(n.state(), whole).Steps)
		return err
	})
	unlock()
	if got := r.wait(); got.code != 0 {
		t.Error(got)
	}
}
