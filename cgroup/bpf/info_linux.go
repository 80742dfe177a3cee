package bpf

import (
	"encoding/binary"
	"unsafe"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// programInfo is the kernel's name of a program, of 15 letters at most, and its maps. The
// library's Info also reads the instructions and /proc, and for a program without maps
// loads another one to find out whether the kernel tells them: it takes ten times as long.
func programInfo(p *ebpf.Program) (name string, maps []ebpf.MapID, err error) {
	// The beginning of struct bpf_prog_info, include/uapi/linux/bpf.h.
	type info struct {
		_      [52]byte
		maps   uint32
		mapIDs pointer
		name   [unix.BPF_OBJ_NAME_LEN]byte
	}
	var first info
	if err := objInfo(p.FD(), unsafe.Pointer(&first), unsafe.Sizeof(first)); err != nil {
		return "", nil, err
	}
	if first.maps > 0 {
		maps = make([]ebpf.MapID, first.maps)
		again := info{maps: first.maps, mapIDs: to(unsafe.Pointer(&maps[0]))}
		if err := objInfo(p.FD(), unsafe.Pointer(&again), unsafe.Sizeof(again)); err != nil {
			return "", nil, err
		}
	}
	return unix.ByteSliceToString(first.name[:]), maps, nil
}

// mapName is the kernel's name of a map, of 15 letters at most.
func mapName(m *ebpf.Map) (string, error) {
	// The beginning of struct bpf_map_info.
	var info struct {
		_    [24]byte
		name [unix.BPF_OBJ_NAME_LEN]byte
	}
	err := objInfo(m.FD(), unsafe.Pointer(&info), unsafe.Sizeof(info))
	return unix.ByteSliceToString(info.name[:]), err
}

// objInfo fills in as much of a struct of the kernel's as there is room for.
func objInfo(fd int, into unsafe.Pointer, size uintptr) error {
	attr := struct {
		fd, size uint32
		into     pointer
	}{uint32(fd), uint32(size), to(into)}
	if _, _, e := unix.Syscall(unix.SYS_BPF, unix.BPF_OBJ_GET_INFO_BY_FD, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr)); e != 0 {
		return e
	}
	return nil
}

// pointer is one of 64 bits, as the kernel takes it from every processor.
type pointer [8 / unsafe.Sizeof(uintptr(0))]unsafe.Pointer

func to(p unsafe.Pointer) (x pointer) {
	at := 0
	if binary.NativeEndian.Uint16([]byte{0, 1}) == 1 {
		at = len(x) - 1
	}
	x[at] = p
	return x
}
