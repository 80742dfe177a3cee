package cgroup

import (
	"errors"
	"fmt"
	"hash/fnv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// narrow is the program of bpf/narrow.bpf.c, which keeps the sockets of bound
// cgroups from going round the queues, root's too. It is attached to each of them
// beside any other, and nothing is pinned: it goes with the cgroup. One that two
// interfaces bind has it twice, each under its interface's name, and loses one with
// each binding.
type narrow struct {
	prog    *ebpf.Program // nil until it is needed
	ours    map[ebpf.ProgramID]bool
	off     error            // why the kernel has no such thing, once that is known
	refused map[string]error // why a cgroup, by its path, does not take it
}

// narrowName is the program's. The kernel keeps 15 letters; for a name as long as
// that the library takes the function's instead.
func (b *Binder) narrowName() string {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s/%s", b.cfg.NetNS, b.cfg.Interface)
	return fmt.Sprintf("vif_%010x", h.Sum64()&(1<<40-1))
}

func (n *narrow) close() error {
	if n.prog == nil {
		return nil
	}
	return n.prog.Close()
}

// load loads the program unless this Binder has it. Where that fails it will not be
// tried again.
func (n *narrow) load(name string) error {
	if n.off != nil || n.prog != nil {
		return n.off
	}
	n.off = func() error {
		if before(5, 8) { // large values would be refused
			return fmt.Errorf("it takes Linux 5.8: %w", caps.ErrNotSupported)
		}
		spec, err := loadNarrow()
		if err != nil {
			return err
		}
		p := spec.Programs[narrowProgVifNarrow]
		p.Name = name
		n.prog, err = ebpf.NewProgram(p)
		return err
	}()
	return n.off
}

// findNarrow is the program of the interface on a cgroup, nil when it is not there.
// Whoever gets one closes it.
func (b *Binder) findNarrow(fd int) (*ebpf.Program, error) {
	q, err := link.QueryPrograms(link.QueryOptions{Target: fd, Attach: ebpf.AttachCGroupSetsockopt})
	if err != nil {
		return nil, err
	}
	for _, x := range q.Programs {
		ours, known := b.narrow.ours[x.ID]
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
			info, err := p.Info()
			if err != nil {
				return nil, errors.Join(err, p.Close())
			}
			ours = info.Name == b.narrowName()
			if b.narrow.ours == nil {
				b.narrow.ours = map[ebpf.ProgramID]bool{}
			}
			b.narrow.ours[x.ID] = ours
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

// open says whether the program is missing on a cgroup on which it could be.
func (b *Binder) open(t *cgroupfs.Tree, path string) (open bool) {
	if !t.V2() || b.narrow.off != nil || b.narrow.refused[path] != nil {
		return false
	}
	err := on(t, path, func(fd int) error {
		p, err := b.findNarrow(fd)
		if err != nil {
			return err
		}
		if p != nil {
			return p.Close()
		}
		open = b.narrow.load(b.narrowName()) == nil
		return nil
	})
	if err != nil && !vanishing(err) && b.narrow.off == nil {
		b.narrow.off = err // no such programs here, or nobody may ask for them
	}
	return open && err == nil
}

// guard attaches the program to a cgroup, unless it is there. That it cannot be is
// no error of a binding, whose packets get their class without it: where somebody
// else's program does not suffer another one below it, Warn is told, and where the
// kernel has no such programs, nobody but [Binder.Unguarded]'s caller.
func (b *Binder) guard(t *cgroupfs.Tree, path string) error {
	if !b.open(t, path) {
		return nil
	}
	return on(t, path, func(fd int) error {
		err := link.RawAttachProgram(link.RawAttachProgramOptions{
			Target: fd, Program: b.narrow.prog, Attach: ebpf.AttachCGroupSetsockopt, Flags: unix.BPF_F_ALLOW_MULTI,
		})
		if err != nil && !vanishing(err) {
			if b.narrow.refused == nil {
				b.narrow.refused = map[string]error{}
			}
			b.narrow.refused[path] = err
			b.cfg.Warn(fmt.Sprintf("cgroup %s: root may send past the queues (PACKET_QDISC_BYPASS, AF_XDP): the program against it cannot be attached: %v", path, err))
		}
		return nil
	})
}

// unguard takes the program away from a cgroup.
func (b *Binder) unguard(t *cgroupfs.Tree, path string) error {
	return on(t, path, func(fd int) error {
		p, err := b.findNarrow(fd)
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

// Unguarded says in words why root's sockets in the cgroup of a target may go round the
// queues, nothing when they may not.
func (b *Binder) Unguarded(target bind.Target) string {
	if err := b.settle(); err != nil {
		return err.Error()
	}
	path := target.Name
	switch {
	case !b.tree().V2():
		return "the branch is bound by cgroup v1, where no program can be attached"
	case b.open(b.tree(), path):
		return "the program against it is gone: apply the policy again"
	case b.narrow.refused[path] != nil:
		return fmt.Sprintf("the program against it cannot be attached: %v", b.narrow.refused[path])
	case b.narrow.off != nil:
		return fmt.Sprintf("no program can be attached to cgroups: %v", b.narrow.off)
	}
	return ""
}
