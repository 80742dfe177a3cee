package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"
	"unsafe"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// verbs are what an actor can be told.
var verbs = tctest.Verbs{
	"say":      func(x tctest.Told) (string, error) { return x.Args[0], nil },
	"petition": tctest.Petition, // SOCKET
	"pause": func(tctest.Told) (string, error) { // until there is a byte of standard input, which it takes
		_, err := os.Stdin.Read(make([]byte, 1))
		return "", err
	},

	// What it sends.
	"udp": func(x tctest.Told) (string, error) { // TO N
		to, err := net.ResolveUDPAddr("udp4", x.Args[0])
		if err != nil {
			return "", err
		}
		c, err := net.ListenPacket("udp4", "")
		if err != nil {
			return "", err
		}
		defer c.Close()
		for range x.Number(1) {
			if _, err := c.WriteTo(make([]byte, 100), to); err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"burst": func(x tctest.Told) (string, error) { // TO DIR N PAUSE: by a socket that is born in a cgroup, made if it has to be; says when each went, from then
		to, err := net.ResolveUDPAddr("udp4", x.Args[0])
		if err != nil {
			return "", err
		}
		pause, err := time.ParseDuration(x.Args[3])
		if err != nil {
			return "", err
		}
		start := time.Now()
		if err := deeper(x.Args[1]); err != nil {
			return "", err
		}
		c, err := net.ListenPacket("udp4", "")
		if err != nil {
			return "", err
		}
		defer c.Close()
		sent := make([]time.Duration, x.Number(2))
		for i := range sent {
			if i > 0 {
				rest := unix.NsecToTimespec(int64(pause)) // exacter than time.Sleep
				_ = unix.Nanosleep(&rest, nil)            // that a signal ends it early does no harm
			}
			sent[i] = time.Since(start)
			if _, err := c.WriteTo(make([]byte, 100), to); err != nil {
				return "", err
			}
		}
		return encoded(sent)
	},
	"stream": func(x tctest.Told) (string, error) { // TO SIZE RATE: datagrams until standard input ends; says how many
		to, err := netip.ParseAddrPort(x.Args[0])
		if err != nil {
			return "", err
		}
		count, err := lab.Send(untilInputEnds(), lab.Traffic{Protocol: "udp", To: to, Size: x.Number(1), Rate: hierarchy.Bandwidth(x.Number(2))})
		if err != nil {
			return "", err
		}
		return encoded(count)
	},
	"pour": func(x tctest.Told) (string, error) { // TO RATE BUFFER: into a connection until standard input ends; 0: as much as goes, and the kernel's
		c, err := net.Dial("tcp", x.Args[0])
		if err != nil {
			return "", err
		}
		defer c.Close()
		if size := x.Number(2); size > 0 {
			if err := c.(*net.TCPConn).SetWriteBuffer(size); err != nil {
				return "", err
			}
		}
		end, start, sent := untilInputEnds(), time.Now(), 0
		for end.Err() == nil {
			// A write that waits ends with the connection, which ends with standard input.
			stop := context.AfterFunc(end, func() { c.Close() })
			n, err := c.Write(make([]byte, 4096))
			stop()
			if sent += n; err != nil && end.Err() == nil {
				return "", err
			}
			if rate := x.Number(1); rate > 0 {
				time.Sleep(time.Until(start.Add(time.Duration(float64(sent) * 8 / float64(rate) * float64(time.Second)))))
			}
		}
		return "", nil
	},
	"fetch": func(x tctest.Told) (string, error) { // FROM: all that comes by a connection, until standard input ends
		c, err := net.Dial("tcp", x.Args[0])
		if err != nil {
			return "", err
		}
		end := untilInputEnds()
		context.AfterFunc(end, func() { c.Close() })
		if _, err := io.Copy(io.Discard, c); err != nil && end.Err() == nil {
			return "", err
		}
		return "", nil
	},
	"volleys": func(x tctest.Told) (string, error) { // TO N PAUSE: so many datagrams at once, again after each pause, until standard input ends
		c, err := net.Dial("udp", x.Args[0])
		if err != nil {
			return "", err
		}
		defer c.Close()
		pause, err := time.ParseDuration(x.Args[2])
		if err != nil {
			return "", err
		}
		for end := untilInputEnds(); end.Err() == nil; time.Sleep(pause) {
			for range x.Number(1) {
				_, _ = c.Write(make([]byte, 1000)) // a full queue is no fault
			}
		}
		return "", nil
	},
	"chat": func(x tctest.Told) (string, error) { // TO: by a connection and by datagrams, one of each every 4 ms, until standard input ends
		tcp, err := net.Dial("tcp", x.Args[0])
		if err != nil {
			return "", err
		}
		defer tcp.Close()
		udp, err := net.Dial("udp", x.Args[0])
		if err != nil {
			return "", err
		}
		defer udp.Close()
		end := untilInputEnds()
		for tick := time.NewTicker(4 * time.Millisecond); ; {
			select {
			case <-end.Done():
				tick.Stop()
				return "", nil
			case <-tick.C:
			}
			for _, c := range []net.Conn{tcp, udp} {
				if _, err := c.Write(make([]byte, 100)); err != nil {
					return "", err
				}
			}
		}
	},

	// Where it is, and as whom.
	"join":   func(x tctest.Told) (string, error) { return "", join(x.Args[0]) },   // DIR
	"deeper": func(x tctest.Told) (string, error) { return "", deeper(x.Args[0]) }, // DIR
	"vacate": func(x tctest.Told) (string, error) { // DIR: goes up from it, and removes it
		if err := join(filepath.Dir(x.Args[0])); err != nil {
			return "", err
		}
		return "", unix.Rmdir(x.Args[0])
	},
	"enter": func(tctest.Told) (string, error) { // the network namespace of descriptor 3
		if err := unix.Setns(3, unix.CLONE_NEWNET); err != nil {
			return "", err
		}
		// the whole process, whose first thread this may not be
		return "", unix.Exec("/proc/self/exe", []string{"actor", "say", "ok", ";", "obey"}, os.Environ())
	},
	"become": func(x tctest.Told) (string, error) { // UID
		uid := x.Number(0)
		return "", errors.Join(unix.Setgroups(nil), unix.Setgid(uid), unix.Setuid(uid))
	},

	// What hides from vifshape where it is.
	"claim": func(x tctest.Told) (string, error) { // [BRANCH]
		return "", os.Setenv(shaper.BranchVariable, append(x.Args, "")[0])
	},
	"unshareCgroup": func(tctest.Told) (string, error) { return "", unix.Unshare(unix.CLONE_NEWCGROUP) },
	"unshareNet":    func(tctest.Told) (string, error) { return "", unix.Unshare(unix.CLONE_NEWNET) },
	"remountCgroup": func(tctest.Told) (string, error) { // as a container has it: nothing above the namespace's root
		if err := unshareMounts(); err != nil {
			return "", err
		}
		all, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
		if err != nil {
			return "", err
		}
		for _, m := range all {
			if err := unix.Unmount(m.Mountpoint, unix.MNT_DETACH); err != nil {
				return "", err
			}
		}
		return "", unix.Mount("cgroup2", all[0].Mountpoint, "cgroup2", 0, "")
	},
	"forgeRecord": func(x tctest.Told) (string, error) { // STORE: another run directory, whose record knows no branch but one
		if err := unshareMounts(); err != nil {
			return "", err
		}
		real, err := os.ReadFile(filepath.Join(x.Args[0], "eth0.json"))
		if err != nil {
			return "", err
		}
		var r record.Record
		if err := json.Unmarshal(real, &r); err != nil {
			return "", err
		}
		for k := range r.IDs.Minors {
			if k != "eth0/backup" {
				delete(r.IDs.Minors, k)
			}
		}
		forged, err := json.Marshal(r)
		if err != nil {
			return "", err
		}
		if err := unix.Mount("tmpfs", "/run", "tmpfs", 0, ""); err != nil {
			return "", err
		}
		to := filepath.Join("/run/elsewhere", filepath.Base(x.Args[0]))
		if err := os.MkdirAll(to, 0o755); err != nil {
			return "", err
		}
		if err := os.WriteFile(filepath.Join(to, "eth0.json"), forged, 0o644); err != nil {
			return "", err
		}
		return "", os.Symlink("/run/elsewhere", "/run/vifshape")
	},
	"astray": func(tctest.Told) (string, error) { // into a mount namespace of its own, with the working directory outside of it
		fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Unshare(unix.CLONE_NEWNS)
		}
		if err == nil {
			err = unix.Fchdir(fd)
		}
		return "", err
	},
	"refuse":  func(x tctest.Told) (string, error) { return "", refuse(x.Args[0]) },                      // WHAT
	"contain": func(x tctest.Told) (string, error) { return "", contain(strings.Split(x.Args[0], ",")) }, // CAPABILITY,...
	"vifshape": func(x tctest.Told) (string, error) { // ARG...: becomes it
		// by its link: the way to the file may be closed to the user
		return "", unix.Exec("/proc/self/exe", append([]string{"vifshape"}, x.Args...), os.Environ())
	},

	// What a program that is locked in tries.
	"openPacket": func(tctest.Told) (string, error) {
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		return "", unix.Close(fd)
	},
	"climb": func(x tctest.Told) (string, error) { return "", climb(x.Args[0]) }, // FILE
}

func encoded(v any) (string, error) {
	b, err := json.Marshal(v)
	return string(b), err
}

// untilInputEnds is done when standard input ends, as it does with the test, however
// that ends.
func untilInputEnds() context.Context {
	ctx, stop := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		stop()
	}()
	return ctx
}

func join(dir string) error { return os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte("0"), 0) }

// deeper joins a cgroup that it makes if it has to.
func deeper(dir string) error {
	if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	return join(dir)
}

func unshareMounts() error {
	err := unix.Unshare(unix.CLONE_NEWNS)
	if err == nil {
		err = unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")
	}
	return err
}

// refuse has a system call refused: by a filter of a launcher, as containers have them.
func refuse(what string) error {
	type values map[uint32]uint32 // of arguments
	x, ok := map[string]struct {
		call uint32
		args values
		err  unix.Errno
	}{
		"landlock": {unix.SYS_LANDLOCK_CREATE_RULESET, nil, unix.ENOSYS},
		// As where the kernel has none, and its module cannot be loaded.
		"nfnetlink":  {unix.SYS_SOCKET, values{0: unix.AF_NETLINK, 2: unix.NETLINK_NETFILTER}, unix.EPROTONOSUPPORT},
		"firewall":   {unix.SYS_SOCKET, values{0: unix.AF_NETLINK, 2: unix.NETLINK_NETFILTER}, unix.EACCES},
		"namespaces": {unix.SYS_UNSHARE, values{0: unix.CLONE_NEWNET}, unix.ENOSPC},
	}[what]
	if !ok {
		return fmt.Errorf("no refusal %q", what)
	}
	// struct seccomp_data: the call's number, and from byte 16 on its arguments.
	p := []unix.SockFilter{{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS}, {Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: x.call}}
	for arg, value := range x.args {
		p = append(p, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 16 + 8*arg}, unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, K: value})
	}
	for i := 1; i < len(p); i += 2 { // what differs goes to the last
		p[i].Jf = uint8(len(p) - i)
	}
	p = append(p,
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(x.err)},
		unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
	)
	prog := unix.SockFprog{Len: uint16(len(p)), Filter: &p[0]}
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, uintptr(unsafe.Pointer(&prog))); e != 0 {
		return e
	}
	return nil
}

// climb leaves a chroot, and opens a file for writing.
func climb(file string) error {
	dir, err := os.MkdirTemp("", "climb")
	if err != nil {
		return err
	}
	defer os.Remove(dir)
	if err := unix.Chroot(dir); err != nil {
		return err
	}
	for range 20 {
		if err := unix.Chdir(".."); err != nil {
			return err
		}
	}
	fd, err := unix.Open(strings.TrimPrefix(file, "/"), unix.O_WRONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &os.PathError{Op: "open", Path: file, Err: err}
	}
	return unix.Close(fd)
}
