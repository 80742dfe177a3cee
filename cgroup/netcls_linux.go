package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

const classidFile = "net_cls.classid"

func (t *tree) classid(path string) (hierarchy.ClassID, error) {
	b, err := os.ReadFile(t.root + path + "/" + classidFile)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	return hierarchy.ClassID(n), err
}

// tag gives a cgroup the class, and with it those below that had the same as it:
// the kernel copies a class only when a cgroup is made (cgrp_css_alloc,
// net/core/netclassid_cgroup.c, v6.12). Cgroups in skip and what lies below them
// stay as they are.
func (t *tree) tag(path string, class hierarchy.ClassID, skip map[string]bool) error {
	was, err := t.classid(path)
	if err != nil {
		return fmt.Errorf("cgroup %s: %w", path, err)
	}
	return t.walk(path, func(p string) error {
		c, err := t.classid(p)
		if p != path && (err != nil || c != was || skip[p]) {
			return fs.SkipDir
		}
		return t.setClass(p, class)
	})
}

// untag gives a cgroup the class that its parent has.
func (t *tree) untag(path string, skip map[string]bool) error {
	class, err := t.classid(filepath.Dir(path))
	if err != nil {
		return err
	}
	return t.tag(path, class, skip)
}

// untagAll takes away every class that ours knows.
func (t *tree) untagAll(ours func(hierarchy.ClassID) bool) error {
	tags, err := t.tags(ours)
	for _, b := range tags {
		err = errors.Join(err, t.untag(strings.TrimPrefix(b.Target, cgroupTarget), nil))
	}
	return err
}

// tags are the cgroups that have a class of ours which is not their parent's,
// parents first.
func (t *tree) tags(ours func(hierarchy.ClassID) bool) ([]hierarchy.Bound, error) {
	var bound []hierarchy.Bound
	classes := map[string]hierarchy.ClassID{}
	err := t.walk("/", func(p string) error {
		c, err := t.classid(p)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return fs.SkipDir
		}
		if err != nil {
			return err
		}
		classes[p] = c
		if p != "/" && c != classes[filepath.Dir(p)] && ours(c) {
			bound = append(bound, hierarchy.Bound{Target: cgroupTarget + p, Class: c})
		}
		return nil
	})
	return bound, err
}

// mountSource is what the mount table names as the source of our mounts. The kernel
// asks for none with cgroups, and everybody else writes "cgroup" or the like.
const mountSource = "vifshape"

// mountNetCls mounts the net_cls hierarchy where a distribution would, else below
// runDir, and says where.
func mountNetCls(runDir string) (*tree, error) {
	dir := "/sys/fs/cgroup/net_cls"
	var st unix.Statfs_t
	// on a pure v2 host this would make a cgroup, not a directory
	if unix.Statfs("/sys/fs/cgroup", &st) != nil || st.Type != unix.TMPFS_MAGIC {
		dir = filepath.Join(runDir, "net_cls")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("mount net_cls: %w", privileges(err, unix.CAP_SYS_ADMIN))
	}
	err := unix.Mount(mountSource, dir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "net_cls")
	if err != nil {
		os.Remove(dir)
		switch err {
		case unix.EBUSY:
			return nil, fmt.Errorf("mount net_cls: it belongs to a hierarchy with other controllers that is mounted elsewhere: %w", err)
		case unix.EINVAL, unix.ENODEV, unix.ENOENT:
			return nil, fmt.Errorf("mount net_cls: %w: it has no cgroup v1 or no net_cls controller (CONFIG_CGROUP_NET_CLASSID)", ErrNotSupported)
		}
		return nil, fmt.Errorf("mount net_cls: %w", privileges(err, unix.CAP_SYS_ADMIN))
	}
	t, err := openTree(dir, dir)
	if err == nil {
		t.mine = true
	}
	return t, err
}

// unmountNetCls takes our mount away, unless there are cgroups in it: then
// something is bound there, or somebody else uses it. t is closed.
func (t *tree) unmountNetCls() error {
	entries, err := os.ReadDir(t.root)
	if err != nil || slices.ContainsFunc(entries, fs.DirEntry.IsDir) {
		return err
	}
	switch err := unix.Unmount(t.root, unix.UMOUNT_NOFOLLOW); err {
	case nil:
		return os.Remove(t.root)
	case unix.EBUSY, unix.EINVAL: // another vifshape is at work, or was faster
		return nil
	case unix.EPERM: // whoever only looks leaves it
		return nil
	default:
		return fmt.Errorf("unmount net_cls at %s: %w", t.where, err)
	}
}
