package cgroupfs

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// mountSource is what the mount table names as the source of our mounts. The kernel
// asks for none with cgroups, and everybody else writes "cgroup" or the like.
const mountSource = "vifshape"

// MountNetCls mounts the net_cls hierarchy where a distribution would, else below
// runDir, and says where.
func MountNetCls(runDir string) (*Tree, error) {
	dir := "/sys/fs/cgroup/net_cls"
	var st unix.Statfs_t
	// on a pure v2 host this would make a cgroup, not a directory
	if unix.Statfs("/sys/fs/cgroup", &st) != nil || st.Type != unix.TMPFS_MAGIC {
		dir = filepath.Join(runDir, "net_cls")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("mount net_cls: %w", caps.Explain(err, unix.CAP_SYS_ADMIN))
	}
	err := unix.Mount(mountSource, dir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "net_cls")
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
