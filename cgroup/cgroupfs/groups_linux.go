package cgroupfs

import (
	"errors"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3"
	"github.com/containerd/cgroups/v3/cgroup1"
	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// Cgroups are made, joined and tagged by way of package containerd/cgroups. What
// it lacks or does not do well enough is our own: it looks for mounts in fixed
// places only; it knows no ids and reads no class ids; its lists of processes fail
// when a cgroup vanishes meanwhile or is threaded, and take 4.5 times as long,
// because it looks at every control file; its removal does not tell whether
// processes are in the way, and takes 13 times as long (measured with 1,000
// cgroups).

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

// netCls is the hierarchy in the library's terms. Its default one would make a
// cgroup for every v1 controller of the machine.
func (t *Tree) netCls() ([]cgroup1.Subsystem, error) {
	return []cgroup1.Subsystem{cgroup1.NewNetCls(t.root)}, nil
}

// v1Path is a cgroup's path for the library, which looks below root/net_cls.
func v1Path(path string) cgroup1.Path { return cgroup1.StaticPath("../" + path) }

// openV1 finds a cgroup of the v1 hierarchy. One that is not there is
// fs.ErrNotExist.
func (t *Tree) openV1(path string) (cgroup1.Cgroup, error) {
	g, err := cgroup1.Load(v1Path(path), cgroup1.WithHierarchy(t.netCls))
	if errors.Is(err, cgroup1.ErrCgroupDeleted) {
		err = fs.ErrNotExist
	}
	return g, err
}

// Make makes a cgroup, and those above it, unless it is there.
func (t *Tree) Make(path string) (err error) {
	if t.V2() {
		// no resources, no controllers: the class needs none
		_, err = cgroup2.NewManager(t.root, path, &cgroup2.Resources{})
	} else {
		_, err = cgroup1.New(v1Path(path), &specs.LinuxResources{}, cgroup1.WithHierarchy(t.netCls))
	}
	return err
}

// Join moves a process with all its threads into a cgroup.
func (t *Tree) Join(path string, pid int) error {
	if t.V2() {
		g, err := cgroup2.Load(path, cgroup2.WithMountpoint(t.root))
		if err != nil {
			return err
		}
		return g.AddProc(uint64(pid))
	}
	g, err := t.openV1(path)
	if err != nil {
		return err
	}
	return g.Add(cgroup1.Process{Pid: pid})
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
	if class == 0 { // which the library takes for nothing to do
		return t.write(path, classidFile, "0")
	}
	g, err := t.openV1(path)
	if err != nil {
		return err
	}
	id := uint32(class)
	return g.Update(&specs.LinuxResources{Network: &specs.LinuxNetwork{ClassID: &id}})
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
