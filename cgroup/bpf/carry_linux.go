package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/socket"
)

// iterator carries by programs that go through the files of all processes and
// through all TCP sockets (bpf/sockets.bpf.c).
type iterator struct {
	*set
	coll         *ebpf.Collection
	files, other *link.Iter
}

// newIterator takes Linux 5.11 and a kernel that describes its own types. Its programs
// know processes by the numbers that they have outside of all containers. Without a
// home every process' sockets are given that process' own binding, which takes 5.15.
func newIterator(s *set, home uint64, types *btf.Cache) (_ *iterator, err error) {
	if err := numbersHold(); home != 0 && err != nil {
		return nil, err
	}
	spec, err := loadSockets()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables[socketsVarVifHome].Set(home); err != nil {
		return nil, err
	}
	it := &iterator{set: s}
	it.coll, err = ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types, MapReplacements: map[string]*ebpf.Map{
		socketsMapVifSockets: s.sockets, socketsMapVifCgroups: s.cgroups, socketsMapVifUsers: s.numbers[byUser],
	}})
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			it.close()
		}
	}()
	if it.files, err = link.AttachIter(link.IterOptions{Program: it.coll.Programs[socketsProgVifFiles]}); err != nil {
		return nil, err
	}
	it.other, err = link.AttachIter(link.IterOptions{Program: it.coll.Programs[socketsProgVifBehindFiles]})
	return it, err
}

// numbersHold refuses a process that has another number outside of its containers.
func numbersHold() error {
	const first = 0xeffffffc // PROC_PID_INIT_INO, include/linux/proc_ns.h, v6.12
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/ns/pid", &st); err != nil {
		return fmt.Errorf("/proc/self/ns/pid: %w", err)
	}
	if st.Ino != first {
		return errors.New("processes have other numbers here than outside")
	}
	return nil
}

func (it *iterator) close() {
	for _, l := range []*link.Iter{it.files, it.other} {
		if l != nil {
			l.Close()
		}
	}
	it.coll.Close()
}

func (it *iterator) carry(pids map[int]bool) (all []home.Carried, failed []home.Failure, err error) {
	for pid := range pids {
		if err := put(it.coll.Maps[socketsMapVifTasks], uint32(pid), uint32(1)); err != nil {
			return nil, nil, err
		}
	}
	// an address may be another socket's by now
	behind := it.coll.Maps[socketsMapVifBehind]
	var stale []uint64
	if err := each(behind, func(at, _ uint64) error { stale = append(stale, at); return nil }); err != nil {
		return nil, nil, err
	}
	for _, at := range stale {
		if err := gone(behind.Delete(at)); err != nil {
			return nil, nil, err
		}
	}
	for _, l := range []*link.Iter{it.files, it.other} {
		some, not, err := moved(l)
		all, failed = append(all, some...), append(failed, not...)
		if err != nil {
			return all, failed, fmt.Errorf("go through open sockets: %w", err)
		}
	}
	return all, failed, nil
}

// moved runs a program and reads what it tells: struct vif_moved.
func moved(l *link.Iter) (all []home.Carried, failed []home.Failure, err error) {
	r, err := l.Open()
	if err != nil {
		return nil, nil, err
	}
	defer r.Close()
	b, err := io.ReadAll(patient{r})
	for ; len(b) >= 16; b = b[16:] {
		const full = 1 // the others are more than the program looks at
		inode, pid := binary.NativeEndian.Uint64(b), int(binary.NativeEndian.Uint32(b[8:]))
		switch binary.NativeEndian.Uint16(b[14:]) {
		case 0:
			all = append(all, home.Carried{Inode: inode, PID: pid, Inside: binary.NativeEndian.Uint16(b[12:]) != 0})
		case full:
			failed = append(failed, home.Failure{PID: pid, Err: unmoved(inode, pid)})
		default:
			failed = append(failed, home.Failure{PID: pid, Err: fmt.Errorf("%s: more connections wait there than can be looked at: some keep their class", socket.Name(inode, pid))})
		}
	}
	if err == nil && len(b) > 0 {
		err = io.ErrUnexpectedEOF
	}
	return all, failed, err
}

// unmoved is the error of a socket for whose override there is no memory: the kernel
// counts it with the socket's other options (omem_charge, net/core/bpf_sk_storage.c,
// v6.12).
func unmoved(inode uint64, pid int) error {
	return fmt.Errorf("%s keeps its class: it has no memory for options left (net.core.optmem_max)", socket.Name(inode, pid))
}

// patient reads on where a program has been through a million things without a word
// (bpf_seq_read, kernel/bpf/bpf_iter.c, v6.12).
type patient struct{ io.Reader }

func (p patient) Read(b []byte) (n int, err error) {
	for {
		if n, err = p.Reader.Read(b); !errors.Is(err, unix.EAGAIN) {
			return n, err
		}
	}
}

// adopt gives what bound processes hold and nothing binds, such as a socket that
// systemd opened for them, their own binding, and says whether anything got it, and what
// could not. What their listeners accept later needs none of it: the classifier looks who
// serves it.
func (s *set) adopt(types *btf.Cache) (changed bool, left []string, err error) {
	it, err := newIterator(s, 0, types)
	if err != nil {
		return false, nil, nil // [Try] says it
	}
	defer it.close()
	all, failed, err := it.carry(nil)
	for _, f := range failed {
		left = append(left, fmt.Sprintf("process %d: %v", f.PID, f.Err))
	}
	return len(all) > 0, left, err
}

// borrower carries by descriptors that it borrows from the processes. Connections
// that wait to be accepted are out of its reach.
type borrower struct {
	*set
	home uint64
}

// newBorrower takes Linux 5.6.
func newBorrower(s *set, home uint64) (*borrower, error) {
	own, err := unix.PidfdOpen(os.Getpid(), 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_open: %w", err)
	}
	defer unix.Close(own)
	fd, err := unix.PidfdGetfd(own, own, 0)
	if err != nil {
		return nil, fmt.Errorf("pidfd_getfd: %w", err)
	}
	return &borrower{s, home}, unix.Close(fd)
}

func (b *borrower) close() {}

func (b *borrower) carry(pids map[int]bool) (all []home.Carried, failed []home.Failure, err error) {
	for pid := range pids {
		if first, err := cgroupfs.ReadProcess(pid); err == nil && first.Exits() {
			if !cgroupfs.Ends(pid) {
				failed = append(failed, home.Failure{PID: pid, Err: errors.New("its first thread has ended, by which alone this kernel lets its open sockets be reached: they keep their class")})
			}
			continue
		}
		some, not, err := b.process(pid)
		all, failed = append(all, some...), append(failed, not...)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			failed = append(failed, home.Failure{PID: pid, Err: fmt.Errorf("its open sockets keep their class: %w", err)})
		}
	}
	return all, failed, nil
}

func (b *borrower) process(pid int) (all []home.Carried, failed []home.Failure, err error) {
	process, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, nil, err
	}
	defer unix.Close(process)
	fds, _ := socket.Of(pid) // none: it is gone or may not be looked at
	for fd, inode := range fds {
		ours, err := unix.PidfdGetfd(process, fd, 0)
		if err == unix.EBADF { // closed meanwhile
			continue
		}
		if err != nil {
			return all, failed, err
		}
		changed, err := b.override(ours)
		unix.Close(ours)
		switch {
		case errors.Is(err, unix.ENOMEM):
			failed = append(failed, home.Failure{PID: pid, Err: unmoved(inode, pid)})
		case err != nil:
			return all, failed, err
		case changed:
			all = append(all, home.Carried{Inode: inode, PID: pid})
		}
	}
	return all, failed, nil
}

func (b *borrower) override(fd int) (changed bool, err error) {
	family, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil || family != unix.AF_INET && family != unix.AF_INET6 && family != unix.AF_PACKET {
		return false, nil // another file by now, or it goes to no interface
	}
	var v classifyVifSocket
	err = gone(b.sockets.Lookup(int32(fd), &v))
	if err != nil || v.Override == b.home {
		return false, err
	}
	v.Override, v.Cached = b.home, 0
	return true, put(b.sockets, int32(fd), &v)
}

// carrier gives open sockets the override.
type carrier interface {
	carry(pids map[int]bool) ([]home.Carried, []home.Failure, error)
	close()
}

// carrying brings into force at once what it carries.
type carrying struct {
	carrier
	set *set
}

func (c carrying) Carry(pids map[int]bool) (all []home.Carried, failed []home.Failure, err error) {
	all, failed, err = c.carry(pids)
	if err == nil && len(all) > 0 {
		err = c.set.publish()
	}
	return all, failed, err
}

func (c carrying) Stay() string { return "" }
func (c carrying) Close()       { c.close() }
