package confine

import (
	"golang.org/x/sys/unix"
)

// capSet is a set of capabilities, one bit each.
type capSet uint64

func (s capSet) has(c int) bool { return s&(1<<c) != 0 }

// dropped are the capabilities that LevelLock takes away, and what a program can
// do that keeps one. All others stay: with them root may do harm, but its packets
// stay in the branch.
func dropped() []capability {
	return []capability{
		{unix.CAP_NET_ADMIN, "it can change or remove every queue, class and classifier of the interface"},
		{unix.CAP_NET_RAW, "it can send packets as anybody and change others' answers; packet sockets are open, past the queues only where the branch has no guard against it"},
		{unix.CAP_SYS_ADMIN, "it can enter others' namespaces and so leave the branch, and load and change BPF programs"},
		{unix.CAP_BPF, "it can change the classifier's maps where they are pinned, and load programs"},
		{unix.CAP_PERFMON, "it can read the memory of the kernel and of all programs by tracing"},
		{unix.CAP_SYS_PTRACE, "it can look at other users' programs in the branch"}, // Landlock ends it at the branch
		{unix.CAP_SYS_MODULE, "it can load code into the kernel, and so do anything"},
		{unix.CAP_SYS_RAWIO, "it can write to the kernel's memory and to devices' registers, and so do anything"},
		{unix.CAP_SYS_BOOT, "it can boot another kernel, and so do anything"},
		{unix.CAP_SYS_TTY_CONFIG, "it can have the console's keys type commands"}, // vt_do_kdgkb_ioctl, drivers/tty/vt/keyboard.c, v6.12
	}
}

type capability struct {
	number int
	opens  string
}

// dropCaps takes what is lost away from the thread. The bounding set stays:
// no_new_privs makes the loss last (cap_bprm_creds_from_file, security/commoncap.c,
// v6.1), and programs with file capabilities would not even start. For a user other
// than root what is kept becomes ambient, or exec would take it.
func dropCaps(lost, kept capSet, ambient bool) error {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return err
	}
	for i := range d {
		lost, kept := uint32(lost>>(32*i)), uint32(kept>>(32*i))
		if ambient {
			d[i].Permitted &= kept
			d[i].Effective, d[i].Inheritable = d[i].Permitted, d[i].Permitted
			continue
		}
		d[i].Effective &^= lost
		d[i].Permitted &^= lost
		d[i].Inheritable &^= lost
	}
	if err := unix.Capset(&h, &d[0]); err != nil {
		return err
	}
	for c := 0; ambient && c < 64; c++ {
		if !capSet(d[0].Permitted).has(c) && !(c >= 32 && d[1].Permitted&(1<<(c-32)) != 0) {
			continue
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err != nil {
			return err
		}
	}
	return nil
}

// powerless says that the process is not root and cannot become root by itself: it has
// no capability, and root is none of its users. With no_new_privs no program that it
// starts can, either.
func powerless() bool {
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var d [2]unix.CapUserData
	if err := unix.Capget(&h, &d[0]); err != nil {
		return false
	}
	r, e, s := unix.Getresuid()
	return d[0].Permitted|d[1].Permitted == 0 && r != 0 && e != 0 && s != 0
}
