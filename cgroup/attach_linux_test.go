package cgroup_test

import (
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// attach attaches processes to a bound cgroup.
func (n *network) attach(t *testing.T, b *cgroup.Binder, target string, tree bool, pids ...int) (a *home.Attachment) {
	t.Helper()
	err := n.Near.Do(func() error {
		c, err := b.Carrier(targetOf(target))
		if err != nil {
			return err
		}
		if c != nil {
			defer c.Close()
		}
		a, err = home.Attach(t.Context(), homes(t, b).Tree, targetOf(target), pids, tree, c)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// homes are those that a Binder finds.
func homes(t testing.TB, b *cgroup.Binder) home.Homes {
	t.Helper()
	h, err := b.Homes()
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// removeHomes removes those of the near interface. What is mounted stays.
func (n *network) removeHomes(t testing.TB) []hierarchy.Path {
	t.Helper()
	key, err := cgroupfs.NetNSKey(n.Near.FD())
	if err != nil {
		t.Fatal(err)
	}
	kept, err := home.RemoveAll(key, n.Dev, true)
	if err != nil {
		t.Error(err)
	}
	return kept
}

// TestKernelAttach: what a process had open follows it into the branch, with what
// is accepted from its listeners and what waits there; so it does when the branch's
// class changes, until the branch is bound no more.
func TestKernelAttach(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	free, to := sub(t, p.dir, "free"), sub(t, p.dir, "to")
	b := n.binder(t, bind.WayBPF)
	apply(t, b, bound(p.target(to), green), bound(p.target(free), red))
	x, far := n.start(t, n.Near, free), n.start(t, n.Far, "")
	addr, near := n.Far4.String()+":9", n.Near4.String()
	x.Do("keep udp %s", addr)
	x.Do("keepPacket packet")
	x.Do("listen tcp %s:7200", near)
	x.Do("listen waiting %s:7201", near)
	far.Do("connect waits %s:7201", near)
	sends := map[string]func(){
		"udp":    func() { x.Do("more udp %s 20", addr) },
		"packet": func() { x.Do("morePacket packet %d 20", n.device.Index) },
		"accepted": func() {
			x.Begin("serve tcp 1 100000")
			far.Do("fetch %s:7200", near)
			x.End()
		},
	}
	check := func(class hierarchy.ClassID) {
		t.Helper()
		for name, send := range sends {
			if got := n.during(t, send); got[class] < 5 || len(got) != 1 {
				t.Errorf("%s: packets a class %v, want all in %v", name, got, class)
			}
		}
	}
	check(red)
	a := n.attach(t, b, p.target(to), false, x.PID())
	var protocols []string
	for _, s := range a.Sockets {
		if s.PID != x.PID() || len(s.Shared) != 0 {
			t.Errorf("socket %+v, want process %d's alone", s, x.PID())
		}
		protocols = append(protocols, s.Protocol)
	}
	if diff := cmp.Diff([]string{"packet", "tcp", "tcp", "udp"}, protocols); diff != "" {
		t.Errorf("sockets that follow (-want +got):\n%s\n%+v", diff, a)
	}
	// Without a description of its types the kernel shows nobody what waits.
	settings, err := cgroup.ReadSettings()
	if err != nil {
		t.Fatal(err)
	}
	waiting, waits := 0, red
	if settings.BTF {
		waiting, waits = 1, green
	}
	if len(a.Processes) != 1 || a.Waiting != waiting || len(a.Failed) != 0 || a.Stay != "" {
		t.Errorf("attached: %+v", a)
	}
	check(green)
	only(t, n.during(t, func() {
		x.Begin("serve waiting 1 100000")
		far.Do("drain waits")
		x.End()
	}), waits, 5)
	apply(t, b, bound(p.target(to), blue), bound(p.target(free), red))
	check(blue)
	apply(t, b, bound(p.target(free), red))
	if got := n.during(t, sends["udp"]); got[red] != 20 {
		t.Errorf("packets a class %v once the branch is not bound any more, want all in %v", got, red)
	}
}

// TestKernelAttachUnderLoad: a process that forks and opens sockets all the time is
// attached again and again. No packet is ever in another class than those of the
// two branches, and once it is attached all are in its branch: its children's, and
// those of sockets that were open before.
func TestKernelAttachUnderLoad(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	dirs := []string{sub(t, p.dir, "from"), sub(t, p.dir, "to")}
	classes := []hierarchy.ClassID{red, green}
	b := n.binder(t, bind.WayBPF)
	apply(t, b, bound(p.target(dirs[0]), red), bound(p.target(dirs[1]), green))
	x := n.start(t, n.Near, dirs[0])
	x.Do("swarm %s:9", n.Far4)
	// The children end with what they were told to do, each within milliseconds.
	t.Cleanup(func() { empty(t, dirs...) })
	for i := range 6 {
		to, class := dirs[(i+1)%2], classes[(i+1)%2]
		time.Sleep(50 * time.Millisecond)
		var a *home.Attachment
		got := n.loaded(t, func() { a = n.attach(t, b, p.target(to), true, x.PID()) })
		if len(a.Failed) != 0 || len(a.Processes) == 0 || got[rest] != 0 || got[blue] != 0 {
			t.Errorf("while it was attached: %v, packets a class %v", a, got)
		}
		// The kernel lists also who is about to end, and sends nothing any more.
		if got = n.loaded(t, func() { empty(t, dirs[i%2]) }); len(got) > 1 || got[class] == 0 && len(got) > 0 {
			t.Errorf("who is left outside sends: packets a class %v, want all in %v", got, class)
		}
		got = counts{}
		for deadline := time.Now().Add(30 * time.Second); got[class] < 100 && time.Now().Before(deadline); {
			for id, gained := range n.loaded(t, func() { time.Sleep(50 * time.Millisecond) }) {
				got[id] += gained
			}
		}
		if got[class] < 100 || len(got) != 1 {
			t.Errorf("once it is attached: packets a class %v, want all in %v", got, class)
		}
	}
}

// loaded is what the leaf classes gain while fn runs and packets are on their way.
func (n *network) loaded(t testing.TB, fn func()) counts {
	t.Helper()
	read := func() counts {
		stats, err := n.device.Stats()
		if err != nil {
			t.Fatal(err)
		}
		m := counts{}
		for _, c := range stats {
			if c.Class != hierarchy.ID(hierarchy.RootMinor) {
				m[c.Class] = c.Packets
			}
		}
		return m
	}
	before := read()
	fn()
	after := read()
	for id := range after {
		if after[id] -= before[id]; after[id] == 0 {
			delete(after, id)
		}
	}
	return after
}

// pids are the processes of a cgroup.
func pids(t testing.TB, dir string) []string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.Fields(string(b))
}

// empty waits until cgroups are.
func empty(t testing.TB, dirs ...string) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if !slices.ContainsFunc(dirs, func(dir string) bool { return len(pids(t, dir)) > 0 }) {
			return
		}
	}
	t.Errorf("processes are left in %v", dirs)
}

// TestKernelAttachTree: descendants come with tree alone, and who keeps a socket
// outside is named. With net_cls sockets follow by themselves; with nft they stay,
// and that is said.
func TestKernelAttachTree(t *testing.T) {
	for _, way := range exact(t) {
		t.Run(string(way), func(t *testing.T) {
			require(t, way)
			n := newNetwork(t)
			p := newPlace(t, way)
			free, to := sub(t, p.dir, "free"), sub(t, p.dir, "to")
			b := n.binder(t, way)
			apply(t, b, bound(p.target(to), green), bound(p.target(free), red))
			x, addr := n.start(t, n.Near, free), n.Far4.String()+":9"
			x.Do("keep s %s", addr)
			x.Do("more s %s 1", addr) // until then it has no port, and is in no table
			x.Do("parent s")
			check := func(a *home.Attachment, processes int, shared bool, class hierarchy.ClassID) {
				t.Helper()
				if len(a.Processes) != processes || len(a.Failed) != 0 {
					t.Errorf("attached %+v, want %d processes", a, processes)
				}
				if (a.Stay != "") != (way == bind.WayNft) {
					t.Errorf("sockets stay: %q", a.Stay)
				}
				if way != bind.WayNft && (len(a.Sockets) != 1 || (len(a.Sockets[0].Shared) > 0) != shared) {
					t.Errorf("sockets %+v, want one, shared: %v", a.Sockets, shared)
				}
				only(t, n.during(t, func() { x.Do("more s %s 20", addr) }), class, 20)
			}
			after := green
			if way == bind.WayNft {
				after = red
			}
			check(n.attach(t, b, p.target(to), false, x.PID()), 1, true, after)
			check(n.attach(t, b, p.target(free), true, x.PID()), 2, false, red)
			only(t, n.during(t, func() { x.Do("udp %s 20", addr) }), red, 20)
		})
	}
}

// TestKernelAttachRefused: what cannot be moved is said, with a way on, and all else
// is moved.
func TestKernelAttachRefused(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	to := sub(t, p.dir, "to")
	b := n.binder(t, bind.WayBPF)
	apply(t, b, bound(p.target(to), green))
	x := n.start(t, n.Near, "")
	ended := tctest.Command(t, "obey") // it is told nothing
	if err := ended.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ended.Wait() }()
	for zombie := false; !zombie; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(ended.Process.Pid) + "/stat")
		if err != nil {
			t.Fatal(err)
		}
		zombie = strings.Contains(string(stat), ") Z ")
	}
	var tasks []os.DirEntry
	for end := time.Now().Add(10 * time.Second); len(tasks) < 2; time.Sleep(time.Millisecond) { // the runtime starts them
		var err error
		if tasks, err = os.ReadDir("/proc/" + strconv.Itoa(x.PID()) + "/task"); err != nil || time.Now().After(end) {
			t.Fatalf("threads %v, %v", tasks, err)
		}
	}
	thread, err := strconv.Atoi(tasks[1].Name())
	if err != nil {
		t.Fatal(err)
	}
	const none = 1 << 30
	words := map[int]string{
		1: "the first of all processes", 2: "a thread of the kernel", os.Getpid(): "this program itself",
		ended.Process.Pid: "it has ended", thread: "it is a thread of process " + strconv.Itoa(x.PID()), none: "it is not there",
	}
	asked := []int{x.PID()}
	for pid := range words {
		asked = append(asked, pid)
	}
	a := n.attach(t, b, p.target(to), true, asked...)
	for _, f := range a.Failed {
		if w := words[f.PID]; w == "" || !strings.Contains(f.Err.Error(), w) {
			t.Errorf("process %d: %v, want %q", f.PID, f.Err, w)
		}
	}
	if len(a.Failed) != len(words) || len(a.Processes) != 1 || a.Processes[0].There {
		t.Errorf("attached: %+v", a)
	}
	if a := n.attach(t, b, p.target(to), false, x.PID()); len(a.Processes) != 1 || !a.Processes[0].There {
		t.Errorf("attached once more: %+v", a)
	}
	if _, err := home.Attach(t.Context(), homes(t, b).Tree, bind.ToUser(0), []int{x.PID()}, false, nil); err == nil {
		t.Error("attached to a user")
	}
}

// TestKernelAttachUser: connections of a bound user follow the user's binding, and
// that of the branch where they are attached to while they are.
func TestKernelAttachUser(t *testing.T) {
	require(t, bind.WayBPF)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	to := sub(t, p.dir, "to")
	b := n.binder(t, bind.WayBPF)
	x, addr := n.start(t, n.Near, sub(t, p.dir, "free")), n.Far4.String()+":9"
	x.Do("nobody")
	x.Do("keep s %s", addr)
	send := func() { x.Do("more s %s 20", addr) }
	for _, class := range []hierarchy.ClassID{red, blue} {
		apply(t, b, bound("uid:65534", class), bound(p.target(to), green))
		only(t, n.during(t, send), class, 20)
	}
	n.attach(t, b, p.target(to), false, x.PID())
	only(t, n.during(t, send), green, 20)
	apply(t, b, bound("uid:65534", red))
	only(t, n.during(t, send), red, 20)
}
