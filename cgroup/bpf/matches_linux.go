package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
)

// Matching is where the program of match.bpf.c sits on one network interface.
type Matching interface {
	// AttachMatch puts a tc program behind that of the classifier, in place of the one that
	// it put there before.
	AttachMatch(progFD int, name string) error
	// MatchProgram is the id of that program, 0 when there is none.
	MatchProgram() (id uint32, err error)
	// DetachMatch removes it. None is no error.
	DetachMatch() error
}

// Matches are the program by which packets get into branches that have matches, and what it
// goes by. It goes by the class that packets have when the classifier has seen them.
type Matches struct {
	hook   Matching
	on     *matches // at the hook, as of the last look
	now    *tables  // that are in force there, nil where they were not looked at
	former *tables  // that were in force before the last change: the way back when an apply fails
}

// NewMatches makes one for an interface. Nothing is read or changed yet.
func NewMatches(hook Matching) *Matches { return &Matches{hook: hook} }

// Close lets go of descriptors. What is at the hook stays.
func (x *Matches) Close() error {
	err := x.on.close()
	x.on, x.now, x.former = nil, nil, nil
	return err
}

// refresh opens what is at the hook.
func (x *Matches) refresh() error {
	id, err := x.hook.MatchProgram()
	if err != nil || x.on != nil && x.on.id == id {
		return err
	}
	err = x.on.close()
	x.on, x.now = nil, nil
	if err == nil && id != 0 {
		x.on, err = openMatches(id)
	}
	return err
}

// openMatches finds the program again by its id. A program that is not of this package has
// version 0.
func openMatches(id uint32) (_ *matches, err error) {
	m := &matches{id: id}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("read the program of matches: %w", caps.Explain(err, unix.CAP_SYS_ADMIN)), m.close())
		}
	}()
	if m.prog, err = ebpf.NewProgramFromID(ebpf.ProgramID(id)); err != nil {
		return nil, err
	}
	_, ids, err := programInfo(m.prog)
	if err != nil {
		return nil, err
	}
	for _, id := range ids {
		of, err := ebpf.NewMapFromID(id)
		if err != nil {
			return nil, err
		}
		name, err := mapName(of)
		if err != nil {
			return nil, errors.Join(err, of.Close())
		}
		m.keep(name, of)
	}
	if version, err := m.version(); err != nil || version != way.Version {
		return m, err
	}
	var c matchVifMatching
	err = m.config.Lookup(uint32(0), &c)
	m.tracks = c.Tracks != 0
	return m, err
}

// version is that of the layouts of the maps.
func (m *matches) version() (uint32, error) {
	if m == nil || m.config == nil {
		return 0, nil
	}
	b, err := m.config.LookupBytes(uint32(0))
	if err != nil || len(b) < 4 {
		return 0, err
	}
	return binary.NativeEndian.Uint32(b), nil
}

// Version is that of the program, 0 where there is none. It is [Unfinished] where the kernel
// has come to tell what addresses were before translation since the program was loaded.
func (x *Matches) Version() (uint32, error) {
	if err := x.refresh(); err != nil {
		return 0, err
	}
	version, err := x.on.version()
	if err != nil || version != way.Version {
		return version, err
	}
	if behind, err := x.on.behind(); behind || err != nil {
		return Unfinished, err
	}
	return version, nil
}

// Read is the version of the program, 0 for none, and the branches that it knows, as far as
// its maps show them: by ID, Class and Digest. One of another version shows none.
func (x *Matches) Read() (version uint32, all []hierarchy.Matched, err error) {
	if version, err = x.Version(); err != nil || version != way.Version {
		return version, nil, err
	}
	if x.now == nil {
		if x.now, err = x.on.read(); err != nil {
			return 0, nil, fmt.Errorf("read the matches: %w", caps.Explain(err, unix.CAP_SYS_ADMIN))
		}
	}
	return version, x.now.matched(), nil
}

// Check says why the matches of branches cannot be in force on an interface, nil when they
// can: there are too many, or of too many kinds. It changes nothing.
func Check(all []hierarchy.Matched) error {
	_, err := compile(all, nil)
	return err
}

// inForce is what packets go by, nil where there is none of this version.
func (x *Matches) inForce() (*matches, error) {
	version, err := x.Version()
	if err != nil || version != way.Version {
		return nil, err
	}
	return x.on, nil
}

// Prepare puts the program to the hook, where it is not there yet in this version, with room
// for the matches of branches. None is in force there, but for those of an Unfinished one.
func (x *Matches) Prepare(all []hierarchy.Matched) error {
	version, err := x.Version()
	if err != nil || version == way.Version {
		return err
	}
	if version == Unfinished {
		now, err := x.on.read()
		if err != nil {
			return err
		}
		return x.attach(now, now)
	}
	want, err := compile(all, nil)
	if err != nil {
		return err
	}
	return x.attach(want, &tables{})
}

// attach puts a new program to the hook that has room for tables, and others in force.
func (x *Matches) attach(room, want *tables) error {
	next, err := loadMatches(room)
	if err != nil {
		return err
	}
	if err = next.change(want); err == nil {
		err = x.hook.AttachMatch(next.prog.FD(), matchProgVifMatch)
	}
	if err != nil {
		return errors.Join(err, next.close())
	}
	err = x.on.close()
	x.on, x.now = next, nil
	return err
}

// Change goes from the branches that are in force to others, all at once. Those that are
// wanted are in known, in full, unless they are what was in force before the last change, or
// a part of what is in force now.
func (x *Matches) Change(to []hierarchy.Matched, known []hierarchy.Matched) error {
	version, now, err := x.Read()
	if err != nil {
		return err
	}
	if version != way.Version {
		if len(to) == 0 {
			return nil
		}
		return way.ErrOther
	}
	var want *tables
	switch wanted := digests(to); {
	case maps.Equal(wanted, digests(now)):
		return nil
	case maps.Equal(wanted, digests(known)):
		if want, err = compile(known, x.now); err != nil {
			return err
		}
	case x.former != nil && maps.Equal(wanted, digests(x.former.matched())):
		want = x.former
	default:
		if want, err = x.now.without(wanted); err != nil {
			return err
		}
	}
	former := x.now
	if x.on.holds(want) && (x.on.tracks || !want.hosts || Tracks() != nil) {
		err = x.on.change(want)
	} else {
		err = x.attach(want, want)
	}
	x.now, x.former = nil, former // whatever is in force by now
	if err != nil {
		return fmt.Errorf("change the matches: %w", err)
	}
	return nil
}

func digests(all []hierarchy.Matched) map[hierarchy.ClassID]hierarchy.Digest {
	d := make(map[hierarchy.ClassID]hierarchy.Digest, len(all))
	for i := range all {
		d[all[i].ID] = all[i].Digest
	}
	return d
}

// without are the tables with some of their branches alone. Packets that fitted the others
// stay where they were before, or go to one of a match that is less specific.
func (t *tables) without(stay map[hierarchy.ClassID]hierarchy.Digest) (*tables, error) {
	left, all := *t, t.matched()
	gone := map[uint16]bool{}
	for _, m := range all {
		if d, stays := stay[m.ID]; !stays {
			gone[m.Class.Minor()] = true
		} else if d == m.Digest {
			delete(stay, m.ID)
		}
	}
	if len(stay) > 0 {
		return nil, errors.New("of matches that were in force before only the numbers are known: apply the policy again")
	}
	left.v4, left.v6, left.rules = maps.Clone(t.v4), maps.Clone(t.v6), maps.Clone(t.rules)
	maps.DeleteFunc(left.v4, func(k matchVifV4, v uint64) bool {
		if k.head() {
			return gone[hierarchy.ClassID(k.Sender).Minor()]
		}
		return v>>32 == 0 && gone[uint16(v>>16)]
	})
	maps.DeleteFunc(left.v6, func(_ matchVifV6, v uint64) bool { return v>>32 == 0 && gone[uint16(v>>16)] })
	maps.DeleteFunc(left.rules, func(_ matchVifRule, v uint32) bool { return gone[uint16(v>>16)] })
	return &left, nil
}

// Detach takes the program away.
func (x *Matches) Detach() error {
	if err := x.refresh(); err != nil || x.on == nil {
		return err
	}
	if x.now == nil {
		if version, err := x.on.version(); err == nil && version == way.Version {
			x.now, _ = x.on.read() // the way back, if there is one
		}
	}
	if err := x.hook.DetachMatch(); err != nil {
		return err
	}
	if x.now != nil && (x.former == nil || len(x.now.matched()) > 0) {
		x.former = x.now
	}
	err := x.on.close()
	x.on, x.now = nil, nil
	return err
}
