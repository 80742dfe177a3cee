package cgroup

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// initialCookie is the initial network namespace's: it is the first to be given
// one (net_ns_init, net/core/net_namespace.c, v5.14).
const initialCookie = 1

// NetNSKey names a network namespace for [Config]: empty for the initial one,
// otherwise "ns-" and a number that no other namespace gets until the next
// reboot. fd holds the namespace; below 0 is the caller's own. Needs CAP_SYS_ADMIN
// for another one than the caller's, and Linux 5.14.
func NetNSKey(fd int) (string, error) {
	var cookie uint64
	read := func() error {
		s, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		cookie, err = unix.GetsockoptUint64(s, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	}
	err := read()
	if fd >= 0 {
		err = inNetNS(fd, read)
	}
	switch {
	case errors.Is(err, unix.ENOPROTOOPT):
		return "", fmt.Errorf("tell network namespaces apart (Linux 5.14 or later): %w", ErrNotSupported)
	case err != nil:
		return "", fmt.Errorf("tell network namespaces apart: %w", privileges(err, unix.CAP_SYS_ADMIN))
	case cookie == initialCookie:
		return "", nil
	}
	return fmt.Sprintf("ns-%d", cookie), nil
}

// inNetNS runs fn on a thread in the namespace. A thread that cannot be brought
// back ends with its goroutine.
func inNetNS(fd int, fn func() error) error {
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
