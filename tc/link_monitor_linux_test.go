package tc_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelLinkMonitor: each change of an interface is told once it is made, what a
// bridge says of its ports is none, and a monitor that sleeps says so and goes on.
func TestKernelLinkMonitor(t *testing.T) {
	tctest.RequireLink(t, "bridge")
	n := tctest.NetNS(t)
	m, err := tc.MonitorLinks(tc.Config{NetNS: n.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() }) // closed already when all went well
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// next is the next event of an interface that is new in the words that follow.
	told := map[string]string{}
	next := func(name, want string) {
		t.Helper()
		for {
			events, err := m.Receive()
			must(err)
			for _, e := range events {
				words := fmt.Sprintf("index %t master %t gone %t", e.Link.Index > 0, e.Link.Master != 0, e.Gone)
				if e.Link.Name != name || told[name] == words {
					continue
				}
				told[name] = words
				if diff := cmp.Diff(want, words); diff != "" {
					t.Fatalf("%s (-want +got)\n%s", name, diff)
				}
				return
			}
		}
	}
	must(n.AddLink(lab.Link{Name: "br0", Kind: "bridge"}))
	next("br0", "index true master false gone false")
	must(lab.AddVeth(n, lab.Link{Name: "a0"}, n, lab.Link{Name: "b0"}))
	next("a0", "index true master false gone false")
	must(lab.AddVeth(n, lab.Link{Name: "port0", Master: "br0"}, n, lab.Link{Name: "in0"}))
	next("port0", "index true master false gone false")
	next("port0", "index true master true gone false")
	must(n.DeleteLink("a0"))
	next("a0", "index true master false gone true")

	for range 6000 { // more than the buffer holds
		must(n.SetDown("br0"))
		must(n.SetUp("br0"))
	}
	for err = error(nil); err == nil; {
		_, err = m.Receive()
	}
	if !errors.Is(err, tc.ErrMissed) {
		t.Fatalf("%v, want %v", err, tc.ErrMissed)
	}
	must(n.AddLink(lab.Link{Name: "last", Kind: "bridge"}))
	next("last", "index true master false gone false")

	done := make(chan error)
	go func() {
		_, err := m.Receive()
		for err == nil {
			_, err = m.Receive()
		}
		done <- err
	}()
	must(m.Close())
	if err := <-done; err == nil || errors.Is(err, tc.ErrMissed) {
		t.Errorf("after Close: %v", err)
	}
}
