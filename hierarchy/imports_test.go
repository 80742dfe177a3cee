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

// folder is the first part of a package's path within the module, or empty for
// a package of somebody else's.
func folder(pkg string) string {
	p, ours := strings.CutPrefix(pkg, module)
	if !ours {
		return ""
	}
	f, _, _ := strings.Cut(p, "/")
	return f
}

// owner is the folder that alone may import a package of somebody else's. Two have
// netlink: tc for rtnetlink, cgroup for nf_tables.
var owners = []struct{ prefix, folder string }{
	{"github.com/florianl/go-tc", "tc"},
	{"github.com/mdlayher/", "tc or cgroup"},
	{"github.com/google/nftables", "cgroup"},
	{"github.com/BurntSushi/toml", "policy"},
	{"github.com/spf13/", "cmd"},
	{"github.com/cilium/ebpf", "cgroup"},
	{"github.com/containerd/cgroups", "cgroup"},
}

// forbidden says why a package must not import another, or is empty.
func forbidden(from, to string, test bool) string {
	f, t := folder(from), folder(to)
	helper := strings.HasPrefix(from, module+"tc/tctest")
	switch {
	case strings.HasPrefix(to, module+"tc/tctest"):
		if !test && !helper {
			return "test helpers are for tests"
		}
	case test && f != "hierarchy":
		return "" // a test may look wherever it has to
	case t == "hierarchy" || t == f && t != "":
		if f == "tc" && to == module+"tc" && from != module+"tc" {
			return "what lies below tc does not look up"
		}
	case from == module+"cgroup/escape" && to == module+"tc/lab":
		return "" // attempts to escape make interfaces, and no tree
	case t != "":
		if f != "cmd" {
			return "only cmd knows them all; the others know hierarchy and themselves"
		}
	case f == "hierarchy" && strings.Contains(strings.SplitN(to, "/", 2)[0], "."):
		if !test {
			return "hierarchy lives on the standard library"
		}
	default:
		for _, o := range owners {
			if (to == o.prefix || strings.HasPrefix(to, strings.TrimSuffix(o.prefix, "/")+"/")) && !slices.Contains(strings.Split(o.folder, " or "), f) {
				return "it belongs to " + o.folder
			}
		}
	}
	return ""
}

// The arrows between packages point one way, and each dependency has one owner.
func TestImports(t *testing.T) {
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,TestImports,XTestImports", "./...")
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
	seen := 0
	for d := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p struct {
			ImportPath                         string
			Imports, TestImports, XTestImports []string
		}
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		seen++
		for _, to := range p.Imports {
			if why := forbidden(p.ImportPath, to, false); why != "" {
				t.Errorf("%s imports %s: %s", p.ImportPath, to, why)
			}
		}
		for _, to := range append(p.TestImports, p.XTestImports...) {
			if why := forbidden(p.ImportPath, to, true); why != "" {
				t.Errorf("a test of %s imports %s: %s", p.ImportPath, to, why)
			}
		}
	}
	if seen == 0 {
		t.Error("go list named no package")
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
		{"cmd/vifshape", "tc", false, true},
		{"cmd/vifshape", "cmd/vifshape/internal", false, true},
		{"hierarchy", "policy", false, false},
		{"hierarchy", "policy", true, false},
		{"hierarchy", "net/netip", false, true},
		{"hierarchy", "github.com/google/go-cmp/cmp", false, false},
		{"hierarchy", "github.com/google/go-cmp/cmp", true, true},
		{"tc", "github.com/florianl/go-tc", false, true},
		{"tc", "github.com/florianl/go-tc/core", false, true},
		{"tc/lab", "github.com/mdlayher/netlink", false, true},
		{"policy", "github.com/mdlayher/netlink", false, false},
		{"policy", "github.com/BurntSushi/toml", false, true},
		{"cmd/vifshape", "github.com/BurntSushi/toml", false, false},
		{"cmd/vifshape", "github.com/spf13/cobra", false, true},
		{"tc", "github.com/spf13/cobra", false, false},
		{"cgroup", "github.com/cilium/ebpf/link", false, true},
		{"tc", "github.com/cilium/ebpf", false, false},
		{"cgroup", "github.com/containerd/cgroups/v3", false, true},
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
		to := r.to
		if !strings.Contains(strings.SplitN(to, "/", 2)[0], ".") && to != "net/netip" {
			to = module + to
		}
		if why := forbidden(module+r.from, to, r.test); (why == "") != r.ok {
			t.Errorf("%s to %s, test %v: %q", r.from, r.to, r.test, why)
		}
	}
}
