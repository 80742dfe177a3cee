package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
)

// store is the run directory of one network namespace: a record per interface
// and a lock. Everybody may read it, so that show works without privileges.
type store struct {
	dir   string
	netNS string // the namespace's name, empty for the initial one
	wait  time.Duration
}

// record is what the kernel cannot keep about one interface.
type record struct {
	Version   int               `json:"version"`
	Interface string            `json:"interface"`
	Policy    string            `json:"policy"` // the file that the tree came from
	Binding   string            `json:"binding"`
	IDs       hierarchy.IDs     `json:"ids"`
	Order     []hierarchy.Path  `json:"order"`           // branches as the policy lists them
	Bound     []hierarchy.Bound `json:"bound,omitempty"` // the policy's bindings; no target: not there yet
	Former    tc.Former         `json:"former,omitzero"` // the root qdisc that ours replaced
}

const recordVersion = 1

// store is the store of the caller's network namespace.
func (e *env) store() (*store, error) {
	ns, err := cgroup.NetNSKey(-1)
	if err != nil {
		return nil, err
	}
	return &store{filepath.Join(e.runDir, ns), ns, lockWait}, nil
}

func (s *store) file(iface string) string { return filepath.Join(s.dir, iface+".json") }

// load reads the record of an interface. One that is not there is an empty
// record, not an error: the kernel is the truth.
func (s *store) load(iface string) (*record, error) {
	r := &record{Version: recordVersion, Interface: iface}
	b, err := os.ReadFile(s.file(iface))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): remove it, and apply the policy again", s.file(iface), err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%s was written by another version of vifshape (format %d, this one has %d): clear with that version, or remove the file", s.file(iface), r.Version, recordVersion)
	}
	return r, nil
}

// save replaces the record atomically.
func (s *store) save(r *record) error {
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(s.dir, ".record-*")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(0o644), f.Close())
	if err != nil {
		return err
	}
	return os.Rename(f.Name(), s.file(r.Interface))
}

// remove deletes the record of an interface.
func (s *store) remove(iface string) error {
	err := os.Remove(s.file(iface))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// interfaces lists those with a record.
func (s *store) interfaces() ([]string, error) {
	ents, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range ents {
		if n, ok := strings.CutSuffix(e.Name(), ".json"); ok {
			names = append(names, n)
		}
	}
	return names, nil
}

// lockWait is how long a writer waits for another one.
const lockWait = 10 * time.Second

// lockedError says who else is writing.
type lockedError struct {
	holder string
	wait   time.Duration
}

func (e *lockedError) Error() string {
	return fmt.Sprintf("%s is changing the interfaces of this network namespace, and did not finish within %v", e.holder, e.wait)
}

// lock makes the caller the only writer in this network namespace until the
// returned function is called or the process ends. The kernel releases a lock
// whose holder was killed.
func (s *store) lock(ctx context.Context, what string) (func(), error) {
	if err := os.MkdirAll(s.dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_RDWR|os.O_CREATE|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	deadline := time.Now().Add(s.wait)
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			break
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || time.Now().After(deadline) {
			defer f.Close()
			if !errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
			}
			b := make([]byte, 200)
			n, _ := f.ReadAt(b, 0) // only a name for the message
			holder := strings.TrimSpace(string(b[:n]))
			if holder == "" {
				holder = "another vifshape"
			}
			return nil, &lockedError{holder, s.wait}
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), f.Close())
		case <-time.After(20 * time.Millisecond):
		}
	}
	who := fmt.Sprintf("vifshape %s (process %d)\n", what, os.Getpid())
	if err := errors.Join(f.Truncate(0), writeAt(f, who)); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return func() { f.Close() }, nil
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}
