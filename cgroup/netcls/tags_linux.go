package netcls

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Tags is the [way.Store] of all ways that go by tags of net_cls, whatever reads them.
// They lie in the cgroups themselves, are in force at once, and stay when a classifier
// goes.
type Tags struct {
	Find  func() (*cgroupfs.Tree, error) // nil where net_cls is not mounted
	Mount func() (*cgroupfs.Tree, error) // Find, and mount it there
	// Classes are those of this interface; nil: every class is.
	Classes map[hierarchy.ClassID]hierarchy.Path
	// Others are cgroups that get or have a tag of their own: they and what lies below
	// them stay as they are when one above is tagged.
	Others map[string]bool
}

// ErrNotMounted: net_cls was unmounted since something was bound by it.
var ErrNotMounted = errors.New("net_cls is not mounted any more")

func (t *Tags) tree() (*cgroupfs.Tree, error) {
	tree, err := t.Find()
	if tree == nil && err == nil {
		err = ErrNotMounted
	}
	return tree, err
}

// Ours says whether a tag is one of this interface's classes.
func (t *Tags) Ours(c hierarchy.ClassID) bool {
	return c.Major() == hierarchy.Major && c.Minor() != 0 && t.has(c)
}

func (t *Tags) has(c hierarchy.ClassID) bool { return t.Classes == nil || t.Classes[c] != "" }

// Holds implements [way.Store].
func (t *Tags) Holds(k bind.TargetKind) error {
	switch k {
	case bind.TargetUser:
		return fmt.Errorf("users can be bound with cgroup v2 only, not with net_cls: %w", caps.ErrNotSupported)
	case bind.TargetLink:
		return way.ErrLinks
	}
	return nil
}

// Get implements [way.Store].
func (t *Tags) Get(k way.Key) (hierarchy.ClassID, bool, error) {
	tree, err := t.tree()
	if err != nil {
		return 0, false, err
	}
	class, err := tree.Class(k.Path)
	return class, t.Ours(class), err
}

// Put implements [way.Store].
func (t *Tags) Put(k way.Key, class hierarchy.ClassID) error {
	if k.Path == "" {
		return fmt.Errorf("net_cls knows cgroups only, neither users, interfaces nor cgroups that are gone: %w", caps.ErrNotSupported)
	}
	tree, err := t.tree()
	if err != nil {
		return err
	}
	c, err := tree.Class(k.Path)
	if err != nil || c == class {
		return err
	}
	if above, err := tree.Class(filepath.Dir(k.Path)); err == nil && above != c && c.Major() == hierarchy.Major && !t.has(c) {
		return fmt.Errorf("it is bound to %v of another interface, and a net_cls tag is one for all interfaces", c)
	}
	return tag(tree, k.Path, class, t.Others)
}

// Remove implements [way.Store].
func (t *Tags) Remove(k way.Key) error {
	tree, err := t.tree()
	if err != nil {
		return err
	}
	err = untag(tree, k.Path, t.Others)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // gone, and its tag with it
	}
	return err
}

// All are the cgroups that have a class of ours which is not their parent's, parents
// first. Where net_cls is not mounted there are none.
func (t *Tags) All(ctx context.Context, fn func(way.Key, hierarchy.ClassID) error) error {
	tree, err := t.Find()
	if tree == nil || err != nil {
		return err
	}
	classes := map[string]hierarchy.ClassID{}
	return tree.Walk("/", func(p string) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		c, err := tree.Class(p)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return fs.SkipDir
		}
		if err != nil {
			return err
		}
		classes[p] = c
		if p != "/" && c != classes[filepath.Dir(p)] && t.Ours(c) {
			return fn(way.Key{Kind: bind.TargetCgroup, Path: p}, c)
		}
		return nil
	})
}

// Flush implements [way.Store].
func (t *Tags) Flush() ([]string, error) { return nil, nil }

// Clear implements [way.Store].
func (t *Tags) Clear() error {
	tree, err := t.Mount()
	if err != nil {
		return err
	}
	var paths []string
	err = t.All(context.Background(), func(k way.Key, _ hierarchy.ClassID) error { paths = append(paths, k.Path); return nil })
	for _, p := range paths {
		err = errors.Join(err, untag(tree, p, nil))
	}
	return err
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
