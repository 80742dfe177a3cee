package cgroup_test

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

func TestMain(m *testing.M) {
	tctest.Main(m, tctest.Programs{"actor": act, "unprivileged": unprivileged, "limited": limited, "confined": confined, "run": run, "measure": measure, "hidden": hidden, "mounts": mounts, "unruly": unruly, "narrowed": narrowed, "headless": headless, "threads": threads, "sender": sender})
}

// Leaf classes of the tree that every test has.
const (
	rest  = hierarchy.ClassID(hierarchy.Major<<16 | hierarchy.RestMinor)
	red   = hierarchy.ClassID(hierarchy.Major<<16 | 0x10)
	green = hierarchy.ClassID(hierarchy.Major<<16 | 0x20)
	blue  = hierarchy.ClassID(hierarchy.Major<<16 | 0x30)
)

// network is a pair with an HTB tree at its near end.
type network struct {
	*lab.Pair
	device *tc.Device
	hook   *hook.Hooks
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	n := &network{Pair: tctest.New(t, lab.PairConfig{TxQueueLen: 32_767})}
	n.noReports(t)
	c, err := rtnl.Open(rtnl.Config{NetNS: n.Near.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if n.device, err = tc.Find(c, n.Dev); err != nil {
		t.Fatal(err)
	}
	n.hook = hook.Of(n.device.Interface)
	n.tree(t)
	return n
}

// tree makes the HTB tree.
func (n *network) tree(t testing.TB) {
	t.Helper()
	steps := []hierarchy.Step{{Action: hierarchy.Create, New: &hierarchy.Root{Kind: "htb", Handle: hierarchy.ID(0)}}}
	parent := hierarchy.ID(0)
	for _, class := range []hierarchy.ClassID{hierarchy.ID(hierarchy.RootMinor), rest, red, green, blue} {
		steps = append(steps, hierarchy.Step{Action: hierarchy.Create, New: &hierarchy.Class{
			ID: class, Parent: parent, Rate: 4 * hierarchy.Gbit, Ceil: 40 * hierarchy.Gbit,
			Burst: hierarchy.MiB, CBurst: hierarchy.MiB, Quantum: 60_000,
		}})
		parent = hierarchy.ID(hierarchy.RootMinor)
	}
	if _, err := n.device.Do(t.Context(), steps); err != nil {
		t.Fatal(err)
	}
}

// onlyIPv4 keeps interfaces that are yet to be made from reporting IPv6 groups.
func onlyIPv4(t testing.TB, ns *lab.NetNS) {
	t.Helper()
	err := ns.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// noReports takes the route of multicast away, and so the kernel's reports of
// IPv6 groups, which would be counted too. The kernel makes the route once the
// interface has a carrier, in a work queue (linkwatch_event, net/core/link_watch.c,
// and addrconf_add_mroute, net/ipv6/addrconf.c, v6.12).
func (n *network) noReports(t testing.TB) {
	t.Helper()
	c, err := n.Near.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.RTA_DST, netip.MustParseAddr("ff00::").AsSlice())
	ae.Uint32(unix.RTA_TABLE, unix.RT_TABLE_LOCAL)
	attrs, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, unix.SizeofRtMsg)
	msg[0], msg[1], msg[7] = unix.AF_INET6, 8, unix.RTN_MULTICAST
	remove := netlink.Message{
		Header: netlink.Header{Type: unix.RTM_DELROUTE, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(msg, attrs...),
	}
	deadline := time.Now().Add(30 * time.Second)
	for _, err = c.Execute(remove); errors.Is(err, unix.ESRCH) && time.Now().Before(deadline); _, err = c.Execute(remove) {
		time.Sleep(time.Millisecond) // it is not there yet
	}
	if err != nil {
		t.Fatalf("remove the route of multicast: %v", err)
	}
}

// binder makes a Binder for the near interface, for all ways or some.
func (n *network) binder(t testing.TB, ways ...bind.Way) *cgroup.Binder {
	t.Helper()
	return n.binderWith(t, cgroup.Config{Ways: ways})
}

// binderWith is one that is configured besides.
func (n *network) binderWith(t testing.TB, c cgroup.Config) *cgroup.Binder {
	t.Helper()
	key, err := cgroupfs.NetNSKey(n.Near.FD())
	if err != nil {
		t.Fatal(err)
	}
	c.Hook, c.Interface, c.Index, c.NetNSFD, c.NetNS = n.hook, n.Dev, n.device.Index, n.Near.FD(), key
	b, err := cgroup.NewBinder(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// counts are the packets that the leaf classes sent, and under 0 what the device
// sent beside them.
func (n *network) counts(t testing.TB) map[hierarchy.ClassID]uint64 {
	t.Helper()
	var (
		stats []tc.ClassStats
		err   error
	)
	sent := n.sent(t)
	for before := sent + 1; before != sent; sent = n.sent(t) { // of one moment
		before = sent
		if stats, err = n.device.Stats(); err != nil {
			t.Fatal(err)
		}
	}
	m := map[hierarchy.ClassID]uint64{0: sent}
	for _, c := range stats {
		if c.Drops != 0 || c.QLen != 0 {
			t.Errorf("class %v dropped %d packets, %d wait", c.Class, c.Drops, c.QLen)
		}
		if c.Class != hierarchy.ID(hierarchy.RootMinor) {
			m[c.Class] = c.Packets
			m[0] -= uint64(c.Lends) + uint64(c.Borrows) // unsplit, as the device counts them
		}
	}
	return m
}

// sent is how many packets the device has sent.
func (n *network) sent(t testing.TB) (packets uint64) {
	t.Helper()
	err := n.Near.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		_, line, ok := strings.Cut(string(b), n.Dev+":")
		f := strings.Fields(line)
		if !ok || len(f) < 10 {
			return fmt.Errorf("no %s in %s", n.Dev, b)
		}
		packets, err = strconv.ParseUint(f[9], 10, 64)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return packets
}

// during is what counts gained while fn ran; classes without a packet are left
// out.
func (n *network) during(t testing.TB, fn func()) map[hierarchy.ClassID]uint64 {
	t.Helper()
	before := n.counts(t)
	was := n.sent(t)
	fn()
	// What is forwarded may still be with the thread that does the kernel's soft
	// interrupts, which gets its turn while this one sleeps.
	deadline := time.Now().Add(time.Second)
	for last, same := was, 0; same < 3 || last == was && time.Now().Before(deadline); same++ {
		time.Sleep(5 * time.Millisecond)
		if now := n.sent(t); now != last {
			last, same = now, 0
		}
	}
	gained := map[hierarchy.ClassID]uint64{}
	for id, after := range n.counts(t) {
		if after != before[id] {
			gained[id] = after - before[id]
		}
	}
	return gained
}

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

func actOne(verb string, args []string, kept map[string]int) (string, error) {
	number := func(i int) int {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			panic(err)
		}
		return n
	}
	switch verb {
	case "join": // DIR
		return "", os.WriteFile(args[0]+"/cgroup.procs", []byte("0"), 0)
	case "nobody":
		return "", unix.Setuid(65534)
	case "udp": // TO N [PRIORITY]
		s, err := open(args[0], unix.SOCK_DGRAM, 0, args[2:])
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		return "", send(s, args[0], number(1), true)
	case "marked": // TO N MARK
		s, err := open(args[0], unix.SOCK_DGRAM, 0, nil)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, number(2)); err != nil {
			return "", err
		}
		return "", send(s, args[0], number(1), true)
	case "connected": // TO N [PRIORITY]
		s, err := open(args[0], unix.SOCK_DGRAM, 0, args[2:])
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.Connect(s, sockaddr(args[0])); err != nil {
			return "", err
		}
		return "", send(s, args[0], number(1), false)
	case "segments": // TO N: one system call, N datagrams
		s, err := open(args[0], unix.SOCK_DGRAM, 0, nil)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		const size, udpSegment = 100, 103 // UDP_SEGMENT, include/uapi/linux/udp.h
		if err := unix.SetsockoptInt(s, unix.SOL_UDP, udpSegment, size); err != nil {
			return "", err
		}
		return "", unix.Sendto(s, make([]byte, number(1)*size), 0, sockaddr(args[0]))
	case "raw": // TO N [PRIORITY]
		s, err := open(args[0], unix.SOCK_RAW, unix.IPPROTO_UDP, args[2:])
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		return "", send(s, args[0], number(1), true)
	case "packet": // INDEX N [PRIORITY]
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := prioritise(s, args[2:]); err != nil {
			return "", err
		}
		return "", frames(s, number(0), number(1))
	case "keepPacket": // NAME
		s, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
		kept[args[0]] = s
		return "", err
	case "morePacket": // NAME INDEX N
		return "", frames(kept[args[0]], number(1), number(2))
	case "keep": // NAME TO
		s, err := open(args[1], unix.SOCK_DGRAM, 0, nil)
		kept[args[0]] = s
		return "", err
	case "fill": // NAME INDEX: an IPv6 socket, until the kernel gives it no more memory for options
		for i := 0; ; i++ {
			m := unix.IPv6Mreq{Multiaddr: [16]byte{0xff, 0x15, 13: byte(i >> 16), 14: byte(i >> 8), 15: byte(i)}, Interface: uint32(number(1))}
			if err := unix.SetsockoptIPv6Mreq(kept[args[0]], unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, &m); err != nil {
				return err.Error(), nil
			}
		}
	case "sink": // NAME ADDR: a socket that nobody reads
		s, err := open(args[1], unix.SOCK_DGRAM, 0, nil)
		kept[args[0]] = s
		return "", errors.Join(err, unix.Bind(s, sockaddr(args[1])))
	case "burst": // NAME TO N: answers with the processor time of a packet in ns
		s, ok := kept[args[0]]
		if !ok {
			var err error
			if s, err = open(args[1], unix.SOCK_DGRAM, 0, nil); err != nil {
				return "", err
			}
			if err := unix.Connect(s, sockaddr(args[1])); err != nil {
				return "", err
			}
			kept[args[0]] = s
		}
		before, err := processorTime()
		if err == nil {
			err = send(s, args[1], number(2), false)
		}
		after, err2 := processorTime()
		return fmt.Sprint(float64(after-before) / float64(number(2))), errors.Join(err, err2)
	case "more": // NAME TO N
		return "", send(kept[args[0]], args[1], number(2), true)
	case "tcp": // TO BYTES [PRIORITY]
		s, err := open(args[0], unix.SOCK_STREAM, 0, args[2:])
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.Connect(s, sockaddr(args[0])); err != nil {
			return "", err
		}
		for left := number(1); left > 0; {
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
	case "spill": // TO BYTES: connects, and closes while most is still to be sent
		s, err := open(args[0], unix.SOCK_STREAM, 0, nil)
		if err == nil {
			err = errors.Join(unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_SNDBUF, number(1)), unix.Connect(s, sockaddr(args[0])))
		}
		if err == nil {
			_, err = unix.Write(s, make([]byte, number(1)))
		}
		return "", errors.Join(err, unix.Close(s))
	case "leave": // TO: connects and closes; the kernel does the rest
		s, err := open(args[0], unix.SOCK_STREAM, 0, nil)
		if err == nil {
			err = unix.Connect(s, sockaddr(args[0]))
		}
		return "", errors.Join(err, unix.Close(s))
	case "listen": // NAME ADDR
		s, err := open(args[1], unix.SOCK_STREAM, 0, nil)
		if err != nil {
			return "", err
		}
		kept[args[0]] = s
		if err := unix.Bind(s, sockaddr(args[1])); err != nil {
			return "", err
		}
		return "", unix.Listen(s, 128)
	case "accept": // NAME LISTENER
		s, _, err := unix.Accept(kept[args[1]])
		kept[args[0]] = s
		return "", err
	case "prompt": // NAME: does not wait for more to send
		return "", unix.SetsockoptInt(kept[args[0]], unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	case "hand": // NAME COMMAND; ...: has a child that gets the socket as its first descriptor behind the standard ones, and gives it away
		file := os.NewFile(uintptr(kept[args[0]]), "socket")
		defer file.Close()
		delete(kept, args[0])
		cmd := exec.Command("/proc/self/exe")
		commands := strings.Split(strings.Join(args[1:], " "), ";")
		cmd.Stdin = strings.NewReader(strings.Join(commands, "\n") + "\n")
		cmd.ExtraFiles = []*os.File{file}
		out, err := cmd.Output()
		if err == nil && strings.Count(string(out), "ok") != len(commands) {
			err = errors.New(strings.ReplaceAll(strings.TrimSpace(string(out)), "\n", "; "))
		}
		return "", err
	case "take": // NAME: the first descriptor behind the standard ones
		kept[args[0]] = 3
		return "", nil
	case "write": // NAME BYTES
		_, err := unix.Write(kept[args[0]], make([]byte, number(1)))
		return "", err
	case "writeFile": // NAME BYTES: without the process seeing them
		f, err := os.Open("/proc/self/exe")
		if err != nil {
			return "", err
		}
		defer f.Close()
		_, err = unix.Sendfile(kept[args[0]], int(f.Fd()), nil, number(1))
		return "", err
	case "finish": // NAME: up to the last ACK
		c := kept[args[0]]
		defer unix.Close(c)
		err := unix.Shutdown(c, unix.SHUT_WR)
		for buf := make([]byte, 1<<16); err == nil; {
			var n int
			if n, err = unix.Read(c, buf); n == 0 {
				break
			}
		}
		return "", errors.Join(err, closed(c))
	case "serve": // NAME N BYTES: accepts N connections one after the other and answers each, up to the last ACK
		for range number(1) {
			c, _, err := unix.Accept(kept[args[0]])
			if err != nil {
				return "", err
			}
			_, err = unix.Write(c, make([]byte, number(2)))
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
	case "dial": // TO N: connects and resets
		for range number(1) {
			s, err := open(args[0], unix.SOCK_STREAM, 0, nil)
			if err == nil {
				err = unix.Connect(s, sockaddr(args[0]))
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
	case "swarm": // TO: until it is told otherwise, forks children that open, share and use sockets
		to := args[0]
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
	case "parent": // NAME: has a child that shares the socket
		shared, err := unix.Dup(kept[args[0]])
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
		kept[args[0]+" child"] = int(in.(*os.File).Fd()) // which ends when this process does
		return "", cmd.Start()
	case "inherited": // TO N: by the first descriptor behind the standard ones
		return "", send(3, args[0], number(1), true)
	case "connect": // NAME TO
		s, err := open(args[1], unix.SOCK_STREAM, 0, nil)
		kept[args[0]] = s
		return "", errors.Join(err, unix.Connect(s, sockaddr(args[1])))
	case "drain": // NAME: reads all
		defer unix.Close(kept[args[0]])
		for buf := make([]byte, 1<<16); ; {
			if n, err := unix.Read(kept[args[0]], buf); n == 0 || err != nil {
				return "", err
			}
		}
	case "fetch": // TO: connects and reads all
		s, err := open(args[0], unix.SOCK_STREAM, 0, nil)
		if err != nil {
			return "", err
		}
		defer unix.Close(s)
		if err := unix.Connect(s, sockaddr(args[0])); err != nil {
			return "", err
		}
		for buf := make([]byte, 1<<16); ; {
			if n, err := unix.Read(s, buf); n == 0 || err != nil {
				return "", err
			}
		}
	case "child": // any other command
		cmd := exec.Command("/proc/self/exe")
		cmd.Stdin = strings.NewReader(strings.Join(args, " ") + "\n")
		out, err := cmd.Output()
		if err == nil && !strings.HasPrefix(string(out), "ok") {
			err = errors.New(strings.TrimSpace(string(out)))
		}
		return "", err
	}
	return "", errors.New("no such command")
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

// sub makes a cgroup below dir.
func sub(t testing.TB, dir string, names ...string) string {
	t.Helper()
	p := filepath.Join(append([]string{dir}, names...)...)
	if err := os.MkdirAll(p, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}
