package cgroup_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/confine"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// remove takes an empty cgroup away.
func remove(t testing.TB, dir string) {
	t.Helper()
	if err := unix.Rmdir(dir); err != nil {
		t.Fatal(err)
	}
}

// removeAll takes empty cgroups away, dir and all below it.
func removeAll(t testing.TB, dir string) {
	t.Helper()
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() {
			dirs = append(dirs, p)
		}
		return err
	})
	for _, d := range slices.Backward(dirs) {
		err = errors.Join(err, unix.Rmdir(d))
	}
	if err != nil {
		t.Error(err)
	}
}

// blind is a hook without an interface: for what needs none.
type blind struct{}

func (blind) AttachEgress(int, string) error          { return nil }
func (blind) EgressProgram() (uint32, error)          { return 0, nil }
func (blind) DetachEgress() error                     { return nil }
func (blind) AttachIngress(string, int, string) error { return nil }
func (blind) HasIngress(string) (bool, error)         { return false, nil }
func (blind) DetachIngress(string) error              { return nil }
func (blind) AttachNote(int, string) error            { return nil }
func (blind) AttachMatch(int, string) error           { return nil }
func (blind) MatchProgram() (uint32, error)           { return 0, nil }
func (blind) DetachMatch() error                      { return nil }
func (blind) AttachReceive(int, string, uint32) error { return nil }
func (blind) ReceivePrograms() (uint32, uint32, error) {
	return 0, 0, nil
}
func (blind) DetachReceive() error        { return nil }
func (blind) AttachCgroupFilter() error   { return nil }
func (blind) CgroupFilter() (bool, error) { return false, nil }
func (blind) DetachCgroupFilter() error   { return nil }

// bare is one of a kernel without the cgroup classifier.
type bare struct{ blind }

func (bare) AttachCgroupFilter() error { return errors.New("no cls_cgroup") }

// runIn becomes a program in a target: WAY TARGET USER PROGRAM [ARGUMENT ...].
func runIn(args []string) error {
	b, err := cgroup.NewBinder(cgroup.Config{Hook: blind{}, Interface: "lo", Index: 1, Ways: []bind.Way{bind.Way(args[0])}})
	if err != nil {
		return err
	}
	err = confine.Command{Args: args[3:], User: args[2], Level: confine.LevelTag}.Exec(func() error {
		h, err := b.Homes()
		if err != nil {
			return err
		}
		return home.Join(h.Tree, targetOf(args[1]), 0)
	})
	var failed *confine.ExecError
	if errors.As(err, &failed) {
		mine, _ := os.ReadFile("/proc/self/cgroup")
		fmt.Printf("not found: %v, moved: %v\n", failed.NotFound(), strings.Contains(string(mine), strings.TrimPrefix(args[1], "cgroup:")))
	}
	return err
}

// tree is eth0 with web (red when it is a leaf) and its children, as a policy
// would make it.
func tree(t testing.TB, names ...string) *hierarchy.Tree {
	t.Helper()
	leaf := func(p hierarchy.Path, id hierarchy.ClassID) *hierarchy.Branch {
		return &hierarchy.Branch{Class: hierarchy.Class{Path: p, ID: id}}
	}
	web := &hierarchy.Branch{Class: hierarchy.Class{Path: "eth0/web", ID: hierarchy.ID(0x11)}, Children: []*hierarchy.Branch{
		leaf("eth0/web/api", green), leaf("eth0/web/rest", red),
	}}
	for _, s := range names {
		b, err := bind.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		web.Bind = append(web.Bind, b)
	}
	return &hierarchy.Tree{Port: hierarchy.Port{Device: "eth0"}, Root: &hierarchy.Branch{
		Class:    hierarchy.Class{Path: "eth0", ID: hierarchy.ID(hierarchy.RootMinor)},
		Children: []*hierarchy.Branch{web, leaf("eth0/rest", rest)},
	}}
}

// resolved finds what the bindings of a tree name; none is refused.
func resolved(t testing.TB, b *cgroup.Binder, tr *hierarchy.Tree) *resolve.Resolution {
	t.Helper()
	r, err := b.Resolve(t.Context(), resolve.Branches(tr), nil)
	if err == nil {
		err = r.Err()
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// TestKernelHomes: a branch's own cgroup is made, found, bound, and goes again
// unless somebody lives there.
func TestKernelHomes(t *testing.T) {
	for _, way := range exact(t) { // cls_cgroup has the homes of net_cls
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			p := newPlace(t, way)
			b := n.binder(t, way)
			t.Cleanup(func() { n.removeHomes(t) })
			h := homes(t, b)
			api, fresh, err := h.Make("eth0/web/api")
			if err != nil || !fresh {
				t.Fatalf("home %s, fresh %v, error %v", api, fresh, err)
			}
			again, fresh, err := h.Make("eth0/web/api")
			if err != nil || again != api || fresh {
				t.Errorf("home %s, the second time %s, fresh %v and error %v", api, again, fresh, err)
			}
			if _, _, err := h.Make("eth1/web"); err == nil {
				t.Error("a home on another interface was made")
			}
			if ns, p, ok := home.Parse(api); ns != h.NetNS || p != "eth0/web/api" || !ok {
				t.Errorf("home %s is that of %q in %q, %v", api, p, ns, ok)
			}
			all, err := h.List()
			want := []hierarchy.Path{"eth0", "eth0/web", "eth0/web/api"}
			if diff := cmp.Diff(want, all); diff != "" || err != nil {
				t.Errorf("homes (-want +got), error %v:\n%s", err, diff)
			}
			r := resolved(t, b, tree(t))
			if len(r.Pending) != 0 {
				t.Fatalf("pending %v", r.Pending)
			}
			apply(t, b, r.Bound...)

			dir := p.mount + api.Name
			x := n.start(t, n.Near, dir)
			only(t, n.during(t, func() { x.Do("udp %s:9 20", n.Far4) }), green, 20)
			y := n.start(t, n.Near, filepath.Dir(dir))
			only(t, n.during(t, func() { y.Do("udp %s:9 20", n.Far4) }), red, 20)

			pids, err := home.Processes(h.Tree, bind.ToCgroup(filepath.Dir(api.Name)))
			wantPids := []int{x.PID(), y.PID()}
			slices.Sort(wantPids)
			if diff := cmp.Diff(wantPids, pids); diff != "" || err != nil {
				t.Errorf("processes (-want +got), error %v:\n%s", err, diff)
			}
			y.Do("join %s", p.mount)
			if diff := cmp.Diff(want, n.removeHomes(t)); diff != "" {
				t.Errorf("homes kept for a process (-want +got):\n%s", diff)
			}
			x.Do("join %s", p.mount)
			if kept := n.removeHomes(t); len(kept) != 0 {
				t.Errorf("homes kept without a process: %v", kept)
			}
			if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("home after removal: %v", err)
			}
		})
	}
}

// config is what the classifier on the hook was told (struct vif_config,
// bpf/classify.bpf.c), and what puts it back changed.
func (n *network) config(t testing.TB) (config []byte, put func()) {
	t.Helper()
	id, err := n.hook.EgressProgram()
	if err != nil {
		t.Fatal(err)
	}
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		t.Fatal(err)
	}
	ids, _ := info.MapIDs()
	for _, id := range ids {
		m, err := ebpf.NewMapFromID(id)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { m.Close() })
		if info, err := m.Info(); err != nil || info.Name != ".data.vif" {
			continue
		}
		if config, err = m.LookupBytes(uint32(0)); err != nil {
			t.Fatal(err)
		}
		return config, func() {
			if err := m.Put(uint32(0), config); err != nil {
				t.Fatal(err)
			}
		}
	}
	t.Fatal("the classifier has no configuration")
	return nil, nil
}

// generation is what sockets hold their classes against.
func (n *network) generation(t testing.TB) uint32 {
	t.Helper()
	config, _ := n.config(t)
	return binary.NativeEndian.Uint32(config[4:])
}

// TestKernelBoundHome: a home that is bound is found so by anybody, and a new one
// makes no socket look its class up again.
func TestKernelBoundHome(t *testing.T) {
	for _, way := range exact(t) { // cls_cgroup has the homes of net_cls
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			newPlace(t, way)
			b := n.binder(t, way)
			h := homes(t, b)
			target := home.Target(h.NetNS, "eth0/web")
			is := func(b *cgroup.Binder, class hierarchy.ClassID) {
				t.Helper()
				got, err := b.Class(target)
				if got != class || err != nil {
					t.Errorf("home %q of class %v, error %v, want class %v", target, got, err, class)
				}
			}
			is(b, 0)
			apply(t, b)
			is(b, 0)
			before := uint32(0)
			if way == bind.WayBPF {
				before = n.generation(t)
			}
			bind := func(class hierarchy.ClassID, more uint32) {
				t.Helper()
				got, fresh, err := h.Make("eth0/web")
				if err != nil || got != target || !strings.HasSuffix(got.Name, "/eth0/web") {
					t.Fatalf("home %q, error %v, want %q", got, err, target)
				}
				if fresh {
					b.Fresh(target)
				}
				to := hierarchy.Bound{Target: target, Class: class}
				if _, err := b.Do(t.Context(), []hierarchy.Step{{Action: hierarchy.Create, New: &to}}); err != nil {
					t.Fatal(err)
				}
				is(b, class)
				is(n.binder(t), class)
				if way != bind.WayBPF {
					return
				}
				if got := n.generation(t) - before; got != more {
					t.Errorf("%d generations more, want %d", got, more)
				}
			}
			bind(red, 0)
			bind(red, 0)
			bind(green, 1)
			if kept := n.removeHomes(t); len(kept) != 0 {
				t.Errorf("homes kept: %v", kept)
			}
			is(b, 0)
		})
	}
}

func TestKernelResolve(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	unit, manager := tctest.Name()+".service", "user@"+tctest.Name()+".service"
	top := strings.ReplaceAll(tctest.Name(), "-", "") // a dash would be a level
	at := func(names ...string) string { return sub(t, p.mount, names...) }
	template := "cpu." + top + ".slice" // systemd escapes it: cpu.* are files of the kernel
	slice, one, two := at("_"+template), at(top+".slice", top+"-one.slice"), at(top+".slice", top+"-two.slice")
	t.Cleanup(func() {
		for _, dir := range []string{slice, filepath.Dir(one)} {
			removeAll(t, dir)
		}
	})
	mine := sub(t, one, unit)
	twice := tctest.Name() + ".service"
	sub(t, one, twice)
	sub(t, two, twice)
	// what others may make of what they were given
	user, claimed := sub(t, two, manager), tctest.Name()+".service"
	for _, above := range []string{user, sub(t, two, "docker-1.scope"), sub(t, mine, "payload", "system.slice"), sub(t, p.dir, "system.slice"), sub(t, one, "system.slice"), sub(t, one, top+"-two.slice")} {
		sub(t, above, claimed)
		sub(t, above, unit)
		sub(t, above, template)
	}
	b := n.binder(t, bind.WayBPF)

	for _, tt := range []struct {
		bind            string
		target, pending string
	}{
		{bind: "cgroup:" + strings.TrimPrefix(mine, p.mount), target: p.target(mine)},
		{bind: "cgroup:/no/such", pending: "no such cgroup below " + p.mount},
		{bind: "unit:" + unit, target: p.target(mine)},
		{bind: "unit:" + manager, target: p.target(user)},
		{bind: "unit:" + claimed, pending: "the unit is not running (a user's own or a container's is named by cgroup:/PATH)"},
		{bind: "cgroup:" + strings.TrimPrefix(user, p.mount) + "/" + claimed, target: p.target(user) + "/" + claimed},
		{bind: "unit:" + twice, pending: "2 cgroups bear the name; write one of them: " + p.target(one) + "/" + twice + ", " + p.target(two) + "/" + twice},
		{bind: "slice:" + top + "-two.slice", target: p.target(two)},
		{bind: "slice:" + template, target: p.target(slice)},
		{bind: "user:root", target: "uid:0"},
		{bind: "user:4711", target: "uid:4711"},
		{bind: "user:no-such-user", pending: "no such user"},
	} {
		t.Run(tt.bind, func(t *testing.T) {
			r := resolved(t, b, tree(t, tt.bind))
			var wantBound []hierarchy.Bound
			if tt.target != "" {
				wantBound = []hierarchy.Bound{{Target: targetOf(tt.target), Class: red, Path: "eth0/web/rest", From: tt.bind}}
			}
			if diff := cmp.Diff(wantBound, r.Bound); diff != "" {
				t.Errorf("bound (-want +got):\n%s", diff)
			}
			var reason string
			for _, p := range r.Pending {
				reason += p.Reason
			}
			if reason != tt.pending {
				t.Errorf("pending %q, want %q", reason, tt.pending)
			}
		})
	}

	t.Run("one cgroup twice", func(t *testing.T) {
		tr := tree(t, "unit:"+unit)
		tr.Find("eth0/web/api").Bind = []bind.Binding{{Kind: bind.Cgroup, Name: strings.TrimPrefix(mine, p.mount)}}
		r, err := b.Resolve(t.Context(), resolve.Branches(tr), nil)
		if err == nil {
			err = r.Err()
		}
		if err == nil || !strings.Contains(err.Error(), "eth0/web/api: binding") || !strings.Contains(err.Error(), "of eth0/web names already") {
			t.Errorf("error %v", err)
		}
	})
	t.Run("users by net_cls", func(t *testing.T) {
		require(t, bind.WayNetCls)
		newPlace(t, bind.WayNetCls)
		r, err := n.binder(t, bind.WayNetCls).Resolve(t.Context(), resolve.Branches(tree(t, "user:root")), nil)
		if err == nil {
			err = r.Err()
		}
		if !errors.Is(err, caps.ErrNotSupported) {
			t.Errorf("error %v, want ErrNotSupported", err)
		}
	})
}

// TestKernelExec: same process, in the cgroup, as the user, with its exit code;
// and nothing done when the program cannot be started.
func TestKernelExec(t *testing.T) {
	for _, way := range exact(t) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			sh := tctest.RequireProgram(t, "sh")
			p := newPlace(t, way)
			dir := sub(t, p.dir, "home")
			target := p.target(dir)
			noexec := filepath.Join(t.TempDir(), "data")
			if err := os.WriteFile(noexec, nil, 0o644); err != nil {
				t.Fatal(err)
			}
			in := strings.TrimPrefix(target, "cgroup:")
			for _, tt := range []struct {
				name, user string
				args       []string
				want       string
				code       int
			}{
				{"in the cgroup", "", []string{"sh", "-c", `grep -c "` + in + `$" /proc/self/cgroup; exit 42`}, "1\n", 42},
				{"same process", "", []string{sh, "-c", `test $PPID = ` + fmt.Sprint(os.Getpid()) + ` && echo yes`}, "yes\n", 0},
				{"as a user", "nobody", []string{"sh", "-c", `id -u; id -G; echo $USER $LOGNAME $HOME`}, "65534\n65534\nnobody nobody /nonexistent\n", 0},
				{"as a number", "0", []string{"sh", "-c", `id -u; echo $HOME`}, "0\n/root\n", 0},
				{"as two numbers", "12345:54321", []string{"sh", "-c", `id -u; id -G`}, "12345\n54321\n", 0},
				{"no such user", "no-such-user", []string{"true"}, "", 1},
				{"not found", "", []string{"no-such-program"}, "not found: true, moved: false\n", 1},
				{"no such path", "", []string{"/no/such/program"}, "not found: true, moved: false\n", 1},
				{"not executable", "", []string{noexec}, "not found: false, moved: false\n", 1},
			} {
				t.Run(tt.name, func(t *testing.T) {
					cmd := tctest.Command(t, append([]string{"runIn", string(way), target, tt.user}, tt.args...)...)
					cmd.Stderr = nil
					out, err := cmd.Output()
					var exit *exec.ExitError
					if err != nil && !errors.As(err, &exit) {
						t.Fatal(err)
					}
					if got := cmd.ProcessState.ExitCode(); got != tt.code {
						t.Errorf("exit code %d, want %d; %s", got, tt.code, exit.Stderr)
					}
					if diff := cmp.Diff(tt.want, string(out)); diff != "" {
						t.Errorf("output (-want +got):\n%s", diff)
					}
				})
			}
		})
	}
}

// bindUnprivileged gives all capabilities up and says what a Binder then says.
func bindUnprivileged() error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var none [2]unix.CapUserData
	if err := unix.Capset(&h, &none[0]); err != nil {
		return err
	}
	b, err := cgroup.NewBinder(cgroup.Config{Hook: blind{}, Interface: "eth0", Ways: []bind.Way{bind.WayBPF}})
	if err != nil {
		return err
	}
	_, err = b.Hook(0)
	fmt.Println(errors.Is(err, caps.ErrNotPrivileged), err)
	report := cgroup.Probe()
	fmt.Println(errors.Is(report.Ways[0].Err, caps.ErrNotPrivileged))
	var s hierarchy.State
	fmt.Println(b.Read(context.Background(), &s))
	for _, ways := range [][]bind.Way{nil, {bind.WayNetCls, bind.WayClsCgroup}} {
		b, err := cgroup.NewBinder(cgroup.Config{Hook: bare{}, Interface: "eth0", Ways: ways})
		if err != nil {
			return err
		}
		h, err := b.Hook(0)
		fmt.Printf("%q %v\n", h.Way, err)
		if err == nil {
			_, err = b.Do(context.Background(), []hierarchy.Step{{Action: hierarchy.Create, New: &h}})
			fmt.Println(err)
		}
	}
	return nil
}

// bindConfined says what Binders say to root of a user namespace, each once. A program's
// maps are made in any order, and which the kernel refuses first must not matter.
func bindConfined() error {
	said := map[string]bool{}
	for range 20 {
		b, err := cgroup.NewBinder(cgroup.Config{Hook: blind{}, Interface: "eth0", Ways: []bind.Way{bind.WayBPF}})
		if err != nil {
			return err
		}
		_, err = b.Hook(0)
		said[fmt.Sprintln(errors.Is(err, caps.ErrConfined), errors.Is(err, caps.ErrNotPrivileged), err)] = true
		if err := b.Close(); err != nil {
			return err
		}
	}
	for s := range said {
		fmt.Print(s)
	}
	return nil
}

// TestKernelConfined: root of a user namespace has all capabilities, and they do
// not help.
func TestKernelConfined(t *testing.T) {
	require(t, bind.WayBPF)
	tctest.Cgroup2Mount(t)
	cmd := tctest.Command(t, "bindConfined")
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	want := "true true eth0: binding bpf: load the classifier: not privileged although no capability is missing (they are those of a user namespace): "
	for got := range strings.Lines(string(out)) {
		if !strings.HasPrefix(got, want) {
			t.Errorf("%q, want %q...", got, want)
		}
	}
	if len(out) == 0 {
		t.Error("nothing was said")
	}
}

// bindUnlocked loads the classifier with no locked memory allowed and no right to raise
// that limit.
func bindUnlocked() error {
	var none unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &none, nil); err != nil {
		return err
	}
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return err
	}
	d[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
	d[0].Permitted &^= 1 << unix.CAP_SYS_RESOURCE
	if err := unix.Capset(&h, &d[0]); err != nil {
		return err
	}
	b, err := cgroup.NewBinder(cgroup.Config{Hook: blind{}, Interface: "eth0", Ways: []bind.Way{bind.WayBPF}})
	if err != nil {
		return err
	}
	_, err = b.Hook(0)
	return errors.Join(err, b.Close())
}

// TestKernelLimited: from 5.11 on the limit of locked memory does not matter.
func TestKernelLimited(t *testing.T) {
	require(t, bind.WayBPF)
	if out, err := tctest.Command(t, "bindUnlocked").Output(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
}

func TestKernelUnprivileged(t *testing.T) {
	require(t, bind.WayBPF)
	require(t, bind.WayNetCls)
	newPlace(t, bind.WayNetCls)
	out, err := tctest.Command(t, "bindUnprivileged").Output()
	if err != nil {
		t.Fatal(err)
	}
	const (
		refused = "load the classifier: not privileged: needs root or CAP_BPF and CAP_NET_ADMIN"
		v2      = "binding bpf: " + refused + "; binding nft: the interface's index is not given; "
		netCls  = "binding net_cls: " + refused
		all     = v2 + netCls + "; binding net_cls+nft: the interface's index is not given"
	)
	want := "true eth0: binding bpf: " + refused + "\ntrue\n<nil>\n"
	// without BPF the kernel's own classifier reads the tags
	classic := `"cls_cgroup" <nil>` + "\neth0: classifier: no cls_cgroup; "
	want += classic + all + "\n" + classic + netCls + "\n"
	if diff := cmp.Diff(want, string(out)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
