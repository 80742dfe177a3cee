package tctest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/vifshape/vifshape/tc/lab"
)

// New makes two namespaces joined by a veth pair and removes them after the
// test. It skips the test without root.
func New(t testing.TB, cfg lab.PairConfig) *lab.Pair {
	t.Helper()
	RequireRoot(t)
	p, err := lab.NewPair(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

// NetNS makes a single namespace that lives as long as the test. It skips the
// test without root.
func NetNS(t testing.TB) *lab.NetNS {
	t.Helper()
	RequireRoot(t)
	n, err := lab.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	return n
}

// TC runs iproute2's tc with args in the namespace and returns what it prints,
// for checks against an implementation that is not ours.
func TC(t testing.TB, n *lab.NetNS, args ...string) string {
	t.Helper()
	return Output(t, n, "tc", args...)
}

// TCJSON runs "tc -s -j" and decodes what it prints. tc prints qdiscs, filters
// and actions as JSON; for classes see [TCClasses].
func TCJSON[T any](t testing.TB, n *lab.NetNS, args ...string) []T {
	t.Helper()
	out := TC(t, n, append([]string{"-s", "-j"}, args...)...)
	var v []T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("tc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return v
}

// TCClass is an HTB class as tc sees it.
type TCClass struct {
	ID, Parent string // "71f:2"; Parent is "root" or an id
	Leaf       string // handle of the qdisc below, "71f2:"; empty for none
	// Options are the words of tc behind those, by name: "rate": "10Mbit".
	// The numbers are rounded for people.
	Options                 map[string]string
	Bytes, Packets, Dropped uint64
}

// TCClasses reads the HTB classes of an interface with "tc -s -d class show",
// in tc's order. iproute2 up to 6.1 at least prints classes as text even where
// asked for JSON.
func TCClasses(t testing.TB, n *lab.NetNS, dev string) []TCClass {
	t.Helper()
	var list []TCClass
	for line := range strings.Lines(TC(t, n, "-s", "-d", "class", "show", "dev", dev)) {
		f := strings.Fields(line)
		switch {
		case len(f) > 3 && f[0] == "class" && f[1] == "htb":
			c := TCClass{ID: f[2], Options: map[string]string{}}
			f = f[3:]
			if f[0] == "root" {
				c.Parent, f = f[0], f[1:]
			}
			for ; len(f) >= 2; f = f[2:] {
				switch f[0] {
				case "parent":
					c.Parent = f[1]
				case "leaf":
					c.Leaf = f[1]
				default:
					c.Options[f[0]] = f[1]
				}
			}
			list = append(list, c)
		case len(f) > 6 && f[0] == "Sent" && len(list) > 0:
			c := &list[len(list)-1]
			if _, err := fmt.Sscanf(strings.TrimSpace(line), "Sent %d bytes %d pkt (dropped %d,", &c.Bytes, &c.Packets, &c.Dropped); err != nil {
				t.Fatalf("tc: %q: %v", line, err)
			}
		}
	}
	return list
}

// Output runs a program in the namespace and returns its standard output. The
// test fails when the program does, and is skipped when it is not installed.
func Output(t testing.TB, n *lab.NetNS, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), RequireProgram(t, program), args...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := n.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", program, strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String()
}

// prefix starts the name of everything that this process makes outside its own
// memory: by it leftovers are told from what other runs make.
func prefix() string { return fmt.Sprintf("vifshape-%d-", os.Getpid()) }

var names atomic.Uint64

// Name is a name that no other test uses, for a namespace, a cgroup or a file.
// [Main] reports what still bears such a name at the end.
func Name() string { return fmt.Sprintf("%s%d", prefix(), names.Add(1)) }

// tempDir is like t.TempDir for mount points: it never removes what lies below
// a mount that could not be taken away.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", prefix())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Error(err)
		}
	})
	return dir
}
