package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/explain"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// slowness is a network with a third namespace, behind the far one: what is wrong with the
// path to it is wrong beyond the tree.
type slowness struct {
	*network
	beyond  netip.Addr
	senders []*boundSender
}

const (
	drainPort = 5001 + iota // reads all there is
	sipPort                 // reads little
	spoutPort               // sends all that goes
)

func newSlowness(t *testing.T) *slowness {
	s := &slowness{network: newNetwork(t), beyond: netip.AddrFrom4([4]byte{198, 18, 9, 2})}
	n, err := lab.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	})
	gate := netip.AddrFrom4([4]byte{198, 18, 9, 1})
	err = lab.AddVeth(s.Far, lab.Link{Name: "far1", Addrs: []netip.Prefix{netip.PrefixFrom(gate, 24)}}, n, lab.Link{Name: "end0", Addrs: []netip.Prefix{netip.PrefixFrom(s.beyond, 24)}})
	if err == nil {
		err = s.Near.AddRoute(netip.PrefixFrom(s.beyond, 24).Masked(), s.Far4, s.Dev)
	}
	if err == nil {
		err = n.AddRoute(netip.PrefixFrom(s.Near4, 24).Masked(), gate, "end0")
	}
	if err != nil {
		t.Fatal(err)
	}
	s.sysctl(s.Far, "net/ipv4/ip_forward", "1")
	for _, at := range []*lab.NetNS{s.Far, n} {
		s.serve(at, drainPort, func(c *net.TCPConn) { _, _ = io.Copy(io.Discard, c) }) // it ends with the sender
		s.serve(at, sipPort, func(c *net.TCPConn) {
			_ = c.SetReadBuffer(8192)
			for b := make([]byte, 2048); ; time.Sleep(20 * time.Millisecond) {
				if _, err := c.Read(b); err != nil {
					return
				}
			}
		})
		s.serve(at, spoutPort, func(c *net.TCPConn) {
			for {
				if _, err := c.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		})
	}
	return s
}

// serve does something with each connection that comes to a port, until the test ends.
func (s *slowness) serve(at *lab.NetNS, port int, with func(*net.TCPConn)) {
	s.Helper()
	var l net.Listener
	err := at.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	})
	if err != nil {
		s.Fatal(err)
	}
	var all sync.WaitGroup
	s.Cleanup(func() {
		l.Close()
		all.Wait()
	})
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			// The end of a network namespace is told to nobody at the other end.
			context.AfterFunc(s.Context(), func() { c.Close() })
			all.Go(func() {
				with(c.(*net.TCPConn))
				c.Close()
			})
		}
	})
}

// send starts a program in a branch.
func (s *slowness) send(branch string, told ...string) {
	s.Helper()
	args := append([]string{"run", branch, "--", s.program()}, told...)
	c := s.command(args...)
	c.Env = append(os.Environ(), tctest.Acting)
	in, err := c.StdinPipe()
	if err != nil {
		s.Fatal(err)
	}
	s.senders = append(s.senders, &boundSender{s.start(c), in})
}

// finish ends all that send.
func (s *slowness) finish() {
	s.Helper()
	for _, x := range s.senders {
		x.in.Close()
		if r := x.wait(); r.code != 0 {
			s.Error(r)
		}
	}
	s.senders = nil
}

// explained is the answer to a question, after senders have had a time to get going.
func (s *slowness) explained(what string) explain.Verdict {
	s.Helper()
	time.Sleep(2 * time.Second)
	text := s.ok("explain", "--json", what)
	var out struct{ Answers []explain.Verdict }
	if err := json.Unmarshal([]byte(text), &out); err != nil || len(out.Answers) != 1 {
		s.Fatalf("%v in\n%s", err, text)
	}
	a := out.Answers[0]
	s.Logf("%s: %s\n%s", what, a.Sentence, strings.Join(a.Evidence, "\n"))
	return a
}

const slowPolicy = `version = 1
[interface.eth0]
rate = "20mbit"
[interface.eth0.web]
rate = "5mbit"
prio = 0
[interface.eth0.slow]
rate = "1mbit"
ceil = "8mbit"
[interface.eth0.short]
rate = "2mbit"
ceil = "8mbit"
qdisc = { kind = "pfifo", limit = 5 }
[interface.eth0.held]
rate = "1mbit"
ceil = "8mbit"
qdisc = { kind = "tbf", rate = "2mbit", burst = "10kb", limit = "50kb" }
[interface.eth0.office]
rate = "4mbit"
ceil = "10mbit"
[interface.eth0.office.a]
[interface.eth0.office.b]
[interface.eth0.bulk]
rate = "1mbit"
prio = 7
`

// TestVirtualExplain: whatever holds up, explain says what it is, of what real programs
// do in virtual time.
func TestVirtualExplain(t *testing.T) {
	if !vm.Inside() {
		t.Parallel()
		vm.Run(t, vm.VirtualTime(), vm.V1, "", "-test.run=^TestVirtualExplain$")
		return
	}
	near, beyond := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, 2}), drainPort).String(), netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 9, 2}), drainPort).String()
	sip := netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, 0, 2}), sipPort).String()
	for _, x := range []struct {
		name  string
		make  func(*slowness)
		ask   string
		cause explain.Cause
		words string // of the sentence
	}{
		{"ceiling", func(s *slowness) { s.send("eth0/slow", "pour", near, "0", "0") }, "eth0/slow", explain.AtCeiling, "of 8mbit"},
		{"ceiling of datagrams", func(s *slowness) { s.send("eth0/slow", "stream", near, "1000", "12000000") }, "eth0/slow", explain.AtCeiling, "of 8mbit"},
		{"ceiling above", func(s *slowness) {
			s.send("eth0/office/a", "pour", near, "0", "0")
			s.send("eth0/office/b", "pour", near, "0", "0")
		}, "eth0/office/a", explain.ParentFull, "eth0/office/a waits for eth0/office, which is full"},
		{"who takes it", func(s *slowness) {
			s.send("eth0/slow", "pour", near, "0", "0")
			s.send("eth0/office/b", "pour", near, "0", "0")
			s.send("eth0/web", "pour", near, "0", "0")
		}, "eth0/web", explain.ParentFull, "most of it goes to eth0/office/b"},
		{"priority", func(s *slowness) {
			s.send("eth0/web", "pour", near, "0", "0")
			s.send("eth0/bulk", "pour", near, "0", "0")
		}, "eth0/bulk", explain.Starved, "eth0/web (prio 0 before 7)"},
		{"a short queue", func(s *slowness) { s.send("eth0/short", "volleys", near, "100", "500ms") }, "eth0/short", explain.QueueDrops, "eth0/short is too short"},
		{"its own queue", func(s *slowness) { s.send("eth0/held", "pour", near, "0", "0") }, "eth0/held", explain.OwnQueue, "it is tbf"},
		{"nobody", func(*slowness) {}, "eth0/web", explain.Nothing, "eth0/web"},
		{"the program", func(s *slowness) { s.send("eth0/slow", "pour", near, "1000000", "0") }, "eth0/slow", explain.Program, "has no more"},
		{"a program of datagrams", func(s *slowness) { s.send("eth0/slow", "stream", near, "1000", "1000000") }, "eth0/slow", explain.Program, "no more than"},
		{"a slow receiver", func(s *slowness) { s.send("eth0/slow", "pour", sip, "0", "0") }, "eth0/slow", explain.Window, "198.18.0.2:5002"},
		{"a small buffer", func(s *slowness) {
			s.path("netem delay 50ms")
			s.send("eth0/slow", "pour", beyond, "0", "4608")
		}, "eth0/slow", explain.SendBuffer, "send buffer"},
		{"a path that loses", func(s *slowness) {
			s.path("netem delay 20ms loss 5%")
			s.send("eth0/slow", "pour", beyond, "0", "0")
		}, "eth0/slow", explain.PathLoses, "sent again"},
		{"a narrow path", func(s *slowness) {
			s.path("tbf rate 4mbit burst 10k limit 500k")
			s.send("eth0/slow", "pour", beyond, "0", "0")
		}, "eth0/slow", explain.Path, "round trip"},
		{"a path that marks", func(s *slowness) {
			s.sysctl(s.Near, "net/ipv4/tcp_ecn", "1")
			s.path("handle 1: tbf rate 4mbit burst 10k limit 500k", "parent 1:1 fq_codel")
			s.send("eth0/slow", "pour", beyond, "0", "0")
		}, "eth0/slow", explain.Marks, "ECN"},
		{"a tree that is gone", func(s *slowness) { s.shell("tc qdisc del dev eth0 root") }, "eth0/web", explain.Unshaped, "eth0"},
		{"by its process", func(s *slowness) { s.send("eth0/slow", "pour", near, "0", "0") }, "", explain.AtCeiling, "of 8mbit"},
	} {
		t.Run(x.name, func(t *testing.T) {
			s := newSlowness(t)
			s.ok("apply", s.policy("policy.toml", slowPolicy))
			x.make(s)
			if x.ask == "" {
				x.ask = fmt.Sprint(s.senders[0].Process.Pid)
			}
			if a := s.explained(x.ask); a.Cause != x.cause || !strings.Contains(a.Sentence, x.words) {
				t.Errorf("%q with %q is not %q with %q", a.Cause, a.Sentence, x.cause, x.words)
			}
			s.finish()
		})
	}
}

// TestVirtualDropped: what show says was dropped is what the queue dropped, also when it took
// packets out, which a class does not see.
func TestVirtualDropped(t *testing.T) {
	if !vm.Inside() {
		t.Parallel()
		vm.Run(t, vm.VirtualTime(), vm.V1, "", "-test.run=^TestVirtualDropped$")
		return
	}
	s := newSlowness(t)
	s.ok("apply", s.policy("policy.toml", `version = 1
[interface.eth0]
rate = "20mbit"
[interface.eth0.slow]
rate = "1mbit"
ceil = "2mbit"
qdisc = "codel"
`))
	s.send("eth0/slow", "stream", netip.AddrPortFrom(s.Far4, drainPort).String(), "1000", "3000000")
	time.Sleep(5 * time.Second)
	s.finish()
	time.Sleep(time.Second) // until its queue is empty
	var got struct {
		Interfaces []struct {
			Branches []struct {
				Path  hierarchy.Path
				Drops uint32
			}
		}
	}
	if err := json.Unmarshal([]byte(s.ok("show", "--json")), &got); err != nil {
		t.Fatal(err)
	}
	s.device(func(d *tc.Device) error {
		var is hierarchy.State
		n, err := d.Count(t.Context(), &is)
		held := 0
		for _, b := range got.Interfaces[0].Branches {
			if b.Path != "eth0/slow" {
				continue
			}
			for id, q := range n.Leaves {
				if q.Kind != "codel" {
					continue
				}
				held++
				if b.Drops == 0 || b.Drops != q.Drops || b.Drops == n.Classes[id].Drops {
					t.Errorf("%d dropped is shown; %d by the queue, %d seen by the class", b.Drops, q.Drops, n.Classes[id].Drops)
				}
			}
		}
		if held != 1 {
			t.Errorf("%+v, %+v", got, n.Leaves)
		}
		return err
	})
}

// sysctl sets one of a network namespace.
func (s *slowness) sysctl(at *lab.NetNS, name, value string) {
	s.Helper()
	if err := at.Do(func() error { return os.WriteFile("/proc/sys/"+name, []byte(value), 0) }); err != nil {
		s.Fatal(err)
	}
}

// path makes what lies beyond the tree.
func (s *slowness) path(qdiscs ...string) {
	s.Helper()
	tctest.RequireProgram(s, "tc")
	for i, q := range qdiscs {
		at := "root "
		if i > 0 {
			at = ""
		}
		tctest.TC(s, s.Far, strings.Fields("qdisc add dev far1 "+at+q)...)
	}
}

// TestKernelExplain: what the guest with virtual time has no kernel for, and what goes by
// another interface. It asks again where others had this machine's time.
func TestKernelExplain(t *testing.T) {
	s := newSlowness(t)
	policy := strings.Replace(slowPolicy, "[interface.eth0.web]", "ingress = { rate = \"20mbit\" }\n[interface.eth0.web]", 1)
	policy = strings.Replace(policy, "ceil = \"8mbit\"", "ceil = \"8mbit\"\ningress = { ceil = \"8mbit\" }", 1)
	s.ok("apply", s.policy("policy.toml", policy))
	holds := func(cause explain.Cause, words string) {
		t.Helper()
		for again := 2; ; again-- {
			a := s.explained("eth0/slow")
			if a.Cause == cause && strings.Contains(a.Sentence, words) {
				break
			}
			if again == 0 {
				t.Errorf("%q with %q is not %q with %q", a.Cause, a.Sentence, cause, words)
				break
			}
		}
		s.finish()
	}
	s.send("eth0/slow", "fetch", netip.AddrPortFrom(s.Far4, spoutPort).String())
	holds(explain.AtCeiling, "mbit of 8mbit")

	at := netip.AddrFrom4([4]byte{198, 18, 8, 2})
	err := lab.AddVeth(s.Near, lab.Link{Name: "eth1", Addrs: []netip.Prefix{netip.PrefixFrom(at.Prev(), 24)}}, s.Far, lab.Link{Name: "far2", Addrs: []netip.Prefix{netip.PrefixFrom(at, 24)}})
	if err != nil {
		t.Fatal(err)
	}
	s.send("eth0/slow", "pour", netip.AddrPortFrom(at, drainPort).String(), "5000000", "0")
	holds(explain.OtherWay, "does not go through eth0/slow")

	// In a container, whose connections are in its own network namespace.
	inner, port := tctest.NetNS(t), netip.AddrFrom4([4]byte{198, 18, 7, 1})
	err = lab.AddVeth(s.Near, lab.Link{Name: "veth0", Addrs: []netip.Prefix{netip.PrefixFrom(port, 24)}}, inner, lab.Link{Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(port.Next(), 24)}})
	if err == nil {
		err = inner.AddRoute(netip.PrefixFrom(s.Far4, 24).Masked(), port, "eth0")
	}
	if err == nil {
		err = s.Far.AddRoute(netip.PrefixFrom(port, 24).Masked(), s.Near4, s.FarDev)
	}
	if err != nil {
		t.Fatal(err)
	}
	s.sysctl(s.Near, "net/ipv4/ip_forward", "1")
	dir := tctest.Cgroup(t)
	c := tctest.Command(t, "join", dir, ";", "pour", netip.AddrPortFrom(s.Far4, drainPort).String(), "1000000", "0")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	s.senders = append(s.senders, &boundSender{s.startIn(inner, c), in})
	s.until("the container's process", func() bool {
		b, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
		return err == nil && len(b) > 0
	})
	s.ok("bind", "eth0/slow", s.target(dir))
	holds(explain.Program, fmt.Sprintf("[%d] sends", s.senders[0].Process.Pid))
}
