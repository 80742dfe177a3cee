package cgroup_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// actor is a process in a cgroup that does as it is told.
type actor struct {
	t     testing.TB
	cmd   *exec.Cmd
	to    io.WriteCloser
	lines *bufio.Scanner
}

// start starts an actor in the near namespace and, unless dir is empty, in the
// cgroup dir.
func (n *network) start(t testing.TB, ns *lab.NetNS, dir string) *actor {
	t.Helper()
	a := &actor{t: t, cmd: tctest.Command(t, "actor")}
	to, err := a.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	from, err := a.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Start(a.cmd); err != nil {
		t.Fatal(err)
	}
	a.to, a.lines = to, bufio.NewScanner(from)
	t.Cleanup(func() {
		to.Close()
		_ = a.cmd.Wait() // it is killed by now
	})
	if dir != "" {
		a.do("join %s", dir)
	}
	return a
}

// do has a command carried out and returns what it answers.
func (a *actor) do(format string, args ...any) string {
	a.t.Helper()
	a.begin(format, args...)
	return a.end()
}

func (a *actor) begin(format string, args ...any) {
	a.t.Helper()
	if _, err := fmt.Fprintf(a.to, format+"\n", args...); err != nil {
		a.t.Fatal(err)
	}
}

func (a *actor) end() string {
	a.t.Helper()
	if !a.lines.Scan() {
		a.t.Fatalf("actor went away: %v", a.lines.Err())
	}
	answer, ok := strings.CutPrefix(a.lines.Text(), "ok")
	if !ok {
		a.t.Fatalf("actor: %s", a.lines.Text())
	}
	return strings.TrimSpace(answer)
}

// act is the program of an actor: one command a line, one answer a line.
func act([]string) error {
	runtime.LockOSThread()
	var kept = map[string]int{} // sockets that outlive a command
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		f := strings.Fields(in.Text())
		answer, err := actOne(f[0], f[1:], kept)
		if err != nil {
			fmt.Printf("%s: %v\n", in.Text(), err)
			continue
		}
		fmt.Println("ok", answer)
	}
	return in.Err()
}

// given is what a verb is given.
type given struct {
	args []string
	kept map[string]int // sockets that outlive a command, by the names that they were given
}

// number is an argument that is one.
func (x given) number(i int) int {
	n, err := strconv.Atoi(x.args[i])
	if err != nil {
		panic(err)
	}
	return n
}

// verbs are what an actor can be told.
var verbs = map[string]func(given) (string, error){
	"join": func(x given) (string, error) { // DIR
		return "", os.WriteFile(x.args[0]+"/cgroup.procs", []byte("0"), 0)
	},
	"nobody": func(x given) (string, error) {
		return "", unix.Setuid(65534)
	},
	"udp": func(x given) (string, error) { // TO N [PRIORITY]
		s, err := open(x.args[0], unix.SOCK_DGRAM, 0, x.args[2:])
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		return "", send(s, x.args[0], x.number(1), true)
	},
	"marked": func(x given) (string, error) { // TO N MARK
		s, err := open(x.args[0], unix.SOCK_DGRAM, 0, nil)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, x.number(2)); err != nil {
			return "", err
		}
		return "", send(s, x.args[0], x.number(1), true)
	},
	"connected": func(x given) (string, error) { // TO N [PRIORITY]
		s, err := open(x.args[0], unix.SOCK_DGRAM, 0, x.args[2:])
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.Connect(s, sockaddr(x.args[0])); err != nil {
			return "", err
		}
		return "", send(s, x.args[0], x.number(1), false)
	},
	"segments": func(x given) (string, error) { // TO N: one system call, N datagrams
		s, err := open(x.args[0], unix.SOCK_DGRAM, 0, nil)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		const size, udpSegment = 100, 103 // UDP_SEGMENT, include/uapi/linux/udp.h
		if err := unix.SetsockoptInt(s, unix.SOL_UDP, udpSegment, size); err != nil {
			return "", err
		}
		return "", unix.Sendto(s, make([]byte, x.number(1)*size), 0, sockaddr(x.args[0]))
	},
	"raw": func(x given) (string, error) { // TO N [PRIORITY]
		s, err := open(x.args[0], unix.SOCK_RAW, unix.IPPROTO_UDP, x.args[2:])
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		return "", send(s, x.args[0], x.number(1), true)
	},
	"packet": func(x given) (string, error) { // INDEX N [PRIORITY]
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := prioritise(s, x.args[2:]); err != nil {
			return "", err
		}
		return "", frames(s, x.number(0), x.number(1))
	},
	"keepPacket": func(x given) (string, error) { // NAME
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		x.kept[x.args[0]] = s
		return "", err
	},
	"morePacket": func(x given) (string, error) { // NAME INDEX N
		return "", frames(x.kept[x.args[0]], x.number(1), x.number(2))
	},
	"keep": func(x given) (string, error) { // NAME TO
		s, err := open(x.args[1], unix.SOCK_DGRAM, 0, nil)
		x.kept[x.args[0]] = s
		return "", err
	},
	"fill": func(x given) (string, error) { // NAME INDEX: an IPv6 socket, until the kernel gives it no more memory for options
		for i := 0; ; i++ {
			m := unix.IPv6Mreq{Multiaddr: [16]byte{0xff, 0x15, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}, Interface: uint32(x.number(1))}
			if err := unix.SetsockoptIPv6Mreq(x.kept[x.args[0]], unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &m); err != nil {
				return err.Error(), nil
			}
		}
	},
	"sink": func(x given) (string, error) { // NAME ADDR: a socket that nobody reads
		s, err := open(x.args[1], unix.SOCK_DGRAM, 0, nil)
		x.kept[x.args[0]] = s
		return "", errors.Join(err, unix.Bind(s, sockaddr(x.args[1])))
	},
	"burst": func(x given) (string, error) { // NAME TO N: answers with the processor time of a packet in ns
		s, ok := x.kept[x.args[0]]
		if !ok {
			var err error
			if s, err = open(x.args[1], unix.SOCK_DGRAM, 0, nil); err != nil {
				return "", err
			}
			if err := unix.Connect(s, sockaddr(x.args[1])); err != nil {
				return "", err
			}
			x.kept[x.args[0]] = s
		}
		before, err := processorTime()
		if err == nil {
			err = send(s, x.args[1], x.number(2), false)
		}
		after, err2 := processorTime()
		return fmt.Sprint(float64(after-before) / float64(x.number(2))), errors.Join(err, err2)
	},
	"more": func(x given) (string, error) { // NAME TO N
		return "", send(x.kept[x.args[0]], x.args[1], x.number(2), true)
	},
	"tcp": func(x given) (string, error) { // TO BYTES [PRIORITY]
		s, err := open(x.args[0], unix.SOCK_STREAM, 0, x.args[2:])
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.Connect(s, sockaddr(x.args[0])); err != nil {
			return "", err
		}
		for left := x.number(1); left > 0; {
			n, err := unix.Write(s, make([]byte, min(left, 1<<16)))
			if err != nil {
				return "", err
			}
			left -= n
		}
		// done when the far end has closed too
		if err := unix.Shutdown(s, unix.SHUT_WR); err != nil {
			return "", err
		}
		_, err = unix.Read(s, make([]byte, 1))
		return "", err
	},
	"spill": func(x given) (string, error) { // TO BYTES: connects, and closes while most is still to be sent
		s, err := open(x.args[0], unix.SOCK_STREAM, 0, nil)
		if err == nil {
			err = errors.Join(unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_SNDBUF, x.number(1)), unix.Connect(s, sockaddr(x.args[0])))
		}
		if err == nil {
			_, err = unix.Write(s, make([]byte, x.number(1)))
		}
		return "", errors.Join(err, unix.Close(s))
	},
	"leave": func(x given) (string, error) { // TO: connects and closes; the kernel does the rest
		s, err := open(x.args[0], unix.SOCK_STREAM, 0, nil)
		if err == nil {
			err = unix.Connect(s, sockaddr(x.args[0]))
		}
		return "", errors.Join(err, unix.Close(s))
	},
	"listen": func(x given) (string, error) { // NAME ADDR
		s, err := open(x.args[1], unix.SOCK_STREAM, 0, nil)
		if err != nil {
			return "", err
		}
		x.kept[x.args[0]] = s
		if err := unix.Bind(s, sockaddr(x.args[1])); err != nil {
			return "", err
		}
		return "", unix.Listen(s, 128)
	},
	"accept": func(x given) (string, error) { // NAME LISTENER
		s, _, err := unix.Accept(x.kept[x.args[1]])
		x.kept[x.args[0]] = s
		return "", err
	},
	"prompt": func(x given) (string, error) { // NAME: does not wait for more to send
		return "", unix.SetsockoptInt(x.kept[x.args[0]], unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	},
	"hand": func(x given) (string, error) { // NAME COMMAND; ...: has a child that gets the socket as its first descriptor behind the standard ones, and gives it away
		file := os.NewFile(uintptr(x.kept[x.args[0]]), "socket")
		defer file.Close()
		delete(x.kept, x.args[0])
		cmd := exec.Command("/proc/self/exe")
		commands := strings.Split(strings.Join(x.args[1:], " "), ";")
		cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
		cmd.ExtraFiles = []*os.File{file}
		out, err := cmd.Output()
		if err == nil && strings.Count(string(out), "ok") != len(commands) {
			err = errors.New(strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "; "))
		}
		return "", err
	},
	"take": func(x given) (string, error) { // NAME: the first descriptor behind the standard ones
		x.kept[x.args[0]] = 3
		return "", nil
	},
	"write": func(x given) (string, error) { // NAME BYTES
		_, err := unix.Write(x.kept[x.args[0]], make([]byte, x.number(1)))
		return "", err
	},
	"writeFile": func(x given) (string, error) { // NAME BYTES: without the process seeing them
		f, err := os.Open("/proc/self/exe")
		if err != nil {
			return "", err
		}
		defer f.Close()
		_, err = unix.Sendfile(x.kept[x.args[0]], int(f.Fd()), nil, x.number(1))
		return "", err
	},
	"finish": func(x given) (string, error) { // NAME: up to the last ACK
		c := x.kept[x.args[0]]
		defer unix.Close(c)
		err := unix.Shutdown(c, unix.SHUT_WR)
		for buf := make([]byte, 1<<16); err == nil; {
			var n int
			if n, err = unix.Read(c, buf); n == 0 {
				break
			}
		}
		return "", errors.Join(err, closed(c))
	},
	"serve": func(x given) (string, error) { // NAME N BYTES: accepts N connections one after the other and answers each, up to the last ACK
		for range x.number(1) {
			c, _, err := unix.Accept(x.kept[x.args[0]])
			if err != nil {
				return "", err
			}
			_, err = unix.Write(c, make([]byte, x.number(2)))
			if err == nil {
				err = unix.Shutdown(c, unix.SHUT_WR)
			}
			for buf := make([]byte, 1<<16); err == nil; {
				var n int
				if n, err = unix.Read(c, buf); n == 0 {
					break
				}
			}
			if err == nil {
				err = closed(c)
			}
			unix.Close(c)
			if err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"dial": func(x given) (string, error) { // TO N: connects and resets
		for range x.number(1) {
			s, err := open(x.args[0], unix.SOCK_STREAM, 0, nil)
			if err == nil {
				err = unix.Connect(s, sockaddr(x.args[0]))
			}
			if err == nil {
				err = unix.SetsockoptLinger(s, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
			}
			unix.Close(s)
			if err != nil {
				return "", err
			}
		}
		return "", nil
	},
	"swarm": func(x given) (string, error) { // TO: until it is told otherwise, forks children that open, share and use sockets
		to := x.args[0]
		old, err := open(to, unix.SOCK_DGRAM, 0, nil)
		if err != nil {
			return "", err
		}
		file := os.NewFile(uintptr(old), "socket")
		go func() {
			for {
				s, err := open(to, unix.SOCK_DGRAM, 0, nil)
				if err != nil {
					panic(err)
				}
				if err := errors.Join(send(s, to, 5, true), unix.Close(s), send(int(file.Fd()), to, 1, true)); err != nil {
					panic(err)
				}
			}
		}()
		for range 3 {
			go func() {
				for {
					cmd := exec.Command("/proc/self/exe")
					cmd.Stdin = strings.NewReader(fmt.Sprintf("inherited %s 30\nudp %[1]s 10\ninherited %[1]s 10\n", to))
					cmd.ExtraFiles = []*os.File{file}
					if out, err := cmd.Output(); err != nil || strings.Count(string(out), "ok") != 3 {
						panic(fmt.Sprintf("%v: %s", err, out))
					}
				}
			}()
		}
		return "", nil
	},
	"parent": func(x given) (string, error) { // NAME: has a child that shares the socket
		shared, err := unix.Dup(x.kept[x.args[0]])
		if err != nil {
			return "", err
		}
		file := os.NewFile(uintptr(shared), "socket")
		defer file.Close()
		cmd := exec.Command("/proc/self/exe")
		cmd.ExtraFiles = []*os.File{file}
		in, err := cmd.StdinPipe()
		if err != nil {
			return "", err
		}
		x.kept[x.args[0]+" child"] = int(in.(*os.File).Fd()) // which ends when this process does
		return "", cmd.Start()
	},
	"inherited": func(x given) (string, error) { // TO N: by the first descriptor behind the standard ones
		return "", send(3, x.args[0], x.number(1), true)
	},
	"connect": func(x given) (string, error) { // NAME TO
		s, err := open(x.args[1], unix.SOCK_STREAM, 0, nil)
		x.kept[x.args[0]] = s
		return "", errors.Join(err, unix.Connect(s, sockaddr(x.args[1])))
	},
	"drain": func(x given) (string, error) { // NAME: reads all
		defer unix.Close(x.kept[x.args[0]])
		for buf := make([]byte, 1<<16); ; {
			if n, err := unix.Read(x.kept[x.args[0]], buf); n == 0 || err != nil {
				return "", err
			}
		}
	},
	"fetch": func(x given) (string, error) { // TO: connects and reads all
		s, err := open(x.args[0], unix.SOCK_STREAM, 0, nil)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.Connect(s, sockaddr(x.args[0])); err != nil {
			return "", err
		}
		for buf := make([]byte, 1<<16); ; {
			if n, err := unix.Read(s, buf); n == 0 || err != nil {
				return "", err
			}
		}
	},
	"child": func(x given) (string, error) { // any other command
		cmd := exec.Command("/proc/self/exe")
		cmd.Stdin = strings.NewReader(strings.Join(x.args, " ") + "\n")
		out, err := cmd.Output()
		if err == nil && !strings.HasPrefix(string(out), "ok") {
			err = errors.New(strings.TrimSpace(string(out)))
		}
		return "", err
	},
}

func actOne(verb string, args []string, kept map[string]int) (string, error) {
	do, ok := verbs[verb]
	if !ok {
		return "", errors.New("no such command")
	}
	return do(given{args, kept})
}

// closed waits until both ends of a connection have their last acknowledgement,
// which the kernel may send later, in a soft interrupt.
func closed(s int) error {
	for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		info, err := unix.GetsockoptTCPInfo(s, unix.IPPROTO_TCP, unix.TCP_INFO)
		if err != nil || info.State == unix.BPF_TCP_CLOSE {
			return err
		}
	}
	return errors.New("the connection is not closed after 30s")
}

// processorTime is what the calling thread has used, in ns.
func processorTime() (int64, error) {
	var ts unix.Timespec
	err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts)
	return ts.Nano(), err
}

func open(to string, typ, proto int, priority []string) (int, error) {
	family := unix.AF_INET
	if netip.MustParseAddrPort(to).Addr().Is6() {
		family = unix.AF_INET6
	}
	s, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return -1, err
	}
	option := unix.SO_BROADCAST
	if typ == unix.SOCK_STREAM {
		option = unix.SO_REUSEADDR
	}
	err = unix.SetsockoptInt(s, unix.SOL_SOCKET, option, 1)
	return s, errors.Join(err, prioritise(s, priority))
}

func prioritise(s int, priority []string) error {
	if len(priority) == 0 {
		return nil
	}
	class, err := hierarchy.ParseClassID(priority[0])
	if err != nil {
		return err
	}
	return errors.Join(
		unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_PRIORITY, int(class)),
		unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, int(class)))
}

// frames sends frames of an experimental type to nobody, by a packet socket. A bridge
// passes them on with their socket, which copies to several would have lost.
func frames(s, index, n int) error {
	frame := make([]byte, 60)
	copy(frame, "\x02\x00\x00\x00\x00\x02\x02\x00\x00\x00\x00\x01\x88\xb5")
	to := &unix.SockaddrLinklayer{Ifindex: index, Protocol: 0xb588}
	for range n {
		// a packet socket tells of what the queue dropped
		if err := unix.Sendto(s, frame, 0, to); err != nil && err != unix.ENOBUFS {
			return err
		}
	}
	return nil
}

func sockaddr(to string) unix.Sockaddr {
	a := netip.MustParseAddrPort(to)
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

func send(s int, to string, n int, unconnected bool) error {
	msg := make([]byte, 18)
	addr := sockaddr(to)
	for range n {
		var err error
		if unconnected {
			err = unix.Sendto(s, msg, 0, addr)
		} else {
			_, err = unix.Write(s, msg)
		}
		for err == unix.ECONNREFUSED { // an answer to an earlier message; this one was not sent
			_, err = unix.Write(s, msg)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
