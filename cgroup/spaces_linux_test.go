package cgroup_test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelSpaces: what processes send from other network namespaces is of the branch
// that a cgroup far above theirs is bound to, by whatever binding.
func TestKernelSpaces(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	routed, beside := n.routed(t, "veth1", 1), n.routed(t, "veth3", 2)
	d := n.docker(t, 3)
	bridged := d.container("veth2", 11)
	kube := sub(t, p.dir, "kube.slice")
	far := n.start(t, n.Far, "")
	pods := map[string]*tctest.Actor{
		"routed":  n.start(t, routed, sub(t, kube, "burstable", "pod1", "c1")),
		"bridged": n.start(t, bridged, sub(t, kube, "burstable", "pod2", "c2")),
	}
	other := n.start(t, beside, sub(t, p.dir, "other"))
	b := n.binder(t, bind.WayBPF)
	port := 7600
	for _, bind := range []string{"", "/*", "/burstable/pod[12]", "/*/*/c?"} {
		bind = p.target(kube) + bind
		r := resolved(t, b, tree(t, bind))
		if len(r.Outside) != 0 || len(r.Pending) != 0 {
			t.Errorf("%s: not held %v, pending %v", bind, r.Outside, r.Pending)
		}
		for _, x := range r.Bound {
			if x.From != bind || x.Path != "eth0/web/rest" {
				t.Errorf("%s: %+v", bind, x)
			}
		}
		apply(t, b, r.Bound...)
		for name, pod := range pods {
			addrs := []string{n.Far4.String()}
			if name == "routed" && n.Near6.IsValid() {
				addrs = append(addrs, "["+n.Far6.String()+"]")
			}
			for _, host := range addrs {
				t.Run(fmt.Sprintf("%s %s to %s", strings.TrimPrefix(bind, p.target(p.dir)), name, host), func(t *testing.T) {
					only(t, besides(n.during(t, func() { pod.Do("udp %s:9 50", host) })), red, 50)
					port++
					far.Do("listen %d %s:%d", port, host, port)
					only(t, besides(n.during(t, func() {
						pod.Begin("tcp %s:%d 300000", host, port)
						far.Do("serve %d 1 0", port)
						pod.End()
					})), red, 5)
				})
			}
		}
		only(t, n.during(t, func() { other.Do("udp %s:9 50", n.Far4) }), rest, 50)
	}
	// They go, and the interfaces with them.
	for _, pod := range pods {
		pod.Dismiss()
	}
	if r := resolved(t, b, tree(t, p.target(kube))); len(r.Bound) != 1 {
		t.Errorf("bound once they have ended: %v", r.Bound)
	}
}

// besides is without what the kernel sends of its own accord, as it asks its neighbours:
// that is the rest's, and at most a packet or two.
func besides(got counts) counts {
	if got[rest] <= 2 {
		delete(got, rest)
	}
	return got
}

// TestKernelSpacesWhose: the interface of a network namespace is of the branch that its
// oldest process is bound to. The others in it are told of.
func TestKernelSpacesWhose(t *testing.T) {
	require(t, bind.WayBPF)
	one, two := number("1a"), number("2b")
	for _, tt := range []struct {
		name string
		in   []string // cgroups of the processes in the namespace, as they come
		a, b string   // what is bound to these branches
		link string   // the interface's branch
		told string   // the branch to which it is said that
		pid  int      // this process of it is not held, because
		by   int      // this one was there before
	}{
		{"all in one branch", []string{"pod/c1", "pod/c2"}, "cgroup:pod", "", "a", "", 0, 0},
		{"bound twice to one", []string{"pod/c1", "pod/c2"}, "cgroup:pod/c1 cgroup:pod/c2", "", "a", "", 0, 0},
		{"visitor who is bound to nothing", []string{"pod/c1", "session"}, "cgroup:pod", "", "a", "", 0, 0},
		{"visitor from another branch", []string{"pod/c1", "session"}, "cgroup:pod", "cgroup:session", "a", "b", 1, 0},
		{"visitor of what is bound to nothing", []string{"pod/c1", "session"}, "", "cgroup:session", "", "b", 1, 0},
		{"bound deeper", []string{"pod/pause", "pod/c1"}, "cgroup:pod", "cgroup:pod/c1", "a", "b", 1, 0},
		{"container of a pod", []string{"pod/pause", "pod/" + one}, "container:" + one, "", "a", "", 0, 0},
		{"container by its cgroup", []string{"pod/pause", "pod/cri-containerd-" + one + ".scope"}, "cgroup:pod/cri-*", "", "a", "", 0, 0},
		{"containers of a pod", []string{"pod/pause", "pod/" + one, "pod/" + two}, "container:" + one, "container:" + two, "a", "b", 2, 1},
		{"containers that come the other way", []string{two, one}, "container:" + one, "container:" + two, "b", "a", 1, 0},
		{"named itself", []string{"pod/c1"}, "cgroup:pod", "link:vethpod", "b", "", 0, 0},
		{"named itself, and the cgroup too", []string{"pod/c1"}, "cgroup:pod link:vethpod", "", "a", "", 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t)
			p := newPlace(t, bind.WayBPF)
			pod := n.routed(t, "vethpod", 1)
			b := n.binderFor(t, newState(t))
			var pids []int
			for _, dir := range tt.in {
				pids = append(pids, n.start(t, pod, sub(t, p.dir, dir)).PID())
			}
			branch := func(path hierarchy.Path, class hierarchy.ClassID, names string) resolve.Branch {
				x := resolve.Branch{Path: path, Entry: path, Class: class}
				for _, s := range strings.Fields(names) {
					if dir, ok := strings.CutPrefix(s, "cgroup:"); ok {
						s = p.target(p.dir) + "/" + dir
					}
					spec, err := bind.Parse(s)
					if err != nil {
						t.Fatal(err)
					}
					x.Bind = append(x.Bind, spec)
				}
				return x
			}
			branches := []resolve.Branch{branch("eth0/a", red, tt.a), branch("eth0/b", green, tt.b)}
			r, err := b.Resolve(t.Context(), branches, nil)
			if err != nil || len(r.Refused)+len(r.Pending) != 0 {
				t.Fatalf("%v, %+v", err, r)
			}
			got := map[string]hierarchy.Path{}
			for _, x := range r.Bound {
				if x.Target.Kind == bind.TargetLink {
					got[x.Target.String()] = x.Path
				}
			}
			want := map[string]hierarchy.Path{}
			if tt.link != "" {
				want["link:vethpod"] = hierarchy.Path("eth0/" + tt.link)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("interfaces (-want +got):\n%s", diff)
			}
			var told []resolve.Outside
			if tt.told != "" {
				reason := fmt.Sprintf("packets from there come by vethpod and go to the rest: process %d was there before, and is bound to nothing; link: binds an interface by its name", pids[tt.by])
				if tt.link != "" {
					reason = fmt.Sprintf("packets from there come by vethpod and go to eth0/%s: process %d of that was there before", tt.link, pids[tt.by])
				}
				x := branches[strings.Index("ab", tt.told)]
				told = append(told, resolve.Outside{Path: x.Path, Binding: x.Bind[0], PIDs: []int{pids[tt.pid]}, Reason: reason})
			}
			if diff := cmp.Diff(told, r.Outside); diff != "" {
				t.Errorf("told (-want +got):\n%s", diff)
			}
		})
	}
}

// TestKernelSpacesSaid: of processes whose packets cannot be told by an interface, it
// is said. Where they can be, or there are none, it is not.
func TestKernelSpacesSaid(t *testing.T) {
	for _, tt := range []struct {
		name  string
		way   bind.Way
		space func(t *testing.T, n *network) *lab.NetNS
		said  string
	}{
		{"nft", bind.WayNft, func(t *testing.T, n *network) *lab.NetNS { return n.routed(t, "veth1", 1) },
			"1 process is in another network namespace: packets from there go to the rest: interfaces can be bound with BPF only, not with nf_tables or net_cls: not supported by this kernel"},
		{"nothing but loopback", bind.WayBPF, func(t *testing.T, _ *network) *lab.NetNS { return tctest.NetNS(t) }, ""},
		{"interface that is off", bind.WayBPF, func(t *testing.T, n *network) *lab.NetNS {
			inner, between := tctest.NetNS(t), tctest.NetNS(t)
			veth(t, between, "veth1", inner, "eth0")
			if err := inner.SetDown("eth0"); err != nil {
				t.Fatal(err)
			}
			return inner
		}, ""},
		{"another between", bind.WayBPF, func(t *testing.T, n *network) *lab.NetNS {
			inner, between := tctest.NetNS(t), tctest.NetNS(t)
			veth(t, n.Near, "veth1", between, "eth0")
			veth(t, between, "veth1", inner, "eth0")
			return inner
		}, "1 process is in another network namespace: packets from there leave by eth0, to which nothing leads here but through other namespaces or the shaped interface: they go where the interface is bound by which they come, else to the rest"},
		{"the shaped interface's", bind.WayBPF, func(t *testing.T, n *network) *lab.NetNS { return n.Far },
			"1 process is in another network namespace: packets from there leave by far0, to which nothing leads here but through other namespaces or the shaped interface: they go where the interface is bound by which they come, else to the rest"},
		{"tun", bind.WayBPF, func(t *testing.T, _ *network) *lab.NetNS {
			inner := tctest.NetNS(t)
			openTAP(t, inner, "tap0")
			return inner
		}, "1 process is in another network namespace: packets from there are sent on by the program behind tap0, such as slirp4netns or pasta, and go where that is bound"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require(t, tt.way)
			n := newNetwork(t)
			p := newPlace(t, tt.way)
			dir := sub(t, p.dir, "pod")
			pod := n.start(t, tt.space(t, n), dir)
			r := resolved(t, n.binder(t, tt.way), tree(t, p.target(dir)))
			var said []string
			for _, o := range r.Outside {
				said = append(said, o.String())
				if want := []int{pod.PID()}; !slices.Equal(o.PIDs, want) || o.Path != "eth0/web" || o.Binding.String() != p.target(dir) {
					t.Errorf("%+v, want process %v", o, want)
				}
			}
			var want []string
			if tt.said != "" {
				want = []string{tt.said}
			}
			if diff := cmp.Diff(want, said); diff != "" {
				t.Errorf("said (-want +got):\n%s", diff)
			}
			if len(r.Bound) != 1 {
				t.Errorf("bound %+v", r.Bound)
			}
		})
	}
}

// openTAP makes an interface behind which a program stands, and which lives as long as
// the test.
func openTAP(t testing.TB, ns *lab.NetNS, name string) {
	t.Helper()
	fd := -1
	err := ns.Do(func() (err error) { // the opener's namespace is the interface's
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	tctest.Require(t, err == nil, "/dev/net/tun")
	t.Cleanup(func() { unix.Close(fd) })
	r, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err = unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err == nil {
		err = ns.SetUp(name)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// veth makes a pair that is up.
func veth(t testing.TB, a *lab.NetNS, nameA string, b *lab.NetNS, nameB string) {
	t.Helper()
	if err := lab.AddVeth(a, lab.Link{Name: nameA}, b, lab.Link{Name: nameB}); err != nil {
		t.Fatal(err)
	}
}

// TestKernelSpacesUpon: what leaves by an interface that lies on the shaped one comes
// with its socket, and nothing is said of it.
func TestKernelSpacesUpon(t *testing.T) {
	require(t, bind.WayBPF)
	for _, kind := range []string{"macvlan", "ipvlan"} {
		if !tctest.HasLink(t, kind) {
			continue
		}
		t.Run(kind, func(t *testing.T) {
			n := newNetwork(t)
			p := newPlace(t, bind.WayBPF)
			dir := sub(t, p.dir, "pod")
			inner := tctest.NetNS(t)
			onlyIPv4(t, inner)
			addr := netip.PrefixFrom(n.Far4.Next(), 24)
			if err := n.Near.AddLink(lab.Link{Name: "up0", Kind: kind, Parent: n.Dev, NetNS: inner, Addrs: []netip.Prefix{addr}}); err != nil {
				t.Fatal(err)
			}
			(&docker{n, t, 0, nil}).neighbour(inner, "up0", n.Far4, hardware(t, n.Far, n.FarDev))
			pod := n.start(t, inner, dir)
			b := n.binder(t, bind.WayBPF)
			r := resolved(t, b, tree(t, p.target(dir)))
			if len(r.Outside) != 0 || len(r.Bound) != 1 {
				t.Errorf("%+v", r)
			}
			apply(t, b, r.Bound...)
			only(t, besides(n.during(t, func() { pod.Do("udp %s:9 20", n.Far4) })), red, 20)
		})
	}
}

// TestKernelSpacesNested: of what comes from a namespace behind that of a container, as
// from a container in it, is said nothing where all are of one branch.
func TestKernelSpacesNested(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	outer := n.routed(t, "veth1", 1)
	inner := tctest.NetNS(t)
	veth(t, outer, "veth2", inner, "eth0")
	n.start(t, outer, sub(t, p.dir, "pod"))
	nested := n.start(t, inner, sub(t, p.dir, "pod", "docker", number("1a"))).PID()
	b := n.binderFor(t, newState(t))
	if r := resolved(t, b, tree(t, p.target(sub(t, p.dir, "pod")))); len(r.Outside) != 0 || len(r.Bound) != 2 {
		t.Errorf("in one branch: %+v", r)
	}
	bind := func(s string) []bind.Binding {
		spec, err := bind.Parse(s)
		if err != nil {
			t.Fatal(err)
		}
		return []bind.Binding{spec}
	}
	r, err := b.Resolve(t.Context(), []resolve.Branch{
		{Path: "eth0/a", Entry: "eth0/a", Class: red, Bind: bind(p.target(sub(t, p.dir, "pod")))},
		{Path: "eth0/b", Entry: "eth0/b", Class: green, Bind: bind(p.target(sub(t, p.dir, "pod", "docker")))},
	}, nil)
	if err != nil || len(r.Outside) != 1 || r.Outside[0].Path != "eth0/b" || !slices.Equal(r.Outside[0].PIDs, []int{nested}) {
		t.Errorf("in two: %+v, %v", r, err)
	}
}

// TestKernelSpacesMany: who makes many network namespaces keeps none of the others from
// being found, and it is said.
func TestKernelSpacesMany(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	hostile, honest := sub(t, p.dir, "pods", "a"), sub(t, p.dir, "pods", "b")
	n.start(t, n.routed(t, "veth1", 1), hostile)
	for range 16 {
		n.start(t, tctest.NetNS(t), hostile)
	}
	n.start(t, n.routed(t, "veth2", 2), honest)
	r := resolved(t, n.binder(t, bind.WayBPF), tree(t, p.target(sub(t, p.dir, "pods"))))
	if !slices.ContainsFunc(r.Bound, func(x hierarchy.Bound) bool { return x.Target == bind.ToLink("veth2") }) {
		t.Errorf("the other's is not bound: %+v", r.Bound)
	}
	if len(r.Outside) != 1 || len(r.Outside[0].PIDs) != 1 ||
		!strings.Contains(r.Outside[0].String(), fmt.Sprintf("there are processes of more than 16 others in %q", strings.TrimPrefix(hostile, p.mount))) {
		t.Errorf("said: %+v", r.Outside)
	}
}
