package record

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/tc/tctest"
)

// TestImpostors holds that nothing that stands in the place of a file of ours is taken
// for it, waited for, or written to.
func TestImpostors(t *testing.T) {
	for _, x := range tctest.Impostors(t) {
		t.Run(x.Name, func(t *testing.T) {
			dir := t.TempDir()
			s := &Store{Dir: dir, Locks: filepath.Join(dir, "locks"), Wait: 10 * time.Millisecond}
			if err := os.Mkdir(s.Locks, 0o755); err != nil {
				t.Fatal(err)
			}
			for file, try := range map[string]func() error{
				s.File("eth0"):                           func() error { _, err := s.Load("eth0"); return err },
				filepath.Join(s.Dir, "eth0"+homesSuffix): func() error { return s.Note("eth0", true) },
				s.LockFile():                             func() error { _, err := s.Lock(t.Context(), "test"); return err },
				s.AgentFile():                            func() error { _, err := s.TakeAgent(); return err },
			} {
				what := filepath.Base(file)
				if err := x.Make(file); err != nil {
					t.Fatal(err)
				}
				before, err := os.Lstat(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := try(); err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), x.Want) {
					t.Errorf("%s: %v, not %q", what, err, x.Want)
				}
				if after, err := os.Lstat(file); err != nil || after.Mode() != before.Mode() || after.Size() != before.Size() || !os.SameFile(before, after) {
					t.Errorf("%s was touched: %v, %v", what, after, err)
				}
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	t.Run("endless", func(t *testing.T) {
		s := &Store{Dir: t.TempDir()}
		s.Locks = filepath.Join(s.Dir, "locks")
		if err := os.WriteFile(s.File("eth0"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(s.File("eth0"), 1<<40); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load("eth0"); err == nil || !strings.Contains(err.Error(), "is longer than 67108864 bytes") {
			t.Error(err)
		}
	})
	t.Run("directory", func(t *testing.T) {
		run := t.TempDir()
		s := &Store{Dir: filepath.Join(run, "ns-1"), Locks: filepath.Join(run, "locks"), NetNS: "ns-1", Wait: time.Millisecond}
		for _, dir := range []string{s.Dir, s.Locks} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, dir := range []string{s.Dir, run} {
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			_, rerr := s.Load("eth0")
			_, lerr := s.Lock(t.Context(), "test")
			for _, err := range []error{rerr, lerr} {
				if want := fmt.Sprintf("others than root may write to %s: `chmod go-w %s`", dir, dir); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, not %q", err, want)
				}
			}
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	})
}
