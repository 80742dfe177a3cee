package main

import (
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/tc/tctest"
)

func TestPackageOf(t *testing.T) {
	for symbol, want := range map[string]string{
		"main.main":                       "main",
		"net/http.(*Client).Do":           "net/http",
		"type:*net/http.Client":           "net/http",
		"type:[]*gopkg.in/x.Y":            "gopkg.in/x",
		"gopkg%2ein/yaml%2ev3.Unmarshal":  "gopkg.in/yaml.v3",
		"go:itab.*os.File,io.Writer":      "os",
		"slices.SortFunc[go.shape.[]a/b]": "slices",
		"type:.eq.a/b/c.T":                "a/b/c",
		"memeqbody":                       "memeqbody",
	} {
		if got := packageOf(symbol); got != want {
			t.Errorf("packageOf(%q) = %q, want %q", symbol, got, want)
		}
	}
}

// TestWeight holds what the program is linked with, and that our own packages do
// next to nothing before it is known what for: every start pays for it, and a start
// is a good part of what run takes.
func TestWeight(t *testing.T) {
	const dir = "github.com/vifshape/vifshape/cmd/vifshape"
	tctest.RequireProgram(t, "go")
	program := filepath.Join(t.TempDir(), "vifshape")
	if out, err := exec.Command("go", "build", "-o", program, dir).CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	all, err := weightsOf(program, dir)
	if err != nil {
		t.Fatal(err)
	}
	var modules []string
	for _, w := range all {
		if w.module != standard && w.module != nobody {
			modules = append(modules, w.module)
		}
		if ours := strings.HasPrefix(dir, w.module+"/"); ours && w.allocs > 60 {
			t.Errorf("our packages are initialised with %d allocations", w.allocs)
		}
	}
	slices.Sort(modules)
	want := []string{
		"charm.land/bubbletea/v2",
		"github.com/BurntSushi/toml",
		"github.com/charmbracelet/colorprofile",
		"github.com/charmbracelet/ultraviolet",
		"github.com/charmbracelet/x/ansi",
		"github.com/charmbracelet/x/term",
		"github.com/charmbracelet/x/termios",
		"github.com/cilium/ebpf",
		"github.com/clipperhouse/displaywidth",
		"github.com/clipperhouse/uax29/v2",
		"github.com/containerd/cgroups/v3",
		"github.com/florianl/go-tc",
		"github.com/google/nftables",
		"github.com/josharian/native",
		"github.com/lucasb-eyer/go-colorful",
		"github.com/mattn/go-runewidth",
		"github.com/mdlayher/netlink",
		"github.com/mdlayher/socket",
		"github.com/moby/sys/mountinfo",
		"github.com/moby/sys/userns",
		"github.com/muesli/cancelreader",
		"github.com/rivo/uniseg",
		"github.com/spf13/cobra",
		"github.com/spf13/pflag",
		"github.com/vifshape/vifshape",
		"github.com/xo/terminfo",
		"golang.org/x/sync",
		"golang.org/x/sys",
	}
	if d := cmp.Diff(want, modules); d != "" {
		t.Errorf("the program is linked with (-want +got):\n%s", d)
	}
}
