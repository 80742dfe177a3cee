package confine

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// What crosses the border: all that a program has from before it was locked in, by which
// it could reach what the border hides, and what becomes of it.
//
//	descriptors above 2          closed at exec (closeInherited)
//	descriptors 0, 1 and 2       refused where they lead further (handedOut); sockets,
//	                             terminals and devices are handed in on purpose
//	the mounts that they lie on  open_by_handle_at is filtered; without it nothing leads
//	                             from a file to the directories above
//	root and working directory   unshare moves them to the new mounts (copy_mnt_ns,
//	                             fs/namespace.c, v6.12); others are refused (among)
//	mounts outside a chroot      covered with all others (onTop)
//	program and interpreter      opened by exec, behind the border
//	memory, its mappings, shared memory, asynchronous reads and writes, rings
//	                             go with exec; io_uring is filtered, with rings handed in
//	shared tables of descriptors and directories (CLONE_FILES, CLONE_FS)
//	                             unshared by exec and by unshare
//	namespaces                   cgroups and mounts are new; the others are those to be in,
//	                             setns is filtered
//	/proc/PID/root, cwd, fd, mem, map_files, ns of processes outside; ptrace and the like
//	                             Landlock; what it traces already, as a debugger that
//	                             becomes vifshape, is handed in on purpose
//	the controlling terminal     TIOCSTI and TIOCLINUX are filtered, function keys
//	                             (KDSKBSENT) go with CAP_SYS_TTY_CONFIG
//	capabilities, ambient ones too
//	                             dropped; no_new_privs keeps it so
//	keyrings, timers, limits, signals, the process group, children
//	                             stay; none leads to a file or a socket
//	the run directory            read-only, its locks hidden (kept.put)

// controls are the file systems by whose files root, without any capability, could leave
// its cgroup or have others send, and their numbers in statfs.
var controls = map[string]int64{
	"cgroup":      unix.CGROUP_SUPER_MAGIC,
	"cgroup2":     unix.CGROUP2_SUPER_MAGIC,
	"bpf":         unix.BPF_FS_MAGIC,
	"debugfs":     unix.DEBUGFS_MAGIC,
	"tracefs":     unix.TRACEFS_MAGIC,
	"binfmt_misc": unix.BINFMTFS_MAGIC,
	"configfs":    0x62656570, // CONFIGFS_MAGIC, fs/configfs/mount.c, v6.12
	"sysfs":       unix.SYSFS_MAGIC,
	"nfsd":        0x6e667364, // nfsd_fill_super, fs/nfsd/nfsctl.c, v6.12
}

// HandedError says that a standard descriptor leads out of the branch.
type HandedError struct {
	Name string // as in "standard input"
	Why  string
}

func (e *HandedError) Error() string { return fmt.Sprintf("%s %s", e.Name, e.Why) }

// handedOut are the standard descriptors that lead out. They were opened outside, on the
// mounts there, and a program can open what they are once more, and otherwise, by
// /proc/self/fd. An ordinary file, a pipe or a device is no more than itself.
func handedOut() []*HandedError {
	var all []*HandedError
	for fd, name := range []string{"standard input", "standard output", "standard error"} {
		if why := leadsOut(fd); why != "" {
			all = append(all, &HandedError{name, why})
		}
	}
	return all
}

func leadsOut(fd int) string {
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	var st unix.Stat_t
	var on unix.Statfs_t
	if err == nil {
		err = unix.Fstat(fd, &st)
	}
	if err == nil {
		err = unix.Fstatfs(fd, &on)
	}
	if err == unix.EBADF {
		return ""
	}
	if err != nil {
		return fmt.Sprintf("cannot be looked at: %v", err)
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return "is a directory, from which a path leads to writable control files outside"
	case unix.S_IFREG, unix.S_IFCHR, unix.S_IFBLK, unix.S_IFIFO, unix.S_IFSOCK:
	default: // of the kernel's anonymous ones some yield further descriptors
		return "is neither a file, a device, a pipe nor a socket"
	}
	if flags&unix.O_PATH != 0 {
		return "was opened as a path alone (O_PATH)"
	}
	for name, magic := range controls {
		if int64(on.Type) == magic {
			return fmt.Sprintf("is a control file of the kernel (%s)", name)
		}
	}
	// settings, devices' registers, other programs' memory
	if on.Type == unix.PROC_SUPER_MAGIC && st.Mode&0o222 != 0 {
		return "is a control file of the kernel (proc)"
	}
	return ""
}

// onTop calls a function at the top of the thread's mount namespace, where all mounts are
// seen, those outside of a chroot too: root gets out of one. It does so in a thread of
// its own, and leaves the caller's where it is, which may be where only a user can go.
func onTop(fn func() error) error {
	ns, err := unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(ns)
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: it ends with the goroutine
		err := unix.Unshare(unix.CLONE_FS)
		if err == nil {
			err = unix.Setns(ns, unix.CLONE_NEWNS)
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// among holds that the thread's root and working directory lie on mounts of its namespace:
// by their paths others would be reached.
func among(mounts []*mountinfo.Info) error {
	for _, d := range []struct {
		name, path string
		flags      int
	}{{"root", "/", 0}, {"working", "", unix.AT_EMPTY_PATH}} {
		var st unix.Statx_t
		err := unix.Statx(unix.AT_FDCWD, d.path, d.flags, unix.STATX_MNT_ID, &st)
		if err == unix.EACCES {
			continue // a user's own, which root neither enters nor leaves by its path
		}
		if err != nil {
			return err
		}
		if !slices.ContainsFunc(mounts, func(m *mountinfo.Info) bool { return uint64(m.ID) == st.Mnt_id }) {
			return fmt.Errorf("the %s directory lies on no mount of this mount namespace", d.name)
		}
	}
	return nil
}

// kept are directories that coverMounts is to take care of, by descriptors, below 0 for none.
type kept struct{ readOnly, hidden int }

func openKept(readOnly, hidden string) (k kept, err error) {
	k = kept{-1, -1}
	for path, fd := range map[string]*int{readOnly: &k.readOnly, hidden: &k.hidden} {
		if path == "" {
			continue
		}
		// closed by exec, as everything is
		if *fd, err = unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
			return k, fmt.Errorf("open %s: %w", path, err)
		}
	}
	return k, nil
}

// put hides the one and makes the other read-only, wherever they are seen. What is mounted
// cannot be moved away: where a directory above could be, another one could be put in its
// place, so that all of them are mounted.
func (k kept) put(mounts []*mountinfo.Info) error {
	hidden, err := seenAt(k.hidden, mounts)
	if err != nil {
		return err
	}
	for _, at := range hidden {
		flags := uintptr(unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
		if err := unix.Mount("none", at, "ramfs", flags, ""); err != nil {
			return fmt.Errorf("hide %s: %w", at, err)
		}
	}
	all, err := seenAt(k.readOnly, mounts)
	if err != nil {
		return err
	}
	for _, at := range all {
		err := unix.Mount(at, at, "", unix.MS_BIND|unix.MS_REC, "")
		if err == nil {
			err = unix.MountSetattr(unix.AT_FDCWD, at, unix.AT_RECURSIVE, readOnly())
		}
		if err != nil {
			return fmt.Errorf("make %s read-only: %w", at, err)
		}
	}
	for _, at := range all {
		for up := filepath.Dir(at); !mountPoint(up); up = filepath.Dir(up) {
			if err := unix.Mount(up, up, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
				return fmt.Errorf("mount %s: %w", up, err)
			}
		}
	}
	return nil
}

// seenAt are the paths at which the directory of a descriptor is seen: that file system, or
// a part of it, may be mounted at several places.
func seenAt(fd int, mounts []*mountinfo.Info) ([]string, error) {
	if fd < 0 {
		return nil, nil
	}
	path, err := os.Readlink(descriptorPath(fd))
	if err != nil {
		return nil, err
	}
	id, err := mountID(path)
	if err != nil {
		return nil, err
	}
	i := slices.IndexFunc(mounts, func(m *mountinfo.Info) bool { return uint64(m.ID) == id })
	if i < 0 {
		return nil, fmt.Errorf("%s lies on no mount of this mount namespace", path)
	}
	own := mounts[i]
	inside := filepath.Join(own.Root, strings.TrimPrefix(path, own.Mountpoint))
	var all []string
	for _, m := range mounts {
		below, ok := strings.CutPrefix(inside, strings.TrimSuffix(m.Root, "/"))
		if m.Major != own.Major || m.Minor != own.Minor || !ok || below != "" && below[0] != '/' {
			continue
		}
		at := filepath.Join(m.Mountpoint, below)
		switch id, err := mountID(at); {
		case err == unix.ENOENT || err == unix.ENOTDIR || err == nil && id != uint64(m.ID): // hidden by another mount
		case err != nil:
			return nil, &fs.PathError{Op: "stat", Path: at, Err: err}
		default:
			all = append(all, at)
		}
	}
	return all, nil
}

// mountID is the number of the mount that a path leads to.
func mountID(path string) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, unix.STATX_MNT_ID, &st)
	return st.Mnt_id, err
}

// mountPoint says whether something is mounted at a path, or nothing can be.
func mountPoint(path string) bool {
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, 0, 0, &st)
	return err != nil || st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

func descriptorPath(fd int) string { return fmt.Sprintf("/proc/thread-self/fd/%d", fd) }
