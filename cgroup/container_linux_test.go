package cgroup_test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// number is an id of a container that begins with the given digits and that no
// container of the machine has.
func number(start string) string {
	return start + strings.Repeat("0", 48-len(start)) + fmt.Sprintf("%016x", os.Getpid())
}

// state is what container runtimes keep.
type state struct {
	t   testing.TB
	dir string
}

func newState(t testing.TB) state { return state{t, t.TempDir()} }

func (v state) write(file, text string) {
	v.t.Helper()
	file = filepath.Join(v.dir, file)
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		v.t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		v.t.Fatal(err)
	}
}

// unknown is what is said of a name that is none.
func (v state) unknown() string {
	return fmt.Sprintf("no container of the name is known to docker (in %s/var/lib/docker), podman or nerdctl; one of Kubernetes is named by its id", v.dir)
}

func (v state) docker(id, name string) {
	v.t.Helper()
	v.write("var/lib/docker/containers/"+id+"/config.v2.json", fmt.Sprintf(`{"State":{"Running":true},"ID":%q,"Config":{"Name":"x"},"Name":"/%s"}`, id, name))
}

// binderFor is a binder that finds containers' names in a directory.
func (n *network) binderFor(t testing.TB, v state) *cgroup.Binder {
	t.Helper()
	return n.binderWith(t, cgroup.Config{Root: v.dir, Ways: []bind.Way{bind.WayBPF}})
}

// TestKernelContainer: a container behind a bridge, and one beside that which has the
// interface's own network namespace, as docker makes them.
func TestKernelContainer(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	d := n.docker(t, 3)
	p, v := newPlace(t, bind.WayBPF), newState(t)
	b := n.binderFor(t, v)
	targets := func(bind string) []string {
		t.Helper()
		r := resolved(t, b, tree(t, bind))
		var all []string
		for _, x := range r.Bound {
			all = append(all, x.Target.String())
			if x.From != bind {
				t.Errorf("%s is from %q, want %q", x.Target, x.From, bind)
			}
		}
		for _, x := range r.Pending {
			all = append(all, "pending: "+x.Reason)
		}
		return all
	}
	expect := func(bind string, want ...string) {
		t.Helper()
		if diff := cmp.Diff(want, targets(bind)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", bind, diff)
		}
	}
	id, other := number("1a"), number("2b")
	expect("container:web", "pending: "+v.unknown())
	v.docker(id, "web")
	v.docker(other, "db")
	expect("container:web", "pending: the container is not running")

	dir := sub(t, p.dir, "docker-"+id+".scope")
	expect("container:web", p.target(dir)) // nobody is in it yet
	web := n.start(t, d.container("vethweb", 11), dir)
	db := n.start(t, d.container("vethdb", 12), sub(t, p.dir, "docker", other))
	expect("container:web", p.target(dir), "link:vethweb")
	expect("container:db", p.target(filepath.Join(p.dir, "docker", other)), "link:vethdb")
	send := func(from *tctest.Actor) func() { return func() { from.Do("udp %s:9 20", n.Far4) } }
	now := func(bind ...string) {
		t.Helper()
		apply(t, b, resolved(t, b, tree(t, bind...)).Bound...)
	}
	leaf := hierarchy.ClassID(red) // eth0/web's own
	now("container:web")
	only(t, n.during(t, send(web)), leaf, 20)
	only(t, n.during(t, send(db)), rest, 20)

	// one with the interface's own network namespace has no interface
	v.docker(number("3c"), "host")
	hostDir := sub(t, p.dir, "docker", number("3c"))
	host := n.start(t, n.Near, hostDir)
	expect("container:host", p.target(hostDir))
	now("container:host")
	only(t, n.during(t, send(host)), leaf, 20)
	only(t, n.during(t, send(web)), rest, 20)

	// It is restarted: another cgroup of the same name, another interface.
	now("container:web")
	web.Dismiss()
	if err := n.Near.DeleteLink("vethweb"); err != nil {
		t.Fatal(err)
	}
	if err := unix.Rmdir(dir); err != nil {
		t.Fatal(err)
	}
	expect("container:web", "pending: the container is not running")
	now("container:web")
	if got := read(t, b).Bound; len(got) != 0 {
		t.Errorf("bound once it is gone: %+v", got)
	}
	sub(t, p.dir, "docker-"+id+".scope")
	web = n.start(t, d.container("vethagain", 13), dir)
	expect("container:web", p.target(dir), "link:vethagain")
	now("container:web")
	only(t, n.during(t, send(web)), leaf, 20)

	// The interface named by itself is the one's who names it.
	r := resolved(t, b, &hierarchy.Tree{Port: hierarchy.Port{Device: "eth0"}, Root: &hierarchy.Branch{
		Class: hierarchy.Class{Path: "eth0", ID: hierarchy.ID(hierarchy.RootMinor)},
		Children: []*hierarchy.Branch{
			{Class: hierarchy.Class{Path: "eth0/a", ID: red}, Bind: []bind.Binding{{Kind: bind.Container, Name: "web"}}},
			{Class: hierarchy.Class{Path: "eth0/b", ID: green}, Bind: []bind.Binding{{Kind: bind.Link, Name: "vethagain"}}},
			{Class: hierarchy.Class{Path: "eth0/rest", ID: rest}},
		},
	}})
	classes := map[string]hierarchy.ClassID{}
	for _, x := range r.Bound {
		classes[x.Target.String()] = x.Class
	}
	if diff := cmp.Diff(map[string]hierarchy.ClassID{p.target(dir): red, "link:vethagain": green}, classes); diff != "" {
		t.Errorf("with the interface bound elsewhere (-want +got):\n%s", diff)
	}
}

// TestKernelContainerAgain: a process that has just begun may still enter a network
// namespace, of which nobody tells.
func TestKernelContainerAgain(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p, id := newPlace(t, bind.WayBPF), number("1a")
	b := n.binderFor(t, newState(t))
	dir := sub(t, p.dir, id)
	veth(t, n.Near, "veth0", tctest.NetNS(t), "eth0")
	r := resolved(t, b, tree(t, "container:"+id))
	if r.Again != 0 {
		t.Errorf("look again in %v at a container without processes", r.Again)
	}
	n.start(t, n.Near, dir)
	r = resolved(t, b, tree(t, "container:"+id))
	if r.Again <= 0 || r.Again > 15*time.Second {
		t.Errorf("look again in %v", r.Again)
	}
	inner := tctest.NetNS(t)
	if err := lab.AddVeth(n.Near, lab.Link{Name: "veth1"}, inner, lab.Link{Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("198.19.3.2/24")}}); err != nil {
		t.Fatal(err)
	}
	other := sub(t, p.dir, number("2b"))
	n.start(t, inner, other)
	r = resolved(t, b, tree(t, "container:"+number("2b")))
	if len(r.Bound) != 2 || r.Again != 0 {
		t.Errorf("once it is in its namespace: %+v", r)
	}
}

// TestKernelContainerNames: what counts as a container's cgroup, and as its name.
func TestKernelContainerNames(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	a, a2, c := number("aaaaaaaaaaaa1"), number("aaaaaaaaaaaa2"), number("c")
	const notRunning = "pending: the container is not running"
	for _, tt := range []struct {
		name    string
		cgroups []string
		bind    string
		want    string // a cgroup below the test's, or "pending: REASON"
	}{
		{"docker with systemd", []string{"docker-" + a + ".scope"}, a, "/docker-" + a + ".scope"},
		{"docker alone", []string{"docker/" + a}, a, "/docker/" + a},
		{"podman with systemd", []string{"libpod-" + a + ".scope/container", "libpod-conmon-" + a + ".scope"}, a, "/libpod-" + a + ".scope"},
		{"podman alone", []string{"libpod_parent/libpod-" + a}, a, "/libpod_parent/libpod-" + a},
		{"containerd of Kubernetes with systemd", []string{"cri-containerd-" + a + ".scope"}, a, "/cri-containerd-" + a + ".scope"},
		{"containerd of Kubernetes alone", []string{"kubepods/burstable/pod1234/" + a}, a, "/kubepods/burstable/pod1234/" + a},
		{"CRI-O", []string{"crio-" + a + ".scope", "crio-conmon-" + a + ".scope"}, a, "/crio-" + a + ".scope"},
		{"nerdctl", []string{"nerdctl-" + a + ".scope"}, a, "/nerdctl-" + a + ".scope"},
		{"containerd", []string{"default/" + a}, a, "/default/" + a},
		{"beginning of an id", []string{"default/" + a, "default/" + c}, a[:13], "/default/" + a},
		{"beginning of several", []string{"default/" + a, "default/" + a2}, a[:12],
			"pending: the ids of several containers begin so; write one of them: container:" + a + ", container:" + a2},
		{"too short a beginning", []string{"default/" + a}, a[:11],
			"pending: unknown"},
		{"beginning of none", []string{"default/" + c}, a[:12], "pending: no container whose id begins so is running"},
		{"not running", nil, a, notRunning},
		{"below a unit", []string{"x.service/" + a, "x.scope/docker-" + a + ".scope"}, a, notRunning},
		{"below a container", []string{"docker/" + c + "/docker/" + a}, a, notRunning},
		{"below LXC", []string{"lxc.payload.x/docker/" + a}, a, notRunning},
		{"below a false slice", []string{"x-y.slice/docker-" + a + ".scope"}, a, notRunning},
		{"below a user's", []string{"user's/" + a}, a, notRunning},
		{"twice", []string{"docker/" + a, "default/" + a}, a,
			"pending: 2 cgroups bear its id; write one of them: cgroup:" + p.target(p.dir)[len("cgroup:"):] + "/default/" + a + ", cgroup:" + p.target(p.dir)[len("cgroup:"):] + "/docker/" + a},
		{"longer than an id", []string{"docker/" + a + "0"}, a, notRunning},

		{"name in docker", []string{"docker/" + a}, "web", "/docker/" + a},
		{"name in docker elsewhere", []string{"docker/" + a}, "moved", "/docker/" + a},
		{"name in podman", []string{"libpod-" + a + ".scope"}, "pod1", "/libpod-" + a + ".scope"},
		{"name in podman that goes with it", []string{"libpod-" + c + ".scope"}, "volatile", "/libpod-" + c + ".scope"},
		{"name in nerdctl", []string{"nerdctl-" + a + ".scope"}, "nerd", "/nerdctl-" + a + ".scope"},
		{"name like the beginning of an id", []string{"docker/" + a, "docker/" + c}, a[:12], "/docker/" + a},
		{"name of two", []string{"docker/" + a}, "both", "pending: several containers bear the name; write one of them: container:" + a + " (docker), container:" + c + " (podman)"},
		{"name of none", nil, "other", "pending: unknown"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := newState(t)
			if strings.HasPrefix(tt.name, "name") {
				v.docker(a, map[string]string{"both": "both", a[:12]: a[:12]}[tt.bind])
				switch tt.bind {
				case "web":
					v.docker(a, "web")
				case "moved":
					v.write("etc/docker/daemon.json", `{"data-root": "/data/docker"}`)
					v.write("data/docker/containers/"+a+"/config.v2.json", `{"Name": "/moved"}`)
				}
				v.write("var/lib/containers/storage/overlay-containers/containers.json",
					fmt.Sprintf(`[{"id":%q,"names":["pod1"]},{"id":%q,"names":["x","both"]}]`, a, c))
				v.write("var/lib/containers/storage/overlay-containers/volatile-containers.json", fmt.Sprintf(`[{"id":%q,"names":["volatile"]}]`, c))
				v.write("var/lib/nerdctl/1935db59/names/default/nerd", a)
			}
			top := sub(t, p.dir, "top")
			defer func() {
				var all []string
				if err := filepath.WalkDir(top, func(p string, e os.DirEntry, err error) error {
					if err == nil && e.IsDir() {
						all = append(all, p)
					}
					return err
				}); err != nil {
					t.Error(err)
				}
				for _, dir := range slices.Backward(all) {
					if err := unix.Rmdir(dir); err != nil {
						t.Error(err)
					}
				}
			}()
			for _, dir := range tt.cgroups {
				made := sub(t, top, dir)
				if strings.Contains(dir, "user's") {
					if err := os.Chown(filepath.Dir(made), 65534, 65534); err != nil {
						t.Fatal(err)
					}
				}
			}
			r := resolved(t, n.binderFor(t, v), tree(t, "container:"+tt.bind))
			var got []string
			for _, x := range r.Bound {
				got = append(got, strings.TrimPrefix(x.Target.String(), p.target(top)))
			}
			for _, x := range r.Pending {
				if x.Reason == v.unknown() {
					x.Reason = "unknown"
				}
				got = append(got, "pending: "+x.Reason)
			}
			want := []string{strings.ReplaceAll(tt.want, p.target(p.dir)[len("cgroup:"):]+"/", p.target(top)[len("cgroup:"):]+"/")}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestKernelContainerHostile: whatever lies where a runtime keeps its state, the
// others' containers are found, and what could not be read is said.
func TestKernelContainerHostile(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p, id, bad := newPlace(t, bind.WayBPF), number("1a"), number("bad")
	dir := sub(t, p.dir, "docker", id)
	file := "var/lib/docker/containers/" + bad + "/config.v2.json"
	for _, tt := range []struct {
		name string
		make func(path string) error
		said string
	}{
		{"no JSON", func(path string) error { return os.WriteFile(path, []byte("{"), 0o644) }, "unexpected end of JSON input"},
		{"another form", func(path string) error { return os.WriteFile(path, []byte(`{"Name":[1]}`), 0o644) }, "cannot unmarshal"},
		{"deep", func(path string) error {
			return os.WriteFile(path, []byte(strings.Repeat("[", 1<<20)), 0o644)
		}, "exceeded max depth"},
		{"empty", func(path string) error { return os.WriteFile(path, nil, 0o644) }, "unexpected end of JSON input"},
		{"huge", func(path string) error {
			err := os.WriteFile(path, nil, 0o644)
			if err == nil {
				err = os.Truncate(path, 1<<40)
			}
			return err
		}, "is no file of at most"},
		{"link", func(path string) error { return os.Symlink("/dev/zero", path) }, "too many levels of symbolic links"},
		{"pipe", func(path string) error { return unix.Mkfifo(path, 0o644) }, "is no file of at most"},
		{"directory", func(path string) error { return os.Mkdir(path, 0o755) }, "is no file of at most"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v := newState(t)
			v.docker(id, "web")
			path := filepath.Join(v.dir, file)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := tt.make(path); err != nil {
				t.Fatal(err)
			}
			b := n.binderFor(t, v)
			r := resolved(t, b, tree(t, "container:web"))
			if len(r.Bound) != 1 || r.Bound[0].Target.String() != p.target(dir) {
				t.Errorf("the other one: %+v", r)
			}
			r = resolved(t, b, tree(t, "container:other"))
			if len(r.Pending) != 1 || !strings.Contains(r.Pending[0].Reason, "; not read: ") || !strings.Contains(r.Pending[0].Reason, tt.said) {
				t.Errorf("what cannot be read: %+v", r.Pending)
			}
		})
	}
}

// TestKernelContainers: those that run are listed by the name that a binding finds them by,
// where none does by the beginning of the id.
func TestKernelContainers(t *testing.T) {
	require(t, bind.WayBPF)
	p, v := newPlace(t, bind.WayBPF), newState(t)
	tree, err := cgroupfs.FindV2()
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	web, twice, other, odd, stopped := number("1a"), number("2b"), number("3c"), number("4d"), number("5e")
	v.docker(web, "web")
	v.docker(twice, "db")
	v.write("var/lib/containers/storage/overlay-containers/containers.json", fmt.Sprintf(`[{"id":%q,"names":["db"]},{"id":%q,"names":["a b"]}]`, other, odd))
	v.docker(stopped, "stopped")
	v.write("var/lib/nerdctl/1935db59/names/default/cache", number("6f"))
	for _, name := range []string{"docker-" + web + ".scope", "docker-" + twice + ".scope", "libpod-" + other + ".scope", odd, "nerdctl-" + number("6f") + ".scope"} {
		sub(t, p.dir, name)
	}
	base := strings.TrimPrefix(p.dir, p.mount)
	all, unread, err := resolve.Containers(t.Context(), tree, v.dir)
	if err != nil || unread != nil {
		t.Fatalf("%v, %v", err, unread)
	}
	all = slices.DeleteFunc(all, func(c resolve.Container) bool { return !strings.HasPrefix(c.Cgroup, base+"/") }) // the machine's own
	want := []resolve.Container{
		{Name: twice[:12], Cgroup: filepath.Join(base, "docker-"+twice+".scope")},
		{Name: other[:12], Cgroup: filepath.Join(base, "libpod-"+other+".scope")},
		{Name: odd[:12], Cgroup: filepath.Join(base, odd)},
		{Name: "cache", Cgroup: filepath.Join(base, "nerdctl-"+number("6f")+".scope")},
		{Name: "web", Cgroup: filepath.Join(base, "docker-"+web+".scope")},
	}
	if diff := cmp.Diff(want, all); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	v.write("var/lib/docker/containers/"+web+"/config.v2.json", "{")
	all, unread, err = resolve.Containers(t.Context(), tree, v.dir)
	if err != nil || unread == nil || !slices.ContainsFunc(all, func(c resolve.Container) bool { return c.Name == web[:12] }) {
		t.Errorf("of what cannot be read: %v, %v, %v", all, unread, err)
	}
}
