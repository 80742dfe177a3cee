package cgroupfs

import (
	"errors"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// Package containerd/cgroups says how the machine uses cgroups. Its managers, in
// cgroup1 and cgroup2, do what three writes do and bring systemd's D-Bus, protobuf
// and a logger along: a fifth of the program and of its start.

// Layout says in words how the machine uses cgroups.
func Layout() string {
	switch cgroups.Mode() {
	case cgroups.Unified:
		return "v2 alone"
	case cgroups.Hybrid:
		return "hybrid: v2 beside v1"
	case cgroups.Legacy:
		return "v1 alone"
	}
	return "none at /sys/fs/cgroup"
}

// V2 says whether the hierarchy is cgroup v2.
func (t *Tree) V2() bool { return t.magic == unix.CGROUP2_SUPER_MAGIC }

// Make makes a cgroup, and those above it, unless it is there. It needs no
// controllers: the class takes none.
func (t *Tree) Make(path string) error { return os.MkdirAll(t.root+path, 0o755) }

// Join moves a process with all its threads into a cgroup; 0 is the caller.
func (t *Tree) Join(path string, pid int) error {
	return t.write(path, "cgroup.procs", strconv.Itoa(pid))
}

const classidFile = "net_cls.classid"

// Class is the tag that a cgroup has for net_cls, 0 for none.
func (t *Tree) Class(path string) (hierarchy.ClassID, error) {
	b, err := os.ReadFile(t.root + path + "/" + classidFile)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32)
	return hierarchy.ClassID(n), err
}

// SetClass tags one cgroup.
func (t *Tree) SetClass(path string, class hierarchy.ClassID) error {
	return t.write(path, classidFile, strconv.FormatUint(uint64(class), 10))
}

// write puts text into a file of the cgroup.
func (t *Tree) write(path, file, text string) error {
	// no O_CREATE, no O_TRUNC: cgroup files take single writes
	f, err := os.OpenFile(t.root+path+"/"+file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}
