package shaper

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/tc/tctest"
)

// A process that another branch carries is left alone, and one that has its number later is not.
func TestStraysByStart(t *testing.T) {
	name := filepath.Join(t.TempDir(), "vif-stray")
	sleep, err := os.ReadFile(tctest.RequireProgram(t, "sleep"))
	if err == nil {
		err = os.WriteFile(name, sleep, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), name, "60")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = c.Process.Kill()
		_ = c.Wait()
	}()
	pid := c.Process.Pid
	start, err := cgroupfs.Started(pid)
	if err != nil {
		t.Fatal(err)
	}
	of := amend.Branch{Program: filepath.Base(name)}
	m := &Machine{others: map[int]time.Duration{pid: start}}
	if got := m.strays(of); len(got) > 0 {
		t.Errorf("carried by another branch: %v", got)
	}
	m.others[pid] = start - 1
	if got := m.strays(of); !slices.Equal(got, []int{pid}) || len(m.others) > 0 {
		t.Errorf("with the number of another: %v, known %v", got, m.others)
	}
}
