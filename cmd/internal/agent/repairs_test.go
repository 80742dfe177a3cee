package agent

import (
	"testing"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
)

// TestRepairs: who fights with the agent waits longer each time.
func TestRepairs(t *testing.T) {
	var r repairs
	now := time.Unix(1e9, 0)
	for _, want := range []time.Duration{0, time.Second, 2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second} {
		if got := r.wait(now); got != want {
			t.Errorf("waits %v, not %v", got, want)
		}
		now = now.Add(want)
		if got := r.wait(now); got != 0 {
			t.Errorf("waits %v after it", got)
		}
		r.done(now)
	}
	for range 100 {
		now = now.Add(r.wait(now))
		r.done(now)
	}
	if got := r.wait(now); got != longestWait {
		t.Errorf("waits %v in the end, not %v", got, longestWait)
	}
	if got := r.wait(now.Add(2 * longestWait)); got != 0 {
		t.Errorf("waits %v though it stood for a while", got)
	}
}

// TestAgentAgain: it looks again at the first time that the last look asked for.
func TestAgentAgain(t *testing.T) {
	a := &agent{later: make(chan string), ended: make(chan struct{})}
	defer close(a.ended)
	w := &watched{}
	a.again("eth0", w, time.Hour)
	w.rest() // a look begins
	a.report("eth0", w, &shaper.Rebound{Again: time.Millisecond})
	a.again("eth0", w, time.Hour)
	if name := <-a.later; name != "eth0" {
		t.Errorf("looks at %q", name)
	}
	w.rest()
	a.report("eth0", w, &shaper.Rebound{})
	if w.again != nil {
		t.Error("it looks again although nothing asks for it")
	}
}
