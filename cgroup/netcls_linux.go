package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// tags is the store of all ways that go by tags of net_cls, whatever reads them. They
// lie in the cgroups themselves, are in force at once, and stay when a classifier goes.
type tags struct {
	find    func() (*cgroupfs.Tree, error) // nil where net_cls is not mounted
	mount   func() (*cgroupfs.Tree, error) // find, and mount it there
	classes func(hierarchy.ClassID) bool   // whether a class is one of this interface's
	// others are cgroups that get or have a tag of their own: they and what lies below
	// them stay as they are when one above is tagged.
	others map[string]bool
}

var errNotMounted = errors.New("net_cls is not mounted any more")

func (t *tags) tree() (*cgroupfs.Tree, error) {
	tree, err := t.find()
	if tree == nil && err == nil {
		err = errNotMounted
	}
	return tree, err
}

func (t *tags) ours(c hierarchy.ClassID) bool {
	return c.Major() == hierarchy.Major && c.Minor() != 0 && t.classes(c)
}

func (t *tags) holds(k bind.TargetKind) error {
	switch k {
	case bind.TargetUser:
		return fmt.Errorf("users can be bound with cgroup v2 only, not with net_cls: %w", caps.ErrNotSupported)
	case bind.TargetLink:
		return errLinksByBPF
	}
	return nil
}

func (t *tags) get(k key) (hierarchy.ClassID, bool, error) {
	tree, err := t.tree()
	if err != nil {
		return 0, false, err
	}
	class, err := tree.Class(k.path)
	return class, t.ours(class), err
}

func (t *tags) put(k key, class hierarchy.ClassID) error {
	if k.path == "" {
		return fmt.Errorf("net_cls knows cgroups only, neither users, interfaces nor cgroups that are gone: %w", caps.ErrNotSupported)
	}
	tree, err := t.tree()
	if err != nil {
		return err
	}
	c, err := tree.Class(k.path)
	if err != nil || c == class {
		return err
	}
	if above, err := tree.Class(filepath.Dir(k.path)); err == nil && above != c && c.Major() == hierarchy.Major && !t.classes(c) {
		return fmt.Errorf("it is bound to %v of another interface, and a net_cls tag is one for all interfaces", c)
	}
	return tag(tree, k.path, class, t.others)
}

func (t *tags) remove(k key) error {
	tree, err := t.tree()
	if err != nil {
		return err
	}
	err = untag(tree, k.path, t.others)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone, and its tag with it
	}
	return err
}

// all are the cgroups that have a class of ours which is not their parent's, parents
// first. Where net_cls is not mounted there are none.
func (t *tags) all(fn func(key, hierarchy.ClassID) error) error {
	tree, err := t.find()
	if tree == nil || err != nil {
		return err
	}
	classes := map[string]hierarchy.ClassID{}
	return tree.Walk("/", func(p string) error {
		c, err := tree.Class(p)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return fs.SkipDir
		}
		if err != nil {
			return err
		}
		classes[p] = c
		if p != "/" && c != classes[filepath.Dir(p)] && t.ours(c) {
			return fn(key{kind: bind.TargetCgroup, path: p}, c)
		}
		return nil
	})
}

func (t *tags) flush() error { return nil }

func (t *tags) clear() error {
	tree, err := t.mount()
	if err != nil {
		return err
	}
	var paths []string
	err = t.all(func(k key, _ hierarchy.ClassID) error { paths = append(paths, k.path); return nil })
	for _, p := range paths {
		err = errors.Join(err, untag(tree, p, nil))
	}
	return err
}

// carrier: open sockets follow by themselves.
func (t *tags) carrier(key) (home.Carrier, error) { return nil, nil }

func (t *tags) decider([]int, map[uint64]socket.Diag) (func(socket.Diag) (hierarchy.ClassID, error), error) {
	return func(s socket.Diag) (hierarchy.ClassID, error) {
		switch {
		case s.Packet:
			return 0, nil
		case !t.ours(s.Tag):
			return restClass, nil
		}
		return s.Tag, nil
	}, nil
}

// tag gives a cgroup the class, and with it those below that had the same as it:
// the kernel copies a class only when a cgroup is made (cgrp_css_alloc,
// net/core/netclassid_cgroup.c, v6.12). Cgroups in skip and what lies below them
// stay as they are.
func tag(t *cgroupfs.Tree, path string, class hierarchy.ClassID, skip map[string]bool) error {
	was, err := t.Class(path)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	return t.Walk(path, func(p string) error {
		c, err := t.Class(p)
		if p != path && (err != nil || c != was || skip[p]) {
			return fs.SkipDir
		}
		return t.SetClass(p, class)
	})
}

// untag gives a cgroup the class that its parent has.
func untag(t *cgroupfs.Tree, path string, skip map[string]bool) error {
	class, err := t.Class(filepath.Dir(path))
	if err != nil {
		return err
	}
	return tag(t, path, class, skip)
}

// filter is the kernel's own cgroup classifier on the root qdisc.
type filter struct {
	hook Hook
	on   bool
}

func (f *filter) probe(bind.Way) (on bool, err error) { return false, nil }

func (f *filter) read() (w bind.Way, v uint32, err error) {
	if f.on, err = f.hook.CgroupFilter(); f.on {
		return bind.WayClsCgroup, version, err
	}
	return bind.WayNone, 0, err
}

func (f *filter) attach(_ bind.Way, v uint32, _ bool, fill func()) error {
	if err := versioned(v); err != nil {
		return err
	}
	fill()
	err := f.hook.AttachCgroupFilter()
	f.on = f.on || err == nil
	return err
}

func (f *filter) detach() error {
	if !f.on {
		return nil
	}
	f.on = false
	return f.hook.DetachCgroupFilter()
}

func (f *filter) before(uint32) ([]tcxProgram, error) { return nil, nil }
