package bpf

import (
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
)

// Guard is the program of narrow.bpf.c, which keeps the sockets of bound cgroups from
// going round the queues, root's too. It is attached to each of them beside any other,
// and nothing is pinned: it goes with the cgroup. One that two interfaces bind has it
// twice, each under its interface's name, and loses one with each binding. Cgroups of v1
// can have no such program.
type Guard struct {
	name    string
	prog    *ebpf.Program // nil until it is needed
	ours    map[ebpf.ProgramID]bool
	off     error            // why the kernel has no such thing, once that is known
	refused map[string]error // why a cgroup, by its path, does not take it
}

// NewGuard makes the guard of an interface. Nothing is loaded yet.
//
// The kernel keeps 15 letters of a program's name; for a name as long as that the library
// takes the function's instead.
func NewGuard(netNS, iface string) *Guard {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%s", netNS, iface)
	return &Guard{name: fmt.Sprintf("vif_%010x", h.Sum64()&(1<<40-1)), ours: map[ebpf.ProgramID]bool{}, refused: map[string]error{}}
}

// Close lets go of the program, which stays where it is attached.
func (g *Guard) Close() error {
	if g.prog == nil {
		return nil
	}
	return g.prog.Close()
}

// load loads the program unless that was done. Where that fails it will not be
// tried again.
func (g *Guard) load() error {
	if g.off != nil || g.prog != nil {
		return g.off
	}
	g.off = func() error {
		if caps.Before(5, 8) { // large values would be refused
			return fmt.Errorf("it takes Linux 5.8: %w", caps.ErrNotSupported)
		}
		spec, err := loadNarrow()
		if err != nil {
			return err
		}
		p := spec.Programs[narrowProgVifNarrow]
		p.Name = g.name
		g.prog, err = ebpf.NewProgram(p)
		return err
	}()
	return g.off
}

// find is the program of the interface on a cgroup, nil when it is not there.
// Whoever gets one closes it.
func (g *Guard) find(fd int) (*ebpf.Program, error) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: fd, Attach: ebpf.AttachCGroupSetsockopt})
	if err != nil {
		return nil, err
	}
	for _, x := range q.Programs {
		ours, known := g.ours[x.ID]
		if known && !ours {
			continue
		}
		p, err := ebpf.NewProgramFromID(x.ID)
		if errors.Is(err, unix.ENOENT) {
			continue // gone meanwhile
		}
		if err != nil {
			return nil, err
		}
		if !known {
			called, _, err := programInfo(p)
			if err != nil {
				return nil, errors.Join(err, p.Close())
			}
			ours = called == g.name
			g.ours[x.ID] = ours
		}
		if ours {
			return p, nil
		}
		if err := p.Close(); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// vanishing says whether an error is that of a cgroup that is gone, which a
// descriptor of it does not prevent (cgroup_v1v2_get_from_fd, kernel/cgroup/cgroup.c,
// v6.12).
func vanishing(err error) bool { return errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) }

// on calls a function with a descriptor of a cgroup. One that is gone is no error.
func on(t *cgroupfs.Tree, path string, fn func(fd int) error) error {
	fd, err := unix.Open(t.Dir(path), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if vanishing(err) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return fn(fd)
}

// Missing says whether the program is not on a cgroup on which it could be.
func (g *Guard) Missing(t *cgroupfs.Tree, path string) (open bool) {
	if !t.V2() || g.off != nil || g.refused[path] != nil {
		return false
	}
	err := on(t, path, func(fd int) error {
		p, err := g.find(fd)
		if err != nil {
			return err
		}
		if p != nil {
			return p.Close()
		}
		open = g.load() == nil
		return nil
	})
	if err != nil && !vanishing(err) && g.off == nil {
		g.off = err // no such programs here, or nobody may ask for them
	}
	return open && err == nil
}

// Put attaches the program to a cgroup, unless it is there. That it cannot be is no error
// of a binding, whose packets get their class without it: where somebody else's program
// does not suffer another one below it, why says that, and where the kernel has no such
// programs, nobody but [Guard.Open].
func (g *Guard) Put(t *cgroupfs.Tree, path string) (why string, err error) {
	if !g.Missing(t, path) {
		return "", nil
	}
	err = on(t, path, func(fd int) error {
		err := link.RawAttachProgram(link.RawAttachProgramOptions{
			Target: fd, Program: g.prog, Attach: ebpf.AttachCGroupSetsockopt, Flags: unix.BPF_F_ALLOW_MULTI,
		})
		if err != nil && !vanishing(err) {
			g.refused[path] = err
			why = fmt.Sprintf("cgroup %s: root may send past the queues (PACKET_QDISC_BYPASS, AF_XDP): the program against it cannot be attached: %v", path, err)
		}
		return nil
	})
	return why, err
}

// Take takes the program away from a cgroup.
func (g *Guard) Take(t *cgroupfs.Tree, path string) error {
	if !t.V2() {
		return nil
	}
	return on(t, path, func(fd int) error {
		p, err := g.find(fd)
		if p == nil || err != nil {
			return nil // there is none, or nobody may have one
		}
		err = link.RawDetachProgram(link.RawDetachProgramOptions{Target: fd, Program: p, Attach: ebpf.AttachCGroupSetsockopt})
		if errors.Is(err, unix.ENOENT) { // somebody was faster
			err = nil
		}
		return errors.Join(err, p.Close())
	})
}

// Open says in words why root's sockets in a cgroup may go round the queues, nothing when
// they may not.
func (g *Guard) Open(t *cgroupfs.Tree, path string) string {
	switch {
	case !t.V2():
		return "the branch is bound by cgroup v1, where no program can be attached"
	case g.Missing(t, path):
		return "the program against it is gone: apply the policy again"
	case g.refused[path] != nil:
		return fmt.Sprintf("the program against it cannot be attached: %v", g.refused[path])
	case g.off != nil:
		return fmt.Sprintf("no program can be attached to cgroups: %v", g.off)
	}
	return ""
}
