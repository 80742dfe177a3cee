package tc_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// monitor is a monitor of a network namespace, with what it has told of each
// interface.
type monitor struct {
	*testing.T
	*rtnl.Monitor[link.Event]
	told map[string]string
}

func newMonitor(t *testing.T, n *lab.NetNS) *monitor {
	t.Helper()
	m, err := link.Watch(rtnl.Config{NetNS: n.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() }) // once more where a test has closed it
	return &monitor{t, m, map[string]string{}}
}

// next holds what the next event of an interface tells that is new.
func (m *monitor) next(name, want string) {
	m.Helper()
	for {
		events, err := m.Receive(m.Context())
		if err != nil {
			m.Fatal(err)
		}
		for _, e := range events {
			words := fmt.Sprintf("index %t master %t gone %t", e.Link.Index > 0, e.Link.Master != 0, e.Gone)
			if e.Link.Name != name || m.told[name] == words {
				continue
			}
			m.told[name] = words
			if diff := cmp.Diff(want, words); diff != "" {
				m.Fatalf("%s (-want +got)\n%s", name, diff)
			}
			return
		}
	}
}

// must holds that a step of a test has worked.
func (m *monitor) must(err error) {
	m.Helper()
	if err != nil {
		m.Fatal(err)
	}
}

// TestKernelLinkMonitor: each change of an interface is told once it is made, and
// what a bridge says of its ports is none.
func TestKernelLinkMonitor(t *testing.T) {
	tctest.RequireLink(t, "bridge")
	n := tctest.NetNS(t)
	m := newMonitor(t, n)
	m.must(n.AddLink(lab.Link{Name: "br0", Kind: "bridge"}))
	m.next("br0", "index true master false gone false")
	m.must(lab.AddVeth(n, lab.Link{Name: "a0"}, n, lab.Link{Name: "b0"}))
	m.next("a0", "index true master false gone false")
	m.must(lab.AddVeth(n, lab.Link{Name: "port0", Master: "br0"}, n, lab.Link{Name: "in0"}))
	m.next("port0", "index true master false gone false")
	m.next("port0", "index true master true gone false")
	m.must(n.DeleteLink("br0"))
	m.next("port0", "index true master false gone false")
	m.next("br0", "index true master false gone true")
	m.must(n.DeleteLink("a0"))
	m.next("a0", "index true master false gone true")

	done := make(chan error)
	go func() {
		_, err := m.Receive(t.Context())
		for err == nil {
			_, err = m.Receive(t.Context())
		}
		done <- err
	}()
	m.must(m.Close())
	if err := <-done; err == nil || errors.Is(err, rtnl.ErrMissed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestLinkMonitorMissed: one that sleeps says that it has missed something, once all
// that the kernel kept is out of the way, and hears what comes then.
func TestLinkMonitorMissed(t *testing.T) {
	tctest.RequireLink(t, "bridge")
	n := tctest.NetNS(t)
	m := newMonitor(t, n)
	m.must(n.AddLink(lab.Link{Name: "br0", Kind: "bridge"}))
	for range 4000 { // more than the buffer holds
		m.must(n.SetDown("br0"))
		m.must(n.SetUp("br0"))
	}
	var err error
	for err == nil {
		_, err = m.Receive(t.Context())
	}
	if !errors.Is(err, rtnl.ErrMissed) {
		t.Fatalf("%v, want %v", err, rtnl.ErrMissed)
	}
	m.must(n.AddLink(lab.Link{Name: "last", Kind: "bridge"}))
	m.next("last", "index true master false gone false")
}

// TestKernelChangeMonitor: an interface of which something is made, changed or taken away is
// told of, and that of no other.
func TestKernelChangeMonitor(t *testing.T) {
	n := tctest.NetNS(t)
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(lab.AddVeth(n, lab.Link{Name: "a0"}, n, lab.Link{Name: "b0"}))
	c, err := rtnl.Open(rtnl.Config{NetNS: n.FD()})
	must(err)
	defer c.Close()
	m, err := tc.WatchChanges(rtnl.Config{NetNS: n.FD()}, nil)
	must(err)
	defer m.Close()
	a, err := tc.Find(c, "a0")
	must(err)
	b, err := tc.Find(c, "b0")
	must(err)
	root := &hierarchy.Root{Kind: "htb", Handle: hierarchy.ID(0)}
	class := &hierarchy.Class{ID: hierarchy.ID(1), Parent: hierarchy.ID(0), Rate: hierarchy.Mbit, Ceil: hierarchy.Mbit, Burst: hierarchy.KiB * 16, CBurst: hierarchy.KiB * 16, Quantum: 1500}
	spare := *class
	spare.ID = hierarchy.ID(3)
	do := func(d *tc.Device, steps ...hierarchy.Step) {
		t.Helper()
		_, err := d.Do(t.Context(), steps)
		must(err)
	}
	next := func(index uint32, gone bool) {
		t.Helper()
		got, err := m.Receive(t.Context())
		must(err)
		if diff := cmp.Diff([]tc.Change{{Index: int(index), Gone: gone}}, got); diff != "" {
			t.Fatalf("(-want +got)\n%s", diff)
		}
	}
	for _, d := range []*tc.Device{a, b} {
		for _, item := range []hierarchy.Item{root, class, &spare} {
			do(d, hierarchy.Step{Action: hierarchy.Create, New: item})
			next(d.Index, false)
		}
	}
	slower := spare
	slower.Rate /= 2
	do(a, hierarchy.Step{Action: hierarchy.Change, Old: &spare, New: &slower})
	next(a.Index, false)
	do(b, hierarchy.Step{Action: hierarchy.Delete, Old: &spare})
	next(b.Index, true)
	do(a, hierarchy.Step{Action: hierarchy.Delete, Old: root})
	next(a.Index, true)
	do(b, hierarchy.Step{Action: hierarchy.Delete, Old: root})
	next(b.Index, true)
}
