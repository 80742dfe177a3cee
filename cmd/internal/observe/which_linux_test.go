package observe

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestLeads: a number of a thread is not taken for that of a process that nobody has bound.
func TestLeads(t *testing.T) {
	if err := leads(os.Getpid()); err != nil {
		t.Error(err)
	}
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil || len(threads) < 2 { // the runtime's
		t.Fatalf("%q: %v", threads, err)
	}
	for _, x := range threads {
		id, err := strconv.Atoi(filepath.Base(x))
		if err != nil {
			t.Fatal(err)
		}
		if id == os.Getpid() {
			continue
		}
		if err := leads(id); err == nil || !strings.Contains(err.Error(), "is a thread of process "+strconv.Itoa(os.Getpid())) {
			t.Errorf("thread %d: %v", id, err)
		}
	}
	if err := leads(1 << 30); err == nil {
		t.Error("a process that is not there is taken for one")
	}
}
