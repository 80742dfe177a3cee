package tctest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Cgroup2Mount is where a cgroup v2 hierarchy is mounted, on a host with
// nothing else, on a hybrid one or anywhere. It skips the test when there is
// none.
func Cgroup2Mount(t testing.TB) string {
	t.Helper()
	m := mounts(t, func(i *mountinfo.Info) bool { return i.FSType == "cgroup2" })
	Require(t, len(m) > 0, "a mounted cgroup v2 hierarchy")
	return m[0].Mountpoint
}

// Cgroup makes a cgroup at the top of the v2 hierarchy and returns its
// directory. After the test the processes in it and below are killed and all of
// it is removed. It skips the test without root or cgroup v2.
func Cgroup(t testing.TB) string {
	t.Helper()
	RequireRoot(t)
	return newCgroup(t, Cgroup2Mount(t))
}

// NetCls mounts the net_cls hierarchy of cgroup v1 for the test alone, makes a
// cgroup in it and returns its directory. The class id is that of the parent, 0.
// Clean-up is that of [Cgroup]. It skips the test where the kernel has no
// net_cls.
func NetCls(t testing.TB) string {
	t.Helper()
	RequireRoot(t)
	// A controller that is mounted already, perhaps together with net_prio,
	// can only be mounted again in the same company.
	options := "net_cls"
	for _, m := range mounts(t, func(i *mountinfo.Info) bool { return i.FSType == "cgroup" }) {
		if o := strings.Split(m.VFSOptions, ","); slices.Contains(o, "net_cls") && slices.Contains(o, "net_prio") {
			options = "net_cls,net_prio"
		}
	}
	dir := tempDir(t)
	err := unix.Mount("cgroup", dir, "cgroup", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, options)
	Require(t, !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOENT), "cgroup v1 controller net_cls")
	if err != nil {
		t.Fatalf("mount net_cls: %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount net_cls: %v", err)
		}
	})
	return newCgroup(t, dir)
}

// Cgroups makes a cgroup of one name at the top of every hierarchy that is mounted, as
// programs that run containers use all of them, and returns its path, "/NAME". Clean-up is
// that of [Cgroup]. It skips the test without root or cgroup v2.
func Cgroups(t testing.TB) string {
	t.Helper()
	RequireRoot(t)
	Cgroup2Mount(t)
	name := Name()
	made := map[string]bool{} // by device: one hierarchy may be mounted twice
	for _, m := range mounts(t, func(i *mountinfo.Info) bool { return i.FSType == "cgroup2" || i.FSType == "cgroup" }) {
		if dev := strconv.Itoa(m.Major) + ":" + strconv.Itoa(m.Minor); !made[dev] {
			made[dev] = true
			makeCgroup(t, filepath.Join(m.Mountpoint, name))
		}
	}
	return "/" + name
}

func mounts(t testing.TB, want func(*mountinfo.Info) bool) []*mountinfo.Info {
	t.Helper()
	m, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return !want(i), false })
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func newCgroup(t testing.TB, mount string) string {
	t.Helper()
	dir := filepath.Join(mount, Name())
	makeCgroup(t, dir)
	return dir
}

func makeCgroup(t testing.TB, dir string) {
	t.Helper()
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeCgroup(dir); err != nil {
			t.Error(err)
		}
	})
}

// removeCgroup kills what runs in the cgroup or below and removes the tree. A
// killed process leaves its cgroup a moment later, hence the second and third
// try; two seconds are the limit.
func removeCgroup(dir string) error {
	deadline := time.Now().Add(2 * time.Second)
	for {
		err := tryRemoveCgroup(dir)
		if err == nil || time.Now().After(deadline) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func tryRemoveCgroup(dir string) error {
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append(dirs, p)
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Reverse(dirs) // children before parents
	for _, d := range dirs {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		for _, f := range strings.Fields(string(b)) {
			// 0 is a process of another pid namespace.
			if pid, err := strconv.Atoi(f); err == nil && pid > 0 && pid != os.Getpid() {
				if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
					return err
				}
			}
		}
	}
	for _, d := range dirs {
		if err := unix.Rmdir(d); err != nil && err != unix.ENOENT {
			return &os.PathError{Op: "rmdir", Path: d, Err: err}
		}
	}
	return nil
}
