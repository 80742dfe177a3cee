//go:build linux

package vm

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vifshape/vifshape/tc/tctest"
)

// Inside says whether the caller runs in a machine of this package.
func Inside() bool { return os.Getenv("VIFSHAPE_VM") != "" }

// Run runs a test binary in a machine and fails the test when it fails, or when
// it found nothing to run. The binary is that of [Build], or of the running test
// if program is empty; args are such as "-test.run=TestKernelLeaf". The tools tc
// and ip are there if the host has them. The rules for skipping hold in the
// machine as they do outside.
//
// The test is skipped when the kernel cannot be had, inside of a machine, and
// with -short.
func Run(t testing.TB, k Kernel, cgroup Layout, program string, args ...string) {
	t.Helper()
	tctest.Require(t, !Inside(), "a machine that can boot another")
	tctest.Require(t, !testing.Short(), "time to boot, and -short is given")
	if program == "" {
		program = self(t)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	var env []string
	for _, name := range []string{"VIFSHAPE_NO_SKIP", "VIFSHAPE_SKIP_OK"} {
		if v := os.Getenv(name); v != "" {
			env = append(env, name+"="+v)
		}
	}
	var out strings.Builder
	status, err := Boot(t.Context(), Config{
		Kernel: k, Cgroup: cgroup, Program: program, Args: append([]string{"-test.v"}, args...),
		Env: env, Dir: dir, Tools: []string{"tc", "ip"}, Output: &out,
	})
	tctest.Require(t, !errors.Is(err, ErrNoKernel), fmt.Sprintf("kernel %v (%v)", k, err))
	t.Logf("kernel %v, cgroup %s: %s %s\n%s", k, cgroup, filepath.Base(program), strings.Join(args, " "), out.String())
	switch {
	case err != nil:
		t.Fatal(err)
	case status != 0:
		t.Fatalf("exit status %d", status)
	case strings.Contains(out.String(), "no tests to run"):
		t.Fatal("no test ran")
	}
}

// self is the running test binary if it is static, else the same tests built
// that way.
func self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	static, err := isStatic(exe)
	if err != nil {
		t.Fatal(err)
	}
	if static {
		return exe
	}
	return Build(t, ".")
}

// Build builds the tests of a package, given as to "go test", into a static
// binary that lives as long as the test.
func Build(t testing.TB, pkg string) string {
	t.Helper()
	tctest.RequireProgram(t, "go")
	to := filepath.Join(t.TempDir(), "guest.test")
	cmd := exec.CommandContext(t.Context(), "go", "test", "-c", "-o", to, pkg)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build tests of %s: %v\n%s", pkg, err, out)
	}
	return to
}

// isStatic says whether a program needs no shared libraries.
func isStatic(path string) (bool, error) {
	f, err := elf.Open(path)
	if err != nil {
		return false, err
	}
	defer f.Close()
	return !slices.ContainsFunc(f.Progs, func(p *elf.Prog) bool { return p.Type == elf.PT_INTERP }), nil
}
