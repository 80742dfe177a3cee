package cgroupfs

import (
	"fmt"
	"os"
	"os/exec"
	"testing"
)

// TestEnds: who runs does not, and who was killed does, whether it has gone or not.
func TestEnds(t *testing.T) {
	if Ends(os.Getpid()) {
		t.Error("this process ends")
	}
	c := exec.Command("/proc/self/exe", "-test.run=^$")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if !Ends(c.Process.Pid) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", c.Process.Pid))
		t.Errorf("one that was killed goes on: %s, %v", status, err)
	}
	_ = c.Wait() // it was killed
	if !Ends(c.Process.Pid) {
		t.Error("one that has gone goes on")
	}
}

func TestKilled(t *testing.T) {
	const before, after = "Name:\tx\nThreads:\t3\nSigQ:\t0/1\nSigPnd:\t", "\nShdPnd:\t0000000000000100\n"
	for pending, want := range map[string]bool{
		"0000000000000100": true,
		"0000000000004100": true,
		"0000000000000000": false,
		"0000000000004000": false,
		"":                 false,
	} {
		if got := killed(before + pending + after); got != want {
			t.Errorf("SigPnd %q: %v", pending, got)
		}
	}
}
