package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Own finds the cgroup of the calling process in the hierarchy that a way goes by,
// as a target of [hierarchy.Bound] names it; none where the machine does not use
// that hierarchy. It needs no privileges, and believes the kernel alone.
//
// A cgroup namespace hides what lies above its root, but not in a mount that was
// made outside of it, as those are that [Binder.Exec] leaves to a program: there
// the lists of processes tell. Whole says that nothing is hidden; if not, the
// target starts at the root of what can be seen.
func Own(w bind.Way) (target string, whole bool, err error) {
	all, whole, err := Of(w, os.Getpid())
	switch {
	case err != nil || len(all) == 0:
		return "", whole, err
	case len(all) > 1:
		return "", whole, fmt.Errorf("the threads of this process are in different cgroups: %s", strings.Join(all, ", "))
	}
	return all[0], whole, nil
}

// Of is [Own] for another process, seen from the caller's cgroup namespace: the cgroups
// of its living threads, which may differ, each of them once. Where none lives it is an
// error. Who asks holds the process (pidfd) and looks again afterwards whether it is
// there: its number may have been another's.
func Of(w bind.Way, pid int) (targets []string, whole bool, err error) {
	threads, err := living(pid)
	if err != nil {
		return nil, false, err
	}
	in := map[string]int{} // a thread of each cgroup
	for _, t := range threads {
		if own, ok := ownLine(t.cgroups, w.Tagged()); ok {
			in[own] = t.id
		}
	}
	whole = true
	if len(in) == 0 {
		return nil, whole, nil
	}
	v, err := newView(w)
	if err != nil {
		return nil, false, err
	}
	for _, own := range slices.Sorted(maps.Keys(in)) {
		target, all, err := v.locate(own, in[own])
		if err != nil {
			return nil, false, err
		}
		whole = whole && all
		if !slices.Contains(targets, target) {
			targets = append(targets, target)
		}
	}
	return targets, whole, nil
}

// view is what the caller can see of a hierarchy.
type view struct {
	magic  int64
	mounts []*mountinfo.Info // of the hierarchy, the one that reaches furthest up first
	first  bool              // the caller is in no cgroup namespace
}

func newView(w bind.Way) (*view, error) {
	v := &view{magic: unix.CGROUP2_SUPER_MAGIC}
	pick := isV2
	if w.Tagged() {
		v.magic, pick = unix.CGROUP_SUPER_MAGIC, isNetCls
	}
	var err error
	if v.mounts, err = mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) { return !pick(m), false }); err != nil {
		return nil, err
	}
	slices.SortStableFunc(v.mounts, func(a, b *mountinfo.Info) int {
		upA, downA := above(a.Root)
		upB, downB := above(b.Root)
		if upA != upB {
			return upB - upA
		}
		return len(downA) - len(downB)
	})
	v.first, err = inFirstCgroupNS()
	return v, err
}

// locate is the target of the cgroup that a thread has as own in /proc.
func (v *view) locate(own string, thread int) (target string, whole bool, err error) {
	for _, m := range v.mounts {
		var st unix.Statfs_t
		if err := unix.Statfs(m.Mountpoint, &st); err != nil || int64(st.Type) != v.magic {
			continue // covered by another mount, or out of reach
		}
		t, err := openTree(m.Mountpoint, m.Mountpoint)
		if err != nil {
			return "", false, err
		}
		path, err := t.own(m.Root, own, thread)
		whole := t.whole
		if err = errors.Join(err, t.close()); err != nil || path != "" {
			return cgroupTarget + path, whole, err
		}
	}
	if up, down := above(own); up == 0 { // no mount shows it
		return cgroupTarget + down, v.first, nil
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

// own is the path in t of the cgroup that a thread has as own in /proc, where
// mountinfo has root for t; empty when it does not lie in t.
func (t *tree) own(root, own string, thread int) (string, error) {
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
			has, err := t.has(path, thread)
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

// has says whether the thread is in the cgroup itself.
func (t *tree) has(path string, thread int) (bool, error) {
	in, err := t.threads(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, fs.ErrPermission):
		return false, nil // gone, or somebody else's business
	case err != nil:
		return false, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return slices.Contains(in, strconv.Itoa(thread)), nil
}

// threads are those in a cgroup itself. The list of processes goes by the first thread
// of each, with v2.
func (t *tree) threads(path string) ([]string, error) {
	file := "/tasks"
	if t.v2() {
		file = "/cgroup.threads"
	}
	b, err := os.ReadFile(t.root + path + file)
	return strings.Fields(string(b)), err
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
