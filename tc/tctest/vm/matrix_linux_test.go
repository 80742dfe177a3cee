package vm

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

func TestUnwell(t *testing.T) {
	events, err := decode("=== RUN   TestGood\n    a_test.go:1: fine\n--- PASS: TestGood (0.00s)\n" +
		"=== RUN   TestBad\n=== RUN   TestBad/one\n    a_test.go:2: wrong\n    --- FAIL: TestBad/one (0.00s)\n--- FAIL: TestBad (0.00s)\n" +
		"=== RUN   TestNot\n    a_test.go:3: needs x\n--- SKIP: TestNot (0.00s)\n" +
		"=== RUN   TestDies\npanic: so much\n")
	if err != nil {
		t.Fatal(err)
	}
	const want = "=== RUN   TestBad\n=== RUN   TestBad/one\n    a_test.go:2: wrong\n    --- FAIL: TestBad/one (0.00s)\n--- FAIL: TestBad (0.00s)\n" +
		"=== RUN   TestDies\npanic: so much\n"
	if got := unwell(events); got != want {
		t.Errorf("got %q\nwant %q", got, want)
	}
}

// A guest that the time does not suffice for is stopped and no failure, and it is told what had
// not ended.
func TestVMNoTime(t *testing.T) {
	if Inside() {
		time.Sleep(time.Hour)
	}
	RequireKernel(t, UML())
	name := filepath.Join(t.TempDir(), "events")
	t.Setenv("VIFSHAPE_VM_EVENTS", name)
	t.Setenv("VIFSHAPE_VM_UNTIL", fmt.Sprint(time.Now().Add(20*time.Second).Unix()))
	Guest{Kernel: UML(), Cgroup: V2, Tests: "^TestVMNoTime$"}.run(t, self(t))
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var events []Event
	for d := json.NewDecoder(f); d.More(); {
		var e Event
		if err := d.Decode(&e); err != nil {
			t.Fatal(err)
		}
		events = append(events, e)
	}
	// a slow machine has not begun with it
	if !slices.ContainsFunc(events, func(e Event) bool {
		return e.Action == LeftOut && (e.Test == t.Name() || e.Test == "all of it") && e.Output == "no time was left from it on"
	}) {
		t.Errorf("nothing is said to be left out: %+v", events)
	}
}
