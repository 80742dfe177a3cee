package escape

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Served is a process of the same user in the other branch, as an attempt finds
// it; see [Serve].
type Served struct {
	PID  int
	FD   int    // of a UDP socket
	Addr uint64 // of a word: what is not 0 makes it send
	Name string // of its unix socket

	// Ports of UDP sockets that have sent: of one that is closed, and of one that lets
	// others have the port too.
	Closed, Shared uint16
}

// Serve is a process outside of the branch, which serves who asks: it passes a
// socket on, sends what it is asked to send, and lets its memory be written. It
// prints a [Served] as JSON on out, and ends with in.
func Serve(p Place, in io.Reader, out io.Writer) error {
	s := newStage(p)
	fd, err := s.socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	l, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return call("socket AF_UNIX", err)
	}
	name := fmt.Sprintf("@vifshape-escape-%d", os.Getpid())
	if err := unix.Bind(l, &unix.SockaddrUnix{Name: name}); err != nil {
		return call("bind", err)
	}
	if err := unix.Listen(l, 8); err != nil {
		return call("listen", err)
	}
	o := &outsider{stage: s, fd: fd, wish: new(uint32), terminal: -1}
	if o.flows, err = s.newFlows(); err != nil {
		return err
	}
	go func() {
		for {
			c, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
			if err != nil {
				return // the process ends
			}
			o.serve(c)
			unix.Close(c)
		}
	}()
	b, err := json.Marshal(Served{PID: os.Getpid(), FD: fd, Addr: uint64(uintptr(unsafe.Pointer(o.wish))), Name: name, Closed: o.flows.ours.Closed, Shared: o.flows.ours.Shared})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(out, "%s\n", b); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, in)
	return err
}

// outsider is what Serve has.
type outsider struct {
	*stage
	fd       int     // a socket
	wish     *uint32 // what is not 0 makes it send
	terminal int     // the one that it reads commands from, below 0: none
	flows    flows
}

func (s *outsider) serve(c int) {
	b, given := make([]byte, 32), make([]byte, unix.CmsgSpace(4))
	n, m, _, _, err := unix.Recvmsg(c, b, given, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return
	}
	if fd, err := descriptor(given[:m]); err == nil && fd >= 0 {
		unix.Close(fd) // that it came is all that counts
	}
	var oob []byte
	what, port, _ := strings.Cut(string(b[:n]), " ")
	switch what {
	case "socket":
		oob = unix.UnixRights(s.fd)
	case "send":
		err = s.plain() // fd may have the tag of who got it
	case "look":
		if atomic.SwapUint32(s.wish, 0) != 0 {
			err = s.plain()
		}
	case "terminal":
		if s.terminal < 0 {
			s.terminal, err = newTerminal()
		}
		if err == nil {
			oob = unix.UnixRights(s.terminal)
		}
	case "read":
		// a line that was typed is a command for a shell
		if n, _ := unix.Read(s.terminal, make([]byte, 64)); n > 0 {
			err = s.plain()
		}
	default:
		err = s.receive(what, port)
	}
	answer := "done"
	if err != nil {
		answer = err.Error()
	}
	// who asked may be gone
	_ = unix.Sendmsg(c, []byte(answer), oob, nil, 0)
}

// newTerminal opens a terminal whose other end nobody types at. It is not waited for.
func newTerminal() (int, error) {
	m, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, call("open /dev/ptmx", err)
	}
	if err := unix.IoctlSetPointerInt(m, unix.TIOCSPTLCK, 0); err != nil {
		return -1, call("ioctl TIOCSPTLCK", err)
	}
	n, err := unix.IoctlGetInt(m, unix.TIOCGPTN)
	if err != nil {
		return -1, call("ioctl TIOCGPTN", err)
	}
	fd, err := unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	return fd, call("open /dev/pts", err)
}

// descriptor is the one that came with a message, -1 for none.
func descriptor(oob []byte) (int, error) {
	all, err := unix.ParseSocketControlMessage(oob)
	if err != nil || len(all) == 0 {
		return -1, err
	}
	fds, err := unix.ParseUnixRights(&all[0])
	if err != nil || len(fds) == 0 {
		return -1, err
	}
	return fds[0], nil
}

// ask asks the outsider, gives it descriptors, and returns the one that comes with
// the answer, -1 for none.
func (s *stage) ask(what string, give ...int) (int, error) {
	return question("the outsider", s.Outsider.Name, []byte(what), give...)
}

// question asks whoever has a unix socket of that name.
func question(who, name string, what []byte, give ...int) (int, error) {
	c, err := unix.Socket(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, call("socket AF_UNIX", err)
	}
	defer unix.Close(c)
	if err := unix.Connect(c, &unix.SockaddrUnix{Name: name}); err != nil {
		return -1, call("connect to "+who, err)
	}
	var rights []byte
	if len(give) > 0 {
		rights = unix.UnixRights(give...)
	}
	if err := unix.Sendmsg(c, what, rights, nil, 0); err != nil {
		return -1, call("write to "+who, err)
	}
	b, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	n, m, _, _, err := unix.Recvmsg(c, b, oob, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, call("recvmsg", err)
	}
	if string(b[:n]) != "done" {
		return -1, fmt.Errorf("%s: %s", who, b[:n])
	}
	return descriptor(oob[:m])
}

// What is known of other processes.
const (
	givenWhy  = "a socket keeps the class of where it was made"
	lentWhy   = "a socket has the net_cls tag of whoever got it last"
	equalWhy  = "processes of one user may do so to each other; level lock draws a border"
	typedWhy  = "what is put into a terminal counts as typed there"
	helperWhy = "whoever sends for somebody else sends in its own branch"
)

// others are ways over descriptors and processes outside of the branch.
func others() []Attempt {
	const family = "other processes"
	a := func(name, text string, do func(s *stage) error, holes ...Hole) Attempt {
		return Attempt{Name: name, Family: family, Text: text, Holes: holes, do: do}
	}
	given := Hole{Ways: v2Ways, Why: givenWhy, Impossible: true}
	equal := Hole{Level: Tag, Why: equalWhy}
	write := func(do func(s *stage) error) func(s *stage) error {
		return func(s *stage) error {
			if err := do(s); err != nil {
				return err
			}
			_, err := s.ask("look")
			s.Sent += packets
			return err
		}
	}
	return []Attempt{
		a("inherited-socket", "a socket that was open at the start", func(s *stage) error { return s.flood(s.addr(false), payload)(3) },
			Hole{Level: Tag, Ways: v2Ways, Why: givenWhy + "; level lock closes all but standard input and output"}),
		a("inherited-stdin", "a socket as standard input", func(s *stage) error { return s.flood(s.addr(false), payload)(0) }, given),
		a("scm-rights", "a socket that an outsider passes", func(s *stage) error {
			fd, err := s.ask("socket")
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			return s.flood(s.addr(false), payload)(fd)
		}, given),
		a("lent-socket", "a connection that is passed to an outsider, and kept", func(s *stage) error {
			return s.tcp(false, 0, nil, func(fd int) error {
				if _, err := s.ask("keep", fd); err != nil {
					return err
				}
				// answers have the rest of it sent, which no process does
				for b := make([]byte, 1<<20); len(b) > 0; {
					n, err := unix.Write(fd, b)
					if err != nil {
						return call("write", err)
					}
					b = b[n:]
				}
				s.Sent++
				return nil
			})
		}, Hole{Ways: tagWays, Why: lentWhy, Impossible: true}),
		a("accomplice", "an outsider that is asked to send", func(s *stage) error {
			_, err := s.ask("send")
			s.Sent += packets
			return err
		}, Hole{Why: helperWhy, Impossible: true}),
		a("pidfd-getfd", "a socket taken from an outsider of the same user", func(s *stage) error {
			p, err := unix.PidfdOpen(s.Outsider.PID, 0)
			if err != nil {
				return call("pidfd_open", err)
			}
			defer unix.Close(p)
			fd, err := unix.PidfdGetfd(p, s.Outsider.FD, 0)
			if err != nil {
				return call("pidfd_getfd", err)
			}
			defer unix.Close(fd)
			return s.flood(s.addr(false), payload)(fd)
		}, Hole{Level: Tag, Ways: v2Ways, Why: equalWhy}),
		a("proc-fd", "an outsider's socket by /proc/PID/fd", func(s *stage) error {
			fd, err := unix.Open(fmt.Sprintf("/proc/%d/fd/%d", s.Outsider.PID, s.Outsider.FD), unix.O_RDWR|unix.O_CLOEXEC, 0)
			if err != nil {
				return call("open /proc/PID/fd", err)
			}
			defer unix.Close(fd)
			return s.flood(s.addr(false), payload)(fd)
		}),
		a("process-vm-writev", "an outsider's memory, process_vm_writev", write(func(s *stage) error {
			v := uint32(1)
			l := []unix.Iovec{{Base: &word(&v)[0], Len: 4}}
			_, err := unix.ProcessVMWritev(s.Outsider.PID, l, []unix.RemoteIovec{{Base: uintptr(s.Outsider.Addr), Len: 4}}, 0)
			return call("process_vm_writev", err)
		}), equal),
		a("proc-mem", "an outsider's memory, /proc/PID/mem", write(func(s *stage) error {
			f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", s.Outsider.PID), os.O_WRONLY, 0)
			if err != nil {
				return call("open /proc/PID/mem", err)
			}
			defer f.Close()
			v := uint32(1)
			_, err = f.WriteAt(word(&v), int64(s.Outsider.Addr))
			return call("write /proc/PID/mem", err)
		}), equal),
		a("ptrace", "an outsider's memory, ptrace", write(func(s *stage) error {
			pid := s.Outsider.PID
			if err := unix.PtraceAttach(pid); err != nil {
				return call("ptrace PTRACE_ATTACH", err)
			}
			var w unix.WaitStatus
			if _, err := unix.Wait4(pid, &w, unix.WALL, nil); err != nil {
				return call("wait4", err)
			}
			v := uint32(1)
			_, err := unix.PtracePokeData(pid, uintptr(s.Outsider.Addr), word(&v))
			return call("ptrace", errors.Join(err, unix.PtraceDetach(pid)))
		}), equal),
		a("terminal", "a command put into a terminal that an outsider reads (TIOCSTI)", func(s *stage) error {
			fd, err := s.ask("terminal")
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			if _, err := unix.Setsid(); err != nil {
				return call("setsid", err)
			}
			if err := unix.IoctlSetInt(fd, unix.TIOCSCTTY, 0); err != nil {
				return call("ioctl TIOCSCTTY", err)
			}
			for _, c := range []byte("send\n") {
				if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSTI, uintptr(unsafe.Pointer(&c))); e != 0 {
					return call("ioctl TIOCSTI", e)
				}
			}
			_, err = s.ask("read")
			s.Sent += packets
			return err
		}, Hole{Level: Tag, Why: typedWhy}),
		a("console-keys", "a command on a function key of the console (KDSKBSENT), that somebody presses", func(s *stage) error {
			fd, err := unix.Open("/dev/tty0", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.EIO) {
				return missing("there is no console with keys")
			}
			if err != nil {
				return call("open /dev/tty0", err)
			}
			defer unix.Close(fd)
			var key [513]byte // struct kbsentry, include/uapi/linux/kd.h
			for _, x := range []struct {
				name    string
				request uintptr
			}{{"KDGKBSENT", 0x4b48}, {"KDSKBSENT", 0x4b49}} { // it stays as it is
				if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), x.request, uintptr(unsafe.Pointer(&key[0]))); e != 0 {
					return call("ioctl "+x.name, e)
				}
			}
			_, err = s.ask("send")
			s.Sent += packets
			return err
		}, Hole{Level: Tag, User: Root, Why: typedWhy}),
		a("uinput", "a keyboard of its own, at which somebody sits", func(s *stage) error {
			fd, err := unix.Open("/dev/uinput", unix.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
			if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENXIO) || errors.Is(err, unix.ENODEV) {
				return missing("there is no /dev/uinput")
			}
			if err != nil {
				return call("open /dev/uinput", err)
			}
			unix.Close(fd) // no key is pressed on this machine
			_, err = s.ask("send")
			s.Sent += packets
			return err
		}, Hole{User: Root, Why: "what a device types counts as typed by whoever sits there"}),
	}
}
