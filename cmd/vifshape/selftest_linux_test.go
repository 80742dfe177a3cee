package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/cgroup/escape"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelEscape makes all attempts to get out of a branch, by each way that
// there is. What is documented to get out does get out, or is refused: an attempt
// that is held shows that its documentation is wrong.
func TestKernelEscape(t *testing.T) {
	tctest.RequireRoot(t)
	for _, binding := range []string{"bpf", "nft", "net_cls"} {
		t.Run(binding, func(t *testing.T) {
			why := lacksWay(binding)
			tctest.Require(t, why == "", "binding "+binding+": "+why)
			c := exec.CommandContext(t.Context(), filepath.Join(program(t), "vifshape"), "selftest", "escape", "--way", binding, "--json")
			var stdout, stderr strings.Builder
			c.Stdout, c.Stderr = &stdout, &stderr
			// that something got out is in the results
			if err := c.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
				t.Fatal(err)
			}
			var v struct {
				Holds bool
				Ways  []escapes
			}
			if err := json.Unmarshal([]byte(stdout.String()), &v); err != nil {
				t.Fatalf("%v in %q: %s", err, stdout.String(), stderr.String())
			}
			if len(v.Ways) != 1 {
				t.Fatalf("%d ways", len(v.Ways))
			}
			w := &v.Ways[0]
			var table testWriter
			writeEscapes(&table, w, testing.Verbose())
			t.Logf("%s", table)
			for _, r := range w.Results {
				a := escape.Find(r.Attempt)
				if r.Verdict.Bad() {
					t.Errorf("%s (%v): %s: %s; %+v", r.Attempt, r.Case, r.Verdict, r.Reason, r.Counts)
				}
				if h := a.Hole(r.Case); h != nil && r.Verdict == escape.Held {
					t.Errorf("%s (%v) is held, though documented as open: %s", r.Attempt, r.Case, h.Why)
				}
			}
			if len(w.Results) == 0 || v.Holds != c.ProcessState.Success() {
				t.Errorf("%d results, %v: %s", len(w.Results), c.ProcessState, stderr.String())
			}
		})
	}
}

type testWriter []byte

func (w *testWriter) Write(b []byte) (int, error) {
	*w = append(*w, b...)
	return len(b), nil
}

// TestKernelEscapeInterrupted ends the self-test in its middle; tctest.Main looks
// for what it left.
func TestKernelEscapeInterrupted(t *testing.T) {
	tctest.RequireRoot(t)
	n := newNetwork(t)
	r := n.start(n.command("selftest", "escape"))
	time.Sleep(700 * time.Millisecond) // wherever that is
	if err := r.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	n.failed(r.wait(), exitInterrupted, "interrupted")
}
