package tctest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// KillAt runs a program and kills it, with all that it has started, where it is about to
// change something for the n-th time, from 0: before it sends a message that is no question
// to a netlink socket, has the kernel change something of BPF, or makes, writes, renames or
// removes a file. It says what that was, empty where the program has come to its end; one that
// has not ended after a time is told to by SIGTERM. The caller is locked to its thread, which
// becomes the tracer (ptrace(2)).
func KillAt(cmd *exec.Cmd, n int, limit time.Duration) (what string, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Ptrace = true
	if err := cmd.Start(); err != nil {
		return "", err
	}
	first := cmd.Process.Pid
	defer func() { _ = cmd.Process.Release() }() // it is waited for here
	defer time.AfterFunc(limit, func() { _ = unix.Kill(first, unix.SIGTERM) }).Stop()
	var status syscall.WaitStatus
	if _, err := syscall.Wait4(first, &status, 0, nil); err != nil || !status.Stopped() {
		return "", fmt.Errorf("%v is %v: %w", cmd, status, errors.Join(err, cmd.Process.Kill()))
	}
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACEFORK | unix.PTRACE_O_TRACEVFORK | unix.PTRACE_O_EXITKILL
	err = errors.Join(syscall.PtraceSetOptions(first, options), syscall.PtraceSyscall(first, 0))
	if err != nil {
		return "", errors.Join(err, cmd.Process.Kill())
	}
	for {
		tid, err := syscall.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.ECHILD: // all have ended
			return what, nil
		case err != nil:
			return what, err
		case !status.Stopped():
			continue
		}
		sig := 0
		switch s := status.StopSignal(); {
		case what != "":
			_ = unix.Kill(tid, unix.SIGKILL) // that came after
		case s == syscall.SIGTRAP|0x80:
			change, err := changing(tid)
			if err != nil {
				return "", errors.Join(err, unix.Kill(first, unix.SIGKILL))
			}
			if change == "" {
				break
			}
			if n--; n < 0 {
				what = change
				if err := unix.Kill(tid, unix.SIGKILL); err != nil {
					return what, err
				}
				_ = unix.Kill(first, unix.SIGKILL)
			}
		case s == syscall.SIGTRAP, s == syscall.SIGSTOP: // of a new thread, of exec
		default:
			sig = int(s)
		}
		if err := syscall.PtraceSyscall(tid, sig); err != nil && err != syscall.ESRCH {
			return what, err
		}
	}
}

// changing says what a thread that has just entered a system call is about to change;
// empty: nothing, or it comes back from one.
func changing(tid int) (string, error) {
	var info struct { // ptrace_syscall_info of linux/ptrace.h
		op   uint8
		_    [3]uint8
		arch uint32
		ip   uint64
		sp   uint64
		nr   uint64
		args [6]uint64
		_    [8]uint64
	}
	const getSyscallInfo, entry = 0x420e, 1
	_, _, e := unix.Syscall6(unix.SYS_PTRACE, getSyscallInfo, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if e == unix.ESRCH {
		return "", nil
	}
	if e != 0 {
		return "", fmt.Errorf("PTRACE_GET_SYSCALL_INFO: %w", e)
	}
	if info.op != entry {
		return "", nil
	}
	a := info.args
	name := func(at int) string { return text(tid, uintptr(a[at])) }
	switch info.nr {
	case unix.SYS_SENDTO:
		return message(tid, uintptr(a[1])), nil
	case unix.SYS_SENDMSG:
		iov := word(tid, uintptr(a[1])+16) // msg_iov
		return message(tid, uintptr(word(tid, uintptr(iov)))), nil
	case unix.SYS_BPF:
		switch a[0] {
		case unix.BPF_MAP_CREATE, unix.BPF_MAP_UPDATE_ELEM, unix.BPF_MAP_DELETE_ELEM, unix.BPF_PROG_LOAD, unix.BPF_OBJ_PIN, unix.BPF_PROG_ATTACH,
			unix.BPF_PROG_DETACH, unix.BPF_LINK_CREATE, unix.BPF_LINK_UPDATE, unix.BPF_MAP_UPDATE_BATCH, unix.BPF_MAP_DELETE_BATCH:
			return fmt.Sprintf("bpf command %d", a[0]), nil
		}
	case unix.SYS_OPENAT:
		if a[2]&(unix.O_CREAT|unix.O_TRUNC) != 0 {
			return "open " + name(1), nil
		}
	case unix.SYS_WRITE, unix.SYS_PWRITE64, unix.SYS_FTRUNCATE:
		file, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", tid, a[0]))
		if err == nil && a[0] > 2 && filepath.IsAbs(file) {
			return "write " + file, nil
		}
	case unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2:
		return "rename " + name(1), nil
	case unix.SYS_LINKAT:
		return "link " + name(1), nil
	case unix.SYS_UNLINKAT:
		return "remove " + name(1), nil
	case unix.SYS_MKDIRAT:
		return "mkdir " + name(1), nil
	}
	return "", nil
}

// message says what a netlink message is that is about to be sent; empty: a question.
func message(tid int, at uintptr) string {
	var b [16]byte
	if _, err := syscall.PtracePeekData(tid, at, b[:]); err != nil {
		return ""
	}
	typ := binary.NativeEndian.Uint16(b[4:])
	if typ < unix.RTM_BASE || typ < 256 && typ%4 == 2 { // rtnetlink's questions (rtnl_msg_handlers, net/core/rtnetlink.c)
		return ""
	}
	return fmt.Sprintf("send netlink message %d of %d bytes", typ, binary.NativeEndian.Uint32(b[:]))
}

func word(tid int, at uintptr) uint64 {
	var b [8]byte
	_, _ = syscall.PtracePeekData(tid, at, b[:]) // 0 is nowhere
	return binary.NativeEndian.Uint64(b[:])
}

// text reads a name.
func text(tid int, at uintptr) string {
	b := make([]byte, 256)
	n, _ := syscall.PtracePeekData(tid, at, b) // what there is
	s, _, _ := strings.Cut(string(b[:n]), "\x00")
	return s
}
