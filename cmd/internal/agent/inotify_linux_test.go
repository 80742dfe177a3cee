package agent

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestInotifyTwice: a directory that is watched for two reasons tells of both.
func TestInotifyTwice(t *testing.T) {
	i, err := newInotify()
	if err != nil {
		t.Fatal(err)
	}
	defer i.close()
	dir := t.TempDir()
	for _, mask := range []uint32{unix.IN_CREATE | unix.IN_ONLYDIR, unix.IN_DELETE | unix.IN_ONLYDIR} {
		if _, err := i.add(dir, mask); err != nil {
			t.Fatal(err)
		}
	}
	file := filepath.Join(dir, "x")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	var told uint32
	for told != unix.IN_CREATE|unix.IN_DELETE {
		all, err := i.read()
		if err != nil {
			t.Fatal(err)
		}
		for _, n := range all {
			told |= n.mask
		}
	}
}
