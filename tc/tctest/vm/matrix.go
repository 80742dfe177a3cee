//go:build linux

package vm

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/tctest"
)

// Guest is a machine that the tests of a package are held against.
type Guest struct {
	Kernel Kernel
	Cgroup Layout // empty is V2
	// Tests is the pattern of what runs there, as for "go test -run". Empty is
	// every test whose name starts with TestKernel.
	Tests string
	// Reboot runs them once more after a reboot, if nothing failed before; see
	// [Config].
	Reboot bool
	// Not are tests that must not run there, as patterns for "go test -skip",
	// and why.
	Not map[string]string
	// Lacks are the reasons for which a test may skip there, as in
	// VIFSHAPE_SKIP_OK. Those of the machine outside do not count.
	Lacks []string
}

// Matrix runs the tests of the running binary in each of the guests, two at a
// time, as subtests named after kernel and layout. A guest fails when a test in
// it fails, skips for a reason that is not in Lacks (where VIFSHAPE_NO_SKIP is
// set), or when none ran. Each is logged with what ran and what did not.
//
// At the time of VIFSHAPE_VM_UNTIL, see [RequireKernel], guests are stopped: what had not
// ended by then is told as left out, and is no failure.
//
// What happened to every test is also added to the file VIFSHAPE_VM_EVENTS, if
// that is set, one [Event] a line as JSON.
func Matrix(t *testing.T, guests ...Guest) {
	tctest.Require(t, !Inside(), "a machine that can boot another")
	tctest.Require(t, !testing.Short(), "time to boot, and -short is given")
	program := self(t)
	places := make(chan struct{}, 2)
	for _, g := range guests {
		if g.Cgroup == "" {
			g.Cgroup = V2
		}
		t.Run(g.Kernel.String()+" "+string(g.Cgroup), func(t *testing.T) {
			t.Parallel()
			places <- struct{}{}
			defer func() { <-places }()
			RequireKernel(t, g.Kernel)
			g.run(t, program)
		})
	}
}

// run boots the guest.
func (g Guest) run(t *testing.T, program string) {
	args := []string{"-test.v=test2json", "-test.run=" + cmp.Or(g.Tests, "^TestKernel"), "-test.timeout=35m"} // it says where it hangs; the machine's limit does not
	if len(g.Not) > 0 {
		// Package testing goes by the first that fits: one of subtests fits their test, and does not skip it.
		not := slices.SortedFunc(maps.Keys(g.Not), func(a, b string) int {
			return cmp.Or(cmp.Compare(strings.Count(a, "/"), strings.Count(b, "/")), strings.Compare(a, b))
		})
		args = append(args, "-test.skip="+strings.Join(not, "|"))
	}
	c := Config{Kernel: g.Kernel, Cgroup: g.Cgroup, Reboot: g.Reboot, Program: program, Args: args}
	at, bounded := until(t)
	if bounded {
		c.Timeout = max(time.Second, min(longest, time.Until(at)))
	}
	out, err := boot(t, c, strings.Join(g.Lacks, ","))
	events, eerr := decode(out)
	if eerr != nil {
		t.Error(eerr)
	}
	stopped := bounded && c.Timeout < longest && errors.Is(err, errStopped)
	if stopped {
		events = append(events, Event{Action: LeftOut, Test: unended(events), Output: "no time was left from it on"})
		if err = nil; slices.ContainsFunc(events, func(e Event) bool { return e.Action == Fail && e.Test != "" }) {
			err = errors.New("tests failed before it was stopped")
		}
	}
	release := g.Kernel.release()
	for i := range events {
		events[i].Kernel, events[i].Cgroup = release, string(g.Cgroup)
	}
	for _, p := range slices.Sorted(maps.Keys(g.Not)) {
		events = append(events, Event{Action: LeftOut, Test: p, Output: g.Not[p], Kernel: release, Cgroup: string(g.Cgroup)})
	}
	if e := save(events); e != nil {
		t.Error(e)
	}
	ran := 0
	for _, e := range events {
		switch e.Action {
		case Pass, Fail:
			ran++
		case LeftOut:
			t.Logf("left out: %s: %s", e.Test, e.Output)
		}
	}
	t.Logf("kernel %s, cgroup %s: %d tests ran\n%s", release, g.Cgroup, ran, unwell(events))
	if err != nil {
		t.Fatal(err)
	}
	if ran == 0 && !stopped {
		t.Fatal("no test ran")
	}
}

// unended is the test that was running when there was nothing more to read.
func unended(events []Event) string {
	running := "all of it"
	for _, e := range events {
		if test, _, _ := strings.Cut(e.Test, "/"); e.Action == "run" {
			running = test
		}
	}
	return running
}

// unwell is what tests printed that did not pass, with all their subtests, and
// what belongs to no test; of skipped ones the reason alone is of interest, which
// their events have.
func unwell(events []Event) string {
	well := map[string]bool{}
	for _, e := range events {
		if e.Action == Pass || e.Action == Skip {
			well[e.Test] = true
		}
	}
	var text strings.Builder
	for _, e := range events {
		test, _, _ := strings.Cut(e.Test, "/")
		if e.Action == Output && (test == "" || !well[test]) {
			text.WriteString(e.Output)
		}
	}
	return text.String()
}

// release is the name of the kernel with its version, as far as that is known.
func (k Kernel) release() string {
	if f, ok := k.look(); ok && f.modules != "" {
		return k.name + " " + filepath.Base(f.modules)
	}
	return k.name
}

// Actions of an [Event].
const (
	Pass    = "pass"
	Fail    = "fail"
	Skip    = "skip"
	Output  = "output"
	LeftOut = "left out" // by the matrix; Test is the pattern and Output says why
)

// Event is what happened to a test, in the form of "go test -json", and where.
type Event struct {
	Action  string
	Package string  `json:",omitempty"` // import path
	Test    string  `json:",omitempty"` // empty: about the package
	Output  string  `json:",omitempty"`
	Elapsed float64 `json:",omitempty"` // seconds that it took
	// The guest; empty for a test outside of one.
	Kernel string `json:",omitempty"`
	Cgroup string `json:",omitempty"`
}

// decode reads the events in what the tests of the running binary's package
// printed with -test.v=test2json.
func decode(out string) ([]Event, error) {
	args := []string{"tool", "test2json", "-t"} // -t: with what each test took
	if info, ok := debug.ReadBuildInfo(); ok {
		args = append(args, "-p", strings.TrimSuffix(info.Path, ".test"))
	}
	cmd := exec.Command("go", args...)
	cmd.Stdin = strings.NewReader(out)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go tool test2json: %w: %s", err, stderr.String())
	}
	var events []Event
	for line := range bytes.Lines(b) {
		var e Event
		if err := json.Unmarshal(line, &e); err != nil {
			return events, fmt.Errorf("go tool test2json: %q: %w", line, err)
		}
		events = append(events, e)
	}
	return events, nil
}

// save adds events to the file that is for them, if any.
func save(events []Event) (err error) {
	name := os.Getenv("VIFSHAPE_VM_EVENTS")
	if name == "" {
		return nil
	}
	var b bytes.Buffer
	for _, e := range events {
		if err := json.NewEncoder(&b).Encode(e); err != nil {
			return err
		}
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	_, err = f.Write(b.Bytes()) // at once: guests end side by side
	return err
}
