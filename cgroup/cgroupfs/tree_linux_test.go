package cgroupfs_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelSearched: without CAP_DAC_READ_SEARCH, as in containers, cgroups are found by their
// numbers nevertheless, under the names that they have by then.
func TestKernelSearched(t *testing.T) {
	dir := tctest.Cgroup(t)
	tree, err := cgroupfs.FindV2()
	if err != nil {
		t.Fatal(err)
	}
	defer tree.Close()
	path := func(name string) string { return strings.TrimPrefix(filepath.Join(dir, name), tree.Dir("")) }
	ids := map[string]uint64{}
	for i := range 20 {
		name := fmt.Sprint("a", i)
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if ids[name], _, err = tree.ID(path(name)); err != nil {
			t.Fatal(err)
		}
	}
	withoutSearch(t)
	holds := func() {
		t.Helper()
		for name, id := range ids {
			if got, err := tree.Path(id); got != path(name) || err != nil {
				t.Errorf("%s: %q, %v", name, got, err)
			}
		}
	}
	holds()

	// One goes, and comes again with another number; another one is new.
	was := ids["a3"]
	for _, name := range []string{"a3", "b"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		if ids[name], _, err = tree.ID(path(name)); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if got, err := tree.Path(was); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("one that has gone: %q, %v", got, err)
		}
		holds()
	}
}

// withoutSearch takes the capability from the thread, which ends with the test.
func withoutSearch(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	err := unix.Capget(&h, &d[0])
	if err == nil {
		d[0].Effective &^= 1 << unix.CAP_DAC_READ_SEARCH
		err = unix.Capset(&h, &d[0])
	}
	if err != nil {
		t.Fatal(err)
	}
}
