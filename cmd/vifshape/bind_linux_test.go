package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// intoCgroup starts a program in a cgroup of version 2.
func intoCgroup(t testing.TB, dir string, start func(*syscall.SysProcAttr)) {
	t.Helper()
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	start(&syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(f.Fd())})
}

// packets are those that each leaf has sent, by the branches' paths.
func (n *network) packets() map[hierarchy.Path]uint64 {
	n.Helper()
	r, err := n.store.Load(n.Dev)
	if err != nil {
		n.Fatal(err)
	}
	names := r.IDs.Names(n.Dev)
	all := map[hierarchy.Path]uint64{}
	n.device(func(d *tc.Device) error {
		classes, err := d.Stats()
		for _, c := range classes {
			if p := names[c.Class]; p.Parent() != "" && c.Packets > 0 {
				all[p] = c.Packets
			}
		}
		return err
	})
	return all
}

const bindPolicy = `version = 1
binding = "%[3]s"
[interface.eth0]
rate = "100mbit"
[interface.eth0.base]
rate = "20mbit"
bind = ["cgroup:%[1]s"]
[interface.eth0.web]
rate = "20mbit"
%[2]s
[interface.eth0.db]
rate = "20mbit"
`

// TestKernelBindLive: a connection and datagrams that are under way follow every
// change of their cgroup's binding at once, and no packet is in any other class.
func TestKernelBindLive(t *testing.T) {
	for _, way := range []string{"bpf", "nft"} {
		if way == "nft" && vm.Inside() {
			continue // not every guest has nf_tables
		}
		t.Run(way, func(t *testing.T) { bindLive(t, way) })
	}
}

func bindLive(t *testing.T, way string) {
	n := newNetwork(t)
	base := tctest.Cgroup(t)
	app := filepath.Join(base, "app-1")
	if err := os.Mkdir(app, 0o755); err != nil {
		t.Fatal(err)
	}
	at := func(dir string) string { return strings.TrimPrefix(dir, tctest.Cgroup2Mount(t)) }
	plain := n.policy("plain.toml", fmt.Sprintf(bindPolicy, at(base), "", way))
	bound := n.policy("bound.toml", fmt.Sprintf(bindPolicy, at(base), fmt.Sprintf("bind = [%q]", "cgroup:"+at(app)), way))
	n.ok("apply", plain)
	const port = 6000
	sink, err := lab.NewSink(context.WithoutCancel(t.Context()), n.Far, port)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	c := tctest.Command(t, "chat", fmt.Sprintf("%v:%d", n.Far4, port))
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var chat *running
	intoCgroup(t, app, func(a *syscall.SysProcAttr) {
		c.SysProcAttr = a
		chat = n.start(c)
	})

	// goesTo holds that from now on all packets are in one class.
	goesTo := func(what string, path hierarchy.Path) {
		t.Helper()
		before := n.packets()
		n.until(fmt.Sprintf("%s: traffic in %s", what, path), func() bool { return n.packets()[path] >= before[path]+20 })
		after := n.packets()
		after[path] = before[path]
		if after[path] == 0 {
			delete(after, path)
		}
		if diff := cmp.Diff(before, after); diff != "" {
			t.Errorf("%s: packets outside of %s (-before +after):\n%s", what, path, diff)
		}
	}
	goesTo("nothing bound at run time", "eth0/base")
	for _, x := range []struct {
		path hierarchy.Path
		args []string
	}{
		{"eth0/web", []string{"bind", "eth0/web", "cgroup:" + at(app)}},
		{"eth0/web", []string{"bind", "eth0/db", "cgroup:" + at(base) + "/app-*"}}, // the exact one counts
		{"eth0/db", []string{"unbind", "eth0/web", "cgroup:" + at(app)}},
		{"eth0/db", []string{"apply", plain}},
		{"eth0/web", []string{"apply", bound}},
		{"eth0/db", []string{"apply", plain}},
		{"eth0/base", []string{"unbind", "eth0/db", "cgroup:" + at(base) + "/app-*"}},
	} {
		n.ok(x.args...)
		goesTo(strings.Join(x.args, " "), x.path)
	}
	classes := n.packets() // before the connection ends: its last packets are the kernel's own
	in.Close()
	if r := chat.wait(); r.code != 0 {
		t.Errorf("the program that sends: %v", r)
	}
	for path := range maps.Keys(classes) {
		if !map[hierarchy.Path]bool{"eth0/base": true, "eth0/web": true, "eth0/db": true}[path] {
			t.Errorf("%d packets in %s", classes[path], path)
		}
	}
	t.Logf("packets a class: %v", classes)
}

// TestKernelBindAtomic: of several bindings none is made where one cannot be in
// force, and what is asked for by a user without privileges changes nothing.
func TestKernelBindAtomic(t *testing.T) {
	n := newNetwork(t)
	n.public()
	base := tctest.Cgroup(t)
	for _, name := range []string{"a", "b"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	at := strings.TrimPrefix(base, tctest.Cgroup2Mount(t))
	n.ok("apply", n.policy("p.toml", fmt.Sprintf(bindPolicy, at, "", "bpf")))
	n.ok("bind", "eth0/web", "cgroup:"+at+"/a*")
	bindings := func() (all bindingsJSON) {
		t.Helper()
		if err := json.Unmarshal([]byte(n.ok("bindings", "--json")), &all); err != nil {
			t.Fatal(err)
		}
		return all
	}
	before, state := bindings(), n.state()
	nothing := observe.Held{Sockets: new(int), Carried: new(int)}
	want := bindingsJSON{Bindings: []*observe.Binding{
		{Path: "eth0/base", Binding: bind.Binding{Kind: bind.Cgroup, Name: at}, Bound: []bind.Target{bind.ToCgroup(at)},
			Held: []observe.Bound{{Target: bind.ToCgroup(at), From: "cgroup:" + at, Held: nothing}}},
		{Path: "eth0/web", Binding: bind.Binding{Kind: bind.Cgroup, Name: at + "/a*"}, AtRuntime: true, Bound: []bind.Target{bind.ToCgroup(at + "/a")},
			Held: []observe.Bound{{Target: bind.ToCgroup(at + "/a"), From: "cgroup:" + at + "/a*", AtRuntime: true, Held: nothing}}},
	}}
	if diff := cmp.Diff(want, before, cmp.AllowUnexported(observe.Bound{})); diff != "" {
		t.Errorf("bindings (-want +got):\n%s", diff)
	}
	n.fails(exitError, "and just as exactly", "bind", "eth0/db", "cgroup:"+at+"/b", "cgroup:"+at+"/*a")
	n.fails(exitError, "link:eth0", "bind", "eth0/db", "cgroup:"+at+"/b", "link:eth0")
	n.fails(exitUsage, "does not say what it names", "bind", "eth0/db", "cgroup:"+at+"/b", "nginx")
	c := n.command("bind", "eth0/db", "cgroup:"+at+"/b")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	n.failed(n.start(c).wait(), exitPrivilege, "")
	if diff := cmp.Diff(before, bindings(), cmp.AllowUnexported(observe.Bound{})); diff != "" {
		t.Errorf("bindings after what was refused (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(state, n.state()); diff != "" {
		t.Errorf("kernel after what was refused (-before +after):\n%s", diff)
	}
	c = n.command("bindings")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if r := n.start(c).wait(); r.code != 0 || !strings.Contains(r.stdout, "cgroup:"+at+"/a\n") || !strings.Contains(r.stderr, "without privileges") {
		t.Errorf("bindings without privileges: %v", r)
	}
	// What was made since is bound by the next that looks.
	if err := os.Mkdir(filepath.Join(base, "a2"), 0o755); err != nil {
		t.Fatal(err)
	}
	if out := n.ok("bindings", "eth0/web"); !strings.Contains(out, "- cgroup:"+at+"/a2 is there and not bound: start vifshape agent, or apply the policy again") {
		t.Errorf("a cgroup that appeared:\n%s", out)
	}
	n.ok("bind", "eth0/web", "cgroup:"+at+"/b")
	if out := n.ok("bindings", "eth0/web"); strings.Contains(out, "not bound") || !strings.Contains(out, at+"/a2: no process\n") {
		t.Errorf("a cgroup that appeared, after a bind:\n%s", out)
	}
}

// countdown is a context that ends when it was asked so many times.
type countdown struct {
	context.Context
	left *int
}

func (c countdown) Err() error {
	if *c.left--; *c.left < 0 {
		return context.Canceled
	}
	return nil
}

// TestKernelBindInterrupted: wherever a change of bindings is interrupted, all of it
// is done or nothing, in the kernel and in the record.
func TestKernelBindInterrupted(t *testing.T) {
	n := newNetwork(t)
	base := tctest.Cgroup(t)
	at := strings.TrimPrefix(base, tctest.Cgroup2Mount(t))
	var specs []bind.Binding
	for _, name := range []string{"a", "b", "c"} {
		if err := os.Mkdir(filepath.Join(base, name), 0o755); err != nil {
			t.Fatal(err)
		}
		specs = append(specs, bind.Binding{Kind: bind.Cgroup, Name: at + "/" + name})
	}
	n.ok("apply", n.policy("p.toml", fmt.Sprintf(bindPolicy, at, "", "bpf")))
	bound := func() (all []string) {
		t.Helper()
		var out bindingsJSON
		if err := json.Unmarshal([]byte(n.ok("bindings", "--json", "eth0/web")), &out); err != nil {
			t.Fatal(err)
		}
		for _, b := range out.Bindings {
			for _, target := range b.Bound {
				all = append(all, target.String())
			}
		}
		return all
	}
	interrupted := 0
	for steps := 0; ; steps++ {
		left := steps
		err := n.Near.Do(func() error {
			m, err := shaper.Open(defaultRunDir, func(shaper.Remark) {})
			if err != nil {
				return err
			}
			defer m.Close()
			x, _, err := m.Bind(countdown{t.Context(), &left}, "eth0/web", specs)
			if err == nil {
				err = x.Binder.Close()
			}
			return err
		})
		if err == nil {
			break
		}
		interrupted++
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("after %d looks: %v", steps, err)
		}
		if got := bound(); len(got) != 0 {
			t.Errorf("after %d looks: %v are bound", steps, got)
		}
		var s hierarchy.State
		n.device(func(d *tc.Device) error {
			b, err := cgroup.NewBinder(cgroup.Config{Hook: hook.Of(d.Interface), Interface: n.Dev, Index: d.Index, NetNSFD: n.Near.FD()})
			if err == nil {
				err = errors.Join(b.Read(t.Context(), &s), b.Close())
			}
			return err
		})
		if len(s.Bound) != 1 {
			t.Errorf("after %d looks the kernel has %v", steps, s.Bound)
		}
	}
	if interrupted < len(specs) || len(bound()) != len(specs) {
		t.Errorf("%d interruptions, and then %v", interrupted, bound())
	}
}

// TestKernelHomeInterrupted: wherever the way into a branch is interrupted the first time,
// the branch's cgroup is made and bound, or neither.
func TestKernelHomeInterrupted(t *testing.T) {
	n := newNetwork(t)
	n.ok("apply", n.policy("p.toml", "version = 1\n[interface.eth0]\nrate = \"10mbit\"\n[interface.eth0.web]\n"))
	interrupted := 0
	for steps := 0; ; steps++ {
		left := steps
		var target bind.Target
		err := n.Near.Do(func() error {
			m, err := shaper.Open(defaultRunDir, func(shaper.Remark) {})
			if err != nil {
				return err
			}
			defer m.Close()
			target = home.Target(m.Store.NetNS, "eth0/web")
			x, _, err := m.Home(countdown{t.Context(), &left}, "eth0/web")
			if err != nil {
				return err
			}
			return x.Binder.Close()
		})
		var s hierarchy.State
		there := false
		n.device(func(d *tc.Device) error {
			b, err := cgroup.NewBinder(cgroup.Config{Hook: hook.Of(d.Interface), Interface: n.Dev, Index: d.Index, NetNSFD: n.Near.FD()})
			if err != nil {
				return err
			}
			h, err := b.Homes()
			if err == nil {
				_, err = os.Stat(h.Tree.Dir(target.Name))
				there = err == nil
				err = b.Read(t.Context(), &s)
			}
			return errors.Join(err, b.Close())
		})
		if err == nil {
			if !there || len(s.Bound) != 1 || s.Bound[0].Target != target {
				t.Errorf("a cgroup (%v), and bound is %v", there, s.Bound)
			}
			break
		}
		interrupted++
		if !errors.Is(err, context.Canceled) {
			t.Fatalf("after %d looks: %v", steps, err)
		}
		if there || len(s.Bound) != 0 {
			t.Errorf("after %d looks: a cgroup (%v), and bound is %v", steps, there, s.Bound)
		}
	}
	if interrupted == 0 {
		t.Error("nothing was interrupted")
	}
}

// TestKernelChurn: cgroups that a pattern names, or interfaces that are bound, come and
// go all the time, and neither an apply nor a binding fails for that.
func TestKernelChurn(t *testing.T) {
	for _, tt := range []struct {
		name string
		// prepare returns what to bind in the policy, and at run time, and what makes
		// or removes number i.
		prepare func(*network) (bind []string, more string, turn func(i int) error)
	}{
		{"cgroups", func(n *network) ([]string, string, func(int) error) {
			base := tctest.Cgroup(n)
			at := "cgroup:" + strings.TrimPrefix(base, tctest.Cgroup2Mount(n))
			return []string{at + "/job-*"}, at + "/*-[0-3]", func(i int) error {
				dir := filepath.Join(base, fmt.Sprintf("job-%d", i%8))
				if err := os.Mkdir(dir, 0o755); !errors.Is(err, os.ErrExist) {
					return err
				}
				return os.Remove(dir)
			}
		}},
		{"interfaces", func(n *network) ([]string, string, func(int) error) {
			tctest.Cgroup2Mount(n) // interfaces are not bound by net_cls
			return []string{"link:job0", "link:job1"}, "link:job2", func(i int) error {
				name := fmt.Sprintf("job%d", i%3)
				if i/3%2 == 1 {
					return n.Near.DeleteLink(name)
				}
				return lab.AddVeth(n.Near, lab.Link{Name: name}, n.Near, lab.Link{Name: "peer-" + name})
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t)
			bind, more, turn := tt.prepare(n)
			policy := func(rate string) string {
				return n.policy(rate+".toml", fmt.Sprintf("version = 1\n[interface.eth0]\nrate = %q\n[interface.eth0.web]\nbind = [\"%s\"]\n", rate, strings.Join(bind, `", "`)))
			}
			files := []string{policy("100mbit"), policy("90mbit")}
			n.ok("apply", files[0])
			rounds, pause := 10, time.Duration(0)
			if vm.Inside() {
				rounds, pause = 1, 10*time.Millisecond
			}
			stop, ended := make(chan struct{}), make(chan error, 1)
			go func() {
				for i := 0; ; i++ {
					select {
					case <-stop:
						ended <- nil
						return
					case <-time.After(pause):
					}
					if err := turn(i); err != nil {
						ended <- err
						return
					}
				}
			}()
			end := sync.OnceValue(func() error {
				close(stop)
				return <-ended
			})
			defer end() // before what it makes is removed, however the test ends
			for i := range rounds {
				n.ok("apply", files[(i+1)%2])
				n.ok("bind", "eth0/rest", more)
				n.ok("unbind", "eth0/rest", more)
			}
			if err := end(); err != nil {
				t.Fatal(err)
			}
			n.ok("apply", files[0])
			if r := n.run("plan", "--detailed-exitcode", files[0]); r.code != 0 {
				t.Errorf("something is left to do: %v", r)
			}
		})
	}
}
