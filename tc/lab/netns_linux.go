package lab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// NetNS is a network namespace held by a file descriptor. It lives as long as
// the descriptor, a process in it, a socket of it or a name made by
// [NetNS.Keep]; its interfaces go with it.
type NetNS struct {
	mu sync.Mutex
	f  *os.File // nil once closed
}

// NewNetNS makes a network namespace with the loopback interface up. It needs
// CAP_SYS_ADMIN.
//
// Interfaces made in it later are kept quiet, so that counters show what was
// sent on purpose: no router solicitations, no link-local IPv6 address, no
// duplicate address detection.
func NewNetNS() (*NetNS, error) { return newNetNS(quiet) }

// NewLoopback is NewNetNS for whom the loopback interface is enough: others would not be kept quiet.
// It works where settings of the kernel are read-only, too, as in a container.
func NewLoopback() (*NetNS, error) { return newNetNS(func() error { return nil }) }

func newNetNS(settle func() error) (*NetNS, error) {
	n := &NetNS{}
	err := onThread(-1, func() error {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("new network namespace: %w", err)
		}
		f, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			return err
		}
		n.f = f
		return settle()
	})
	if err == nil {
		err = n.SetUp("lo")
	}
	if err != nil {
		return nil, errors.Join(err, n.Close())
	}
	return n, nil
}

// quiet sets the defaults for interfaces of the calling thread's namespace. A
// kernel without IPv6 has nothing to quieten.
func quiet() error {
	if ok, err := haveIPv6(); !ok {
		return err
	}
	const dir = "/proc/sys/net/ipv6/conf/default/"
	for name, value := range map[string]string{
		"accept_dad": "0", "accept_ra": "0", "router_solicitations": "0", "addr_gen_mode": "1",
	} {
		if err := os.WriteFile(dir+name, []byte(value), 0); err != nil {
			return err
		}
	}
	return nil
}

// haveIPv6 says whether the kernel speaks IPv6. Asking loads the module if it is
// one, which setting an address does not.
func haveIPv6() (bool, error) {
	fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == unix.EAFNOSUPPORT {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return true, unix.Close(fd)
}

// OpenNetNS opens an existing namespace by a path such as /run/netns/NAME or
// /proc/PID/ns/net.
func OpenNetNS(path string) (*NetNS, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	return &NetNS{f: f}, nil
}

// FD is the descriptor that holds the namespace, -1 once closed. It stays
// n's: the caller must not close it, nor use it after Close.
func (n *NetNS) FD() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.f == nil {
		return -1
	}
	return int(n.f.Fd())
}

// Close lets go of the namespace. Closing again is no error.
func (n *NetNS) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.f == nil {
		return nil
	}
	err := n.f.Close()
	n.f = nil
	return err
}

// Do runs fn on a thread that is in the namespace and returns its error. Every
// socket that fn opens stays in the namespace wherever it is used afterwards.
//
// Only fn itself runs there: goroutines that it starts do not. fn runs on a
// goroutine of its own, so testing's FailNow inside it ends fn, not the test;
// Do then returns an error. A nil NetNS is the namespace of the caller.
func (n *NetNS) Do(fn func() error) error {
	if n == nil {
		return fn()
	}
	fd := n.FD()
	if fd < 0 {
		return errors.New("network namespace is closed")
	}
	return onThread(fd, fn)
}

// Start starts cmd with the namespace as its network. Nothing else about the
// process changes: it sees the same mounts, cgroup file systems included.
func (n *NetNS) Start(cmd *exec.Cmd) error { return n.Do(cmd.Start) }

// Dial opens a netlink socket of the given family in the namespace. cfg may be
// nil; its NetNS is overridden. Extended acknowledgements are on.
func (n *NetNS) Dial(family int, cfg *netlink.Config) (*netlink.Conn, error) {
	var c netlink.Config
	if cfg != nil {
		c = *cfg
	}
	if n != nil {
		if c.NetNS = n.FD(); c.NetNS < 0 {
			return nil, errors.New("network namespace is closed")
		}
	}
	conn, err := netlink.Dial(family, &c)
	if err != nil {
		return nil, err
	}
	if err := conn.SetOption(netlink.ExtendedAcknowledge, true); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// onThread runs fn on a locked thread that is in the namespace fd (-1: in the
// one that the process started in). A thread that cannot be brought back is
// never unlocked and so ends with its goroutine, instead of serving others
// from the wrong namespace.
func onThread(fd int, fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := os.Open("/proc/thread-self/ns/net")
		if err != nil {
			runtime.UnlockOSThread()
			done <- err
			return
		}
		defer home.Close()
		err = errors.New("function in network namespace ended without returning")
		defer func() {
			if e := unix.Setns(int(home.Fd()), unix.CLONE_NEWNET); e != nil {
				err = errors.Join(err, fmt.Errorf("leave network namespace: %w", e))
			} else {
				runtime.UnlockOSThread()
			}
			done <- err
		}()
		if fd >= 0 {
			if e := unix.Setns(fd, unix.CLONE_NEWNET); e != nil {
				err = fmt.Errorf("enter network namespace: %w", e)
				return
			}
		}
		err = fn()
	}()
	return <-done
}

// netnsDir is where iproute2 looks for names of network namespaces.
const netnsDir = "/run/netns"

// Keep gives the namespace a name, as "ip netns add" does, under which it
// stays after Close and after the process, until [Forget] or "ip netns del".
func (n *NetNS) Keep(name string) error {
	path, err := netnsPath(name)
	if err != nil {
		return err
	}
	fd := n.FD()
	if fd < 0 {
		return errors.New("network namespace is closed")
	}
	if err := os.MkdirAll(netnsDir, 0o755); err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o444)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("network namespace %q exists already: remove it with \"ip netns del %s\"", name, name)
	}
	if err != nil {
		return err
	}
	f.Close()
	if err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", fd), path, "", unix.MS_BIND, ""); err != nil {
		return errors.Join(fmt.Errorf("name network namespace %q: %w", name, err), os.Remove(path))
	}
	return nil
}

// Forget removes a name made by [NetNS.Keep]. A name that does not exist is no
// error.
func Forget(name string) error {
	path, err := netnsPath(name)
	if err != nil {
		return err
	}
	// EINVAL: a plain file, left by a Keep that was interrupted.
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return fmt.Errorf("remove network namespace %q: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func netnsPath(name string) (string, error) {
	if name == "" || name == "." || name == ".." || strings.ContainsRune(name, '/') {
		return "", fmt.Errorf("%q is no name for a network namespace", name)
	}
	return filepath.Join(netnsDir, name), nil
}
