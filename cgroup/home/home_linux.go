package home

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Root is the cgroup above all homes.
const Root = "/vifshape"

// Homes are the cgroups of the branches of one interface, in one hierarchy.
type Homes struct {
	Tree      *cgroupfs.Tree
	NetNS     string // of the interface, as [cgroupfs.NetNSKey] names it
	Interface string
}

// Target is the home of a branch in a network namespace, as [cgroupfs.NetNSKey] names
// it. Of a branch that was renamed it takes [hierarchy.IDs.Home], and so does all that
// follows: nothing renames a cgroup. A branch eth0/web has /vifshape/eth0/web, and /vifshape/ns-N/eth0/web in another
// network namespace than the initial one.
func Target(netNS string, p hierarchy.Path) bind.Target {
	iface, below, _ := strings.Cut(string(p), "/")
	at := cgroupfs.Escape(iface)
	if netNS == "" && strings.HasPrefix(at, "ns-") { // the names of network namespaces
		at = "_" + at
	}
	at = path.Join(Root, netNS, at)
	for name := range strings.SplitSeq(below, "/") {
		if name != "" {
			at += "/" + cgroupfs.Escape(name)
		}
	}
	return bind.ToCgroup(at)
}

// Parse is the inverse of [Target]. A cgroup that a program made in its home has the same
// form, its own name for a last part. Ok is false for what is no home.
func Parse(target bind.Target) (netNS string, p hierarchy.Path, ok bool) {
	below, ok := strings.CutPrefix(target.Name, Root+"/")
	if !ok || target.Kind != bind.TargetCgroup {
		return "", "", false
	}
	if strings.HasPrefix(below, "ns-") {
		netNS, below, _ = strings.Cut(below, "/")
	}
	names := strings.Split(below, "/")
	for i, n := range names {
		if names[i] = cgroupfs.Unescape(n); names[i] == "" {
			return "", "", false
		}
	}
	return netNS, hierarchy.Path(strings.Join(names, "/")), true
}

// Make makes the home of a branch, unless it is there: then it is not fresh. It binds
// nothing.
func (h Homes) Make(p hierarchy.Path) (target bind.Target, fresh bool, err error) {
	if p.Interface() != h.Interface {
		return target, false, fmt.Errorf("branch %s is another interface's", p)
	}
	target = Target(h.NetNS, p)
	if _, _, err := h.Tree.ID(target.Name); err == nil {
		return target, false, nil
	}
	if err := h.Tree.Make(target.Name); err != nil {
		return target, false, fmt.Errorf("%s: make cgroup %s: %w", p, target.Name, caps.Explain(caps.Errno(err), unix.CAP_DAC_OVERRIDE))
	}
	return target, true, nil
}

// List is the branches that have a home, parents first; they may be branches that the
// policy no longer has.
func (h Homes) List() (all []hierarchy.Path, err error) {
	top := Target(h.NetNS, hierarchy.Path(h.Interface)).Name
	err = h.Tree.Walk(top, func(p string) error {
		branch := hierarchy.Path(h.Interface)
		for name := range strings.SplitSeq(strings.TrimPrefix(p, top), "/") {
			if name != "" {
				branch = branch.Join(cgroupfs.Unescape(name))
			}
		}
		all = append(all, branch)
		return nil
	})
	return all, err
}

// Remove removes the home of a branch and the cgroups that programs left below it, and
// says false where a process lives in one of them; some may be gone then. One that is not
// there is no error.
func (h Homes) Remove(p hierarchy.Path) (gone bool, err error) {
	at := Target(h.NetNS, p).Name
	if pids, err := h.Tree.Members(at); err != nil || len(pids) > 0 {
		return false, err
	}
	var all []string
	if err := h.Tree.Walk(at, func(path string) error { all = append(all, path); return nil }); err != nil {
		return false, err
	}
	for _, path := range slices.Backward(all) {
		switch err := unix.Rmdir(h.Tree.Dir(path)); err {
		case nil, unix.ENOENT:
		case unix.EBUSY:
			return false, nil
		default:
			return false, fmt.Errorf("%s: remove cgroup %s: %w", p, path, caps.Explain(err, unix.CAP_DAC_OVERRIDE))
		}
	}
	return true, nil
}

// RemoveAll removes the homes of an interface, whichever way they were made for, and
// ends no process: cgroups in which one lives stay, and kept names their branches. A
// hierarchy of net_cls that [cgroupfs.MountNetCls] has mounted goes, too, when nothing is
// in it any more, unless something is tagged.
//
// The homes of a network namespace that went without this stay behind, empty:
// nothing tells cheaply that no descriptor or socket holds a namespace any more.
func RemoveAll(netNS, iface string, tagged bool) (kept []hierarchy.Path, err error) {
	for _, find := range []func() (*cgroupfs.Tree, error){cgroupfs.FindV2, cgroupfs.FindNetCls} {
		t, err := find()
		if errors.Is(err, cgroupfs.ErrNoCgroup2) || t == nil && err == nil {
			continue
		}
		if err != nil {
			return kept, err
		}
		in, err := Homes{t, netNS, iface}.removeAll()
		kept = append(kept, in...)
		if err = errors.Join(err, t.Close()); err == nil && t.Mine && !tagged {
			err = t.Unmount()
		}
		if err != nil {
			return kept, err
		}
	}
	return kept, nil
}

func (h Homes) removeAll() (kept []hierarchy.Path, err error) {
	all, err := h.List()
	if err != nil {
		return nil, err
	}
	for _, p := range slices.Backward(all) {
		at := Target(h.NetNS, p).Name
		switch err := unix.Rmdir(h.Tree.Dir(at)); err {
		case nil, unix.ENOENT:
		case unix.EBUSY:
			kept = append(kept, p)
		default:
			return kept, fmt.Errorf("%s: remove cgroup %s: %w", p, at, caps.Explain(err, unix.CAP_DAC_OVERRIDE))
		}
	}
	// what lies above, when no other interface needs it: refused otherwise
	top := Target(h.NetNS, hierarchy.Path(h.Interface)).Name
	for dir := path.Dir(top); dir != "/"; dir = path.Dir(dir) {
		if err := unix.Rmdir(h.Tree.Dir(dir)); err != nil {
			break
		}
	}
	slices.Reverse(kept)
	return kept, nil
}

// Processes lists the processes behind a target of [hierarchy.Bound]: those in
// the cgroup and in all below it, deeper bindings included, or those of the user.
// A cgroup that is gone has none.
func Processes(t *cgroupfs.Tree, target bind.Target) ([]int, error) {
	switch target.Kind {
	case bind.TargetCgroup:
		return t.Members(target.Name)
	case bind.TargetUser:
	default:
		return nil, nil
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		var st unix.Stat_t
		if unix.Stat(filepath.Join("/proc", e.Name()), &st) == nil && uint64(st.Uid) == target.ID {
			pids = append(pids, pid)
		}
	}
	slices.Sort(pids)
	return pids, nil
}

// Join moves a process with all its threads into the cgroup of a target; pid 0 is
// the calling process. With cgroup v2 the sockets that it has keep their class.
func Join(t *cgroupfs.Tree, target bind.Target, pid int) error {
	if target.Kind != bind.TargetCgroup {
		return noCgroup(target)
	}
	if pid == 0 {
		pid = os.Getpid()
	}
	err := t.Join(target.Name, pid)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH):
		return fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("cgroup %s: %w", target.Name, fs.ErrNotExist)
	}
	return fmt.Errorf("put process into cgroup %s: %w", target.Name, caps.Explain(caps.Errno(err), unix.CAP_DAC_OVERRIDE))
}

func noCgroup(target bind.Target) error {
	return fmt.Errorf("%s is no cgroup that a process can be put into", target)
}

// Mover says which user other than root may move processes out of a target: whoever may
// write to the cgroup above it, as systemd allows users below their manager and services
// with Delegate. It is 0 when nobody may.
func Mover(t *cgroupfs.Tree, target bind.Target) (uid uint32, err error) {
	if target.Kind != bind.TargetCgroup || target.Name == "/" {
		return 0, nil
	}
	if !t.V2() {
		return 0, nil // there a process may be moved by its owner wherever he may write
	}
	var st unix.Stat_t
	file := t.Dir(path.Join("/", path.Dir(target.Name), "cgroup.procs"))
	if err := unix.Stat(file, &st); err != nil {
		return 0, &fs.PathError{Op: "stat", Path: file, Err: err}
	}
	if st.Mode&0o200 == 0 {
		return 0, nil
	}
	return st.Uid, nil
}
