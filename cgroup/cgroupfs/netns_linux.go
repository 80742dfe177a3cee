package cgroupfs

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// NetNSKey names a network namespace: empty for the initial one,
// which is an ordinary host's, otherwise "ns-" and a number that no other
// namespace gets until the next reboot. Below Linux 5.14 there is no such number:
// there it is "ns-i" and that of the namespace's inode, which another namespace
// may get once this one is gone.
//
// fd holds the namespace; below 0 is the caller's own. Needs CAP_SYS_ADMIN for
// another one than the caller's, and nothing for that.
func NetNSKey(fd int) (key string, err error) {
	read := func() error {
		id, err := readNetNS()
		key = id.key()
		return err
	}
	if fd < 0 {
		err = read()
	} else {
		err = InNetNS(fd, read)
	}
	if err != nil {
		return "", fmt.Errorf("tell network namespaces apart: %w", caps.Explain(err, unix.CAP_SYS_ADMIN))
	}
	return key, nil
}

// netNSID is what is known of a network namespace.
type netNSID struct {
	inode  uint64
	cookie uint64 // 0: the kernel gives none
	// sysctl: the settings that only the initial namespace has are to be seen.
	sysctl bool
}

func readNetNS() (id netNSID, err error) {
	var st unix.Stat_t
	if err := unix.Stat("/proc/thread-self/ns/net", &st); err != nil {
		return id, err
	}
	id.inode = st.Ino
	s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return id, err
	}
	defer unix.Close(s)
	id.cookie, err = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
	if err == unix.ENOPROTOOPT {
		id.sysctl, err = unix.Access("/proc/sys/net/core/netdev_budget", unix.F_OK) == nil, nil
	}
	return id, err
}

// initial recognises the initial namespace:
//   - from 6.18 on by its inode's number, which no other namespace ever had
//     (NET_NS_INIT_INO, include/uapi/linux/nsfs.h); its cookie may be any there;
//   - from 5.14 on by its cookie, the first that was given (net_ns_init,
//     net/core/net_namespace.c, v5.14);
//   - before, by settings that are its alone (net_core_table,
//     net/core/sysctl_net_core.c, v4.19). Its inode's number varies there, and
//     process 1 may be a container's.
func (id netNSID) initial() bool {
	const netNSInitIno, firstCookie = 0xeffffff9, 1
	return id.inode == netNSInitIno || id.cookie == firstCookie || id.cookie == 0 && id.sysctl
}

func (id netNSID) key() string {
	switch {
	case id.initial():
		return ""
	case id.cookie == 0:
		return fmt.Sprintf("ns-i%d", id.inode)
	}
	return fmt.Sprintf("ns-%d", id.cookie)
}

// InNetNS runs fn on a thread in the namespace. A thread that cannot be brought
// back ends with its goroutine.
func InNetNS(fd int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			done <- err
			return
		}
		defer home.Close()
		if err = unix.Setns(fd, unix.CLONE_NEWNET); err == nil {
			err = fn()
			if e := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); e != nil {
				done <- errors.Join(err, e)
				return
			}
		}
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}
