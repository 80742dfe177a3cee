package tc_test

import (
	"slices"
	"testing"

	gotc "github.com/florianl/go-tc"
	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// What go-tc makes is what we read, and what we make is what it reads, as far as
// it can: no rate-limited leaves, and times only in whole microseconds.
func TestKernelContract(t *testing.T) {
	b, p := veth(t)
	lib, err := gotc.Open(&gotc.Config{NetNS: p.Near.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer lib.Close()
	tree := b.tree(100*hierarchy.Gbit, branch("all", 50*hierarchy.Gbit, leaf("a", hierarchy.Mbit, "pfifo"), leaf("b", 3*hierarchy.Mbit, "bfifo")), leaf("rest", hierarchy.Gbit, "pfifo"))
	b.apply(tree)
	want := bare(b.read())

	classes, err := lib.Class().Get(&gotc.Msg{Ifindex: b.Index})
	if err != nil {
		t.Fatal(err)
	}
	qdiscs, err := lib.Qdisc().Get()
	if err != nil {
		t.Fatal(err)
	}
	qdiscs = slices.DeleteFunc(qdiscs, func(q gotc.Object) bool {
		return q.Ifindex != b.Index || q.Parent>>16 != hierarchy.Major
	})
	if len(classes) != len(want.Classes) || len(qdiscs) != len(want.Leaves) {
		t.Fatalf("go-tc reads %d classes and %d leaf qdiscs", len(classes), len(qdiscs))
	}

	// All of it anew, by go-tc from what it read.
	root := b.stands().Root
	b.do(hierarchy.Step{Action: hierarchy.Delete, Old: &root}, hierarchy.Step{Action: hierarchy.Create, New: &root})
	slices.SortFunc(classes, func(x, y gotc.Object) int { return int(y.Htb.Parms.Level) - int(x.Htb.Parms.Level) })
	for _, c := range classes {
		err := lib.Class().Add(&gotc.Object{
			Msg:       gotc.Msg{Family: unix.AF_UNSPEC, Ifindex: b.Index, Handle: c.Handle, Parent: c.Parent},
			Attribute: gotc.Attribute{Kind: "htb", Htb: &gotc.Htb{Parms: c.Htb.Parms, Rate64: c.Htb.Rate64, Ceil64: c.Htb.Ceil64}},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, q := range qdiscs {
		err := lib.Qdisc().Add(&gotc.Object{
			Msg:       gotc.Msg{Family: unix.AF_UNSPEC, Ifindex: b.Index, Handle: q.Handle, Parent: q.Parent},
			Attribute: gotc.Attribute{Kind: q.Kind, Pfifo: q.Pfifo, Bfifo: q.Bfifo},
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if d := cmp.Diff(want, bare(b.read())); d != "" {
		t.Errorf("state (-want +got)\n%s", d)
	}
}
