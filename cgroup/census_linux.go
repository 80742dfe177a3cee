package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"path"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/iface"
	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// ProcessSockets is what a process has open that can send by the interface.
type ProcessSockets struct {
	// Sockets are by their inodes' numbers, with the class of what each sends by the
	// interface; class 0 where that cannot be told. Those that have no port yet, and
	// have not sent, are left out.
	Sockets map[uint64]hierarchy.ClassID
	// Elsewhere says that the process lives in another network namespace: what it sends
	// is forwarded here, if it comes here at all, and has lost its socket by then.
	Elsewhere bool
	Err       error // why its descriptors cannot be read; nil where it has ended
}

// Census says where what processes have open belongs: by the classifier that is on
// the interface, as it decides for the next packet. It changes nothing. Needs what
// [Binder.Do] needs, and to read the processes' descriptors (CAP_SYS_PTRACE).
func (b *Binder) Census(ctx context.Context, pids []int) (map[int]ProcessSockets, error) {
	all, err := b.census(ctx, pids)
	return all, b.wrap(err)
}

func (b *Binder) census(ctx context.Context, pids []int) (map[int]ProcessSockets, error) {
	on, err := b.inForce()
	if err != nil || on == nil || len(pids) == 0 {
		return nil, err
	}
	here, err := iface.NetNS(b.cfg.NetNSFD)
	if err != nil {
		return nil, err
	}
	all := make(map[int]ProcessSockets, len(pids))
	wanted := map[uint64]hierarchy.ClassID{}
	for _, pid := range pids {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		p, err := heldSockets(pid, here)
		if err != nil {
			return nil, err
		}
		for inode := range p.Sockets {
			wanted[inode] = 0
		}
		all[pid] = p
	}
	sockets := map[uint64]socket.Diag{}
	if len(wanted) > 0 {
		err := socket.Diagnose(b.cfg.NetNSFD, func(s socket.Diag) {
			if _, ok := wanted[s.Inode]; ok {
				sockets[s.Inode] = s
			}
		})
		if err != nil {
			return nil, err
		}
		class, err := on.sockets.decider(ctx, pids, sockets)
		if err != nil {
			return nil, err
		}
		for inode, s := range sockets {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if wanted[inode], err = class(s); err != nil {
				return nil, err
			}
		}
	}
	for _, p := range all {
		for inode := range p.Sockets {
			p.Sockets[inode] = wanted[inode]
			if _, here := sockets[inode]; !here {
				delete(p.Sockets, inode) // another network namespace's, or it goes to no interface
			}
		}
	}
	return all, nil
}

// heldSockets are all sockets of a process, of any kind and network namespace. One
// that has ended has none.
func heldSockets(pid int, home uint64) (p ProcessSockets, err error) {
	proc := "/proc/" + strconv.Itoa(pid)
	var ns unix.Stat_t
	if err = unix.Stat(proc+"/ns/net", &ns); err == nil {
		p.Elsewhere = ns.Ino != home
		var fds map[int]uint64
		if fds, err = socket.Of(pid); err == nil {
			p.Sockets = make(map[uint64]hierarchy.ClassID, len(fds))
		}
		for _, inode := range fds {
			p.Sockets[inode] = 0
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ESRCH):
		return ProcessSockets{}, nil
	case errors.Is(err, fs.ErrPermission):
		p.Err = caps.Explain(caps.Errno(err), unix.CAP_SYS_PTRACE)
		return p, nil
	}
	return p, err
}

// decider finds the class of a socket of v2 as the classifier does: vif_egress in
// bpf/classify.bpf.c, or the rules of nf_tables.
type decider struct {
	tree   *cgroupfs.Tree
	bound  map[uint64]hierarchy.ClassID // cgroups by id
	users  map[uint32]hierarchy.ClassID
	inside map[uint64]hierarchy.ClassID // what was found out: the class of a cgroup, by its id; 0: of none
}

func newDecider(ctx context.Context, tree func() (*cgroupfs.Tree, error), all func(context.Context, func(way.Key, hierarchy.ClassID) error) error) (*decider, error) {
	d := &decider{bound: map[uint64]hierarchy.ClassID{}, users: map[uint32]hierarchy.ClassID{}, inside: map[uint64]hierarchy.ClassID{}}
	var err error
	if d.tree, err = tree(); err != nil {
		return nil, err
	}
	return d, all(ctx, func(k way.Key, class hierarchy.ClassID) error {
		switch k.Kind {
		case bind.TargetCgroup:
			d.bound[k.ID] = class &^ way.Stays
		case bind.TargetUser:
			d.users[uint32(k.ID)] = class &^ way.Stays
		}
		return nil
	})
}

// class is 0 where it cannot be told.
func (d *decider) class(s socket.Diag) (hierarchy.ClassID, error) {
	if s.Cgroup == 0 {
		return 0, nil
	}
	class, err := d.cgroup(s.Cgroup)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if class == 0 && err == nil {
		class = d.users[s.UID]
	}
	if class == 0 && err == nil {
		class = way.Rest
	}
	return class, err
}

// byProgram is the sockets of the program of bpf, which remembers of each what it found
// out, and may have been told that it is somebody else's than where it was made.
type byProgram struct{ *Binder }

func (x byProgram) carrier(of way.Key) (home.Carrier, error) { return x.egress.Carrier(of) }

func (x byProgram) decider(ctx context.Context, pids []int, sockets map[uint64]socket.Diag) (func(socket.Diag) (hierarchy.ClassID, error), error) {
	known, all, err := x.egress.Sockets(pids, sockets)
	if err != nil {
		return nil, err
	}
	d, err := newDecider(ctx, x.findV2, x.egress.All)
	if err != nil {
		return nil, err
	}
	return func(s socket.Diag) (hierarchy.ClassID, error) {
		k, is := known[s.Inode]
		if k.Class != 0 {
			return k.Class &^ way.Stays, nil
		}
		if class := d.own(k.Own); class != 0 {
			return class, nil
		}
		if !is && !all {
			return 0, nil
		}
		return d.class(s)
	}, nil
}

// byBirth is the sockets of rules of nf_tables, which go by the cgroup in which each was
// made.
type byBirth struct{ *Binder }

func (byBirth) carrier(way.Key) (home.Carrier, error) {
	return home.Staying("the rules of nf_tables go by the cgroup in which a socket was made"), nil
}

func (x byBirth) decider(ctx context.Context, _ []int, _ map[uint64]socket.Diag) (func(socket.Diag) (hierarchy.ClassID, error), error) {
	if x.is != way.Version {
		return nil, way.ErrOther
	}
	d, err := newDecider(ctx, x.findV2, x.tables.All)
	if err != nil {
		return nil, err
	}
	return func(s socket.Diag) (hierarchy.ClassID, error) {
		if s.Packet {
			return way.Rest, nil
		}
		return d.class(s)
	}, nil
}

// byTag is the sockets of net_cls, which follow their processes by themselves.
type byTag struct{ ours func(hierarchy.ClassID) bool }

func (byTag) carrier(way.Key) (home.Carrier, error) { return nil, nil }

func (x byTag) decider(_ context.Context, _ []int, _ map[uint64]socket.Diag) (func(socket.Diag) (hierarchy.ClassID, error), error) {
	return func(s socket.Diag) (hierarchy.ClassID, error) {
		switch {
		case s.Packet:
			return 0, nil
		case !x.ours(s.Tag):
			return way.Rest, nil
		}
		return s.Tag, nil
	}, nil
}

// own is the class of what a socket was given to, 0 for none.
func (d *decider) own(k way.Key) hierarchy.ClassID {
	switch k.Kind {
	case bind.TargetUser:
		return d.users[uint32(k.ID)]
	case bind.TargetCgroup:
		return d.bound[k.ID]
	}
	return 0
}

// cgroup is the class of the deepest bound cgroup above a socket of one, 0 for none.
// Of a cgroup that is gone, and is not bound itself, nobody but the kernel knows what was
// above it: that is fs.ErrNotExist.
func (d *decider) cgroup(id uint64) (hierarchy.ClassID, error) {
	if class, ok := d.bound[id]; ok {
		return class, nil
	}
	if class, ok := d.inside[id]; ok {
		return class, nil
	}
	p, err := d.tree.Path(id)
	if err != nil {
		return 0, err
	}
	class := hierarchy.ClassID(0)
	for p = path.Dir(p); p != "/" && class == 0; p = path.Dir(p) { // nothing binds the root
		above, _, err := d.tree.ID(p)
		if err != nil {
			return 0, err
		}
		class = d.bound[above]
	}
	d.inside[id] = class
	return class, nil
}
