package record

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
)

// Applies of an interface are numbered, and what belongs to one has its number in its
// name: what the policy says, and the record from before it. The record in force says
// which number is its own, so that all of them change with the one name of that record:
// files that it does not lead to are as if they were not there, and go with the next apply.
const specSuffix, beforeSuffix = ".policy", ".before"

// Kept is how many records from before applies there are, one before the other.
const Kept = 10

func (s *Store) numbered(iface string, serial uint32, suffix string) string {
	return filepath.Join(s.Dir, iface+"."+strconv.FormatUint(uint64(serial), 10)+suffix)
}

func (s *Store) specFile(r *Record) string { return s.numbered(r.Interface, r.Serial, specSuffix) }

// at is the name under which the record and its files were found.
func (r *Record) at() string { return cmp.Or(r.Was, r.Interface) }

// Spec reads what the policy says that a record came from.
func (s *Store) Spec(r *Record) (*hierarchy.Spec, error) {
	if r.Spec != nil {
		return r.Spec, nil
	}
	file := s.numbered(r.at(), r.Serial, specSuffix)
	b, err := s.read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s is gone, which has what %s says of %s: apply that again", file, r.PolicyName(), r.Interface)
	}
	if err != nil {
		return nil, fmt.Errorf("what %s says of %s cannot be read: %w", r.PolicyName(), r.Interface, err)
	}
	spec := new(hierarchy.Spec)
	if err := json.Unmarshal(b, spec); err != nil {
		return nil, damaged(file, err)
	}
	spec.Interface = r.Interface
	return spec, nil
}

// Succeed saves the record of a policy that is applied in place of the one before, which
// is kept for [Store.Before]. What that one kept stays until [Store.Settle], so that
// saving it again brings everything back. What is as it was before, as when an apply is
// repeated that was killed, leaves the record to go back to as it is, and when that
// was and who did it.
func (s *Store) Succeed(r, before *Record) error {
	if r.Binding == before.Binding && sameAtRuntime(r, before) && s.Says(before, r.Spec) {
		r.Serial, r.Applied, r.By, r.Boot, r.Spec = before.Serial, before.Applied, before.By, before.Boot, before.Spec
		return s.Save(r)
	}
	r.Serial = before.Serial + 1
	file := s.numbered(r.Interface, r.Serial, beforeSuffix)
	err := UnlessGone(os.Remove(file)) // of an apply that was killed, or failed
	if err == nil && before.Policy != "" {
		err = UnlessGone(os.Link(s.File(before.at()), file))
	}
	if err != nil {
		return s.room(err)
	}
	return s.Save(r)
}

// sameAtRuntime tells whether two records have the same of what is no policy's: a rollback may
// bring back another one.
func sameAtRuntime(a, b *Record) bool {
	return reflect.DeepEqual(append([]amend.Branch{}, a.Added...), append([]amend.Branch{}, b.Added...)) && slices.Equal(a.atRuntime(), b.atRuntime())
}

func (r *Record) atRuntime() []Binding {
	return slices.DeleteFunc(slices.Clone(r.Bindings), func(b Binding) bool { return !b.AtRuntime })
}

// Says tells whether the policy of a record said the same.
func (s *Store) Says(r *Record, spec *hierarchy.Spec) bool {
	if r.Policy == "" {
		return false
	}
	was, err := []byte(nil), error(nil)
	if r.Spec != nil {
		was, err = json.Marshal(nameless(r.Spec))
	} else {
		was, err = s.read(s.numbered(r.at(), r.Serial, specSuffix))
	}
	is, failed := json.Marshal(nameless(spec))
	return err == nil && failed == nil && bytes.Equal(was, is)
}

// nameless is a policy's interface as it is kept: whatever the interface is called.
func nameless(spec *hierarchy.Spec) *hierarchy.Spec {
	n := *spec
	n.Interface = ""
	return &n
}

// Settle forgets what belongs neither to a record in force nor to the [Kept] before it. What
// cannot be removed does no harm.
func (s *Store) Settle(r *Record) {
	_ = s.forget(r.Interface, func(serial uint32, suffix string) bool {
		oldest := serial
		if suffix == specSuffix {
			oldest++ // the record that it is of has the name of its successor
		}
		return serial > r.Serial || oldest+Kept <= r.Serial
	})
}

// Before is the record from before the apply that r came from, with what its policy said
// and under the name that the interface has now; nil where there was none.
func (s *Store) Before(r *Record) (*Record, error) { return s.before(r, r.at()) }

// before is Before where the files of the interface's applies have a name.
func (s *Store) before(r *Record, at string) (*Record, error) {
	file := s.numbered(at, r.Serial, beforeSuffix)
	b, err := s.read(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var of struct{ Interface string }
	if err := json.Unmarshal(b, &of); err != nil {
		return nil, damaged(file, err)
	}
	before := &Record{Interface: of.Interface}
	if err := s.load(file, before); err != nil {
		return nil, err
	}
	if before.Interface != r.Interface {
		before = before.Renamed(r.Interface)
	}
	before.Was = at
	before.Spec, err = s.Spec(before)
	before.Was = ""
	return before, err
}

// History is a record with all that are kept from before it, the latest first.
func (s *Store) History(r *Record) (all []*Record, err error) {
	for at := r.at(); err == nil && r != nil; r, err = s.before(r, at) {
		all = append(all, r)
	}
	return all, err
}

// carry gives the files of an interface's applies the name that it has now.
func (s *Store) carry(was, iface string) error {
	return s.applies(was, func(file string, serial uint32, suffix string) error {
		to := s.numbered(iface, serial, suffix)
		if err := UnlessGone(os.Remove(to)); err != nil {
			return err
		}
		return os.Link(file, to)
	})
}

// forget removes files of an interface's applies.
func (s *Store) forget(iface string, which func(serial uint32, suffix string) bool) error {
	return s.applies(iface, func(file string, serial uint32, suffix string) error {
		if !which(serial, suffix) {
			return nil
		}
		return UnlessGone(os.Remove(file))
	})
}

// applies visits the files of an interface's applies.
func (s *Store) applies(iface string, visit func(file string, serial uint32, suffix string) error) error {
	ents, err := os.ReadDir(s.Dir)
	if err != nil {
		return UnlessGone(err)
	}
	var errs []error
	for _, e := range ents {
		suffix := filepath.Ext(e.Name())
		if suffix != specSuffix && suffix != beforeSuffix {
			continue
		}
		number, ok := strings.CutPrefix(strings.TrimSuffix(e.Name(), suffix), iface+".")
		if serial, err := strconv.ParseUint(number, 10, 32); ok && err == nil {
			errs = append(errs, visit(filepath.Join(s.Dir, e.Name()), uint32(serial), suffix))
		}
	}
	return errors.Join(errs...)
}
