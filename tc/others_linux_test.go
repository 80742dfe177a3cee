package tc_test

import (
	"errors"
	"os/exec"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/foreign"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelOthers looks at what tc made, and sees neither the kernel's own nor
// ours.
func TestKernelOthers(t *testing.T) {
	handle := func(major uint32) hierarchy.ClassID { return hierarchy.ClassID(major << 16) }
	for _, x := range []struct {
		name string
		make [][]string // arguments of tc, DEV stands for the interface
		want foreign.Others
	}{
		{"nothing", nil, foreign.Others{}},
		{"ours", [][]string{
			{"qdisc", "add", "dev", "DEV", "root", "handle", "71f:", "htb", "default", "2"},
			{"qdisc", "add", "dev", "DEV", "clsact"},
		}, foreign.Others{}},
		{"a root qdisc", [][]string{{"qdisc", "add", "dev", "DEV", "root", "handle", "7:", "pfifo", "limit", "10"}},
			foreign.Others{Root: hierarchy.Root{Kind: "pfifo", Handle: handle(7)}}},
		{"a root qdisc with classes", [][]string{
			{"qdisc", "add", "dev", "DEV", "root", "handle", "7:", "htb"},
			{"class", "add", "dev", "DEV", "parent", "7:", "classid", "7:1", "htb", "rate", "1mbit"},
		}, foreign.Others{Root: hierarchy.Root{Kind: "htb", Handle: handle(7)}, Partial: true}},
		{"ingress", [][]string{{"qdisc", "add", "dev", "DEV", "ingress"}}, foreign.Others{Ingress: true}},
		{"filters", [][]string{
			{"qdisc", "add", "dev", "DEV", "clsact"},
			{"filter", "add", "dev", "DEV", "egress", "pref", "1", "protocol", "ip", "u32", "match", "u32", "0", "0"},
			{"filter", "add", "dev", "DEV", "egress", "pref", "5", "protocol", "all", "u32", "match", "u32", "0", "0"},
			{"filter", "add", "dev", "DEV", "ingress", "pref", "2", "protocol", "all", "u32", "match", "u32", "0", "0"},
		}, foreign.Others{
			Filters: []hook.Filter{{Kind: "u32", Pref: 1, Blocks: true}, {Kind: "u32", Pref: 5}},
			Arrive:  []hook.Filter{{Kind: "u32", Pref: 2, Blocks: true}},
		}},
		{"a filter where flows are noted", [][]string{
			{"qdisc", "add", "dev", "DEV", "clsact"},
			{"filter", "add", "dev", "DEV", "egress", "pref", "2", "protocol", "all", "u32", "match", "u32", "0", "0"},
		}, foreign.Others{Filters: []hook.Filter{{Kind: "u32", Pref: 2, BlocksNote: true}}}},
		{"filters beside the old ingress qdisc", [][]string{
			{"qdisc", "add", "dev", "DEV", "ingress"},
			{"filter", "add", "dev", "DEV", "ingress", "pref", "9", "protocol", "all", "u32", "match", "u32", "0", "0"},
		}, foreign.Others{Ingress: true, Arrive: []hook.Filter{{Kind: "u32", Pref: 9}}}},
		{"programs that receive", [][]string{
			{"qdisc", "add", "dev", "DEV", "clsact"},
			{"filter", "add", "dev", "DEV", "ingress", "pref", "1", "handle", "3", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0,"},
			{"filter", "add", "dev", "DEV", "ingress", "pref", "2", "handle", "0x71f", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0,"},
			{"filter", "add", "dev", "DEV", "egress", "pref", "2", "handle", "0x71f", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0,"},
			{"filter", "add", "dev", "DEV", "ingress", "pref", "7", "protocol", "all", "u32", "match", "u32", "0", "0"},
		}, foreign.Others{Arrive: []hook.Filter{{Kind: "bpf", Pref: 1, First: true}, {Kind: "u32", Pref: 7}}}},
		// Of one preference the last that was made comes first.
		{"programs", [][]string{
			{"qdisc", "add", "dev", "DEV", "clsact"},
			{"filter", "add", "dev", "DEV", "egress", "pref", "1", "handle", "3", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0,"},
			{"filter", "add", "dev", "DEV", "egress", "pref", "1", "handle", "0x71f", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0,"},
			{"filter", "add", "dev", "DEV", "egress", "pref", "1", "handle", "5", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0,"},
			{"filter", "add", "dev", "DEV", "egress", "pref", "2", "handle", "1", "protocol", "all", "bpf", "bytecode", "1,6 0 0 0,"},
		}, foreign.Others{Filters: []hook.Filter{{Kind: "bpf", Pref: 1, First: true}, {Kind: "bpf", Pref: 1}, {Kind: "bpf", Pref: 2}}}},
	} {
		t.Run(x.name, func(t *testing.T) {
			p := tctest.New(t, lab.PairConfig{})
			for _, args := range x.make {
				for i := range args {
					if args[i] == "DEV" {
						args[i] = p.Dev
					}
				}
				tctest.TC(t, p.Near, args...)
			}
			got, err := foreign.Look(open(t, p.Near, p.Dev).Interface)
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(x.want, got); d != "" {
				t.Errorf("others (-want +got):\n%s", d)
			}
		})
	}
}

// TestKernelLacksFilters asks for classifiers in a namespace that is there to be
// asked in, and holds the answer against what tc is told.
func TestKernelLacksFilters(t *testing.T) {
	n := tctest.NetNS(t)
	kinds := []string{"bpf", "u32", "cgroup", "matchall", "flower", "fw", "nonsense"}
	got, err := open(t, n, "lo").Hooks.Lacks(kinds...)
	if err != nil {
		t.Fatal(err)
	}
	lacks := map[string]bool{}
	for _, k := range got {
		lacks[k] = true
	}
	p := tctest.New(t, lab.PairConfig{})
	tctest.TC(t, p.Near, "qdisc", "add", "dev", p.Dev, "clsact")
	for kind, options := range map[string]string{
		"u32":      "u32 match u32 0 0",
		"cgroup":   "cgroup",
		"matchall": "matchall",
		"flower":   "flower",
		"fw":       "handle 1 fw classid 1:1",
	} {
		args := append([]string{"filter", "add", "dev", p.Dev, "egress", "protocol", "all"}, strings.Fields(options)...)
		cmd := exec.CommandContext(t.Context(), tctest.RequireProgram(t, "tc"), args...)
		var words strings.Builder
		cmd.Stderr = &words
		if err := p.Near.Start(cmd); err != nil {
			t.Fatal(err)
		}
		// The options are not what the kernel wants everywhere; it looks for the kind first.
		err := cmd.Wait()
		has := err == nil || !strings.Contains(words.String(), "not found") && !strings.Contains(words.String(), "No such file")
		if has == lacks[kind] {
			t.Errorf("filter %s: lacking is %t, and tc made one: %t (%s)", kind, lacks[kind], err == nil, &words)
		}
	}
	if !lacks["nonsense"] || lacks["bpf"] {
		t.Errorf("of %q it lacks %q", kinds, got)
	}
	if _, err := open(t, n, "lo").Hooks.Lacks("bpf"); err == nil || errors.Is(err, rtnl.ErrNotSupported) {
		t.Errorf("where clsact stands: %v", err)
	}
}

// TestKernelHasIFB: the answer is that of making one, and nothing is made by asking.
func TestKernelHasIFB(t *testing.T) {
	n := tctest.NetNS(t)
	b := open(t, n, "lo")
	got, err := link.HasIFB(b.conn)
	if err != nil {
		t.Fatal(err)
	}
	links, err := link.List(b.conn)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if l.Kind == "ifb" {
			t.Errorf("%s was made by asking", l.Name)
		}
	}
	if want := tctest.HasLink(t, "ifb"); got != want {
		t.Errorf("HasIFB = %t, and making one: %t", got, want)
	}
}

// TestKernelHasRedirect: the answer is that of making a filter with the action.
func TestKernelHasRedirect(t *testing.T) {
	p := tctest.New(t, lab.PairConfig{})
	got, err := hook.HasRedirect(open(t, p.Near, p.Dev).conn)
	if err != nil {
		t.Fatal(err)
	}
	tctest.TC(t, p.Near, "qdisc", "add", "dev", p.Dev, "clsact")
	cmd := exec.CommandContext(t.Context(), tctest.RequireProgram(t, "tc"), "filter", "add", "dev", p.Dev, "ingress", "protocol", "all",
		"bpf", "bytecode", "1,6 0 0 0,", "action", "mirred", "egress", "redirect", "dev", p.Dev)
	made := p.Near.Start(cmd)
	if made == nil {
		made = cmd.Wait()
	}
	if want := made == nil; got != want {
		t.Errorf("HasRedirect = %t, and making one: %v", got, made)
	}
}
