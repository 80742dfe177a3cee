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

// TC runs iproute2's "tc -s -j" with args in the namespace and decodes what it
// prints into a slice of T, for checks against an implementation that is not
// ours. It skips the test when tc is not installed.
func TC[T any](t testing.TB, n *lab.NetNS, args ...string) []T {
	t.Helper()
	out := Output(t, n, RequireProgram(t, "tc"), append([]string{"-s", "-j"}, args...)...)
	var v []T
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		t.Fatalf("tc %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return v
}

// Output runs a program in the namespace and returns its standard output. The
// test fails when the program does.
func Output(t testing.TB, n *lab.NetNS, program string, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
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
