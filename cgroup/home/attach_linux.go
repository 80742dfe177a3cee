package home

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Attachment is what [Attach] did.
type Attachment struct {
	Processes []Process       // that are in the branch now, in the order in which they came
	Sockets   []socket.Socket // that were open and belong to the branch now
	// Waiting are connections that belong to the branch now and that nobody had
	// accepted yet, or that stand behind sockets of MPTCP.
	Waiting int
	Failed  []Failure
	// Stay says why open sockets keep the class that they had, empty where they
	// follow.
	Stay string
}

// Process is a process that was put into a branch.
type Process struct {
	PID   int
	Name  string // as the kernel has it, 15 bytes at most
	From  string // its former cgroup; several where its threads were in different ones
	There bool   // it was in the branch already
}

// Failure is a process that could not be put into a branch, or whose sockets
// could not.
type Failure struct {
	PID int
	Err error
}

// Attach moves processes with all their threads into the cgroup of a target, with
// below also their descendants, and has their open sockets follow: connections,
// what is accepted from their listeners, and packet sockets.
//
// Both are listed again until nothing new appears, for processes fork and open
// sockets meanwhile. No packet is without a class: it is of the former one, and
// then of the new one. A descendant whose parent has ended is not one for the
// kernel either; sockets that lie in no descriptor (on their way from one process
// to another, or known to an io_uring alone) are not found. Connections that nobody
// has accepted yet are those of the caller's network namespace.
//
// An error is one that concerns all of them; what concerns one process is in Failed. A
// nil Carrier says that tags bring along what is open.
func Attach(ctx context.Context, t *cgroupfs.Tree, target bind.Target, pids []int, below bool, c Carrier) (*Attachment, error) {
	if target.Kind != bind.TargetCgroup {
		return nil, noCgroup(target)
	}
	a := &attaching{tree: t, target: target, carrier: c, here: map[int]bool{}, asked: map[int]bool{}, found: map[socket.Held]bool{}}
	var err error
	if a.before, err = t.Members(target.Name); err != nil {
		return nil, err
	}
	if c != nil {
		a.got.Stay = c.Stay()
	}
	if err := a.run(ctx, pids, below); err != nil {
		return &a.got, err
	}
	if a.got.Stay == "" {
		err = a.describe(ctx)
	}
	return &a.got, err
}

// attaching is one call of Attach.
type attaching struct {
	got     Attachment
	tree    *cgroupfs.Tree
	target  bind.Target
	before  []int        // that were in the cgroup already, and below it
	here    map[int]bool // whose sockets follow
	asked   map[int]bool // whether they were moved or not
	carrier Carrier
	found   map[socket.Held]bool
}

// run moves and lists until nothing new appears. Sockets that were made in the
// branch are nothing new, but before Linux 5.15, and without BTF, no one can tell.
func (a *attaching) run(ctx context.Context, pids []int, below bool) error {
	const (
		most  = 200 // rounds: each takes all processes that there are at its beginning
		quiet = 5   // rounds without another process that end it in any case
	)
	still := 0
	for range most {
		if err := ctx.Err(); err != nil {
			return err
		}
		moved, err := a.move(pids, below)
		if err != nil {
			return err
		}
		old, err := a.carry()
		if err != nil {
			return err
		}
		if still++; moved > 0 {
			still = 0
		}
		if moved == 0 && old == 0 || still >= quiet {
			return nil
		}
	}
	return fmt.Errorf("processes fork faster than they can be moved: %d were, and there are still more", len(a.got.Processes))
}

// move moves who is not there yet and says how many.
func (a *attaching) move(pids []int, below bool) (moved int, err error) {
	all := pids
	if below { // of those that could be moved: not of the first process, or the kernel's
		more, err := descendants(a.got.Processes)
		if err != nil {
			return 0, err
		}
		all = slices.Concat(pids, more)
	}
	for _, pid := range all {
		if a.asked[pid] || pid == os.Getpid() && !slices.Contains(pids, pid) {
			continue
		}
		a.asked[pid] = true
		p, err := a.examine(pid)
		if err == nil && !p.There {
			err = Join(a.tree, a.target, pid)
		}
		switch {
		case err == nil:
			a.got.Processes = append(a.got.Processes, p)
			moved++
			if err := a.keepsTags(pid); err != nil && !p.There {
				a.got.Failed = append(a.got.Failed, Failure{pid, err})
			} else {
				a.here[pid] = true
			}
		case errors.Is(err, caps.ErrNotPrivileged):
			return moved, err
		case (errors.Is(err, errNoProcess) || errors.Is(err, errEnded) || errors.Is(err, unix.ESRCH)) && !slices.Contains(pids, pid):
			// a child that has ended already
		case errors.Is(err, unix.ESRCH):
			a.got.Failed = append(a.got.Failed, Failure{pid, errNoProcess})
		default:
			a.got.Failed = append(a.got.Failed, Failure{pid, err})
		}
	}
	return moved, nil
}

var (
	errNoProcess = errors.New("it is not there; a process in a container has another number outside")
	errEnded     = errors.New("it has ended, and waits for its parent to ask how")
)

// examine refuses processes that are not to be moved.
func (a *attaching) examine(pid int) (Process, error) {
	p := Process{PID: pid}
	is, err := cgroupfs.ReadProcess(pid)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return p, errNoProcess
	case err != nil:
		return p, err
	}
	p.Name = is.Name
	const kernelThread = 0x00200000 // PF_KTHREAD
	switch {
	case pid == os.Getpid():
		return p, errors.New("it is this program itself")
	case pid == 1:
		return p, errors.New("it is the first of all processes, and stays where it is: name a service of it")
	case is.Flags&kernelThread != 0:
		return p, errors.New("it is a thread of the kernel, which cannot be moved")
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return p, errNoProcess
	}
	if _, leader, ok := strings.Cut(string(status), "\nTgid:"); ok {
		leader, _, _ = strings.Cut(leader, "\n")
		if leader = strings.TrimSpace(leader); leader != strconv.Itoa(pid) {
			return p, fmt.Errorf("it is a thread of process %s: name that, threads move together", leader)
		}
	}
	threads, err := cgroupfs.Living(pid) // of which the first may be none
	if errors.Is(err, unix.ESRCH) {
		return p, errEnded
	}
	if err != nil {
		return p, err
	}
	// its own cgroup and not one below: that may be another branch's
	in, err := a.tree.Threads(a.target.Name)
	if err != nil {
		return p, caps.Errno(err)
	}
	p.There = true
	var from []string
	for _, t := range threads {
		p.There = p.There && slices.Contains(in, strconv.Itoa(t.ID))
		if own, ok := t.Cgroup(!a.tree.V2()); ok && !slices.Contains(from, path.Clean(own)) {
			from = append(from, path.Clean(own))
		}
	}
	p.From = strings.Join(from, ", ")
	return p, nil
}

// keepsTags says why the open sockets of a process need not follow it in the hierarchy
// of net_cls: kernels go by its first thread (update_classid_task,
// net/core/netclassid_cgroup.c, v6.12; not yet in v6.1).
func (a *attaching) keepsTags(pid int) error {
	if a.tree.V2() {
		return nil
	}
	first, err := cgroupfs.ReadProcess(pid)
	if err != nil || !first.Exits() { // or it has ended since, and its sockets with it
		return nil
	}
	return errors.New("it is in the branch; but its first thread has ended, and so the sockets that it had open may keep their class, with net_cls")
}

// descendants lists what is below processes, parents first.
func descendants(of []Process) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	children := map[int][]int{}
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			if p, err := cgroupfs.ReadProcess(pid); err == nil { // else it has ended
				children[p.Parent] = append(children[p.Parent], pid)
			}
		}
	}
	seen := map[int]bool{}
	var all []int
	add := func(pids []int) {
		for _, pid := range pids {
			if !seen[pid] {
				seen[pid] = true
				all = append(all, pid)
			}
		}
	}
	for _, p := range of {
		add(children[p.PID])
	}
	for i := 0; i < len(all); i++ {
		add(children[all[i]])
	}
	return all, nil
}

// carry gives the sockets of who was moved, and of who was born in the cgroup since,
// the override, and says how many got it that were not made there.
func (a *attaching) carry() (old int, err error) {
	if a.carrier == nil || a.got.Stay != "" {
		return 0, nil
	}
	members, err := a.tree.Members(a.target.Name)
	if err != nil {
		return 0, err
	}
	for _, pid := range members {
		if _, was := slices.BinarySearch(a.before, pid); !was {
			a.here[pid] = true
		}
	}
	if len(a.here) == 0 {
		return 0, nil
	}
	carried, failed, err := a.carrier.Carry(a.here)
	for _, c := range carried {
		if !c.Inside {
			old++
		}
		if c.Inode == 0 {
			a.got.Waiting++
		} else {
			a.found[socket.Held{Inode: c.Inode, PID: c.PID}] = true
		}
	}
	for _, f := range failed {
		if !slices.ContainsFunc(a.got.Failed, func(o Failure) bool { return o.PID == f.PID && o.Err.Error() == f.Err.Error() }) {
			a.got.Failed = append(a.got.Failed, f)
		}
	}
	return old, err
}

// describe finds out what the sockets are. All that are open followed where nobody had
// to carry them.
func (a *attaching) describe(ctx context.Context) error {
	if a.carrier == nil {
		for pid := range a.here {
			fds, _ := socket.Of(pid) // none: it is gone or may not be looked at
			for _, inode := range fds {
				a.found[socket.Held{Inode: inode, PID: pid}] = true
			}
		}
	}
	var err error
	a.got.Sockets, err = socket.Describe(ctx, a.found, a.here)
	return err
}

// Carrier brings open sockets along.
type Carrier interface {
	// Carry does so for the sockets of the processes and says which came.
	Carry(pids map[int]bool) ([]Carried, []Failure, error)
	// Stay says why they keep the class that they have, empty where they come.
	Stay() string
	Close()
}

// Carried is a socket that came along.
type Carried struct {
	Inode  uint64 // 0: it has no file
	PID    int
	Inside bool // it was made in the cgroup
}

// Staying is a [Carrier] that brings nothing along, and says why.
type Staying string

// Carry implements [Carrier].
func (s Staying) Carry(map[int]bool) ([]Carried, []Failure, error) { return nil, nil, nil }

// Stay implements [Carrier].
func (s Staying) Stay() string { return string(s) }

// Close implements [Carrier].
func (s Staying) Close() {}
