package nft

import (
	"context"
	"errors"

	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Tables is the classifier by rules of nf_tables, and the store of what those of nft go
// by: a [way.Classifier] and a [way.Store].
type Tables struct {
	place
	rules   *ruleset // as last read or written
	draft   *ruleset // not in force yet
	filling bool     // what is put goes into the draft
}

// New makes the tables' part for an interface by its name and index in a network
// namespace, 0 for the caller's. Without an index there is none.
func New(netNS int, name string, index uint32) *Tables {
	return &Tables{place: place{netNS, name, index}}
}

// Try says why the kernel does not take the rules of a way, nil when it does. It changes
// nothing.
func Try(w bind.Way) error { return place{iface: "lo", index: 1}.try(w) }

// DropStale removes the rules that interfaces which are gone have left in a network
// namespace, 0 for the caller's.
func DropStale(netNS int) error {
	return place{netNS: netNS}.write(newRuleset(bind.WayNone))
}

func (t *Tables) refresh() (err error) {
	t.rules, err = t.place.read()
	return err
}

// take is the rules that come into force next.
func (t *Tables) take(w bind.Way) *ruleset {
	if t.draft == nil || t.draft.way != w {
		t.draft = newRuleset(w)
	}
	return t.draft
}

// Probe implements [way.Classifier].
func (t *Tables) Probe(w bind.Way) (on bool, err error) {
	if err := t.refresh(); err != nil || t.rules.current(w) {
		return err == nil, err
	}
	if t.index == 0 {
		return false, errors.New("the interface's index is not given")
	}
	return false, t.try(w)
}

// Read implements [way.Classifier].
func (t *Tables) Read() (bind.Way, uint32, error) {
	if err := t.refresh(); err != nil {
		return bind.WayNone, 0, err
	}
	return t.rules.way, t.rules.version, nil
}

// Attach implements [way.Classifier].
func (t *Tables) Attach(w bind.Way, v uint32, _ bool, fill func()) error {
	if err := way.Known(v); err != nil {
		return err
	}
	r := t.take(w)
	t.filling = true
	fill()
	t.filling = false
	if err := t.write(r); err != nil {
		return err
	}
	r.changed = false
	t.rules, t.draft = r, nil
	return nil
}

// Detach implements [way.Classifier].
func (t *Tables) Detach() error {
	if t.rules == nil || t.rules.way == bind.WayNone {
		return nil
	}
	t.rules = newRuleset(bind.WayNone)
	return t.write(t.rules)
}

// Before implements [way.Classifier].
func (t *Tables) Before(uint32) ([]way.Program, error) { return nil, nil }

// Holds implements [way.Store].
func (t *Tables) Holds(k bind.TargetKind) error {
	if k == bind.TargetLink {
		return way.ErrLinks
	}
	return nil
}

// Get implements [way.Store].
func (t *Tables) Get(k way.Key) (class hierarchy.ClassID, bound bool, err error) {
	if t.rules.current(bind.WayNft) {
		class, bound = t.rules.get(k)
	}
	return class, bound, nil
}

// Put implements [way.Store].
func (t *Tables) Put(k way.Key, class hierarchy.ClassID) error {
	if t.filling || !t.rules.current(bind.WayNft) {
		return t.take(bind.WayNft).put(k, class)
	}
	return t.rules.put(k, class)
}

// Remove implements [way.Store].
func (t *Tables) Remove(k way.Key) error {
	if t.rules.current(bind.WayNft) {
		t.rules.remove(k)
	}
	return nil // or gone with the classifier
}

// All implements [way.Store].
func (t *Tables) All(_ context.Context, fn func(way.Key, hierarchy.ClassID) error) error {
	if !t.rules.current(bind.WayNft) {
		return nil
	}
	return t.rules.each(fn)
}

// Clear implements [way.Store].
func (t *Tables) Clear() error { return nil }

// Flush implements [way.Store].
func (t *Tables) Flush() ([]string, error) {
	if !t.rules.current(bind.WayNft) || !t.rules.changed {
		return nil, nil
	}
	t.rules.changed = false
	return nil, t.write(t.rules)
}
