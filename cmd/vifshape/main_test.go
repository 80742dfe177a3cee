package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestMain makes the test binary the real program when it is called by its
// name, or by the one under which the demo starts itself.
func TestMain(m *testing.M) {
	if name := filepath.Base(os.Args[0]); name == "vifshape" || name == filepath.Base(selfPath) {
		main()
	}
	tctest.Main(m, verbs)
}

// program is a directory that holds the program, for PATH.
func program(t testing.TB) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "vifshape")); err != nil {
		t.Fatal(err)
	}
	return dir
}

// TestScript runs the scripts that need no kernel of their own.
func TestScript(t *testing.T) {
	testscript.Run(t, scripts(t, "testdata/script", nil))
}

// TestKernelScript runs each script in a network namespace of its own, with the
// interface eth0 there and its peer far0 in another one.
func TestKernelScript(t *testing.T) {
	tctest.RequireRoot(t)
	testscript.Run(t, scripts(t, "testdata/kernel", func(e *testscript.Env) error {
		pair, err := lab.NewPair(lab.PairConfig{})
		if err != nil {
			return err
		}
		e.Defer(func() {
			if err := pair.Close(); err != nil {
				t.Error(err)
			}
		})
		// The thread goes with the script's goroutine: it is never unlocked.
		runtime.LockOSThread()
		if err := unix.Setns(pair.Near.FD(), unix.CLONE_NEWNET); err != nil {
			return err
		}
		s, err := record.Open(defaultRunDir)
		if err != nil {
			return err
		}
		e.Defer(func() { // a script that failed does not clear
			if _, err := home.RemoveAll(s.NetNS, "eth0", false); err != nil {
				t.Error(err)
			}
			if err := nft.DropStale(0); err != nil {
				t.Error(err)
			}
		})
		e.Defer(func() {
			if err := s.Discard(); err != nil {
				t.Error(err)
			}
		})
		return nil
	}))
}

func scripts(t *testing.T, dir string, setup func(*testscript.Env) error) testscript.Params {
	bin := program(t)
	return testscript.Params{
		Dir:                 dir,
		UpdateScripts:       os.Getenv("UPDATE_SCRIPTS") != "",
		RequireExplicitExec: true,
		RequireUniqueNames:  true,
		Setup: func(e *testscript.Env) error {
			e.Setenv("PATH", bin+string(filepath.ListSeparator)+e.Getenv("PATH"))
			e.Values[testKey{}] = e.T()
			if setup == nil {
				return nil
			}
			return setup(e)
		},
		Condition: func(cond string) (bool, error) {
			switch cond {
			case "root":
				return os.Geteuid() == 0, nil
			case "types": // the kernel describes them
				_, err := os.Stat("/sys/kernel/btf/vmlinux")
				return err == nil, nil
			}
			return false, fmt.Errorf("no condition %q", cond)
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){"code": exitStatus, "needs": needs},
	}
}

// testKey is under which a script finds its test.
type testKey struct{}

// needs skips a script where a program is not installed, or the kernel lacks a kind of
// qdisc: needs tc ip qdisc:netem.
func needs(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) == 0 {
		ts.Fatalf("usage: needs program...")
	}
	for _, p := range args {
		if kind, ok := strings.CutPrefix(p, "qdisc:"); ok {
			tctest.RequireQdisc(ts.Value(testKey{}).(testing.TB), kind)
			continue
		}
		tctest.RequireProgram(ts.Value(testKey{}).(testing.TB), p)
	}
}

// exitStatus runs a program and compares its exit status: code 2 vifshape plan.
func exitStatus(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: code STATUS program [args...]")
	}
	err := ts.Exec(args[1], args[2:]...)
	got := "0"
	if err != nil {
		if i := strings.LastIndex(err.Error(), "exit status "); i >= 0 {
			got = err.Error()[i+len("exit status "):]
		} else {
			ts.Fatalf("%v", err)
		}
	}
	if got != args[0] {
		ts.Fatalf("exit status %s, not %s", got, args[0])
	}
}

// TestHelp holds that every command documents its exit status and shows up in
// the list.
func TestHelp(t *testing.T) {
	e := &env{stdout: &strings.Builder{}, stderr: &strings.Builder{}}
	root := newRootCommand(e, nil)
	all := root.Commands()
	for i := 0; i < len(all); i++ {
		c := all[i]
		if only := newRootCommand(e, strings.Fields(c.CommandPath())[1:]); c.Parent() == root && c.Name() != "help" {
			if sub, rest, err := only.Find([]string{c.Name()}); err != nil || len(rest) > 0 || sub.Name() != c.Name() || sub.GroupID != c.GroupID {
				t.Errorf("%s is not made where it alone is called: %v", c.CommandPath(), err)
			}
		}
		all = append(all, c.Commands()...)
		if c.Hidden {
			continue
		}
		if strings.Contains(c.Long, "\n\n\n") {
			t.Errorf("%s has two empty lines between paragraphs", c.CommandPath())
		}
		for line := range strings.Lines(c.Long) {
			if n := len(strings.TrimSuffix(line, "\n")); n > 100 {
				t.Errorf("%s has a line of %d characters: %s", c.CommandPath(), n, line)
			}
		}
		_, table, ok := strings.Cut(c.Long, "\nEXIT STATUS\n")
		if !ok {
			t.Errorf("%s does not document its exit status", c.CommandPath())
		}
		var codes []int
		for _, line := range regexp.MustCompile(`(?m)^  (\d+) +(.*)$`).FindAllStringSubmatch(table, -1) {
			code, err := strconv.Atoi(line[1])
			if err != nil {
				t.Fatal(err)
			}
			codes = append(codes, code)
			if what := "wrong flags or arguments"; (code == exitUsage) != (line[2] == what) {
				t.Errorf("%s: %d stands for %q", c.CommandPath(), code, line[2])
			}
		}
		if !slices.IsSorted(codes) || !slices.Contains(codes, exitUsage) {
			t.Errorf("%s documents the statuses %v", c.CommandPath(), codes)
		}
		// A script that asks for changes must not take a mistake for one.
		if slices.Contains(codes, exitChanges) != slices.Contains([]string{"plan", "apply", "enable"}, c.Name()) {
			t.Errorf("%s: status %d is that of changes", c.CommandPath(), exitChanges)
		}
	}
}
