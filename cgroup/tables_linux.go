package cgroup

import (
	"errors"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// tables is the classifier by rules of nf_tables, and the store of what those of nft go
// by.
type tables struct {
	nfTables
	tree    func() (*cgroupfs.Tree, error)
	rules   *ruleset // as last read or written
	draft   *ruleset // not in force yet
	filling bool     // what is put goes into the draft
}

func (t *tables) refresh() (err error) {
	t.rules, err = t.nfTables.read()
	return err
}

// take is the rules that come into force next.
func (t *tables) take(w bind.Way) *ruleset {
	if t.draft == nil || t.draft.way != w {
		t.draft = newRuleset(w)
	}
	return t.draft
}

func (t *tables) probe(w bind.Way) (on bool, err error) {
	if err := t.refresh(); err != nil || t.rules.current(w) {
		return err == nil, err
	}
	if t.index == 0 {
		return false, errors.New("the interface's index is not given")
	}
	return false, t.try(w)
}

func (t *tables) read() (bind.Way, uint32, error) {
	if err := t.refresh(); err != nil {
		return bind.WayNone, 0, err
	}
	return t.rules.way, t.rules.version, nil
}

func (t *tables) attach(w bind.Way, v uint32, _ bool, fill func()) error {
	if err := versioned(v); err != nil {
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

func (t *tables) detach() error {
	if t.rules == nil || t.rules.way == bind.WayNone {
		return nil
	}
	t.rules = newRuleset(bind.WayNone)
	return t.write(t.rules)
}

func (t *tables) before(uint32) ([]tcxProgram, error) { return nil, nil }

func (t *tables) holds(k bind.TargetKind) error {
	if k == bind.TargetLink {
		return errLinksByBPF
	}
	return nil
}

func (t *tables) get(k key) (class hierarchy.ClassID, bound bool, err error) {
	if t.rules.current(bind.WayNft) {
		class, bound = t.rules.get(k)
	}
	return class, bound, nil
}

func (t *tables) put(k key, class hierarchy.ClassID) error {
	if t.filling || !t.rules.current(bind.WayNft) {
		return t.take(bind.WayNft).put(k, class)
	}
	return t.rules.put(k, class)
}

func (t *tables) remove(k key) error {
	if t.rules.current(bind.WayNft) {
		t.rules.remove(k)
	}
	return nil // or gone with the classifier
}

func (t *tables) all(fn func(key, hierarchy.ClassID) error) error {
	if !t.rules.current(bind.WayNft) {
		return nil
	}
	return t.rules.each(fn)
}

func (t *tables) clear() error { return nil }

func (t *tables) flush() error {
	if !t.rules.current(bind.WayNft) || !t.rules.changed {
		return nil
	}
	t.rules.changed = false
	return t.write(t.rules)
}

func (t *tables) carrier(key) (home.Carrier, error) {
	return staying("the rules of nf_tables go by the cgroup in which a socket was made"), nil
}

func (t *tables) decider([]int, map[uint64]socket.Diag) (func(socket.Diag) (hierarchy.ClassID, error), error) {
	if !t.rules.current(bind.WayNft) {
		return nil, errOtherVersion
	}
	d, err := newDecider(t.tree, t.all)
	if err != nil {
		return nil, err
	}
	return func(s socket.Diag) (hierarchy.ClassID, error) {
		if s.Packet {
			return restClass, nil
		}
		return d.class(s)
	}, nil
}
