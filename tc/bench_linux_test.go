package tc_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// ifb is an interface that no packet comes to, for measuring traffic control
// itself.
func ifb(t testing.TB) *bench {
	t.Helper()
	n := tctest.NetNS(t)
	if err := n.AddLink(lab.Link{Name: "ifb0", Kind: "ifb"}); err != nil {
		t.Fatal(err)
	}
	return open(t, n, "ifb0")
}

// flat is a tree with n leaves below one branch, each with a pfifo.
func (b *bench) flat(n int) *hierarchy.Tree {
	b.t.Helper()
	leaves := make([]*hierarchy.BranchSpec, n)
	for i := range leaves {
		leaves[i] = leaf(fmt.Sprintf("leaf%d", i), 100*hierarchy.Kbit, "pfifo", "limit=100")
	}
	return b.tree(100*hierarchy.Gbit, branch("all", 50*hierarchy.Gbit, leaves...))
}

// script is the tree as input for "tc -batch".
func script(t testing.TB, tree *hierarchy.Tree) string {
	t.Helper()
	var s strings.Builder
	fmt.Fprintf(&s, "qdisc add dev %s root handle 71f: htb default 2\n", tree.Port.Device)
	for br := range tree.All() {
		fmt.Fprintf(&s, "class add dev %s parent %v classid %v htb rate %dbit ceil %dbit burst %db cburst %db quantum %d prio %d\n",
			tree.Port.Device, br.Parent, br.ID, br.Rate, br.Ceil, br.Burst, br.CBurst, max(br.Quantum, 60000), br.Prio)
	}
	for br := range tree.All() {
		if limit, ok := br.Qdisc.Get("limit"); ok {
			fmt.Fprintf(&s, "qdisc add dev %s parent %v handle %x: %s limit %d\n", tree.Port.Device, br.ID, br.ID.Minor(), br.Qdisc.Kind, limit)
		}
	}
	name := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(name, []byte(s.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// cost is what one way of doing something took at best. On a machine with other
// work the processor time says more than the clock.
type cost struct{ wall, cpu time.Duration }

func (c *cost) add(wall, cpu time.Duration) {
	if c.wall == 0 {
		*c = cost{wall, cpu}
	}
	*c = cost{min(c.wall, wall), min(c.cpu, cpu)}
}

// measure adds what f takes in this process.
func (c *cost) measure(b *testing.B, f func()) {
	cpu := func() time.Duration {
		var r unix.Rusage
		if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
			b.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	start, before := time.Now(), cpu()
	f()
	c.add(time.Since(start), cpu()-before)
}

// run adds what tc takes with args; what it prints is thrown away.
func (c *cost) run(b *bench, args ...string) {
	b.t.Helper()
	cmd := exec.CommandContext(b.t.Context(), tctest.RequireProgram(b.t, "tc"), args...)
	cmd.Stderr = os.Stderr
	start := time.Now()
	err := b.net.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		b.t.Fatalf("tc %s: %v", strings.Join(args, " "), err)
	}
	c.add(time.Since(start), cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime())
}

func BenchmarkApply1000(b *testing.B)  { benchmarkApply(b, 1000) }
func BenchmarkApply10000(b *testing.B) { benchmarkApply(b, 10000) }

// benchmarkApply measures reading, planning, applying, reading back and comparing
// against tc, which only makes the same objects. Both are done in turns.
//
// Nearly all of it is the kernel's own time, for both, and it grows with the
// square of n: for each new class it looks through all there are
// (tc_bind_tclass, net/sched/sch_api.c, v6.12).
func benchmarkApply(b *testing.B, n int) {
	x := ifb(b)
	want := x.flat(n)
	file := script(b, want)
	del := func() {
		root := x.stands().Root
		x.do(hierarchy.Step{Action: hierarchy.Delete, Old: &root})
	}
	var ours, theirs cost
	for b.Loop() {
		ours.measure(b, func() {
			state := want.State()
			x.do(hierarchy.Diff(x.read(), state).Steps...)
			if left := hierarchy.Diff(x.read(), state); !left.Empty() {
				b.Fatal(left.Steps)
			}
		})
		del()
		theirs.run(x, "-batch", file)
		del()
	}
	report(b, ours, theirs)
}

// report prints what both took, and the ratios.
func report(b *testing.B, ours, theirs cost) {
	b.ReportMetric(ours.wall.Seconds()*1000, "ms")
	b.ReportMetric(theirs.wall.Seconds()*1000, "tc-ms")
	b.ReportMetric(ours.wall.Seconds()/theirs.wall.Seconds(), "x/tc")
	b.ReportMetric(ours.cpu.Seconds()/theirs.cpu.Seconds(), "cpu-x/tc")
}

// BenchmarkStats10000 measures one reading of the counters of 10,000 classes
// against "tc -s -j class show", in turns.
func BenchmarkStats10000(b *testing.B) {
	x := ifb(b)
	x.apply(x.flat(10000))
	var ours, theirs cost
	for b.Loop() {
		ours.measure(b, func() {
			if s, err := x.Stats(); err != nil || len(s) < 10000 {
				b.Fatal(len(s), err)
			}
		})
		theirs.run(x, "-s", "-j", "class", "show", "dev", x.Name)
	}
	report(b, ours, theirs)
}
