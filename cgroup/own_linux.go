package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// Own finds the cgroup of the calling process in the hierarchy that a way goes by,
// as a target of [hierarchy.Bound] names it; none where the machine does not use
// that hierarchy. It needs no privileges, and believes the kernel alone.
//
// A cgroup namespace hides what lies above its root, but not in a mount that was
// made outside of it, as those are that [Binder.Exec] leaves to a program: there
// the lists of processes tell. Whole says that nothing is hidden; if not, the
// target starts at the root of what can be seen.
func Own(w hierarchy.Way) (target string, whole bool, err error) { return Of(w, os.Getpid()) }

// Of is [Own] for another process, seen from the caller's cgroup namespace. A process
// that has ended is in none, or in the root's; who asks holds it (pidfd) and looks
// again afterwards whether it is there.
func Of(w hierarchy.Way, pid int) (target string, whole bool, err error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", false, err
	}
	magic, pick := int64(unix.CGROUP2_SUPER_MAGIC), isV2
	if w.Tagged() {
		magic, pick = unix.CGROUP_SUPER_MAGIC, isNetCls
	}
	own, ok := ownLine(string(b), w.Tagged())
	if !ok {
		return "", true, nil
	}
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return !pick(m), false })
	if err != nil {
		return "", false, err
	}
	first, err := inFirstCgroupNS()
	if err != nil {
		return "", false, err
	}
	// The mount that reaches furthest up.
	slices.SortStableFunc(mounts, func(a, b *mountinfo.Info) int {
		upA, downA := above(a.Root)
		upB, downB := above(b.Root)
		if upA != upB {
			return upB - upA
		}
		return len(downA) - len(downB)
	})
	for _, m := range mounts {
		var st unix.Statfs_t
		if err := unix.Statfs(m.Mountpoint, &st); err != nil || int64(st.Type) != magic {
			continue // covered by another mount, or out of reach
		}
		t, err := openTree(m.Mountpoint, m.Mountpoint)
		if err != nil {
			return "", false, err
		}
		path, err := t.own(m.Root, own, pid)
		whole := t.whole
		if err = errors.Join(err, t.close()); err != nil || path != "" {
			return cgroupTarget + path, whole, err
		}
	}
	if up, down := above(own); up == 0 { // no mount shows it
		return cgroupTarget + down, first, nil
	}
	return cgroupTarget + "/", false, nil
}

func isV2(m *mountinfo.Info) bool { return m.FSType == "cgroup2" }

func isNetCls(m *mountinfo.Info) bool {
	return m.FSType == "cgroup" && slices.Contains(strings.Split(m.VFSOptions, ","), "net_cls")
}

// ownLine is the path that /proc/PID/cgroup has for v2 or for net_cls.
func ownLine(file string, netCls bool) (path string, ok bool) {
	for line := range strings.Lines(file) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		switch {
		case len(f) != 3:
		case netCls && slices.Contains(strings.Split(f[1], ","), "net_cls"), !netCls && f[0] == "0" && f[1] == "":
			return f[2], true
		}
	}
	return "", false
}

// above takes apart what the kernel prints for a cgroup that is not below the
// root of the reader's namespace: "/../../x" is x, two levels above that root
// (cgroup_path_ns, kernel/cgroup/cgroup.c, v6.12).
func above(path string) (up int, down string) {
	for {
		rest, ok := strings.CutPrefix(path, "/..")
		if !ok || rest != "" && rest[0] != '/' {
			break
		}
		path = rest
		up++
	}
	if path == "" {
		path = "/"
	}
	return up, path
}

// own is the path in t of the cgroup that the process pid has as own
// in /proc, where mountinfo has root for t; empty when it does not lie in t.
func (t *tree) own(root, own string, pid int) (string, error) {
	up, down := above(root)
	out, in := above(own)
	switch {
	case up == 0 && out == 0 && down == "/":
		return in, nil
	case up == 0 && out == 0:
		if path, ok := strings.CutPrefix(in, down); ok && (path == "" || path[0] == '/') {
			return "/" + strings.TrimPrefix(path, "/"), nil
		}
		return "", nil
	case down != "/" || out > up:
		return "", nil // one tree lies beside the other
	case out == up:
		return in, nil
	}
	// The names between are not to be had, but their number and what follows are.
	depth, suffix := up-out, ""
	if in != "/" {
		depth, suffix = depth+strings.Count(in, "/"), in
	}
	found := ""
	err := t.walk("/", func(path string) error {
		if path == "/" || strings.Count(path, "/") < depth {
			return nil
		}
		if strings.HasSuffix(path, suffix) {
			has, err := t.has(path, pid)
			if err != nil {
				return err
			}
			if has {
				found = path
				return fs.SkipAll
			}
		}
		return fs.SkipDir
	})
	return found, err
}

// has says whether the process is in the cgroup itself.
func (t *tree) has(path string, pid int) (bool, error) {
	b, err := os.ReadFile(t.root + path + "/cgroup.procs")
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, fs.ErrPermission):
		return false, nil // gone, threaded, or somebody else's business
	case err != nil:
		return false, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return slices.Contains(strings.Fields(string(b)), strconv.Itoa(pid)), nil
}

// ParseHome takes the target of a home (see [Binder.Home]) apart: the network
// namespace as [NetNSKey] names it, and the branch. A cgroup that a program made
// in its home has the same form, its own name for a last part. Ok is false for
// what is no home.
func ParseHome(target string) (netNS string, p hierarchy.Path, ok bool) {
	below, ok := strings.CutPrefix(target, cgroupTarget+homeRoot+"/")
	if !ok {
		return "", "", false
	}
	if strings.HasPrefix(below, "ns-") {
		netNS, below, _ = strings.Cut(below, "/")
	}
	names := strings.Split(below, "/")
	for i, n := range names {
		if names[i] = unescape(n); names[i] == "" {
			return "", "", false
		}
	}
	return netNS, hierarchy.Path(strings.Join(names, "/")), true
}
