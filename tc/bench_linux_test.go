package tc_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

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
	fmt.Fprintf(&s, "qdisc add dev %s root handle 71f: htb default 2\n", tree.Interface)
	for br := range tree.All() {
		fmt.Fprintf(&s, "class add dev %s parent %v classid %v htb rate %dbit ceil %dbit burst %db cburst %db quantum %d prio %d\n",
			tree.Interface, br.Parent, br.ID, br.Rate, br.Ceil, br.Burst, br.CBurst, max(br.Quantum, 60000), br.Prio)
	}
	for br := range tree.All() {
		if limit, ok := br.Qdisc.Get("limit"); ok {
			fmt.Fprintf(&s, "qdisc add dev %s parent %v handle %x: %s limit %d\n", tree.Interface, br.ID, br.ID.Minor(), br.Qdisc.Kind, limit)
		}
	}
	name := filepath.Join(t.TempDir(), "script")
	if err := os.WriteFile(name, []byte(s.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// run is the time that tc takes with args; what it prints is thrown away.
func (b *bench) run(args ...string) time.Duration {
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
	return time.Since(start)
}

func BenchmarkApply1000(b *testing.B)  { benchmarkApply(b, 1000) }
func BenchmarkApply10000(b *testing.B) { benchmarkApply(b, 10000) }

// benchmarkApply measures reading, planning, applying, reading back and comparing
// against tc, which only makes the same objects. Both are done in turns. The
// figures are milliseconds of the quicker runs and their ratio.
func benchmarkApply(b *testing.B, n int) {
	x := ifb(b)
	want := x.flat(n)
	file := script(b, want)
	del := func() {
		root := x.read().Root
		x.do(hierarchy.Step{Action: hierarchy.Delete, Old: &root})
	}
	ours, theirs := time.Hour, time.Hour
	for b.Loop() {
		start := time.Now()
		state := want.State()
		plan := hierarchy.Diff(x.read(), state)
		x.do(plan.Steps...)
		if left := hierarchy.Diff(x.read(), state); !left.Empty() {
			b.Fatal(left.Steps)
		}
		ours = min(ours, time.Since(start))
		del()
		theirs = min(theirs, x.run("-batch", file))
		del()
	}
	report(b, ours, theirs)
}

// report prints two times and their ratio.
func report(b *testing.B, ours, theirs time.Duration) {
	b.ReportMetric(ours.Seconds()*1000, "ms")
	b.ReportMetric(theirs.Seconds()*1000, "tc-ms")
	b.ReportMetric(ours.Seconds()/theirs.Seconds(), "x/tc")
}

// BenchmarkStats10000 measures one reading of the counters of 10,000 classes
// against "tc -s -j class show", in turns.
func BenchmarkStats10000(b *testing.B) {
	x := ifb(b)
	x.apply(x.flat(10000))
	ours, theirs := time.Hour, time.Hour
	for b.Loop() {
		start := time.Now()
		s, err := x.Stats()
		if err != nil || len(s) < 10000 {
			b.Fatal(len(s), err)
		}
		ours = min(ours, time.Since(start))
		theirs = min(theirs, x.run("-s", "-j", "class", "show", "dev", x.Name))
	}
	report(b, ours, theirs)
}
