// Package record keeps what the kernel cannot hold of a shaped interface: the policy it came
// from, the ids of its branches, bindings as they were written, what was added at run time
// and the root qdisc from before. A [Store] is the run directory of one network namespace:
// a record for each interface, written atomically and readable by everybody, gone at reboot
// as the classes are, beside it what the policy says and the record before the last apply;
// and the lock by which writers take turns. Writing takes root.
package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
)

// Store is the run directory of one network namespace: a record per interface
// and a lock. Everybody may read it, so that show works without privileges.
type Store struct {
	Dir   string
	Locks string // where locks are: a directory that programs at level lock do not see
	NetNS string // the namespace's name, empty for the initial one
	Wait  time.Duration
	// Saved are the files of the records that Save has written, by interface; nil: it
	// need not be known.
	Saved map[string]os.FileInfo
}

// Open is the store of the caller's network namespace, below a run directory such as
// /run/vifshape. Nothing is made or read yet.
func Open(runDir string) (*Store, error) {
	ns, err := cgroupfs.NetNSKey(-1)
	if err != nil {
		return nil, err
	}
	return &Store{Dir: filepath.Join(runDir, ns), Locks: filepath.Join(runDir, "locks"), NetNS: ns, Wait: lockWait}, nil
}

// File is the file of the record of an interface.
func (s *Store) File(iface string) string { return filepath.Join(s.Dir, iface+Suffix) }

// Load reads the record of an interface. One that is not there is an empty
// record, not an error: the kernel is the truth.
func (s *Store) Load(iface string) (*Record, error) {
	r := &Record{Version: Version, Interface: iface}
	err := s.load(s.File(iface), r)
	if errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	if err != nil {
		return nil, err
	}
	return r, nil
}

// load reads a record from a file. It is about the interface that r names.
func (s *Store) load(file string, r *Record) error {
	iface := r.Interface
	b, err := s.read(file)
	if err != nil {
		return fmt.Errorf("the record of %s cannot be taken for one: %w", iface, err)
	}
	if err := r.decode(b); err != nil {
		return damaged(file, err)
	}
	if r.Version < 2 || r.Version > Version {
		return fmt.Errorf("%s was written by another version of vifshape (format %d, this one has %d): clear with that version, or remove the file", file, r.Version, Version)
	}
	if err := r.check(iface); err != nil {
		return damaged(file, err)
	}
	return nil
}

// damaged says that a file holds what cannot be true.
func damaged(file string, err error) error {
	return fmt.Errorf("%s is damaged (%w): remove it, and apply the policy again", file, err)
}

// read reads a file of the directory, in which nobody but root may write.
func (s *Store) read(file string) ([]byte, error) {
	if err := s.trusted(s.Dir); err != nil {
		return nil, err
	}
	b, err := readOwn(file, mostRecord)
	if other := (*NotFileError)(nil); errors.As(err, &other) {
		err = fmt.Errorf("%w: remove it, and apply the policy again", err)
	}
	return b, err
}

// value reads one that stands in a file by itself, and says whether there is one.
func (s *Store) value(file string, to any) (there bool, err error) {
	b, err := s.read(file)
	if err != nil {
		return false, UnlessGone(err)
	}
	if err := json.Unmarshal(b, to); err != nil {
		return false, damaged(file, err)
	}
	return true, nil
}

// trusted refuses a directory that others may write to, and a run directory where they
// may put another in its place.
func (s *Store) trusted(dir string) error {
	for _, dir := range slices.Compact([]string{dir, filepath.Dir(s.Locks)}) {
		st, err := os.Stat(dir)
		if err != nil {
			return err
		}
		if err := Trusted(dir, st); err != nil {
			return err
		}
	}
	return nil
}

// Save replaces the record atomically. One that the interface had under another
// name goes, and its homes are noted: processes may live in them.
func (s *Store) Save(r *Record) error { return s.room(s.replace(r)) }

func (s *Store) replace(r *Record) error {
	if r.Was != "" {
		if err := s.carry(r.Was, r.Interface); err != nil {
			return err
		}
	}
	if r.Spec != nil {
		if _, err := s.write(s.specFile(r), nameless(r.Spec)); err != nil {
			return err
		}
	}
	st, err := s.write(s.File(r.Interface), r)
	if err != nil {
		return err
	}
	if s.Saved != nil {
		s.Saved[r.Interface] = st
	}
	if r.Was == "" {
		return nil
	}
	err = errors.Join(s.Note(r.Was, true), s.Remove(r.Was), s.renameUnconfirmed(r.Was, r.Interface))
	r.Was = ""
	return err
}

// write puts a value into a file's place.
func (s *Store) write(file string, v any) (os.FileInfo, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(s.Dir, temporary+"*")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name()) // gone already when all went well
	_, err = f.Write(b)
	st, failed := f.Stat()
	if err = errors.Join(err, failed, f.Chmod(0o644), f.Close()); err != nil {
		return nil, err
	}
	return st, os.Rename(f.Name(), file)
}

// temporary is what the names of files begin with that are not whole yet.
const temporary = ".record-"

// Remove deletes the record of an interface, and what belongs to it.
func (s *Store) Remove(iface string) error {
	return errors.Join(UnlessGone(os.Remove(s.File(iface))), s.forget(iface, func(uint32, string) bool { return true }))
}

// UnlessGone is the error without what only says that there is no such file.
func UnlessGone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Interfaces lists those with a record.
func (s *Store) Interfaces() ([]string, error) { return s.list(Suffix) }

// Homes lists interfaces that have no tree any more, at least not under that
// name, and cgroups in which processes lived on.
func (s *Store) Homes() ([]string, error) { return s.list(homesSuffix) }

// Note remembers, or forgets, an interface for homes.
func (s *Store) Note(iface string, there bool) error {
	file := filepath.Join(s.Dir, iface+homesSuffix)
	if there {
		f, err := openOwn(file, os.O_WRONLY|os.O_CREATE, 0o644)
		if err != nil {
			return s.room(err)
		}
		return f.Close()
	}
	return UnlessGone(os.Remove(file))
}

const Suffix, homesSuffix = ".json", ".homes"

func (s *Store) list(suffix string) ([]string, error) {
	ents, err := os.ReadDir(s.Dir)
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

// MakeDir makes a directory, and those above it, that everybody can read,
// whatever the caller's umask. One that is there stays as it is.
func MakeDir(dir string) error {
	err := os.Mkdir(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) {
		if err := MakeDir(filepath.Dir(dir)); err != nil {
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
	return UnlessGone(os.Chmod(dir, 0o755)) // gone: the last writer removed it
}

// tidy removes what a writer that was killed left behind, and the directory and its
// lock where there is nothing else. The caller holds the lock, and what cannot
// be removed does no harm.
func (s *Store) tidy() {
	if !s.AgentRuns() {
		os.Remove(s.AgentFile())
		os.Remove(s.AgentSocketFile())
		os.Remove(s.enabledFile())
	}
	ents, err := os.ReadDir(s.Dir)
	if err != nil {
		return
	}
	left := 0
	for _, e := range ents {
		if strings.HasPrefix(e.Name(), temporary) {
			os.Remove(filepath.Join(s.Dir, e.Name()))
		} else {
			left++
		}
	}
	if left == 0 && os.Remove(s.Dir) == nil { // the lock after it: then it is no lock any more
		os.Remove(s.LockFile())
	}
}

// Discard removes all that is kept of a network namespace that goes.
func (s *Store) Discard() error {
	return errors.Join(os.RemoveAll(s.Dir), UnlessGone(os.Remove(s.LockFile())), UnlessGone(os.Remove(s.AgentFile())))
}
