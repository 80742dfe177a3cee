package cgroup

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Errors that callers branch on; test with errors.Is.
var (
	// ErrNotPrivileged: the kernel refused for want of a capability, which the
	// message names.
	ErrNotPrivileged = errors.New("not privileged")
	// ErrConfined: an ErrNotPrivileged that no capability cures. This process has
	// them all, in a user namespace or under a rule of its container or of a
	// security module.
	ErrConfined = fmt.Errorf("%w", ErrNotPrivileged)
	// ErrNoCgroup2: no cgroup v2 hierarchy can be reached from here.
	ErrNoCgroup2 = errors.New("no cgroup v2 hierarchy")
	// ErrNotSupported: the kernel lacks what was asked for.
	ErrNotSupported = errors.New("not supported by this kernel")
)

// clauses is several errors in one line.
type clauses []error

func (c clauses) Error() string {
	text := make([]string, len(c))
	for i, err := range c {
		text[i] = err.Error()
	}
	return strings.Join(text, "; ")
}

func (c clauses) Unwrap() []error { return c }

// privileges turns a refusal into ErrNotPrivileged and names the capabilities
// among caps that this process lacks; any other error stays as it is.
func privileges(err error, caps ...int) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	if e := lacking(caps...); e != nil {
		return e
	}
	why := "a rule of the container or of a security module"
	if inUserNS() {
		why = "they are those of a user namespace"
	}
	return fmt.Errorf("%w although no capability is missing (%s): %w", ErrConfined, why, err)
}

// inUserNS says whether this process is in another user namespace than the first,
// the one in which a user's number is the same inside and outside.
func inUserNS() bool {
	b, err := os.ReadFile("/proc/self/uid_map")
	f := strings.Fields(string(b))
	return err == nil && (len(f) != 3 || f[0] != "0" || f[1] != "0" || f[2] != "4294967295")
}

// lacking is an ErrNotPrivileged that names what this process lacks among caps,
// or nil.
func lacking(caps ...int) error {
	names := missing(caps)
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: needs root or %s", ErrNotPrivileged, strings.Join(names, " and "))
}

// capNames are the capabilities in the order of their numbers (include/uapi/linux/capability.h, v6.12).
var capNames = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
	"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
	"CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
	"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// missing names the capabilities that are not in force. CAP_SYS_ADMIN includes
// CAP_BPF (bpf_capable, include/linux/capability.h, v5.8).
func missing(caps []int) []string {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return nil
	}
	has := func(c int) bool { return d[c/32].Effective&(1<<(c%32)) != 0 }
	var names []string
	for _, c := range caps {
		if !has(c) && (c != unix.CAP_BPF || !has(unix.CAP_SYS_ADMIN)) {
			names = append(names, capNames[c])
		}
	}
	return names
}
