package hierarchy

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestNoLeaf(t *testing.T) {
	kinds := []Kind{{Name: "pfifo"}, {Name: "bfifo"}}
	for _, tt := range []struct{ kind, text, hint string }{
		{"prio", `qdisc "prio" is no leaf: it has bands, which are classes of their own`, "give branches a prio, 0 first to 7 last"},
		{"htb", `qdisc "htb" is no leaf: it has classes of its own`, "the branches below this one are such classes: give it some"},
		{"pfif", `qdisc "pfif" is not known`, `did you mean "pfifo"?`},
		{"quux", `qdisc "quux" is not known`, "known are pfifo, bfifo"},
	} {
		_, got := Resolve(&Spec{Interface: "eth0", BranchSpec: BranchSpec{Rate: Absolute(Gbit), Children: []*BranchSpec{
			{Name: "web", Qdisc: &RawQdisc{Kind: tt.kind}},
		}}}, kinds)
		want := []Problem{{Path: "eth0/web", Key: "qdisc", Index: -1, Text: tt.text, Hint: tt.hint}}
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s (-want +got)\n%s", tt.kind, d)
		}
	}
	for _, kind := range []string{"htb", "prio", "drr", "qfq", "ets", "hfsc", "gred", "mq", "mqprio", "multiq", "taprio", "cbs", "etf", "noqueue", "noop", "plug", "teql", "ingress", "clsact", "blackhole"} {
		if why, hint := noLeaf(kind); why == "" || hint == "" {
			t.Errorf("nothing is said of %s", kind)
		}
	}
}
