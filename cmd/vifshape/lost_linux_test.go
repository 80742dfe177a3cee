package main

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
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
			n.device(func(d *tc.Device) error { return d.DetachEgress() })
		},
		"of eth0/b is gone": func() {
			r, err := n.store.load(n.Dev)
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

	a, said = n.agent("--repair"), 0
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

// TestRepairs: who fights with the agent waits longer each time.
func TestRepairs(t *testing.T) {
	var r repairs
	now := time.Unix(1e9, 0)
	for _, want := range []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second} {
		if got := r.wait(now); got != want {
			t.Errorf("waits %v, not %v", got, want)
		}
		now = now.Add(want)
		if got := r.wait(now); got != 0 {
			t.Errorf("waits %v after it", got)
		}
		r.done(now)
	}
	for range 100 {
		now = now.Add(r.wait(now))
		r.done(now)
	}
	if got := r.wait(now); got != longestWait {
		t.Errorf("waits %v in the end, not %v", got, longestWait)
	}
	if got := r.wait(now.Add(2 * longestWait)); got != 0 {
		t.Errorf("waits %v though it stood for a while", got)
	}
}
