package main

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/cgroup/escape"
	"github.com/vifshape/vifshape/cmd/internal/trial"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// inGuest are the attempts that are made where processes take long to start, beside
// those of the families that go by what a kernel has.
var (
	inGuest = []string{
		"udp6", "tcp", "so-priority-class", "match-ports", "match-dscp", "packet-raw", "packet-bypass", "pppoe", "cgroup-procs", "cgroup-clone3",
		"macvlan", "tun-persistent", "inherited-stdin", "pidfd-getfd", "qdisc-delete", "map-rewrite", "nft-flush",
		"receive-tcp", "receive-silent", "receive-successor", "receive-asked-pktinfo", "take-packet-first", "take-pktinfo-first",
	}
	familiesInGuest = []string{"packet sockets", "cgroups", "other processes", "what was there before", "vifshape's own files"}
)

// guestAttempts are the arguments of the self-test in a guest: root, held as firmly
// as the kernel lets it.
func guestAttempts(binding string) []string {
	level := escape.Lock
	if !lockable() {
		level = escape.Tag
	}
	args := []string{"--level", string(level), "--user", string(escape.Root)}
	for _, a := range escape.Attempts() {
		if slices.Contains(inGuest, a.Name) || binding == "bpf" && level == escape.Lock && slices.Contains(familiesInGuest, a.Family) {
			args = append(args, a.Name)
		}
	}
	return args
}

// TestKernelEscape makes all attempts to get out of a branch, by each way that
// there is, and some of them in guests. What is documented to get out does get out,
// or is refused: an attempt that is held shows that its documentation is wrong.
func TestKernelEscape(t *testing.T) {
	tctest.RequireRoot(t)
	for _, binding := range []string{"bpf", "nft", "net_cls"} {
		t.Run(binding, func(t *testing.T) {
			why := trial.LacksWay(binding)
			tctest.Require(t, why == "", "binding "+binding+": "+why)
			c := exec.CommandContext(t.Context(), filepath.Join(program(t), "vifshape"), "selftest", "escape", "--binding", binding, "--json")
			if vm.Inside() {
				c.Args = append(c.Args, guestAttempts(binding)...)
			}
			var stdout, stderr strings.Builder
			c.Stdout, c.Stderr = &stdout, &stderr
			// that something got out is in the results
			if err := c.Run(); err != nil && !errors.As(err, new(*exec.ExitError)) {
				t.Fatal(err)
			}
			var v struct {
				Holds bool
				Ways  []trial.Escapes
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
				if r.Direction == hierarchy.Receive && r.Out && r.Outcome.Err != "" {
					t.Errorf("%s (%v): %s, but nothing came: %s", r.Attempt, r.Case, r.Verdict, r.Outcome.Err)
				}
				if h := a.Hole(r.Case); h != nil && r.Verdict == escape.Held {
					t.Errorf("%s (%v) is held, though documented as open: %s", r.Attempt, r.Case, h.Why)
				}
			}
			if w.Sends != "" && tctest.HasLink(t, "ifb") {
				t.Errorf("what is received was not tried: %s", w.Sends)
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
