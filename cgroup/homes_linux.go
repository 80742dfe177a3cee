package cgroup

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

// homeRoot is the cgroup above all homes.
const homeRoot = "/vifshape"

// interfaceHome is the cgroup of the interface's own node.
func (b *Binder) interfaceHome() string {
	dir := cgroupfs.Escape(b.cfg.Interface)
	if b.cfg.NetNS != "" {
		return path.Join(homeRoot, b.cfg.NetNS, dir)
	}
	if strings.HasPrefix(dir, "ns-") { // the names of network namespaces
		dir = "_" + dir
	}
	return path.Join(homeRoot, dir)
}

func (b *Binder) homePath(p hierarchy.Path) string {
	home := b.interfaceHome()
	_, below, _ := strings.Cut(string(p), "/")
	for name := range strings.SplitSeq(below, "/") {
		if name != "" {
			home += "/" + cgroupfs.Escape(name)
		}
	}
	return home
}

// ParseHome takes the target of a home (see [Binder.Home]) apart: the network
// namespace as [NetNSKey] names it, and the branch. A cgroup that a program made
// in its home has the same form, its own name for a last part. Ok is false for
// what is no home.
func ParseHome(target bind.Target) (netNS string, p hierarchy.Path, ok bool) {
	below, ok := strings.CutPrefix(target.Name, homeRoot+"/")
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

// Home makes the branch's own cgroup, where programs are put that are started in it, and returns it
// as a target for a [hierarchy.Bound]. One that is there already is no error. It
// binds nothing.
//
// A branch eth0/web has /vifshape/eth0/web in the hierarchy in use, and
// /vifshape/ns-N/eth0/web in a network namespace other than the initial one.
func (b *Binder) Home(p hierarchy.Path) (target bind.Target, err error) {
	if err := b.settle(); err != nil {
		return target, err
	}
	if p.Interface() != b.cfg.Interface {
		return target, b.wrap(fmt.Errorf("branch %s is another interface's", p))
	}
	home := b.homePath(p)
	if _, _, err := b.tree().ID(home); err == nil {
		return bind.ToCgroup(home), nil
	}
	b.fresh[home] = true
	if err := b.tree().Make(home); err != nil {
		return target, fmt.Errorf("%s: make cgroup %s: %w", p, home, caps.Explain(caps.Errno(err), unix.CAP_DAC_OVERRIDE))
	}
	return bind.ToCgroup(home), nil
}

// BoundHome finds the branch's own cgroup and the class that it is bound to: class
// 0 when there is none, when it is not bound, or when no classifier of this
// version is on the interface. It changes nothing and takes one look-up.
func (b *Binder) BoundHome(p hierarchy.Path) (target bind.Target, class hierarchy.ClassID, err error) {
	on, err := b.inForce()
	if err != nil || on == nil || b.is != version {
		return target, 0, b.wrap(err)
	}
	t, err := on.find()
	if t == nil || err != nil {
		return target, 0, b.wrap(err)
	}
	b.at = on
	target = bind.ToCgroup(b.homePath(p))
	k, err := b.key(on, target)
	if err == nil {
		class, _, err = on.store.get(k)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return target, 0, nil
	}
	return target, class, b.wrap(err)
}

// Homes lists the branches that have a home, parents first; they may be branches
// that the policy no longer has.
func (b *Binder) Homes() ([]hierarchy.Path, error) {
	if err := b.settle(); err != nil {
		return nil, err
	}
	homes, err := b.homesIn(b.tree())
	return homes, b.wrap(err)
}

func (b *Binder) homesIn(t *cgroupfs.Tree) (homes []hierarchy.Path, err error) {
	top := b.interfaceHome()
	err = t.Walk(top, func(p string) error {
		branch := hierarchy.Path(b.cfg.Interface)
		for name := range strings.SplitSeq(strings.TrimPrefix(p, top), "/") {
			if name != "" {
				branch = branch.Join(cgroupfs.Unescape(name))
			}
		}
		homes = append(homes, branch)
		return nil
	})
	return homes, err
}

// RemoveHomes removes the interface's homes, whichever way they were made for, and
// ends no process: cgroups in which one lives stay, and kept names their branches.
// Where interfaces are gone, the rules of nf_tables that they left go, too.
//
// The homes of a network namespace that went without this stay behind, empty:
// nothing tells cheaply that no descriptor or socket holds a namespace any more.
func (b *Binder) RemoveHomes() (kept []hierarchy.Path, err error) {
	for _, find := range []func() (*cgroupfs.Tree, error){b.findV2, b.findV1} {
		t, err := find()
		if errors.Is(err, cgroupfs.ErrNoCgroup2) || t == nil && err == nil {
			continue
		}
		var in []hierarchy.Path
		if err == nil {
			in, err = b.removeHomesIn(t)
		}
		if err != nil {
			return kept, b.wrap(err)
		}
		kept = append(kept, in...)
	}
	return kept, b.wrap(b.tables.sweep())
}

func (b *Binder) removeHomesIn(t *cgroupfs.Tree) (kept []hierarchy.Path, err error) {
	homes, err := b.homesIn(t)
	if err != nil {
		return nil, err
	}
	for _, p := range slices.Backward(homes) {
		switch err := unix.Rmdir(t.Dir(b.homePath(p))); err {
		case nil, unix.ENOENT:
		case unix.EBUSY:
			kept = append(kept, p)
		default:
			return kept, fmt.Errorf("%s: remove cgroup %s: %w", p, b.homePath(p), caps.Explain(err, unix.CAP_DAC_OVERRIDE))
		}
	}
	// what lies above, when no other interface needs it: refused otherwise
	for dir := path.Dir(b.interfaceHome()); dir != "/"; dir = path.Dir(dir) {
		if err := unix.Rmdir(t.Dir(dir)); err != nil {
			break
		}
	}
	slices.Reverse(kept)
	return kept, nil
}

// Processes lists the processes behind a target of [hierarchy.Bound]: those in
// the cgroup and in all below it, deeper bindings included, or those of the user.
// A cgroup that is gone has none.
func (b *Binder) Processes(target bind.Target) ([]int, error) {
	if err := b.settle(); err != nil {
		return nil, err
	}
	switch target.Kind {
	case bind.TargetCgroup:
		pids, err := b.tree().Members(target.Name)
		return pids, b.wrap(err)
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
func (b *Binder) Join(target bind.Target, pid int) error {
	if err := b.settle(); err != nil {
		return err
	}
	p := target.Name
	if target.Kind != bind.TargetCgroup {
		return b.wrap(fmt.Errorf("%s is no cgroup that a process can be put into", target))
	}
	if pid == 0 {
		pid = os.Getpid()
	}
	err := b.tree().Join(p, pid)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ESRCH):
		return b.wrap(fmt.Errorf("process %d: %w", pid, unix.ESRCH))
	case errors.Is(err, fs.ErrNotExist):
		return b.wrap(fmt.Errorf("cgroup %s: %w", p, fs.ErrNotExist))
	}
	return b.wrap(fmt.Errorf("put process into cgroup %s: %w", p, caps.Explain(caps.Errno(err), unix.CAP_DAC_OVERRIDE)))
}

// RemoveHome removes the branch's own cgroup and those that programs left below it,
// and says false where a process lives in one of them; some may be gone then. One that
// is not there is no error.
func (b *Binder) RemoveHome(p hierarchy.Path) (gone bool, err error) {
	if err := b.settle(); err != nil {
		return false, err
	}
	t, home := b.tree(), b.homePath(p)
	if pids, err := t.Members(home); err != nil || len(pids) > 0 {
		return false, b.wrap(err)
	}
	var all []string
	if err := t.Walk(home, func(path string) error { all = append(all, path); return nil }); err != nil {
		return false, b.wrap(err)
	}
	for _, path := range slices.Backward(all) {
		switch err := unix.Rmdir(t.Dir(path)); err {
		case nil, unix.ENOENT:
		case unix.EBUSY:
			return false, nil
		default:
			return false, fmt.Errorf("%s: remove cgroup %s: %w", p, path, caps.Explain(err, unix.CAP_DAC_OVERRIDE))
		}
	}
	return true, nil
}
