package cgroupfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// ErrNoCgroup2: no cgroup v2 hierarchy can be reached from here.
var ErrNoCgroup2 = errors.New("no cgroup v2 hierarchy")

// Tree is a cgroup hierarchy that can be reached: v2, or v1 with net_cls.
type Tree struct {
	Where string // for people
	Whole bool   // its root is the hierarchy's own: depths below it are the kernel's levels
	Mine  bool   // mounted by [MountNetCls], in this mount namespace

	root  string            // in front of a cgroup's path; no slash at its end
	at    *os.File          // the root: keeps a detached mount, and anchors handles
	shown string            // what the kernel prints for root
	htype int32             // type of the kernel's handles
	magic int64             // of the file system: cgroup v2 or v1
	found map[uint64]string // by the last search: who has to search for one asks for others, too
}

// Dir is the directory of a cgroup. It is good until [Tree.Close].
func (t *Tree) Dir(path string) string { return t.root + path }

// Close lets go of the hierarchy, which stays mounted.
func (t *Tree) Close() error { return t.at.Close() }

// FindV2 looks for a cgroup v2 hierarchy: mounted here (alone or beside v1), or
// where another process sees it, or nowhere: then it is mounted detached, unless
// that could do harm.
func FindV2() (*Tree, error) {
	t, all, err := mounted(unix.CGROUP2_SUPER_MAGIC, isV2)
	if t != nil || err != nil {
		return t, err
	}
	if err = caps.Lacking(unix.CAP_SYS_ADMIN); err == nil {
		if err = harmless(all); err == nil {
			t, err = detached()
		}
	}
	if err != nil {
		return nil, fmt.Errorf("%w: none is mounted here (\"ip netns exec\" hides it: use \"nsenter --net=/run/netns/NAME\"), none is seen in another process, and it is not to be had otherwise: %w",
			ErrNoCgroup2, caps.Explain(err, unix.CAP_SYS_ADMIN))
	}
	return t, nil
}

// harmless says whether v2 may be mounted anew when no mount of it was found.
// Outside a cgroup namespace that sets the options of the one hierarchy that the
// machine has, for everybody: the nsdelegate of a mount that was not found would
// be lost (cgroup_get_tree and apply_cgroup_root_flags, kernel/cgroup/cgroup.c,
// v6.12; observed on 6.18). The line 0:: is there once v2 was mounted
// (proc_cgroup_show).
func harmless(sawAll bool) error {
	first, err := inFirstCgroupNS()
	if err != nil || sawAll || !first {
		return err
	}
	b, err := os.ReadFile("/proc/self/cgroup")
	if err == nil && strings.Contains("\n"+string(b), "\n0::") {
		err = errors.New("some processes hide their mounts, and mounting it once more could reset the options of one of theirs")
	}
	return err
}

// inFirstCgroupNS says whether this process sees the cgroups as the kernel does.
func inFirstCgroupNS() (bool, error) {
	const initial = 0xeffffffb // PROC_CGROUP_INIT_INO, include/linux/proc_ns.h
	var st unix.Stat_t
	err := unix.Stat("/proc/self/ns/cgroup", &st)
	return st.Ino == initial, err
}

// LevelsKnown is an error where rules of nf_tables would mean other levels than t
// has: from inside a cgroup namespace they are counted from its root by some
// kernels, and from the hierarchy's by others (nft_socket_cgroup_subtree_level,
// net/netfilter/nft_socket.c, v6.12; not in v6.10).
func (t *Tree) LevelsKnown() error {
	first, err := inFirstCgroupNS()
	if err == nil && (!first || !t.Whole) {
		err = errors.New("inside a cgroup namespace nobody can tell at which level a cgroup is")
	}
	return err
}

// FindNetCls looks for the v1 hierarchy that has net_cls, nil when it is not
// mounted.
func FindNetCls() (*Tree, error) {
	t, _, err := mounted(unix.CGROUP_SUPER_MAGIC, isNetCls)
	return t, err
}

// mounted finds a mount that pick takes in this mount namespace, else in that of
// another process, whole hierarchies first. It says whether it saw the mounts of
// all processes.
func mounted(magic int64, pick func(*mountinfo.Info) bool) (t *Tree, all bool, err error) {
	self := os.Getpid()
	cgroups, err := os.Readlink("/proc/self/ns/cgroup")
	if err != nil {
		return nil, false, err
	}
	all = true
	looked := map[string]bool{}
	for pid := range processes(self) {
		proc := "/proc/" + strconv.Itoa(pid)
		ns, err := os.Readlink(proc + "/ns/mnt")
		if err != nil {
			all = all && errors.Is(err, fs.ErrNotExist)
			continue
		}
		if looked[ns] {
			continue
		}
		looked[ns] = true
		if pid == self {
			t, err = mountedIn(proc, "", "", magic, pick)
		} else {
			note := fmt.Sprintf(" (as process %d sees it: hidden in this mount namespace)", pid)
			t, err = mountedIn(proc, proc+"/root", note, magic, pick)
		}
		if t == nil {
			all = all && (err == nil || errors.Is(err, fs.ErrNotExist))
			continue
		}
		// another's view counts where it is ours, or that of everything
		if theirs, err := os.Readlink(proc + "/ns/cgroup"); pid == self || t.Whole || err == nil && theirs == cgroups {
			return t, true, nil
		}
		t.Close()
	}
	return nil, all, nil
}

// mountedIn finds a mount in the mount namespace of one process, whose root is at
// prefix.
func mountedIn(proc, prefix, note string, magic int64, pick func(*mountinfo.Info) bool) (*Tree, error) {
	mounts, err := mountsIn(proc + "/mountinfo")
	if err != nil {
		return nil, err
	}
	mounts = slices.DeleteFunc(mounts, func(m *mountinfo.Info) bool { return !pick(m) })
	slices.SortStableFunc(mounts, func(a, b *mountinfo.Info) int { return len(a.Root) - len(b.Root) })
	for _, m := range mounts {
		var st unix.Statfs_t
		if err = unix.Statfs(prefix+m.Mountpoint, &st); err != nil || int64(st.Type) != magic {
			continue // covered by another mount, or out of reach
		}
		t, err := openTree(prefix+m.Mountpoint, m.Mountpoint+note)
		switch {
		case err == nil && prefix != "":
			t.anchor() // the other process may end
		case err == nil:
			t.Mine = m.Source == mountSource
		}
		return t, err
	}
	return nil, err
}

// processes goes through self, those above it, and then all, which lists these
// again.
func processes(self int) iter.Seq[int] {
	return func(yield func(int) bool) {
		for pid := self; pid > 0; {
			if !yield(pid) {
				return
			}
			p, err := ReadProcess(pid)
			if err != nil {
				break
			}
			pid = p.Parent
		}
		entries, err := os.ReadDir("/proc")
		if err != nil {
			return // self's own files will not be there either
		}
		for _, e := range entries {
			if pid, err := strconv.Atoi(e.Name()); err == nil && !yield(pid) {
				return
			}
		}
	}
}

// detached mounts cgroup v2 without a place in any mount table.
func detached() (*Tree, error) {
	conf, err := unix.Fsopen("cgroup2", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return nil, err
	}
	defer unix.Close(conf)
	if err := unix.FsconfigCreate(conf); err != nil {
		return nil, err
	}
	mnt, err := unix.Fsmount(conf, unix.FSMOUNT_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(mnt) // the directory that openTree opens keeps it
	t, err := openTree(fmt.Sprintf("/proc/self/fd/%d", mnt), "a private mount of our own")
	if err == nil {
		t.anchor()
	}
	return t, err
}

// anchor makes the open root the way to everything below it.
func (t *Tree) anchor() { t.root = fmt.Sprintf("/proc/self/fd/%d", t.at.Fd()) }

func openTree(root, where string) (*Tree, error) {
	// the slash: through a link to a descriptor
	dir, err := os.OpenFile(root+"/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", where, caps.Explain(caps.Errno(err), unix.CAP_SYS_ADMIN))
	}
	t := &Tree{root: root, Where: where, at: dir}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	t.magic = int64(st.Type)
	shown, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", dir.Fd()))
	if err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	t.shown = strings.TrimSuffix(shown, "/")
	h, _, err := unix.NameToHandleAt(int(dir.Fd()), "", unix.AT_EMPTY_PATH)
	if err != nil || h.Size() != 8 {
		return nil, errors.Join(fmt.Errorf("%s: cgroups have no ids here: %w", where, caps.ErrNotSupported), err, dir.Close())
	}
	t.htype = h.Type()
	// id 1 is the root of the hierarchy; in a cgroup namespace the mount starts further down
	t.Whole = binary.NativeEndian.Uint64(h.Bytes()) == 1
	return t, nil
}

// ID is the number by which the kernel knows the cgroup (bpf_skb_cgroup_id) and
// its level below the root, 0 when that cannot be told.
func (t *Tree) ID(path string) (id uint64, level uint32, err error) {
	h, _, err := unix.NameToHandleAt(int(t.at.Fd()), strings.TrimPrefix(path, "/"), unix.AT_EMPTY_PATH)
	if err != nil {
		return 0, 0, fmt.Errorf("cgroup %s: %w", path, err)
	}
	if t.Whole {
		level = uint32(strings.Count(path, "/"))
	}
	return binary.NativeEndian.Uint64(h.Bytes()), level, nil
}

// Path is the inverse of ID. A cgroup that is gone is fs.ErrNotExist. It is for one goroutine.
func (t *Tree) Path(id uint64) (string, error) {
	h := unix.NewFileHandle(t.htype, binary.NativeEndian.AppendUint64(nil, id))
	fd, err := unix.OpenByHandleAt(int(t.at.Fd()), h, unix.O_PATH|unix.O_CLOEXEC)
	if err == unix.ESTALE || err == unix.ENOENT {
		return "", fs.ErrNotExist
	}
	if err != nil { // not permitted without CAP_DAC_READ_SEARCH: look at all of them
		return t.search(id)
	}
	defer unix.Close(fd)
	shown, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(fd))
	if err != nil {
		return "", err
	}
	path, below := strings.CutPrefix(shown, t.shown)
	if path == "" {
		path = "/"
	}
	if below && t.Whole && !strings.HasSuffix(path, " (deleted)") {
		return path, nil
	}
	// removed meanwhile, outside the cgroup namespace, or just called so
	if !t.Is(path, id) {
		return "", fs.ErrNotExist
	}
	return path, nil
}

// Is says whether the cgroup at path has that id.
func (t *Tree) Is(path string, id uint64) bool {
	got, _, err := t.ID(path)
	return err == nil && got == id
}

func (t *Tree) search(id uint64) (string, error) {
	if path, ok := t.found[id]; ok && t.Is(path, id) {
		return path, nil
	}
	t.found = map[uint64]string{}
	err := t.Walk("/", func(path string) error {
		if id, _, err := t.ID(path); err == nil { // else it has gone
			t.found[id] = path
		}
		return nil
	})
	if path, ok := t.found[id]; ok { // whatever of the others could not be read
		return path, nil
	}
	if err == nil {
		err = fs.ErrNotExist
	}
	return "", err
}

// Walk calls fn for every cgroup at and below path, parents first. Cgroups that
// vanish meanwhile are left out.
func (t *Tree) Walk(path string, fn func(path string) error) error {
	return filepath.WalkDir(filepath.Clean(t.root+path)+"/", func(p string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
			return nil
		}
		if err != nil {
			return err
		}
		if !e.IsDir() {
			return nil
		}
		return fn(filepath.Join("/", strings.TrimPrefix(p, t.root)))
	})
}

// Children are the names of the cgroups right below one, none where it is not there.
func (t *Tree) Children(path string) (names []string, err error) {
	ents, err := os.ReadDir(t.root + path + "/")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) {
		return nil, nil
	}
	for _, e := range ents {
		if e.IsDir() {
			names = append(names, e.Name())
		}
	}
	return names, err
}

// Populated says whether a process is in a cgroup of version 2, or below it.
func (t *Tree) Populated(path string) bool {
	b, err := os.ReadFile(t.root + path + "/cgroup.events")
	if errors.Is(err, fs.ErrNotExist) { // the root has no such file
		return path == "/"
	}
	return err == nil && strings.Contains(string(b), "populated 1")
}

// Connected says whether a process that has a socket may be in a cgroup of version 2, or below
// it. Where there are more than a few processes, or they cannot be looked at, one may.
func (t *Tree) Connected(path string) bool {
	if !t.Populated(path) {
		return false
	}
	const few = 16
	pids, err := t.Members(path)
	if err != nil || len(pids) > few {
		return true
	}
	for _, pid := range pids {
		dir := fmt.Sprintf("/proc/%d/fd", pid)
		fds, err := os.ReadDir(dir)
		if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ESRCH) { // else it has ended
			return true
		}
		for _, fd := range fds {
			if to, err := os.Readlink(dir + "/" + fd.Name()); err == nil && strings.HasPrefix(to, "socket:") {
				return true
			}
		}
	}
	return false
}

// Members lists the processes of a cgroup and all below it.
func (t *Tree) Members(path string) ([]int, error) {
	var pids []int
	err := t.Walk(path, func(p string) error {
		own, err := t.Processes(p)
		pids = append(pids, own...)
		return err
	})
	slices.Sort(pids)
	return slices.Compact(pids), err
}

// Processes lists the processes of a cgroup itself, in no order.
func (t *Tree) Processes(path string) ([]int, error) {
	b, err := os.ReadFile(t.root + path + "/cgroup.procs")
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil, nil // gone, or a threaded cgroup, whose processes are listed above it
	}
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, f := range strings.Fields(string(b)) {
		n, err := strconv.Atoi(f)
		if err != nil {
			return nil, fmt.Errorf("cgroup %s: %q in cgroup.procs", path, f)
		}
		if n != 0 { // 0: a process of another pid namespace
			pids = append(pids, n)
		}
	}
	return pids, nil
}

// Threads are those in a cgroup itself. The list of processes goes by the first thread
// of each, with v2.
func (t *Tree) Threads(path string) ([]string, error) {
	file := "/tasks"
	if t.V2() {
		file = "/cgroup.threads"
	}
	b, err := os.ReadFile(t.root + path + file)
	return strings.Fields(string(b)), err
}
