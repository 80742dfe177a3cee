package bpf

import (
	"encoding/binary"
	"io"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Known is what the program knows of a socket.
type Known struct {
	Class hierarchy.ClassID // that its next packet gets; 0: that is looked up anew
	Own   way.Key           // the cgroup or user to which it was given, the zero Key for none
}

const userOverride = 1 << 63 // VIF_USER in socket.h

// Sockets is what the program knows of sockets, by their inodes. All says that it knows
// nothing of those that are missing; else they may be any that the processes do not have,
// or that are not in of.
func (e *Egress) Sockets(pids []int, of map[uint64]socket.Diag) (_ map[uint64]Known, all bool, err error) {
	s := e.inForce()
	if s == nil {
		return nil, false, way.ErrOther
	}
	var c classifyVifConfig
	if err := s.config.Lookup(uint32(0), &c); err != nil {
		return nil, false, err
	}
	raw, err := s.known()
	if all = err == nil; !all {
		if raw, err = s.borrowKnown(pids, of); err != nil {
			return nil, false, err
		}
	}
	known := make(map[uint64]Known, len(raw))
	for inode, v := range raw {
		var k Known
		if uint32(v.Cached>>32) == c.Generation {
			k.Class = hierarchy.ClassID(uint32(v.Cached))
		}
		switch {
		case v.Override&userOverride != 0:
			k.Own = way.Key{Kind: bind.TargetUser, ID: uint64(uint32(v.Override))}
		case v.Override != 0:
			k.Own = way.Key{Kind: bind.TargetCgroup, ID: v.Override}
		}
		known[inode] = k
	}
	return known, all, nil
}

// known goes through the map itself, which takes Linux 5.9 and a kernel that describes
// its own types. The number of sockets that have sent by the interface is what it costs.
func (s *set) known() (map[uint64]classifyVifSocket, error) {
	spec, err := loadKnown()
	if err != nil {
		return nil, err
	}
	coll, err := ebpf.NewCollection(spec)
	if err != nil {
		return nil, err
	}
	defer coll.Close()
	it, err := link.AttachIter(link.IterOptions{Program: coll.Programs[knownProgVifKnown], Map: s.sockets})
	if err != nil {
		return nil, err
	}
	defer it.Close()
	r, err := it.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	buf, err := io.ReadAll(patient{r})
	if err != nil {
		return nil, err
	}
	known := make(map[uint64]classifyVifSocket, len(buf)/24)
	for ; len(buf) >= 24; buf = buf[24:] { // struct vif_known
		known[binary.NativeEndian.Uint64(buf)] = classifyVifSocket{
			Cached: binary.NativeEndian.Uint64(buf[8:]), Override: binary.NativeEndian.Uint64(buf[16:]),
		}
	}
	return known, nil
}

// borrowKnown asks the map by descriptors that it borrows from the processes (Linux
// 5.6). Whoever receives one gives the socket his own tag of net_cls (__receive_sock,
// net/core/scm.c, v6.12), so one that has another is left alone.
func (s *set) borrowKnown(pids []int, of map[uint64]socket.Diag) (map[uint64]classifyVifSocket, error) {
	tags, err := cgroupfs.FindNetCls()
	if err != nil {
		return nil, err
	}
	own := hierarchy.ClassID(0)
	if tags != nil {
		defer tags.Close()
		mine, _, err := cgroupfs.Own(bind.WayNetCls)
		if err == nil {
			own, err = tags.Class(mine.Name)
		}
		if err != nil {
			return nil, err
		}
	}
	known := map[uint64]classifyVifSocket{}
	for _, pid := range pids {
		process, err := unix.PidfdOpen(pid, 0)
		if err != nil {
			continue // it has ended, or the kernel has no such thing
		}
		fds, _ := socket.Of(pid) // none: it is gone or may not be looked at
		for fd, inode := range fds {
			x, wanted := of[inode]
			if _, done := known[inode]; done || !wanted || tags != nil && (x.Packet || x.Tag != own) {
				continue
			}
			ours, err := unix.PidfdGetfd(process, fd, 0)
			if err != nil {
				continue // closed meanwhile, or out of reach
			}
			var v classifyVifSocket
			var st unix.Stat_t
			if gone(s.sockets.Lookup(int32(ours), &v)) == nil && unix.Fstat(ours, &st) == nil && st.Ino == inode {
				known[inode] = v
			}
			unix.Close(ours)
		}
		unix.Close(process)
	}
	return known, nil
}
