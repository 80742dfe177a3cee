package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
)

// store is the run directory of one network namespace: a record per interface
// and a lock. Everybody may read it, so that show works without privileges.
type store struct {
	dir   string
	locks string // where locks are: a directory that programs at level lock do not see
	netNS string // the namespace's name, empty for the initial one
	wait  time.Duration
	// saved are the files of the records that save has written, by interface; nil: it
	// need not be known.
	saved map[string]os.FileInfo
}

// record is what the kernel cannot keep about one interface.
type record struct {
	Version   int               `json:"version"`
	Interface string            `json:"interface"`
	Index     uint32            `json:"ifindex"` // tells the interface after it was renamed
	Policy    string            `json:"policy"`  // the file that the tree came from
	Binding   string            `json:"binding"`
	Way       bind.Way          `json:"way,omitempty"` // that was taken
	IDs       hierarchy.IDs     `json:"ids"`
	Order     []hierarchy.Path  `json:"order"` // branches as the policy lists them
	Bindings  []boundSpec       `json:"bindings,omitempty"`
	Bound     []hierarchy.Bound `json:"bound,omitempty"` // what the bindings came to; no target: not there yet
	Former    tc.Former         `json:"former,omitzero"` // the root qdisc that ours replaced
	Spec      json.RawMessage   `json:"spec,omitempty"`  // what the policy says, a hierarchy.Spec
	Delegated []delegated       `json:"delegated,omitempty"`
	Added     []amend.Branch    `json:"added,omitempty"` // branches, parents first

	was string // the name under which it was found, if that is another
}

// boundSpec is a binding as it was written.
type boundSpec struct {
	Path      hierarchy.Path `json:"path"` // the branch
	Binding   bind.Binding   `json:"binding"`
	AtRuntime bool           `json:"at_runtime,omitempty"` // by bind, not in the policy
}

// recordVersion is the form of a record. Version 1 had no bindings as they were
// written, so that what it says would unbind all of them.
const recordVersion = 2

// store is the store of the caller's network namespace.
func (e *env) store() (*store, error) {
	ns, err := cgroupfs.NetNSKey(-1)
	if err != nil {
		return nil, err
	}
	return &store{dir: filepath.Join(e.runDir, ns), locks: filepath.Join(e.runDir, "locks"), netNS: ns, wait: lockWait}, nil
}

func (s *store) file(iface string) string { return filepath.Join(s.dir, iface+recordSuffix) }

// load reads the record of an interface. One that is not there is an empty
// record, not an error: the kernel is the truth.
func (s *store) load(iface string) (*record, error) {
	r := &record{Version: recordVersion, Interface: iface}
	b, err := s.read(s.file(iface))
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, fmt.Errorf("the record of %s cannot be taken for one: %w", iface, err)
	}
	if err := json.Unmarshal(b, r); err != nil {
		return nil, fmt.Errorf("%s is damaged (%w): remove it, and apply the policy again", s.file(iface), err)
	}
	if err := r.check(iface); err != nil && r.Version == recordVersion {
		return nil, fmt.Errorf("%s is damaged (%w): remove it, and apply the policy again", s.file(iface), err)
	}
	if r.Version != recordVersion {
		return nil, fmt.Errorf("%s was written by another version of vifshape (format %d, this one has %d): clear with that version, or remove the file", s.file(iface), r.Version, recordVersion)
	}
	return r, nil
}

// read reads a file of the directory, in which nobody but root may write.
func (s *store) read(file string) ([]byte, error) {
	if err := s.trusted(s.dir); err != nil {
		return nil, err
	}
	b, err := readOwn(file, mostRecord)
	if other := (*notFileError)(nil); errors.As(err, &other) {
		err = fmt.Errorf("%w: remove it, and apply the policy again", err)
	}
	return b, err
}

// trusted refuses a directory that others may write to, and a run directory where they
// may put another in its place.
func (s *store) trusted(dir string) error {
	for _, dir := range slices.Compact([]string{dir, filepath.Dir(s.locks)}) {
		st, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if err := trusted(dir, st); err != nil {
			return err
		}
	}
	return nil
}

// check says what cannot be true in a record that was read.
func (r *record) check(iface string) error {
	if r.Interface != iface {
		return fmt.Errorf("it is about interface %q", r.Interface)
	}
	key := make(map[uint16]string, len(r.IDs.Minors))
	for k, m := range r.IDs.Minors {
		if o, twice := key[m]; twice {
			return fmt.Errorf("%q and %q have the same class id %v", min(k, o), max(k, o), hierarchy.ID(m))
		}
		key[m] = k
		if !hierarchy.Path(k).Below(hierarchy.Path(iface)) {
			return fmt.Errorf("%q is not below %s", k, iface)
		}
	}
	paths := slices.Clone(r.Order)
	for _, x := range r.IDs.Retired {
		paths = append(paths, hierarchy.Path(x.Key))
	}
	for _, b := range r.Bound {
		paths = append(paths, b.Path)
		if _, class, ok := r.leaf(b.Path); ok && b.Target.Kind != bind.TargetNone && b.Class != class {
			return fmt.Errorf("%q is class %v in one place and %v in another", b.Path, class, b.Class)
		}
	}
	for _, b := range r.Bindings {
		paths = append(paths, b.Path)
	}
	for _, d := range r.Delegated {
		paths = append(paths, d.Path)
	}
	for _, a := range r.Added {
		paths = append(paths, a.Path)
	}
	for _, p := range paths {
		if !p.Below(hierarchy.Path(iface)) {
			return fmt.Errorf("%q is not below %s", p, iface)
		}
	}
	return nil
}

// save replaces the record atomically. One that the interface had under another
// name goes, and its homes are noted: processes may live in them.
func (s *store) save(r *record) error { return s.room(s.replace(r)) }

func (s *store) replace(r *record) error {
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
	err = errors.Join(err, f.Chmod(0o644))
	if s.saved != nil && err == nil {
		s.saved[r.Interface], err = f.Stat()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), s.file(r.Interface)); err != nil || r.was == "" {
		return err
	}
	err = errors.Join(s.note(r.was, true), s.remove(r.was))
	r.was = ""
	return err
}

// remove deletes the record of an interface.
func (s *store) remove(iface string) error { return unlessGone(os.Remove(s.file(iface))) }

// unlessGone is the error without what only says that there is no such file.
func unlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// interfaces lists those with a record.
func (s *store) interfaces() ([]string, error) { return s.list(recordSuffix) }

// homes lists interfaces that have no tree any more, at least not under that
// name, and cgroups in which processes lived on.
func (s *store) homes() ([]string, error) { return s.list(homesSuffix) }

// note remembers, or forgets, an interface for homes.
func (s *store) note(iface string, there bool) error {
	file := filepath.Join(s.dir, iface+homesSuffix)
	if there {
		f, err := openOwn(file, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return s.room(err)
		}
		return f.Close()
	}
	return unlessGone(os.Remove(file))
}

const recordSuffix, homesSuffix = ".json", ".homes"

func (s *store) list(suffix string) ([]string, error) {
	ents, err := os.ReadDir(s.dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range ents {
		if n, ok := strings.CutSuffix(e.Name(), suffix); ok {
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
// whose holder was killed. The function also removes the directory where nothing
// is left in it.
func (s *store) lock(ctx context.Context, what string) (func(), error) {
	deadline := time.Now().Add(s.wait)
	for {
		f, err := s.tryLock(s.lockFile(), what)
		if errors.Is(err, syscall.EROFS) {
			err = fmt.Errorf("%w, as it is for programs that vifshape keeps in a branch: call it from outside", err)
		}
		if err != nil {
			return nil, err
		}
		if f != nil {
			return func() {
				_ = f.Truncate(0) // only a name for a message
				s.tidy()
				f.Close()
			}, nil
		}
		if time.Now().After(deadline) {
			return nil, &lockedError{holder(s.lockFile(), "another vifshape"), s.wait}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(20 * time.Millisecond):
		}
	}
}

func (s *store) lockFile() string { return s.lockNamed("lock") }

// lockNamed is a file to lock. The directory of all namespaces' locks is for good: who is
// kept from it (see run) is kept from that one, and not from what is made in its place.
func (s *store) lockNamed(name string) string {
	if s.netNS != "" {
		name = s.netNS + "." + name
	}
	return filepath.Join(s.locks, name)
}

// tryLock is a locked file with the holder's name in it, or nil where another one has
// the lock. A file that was removed by its holder, see tidy, is no lock any more,
// whoever gets hold of it. With the lock there is the run directory.
func (s *store) tryLock(file, what string) (*os.File, error) {
	for {
		if err := makeDir(s.locks); err != nil {
			return nil, s.room(err)
		}
		if err := s.trusted(s.locks); err != nil {
			return nil, err
		}
		// Who may open it may lock it, and keep all others waiting.
		f, err := openOwn(file, os.O_RDWR|os.O_CREATE, 0o600)
		if errors.Is(err, fs.ErrNotExist) {
			continue // somebody has removed the directory
		}
		if other := (*notFileError)(nil); errors.As(err, &other) {
			err = fmt.Errorf("%w, and no lock can be there: remove it", err)
		}
		if err != nil {
			return nil, s.room(err)
		}
		if err := f.Chmod(0o600); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil {
			f.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, nil
			}
			return nil, fmt.Errorf("lock %s: %w", file, err)
		}
		mine, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if now, err := os.Lstat(file); err == nil && os.SameFile(mine, now) {
			who := fmt.Sprintf("vifshape %s%s%d)\n", what, holderPID, os.Getpid())
			// There may be no room for it; it is only a name for a message.
			if err := s.room(errors.Join(f.Truncate(0), writeAt(f, who))); err != nil && !full(err) {
				return nil, errors.Join(err, f.Close())
			}
			err := s.room(makeDir(s.dir))
			if err == nil {
				err = s.trusted(s.dir)
			}
			if err != nil && !full(err) { // nor for a record, and save says so
				return nil, errors.Join(err, f.Close())
			}
			return f, nil
		}
		f.Close()
	}
}

// makeDir makes a directory, and those above it, that everybody can read,
// whatever the caller's umask. One that is there stays as it is.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := makeDir(filepath.Dir(dir)); err != nil {
			return err
		}
		err = os.Mkdir(dir, 0o755)
	}
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return unlessGone(os.Chmod(dir, 0o755)) // gone: the last writer removed it
}

// holder says who has the lock of a file; unknown is for one whose name is not in it,
// or who was killed.
func holder(file, unknown string) string {
	b, _ := readOwn(file, 4096) // only a name for the message
	text := strings.TrimSpace(string(b))
	pid := 0
	if i := strings.LastIndex(text, holderPID); i >= 0 {
		_, _ = fmt.Sscanf(text[i:], holderPID+"%d)", &pid) // stays 0
	}
	if pid > 0 && syscall.Kill(pid, 0) != syscall.ESRCH {
		return words.Printable(text)
	}
	return unknown
}

// holderPID is what stands in front of the process id in the lock file.
const holderPID = " (process "

// tidy removes what a writer that was killed left behind, and the directory and its
// lock where there is nothing else. The caller holds the lock, and what cannot
// be removed does no harm.
func (s *store) tidy() {
	if !s.agentRuns() {
		os.Remove(s.agentFile())
		os.Remove(s.agentSocketFile())
	}
	ents, err := os.ReadDir(s.dir)
	if err != nil {
		return
	}
	left := 0
	for _, e := range ents {
		if strings.HasPrefix(e.Name(), ".record-") {
			os.Remove(filepath.Join(s.dir, e.Name()))
		} else {
			left++
		}
	}
	if left == 0 && os.Remove(s.dir) == nil { // the lock after it: then it is no lock any more
		os.Remove(s.lockFile())
	}
}

// discard removes all that is kept of a network namespace that goes.
func (s *store) discard() error {
	return errors.Join(os.RemoveAll(s.dir), unlessGone(os.Remove(s.lockFile())), unlessGone(os.Remove(s.agentFile())))
}

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}
