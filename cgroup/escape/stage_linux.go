package escape

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// packets is how many packets an attempt sends, where it can choose.
const packets = 40

// Place is where an attempt runs and what it may aim at.
type Place struct {
	Self []string // the command that calls [Perform], without its arguments

	Dev              string
	Index            int
	NearMAC, FarMAC  []byte
	Near4, Far4      netip.Addr
	Near6, Far6      netip.Addr // the zero Addr without IPv6
	Port             uint16     // of a sink at the far end, for TCP and UDP
	Own, Other, Root hierarchy.ClassID

	OwnDirs   []string // cgroups of the branch, of whichever hierarchies
	OtherDirs []string // and of the other branch, in the same order
	Handles   []Handle // of the files of OtherDirs through which processes move

	Record, Lock string // files that vifshape keeps: of the interface, and to lock

	Program  uint32 // id of the classifier's program, 0: none
	Match    uint32 // of the program that goes by matches
	Outsider Served
	Suid     string // a copy of the program that is root's for all who start it; empty: none

	IFB     string // carries the tree for what is received; empty: there is none
	Note    uint32 // id of the program that notes flows
	Far     string // by which name the far end is asked to send, see [NewFar]
	Answers uint16 // the port there that it sends from
	Flow    uint16 // a port of the near end that nobody has had yet
}

// Handle is a file by its number, for open_by_handle_at.
type Handle struct {
	Mount string
	Type  int32
	Bytes []byte
}

// stage is an attempt under way.
type stage struct {
	Place
	Outcome
	part   string // empty, or the part of the attempt that a child plays
	source uint16 // the port that packets are sent from whose header the attempt writes
}

func newStage(p Place) *stage { return &stage{Place: p, source: 4000} }

// Perform makes an attempt in this process, which is in the branch, and says what
// came of it. A name with a colon is a part of an attempt, which another part of it
// asked for.
func Perform(name string, p Place) (Outcome, error) {
	runtime.LockOSThread() // for good: namespaces and the like are a thread's
	name, part, _ := strings.Cut(name, ":")
	a := Find(name)
	if a == nil {
		return Outcome{}, fmt.Errorf("there is no attempt %q", name)
	}
	s := newStage(p)
	s.part = part
	if err := a.do(s); err != nil {
		s.fail(err)
	}
	return s.Outcome, nil
}

// again plays a part of the attempt in a child and takes its outcome over.
func (s *stage) again(name, part string, change func(*exec.Cmd)) error {
	c, err := s.child(name, part)
	if err != nil {
		return err
	}
	if change != nil {
		change(c)
	}
	return s.await(c)
}

func (s *stage) child(name, part string) (*exec.Cmd, error) {
	b, err := json.Marshal(s.Place)
	if err != nil {
		return nil, err
	}
	args := append(s.Self[1:len(s.Self):len(s.Self)], name+":"+part, string(b))
	c := exec.Command(s.Self[0], args...)
	c.Args[0] = "vifshape"
	c.Stderr = os.Stderr
	return c, nil
}

func (s *stage) await(c *exec.Cmd) error {
	var out bytes.Buffer
	c.Stdout = &out
	if err := c.Run(); err != nil {
		return call("start a child", err)
	}
	o := Outcome{}
	if err := json.Unmarshal(out.Bytes(), &o); err != nil {
		return fmt.Errorf("child: %w in %q", err, out.String())
	}
	o.Sent += s.Sent
	o.Strays += s.Strays
	s.Outcome = o
	return nil
}

// payload is what packets carry.
var payload = bytes.Repeat([]byte("vifshape"), 8)

// addr is the sink.
func (s *stage) addr(v6 bool) unix.Sockaddr {
	if v6 {
		return &unix.SockaddrInet6{Port: int(s.Port), Addr: s.Far6.As16()}
	}
	return &unix.SockaddrInet4{Port: int(s.Port), Addr: s.Far4.As4()}
}

func (s *stage) socket(family, typ, proto int) (int, error) {
	if family == unix.AF_INET6 && !s.Far6.IsValid() {
		return -1, missing("the kernel has no IPv6")
	}
	fd, err := unix.Socket(family, typ|unix.SOCK_CLOEXEC, proto)
	return fd, call(fmt.Sprintf("socket %s", family4(family)), err)
}

// with makes a socket, takes the steps with it until one fails, and closes it. A nil
// step is none.
func (s *stage) with(family, typ, proto int, all ...func(fd int) error) error {
	fd, err := s.socket(family, typ, proto)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return steps(fd, all...)
}

func steps(fd int, all ...func(fd int) error) error {
	for _, step := range all {
		if step == nil {
			continue
		}
		if err := step(fd); err != nil {
			return err
		}
	}
	return nil
}

// inet is the family of a version of IP.
func inet(v6 bool) int {
	if v6 {
		return unix.AF_INET6
	}
	return unix.AF_INET
}

func family4(f int) string {
	switch f {
	case unix.AF_INET:
		return "AF_INET"
	case unix.AF_INET6:
		return "AF_INET6"
	case unix.AF_PACKET:
		return "AF_PACKET"
	case unix.AF_XDP:
		return "AF_XDP"
	case unix.AF_PPPOX:
		return "AF_PPPOX"
	}
	return fmt.Sprint(f)
}

// flood sends to an address, nil for where the socket is connected to.
func (s *stage) flood(to unix.Sockaddr, b []byte) func(fd int) error {
	return func(fd int) error {
		for range packets {
			if err := unix.Sendto(fd, b, 0, to); err != nil {
				return call("sendto", err)
			}
			s.Sent++
		}
		return nil
	}
}

// udp sends datagrams after something was done to the socket.
func (s *stage) udp(v6 bool, prepare func(fd int) error) error {
	return s.with(inet(v6), unix.SOCK_DGRAM, 0, prepare, s.flood(s.addr(v6), payload))
}

// plain sends as an honest program does.
func (s *stage) plain() error { return s.udp(false, nil) }

// tcp sends over a connection after something was done to the socket, or does
// something else with the connection.
func (s *stage) tcp(v6 bool, proto int, prepare, connected func(fd int) error) error {
	if connected == nil {
		connected = func(fd int) error {
			for range packets {
				if _, err := unix.Write(fd, payload); err != nil {
					return call("write", err)
				}
			}
			s.Sent++
			return nil
		}
	}
	return s.with(inet(v6), unix.SOCK_STREAM, proto, prepare, func(fd int) error {
		// A packet that is sent for a closed connection has no socket any more.
		s.Strays += 4
		if err := unix.Connect(fd, s.addr(v6)); err != nil {
			return call("connect", err)
		}
		s.Sent += 2 // of the handshake; how much of the data goes together is TCP's
		return nil
	}, connected)
}

// option sets an option of a socket before anything is sent.
func option(name string, level, opt, value int) func(fd int) error {
	return func(fd int) error {
		return call("setsockopt "+name, unix.SetsockoptInt(fd, level, opt, value))
	}
}

func priority(v uint32) func(fd int) error {
	return option("SO_PRIORITY", unix.SOL_SOCKET, unix.SO_PRIORITY, int(int32(v)))
}

// private makes mounts of this thread its own.
func private() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return call("unshare CLONE_NEWNS", err)
	}
	return call("mount MS_PRIVATE", unix.Mount("none", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// cloneFlags starts a child in new namespaces, as root of them.
func cloneFlags(flags uintptr) func(*exec.Cmd) {
	return func(c *exec.Cmd) {
		c.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
		if flags&unix.CLONE_NEWUSER != 0 {
			c.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
			c.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
		}
	}
}
