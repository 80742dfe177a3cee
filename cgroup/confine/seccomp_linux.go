package confine

import (
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// denial is a system call that a filter answers itself.
type denial struct {
	nr    uint32
	errno unix.Errno
}

// denials are the calls that no capability or file permission stands before.
// ENOSYS is given where programs know kernels without the call and have another
// way. kept are the capabilities that the program keeps.
func denials(kept capSet) []denial {
	all := []denial{
		{unix.SYS_CLONE3, unix.ENOSYS},         // CLONE_INTO_CGROUP; C libraries go back to clone
		{unix.SYS_IO_URING_SETUP, unix.ENOSYS}, // makes sockets that no filter sees
		{unix.SYS_IO_URING_ENTER, unix.ENOSYS}, // of a ring that was handed in
		{unix.SYS_IO_URING_REGISTER, unix.ENOSYS},
		// With these a mount can be had, by a user namespace, that is in no mount
		// table and so in no Landlock domain's reach.
		{unix.SYS_FSOPEN, unix.ENOSYS},
		{unix.SYS_FSPICK, unix.ENOSYS},
		{unix.SYS_FSMOUNT, unix.ENOSYS},
		{unix.SYS_OPEN_TREE, unix.ENOSYS},
		{sysOpenTreeAttr, unix.ENOSYS},
		{unix.SYS_MOVE_MOUNT, unix.ENOSYS},
		{unix.SYS_MOUNT_SETATTR, unix.ENOSYS},
	}
	if !kept.has(unix.CAP_SYS_ADMIN) {
		// A user is root of the user namespaces that it made, such as root of those of
		// containers, and so of what belongs to them: their network, whose packets
		// may be somebody else's by the time they are queued. Runtimes leave
		// namespaces open to all, by mounts of them.
		all = append(all, denial{unix.SYS_SETNS, unix.EPERM})
		// From a file that was opened outside, such as standard input, it leads to
		// the directories and so to the mounts there.
		all = append(all, denial{unix.SYS_OPEN_BY_HANDLE_AT, unix.EPERM})
	}
	if !kept.has(unix.CAP_BPF) && !kept.has(unix.CAP_SYS_ADMIN) {
		all = append(all, denial{unix.SYS_BPF, unix.EPERM}) // pinned maps are open to uid 0 without capabilities
	}
	return all
}

// sysOpenTreeAttr is open_tree_attr of Linux 6.15, the same on all architectures.
const sysOpenTreeAttr = 467

// refusedControls are the requests of ioctl that the filter refuses: by what they
// put into a terminal, the shell that reads it next would be told what to start; and a
// tun or tap device that belongs to nobody is anybody's who opens /dev/net/tun
// (tun_not_capable, drivers/net/tun.c, v6.12): what is written into it is forwarded.
func refusedControls(kept capSet) []denial {
	all := []denial{
		{unix.TIOCSTI, unix.EIO}, // as kernels say that have it switched off
		{tioclinux, unix.EPERM},  // as 6.7 and later say
	}
	if !kept.has(unix.CAP_NET_ADMIN) {
		all = append(all, denial{unix.TUNSETIFF, unix.EPERM})
	}
	return all
}

const tioclinux = 0x541c // TIOCLINUX, include/uapi/asm-generic/ioctls.h, v6.1

// refusedFamilies are the address families that the filter refuses: packets of their
// sockets go round every queue, or are sent by sockets of the kernel's own, which
// are in no branch, or are not of IP, and not seen by rules at its hooks.
func refusedFamilies(kept capSet) []denial {
	all := []denial{
		{unix.AF_XDP, unix.EPERM},
		{unix.AF_PPPOX, unix.EAFNOSUPPORT},
		{unix.AF_RDS, unix.EAFNOSUPPORT},
		{unix.AF_IB, unix.EAFNOSUPPORT},
		{unix.AF_SMC, unix.EAFNOSUPPORT},
		{unix.AF_TIPC, unix.EAFNOSUPPORT},
		{unix.AF_RXRPC, unix.EAFNOSUPPORT},
	}
	if !kept.has(unix.CAP_NET_RAW) {
		all = append(all, denial{unix.AF_PACKET, unix.EPERM})
	}
	return all
}

// auditArch is the architecture's number in seccomp data, 0 where the filter has
// not been made for it.
func auditArch() uint32 {
	switch runtime.GOARCH {
	case "amd64":
		return unix.AUDIT_ARCH_X86_64
	case "arm64":
		return unix.AUDIT_ARCH_AARCH64
	}
	return 0
}

// Where things lie in struct seccomp_data (include/uapi/linux/seccomp.h), on
// processors whose numbers begin with the lowest byte.
const (
	dataNr   = 0
	dataArch = 4
	dataArg0 = 16
	dataArg1 = 24
	dataArg2 = 32
)

const ipprotoSMC = 256 // IPPROTO_SMC, include/uapi/linux/in.h, v6.11

// filter is the program that the kernel asks before every system call.
func filter(arch uint32, kept capSet) []unix.SockFilter {
	load := func(at uint32) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: at}
	}
	jump := func(test uint16, k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_K | test, K: k, Jt: yes, Jf: no}
	}
	ret := func(k uint32) unix.SockFilter { return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: k} }
	refuse := func(e unix.Errno) unix.SockFilter { return ret(unix.SECCOMP_RET_ERRNO | uint32(e)) }
	if0 := func(k uint32, e unix.Errno) []unix.SockFilter {
		return []unix.SockFilter{jump(unix.BPF_JEQ, k, 0, 1), refuse(e)}
	}

	p := []unix.SockFilter{
		load(dataArch),
		jump(unix.BPF_JEQ, arch, 1, 0),
		refuse(unix.ENOSYS), // 32-bit programs: their socketcall hides what it asks for
		load(dataNr),
		jump(unix.BPF_JGE, 0x4000_0000, 0, 1), // x32, where every call has a second number
		refuse(unix.ENOSYS),
	}
	for _, d := range denials(kept) {
		p = append(p, if0(d.nr, d.errno)...)
	}
	allow := ret(unix.SECCOMP_RET_ALLOW)
	ioctl := []unix.SockFilter{load(dataArg1)} // the lower half, as the kernel takes it
	for _, d := range refusedControls(kept) {
		ioctl = append(ioctl, if0(d.nr, d.errno)...)
	}
	p = append(p, jump(unix.BPF_JEQ, unix.SYS_IOCTL, 0, uint8(len(ioctl)+1)))
	p = append(append(p, ioctl...), allow)
	var socket []unix.SockFilter
	socket = append(socket, load(dataArg0))
	for _, d := range refusedFamilies(kept) {
		socket = append(socket, if0(d.nr, d.errno)...)
	}
	socket = append(socket,
		jump(unix.BPF_JEQ, unix.AF_INET, 1, 0),
		jump(unix.BPF_JEQ, unix.AF_INET6, 0, 3),
		load(dataArg2),
		jump(unix.BPF_JEQ, ipprotoSMC, 0, 1),
		refuse(unix.EPROTONOSUPPORT),
	)
	p = append(p,
		jump(unix.BPF_JEQ, unix.SYS_SOCKET, 1, 0),
		jump(unix.BPF_JEQ, unix.SYS_SOCKETPAIR, 0, uint8(len(socket))),
	)
	return append(append(p, socket...), allow)
}

// seccompAvailable says why there can be no filter, nil when there can.
func seccompAvailable() error {
	if auditArch() == 0 {
		return fmt.Errorf("no filter has been made for %s", runtime.GOARCH)
	}
	action := uint32(unix.SECCOMP_RET_ERRNO)
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_GET_ACTION_AVAIL, 0, uintptr(unsafe.Pointer(&action)))
	if e != 0 {
		return fmt.Errorf("CONFIG_SECCOMP_FILTER, Linux 4.14: %w", caps.ErrNotSupported)
	}
	return nil
}

// filterCalls puts the filter on the calling thread, which needs no_new_privs.
// The filter is no border between programs, so that the thread needs none of the
// processor's protections that kernels before 5.16 switch on with one.
func filterCalls(kept capSet) error {
	p := filter(auditArch(), kept)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	_, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(p)
	if e != 0 {
		return e
	}
	return nil
}

// landlockAvailable says why there can be no Landlock domain that leaves ordinary
// programs alone, nil when there can: in the first one, of Linux 5.13, no file can
// be moved to another directory.
func landlockAvailable() error {
	abi, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	switch {
	case e == unix.EOPNOTSUPP:
		return errors.New("it is switched off; the kernel's command line has a list lsm=, which needs landlock")
	case e != 0 || abi < 2:
		return fmt.Errorf("CONFIG_SECURITY_LANDLOCK, Linux 5.19: %w", caps.ErrNotSupported)
	}
	return nil
}

// enterDomain puts the calling thread, which needs no_new_privs, into a Landlock
// domain. No process in it reaches into one outside: ptrace, pidfd_getfd,
// process_vm_writev, /proc/PID/root, /proc/PID/fd and the like are refused, and so
// are mounts (hook_ptrace_access_check and hook_sb_mount, security/landlock, v6.1).
// That comes with every domain. The one right that this one is about, moving files
// between directories, is allowed everywhere: files are as they were.
func enterDomain() error {
	attr := unix.LandlockRulesetAttr{Handled_access_fs: unix.LANDLOCK_ACCESS_FS_REFER}
	// the first member alone, which every version knows
	fd, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr.Handled_access_fs), 0)
	if e != 0 {
		return e
	}
	defer unix.Close(int(fd))
	root, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(root)
	rule := unix.LandlockPathBeneathAttr{Allowed_access: attr.Handled_access_fs, Parent_fd: int32(root)}
	if _, _, e := unix.Syscall6(unix.SYS_LANDLOCK_ADD_RULE, fd, unix.LANDLOCK_RULE_PATH_BENEATH, uintptr(unsafe.Pointer(&rule)), 0, 0, 0); e != 0 {
		return e
	}
	if _, _, e := unix.Syscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0); e != 0 {
		return e
	}
	return nil
}
