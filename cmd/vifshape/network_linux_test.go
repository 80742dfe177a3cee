package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// network is a pair of namespaces with the real program at its near end. After
// the test nothing of it is left: no process in a branch, no cgroup, no record.
type network struct {
	testing.TB
	*lab.Pair
	dir   string        // for files of the test
	bin   string        // the program
	store *record.Store // of the near end
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	n := &network{TB: t, Pair: tctest.New(t, lab.PairConfig{}), dir: t.TempDir(), bin: filepath.Join(program(t), "vifshape")}
	err := n.Near.Do(func() (err error) {
		n.store, err = record.Open(defaultRunDir)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(n.removeCgroups(), n.store.Discard()); err != nil {
			t.Error(err)
		}
	})
	return n
}

// cgroups is where run puts the programs of this network.
func (n *network) cgroups() string {
	mount := "/sys/fs/cgroup/net_cls" // of a guest with cgroup v1 alone
	if !vm.Inside() || isV2("/sys/fs/cgroup") || isV2("/sys/fs/cgroup/unified") {
		mount = tctest.Cgroup2Mount(n)
	}
	return filepath.Join(mount, "vifshape", n.store.NetNS)
}

// isV2 says whether cgroup v2 is mounted there.
func isV2(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, "cgroup.controllers"))
	return err == nil
}

// removeCgroups kills what is left in the branches and removes their cgroups.
func (n *network) removeCgroups() error {
	if _, err := os.Stat(n.cgroups()); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err := n.kill(); err != nil {
		return err
	}
	deadline := time.Now().Add(time.Minute)
	for {
		var errs []error
		for _, d := range n.branchCgroups() {
			if err := unix.Rmdir(d); err != nil && err != unix.ENOENT {
				errs = append(errs, &os.PathError{Op: "rmdir", Path: d, Err: err})
			}
		}
		if err := errors.Join(errs...); err == nil || time.Now().After(deadline) {
			_ = unix.Rmdir(filepath.Dir(n.cgroups())) // other networks may need it
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// branchCgroups are the cgroups of this network, children first.
func (n *network) branchCgroups() []string {
	var dirs []string
	// What vanishes meanwhile needs no removal.
	_ = filepath.WalkDir(n.cgroups(), func(p string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			dirs = append([]string{p}, dirs...)
		}
		return nil
	})
	return dirs
}

// kill ends every process in a branch. Daemons clear their environment and
// leave their parents: only the cgroup knows them.
func (n *network) kill() error {
	for _, d := range n.branchCgroups() {
		b, err := os.ReadFile(filepath.Join(d, "cgroup.procs"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		for _, f := range strings.Fields(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil || pid == 0 {
				return fmt.Errorf("%s holds process %q", d, f)
			}
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && err != unix.ESRCH {
				return err
			}
		}
	}
	return nil
}

// policy writes a policy into a file of the test's directory.
func (n *network) policy(name, text string) string {
	n.Helper()
	file := filepath.Join(n.dir, name)
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		n.Fatal(err)
	}
	return file
}

// tree is a policy's tree, without what the machine adds.
func (n *network) tree(text string) *hierarchy.Tree {
	n.Helper()
	p, err := policy.Parse("policy.toml", strings.NewReader(text), qdisc.Kinds())
	if err != nil {
		n.Fatal(err)
	}
	return p.Trees[0]
}

// command is the program with its arguments, not started yet. A run goes as far as
// the kernel does, where that cannot lock programs in.
func (n *network) command(args ...string) *exec.Cmd {
	if len(args) > 0 && args[0] == "run" && !lockable() {
		args = slices.Insert(slices.Clone(args), 1, "--level", "best")
	}
	c := exec.CommandContext(n.Context(), n.bin, args...)
	c.Args[0] = "vifshape"
	return c
}

// lockable says whether the kernel has the Landlock that level lock takes.
func lockable() bool {
	abi, _, e := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, 0, 0, unix.LANDLOCK_CREATE_RULESET_VERSION)
	return e == 0 && abi >= 2
}

// result is how a program ended.
type result struct {
	code           int
	stdout, stderr string
}

func (r result) String() string {
	return fmt.Sprintf("exit status %d\nstdout:\n%s\nstderr:\n%s", r.code, r.stdout, r.stderr)
}

// running is a program under way.
type running struct {
	*exec.Cmd
	n              *network
	stdout, stderr strings.Builder
}

func (n *network) start(c *exec.Cmd) *running {
	n.Helper()
	return n.startIn(n.Near, c)
}

func (n *network) startIn(ns *lab.NetNS, c *exec.Cmd) *running {
	n.Helper()
	r := &running{Cmd: c, n: n}
	if c.Stdout == nil {
		c.Stdout = &r.stdout
	}
	c.Stderr = &r.stderr
	if err := ns.Start(c); err != nil {
		n.Fatal(err)
	}
	return r
}

// wait waits for the end; a process that a signal killed has code -1.
func (r *running) wait() result {
	r.n.Helper()
	var exit *exec.ExitError
	if err := r.Wait(); err != nil && !errors.As(err, &exit) {
		r.n.Fatal(err)
	}
	return result{r.ProcessState.ExitCode(), r.stdout.String(), r.stderr.String()}
}

// run runs the program to its end.
func (n *network) run(args ...string) result {
	n.Helper()
	return n.start(n.command(args...)).wait()
}

// ok is run for what has to succeed; it returns what was printed.
func (n *network) ok(args ...string) string {
	n.Helper()
	r := n.run(args...)
	if r.code != 0 {
		n.Fatalf("vifshape %s: %v", strings.Join(args, " "), r)
	}
	return r.stdout
}

// fails is run for what has to fail with a code and with words in its message,
// which is one line and hints.
func (n *network) fails(code int, words string, args ...string) {
	n.Helper()
	n.failed(n.run(args...), code, words)
}

func (n *network) failed(r result, code int, words string) {
	n.Helper()
	n.Log(strings.TrimSpace(r.stderr))
	if r.code != code || !strings.Contains(r.stderr, words) {
		n.Errorf("not exit status %d with %q: %v", code, words, r)
	}
	if c := strings.Count(r.stderr, "vifshape: error: "); c != 1 {
		n.Errorf("%d error messages instead of one: %v", c, r)
	}
}

// shell runs commands of iproute2 in the near namespace.
func (n *network) shell(script string) {
	n.Helper()
	for _, p := range []string{"tc", "ip"} {
		tctest.RequireProgram(n, p)
	}
	tctest.Output(n, n.Near, "sh", "-ec", script)
}

// state is what the kernel has on the shaped interface, read by package tc.
func (n *network) state() hierarchy.State {
	n.Helper()
	var s hierarchy.State
	n.device(func(d *tc.Device) error { return d.Read(n.Context(), &s) })
	return s
}

// sending is the part of it that sends.
func (n *network) sending() hierarchy.PortState {
	n.Helper()
	return n.state().Ports[0]
}

func (n *network) device(fn func(*tc.Device) error) {
	n.Helper()
	c, err := rtnl.Open(rtnl.Config{NetNS: n.Near.FD()})
	if err != nil {
		n.Fatal(err)
	}
	defer c.Close()
	d, err := tc.Find(c, n.Dev)
	if err == nil {
		err = fn(d)
	}
	if err != nil {
		n.Fatal(err)
	}
}

// until waits for something that takes a moment; 10 seconds are the limit.
func (n *network) until(what string, ok func() bool) {
	n.Helper()
	for deadline := time.Now().Add(time.Minute); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			n.Fatalf("%s did not come", what)
		}
	}
}

// clean holds that nothing of vifshape is left in the near namespace.
func (n *network) clean() {
	n.Helper()
	if root := n.sending().Root; root.Ours() {
		n.Errorf("the root qdisc is still %v", root)
	}
	if out := tctest.TC(n, n.Near, "qdisc", "show", "dev", n.Dev); strings.Contains(out, "clsact") || strings.Contains(out, "htb") {
		n.Errorf("qdiscs are left:\n%s", out)
	}
	if i, err := n.store.Interfaces(); err != nil || len(i) != 0 {
		n.Errorf("records are left: %v, %v", i, err)
	}
	if c := n.branchCgroups(); len(c) != 0 {
		n.Errorf("cgroups are left: %q", c)
	}
}

// many is a policy of as many leaves as asked for.
func many(leaves int, rate string) string {
	var b strings.Builder
	b.WriteString("version = 1\n[interface.eth0]\nrate = \"40gbit\"\n")
	for i := range leaves {
		fmt.Fprintf(&b, "[interface.eth0.b%d]\nrate = %q\n", i, rate)
	}
	return b.String()
}

// stream is numbered datagrams from the near end to the far one, one each
// millisecond, until it is stopped.
type stream struct {
	n        *network
	near     net.Conn
	far      net.PacketConn
	stop     chan struct{}
	sent     chan int // how many, once the sender has ended
	received chan int // how many, once the receiver has ended
	silence  time.Duration
}

func (n *network) stream() *stream {
	n.Helper()
	s := &stream{n: n, stop: make(chan struct{}), sent: make(chan int, 1), received: make(chan int, 1)}
	to := netip.AddrPortFrom(n.Far4, 9000).String()
	err := n.Far.Do(func() (err error) {
		s.far, err = net.ListenPacket("udp", to)
		return err
	})
	if err == nil {
		err = n.Near.Do(func() (err error) {
			s.near, err = net.Dial("udp", to)
			return err
		})
	}
	if err != nil {
		n.Fatal(err)
	}
	go s.send()
	go s.receive()
	return s
}

func (s *stream) send() {
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	b := make([]byte, 16)
	for i := 0; ; i++ {
		select {
		case <-s.stop:
			s.sent <- i
			return
		case <-tick.C:
		}
		binary.NativeEndian.PutUint64(b, uint64(i))
		binary.NativeEndian.PutUint64(b[8:], uint64(time.Now().UnixNano()))
		// A datagram that cannot be sent is one that is lost.
		_, _ = s.near.Write(b)
	}
}

// receive counts, and keeps the longest time in which datagrams were sent and
// did not arrive; that the sender itself paused is no silence.
func (s *stream) receive() {
	b := make([]byte, 16)
	n, next, last := 0, uint64(0), time.Now()
	for ; ; n++ {
		if _, _, err := s.far.ReadFrom(b); err != nil {
			s.received <- n
			return
		}
		now, sent := time.Now(), time.Unix(0, int64(binary.NativeEndian.Uint64(b[8:])))
		s.silence = max(s.silence, now.Sub(sent))
		if i := binary.NativeEndian.Uint64(b); i != next { // some before it were lost
			s.silence = max(s.silence, now.Sub(last))
		}
		next, last = binary.NativeEndian.Uint64(b)+1, now
	}
}

// passed ends the stream and holds that it never stood still; it returns how
// many datagrams were lost.
func (s *stream) passed() (lost int) {
	s.n.Helper()
	close(s.stop)
	sent := <-s.sent
	time.Sleep(100 * time.Millisecond) // what is on its way
	err := errors.Join(s.near.Close(), s.far.Close())
	received := <-s.received
	if err != nil {
		s.n.Fatal(err)
	}
	s.n.Logf("%d datagrams, %d lost, the longest silence was %v", sent, sent-received, s.silence)
	const longest = 5 * time.Second // a processor that is shared, or emulated, may stand still itself
	if received == 0 || s.silence > longest {
		s.n.Errorf("traffic stood still for %v", s.silence)
	}
	return sent - received
}
