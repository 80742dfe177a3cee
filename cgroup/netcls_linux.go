package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

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

// untagAll takes away every class that ours knows.
func untagAll(t *cgroupfs.Tree, ours func(hierarchy.ClassID) bool) error {
	tags, err := tags(t, ours)
	for _, b := range tags {
		err = errors.Join(err, untag(t, b.Target.Name, nil))
	}
	return err
}

// tags are the cgroups that have a class of ours which is not their parent's,
// parents first.
func tags(t *cgroupfs.Tree, ours func(hierarchy.ClassID) bool) ([]hierarchy.Bound, error) {
	var bound []hierarchy.Bound
	classes := map[string]hierarchy.ClassID{}
	err := t.Walk("/", func(p string) error {
		c, err := t.Class(p)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return fs.SkipDir
		}
		if err != nil {
			return err
		}
		classes[p] = c
		if p != "/" && c != classes[filepath.Dir(p)] && ours(c) {
			bound = append(bound, hierarchy.Bound{Target: bind.ToCgroup(p), Class: c})
		}
		return nil
	})
	return bound, err
}
