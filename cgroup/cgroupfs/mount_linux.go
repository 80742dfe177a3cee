package cgroupfs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// mountSource is what the mount table names as the source of our mounts. The kernel
// asks for none with cgroups, and everybody else writes "cgroup" or the like.
const mountSource = "vifshape"

// MountNetCls mounts the net_cls hierarchy where a distribution would, else below
// runDir, and says where.
func MountNetCls(runDir string) (*Tree, error) {
	dir, err := placeOfNetCls(runDir)
	if err != nil {
		return nil, fmt.Errorf("mount net_cls: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("mount net_cls: %w", caps.Explain(err, unix.CAP_SYS_ADMIN))
	}
	err = unix.Mount(mountSource, dir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "net_cls")
	if err != nil {
		os.Remove(dir)
		switch err {
		case unix.EBUSY:
			return nil, fmt.Errorf("mount net_cls: it belongs to a hierarchy with other controllers that is mounted elsewhere: %w", err)
		case unix.EINVAL, unix.ENODEV, unix.ENOENT:
			return nil, fmt.Errorf("mount net_cls: %w: it has no cgroup v1 or no net_cls controller (CONFIG_CGROUP_NET_CLASSID)", caps.ErrNotSupported)
		}
		return nil, fmt.Errorf("mount net_cls: %w", caps.Explain(err, unix.CAP_SYS_ADMIN))
	}
	t, err := openTree(dir, dir)
	if err == nil {
		t.Mine = true
	}
	return t, err
}

// placeOfNetCls is where it is mounted: beside the hierarchies of v1 that are. What runs
// containers by v1, as runc does where /sys/fs/cgroup is not v2, takes every such mount for one of
// them, makes the cgroups of containers in those alone that lie beside the first, and starts no
// container where it cannot reach one, as below a /run that is covered. By v2 it looks at none
// (rootPath and GetCgroupMounts, libcontainer/cgroups, runc v1.1.5).
func placeOfNetCls(runDir string) (string, error) {
	const name, usual = "net_cls", "/sys/fs/cgroup"
	var st unix.Statfs_t
	switch err := unix.Statfs(usual, &st); {
	case err == nil && st.Type == unix.TMPFS_MAGIC:
		return filepath.Join(usual, name), nil
	case err == nil && st.Type == unix.CGROUP2_SUPER_MAGIC:
		return filepath.Join(runDir, name), nil
	}
	mounts, err := mountsIn("/proc/thread-self/mountinfo")
	if err != nil {
		return "", err
	}
	first := slices.IndexFunc(mounts, func(m *mountinfo.Info) bool { return m.FSType == "cgroup" })
	if first >= 0 {
		beside := filepath.Dir(mounts[first].Mountpoint)
		// in a hierarchy this would make a cgroup, not a directory, and sysfs takes none
		no := []int64{unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC, unix.SYSFS_MAGIC}
		if err := unix.Statfs(beside, &st); err == nil && beside != "/" && !slices.Contains(no, int64(st.Type)) {
			return filepath.Join(beside, name), nil
		}
	}
	return filepath.Join(runDir, name), nil
}

// Unmount takes a mount of [MountNetCls] away, unless there are cgroups in it: then
// something is bound there, or somebody else uses it. t is closed.
func (t *Tree) Unmount() error {
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
		return fmt.Errorf("unmount net_cls at %s: %w", t.Where, err)
	}
}
