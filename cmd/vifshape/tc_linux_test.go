package main

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/tctest"
)

// everything has what this kernel has of each thing that tc can make. What is
// not there is tested where it is: package vm boots such kernels.
const everything = `version = 1
[interface.eth0]
rate = "940mbit"
overhead = 18
mpu = "64b"
[interface.eth0.web]
rate = "50%"
[interface.eth0.web.api]
rate = "33mbit"
prio = 0
qdisc = { kind = "pfifo", limit = 333 }
[interface.eth0.web.odd]
rate = "1234567bit"
ceil = "7654321bit"
burst = "12345b"
cburst = "23456b"
quantum = "3001b"
qdisc = { kind = "bfifo", limit = "123456b" }
[interface.eth0.backup]
ceil = "20mbit"
[interface.eth0.backup.slow]
rate = "9600bit"
qdisc = { kind = "tbf", rate = "5mbit", burst = "20kb", latency = "50ms" }
`

// TestKernelPlanTC runs what plan --tc prints, in a network of its own, and
// holds what it makes against what apply makes. Only bursts differ: tc turns
// them into whole microseconds before the kernel's finer ticks (tc_calc_xmittime,
// tc/tc_core.c, iproute2 6.1), and so loses at most what the rate carries in one.
func TestKernelPlanTC(t *testing.T) {
	tctest.RequireProgram(t, "tc")
	ours, theirs := newNetwork(t), newNetwork(t)
	file := ours.policy("policy.toml", everything)
	script := ours.ok("plan", "--tc", file)
	const root = "tc qdisc add dev eth0 root handle 71f: htb default 2 r2q 10 direct_qlen 0\n"
	if !strings.HasPrefix(script, root) {
		t.Errorf("got\n%swant %s first", script, root)
	}
	ours.ok("apply", file)
	theirs.shell(script)
	ours.sameAsTC(ours.sending(), theirs.sending())
	if a, b := rootOptions(ours), rootOptions(theirs); a != b {
		t.Errorf("root options %q by vifshape, %q by tc", a, b)
	}

	// A change of what is there: in place, and of one queue's kind.
	file = ours.policy("policy.toml", strings.NewReplacer("33mbit", "44mbit", "333", "222", "mpu = \"64b\"", "",
		`kind = "bfifo", limit = "123456b"`, `kind = "pfifo", limit = 44`).Replace(everything))
	script = ours.ok("plan", "--tc", file)
	ours.ok("apply", file)
	theirs.shell(script)
	ours.sameAsTC(ours.sending(), theirs.sending())

	// And an end of it all.
	empty := hierarchy.Diff(theirs.state(), hierarchy.State{Device: theirs.Dev})
	var end strings.Builder
	if err := writeTC(&end, empty); err != nil {
		t.Fatal(err)
	}
	theirs.shell(end.String())
	theirs.clean()
}

// rootOptions are those of the root qdisc, which a state does not hold.
func rootOptions(n *network) string {
	for l := range strings.Lines(tctest.Output(n, n.Near, "tc", "-d", "qdisc", "show", "dev", n.Dev)) {
		if _, options, ok := strings.Cut(l, "qdisc htb 71f: root refcnt "); ok {
			_, options, _ = strings.Cut(options, " ")
			return options
		}
	}
	return "none"
}

// sameAsTC compares what apply and tc made, without the classifier, which is not
// tc's to make.
func (n *network) sameAsTC(want, got hierarchy.PortState) {
	n.Helper()
	if len(got.Classes) != len(want.Classes) {
		n.Fatalf("%d classes, not %d", len(got.Classes), len(want.Classes))
	}
	for i := range got.Classes {
		w, g := want.Classes[i], &got.Classes[i]
		for _, b := range []struct {
			name      string
			want      hierarchy.Size
			got       *hierarchy.Size
			bandwidth hierarchy.Bandwidth
		}{{"burst", w.Burst, &g.Burst, w.Rate}, {"cburst", w.CBurst, &g.CBurst, w.Ceil}} {
			microsecond := hierarchy.Size(b.bandwidth/8/1e6) + 1
			if *b.got > b.want || b.want-*b.got > microsecond {
				n.Errorf("%v: %s %v, not %v less %v at most", w.ID, b.name, *b.got, b.want, microsecond)
			}
			*b.got = b.want
		}
	}
	if d := cmp.Diff(want, got, cmpopts.EquateEmpty()); d != "" {
		n.Errorf("tc made something else (-vifshape +tc):\n%s", d)
	}
}
