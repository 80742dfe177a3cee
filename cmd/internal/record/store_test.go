package record

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

func TestStore(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Locks: t.TempDir()}
	r, err := s.Load("eth0")
	if err != nil || r.Policy != "" {
		t.Fatalf("an interface without a record gave %+v, %v", r, err)
	}
	r.Policy = "/etc/p.toml"
	r.IDs = hierarchy.IDs{Minors: map[string]uint16{"web": 16}}
	r.Order = []hierarchy.Path{"eth0", "eth0/web"}
	if err := s.Save(r); err != nil {
		t.Fatal(err)
	}
	back, err := s.Load("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, back, cmp.AllowUnexported(Record{})); d != "" {
		t.Errorf("record after a round trip (-want +got):\n%s", d)
	}
	names, err := s.Interfaces()
	if d := cmp.Diff([]string{"eth0"}, names); d != "" || err != nil {
		t.Errorf("interfaces: %v (-want +got):\n%s", err, d)
	}
	if ents, err := os.ReadDir(s.Dir); err != nil || len(ents) != 1 {
		t.Errorf("temporary files are left: %v, %v", ents, err)
	}
	if err := errors.Join(s.Remove("eth0"), s.Remove("eth0")); err != nil {
		t.Errorf("remove twice: %v", err)
	}
}

func TestStoreDamaged(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Locks: t.TempDir()}
	for content, want := range map[string]string{
		`{"version":`:                         "is damaged",
		`{"version": 99}`:                     "another version of vifshape (format 99, this one has 4)",
		`{"version": 2, "interface": "eth1"}`: `eth0.json is damaged (it is about interface "eth1"): remove it, and apply the policy again`,
		`{"version": 2, "interface": "eth0", "ids": {"minors": {"eth0/a": 16, "eth0/b": 16}}}`:  `eth0.json is damaged ("eth0/a" and "eth0/b" have the same class id 71f:10): remove it`,
		`{"version": 2, "interface": "eth0", "ids": {"minors": {"a": 16}}}`:                     `("a" is not below eth0)`,
		`{"version": 2, "interface": "eth0", "ids": {"retired": [{"key": "a", "minor": 16}]}}`:  `("a" is not below eth0)`,
		`{"version": 3, "interface": "eth0", "ids": {"minors": {"a": 16, "b": 16}}}`:            `eth0.json is damaged ("eth0/a" and "eth0/b" have the same class id 71f:10): remove it`,
		`{"version": 3, "interface": "eth0", "order": ["eth0", "x"]}`:                           `("x" is not below eth0)`,
		`{"version": 2, "interface": "eth0", "bindings": [{"path": "x", "binding": "user:a"}]}`: `("x" is not below eth0)`,
		`{"version": 2, "interface": "eth0", "bindings": [{"path": "eth0/a", "binding": "a"}]}`: `is damaged (binding "a" does not say what it names`,
		`{"version": 1, "interface": "eth0"}`:                                                   "another version of vifshape (format 1, this one has 4): clear with that version, or remove the file",
	} {
		if err := os.WriteFile(filepath.Join(s.Dir, "eth0.json"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Load("eth0"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, not %q", content, err, want)
		}
	}
}

func TestLock(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Locks: t.TempDir(), Wait: 50 * time.Millisecond}
	unlock, err := s.Lock(t.Context(), "apply a.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Lock(t.Context(), "apply b.toml")
	var locked *LockedError
	if !errors.As(err, &locked) || !strings.Contains(err.Error(), "vifshape apply a.toml (process ") {
		t.Errorf("second writer got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.Wait = time.Hour
	if _, err := s.Lock(ctx, "apply c.toml"); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted writer got %v", err)
	}
	unlock()
	again, err := s.Lock(t.Context(), "apply d.toml")
	if err != nil {
		t.Fatalf("after the first is done: %v", err)
	}
	again()
}

// A lock that everybody could open, everybody could keep: the file is the
// writers' alone, also one that was made differently, whatever the umask. The
// directory is everybody's to read.
func TestLockMode(t *testing.T) {
	for _, umask := range []int{0, 0o077} {
		t.Run(fmt.Sprintf("umask %03o", umask), func(t *testing.T) {
			run := filepath.Join(t.TempDir(), "run")
			s := &Store{Dir: filepath.Join(run, "ns-1"), Locks: filepath.Join(run, "locks"), Wait: time.Minute}
			before := syscall.Umask(umask)
			defer syscall.Umask(before)
			mode := func(file string) fs.FileMode {
				t.Helper()
				st, err := os.Stat(file)
				if err != nil {
					t.Fatal(err)
				}
				return st.Mode().Perm()
			}
			unlock, err := s.Lock(t.Context(), "test")
			if err != nil {
				t.Fatal(err)
			}
			got := []fs.FileMode{mode(s.LockFile()), mode(s.Dir), mode(filepath.Dir(s.Dir))}
			if want := []fs.FileMode{0o600, 0o755, 0o755}; !slices.Equal(got, want) {
				t.Errorf("modes %o, not %o", got, want)
			}
			if err := s.Save(&Record{Version: Version, Interface: "eth0"}); err != nil {
				t.Fatal(err)
			}
			if m := mode(s.File("eth0")); m != 0o644 {
				t.Errorf("record has mode %o", m)
			}
			unlock()
			if b, err := os.ReadFile(s.LockFile()); err != nil || len(b) != 0 {
				t.Errorf("the free lock names %q, %v", b, err)
			}
			if err := os.Chmod(s.LockFile(), 0o644); err != nil {
				t.Fatal(err)
			}
			unlock, err = s.Lock(t.Context(), "test")
			if err != nil {
				t.Fatal(err)
			}
			defer unlock()
			if m := mode(s.LockFile()); m != 0o600 {
				t.Errorf("mode %o is left as it was", m)
			}
		})
	}
}

// One who was killed left a name in the lock: it is nobody's who holds it now.
func TestLockedByNobody(t *testing.T) {
	dead := exec.Command("true")
	if err := dead.Run(); err != nil {
		t.Fatal(err)
	}
	for text, want := range map[string]string{
		"": "another vifshape",
		fmt.Sprintf("vifshape apply a.toml (process %d)\n", dead.Process.Pid):        "another vifshape",
		fmt.Sprintf("vifshape apply a (process 1).toml (process %d)\n", os.Getpid()): "vifshape apply a (process 1).toml (process ",
		fmt.Sprintf("vifshape apply \x1b[2J (process %d)\n", os.Getpid()):            `"vifshape apply \x1b[2J (process `,
	} {
		s := &Store{Dir: t.TempDir(), Locks: t.TempDir()}
		if err := os.WriteFile(s.LockFile(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := holder(s.LockFile(), "another vifshape"); !strings.HasPrefix(got, want) {
			t.Errorf("%q gives %q, not %q", text, got, want)
		}
	}
}

// A record that the version before wrote is read, and every branch keeps its class.
func TestStoreVersion2(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Locks: t.TempDir()}
	if err := os.WriteFile(s.File("eth0"), []byte(`{"version":2,"interface":"eth0","ifindex":7,"policy":"/etc/p.toml","binding":"auto","way":"bpf",
"ids":{"minors":{"eth0/web/":16,"eth0/web/a":17},"retired":[{"key":"eth0/x","minor":18}]},
"order":["eth0","eth0/web","eth0/web/a"],"bound":[{"target":"uid:1000","classid":"71f:11","path":"eth0/web/a"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := s.Load("eth0")
	if err != nil {
		t.Fatal(err)
	}
	want := hierarchy.IDs{Minors: map[string]uint16{"web/": 16, "web/a": 17}, Retired: []hierarchy.Retired{{Key: "x", Minor: 18}}}
	if d := cmp.Diff(want, r.IDs); d != "" || r.Version != Version {
		t.Errorf("version %d, class ids (-want +got):\n%s", r.Version, d)
	}
	for path, class := range map[hierarchy.Path]hierarchy.ClassID{"eth0": hierarchy.ID(1), "eth0/web": hierarchy.ID(16), "eth0/web/a": hierarchy.ID(17)} {
		if got, _, ok := r.IDs.Find(path); got != class || !ok {
			t.Errorf("%s is %v, not %v", path, got, class)
		}
	}
	if err := s.Save(r); err != nil {
		t.Fatal(err)
	}
	if again, err := s.Load("eth0"); err != nil || !cmp.Equal(r, again) {
		t.Errorf("written and read again: %+v, %v", again, err)
	}
}

// A record found under an earlier name goes when it is saved under the new one,
// and its homes are remembered.
func TestStoreRenamed(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Locks: t.TempDir()}
	old := &Record{
		Version: Version, Interface: "eth0", Index: 7, Policy: "/etc/p.toml",
		IDs:   hierarchy.IDs{Minors: map[string]uint16{"web/": 16, "web/a": 17}, Retired: []hierarchy.Retired{{Key: "x", Minor: 18}}},
		Order: []hierarchy.Path{"eth0", "eth0/web", "eth0/web/a"},
		Bound: []hierarchy.Bound{{Path: "eth0/web/a", From: "user:a"}},

		Bindings: []Binding{{Path: "eth0/web/a", Binding: bind.Binding{Kind: bind.User, Name: "a"}, AtRuntime: true}},

		Delegated: []Delegated{{"eth0/web", []bind.Delegate{"uid:1000"}}},
		Added:     []amend.Branch{{Path: "eth0/web/a", Rate: hierarchy.Absolute(hierarchy.Mbit), Ingress: hierarchy.Absolute(2 * hierarchy.Mbit), By: 1000}},
	}
	if err := s.Save(old); err != nil {
		t.Fatal(err)
	}
	if err := s.Save(old.Renamed("wan0")); err != nil {
		t.Fatal(err)
	}
	got, err := s.Load("wan0")
	if err != nil {
		t.Fatal(err)
	}
	want := &Record{
		Version: Version, Interface: "wan0", Index: 7, Formerly: []string{"eth0"}, Policy: "/etc/p.toml",
		IDs:   hierarchy.IDs{Minors: map[string]uint16{"web/": 16, "web/a": 17}, Retired: []hierarchy.Retired{{Key: "x", Minor: 18}}},
		Order: []hierarchy.Path{"wan0", "wan0/web", "wan0/web/a"},
		Bound: []hierarchy.Bound{{Path: "wan0/web/a", From: "user:a"}},

		Bindings: []Binding{{Path: "wan0/web/a", Binding: bind.Binding{Kind: bind.User, Name: "a"}, AtRuntime: true}},

		Delegated: []Delegated{{"wan0/web", []bind.Delegate{"uid:1000"}}},
		Added:     []amend.Branch{{Path: "wan0/web/a", Rate: hierarchy.Absolute(hierarchy.Mbit), Ingress: hierarchy.Absolute(2 * hierarchy.Mbit), By: 1000}},
	}
	if d := cmp.Diff(want, got, cmp.AllowUnexported(Record{}, hierarchy.Amount{})); d != "" {
		t.Errorf("record (-want +got):\n%s", d)
	}
	names, err := s.Interfaces()
	if d := cmp.Diff([]string{"wan0"}, names); d != "" || err != nil {
		t.Errorf("interfaces: %v (-want +got):\n%s", err, d)
	}
	homes, err := s.Homes()
	if d := cmp.Diff([]string{"eth0"}, homes); d != "" || err != nil {
		t.Errorf("homes: %v (-want +got):\n%s", err, d)
	}
}

// The last writer removes the directory with its lock; of many that come and go
// meanwhile no two ever hold the lock at once.
func TestLockRemoved(t *testing.T) {
	run := t.TempDir()
	s := &Store{Dir: filepath.Join(run, "ns-1"), Locks: filepath.Join(run, "locks"), NetNS: "ns-1", Wait: time.Minute}
	var holders, most atomic.Int32
	var wait sync.WaitGroup
	for range 8 {
		wait.Go(func() {
			for range 50 {
				unlock, err := s.Lock(t.Context(), "test")
				if err != nil {
					t.Error(err)
					return
				}
				if n := holders.Add(1); n > most.Load() {
					most.Store(n)
				}
				time.Sleep(50 * time.Microsecond)
				holders.Add(-1)
				unlock()
			}
		})
	}
	wait.Wait()
	if most.Load() != 1 {
		t.Errorf("%d held the lock at once", most.Load())
	}
	if _, err := os.Stat(s.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory is left: %v", err)
	}
	// but not that of the locks, which who must not see it would see if it were made anew
	if ents, err := os.ReadDir(s.Locks); err != nil || len(ents) != 0 {
		t.Errorf("of locks there are %v, %v", ents, err)
	}
	unlock, err := s.Lock(t.Context(), "test")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Save(&Record{Version: Version, Interface: "eth0"}); err != nil {
		t.Fatal(err)
	}
	unlock()
	if names, err := s.Interfaces(); err != nil || len(names) != 1 {
		t.Errorf("a record went with the lock: %v, %v", names, err)
	}
}
