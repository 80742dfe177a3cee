// Package enabled keeps the policies that last: the files of a directory, as a rule
// /etc/vifshape, that are brought into force when the machine starts and when an interface of
// theirs appears; and what has an agent see to that, the unit of systemd or a script of init.
// Reading takes no privileges but those of the files, changing takes root.
package enabled

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// DefaultDir is where the policies of a machine lie. "ip netns exec" puts /etc/netns/NAME in the
// place of /etc, so that a named network namespace has a directory of its own.
const DefaultDir = "/etc/vifshape"

const suffix = ".toml"

// Dir is a directory of policies. One that is not there has none. It is for one goroutine.
type Dir struct {
	Path string // as records have it: absolute, and without links
	seen map[string]parsed
}

// Open is the directory of that name. Nothing is made or read yet.
func Open(path string) (*Dir, error) {
	if path == "" {
		return nil, errors.New("a directory without a name: write --policies DIRECTORY, or leave it out")
	}
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	if real, err := filepath.EvalSymlinks(path); err == nil { // else it is not there yet
		path = real
	}
	return &Dir{Path: path}, nil
}

// Mounted says whether something is mounted there, as "ip netns exec" does with what
// /etc/netns/NAME has for a namespace (netns_switch of iproute2).
func (d *Dir) Mounted() bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, d.Path, 0, unix.STATX_BASIC_STATS, &st)
	return err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

// fixed says whether the directory is where a file system is mounted read-only: whatever its mode
// says, nobody here can put anything there, but who has mounted it. So is a ConfigMap of
// Kubernetes, with mode 0777 (perm, pkg/volume/emptydir/empty_dir.go).
func (d *Dir) fixed() bool {
	var st unix.Statfs_t
	return d.Mounted() && unix.Statfs(d.Path, &st) == nil && st.Flags&unix.ST_RDONLY != 0
}

// parsed is a file as it was read last.
type parsed struct {
	st   []os.FileInfo // its own, and those of the files that are laid over it
	file File
}

// as says whether what is there is what was read.
func (p *parsed) as(now []os.FileInfo) bool {
	return slices.EqualFunc(p.st, now, func(was, is os.FileInfo) bool {
		return os.SameFile(was, is) && was.ModTime().Equal(is.ModTime()) && was.Size() == is.Size() &&
			time.Since(is.ModTime()) > time.Second // else it may be written twice within the clock's tick
	})
}

// File is one policy of a directory.
type File struct {
	Name   string // of the file, without .toml
	Path   string
	Policy *policy.Policy // nil: it is none, or must not be in force
	Err    error          // why
}

// Files are policies in the order of their names. What several of them fit belongs to the one
// that fits best, of equal ones to the first: names go before hardware addresses, these before
// the default route, that before patterns, and of those the longer one.
type Files []File

// ByRoute says whether any of them has a table for the interface of the default route.
func (all Files) ByRoute() bool {
	return slices.ContainsFunc(all, func(f File) bool { return f.Policy != nil && f.Policy.ByRoute() })
}

// OfLink says whether any of them has a rate that is a share of the link.
func (all Files) OfLink() bool {
	return slices.ContainsFunc(all, func(f File) bool {
		return f.Policy != nil && slices.ContainsFunc(f.Policy.Specs, (*hierarchy.Spec).OfLink)
	})
}

// Owner is the path of the policy that an interface belongs to; empty: none.
func (all Files) Owner(n hierarchy.Identity) (path string) {
	best := hierarchy.Fit(0)
	for _, f := range all {
		if f.Policy == nil {
			continue
		}
		if _, fit := f.Policy.For(n); fit > best {
			path, best = f.Path, fit
		}
	}
	return path
}

// With are the files with a policy in the place of the one with that name, or beside the
// others. It is an error where another one has an interface, or a pattern, that is written so.
func (all Files) With(f File) (Files, error) {
	others := slices.DeleteFunc(slices.Clone(all), func(o File) bool { return o.Name == f.Name })
	if err := owned(others, f.Policy); err != nil {
		return nil, err
	}
	i, _ := slices.BinarySearchFunc(others, f.Name, func(o File, name string) int { return strings.Compare(o.Name, name) })
	return slices.Insert(others, i, f), nil
}

// Nearest is the name among them that is like that one; empty: none.
func (all Files) Nearest(name string) string {
	var names []string
	for _, f := range all {
		names = append(names, f.Name)
	}
	return hierarchy.Nearest(name, names)
}

// OwnedError says that an interface belongs to another enabled policy.
type OwnedError struct{ Iface, By string }

func (e *OwnedError) Error() string {
	return fmt.Sprintf("%s belongs to %s already, and to one policy alone", e.Iface, e.By)
}

// Remedy is what to type.
func (e *OwnedError) Remedy() string {
	return fmt.Sprintf("take %s out of one of the two files, or `vifshape disable %s`", e.Iface, strings.TrimSuffix(filepath.Base(e.By), suffix))
}

// Files are the policies of the directory by name. What is wrong with one is its Err, and no
// matter of the others. An interface belongs to the first that names it.
func (d *Dir) Files() (Files, error) {
	st, err := os.Stat(d.Path)
	if err == nil && !d.fixed() {
		err = record.Trusted(d.Path, st)
	}
	if err != nil {
		return nil, record.UnlessGone(err)
	}
	ents, err := os.ReadDir(d.Path)
	if err != nil {
		return nil, record.UnlessGone(err)
	}
	seen := map[string]parsed{}
	var all Files
	for _, e := range ents {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok || strings.HasPrefix(name, ".") {
			continue
		}
		p := d.parse(name)
		seen[name] = p
		f := p.file
		if f.Policy != nil {
			if err := owned(all, f.Policy); err != nil {
				f.Policy, f.Err = nil, fmt.Errorf("%s: %w", f.Path, err)
			}
		}
		all = append(all, f)
	}
	d.seen = seen
	return all, nil
}

// parse reads a file with what is laid over it, unless it is as it was.
func (d *Dir) parse(name string) (p parsed) {
	p.file = File{Name: name, Path: d.File(name)}
	fail := func(err error) parsed {
		p.file.Err, p.st = err, nil // it is looked at again: rights change without the file
		return p
	}
	over, err := policy.Over(p.file.Path)
	if err != nil {
		return fail(err)
	}
	all := append([]string{p.file.Path}, over...)
	for _, file := range all {
		st, err := os.Stat(file)
		if err == nil && !st.Mode().IsRegular() { // a named pipe would keep all waiting
			err = &record.NotFileError{File: file, Mode: st.Mode()}
		}
		if err != nil {
			return fail(err)
		}
		p.st = append(p.st, st)
	}
	if len(over) > 0 {
		st, err := os.Stat(filepath.Dir(over[0]))
		if err == nil {
			err = record.Trusted(filepath.Dir(over[0]), st)
		}
		if err != nil {
			return fail(err)
		}
	}
	if was, ok := d.seen[name]; ok && was.as(p.st) {
		return was
	}
	texts := make([]policy.Text, len(all))
	for i, file := range all {
		f, err := open(file, p.st[i])
		if err != nil {
			return fail(err)
		}
		defer f.Close()
		texts[i] = policy.Text{Name: file, Reader: f}
	}
	p.file.Policy, p.file.Err = policy.Parse(texts[0].Name, texts[0], qdisc.Kinds(), texts[1:]...)
	return p
}

// open opens a file that was looked at, and that others than root cannot have written.
func open(file string, as os.FileInfo) (*os.File, error) {
	if err := record.Trusted(file, as); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, err
	}
	if st, err := f.Stat(); err != nil || !os.SameFile(st, as) {
		return nil, errors.Join(cmp.Or(err, fmt.Errorf("%s was replaced while it was read", file)), f.Close())
	}
	return f, nil
}

// File is the path of the policy of that name.
func (d *Dir) File(name string) string { return filepath.Join(d.Path, name+suffix) }

// owned is the error of a policy with an interface that others have.
func owned(others Files, p *policy.Policy) error {
	for _, s := range p.Specs {
		for _, f := range others {
			if f.Policy != nil && f.Policy.Names(s.Interface) {
				return &OwnedError{s.Interface, f.Path}
			}
		}
	}
	return nil
}

// CheckName is the error of a name that no file of the directory may have.
func CheckName(name string) error {
	bad := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-+@:", r))
	}
	if name == "" || len(name) > 200 || name[0] == '.' || name[0] == '-' || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("%q is no name for a policy in a directory: write letters, digits, dots, hyphens and underscores", name)
	}
	return nil
}

// Staged is a policy's text that waits beside the file whose place it takes.
type Staged struct {
	to   string
	file *os.File // locked as long as somebody waits to put it there; nil: it is as what is there
}

// staged is in the names of texts that wait, which begin with a dot.
const staged = suffix + ".new-"

// Stage writes a policy's text into the directory, which is made where it is not there. That
// it can be written is known then; nothing of the policies is changed before [Staged.Commit].
func (d *Dir) Stage(name string, text []byte) (*Staged, error) {
	s := &Staged{to: d.File(name)}
	switch st, err := os.Lstat(s.to); {
	case err == nil && st.Mode()&fs.ModeSymlink == 0 && !st.Mode().IsRegular():
		return nil, &record.NotFileError{File: s.to, Mode: st.Mode()}
	case err == nil && st.Mode().IsRegular() && record.Trusted(s.to, st) == nil:
		if is, err := os.ReadFile(s.to); err == nil && string(is) == string(text) {
			return s, nil
		}
	}
	if err := record.MakeDir(d.Path); err != nil {
		return nil, err
	}
	d.sweep()
	var err error
	if s.file, err = os.CreateTemp(d.Path, "."+name+staged+"*"); err != nil {
		return nil, err
	}
	_, err = s.file.Write(text)
	if err = errors.Join(unix.Flock(int(s.file.Fd()), unix.LOCK_EX|unix.LOCK_NB), err, s.file.Chmod(0o644), s.file.Sync()); err != nil {
		return nil, errors.Join(err, s.Discard())
	}
	return s, nil
}

// sweep removes texts that were staged by who was killed: nobody has them locked. That it fails
// does no harm.
func (d *Dir) sweep() {
	all, _ := filepath.Glob(filepath.Join(d.Path, ".*"+staged+"*"))
	for _, name := range all {
		f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
		if err != nil {
			continue
		}
		st, err := f.Stat()
		if err == nil && st.Mode().IsRegular() && time.Since(st.ModTime()) > time.Second && unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil { // later than the moment between its making and its lock
			_ = os.Remove(name)
		}
		f.Close()
	}
}

// Commit puts the text into the file's place, and says whether that changed it. It is there
// after a loss of power.
func (s *Staged) Commit() (changed bool, err error) {
	if s.file == nil {
		return false, nil
	}
	if err := os.Rename(s.file.Name(), s.to); err != nil {
		return false, err
	}
	err = errors.Join(s.file.Close(), syncDir(filepath.Dir(s.to)))
	s.file = nil
	return true, err
}

// Discard takes a text away that was not committed.
func (s *Staged) Discard() error {
	if s.file == nil {
		return nil
	}
	err := errors.Join(record.UnlessGone(os.Remove(s.file.Name())), s.file.Close())
	s.file = nil
	return err
}

// Remove takes the file of that name away, and the directory where nothing else is in it.
func (d *Dir) Remove(name string) error {
	d.sweep()
	if st, err := os.Lstat(d.File(name)); err == nil && st.IsDir() {
		return &record.NotFileError{File: d.File(name), Mode: st.Mode()}
	}
	if err := os.Remove(d.File(name)); err != nil {
		return err
	}
	if os.Remove(d.Path) == nil { // it was empty
		return nil
	}
	return syncDir(d.Path)
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}
