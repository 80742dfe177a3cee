package cgroupfs

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Own finds the cgroup of the calling process in the hierarchy that a way goes by,
// as a target of [hierarchy.Bound] names it; none where the machine does not use
// that hierarchy. It needs no privileges, and believes the kernel alone.
//
// A cgroup namespace hides what lies above its root, but not in a mount that was
// made outside of it, as those are that remain to a program that is locked in: there
// the lists of processes tell. Whole says that nothing is hidden; if not, the
// target starts at the root of what can be seen.
func Own(w bind.Way) (target bind.Target, whole bool, err error) {
	s, err := ReadSelf()
	if err != nil {
		return bind.Target{}, false, err
	}
	return s.Own(w)
}

// Self is the calling process, with the cgroups of its threads at one moment.
type Self struct {
	threads []Thread
	sight   func() (sight, error)
}

// ReadSelf reads it, for all hierarchies at once.
func ReadSelf() (Self, error) {
	threads, err := own()
	return Self{threads, sync.OnceValues(look)}, err
}

// Own is [Own] at that moment.
func (s Self) Own(w bind.Way) (target bind.Target, whole bool, err error) {
	all, whole, err := in(w, s.threads, s.sight)
	switch {
	case err != nil || len(all) == 0:
		return bind.Target{}, whole, err
	case len(all) > 1:
		return bind.Target{}, whole, fmt.Errorf("the threads of this process are in different cgroups: %s", texts(all))
	}
	return all[0], whole, nil
}

// texts lists targets in one line.
func texts(all []bind.Target) string {
	var text []string
	for _, t := range all {
		text = append(text, t.String())
	}
	return strings.Join(text, ", ")
}

// Of is [Own] for another process, seen from the caller's cgroup namespace: the cgroups
// of its living threads, which may differ, each of them once. Where none lives it is an
// error. Who asks holds the process (pidfd) and looks again afterwards whether it is
// there: its number may have been another's.
func Of(w bind.Way, pid int) (targets []bind.Target, whole bool, err error) {
	threads, err := Living(pid)
	if err != nil {
		return nil, false, err
	}
	return in(w, threads, look)
}

// in are the cgroups of threads as targets, as far as the caller sees them.
func in(w bind.Way, threads []Thread, look func() (sight, error)) (targets []bind.Target, whole bool, err error) {
	in := map[string]int{} // a thread of each cgroup
	for _, t := range threads {
		if own, ok := t.Cgroup(w.Tagged()); ok {
			in[own] = t.ID
		}
	}
	whole = true
	if len(in) == 0 {
		return nil, whole, nil
	}
	s, err := look()
	if err != nil {
		return nil, false, err
	}
	v := s.of(w)
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

// sight is what the caller can see of cgroups.
type sight struct {
	mounts []*mountinfo.Info
	first  bool // the caller is in no cgroup namespace
}

func look() (s sight, err error) {
	if s.mounts, err = mountsIn("/proc/thread-self/mountinfo"); err == nil {
		s.first, err = inFirstCgroupNS()
	}
	return s, err
}

// view is what of it is one hierarchy's.
type view struct {
	magic  int64
	mounts []*mountinfo.Info // the one that reaches furthest up first
	first  bool
}

func (s sight) of(w bind.Way) view {
	v := view{magic: unix.CGROUP2_SUPER_MAGIC, first: s.first}
	pick := isV2
	if w.Tagged() {
		v.magic, pick = unix.CGROUP_SUPER_MAGIC, isNetCls
	}
	for _, m := range s.mounts {
		if pick(m) {
			v.mounts = append(v.mounts, m)
		}
	}
	slices.SortStableFunc(v.mounts, func(a, b *mountinfo.Info) int {
		upA, downA := above(a.Root)
		upB, downB := above(b.Root)
		if upA != upB {
			return upB - upA
		}
		return len(downA) - len(downB)
	})
	return v
}

// mountsIn are the mounts of cgroups that a file lists, such as /proc/PID/mountinfo. The
// other lines, of which there may be thousands, are not taken apart.
func mountsIn(file string) ([]*mountinfo.Info, error) {
	all, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	var cgroups []byte
	for line := range bytes.Lines(all) {
		if bytes.Contains(line, []byte(" - cgroup")) { // a space in a name is written \040
			cgroups = append(cgroups, line...)
		}
	}
	return mountinfo.GetMountsFromReader(bytes.NewReader(cgroups), nil)
}

// locate is the target of the cgroup that a thread has as own in /proc.
func (v view) locate(own string, thread int) (target bind.Target, whole bool, err error) {
	for _, m := range v.mounts {
		var st unix.Statfs_t
		if err := unix.Statfs(m.Mountpoint, &st); err != nil || int64(st.Type) != v.magic {
			continue // covered by another mount, or out of reach
		}
		t, err := openTree(m.Mountpoint, m.Mountpoint)
		if err != nil {
			return bind.Target{}, false, err
		}
		path, err := t.own(m.Root, own, thread)
		whole := t.Whole
		if err = errors.Join(err, t.Close()); err != nil || path != "" {
			return bind.ToCgroup(path), whole, err
		}
	}
	if up, down := above(own); up == 0 { // no mount shows it
		return bind.ToCgroup(down), v.first, nil
	}
	return bind.ToCgroup("/"), false, nil
}

func isV2(m *mountinfo.Info) bool { return m.FSType == "cgroup2" }

func isNetCls(m *mountinfo.Info) bool {
	return m.FSType == "cgroup" && slices.Contains(strings.Split(m.VFSOptions, ","), "net_cls")
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
func (t *Tree) own(root, own string, thread int) (string, error) {
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
	err := t.Walk("/", func(path string) error {
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
func (t *Tree) has(path string, thread int) (bool, error) {
	in, err := t.Threads(path)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, fs.ErrPermission):
		return false, nil // gone, or somebody else's business
	case err != nil:
		return false, fmt.Errorf("cgroup %s: %w", path, err)
	}
	return slices.Contains(in, strconv.Itoa(thread)), nil
}
