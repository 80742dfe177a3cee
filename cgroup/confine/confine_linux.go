package confine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// Level is how firmly a program is held in its branch.
type Level uint8

const (
	// LevelLock closes every way out that is known, for root too, and refuses to
	// start the program where the kernel lacks what it takes.
	LevelLock Level = iota
	// LevelBest closes what the kernel lets it close, and tells of the rest.
	LevelBest
	// LevelTag is the cgroup alone. It holds honest programs, and all users but root.
	LevelTag
)

var levels = [...]string{"lock", "best", "tag"}

// String is the level's name.
func (l Level) String() string {
	if int(l) < len(levels) {
		return levels[l]
	}
	return "unknown"
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (l Level) MarshalText() ([]byte, error) { return []byte(l.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (l *Level) UnmarshalText(b []byte) error {
	for i, name := range levels {
		if string(b) == name {
			*l = Level(i)
			return nil
		}
	}
	return fmt.Errorf("level %q is none of lock, tag, best", b)
}

// LockError says why LevelLock cannot be kept on this machine.
type LockError struct {
	Missing []string // what is missing: why: what is open without it
}

func (e *LockError) Error() string {
	return "this machine cannot keep the program in the branch: " + strings.Join(e.Missing, "; ")
}

// A border is one of the things that keep a program in. They are put up in their
// order, by the thread that executes the program, after it has joined the cgroup.
type border struct {
	name  string
	opens string       // what is open without it
	can   func() error // why it cannot be put up, nil when it can
	put   func() error
}

// borders before the user changes, which need privileges. root says that the
// program may write what is root's. Without privileges none is needed: what they keep
// root from is closed to all others.
func outerBorders(root bool, readOnly, hidden string) []border {
	if !root && powerless() {
		return nil
	}
	return []border{{
		name:  "cgroup namespace",
		opens: "programs see the cgroups above, and root may move to another by cgroup v2",
		can: func() error {
			if _, err := os.Stat("/proc/self/ns/cgroup"); err != nil {
				return fmt.Errorf("it takes Linux 4.6: %w", caps.ErrNotSupported)
			}
			return caps.Lacking(unix.CAP_SYS_ADMIN)
		},
		// with nsdelegate its root is a border for migration
		put: func() error { return unix.Unshare(unix.CLONE_NEWCGROUP) },
	}, {
		name:  "private mounts",
		opens: "root may move to another cgroup, change net_cls tags and vifshape's records, have the kernel start programs outside, and write to devices' registers",
		can: func() error {
			if err := unix.MountSetattr(-1, "", 0, &unix.MountAttr{}); err == unix.ENOSYS {
				return fmt.Errorf("it takes Linux 5.12: %w", caps.ErrNotSupported)
			}
			return caps.Lacking(unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT)
		},
		put: func() error { return coverMounts(root, readOnly, hidden) },
	}}
}

// borders after the user has changed. The last one is before exec: it may refuse
// what the others need.
func innerBorders(lost, kept capSet, ambient bool) []border {
	return []border{{
		name:  "no_new_privs",
		opens: "programs with the set-user-id bit get back what was taken away",
		can:   func() error { return nil },
		put:   func() error { return unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) },
	}, {
		name:  "Landlock",
		opens: "sockets may be taken from the same user's programs outside, and code be put into them",
		can:   landlockAvailable,
		put:   enterDomain,
	}, {
		name:  "fewer capabilities",
		opens: "root may change the queues",
		can:   func() error { return nil },
		put:   func() error { return dropCaps(lost, kept, ambient) },
	}, {
		name:  "system call filter",
		opens: "root may start a program in another cgroup (clone3), and io_uring, bpf and sockets past the queues are open",
		can:   seccompAvailable,
		put:   func() error { return filterCalls(kept) },
	}}
}

// unavailable lists what of the borders cannot be put up here.
func unavailable(all []border) (missing []string, rest []border) {
	for _, b := range all {
		if err := b.can(); err != nil {
			missing = append(missing, b.lacks(err))
		} else {
			rest = append(rest, b)
		}
	}
	return missing, rest
}

func (b border) lacks(err error) string {
	return fmt.Sprintf("%s: %v: without it %s", b.name, err, b.opens)
}

// putUp puts borders up. Where not all are needed, warn is told what of them failed.
func putUp(all []border, best bool, warn func(string)) error {
	for _, b := range all {
		err := b.put()
		switch {
		case err == nil:
		case best:
			warn(b.lacks(err))
		default:
			return &LockError{[]string{b.lacks(err)}}
		}
	}
	return nil
}

// coverMounts gives the thread mounts of its own in which that is read-only by
// which root, without any capability, could leave its cgroup or have others send:
// control files of cgroups, and also where nsdelegate guards them, because whoever
// mounts cgroup v2 once more without it takes it away from all mounts
// (apply_cgroup_root_flags, kernel/cgroup/cgroup.c, v6.12); pinned maps; debugging
// files; configfs, where netconsole lies; the kernel's NFS server, which sends by
// sockets of its own; the kernel's settings, among which are programs that it starts
// itself, outside (core_pattern, modprobe); and sysfs and /proc/bus, which give who
// may open their files the registers of a network card, without a capability
// (pci_mmap_resource, drivers/pci/pci-sysfs.c, and proc_bus_pci_write,
// drivers/pci/proc.c, v6.12). All else is as it was. No new mounts can be made in a
// Landlock domain, nor flags be changed without CAP_SYS_ADMIN.
//
// What is mounted later outside could be such a file system, too: root does not get
// to see it. For users it is harmless, and they do: homes are mounted on demand.
//
// The directory readOnly is what other programs go by, and hidden what they lock: a
// lock takes no more than a descriptor for reading.
func coverMounts(root bool, readOnly, hidden string) error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	k, err := openKept(readOnly, hidden)
	if err != nil {
		return err
	}
	var mounts []*mountinfo.Info
	err = onTop(func() (err error) {
		mounts, err = coverAll(root)
		if err != nil {
			return err
		}
		return k.put(mounts)
	})
	if err != nil {
		return err
	}
	return among(mounts)
}

// coverAll does so with the mounts of the calling thread's namespace, and returns them.
func coverAll(root bool) ([]*mountinfo.Info, error) {
	propagation := uintptr(unix.MS_SLAVE)
	if root {
		propagation = unix.MS_PRIVATE
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|propagation, ""); err != nil {
		return nil, fmt.Errorf("keep mounts from showing outside: %w", err)
	}
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return nil, err
	}
	for _, m := range mounts {
		for _, file := range waysOut(m) {
			if err := cover(m, file); err != nil {
				return nil, fmt.Errorf("make %s read-only: %w", filepath.Join(m.Mountpoint, file), err)
			}
		}
	}
	return mounts, nil
}

func readOnly() *unix.MountAttr { return &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY} }

// waysOut are what of a mount root without capabilities could leave its cgroup by:
// files in it, or "." for all.
func waysOut(m *mountinfo.Info) (files []string) {
	if _, ok := controls[m.FSType]; ok {
		return []string{"."}
	}
	if m.FSType != "proc" {
		return nil
	}
	for _, file := range []string{"/sys", "/bus"} {
		below, inside := strings.CutPrefix(file, strings.TrimSuffix(m.Root, "/"))
		switch {
		case strings.HasPrefix(m.Root+"/", file+"/"):
			return []string{"."}
		case inside && below[0] == '/':
			files = append(files, below[1:])
		}
	}
	return files
}

// cover makes a file of a mount, or all of it, read-only, unless another mount hides
// it or the file is not there.
func cover(m *mountinfo.Info, file string) error {
	fd, err := unix.Open(m.Mountpoint, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_MNT_ID, &st); err != nil || st.Mnt_id != uint64(m.ID) {
		return err
	}
	if file == "." {
		return unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, readOnly())
	}
	path := fmt.Sprintf("/proc/thread-self/fd/%d/%s", fd, file)
	err = unix.Mount(path, path, "", unix.MS_BIND|unix.MS_REC, "")
	if err == unix.ENOENT {
		return nil
	}
	if err == nil { // the same name leads to the new mount now
		err = unix.MountSetattr(fd, file, unix.AT_RECURSIVE, readOnly())
	}
	return err
}

// closeInherited lets go of all descriptors but 0, 1 and 2 when the program starts.
func closeInherited() error {
	err := unix.CloseRange(3, ^uint(0)>>33, unix.CLOSE_RANGE_CLOEXEC)
	if err != unix.ENOSYS && err != unix.EINVAL { // before 5.9, before 5.11
		return err
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 2 {
			unix.CloseOnExec(n)
		}
	}
	return nil
}

// tellPast tells when the program could go round the queues.
func (c Command) tellPast(r *ready) {
	raw := c.Level == LevelTag && (!r.switches || r.uid == 0)
	for _, name := range c.KeepCaps {
		n, err := caps.Number(name)
		raw = raw || err == nil && n == unix.CAP_NET_RAW
	}
	if !raw || c.Past == nil {
		return
	}
	if why := c.Past(); why != "" {
		c.Warn("not held: root's sockets may go round the queues (PACKET_QDISC_BYPASS, AF_XDP): " + why)
	}
}

// lock is what LevelLock or LevelBest is about to do.
type lock struct {
	best         bool
	outer, inner []border
}

// lock finds out what there is to put up.
func (r *ready) lock(c Command) (*lock, error) {
	if c.Level > LevelTag {
		return nil, fmt.Errorf("level %d is unknown", c.Level)
	}
	if c.Level == LevelTag {
		if len(c.KeepCaps) > 0 {
			return nil, errors.New("at level tag the program keeps all capabilities: they are kept by name at the levels lock and best")
		}
		return nil, nil
	}
	var lost, kept capSet
	for _, name := range c.KeepCaps {
		n, err := caps.Number(name)
		if err != nil {
			return nil, err
		}
		kept |= 1 << n
	}
	for _, d := range dropped() {
		if !kept.has(d.number) {
			lost |= 1 << d.number
		}
	}
	l := &lock{best: c.Level == LevelBest}
	if err := r.fits(c.Args[0], c.Warn); err != nil {
		return nil, err
	}
	for _, h := range handedOut() {
		if !l.best {
			return nil, h
		}
		c.Warn("not held: " + h.Error())
	}
	r.keeps = kept != 0 && r.switches && r.uid != 0
	missing, outer := unavailable(outerBorders(r.root() || kept != 0, c.ReadOnly, c.Hidden))
	more, inner := unavailable(innerBorders(lost, kept, r.keeps))
	missing = append(missing, more...)
	if len(missing) > 0 && !l.best {
		return nil, &LockError{missing}
	}
	for _, m := range missing {
		c.Warn("not held: " + m)
	}
	for _, d := range dropped() {
		if kept.has(d.number) {
			c.Warn(fmt.Sprintf("the program keeps %s: %s", caps.Name(d.number), d.opens))
		}
	}
	l.outer, l.inner = outer, inner
	return l, nil
}

// enter puts up what needs privileges that the program's user may not have.
func (l *lock) enter(warn func(string)) error {
	if l == nil {
		return nil
	}
	if err := closeInherited(); err != nil {
		return fmt.Errorf("close inherited files: %w", err)
	}
	return putUp(l.outer, l.best, warn)
}

// finish puts up the rest.
func (l *lock) finish(warn func(string)) error {
	if l == nil {
		return nil
	}
	return putUp(l.inner, l.best, warn)
}
