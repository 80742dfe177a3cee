package hierarchy_test

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/vifshape/vifshape/"

// rooms are the places of packages, each with those of ours that a package there may
// import, and the sentence that says why no others. The longest path counts that a
// package lies at or below; in may, "tc/..." is tc and all below it.
var rooms = []struct{ path, may, why string }{
	{"hierarchy", "hierarchy/bind hierarchy/match", "hierarchy is the model and knows nobody but its own words"},
	{"hierarchy/bind", "", "bind has the words for what is bound, and knows neither trees nor machines"},
	{"hierarchy/match", "", "match has the words for packets, and knows neither trees nor machines"},
	{"hierarchy/amend", "hierarchy hierarchy/bind hierarchy/emulate", "amend is a part of the model"},
	{"hierarchy/emulate", "hierarchy", "emulate makes leaves of the figures of a link, and knows neither kinds of qdiscs nor machines"},

	{"policy", "hierarchy/...", "policy makes TOML into the model: only cmd knows it beside tc and cgroup"},

	{"tc", "hierarchy/... tc/...", "tc makes the model into rtnetlink: only cmd knows it beside policy and cgroup"},
	{"tc/rtnl", "hierarchy/...", "rtnl is below all of tc"},
	{"tc/qdisc", "hierarchy/... tc/rtnl", "a kind of qdisc knows messages, and nobody who makes it"},
	{"tc/link", "hierarchy/... tc/rtnl", "an interface does not know what is made of it"},
	{"tc/hook", "hierarchy/... tc/rtnl tc/link", "a hook does not know what is classified for"},
	{"tc/foreign", "hierarchy/... tc/rtnl tc/link tc/hook", "what others made does not depend on what is ours"},
	{"tc/latency", "hierarchy", "latency has programs at queues, which it is told of, and knows neither trees nor messages"},
	{"tc/survey", "hierarchy/... tc tc/rtnl tc/qdisc tc/link", "a survey stands beside tc, and changes nothing"},
	{"tc/lab", "hierarchy/...", "what lies below tc does not look up"},
	{"tc/tctest", "hierarchy/... tc/lab tc/tctest/...", "what lies below tc does not look up"},

	{"tc/tctest/office", "hierarchy/... tc/link", "the office has interfaces, and nothing is made of them"},

	{"cgroup", "hierarchy/... cgroup/...", "cgroup makes the model into bindings: only cmd knows it beside policy and tc"},
	{"cgroup/caps", "", "caps explains refusals, and knows nothing that is refused"},
	{"cgroup/cgroupfs", "hierarchy/... cgroup/caps", "cgroupfs has cgroups as files, and knows nobody who uses them"},
	{"cgroup/socket", "hierarchy/... cgroup/caps cgroup/cgroupfs", "which sockets are open has nothing to do with what they are bound to"},
	{"cgroup/home", "hierarchy/... cgroup/caps cgroup/cgroupfs cgroup/socket", "homes are cgroups of branches, and know no Binder"},
	{"cgroup/confine", "hierarchy/... cgroup/caps cgroup/cgroupfs", "a program is kept in without a Binder"},
	{"cgroup/iface", "hierarchy/... cgroup/caps", "which interfaces there are has nothing to do with what they are bound to"},
	{"cgroup/way", "hierarchy/... cgroup/caps", "what a way of binding is knows no single one"},
	{"cgroup/nft", "hierarchy/... cgroup/caps cgroup/cgroupfs cgroup/iface cgroup/way", "a way of binding knows neither the others nor who chooses"},
	{"cgroup/netcls", "hierarchy/... cgroup/caps cgroup/cgroupfs cgroup/way", "a way of binding knows neither the others nor who chooses"},
	{"cgroup/bpf", "hierarchy/... cgroup/caps cgroup/cgroupfs cgroup/home cgroup/iface cgroup/socket cgroup/way", "a way of binding knows neither the others nor who chooses"},
	{"cgroup/resolve", "hierarchy/... cgroup/caps cgroup/cgroupfs cgroup/home cgroup/iface", "what bindings name is found without a Binder, and by no way of binding"},
	{"cgroup/escape", "hierarchy/... tc/lab", "attempts to escape make interfaces, and no tree: they know neither tc nor the binder that they try"},

	{"cmd/internal/words", "hierarchy/... tc/qdisc", "words are what is said of the model"},
	{"cmd/internal/manual", "", "manual writes pages of any commands"},
	{"cmd/internal/adopt", "hierarchy/... policy tc/qdisc tc/survey cmd/internal/words", "adopt makes a policy of what a survey found, and knows nobody who carries one out"},
	{"cmd/internal/setup", "hierarchy/... policy tc tc/link tc/rtnl cgroup cgroup/caps cgroup/cgroupfs cgroup/home cgroup/resolve cgroup/socket cmd/internal/words", "setup writes a policy of what it sees, and knows nobody who carries one out"},
	{"cmd/internal/export", "hierarchy/... tc tc/link tc/qdisc", "export writes a state down, and knows nobody who reads or makes one"},
	{"cmd/internal/record", "hierarchy/... policy tc/... cgroup/... cmd/internal/words", "record keeps what the kernel cannot, and knows nobody who works with it"},
	{"cmd/internal/enabled", "hierarchy/... policy tc/qdisc cmd/internal/record examples", "enabled keeps files, and knows nobody who applies them"},
	{"cmd/internal/shaper", "hierarchy/... policy tc/... cgroup/... cmd/internal/record cmd/internal/words", "shaper changes a machine, and knows nobody who asks it to"},
	{"cmd/internal/observe", "hierarchy/... policy tc/... cgroup/... cmd/internal/record cmd/internal/shaper cmd/internal/words", "observe looks at a machine, changes nothing, and knows nobody who asks it to"},
	{"cmd/internal/agent", "hierarchy/... policy tc/... cgroup/... cmd/client cmd/internal/enabled cmd/internal/record cmd/internal/shaper cmd/internal/observe cmd/internal/words", "agent answers in client's words, and does the work by shaper"},
	{"cmd/internal/doctor", "hierarchy/... policy tc/... cgroup/... cmd/internal/record cmd/internal/shaper cmd/internal/observe cmd/internal/words", "doctor finds out by shaper and observe, and knows neither the agent nor the laboratories"},
	{"cmd/internal/explain", "hierarchy/... tc tc/link tc/qdisc tc/rtnl cgroup/... cmd/internal/shaper cmd/internal/words", "explain looks at a machine, changes nothing, and knows nobody who asks it to"},
	{"cmd/internal/topview", "hierarchy/... cmd/internal/explain cmd/internal/observe cmd/internal/words", "topview makes text of what was seen, and looks at nothing"},
	{"cmd/internal/metrics", "", "metrics writes any figures down, and knows nobody who has them"},
	{"cmd/internal/listen", "", "listen opens places, and knows nobody who answers there"},
	{"cmd/internal/exporter", "hierarchy/... cmd/client cmd/internal/listen cmd/internal/metrics cmd/internal/observe cmd/internal/record cmd/internal/shaper", "exporter tells what observe sees, and looks at nothing else"},
	{"cmd/internal/web", "hierarchy/... cmd/internal/explain cmd/internal/listen cmd/internal/observe cmd/internal/shaper", "web shows what observe and explain see, and has others put plans into words and carry them out"},
	{"cmd/internal/schema", "hierarchy/...", "schema explains any values"},
	{"cmd/internal/weigh", "", "weigh measures any program"},
	{"cmd/internal", "hierarchy/... policy tc/... cgroup/... cmd/internal/...", "what is below cmd/internal has no flags, no output and no exit codes"},
	{"cmd/client", "hierarchy/...", "client is for programs of others: it speaks to the agent and is no part of it"},
	{"cmd/vifshape", "hierarchy/... policy tc/... cgroup/... cmd/...", "cmd/vifshape is at the top: nobody imports it"},
}

// owners are the rooms whose packages alone may import a package of somebody else's.
var owners = []struct{ path, rooms, why string }{
	{"github.com/florianl/go-tc", "tc/rtnl tc/hook", "the names of traffic control are tc/rtnl's, and its filters tc/hook's"},
	{"github.com/mdlayher", "tc/... cgroup/...", "netlink is tc's, and cgroup's for nf_tables"},
	{"github.com/google/nftables", "cgroup/nft", "nf_tables is one way of binding"},
	{"github.com/cilium/ebpf", "cgroup/... tc/latency", "BPF is cgroup's, which classifies by it, and tc/latency's, which measures by it"},
	{"github.com/containerd/cgroups", "cgroup/cgroupfs", "cgroups as files are cgroup/cgroupfs's"},
	{"github.com/BurntSushi/toml", "policy", "TOML is policy's"},
	{"github.com/spf13", "cmd/vifshape", "commands and flags are cmd/vifshape's"},
	{"charm.land", "cmd/vifshape", "the terminal is cmd/vifshape's"},
	{"github.com/charmbracelet", "cmd/vifshape", "the terminal is cmd/vifshape's"},
}

// at says whether a package lies at a path or below it.
func at(pkg, path string) bool { return pkg == path || strings.HasPrefix(pkg, path+"/") }

// among says whether a list such as "policy tc/..." has a package.
func among(pkg, list string) bool {
	return slices.ContainsFunc(strings.Fields(list), func(s string) bool {
		dir, all := strings.CutSuffix(s, "/...")
		return pkg == dir || all && at(pkg, dir)
	})
}

// foreign says whether a package is neither ours nor of the standard library.
func foreign(pkg string) bool { return strings.Contains(strings.SplitN(pkg, "/", 2)[0], ".") }

// forbidden says why a package, or its test, must not import another, or is empty.
// Both are without the module's own path where they are ours.
func forbidden(from, to string, test bool) string {
	model := at(from, "hierarchy")
	switch {
	case at(to, "tc/tctest") && !test && !at(from, "tc/tctest"):
		return "tc/tctest is for tests"
	case foreign(to):
		if model && !test {
			return "hierarchy lives on the standard library"
		}
		for _, o := range owners {
			if at(to, o.path) && !test && !among(from, o.rooms) {
				return o.why
			}
		}
		return ""
	case !slices.ContainsFunc([]string{"hierarchy", "policy", "tc", "cgroup", "cmd"}, func(f string) bool { return at(to, f) }):
		return "" // of the standard library
	case test && (!model || at(to, "hierarchy")):
		return "" // a test looks wherever it has to, but the model's stay on any machine
	}
	room := -1
	for i, r := range rooms {
		if at(from, r.path) && (room < 0 || len(r.path) > len(rooms[room].path)) {
			room = i
		}
	}
	switch {
	case room < 0:
		return "the table of rooms has no place for " + from
	case !among(to, rooms[room].may):
		return rooms[room].why
	}
	return ""
}

// A pkg is what `go list` says of a package.
type pkg struct {
	Dir, ImportPath                             string
	GoFiles, Imports, TestImports, XTestImports []string
}

// packages are those that patterns name, as on Linux.
func packages(t *testing.T, patterns ...string) (all []pkg) {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json=Dir,ImportPath,GoFiles,Imports,TestImports,XTestImports"}, patterns...)...)
	cmd.Dir = ".."
	cmd.Env = append(os.Environ(), "GOOS=linux")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		// The rule of tctest.Require, which this package must not import.
		if os.Getenv("VIFSHAPE_NO_SKIP") != "" {
			t.Fatal(err)
		}
		t.Skipf("needs program go (%v)", err)
	}
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
	if len(all) == 0 {
		t.Fatal("go list named no package")
	}
	return all
}

// The arrows between packages point one way, and each dependency has one owner.
func TestImports(t *testing.T) {
	all := packages(t, "./...")
	for _, r := range rooms {
		if !slices.ContainsFunc(all, func(p pkg) bool { return at(strings.TrimPrefix(p.ImportPath, module), r.path) }) {
			t.Errorf("there is no %s any more: take it out of the table of rooms", r.path)
		}
	}
	for _, p := range all {
		from := strings.TrimPrefix(p.ImportPath, module)
		for _, to := range p.Imports {
			if why := forbidden(from, strings.TrimPrefix(to, module), false); why != "" {
				t.Errorf("%s imports %s: %s", from, to, why)
			}
		}
		for _, to := range append(p.TestImports, p.XTestImports...) {
			if why := forbidden(from, strings.TrimPrefix(to, module), true); why != "" {
				t.Errorf("a test of %s imports %s: %s", from, to, why)
			}
		}
	}
}

// The rules themselves: what they let pass and what not.
func TestForbidden(t *testing.T) {
	for _, r := range []struct {
		from, to string
		test     bool
		ok       bool
	}{
		{"policy", "hierarchy", false, true},
		{"policy", "tc", false, false},
		{"tc", "policy", false, false},
		{"cgroup", "tc", false, false},
		{"cgroup/escape", "tc", false, false},
		{"cgroup/escape", "tc/lab", false, true},
		{"cgroup", "tc/lab", false, false},
		{"cgroup", "cgroup/bpf", false, true},
		{"cgroup/escape", "cgroup", false, false},
		{"cgroup/escape", "cgroup", true, true},
		{"cmd/vifshape", "tc", false, true},
		{"cmd/vifshape", "cmd/internal/shaper", false, true},
		{"cmd/internal/shaper", "cmd/internal/record", false, true},
		{"cmd/internal/shaper", "cmd/internal/agent", false, false},
		{"cmd/internal/record", "cmd/internal/shaper", false, false},
		{"cmd/internal/doctor", "cmd/internal/observe", false, true},
		{"cmd/internal/doctor", "cmd/internal/agent", false, false},
		{"cmd/internal/observe", "cmd/internal/doctor", false, false},
		{"cmd/internal/agent", "cmd/internal/shaper", false, true},
		{"cmd/internal/agent", "cmd/vifshape", false, false},
		{"cmd/internal/agent", "github.com/spf13/cobra", false, false},
		{"cmd/client", "cmd/internal/agent", false, false},
		{"cmd/client", "hierarchy", false, true},
		{"hierarchy", "hierarchy/bind", false, true},
		{"hierarchy", "hierarchy/amend", false, false},
		{"hierarchy/amend", "hierarchy", false, true},
		{"hierarchy/bind", "hierarchy", false, false},
		{"hierarchy", "hierarchy/match", false, true},
		{"hierarchy/match", "hierarchy", false, false},
		{"hierarchy/bind", "hierarchy", true, true},
		{"hierarchy/bind", "tc", true, false},
		{"hierarchy/bind", "slices", false, true},
		{"elsewhere", "hierarchy", false, false},
		{"hierarchy", "policy", false, false},
		{"hierarchy", "policy", true, false},
		{"hierarchy", "net/netip", false, true},
		{"hierarchy", "github.com/google/go-cmp/cmp", false, false},
		{"hierarchy", "github.com/google/go-cmp/cmp", true, true},
		{"tc/hook", "github.com/florianl/go-tc", false, true},
		{"tc", "github.com/florianl/go-tc", false, false},
		{"tc/rtnl", "github.com/florianl/go-tc/core", false, true},
		{"tc/lab", "github.com/mdlayher/netlink", false, true},
		{"policy", "github.com/mdlayher/netlink", false, false},
		{"policy", "github.com/BurntSushi/toml", false, true},
		{"cmd/vifshape", "github.com/BurntSushi/toml", false, false},
		{"cmd/vifshape", "github.com/spf13/cobra", false, true},
		{"tc", "github.com/spf13/cobra", false, false},
		{"cmd/vifshape", "charm.land/bubbletea/v2", false, true},
		{"cmd/internal/topview", "charm.land/bubbletea/v2", false, false},
		{"cgroup", "github.com/cilium/ebpf/link", false, true},
		{"tc", "github.com/cilium/ebpf", false, false},
		{"tc/latency", "github.com/cilium/ebpf/link", false, true},
		{"tc/latency", "tc", false, false},
		{"cgroup/cgroupfs", "github.com/containerd/cgroups/v3", false, true},
		{"cgroup", "github.com/containerd/cgroups/v3", false, false},
		{"cgroup/nft", "github.com/google/nftables/expr", false, true},
		{"cgroup/bpf", "github.com/google/nftables", false, false},
		{"cgroup/bpf", "cgroup/nft", false, false},
		{"cgroup/bpf", "cgroup", false, false},
		{"cgroup/home", "cgroup", false, false},
		{"tc/link", "tc/qdisc", false, false},
		{"tc/rtnl", "tc/link", false, false},
		{"cmd/vifshape", "github.com/containerd/cgroups/v3", false, false},
		{"tc", "tc/lab", false, true},
		{"tc/lab", "tc", false, false},
		{"tc/tctest", "tc", false, false},
		{"tc/tctest", "tc/lab", false, true},
		{"tc", "tc/tctest", false, false},
		{"tc", "tc/tctest", true, true},
		{"cgroup", "tc/tctest", true, true},
		{"cmd/vifshape", "tc/tctest", false, false},
		{"cmd/vifshape", "tc/tctest", true, true},
	} {
		if why := forbidden(r.from, r.to, r.test); (why == "") != r.ok {
			t.Errorf("%s to %s, test %v: %q", r.from, r.to, r.test, why)
		}
	}
}
