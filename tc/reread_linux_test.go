package tc_test

import (
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelReread holds that looking again at what a plan touched shows what
// looking at everything shows.
func TestKernelReread(t *testing.T) {
	p := tctest.New(t, lab.PairConfig{})
	b := open(t, p.Near, p.Dev)
	const mbit = hierarchy.Mbit
	trees := []*hierarchy.Tree{
		b.tree(100*mbit, branch("a", 40*mbit, leaf("x", 10*mbit, "pfifo", "limit=100"), leaf("y", 10*mbit, "pfifo", "limit=100"))),
		b.tree(100*mbit, branch("a", 40*mbit, leaf("x", 20*mbit, "pfifo", "limit=200"), leaf("y", 10*mbit, "pfifo", "limit=100"))), // change
		b.tree(100*mbit, branch("a", 40*mbit, leaf("x", 20*mbit, "pfifo", "limit=200")), leaf("b", 10*mbit, "bfifo")),              // create, delete
		b.tree(100*mbit, leaf("a", 40*mbit, "pfifo", "limit=100")),                                                                 // inner to leaf
	}
	b.apply(trees[0])
	for i, tree := range trees[1:] {
		before := b.read()
		plan := hierarchy.Diff(before, tree.State())
		b.do(plan.Steps...)
		again, is := hierarchy.State{Device: before.Device}, before.On(b.Port())
		is.Classes, is.Leaves = slices.Clone(is.Classes), slices.Clone(is.Leaves)
		again.Set(is)
		if err := b.Reread(t.Context(), &again, plan.Steps); err != nil {
			t.Fatal(err)
		}
		if left := hierarchy.Diff(again, b.read()); !left.Empty() {
			t.Errorf("edit %d: read again and read in full differ: %v", i+1, left.Steps)
		}
		if left := hierarchy.Diff(again, tree.State()); !left.Empty() {
			t.Errorf("edit %d: the kernel shows something else than was asked for: %v", i+1, left.Steps)
		}
	}
	// A root qdisc that goes is seen, too.
	again := b.read()
	root := again.On(b.Port()).Root
	step := hierarchy.Step{Action: hierarchy.Delete, Old: &root}
	b.do(step)
	if err := b.Reread(t.Context(), &again, []hierarchy.Step{step}); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(b.read(), again); d != "" {
		t.Errorf("without a root qdisc (-full +again)\n%s", d)
	}
}
