package bpf

import (
	"context"
	"errors"
	"fmt"

	"github.com/cilium/ebpf/btf"

	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Hook is where the program sits on one network interface.
type Hook interface {
	// AttachEgress puts a tc program at the egress hook, in place of the one
	// that it put there before, with no packet in between.
	AttachEgress(progFD int, name string) error
	// EgressProgram is the id of that program, 0 when there is none.
	EgressProgram() (id uint32, err error)
	// DetachEgress removes that program. None is no error.
	DetachEgress() error
}

// Egress is the program at the egress hook of an interface, and the store of what that of
// bpf goes by: a [way.Classifier] and a [way.Store].
type Egress struct {
	hook    Hook
	types   *btf.Cache // of the kernel
	set     *set       // on the hook
	spare   *set       // not on the hook yet
	former  *set       // taken off the hook by this Egress: the way back when an apply fails
	filling bool       // what is put goes into the spare one
}

// NewEgress makes one for a hook. Nothing is read or changed yet.
func NewEgress(hook Hook) *Egress {
	return &Egress{hook: hook, types: btf.NewCache()}
}

// Try says why the kernel does not take the program of a way, nil when it does, and
// whether that of bpf sees who serves connections. It changes nothing.
func Try(w bind.Way) (serves bool, err error) {
	s, err := loadSet(w, nil)
	if err != nil {
		return false, err
	}
	return s.serves, s.close()
}

// Close lets go of descriptors. What is on the hook stays.
func (e *Egress) Close() error {
	var errs []error
	for _, s := range []*set{e.set, e.spare, e.former} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	return errors.Join(errs...)
}

// refresh opens the set that is on the hook.
func (e *Egress) refresh() error {
	id, err := e.hook.EgressProgram()
	if err != nil {
		return err
	}
	if e.set != nil && e.set.id == id {
		return nil
	}
	if e.set != nil {
		err = e.set.close()
		e.set = nil
	}
	if id != 0 && err == nil {
		e.set, err = openSet(id)
	}
	return err
}

// take is the set that goes onto the hook next.
func (e *Egress) take(w bind.Way) (*set, error) {
	if e.spare != nil && e.spare.way == w {
		return e.spare, nil
	}
	s, err := loadSet(w, e.types)
	if err != nil {
		return nil, err
	}
	if e.spare != nil {
		err = e.spare.close()
	}
	e.spare = s
	return s, err
}

// Probe implements [way.Classifier].
func (e *Egress) Probe(w bind.Way) (on bool, err error) {
	if err := e.refresh(); err != nil || e.set.current(w) {
		return err == nil, err
	}
	_, err = e.take(w)
	return false, err
}

// Read implements [way.Classifier].
func (e *Egress) Read() (bind.Way, uint32, error) {
	if err := e.refresh(); err != nil || e.set == nil {
		return bind.WayNone, 0, err
	}
	return e.set.way, e.set.version, nil
}

// Attach puts a former one back as it is; a new one is filled, and so is one of this
// version, whose bindings may be out of date.
func (e *Egress) Attach(w bind.Way, v uint32, over bool, fill func()) error {
	on := e.former
	if on == nil || on.way != w || on.version != v || v == way.Version {
		if err := way.Known(v); err != nil {
			return err
		}
		var err error
		if on, err = e.take(w); err != nil {
			return err
		}
		e.filling = true
		fill()
		e.filling = false
		if on.held && over { // so that what they have been given is not lost for a moment
			if _, _, err := on.adopt(e.types); err != nil { // Flush says which could not be given
				return err
			}
		}
		on.changed, on.removed = false, false
	}
	if err := e.hook.AttachEgress(on.prog.FD(), name(on.way)); err != nil {
		return err
	}
	var err error
	if e.former != nil && e.former != on {
		err = e.former.close()
	}
	e.set, e.former = on, e.set
	if e.spare == on {
		e.spare = nil
	}
	return err
}

// Detach implements [way.Classifier].
func (e *Egress) Detach() error {
	if e.set == nil {
		return nil
	}
	return errors.Join(e.hook.DetachEgress(), e.refresh())
}

// Before lists the programs at TCX: those come first, and unless one of them returns
// TCX_NEXT the filters behind are not asked (sch_handle_egress, net/core/dev.c, v6.12).
func (e *Egress) Before(index uint32) ([]way.Program, error) { return TCX(index, hierarchy.Send) }

// Holds implements [way.Store].
func (e *Egress) Holds(bind.TargetKind) error { return nil }

// inForce is the set by which packets are bound, nil where there is none of this version.
func (e *Egress) inForce() *set {
	if e.set.current(bind.WayBPF) {
		return e.set
	}
	return nil
}

// Get implements [way.Store].
func (e *Egress) Get(k way.Key) (hierarchy.ClassID, bool, error) {
	s := e.inForce()
	if s == nil {
		return 0, false, nil
	}
	return s.get(k)
}

// Put implements [way.Store].
func (e *Egress) Put(k way.Key, class hierarchy.ClassID) (err error) {
	s := e.inForce()
	if s == nil || e.filling {
		if s, err = e.take(bind.WayBPF); err != nil {
			return err
		}
	}
	return s.put(k, class)
}

// Remove implements [way.Store].
func (e *Egress) Remove(k way.Key) error {
	s := e.inForce()
	if s == nil {
		return nil // gone with the classifier
	}
	s.changed, s.removed = true, true
	if k.Kind == bind.TargetCgroup {
		return s.unbindCgroup(k.ID)
	}
	return s.unbindNumber(numberedOf(k.Kind), uint32(k.ID))
}

// All implements [way.Store].
func (e *Egress) All(_ context.Context, fn func(way.Key, hierarchy.ClassID) error) error {
	s := e.inForce()
	if s == nil {
		return nil
	}
	return s.each(fn)
}

// Clear implements [way.Store].
func (e *Egress) Clear() error { return nil }

// Flush implements [way.Store].
func (e *Egress) Flush() (left []string, err error) {
	s := e.inForce()
	if s == nil {
		return nil, nil
	}
	changed, removed, held := s.changed, s.removed, s.held
	s.changed, s.removed, s.held = false, false, false
	if held {
		var adopted bool
		if adopted, left, err = s.adopt(e.types); err != nil {
			return left, err
		}
		changed = changed || adopted
	}
	if !changed {
		return left, nil
	}
	if removed {
		if err := s.relevel(); err != nil {
			return left, err
		}
	}
	return left, s.publish()
}

// Carrier is the best that this kernel has to bring open sockets along into a cgroup.
func (e *Egress) Carrier(of way.Key) (home.Carrier, error) {
	s := e.inForce()
	if s == nil {
		return nil, way.ErrOther
	}
	it, err := newIterator(s, of.ID, e.types)
	if err == nil {
		return carrying{it, s}, nil
	}
	b, other := newBorrower(s, of.ID)
	if other == nil {
		return carrying{b, s}, nil
	}
	return home.Staying(fmt.Sprintf("this kernel lets nobody reach the sockets of another process (%v)", way.Clauses{err, other})), nil
}
