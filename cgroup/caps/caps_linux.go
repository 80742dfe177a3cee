package caps

import (
	"errors"
	"fmt"
	"os"
	"slices"
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
	ErrConfined error = confined{}
	// ErrNotSupported: the kernel lacks what was asked for.
	ErrNotSupported = errors.New("not supported by this kernel")
)

type confined struct{}

func (confined) Error() string { return ErrNotPrivileged.Error() }
func (confined) Unwrap() error { return ErrNotPrivileged }

// Explain turns a refusal into ErrNotPrivileged and names the capabilities
// among caps that this process lacks; any other error stays as it is.
func Explain(err error, caps ...int) error {
	if !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
		return err
	}
	if e := Lacking(caps...); e != nil {
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

// Lacking is an ErrNotPrivileged that names what this process lacks among caps,
// or nil.
func Lacking(caps ...int) error {
	names := missing(caps)
	if len(names) == 0 {
		return nil
	}
	return fmt.Errorf("%w: needs root or %s", ErrNotPrivileged, strings.Join(names, " and "))
}

// known are the capabilities in the order of their numbers (include/uapi/linux/capability.h, v6.12).
var known = [...]string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_SETGID", "CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST",
	"CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO",
	"CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE",
	"CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM",
	"CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// Name is what capabilities(7) calls a capability.
func Name(c int) string { return known[c] }

// Number is the capability of a name: "CAP_NET_RAW", or without the first part,
// in any case.
func Number(name string) (int, error) {
	n := strings.ToUpper(name)
	if !strings.HasPrefix(n, "CAP_") {
		n = "CAP_" + n
	}
	if c := slices.Index(known[:], n); c >= 0 {
		return c, nil
	}
	return 0, fmt.Errorf("capability %q is not known here: write a name as in capabilities(7)", name)
}

// missing names the capabilities that are not in force. CAP_SYS_ADMIN includes
// CAP_BPF and CAP_PERFMON (bpf_capable and perfmon_capable, include/linux/capability.h, v5.8).
func missing(caps []int) []string {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return nil
	}
	has := func(c int) bool { return d[c/32].Effective&(1<<(c%32)) != 0 }
	var names []string
	for _, c := range caps {
		part := c == unix.CAP_BPF || c == unix.CAP_PERFMON
		if !has(c) && (!part || !has(unix.CAP_SYS_ADMIN)) {
			names = append(names, known[c])
		}
	}
	return names
}

// Errno strips the path that package os puts around a system call's error.
func Errno(err error) error {
	var e unix.Errno
	if errors.As(err, &e) {
		return e
	}
	return err
}

// Before says whether the kernel is older than a version.
func Before(major, minor int) bool {
	var (
		u    unix.Utsname
		x, y int
	)
	if unix.Uname(&u) != nil {
		return false
	}
	n, _ := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &x, &y)
	return n == 2 && (x < major || x == major && y < minor)
}
