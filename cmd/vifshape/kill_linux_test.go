package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/tctest"
)

const editedPolicy = `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.web]
rate = "40mbit"
bind = ["user:54321"]
[interface.eth0.batch]
rate = "20mbit"
qdisc = { kind = "pfifo", limit = 77 }
`

// TestKernelKillEverywhere: a program that is killed before any of its changes leaves an
// interface that passes traffic, shaped if it was and should be, show tells what is there, the
// next one carries on to its end, and clear takes away all of it. It tries every fourth change,
// from one by chance; with VIFSHAPE_KILL_EVERYWHERE all of them, which takes four times as long.
func TestKernelKillEverywhere(t *testing.T) {
	tctest.RequireProgram(t, "tc") // that nothing is left
	n := newNetwork(t)
	small, edited := n.policy("small.toml", smallPolicy), n.policy("edited.toml", editedPolicy)
	renamed := n.policy("renamed.toml", strings.Replace(strings.ReplaceAll(smallPolicy, "eth0.web", "eth0.www"), "[interface.eth0.www]", "[interface.eth0.www]\nrenamed_from = \"web\"", 1))
	for _, x := range []struct {
		name   string
		before [][]string // commands
		args   []string
		then   string // the policy that is applied after; empty: small
		shaped bool   // all the time
	}{
		{"first apply", nil, []string{"apply", small}, "", false},
		{"another apply", [][]string{{"apply", small}}, []string{"apply", edited}, edited, true},
		{"other names", [][]string{{"apply", small}, {"add", "--rate", "5mbit", "eth0/web/more"}}, []string{"apply", renamed}, renamed, true},
		{"bind", [][]string{{"apply", small}}, []string{"bind", "eth0/web/api", "user:54322"}, "", true},
		{"add", [][]string{{"apply", small}}, []string{"add", "--rate", "5mbit", "eth0/web/more"}, "", true},
		{"rollback", [][]string{{"apply", small}, {"apply", edited}}, []string{"rollback"}, "", true},
		{"clear", [][]string{{"apply", edited}}, []string{"clear"}, "", false},
		{"enable", nil, []string{"enable", "--policies", n.enabled(), small}, filepath.Join(n.enabled(), "small.toml"), false},
		{"agent", [][]string{{"enable", "--policies", n.enabled(), small}, {"clear"}}, []string{"agent", "--policies", n.enabled()}, filepath.Join(n.enabled(), "small.toml"), false},
		{"disable", [][]string{{"enable", "--policies", n.enabled(), small}}, []string{"disable", "--policies", n.enabled(), "small"}, "", false},
	} {
		t.Run(x.name, func(t *testing.T) {
			n.killEach(t, 4, x.before, x.args, x.shaped, func() error { return n.afterKill(x.then, small) })
		})
	}
}

// TestKernelKillLimits is TestKernelKillEverywhere for limits: the same command again brings it
// to its end, and unlimit takes away all of it. It tries each twentieth change, or with VIFSHAPE_KILL_EVERYWHERE all of them.
func TestKernelKillLimits(t *testing.T) {
	tctest.RequireProgram(t, "tc") // that nothing is left
	n := newNetwork(t)
	small := n.policy("small.toml", smallPolicy)
	apply, other := []string{"apply", small}, []string{"limit", "user:54323", "--on", "eth0", "4mbit"}
	limit, unlimit := []string{"limit", "user:54322", "--on", "eth0", "5mbit"}, []string{"unlimit", "user:54322"}
	for _, x := range []struct {
		name   string
		before [][]string
		args   []string
		policy string // that is in force, whatever becomes of limits
		shaped bool   // all the time
	}{
		{"limit", nil, limit, "", false},
		{"limit beside a policy", [][]string{apply}, limit, small, true},
		{"limit again", [][]string{other, limit}, []string{"limit", "user:54322", "--on", "eth0", "--up", "6mbit"}, "", true},
		{"unlimit the last", [][]string{limit}, unlimit, "", false},
		{"unlimit one of two", [][]string{other, limit}, unlimit, "", true},
		{"unlimit beside a policy", [][]string{apply, limit}, unlimit, small, true},
		{"run", nil, []string{"run", "--on", "eth0", "--up", "5mbit", "--", "true"}, "", false},
		{"run beside a policy", [][]string{apply}, []string{"run", "--on", "eth0", "--up", "5mbit", "--", "true"}, small, true},
		{"rollback to limits", [][]string{apply, limit}, []string{"rollback"}, "", true},
	} {
		t.Run(x.name, func(t *testing.T) {
			n.killEach(t, 20, x.before, x.args, x.shaped, func() error { return n.afterKilledLimit(x.args, x.policy) })
		})
	}
}

// killEach kills a program at every so many of its changes, or all of them, and after each
// calls a function that leaves nothing behind.
func (n *network) killEach(t *testing.T, every int, before [][]string, args []string, shaped bool, after func() error) {
	if os.Getenv("VIFSHAPE_KILL_EVERYWHERE") != "" {
		every = 1
	}
	limit := time.Minute
	if args[0] == "agent" { // which ends when it is told to
		limit = time.Second
	}
	first := every / 2
	last, tried := "", 0
	for point := first; point == first || last != ""; point += every {
		for _, args := range before {
			n.ok(args...)
		}
		if err := n.Near.Do(func() (err error) {
			last, err = tctest.KillAt(n.command(args...), point, limit)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if shaped && !n.sending().Root.Ours() {
			t.Errorf("killed at %d (%s): it is not shaped any more", point, last)
		}
		if err := after(); err != nil {
			t.Errorf("killed at %d (%s): %v", point, last, err)
		}
		if last != "" {
			tried++
		}
	}
	if tried < 24/every {
		t.Errorf("it was killed at %d points: that are not all", tried)
	}
	t.Logf("killed at %d points, from %d on each %d", tried, first, every)
}

// afterKill holds what must hold then, and clears.
func (n *network) afterKill(then, small string) error {
	n.Helper()
	if then == "" {
		then = small
	}
	if strings.HasPrefix(then, n.enabled()) { // may not be there yet
		n.ok("enable", "--policies", n.enabled(), small)
	}
	if r := n.run("show"); r.code != 0 && r.code != exitError || strings.Count(r.stderr, "vifshape: error: ") > 1 {
		return fmt.Errorf("show: %v", r)
	}
	if err := n.reaches(); err != nil {
		return err
	}
	if r := n.run("apply", then); r.code != 0 {
		return fmt.Errorf("apply: %v", r)
	}
	if r := n.run("plan", "--detailed-exitcode", then); r.code != 0 {
		return fmt.Errorf("plan after apply: %v", r)
	}
	if r := n.run("clear"); r.code != 0 {
		return fmt.Errorf("clear: %v", r)
	}
	n.clean()
	return os.RemoveAll(n.enabled())
}

// reaches holds that a datagram comes to the far end.
func (n *network) reaches() error {
	n.Helper()
	to := netip.AddrPortFrom(n.Far4, 9001).String()
	var far net.PacketConn
	if err := n.Far.Do(func() (err error) {
		far, err = net.ListenPacket("udp", to)
		return err
	}); err != nil {
		return err
	}
	defer far.Close()
	if err := n.Near.Do(func() error {
		near, err := net.Dial("udp", to)
		if err != nil {
			return err
		}
		defer near.Close()
		_, err = near.Write([]byte("here"))
		return err
	}); err != nil {
		return err
	}
	if err := far.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	_, _, err := far.ReadFrom(make([]byte, 16))
	return err
}

// afterKilledLimit holds what must hold after a command of limits, and takes all away.
func (n *network) afterKilledLimit(args []string, policy string) error {
	n.Helper()
	if r := n.run("show"); r.code != 0 && r.code != exitError || strings.Count(r.stderr, "vifshape: error: ") > 1 {
		return fmt.Errorf("show: %v", r)
	}
	if r := n.run("limits"); r.code != 0 || r.stderr != "" && !strings.Contains(r.stderr, "there are no limits") {
		return fmt.Errorf("limits: %v", r)
	}
	if err := n.reaches(); err != nil {
		return err
	}
	again := n.run(args...)
	done := args[0] == "unlimit" && strings.Contains(again.stderr, "there is no limit on") || args[0] == "rollback"
	if again.code != 0 && !done {
		return fmt.Errorf("again: %v", again)
	}
	if args[0] == "run" {
		n.until("the end of the limit", func() bool { return n.ok("limits") == "" })
	}
	if r := n.run("show"); r.code != 0 {
		return fmt.Errorf("show, then: %v", r)
	}
	if r := n.run("unlimit", "--all"); r.code != 0 {
		return fmt.Errorf("unlimit --all: %v", r)
	}
	if policy != "" {
		if r := n.run("plan", "--detailed-exitcode", policy); r.code != 0 || r.stderr != "" {
			return fmt.Errorf("plan: %v", r)
		}
	}
	if policy != "" || args[0] == "rollback" {
		n.ok("clear")
	}
	n.clean()
	return nil
}
