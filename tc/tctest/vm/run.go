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
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/tctest"
)

// Inside says whether the caller runs in a machine of this package.
func Inside() bool { return os.Getenv("VIFSHAPE_VM") != "" }

// tools are the programs of the host that tests use in a machine.
var tools = []string{
	"tc", "ip", "sh", "awk", "basename", "bash", "cat", "chmod", "chroot", "cp", "cut", "date", "dd", "dirname", "echo", "env", "false", "find", "grep", "head", "id",
	"kill", "ln", "ls", "mkdir", "mkfifo", "mount", "mv", "nsenter", "pgrep", "ps", "readlink", "rm", "rmdir", "sed", "seq", "setpriv", "sleep", "sort",
	"stat", "tail", "tee", "test", "timeout", "touch", "tr", "true", "umount", "uname", "uniq", "unshare", "wc", "xargs",
}

// Run runs a test binary in a machine and fails the test when it fails, or when
// it found nothing to run. The binary is that of [Build], or of the running test
// if program is empty; args are such as "-test.run=TestKernelLeaf". The tools tc
// and ip and a shell with the usual programs are there if the host has them. The
// rules for skipping hold in the machine as they do outside. [Matrix] does so
// for several machines.
//
// The test is skipped when the kernel cannot be had, inside of a machine, and
// with -short.
func Run(t testing.TB, k Kernel, cgroup Layout, program string, args ...string) {
	t.Helper()
	RequireKernel(t, k)
	if program == "" {
		program = self(t)
	}
	out, err := boot(t, Config{Kernel: k, Cgroup: cgroup, Program: program, Args: append([]string{"-test.v"}, args...)}, os.Getenv("VIFSHAPE_SKIP_OK"))
	t.Logf("kernel %v, cgroup %s: %s %s\n%s", k, cgroup, filepath.Base(program), strings.Join(args, " "), out)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out, "no tests to run") {
		t.Fatal("no test ran")
	}
}

// RequireKernel skips the test unless the kernel can be booted, for which it is
// fetched or built if need be, and after the time that VIFSHAPE_VM_UNTIL gives, in
// seconds since 1970: a slow machine tries less, and says so.
func RequireKernel(t testing.TB, k Kernel) {
	t.Helper()
	tctest.Require(t, !Inside(), "a machine that can boot another")
	tctest.Require(t, !testing.Short(), "time to boot, and -short is given")
	at, bounded := until(t)
	tctest.Require(t, !bounded || time.Now().Before(at), "time that is left")
	err := k.Fetch(t.Context())
	tctest.Require(t, !errors.Is(err, ErrNoKernel), fmt.Sprintf("kernel %v (%v)", k, err))
	if err != nil {
		t.Fatal(err)
	}
}

// until is the time of VIFSHAPE_VM_UNTIL, if it is set.
func until(t testing.TB) (at time.Time, bounded bool) {
	t.Helper()
	v := os.Getenv("VIFSHAPE_VM_UNTIL")
	if v == "" {
		return time.Time{}, false
	}
	seconds, err := strconv.ParseInt(v, 10, 64)
	if err != nil {
		t.Fatalf("VIFSHAPE_VM_UNTIL: %v", err)
	}
	return time.Unix(seconds, 0), true
}

// boot runs a test binary as c says and returns its output. It is an error when it
// failed, and errStopped when it was stopped for its Timeout amid its work.
func boot(t testing.TB, c Config, mayLack string) (string, error) {
	t.Helper()
	var err error
	if c.Dir, err = os.Getwd(); err != nil {
		t.Fatal(err)
	}
	c.Env = []string{"VIFSHAPE_SKIP_OK=" + mayLack}
	if v := os.Getenv("VIFSHAPE_NO_SKIP"); v != "" {
		c.Env = append(c.Env, "VIFSHAPE_NO_SKIP="+v)
	}
	out := heard{at: time.Now()}
	c.Tools, c.Output = tools, &out
	status, err := Boot(t.Context(), c)
	if quiet := time.Since(out.at); errors.Is(err, errStopped) && quiet > hangs {
		err = fmt.Errorf("it had said nothing for %v: %v", quiet.Round(time.Second), err)
	}
	if err == nil && status != 0 {
		err = fmt.Errorf("exit status %d", status)
	}
	return out.String(), err
}

// hangs is longer than any test says nothing, on the slowest machine.
const hangs = 5 * time.Minute

// heard is what a machine has said, and when it last did.
type heard struct {
	strings.Builder
	at time.Time
}

func (h *heard) Write(p []byte) (int, error) {
	h.at = time.Now()
	return h.Builder.Write(p)
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
