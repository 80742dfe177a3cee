package tc_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelLacks asks for qdiscs that are no leaves, and holds that nothing is
// made by asking, whatever stands at the root and at the hooks.
func TestKernelLacks(t *testing.T) {
	p := tctest.New(t, lab.PairConfig{})
	b := open(t, p.Near, p.Dev)
	show := func() string { return tctest.TC(t, p.Near, "qdisc", "show", "dev", p.Dev) }
	for _, args := range [][]string{
		nil,
		{"qdisc", "add", "dev", p.Dev, "root", "handle", "1:", "htb"},
		{"qdisc", "add", "dev", p.Dev, "clsact"},
	} {
		if args != nil {
			tctest.TC(t, p.Near, args...)
		}
		before := show()
		got, err := qdisc.Ask(b.Device.Interface).Lacks(t.Context(), "htb", "clsact", "nonsense")
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff([]string{"nonsense"}, got); d != "" {
			t.Errorf("after %q the kernel lacks (-want +got):\n%s", args, d)
		}
		if d := cmp.Diff(before, show()); d != "" {
			t.Errorf("asking changed something (-before +after):\n%s", d)
		}
	}
	// Every kernel on which these tests run has it; attaching is tested elsewhere.
	if has, known := hook.HasBPF(); !has && known {
		t.Error("the BPF classifier is in no list")
	}
}
