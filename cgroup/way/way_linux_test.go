package way

import (
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelWaits: where membarrier does not wait, others do, and take no longer than an apply may.
func TestKernelWaits(t *testing.T) {
	tctest.RequireRoot(t)
	for name, wait := range map[string]func() error{"all": WaitForReaders, "map": waitByMap, "socket": waitBySocket} {
		begun := time.Now()
		if err := wait(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		t.Logf("%s: %v", name, time.Since(begun))
	}
}
