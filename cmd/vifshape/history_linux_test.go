package main

import (
	"os"
	"strings"
	"testing"
	"time"
)

// historyPolicy has a branch whose rate tells one policy from another.
func historyPolicy(rate string) string {
	return "version = 1\n[interface.eth0]\nrate = \"100mbit\"\n[interface.eth0.web]\nrate = \"" + rate + "\"\n"
}

// TestKernelHistory holds which state is kept as the one before the last apply: after an
// apply, one that says nothing new, one that fails, one that is killed, and after what is
// done at run time.
func TestKernelHistory(t *testing.T) {
	n := newNetwork(t)
	a, b, c := n.policy("a.toml", historyPolicy("10mbit")), n.policy("b.toml", historyPolicy("20mbit")), n.policy("c.toml", historyPolicy("30mbit"))
	huge := n.policy("huge.toml", many(manyLeaves, "1mbit"))
	holds := func(when, now, before string) {
		t.Helper()
		r, err := n.store.Load(n.Dev)
		if err != nil {
			t.Fatal(err)
		}
		if r.Policy != now {
			t.Errorf("%s the record is of %s, not %s", when, r.Policy, now)
		}
		spec, err := n.store.Spec(r)
		if err != nil || spec.Interface != n.Dev || len(spec.Children) == 0 {
			t.Errorf("%s the policy says %+v, %v", when, spec, err)
		}
		was, err := n.store.Before(r)
		switch {
		case err != nil:
			t.Fatal(err)
		case was == nil:
			if before != "" {
				t.Errorf("%s nothing is before it, not %s", when, before)
			}
		case was.Policy != before || was.Applied.IsZero() || was.Applied.After(time.Now()) || was.Applied.After(r.Applied):
			t.Errorf("%s %s of %v is before it, not %s", when, was.Policy, was.Applied, before)
		}
	}
	n.ok("apply", a)
	holds("after the first apply", a, "")
	n.ok("apply", b)
	holds("after the second apply", b, a)
	n.ok("apply", b)
	holds("after the same apply", b, a)
	n.ok("bind", "eth0/web", "user:4711")
	n.ok("add", "eth0/web/more", "--rate", "1mbit")
	holds("after bind and add", b, a)
	n.ok("apply", c)
	holds("after the third apply", c, b)
	r, err := n.store.Load(n.Dev)
	if err != nil {
		t.Fatal(err)
	}
	was, err := n.store.Before(r)
	if err != nil || len(was.Added) != 1 || len(was.Bindings) != 1 || !was.Bindings[0].AtRuntime || was.Spec.Children[0].Rate.String() != "20mbit" {
		t.Errorf("before it was %+v, %v", was, err)
	}
	n.ok("unbind", "eth0/web", "user:4711")
	n.ok("remove", "eth0/web/more")
	holds("after unbind and remove", c, b)

	end := func(signal os.Signal) result {
		t.Helper()
		before := len(n.sending().Classes)
		r := n.start(n.command("apply", huge))
		n.until("the first change", func() bool { return len(n.sending().Classes) > before })
		if err := r.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		return r.wait()
	}
	n.failed(end(os.Interrupt), exitInterrupted, "everything is as it was before")
	holds("after an apply that failed", c, b)
	if got := end(os.Kill); got.code != -1 {
		t.Fatalf("it was not killed: %v", got)
	}
	holds("after an apply that was killed", huge, c)
	n.ok("apply", huge)
	holds("after the same apply once more", huge, c)
	n.ok("apply", c)
	holds("after the apply of what was before", c, huge)

	n.ok("clear")
	n.clean()
	if ents, err := os.ReadDir(n.store.Dir); err == nil {
		for _, e := range ents {
			if strings.HasPrefix(e.Name(), n.Dev) {
				t.Errorf("%s is left", e.Name())
			}
		}
	}
}
