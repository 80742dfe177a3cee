package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// Users who need not be in the user database.
const (
	alice   = 54321
	mallory = 54322
)

const delegatedPolicy = `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.a]
rate = "20mbit"
ceil = "40mbit"
prio = 4
qdisc = { kind = "pfifo", limit = 5000 }
delegate = ["uid:54321"]
[interface.eth0.b]
rate = "20mbit"
delegate = ["uid:54322"]
[interface.eth0.b.part]
rate = "5mbit"
[interface.eth0.b.mine]
rate = "5mbit"
delegate = ["uid:54321"]
`

// newDelegated is a network where delegatedPolicy, in file, is in force and an agent
// runs.
func newDelegated(t *testing.T) (n *network, file string) {
	t.Helper()
	n = newNetwork(t)
	n.public()
	file = n.policy("policy.toml", delegatedPolicy)
	n.ok("apply", file)
	n.agent()
	return n, file
}

// as is a command of another user, with the program that all can start.
func (n *network) as(uid uint32, args ...string) *running {
	n.Helper()
	c := n.command(args...)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return n.start(c)
}

// program is a way to the test's own programs that all users have.
func (n *network) program() string {
	n.Helper()
	link := filepath.Join(n.dir, "program")
	if err := os.Symlink(n.bin, link); err != nil && !errors.Is(err, os.ErrExist) {
		n.Fatal(err)
	}
	return link
}

// classes is what each branch has sent.
func (n *network) sent() map[hierarchy.Path]uint64 {
	n.Helper()
	record, err := n.store.Load(n.Dev)
	if err != nil {
		n.Fatal(err)
	}
	out := map[hierarchy.Path]uint64{}
	n.device(func(d *tc.Device) error {
		all, err := d.Stats()
		for _, c := range all {
			out[record.IDs.Names(n.Dev)[c.Class]] = c.Packets
		}
		return err
	})
	return out
}

// petitionFrom is what the agent answers a user's program that runs in a branch, or with an empty
// path in none.
func (n *network) petitionFrom(path string, uid uint32, request string) (a client.Reply) {
	n.Helper()
	c := n.command("run", path, "--", n.program(), "petition", n.store.AgentSocketFile())
	if path == "" {
		c = exec.Command(n.program(), "petition", n.store.AgentSocketFile())
	}
	c.Env = append(os.Environ(), tctest.Acting, shaper.BranchVariable+"=")
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	c.Stdin = strings.NewReader(request + "\n")
	r := n.start(c).wait()
	if err := json.Unmarshal([]byte(r.stdout), &a); err != nil {
		n.Fatalf("%v: %v", err, r)
	}
	return a
}

// TestKernelDelegate holds that a user starts programs in a branch that is delegated
// to it, that these are held there, and that it divides the branch.
func TestKernelDelegate(t *testing.T) {
	n := newNetwork(t)
	n.public()
	file := n.policy("policy.toml", delegatedPolicy)
	n.ok("apply", file)
	start := []string{"run", "eth0/a", "--", "true"}
	n.failed(n.as(alice, start...).wait(), exitPrivilege, "no agent runs that could do it for user 54321")
	agent := n.agent()

	succeeds := func(uid uint32, args ...string) string {
		t.Helper()
		r := n.as(uid, args...).wait()
		if r.code != 0 || r.stderr != "" && lockable() { // else run says what is not held
			t.Fatalf("%s: %v", args, r)
		}
		return r.stdout
	}
	refused := func(uid uint32, code int, words string, args ...string) {
		t.Helper()
		n.failed(n.as(uid, args...).wait(), code, words)
	}
	if got := succeeds(alice, "run", "eth0/a", "--", "cat", "/proc/self/cgroup"); !strings.Contains(got, "/eth0/a\n") {
		t.Errorf("it runs in %s", got)
	}
	refused(mallory, exitPrivilege, "eth0/a is not delegated to user 54322", start...)
	refused(alice, exitPrivilege, "eth0/b is not delegated to user 54321", "run", "eth0/b", "--", "true")
	refused(alice, exitPrivilege, "only root can start programs as another user", "run", "--user", "0:0", "eth0/a", "--", "true")
	refused(alice, exitNotFound, "no-such-program", "run", "eth0/a", "no-such-program")

	succeeds(alice, "add", "eth0/a/x", "--rate", "5mbit", "--ceil", "10mbit", "--qdisc", "pfifo")
	if got := n.ok("show", "eth0/a"); !strings.Contains(got, "eth0/a: delegated to uid:54321\n") || !strings.Contains(got, "eth0/a/x: added at run time by user 54321\n") {
		t.Errorf("show says\n%s", got)
	}
	refused(mallory, exitPrivilege, "eth0/a/x is not delegated to user 54322", "run", "eth0/a/x", "--", "true")

	// What the user sends is the branch's, to the last packet.
	const port, packets = 6100, 50
	sink, err := lab.NewSink(context.WithoutCancel(t.Context()), n.Far, port)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	before := n.sent()
	c := n.command("run", "eth0/a/x", "--", n.program(), "stream", netip.AddrPortFrom(n.Far4, port).String(), "58", "800000")
	c.Env = append(os.Environ(), tctest.Acting)
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: alice, Gid: alice}}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	sender := &boundSender{n.start(c), in}
	n.until("the packets", func() bool { return sink.Count(port).Packets >= packets })
	count, _ := sender.finish(sink, port)
	after := n.sent()
	if got := after["eth0/a/x"] - before["eth0/a/x"]; got != count.Packets {
		t.Errorf("eth0/a/x sent %d packets of %d", got, count.Packets)
	}

	// From within it goes on down alone, whatever it says of itself.
	refused(alice, exitError, "in branch eth0/a/x", "run", "eth0/a/x", "--", n.bin, "run", "eth0/a", "--", "true")
	within := func(path, request string) client.Reply {
		t.Helper()
		return n.petitionFrom(path, alice, request)
	}
	for _, request := range []string{
		`{"version":1,"op":"enter","path":"eth0/a"}`,
		`{"version":1,"op":"enter","path":"eth0/b/mine"}`,
		`{"version":1,"op":"add","path":"eth0/a/y","rate":"1mbit"}`,
		`{"version":1,"op":"remove","path":"eth0/a/x"}`,
	} {
		if a := within("eth0/a/x", request); a.Code != exitPrivilege || !strings.Contains(a.Error, "process is in branch eth0/a/x") {
			t.Errorf("%s from eth0/a/x: %+v", request, a)
		}
	}
	if a := within("eth0/a", `{"version":1,"op":"enter","path":"eth0/a/x"}`); a.Code != 0 {
		t.Errorf("down to eth0/a/x: %+v", a)
	}
	// The files are root's.
	leave := fmt.Sprintf("for f in $(find %s -name cgroup.procs -o -name tasks); do echo 0 >$f && echo left; done 2>&1; true", n.cgroups())
	if got := succeeds(alice, "run", "eth0/a/x", "--", "sh", "-c", leave); got == "" || strings.Contains(got, "left") {
		t.Errorf("it moved itself, or did not try:\n%s", got)
	}

	sleeper := n.as(alice, "run", "eth0/a/x", "--", "sleep", "60")
	n.until("the program in its branch", func() bool { return strings.Contains(n.ok("show", "eth0/a/x"), "sleep[") })
	refused(alice, exitError, "eth0/a/x: processes live in it", "remove", "eth0/a/x")
	if err := sleeper.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	sleeper.wait()
	refused(mallory, exitPrivilege, "eth0/a is not delegated to user 54322", "remove", "eth0/a/x")
	succeeds(alice, "remove", "eth0/a/x")
	if got := n.ok("plan", file); got != "eth0: no changes\n" {
		t.Errorf("after all that there is to do:\n%s", got)
	}
	n.ok("clear")
	agent.end(syscall.SIGTERM)
	if _, err := os.Stat(n.store.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the agent left its directory: %v", err)
	}
}

// TestDelegateNamespaces holds that namespaces make nobody another user, and hide
// nobody's branch.
func TestDelegateNamespaces(t *testing.T) {
	n, _ := newDelegated(t)
	n.ok("add", "eth0/a/x", "--rate", "5mbit")
	enter := func(uid uint32, path string, command ...string) (client.Reply, result) {
		t.Helper()
		c := exec.CommandContext(t.Context(), command[0], append(command[1:], n.program(), "petition", n.store.AgentSocketFile())...)
		c.Env = append(os.Environ(), tctest.Acting, shaper.BranchVariable+"=")
		c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
		c.Stdin = strings.NewReader(`{"version":1,"op":"enter","path":"` + path + `"}` + "\n")
		r := n.start(c).wait()
		var a client.Reply
		if err := json.Unmarshal([]byte(r.stdout), &a); err != nil {
			t.Errorf("%s: %v: %v", command, err, r)
		}
		return a, r
	}
	for _, x := range []struct {
		name    string
		uid     uint32
		path    string
		command []string
		words   string // empty: it may
	}{
		{"root of its own user namespace", mallory, "eth0/a", []string{"unshare", "-Ur"}, "eth0/a is not delegated to user 54322"},
		{"nobody in its own user namespace", mallory, "eth0/a", []string{"unshare", "-U"}, "eth0/a is not delegated to user 54322"},
		{"itself in its own user namespace", alice, "eth0/a", []string{"unshare", "-Ur"}, ""},
		{"root of its own, from its branch", alice, "eth0/a", []string{n.bin, "run", "--level", "tag", "eth0/a/x", "--", "unshare", "-Ur"}, "process is in branch eth0/a/x"},
		{"cgroup namespace, from its branch", alice, "eth0/a", []string{n.bin, "run", "--level", "tag", "eth0/a/x", "--", "unshare", "-UrC"}, "process is in branch eth0/a/x"},
		{"pid namespace, from its branch", alice, "eth0/a", []string{n.bin, "run", "--level", "tag", "eth0/a/x", "--", "unshare", "-Urpf"}, "process is in branch eth0/a/x"},
		{"another network namespace, from its branch", alice, "eth0/a", []string{n.bin, "run", "--level", "tag", "eth0/a/x", "--", "unshare", "-Urn"}, "process is in branch eth0/a/x"},
		{"locked by root, as alice", 0, "eth0/a", []string{n.bin, "run", "--user", "54321:54321", "eth0/a/x", "--"}, "process is in branch eth0/a/x"},
		{"locked by root, as root", 0, "eth0/b", []string{n.bin, "run", "eth0/a/x", "--"}, "process is in branch eth0/a/x"},
		{"locked by root, as alice, and down", 0, "eth0/a/x", []string{n.bin, "run", "--user", "54321:54321", "eth0/a", "--"}, ""},
	} {
		t.Run(x.name, func(t *testing.T) {
			a, r := enter(x.uid, x.path, x.command...)
			if x.words == "" && a.Code != exitOK || x.words != "" && !strings.Contains(a.Error, x.words) {
				t.Errorf("not %q: %+v %v", x.words, a, r)
			}
		})
	}
	// Root, locked in, has not become one to whom the branch is delegated.
	n.ok("add", "eth0/a/x/roots", "--rate", "1mbit")
	before := n.state()
	for _, request := range []string{
		`{"version":1,"op":"add","path":"eth0/a/x/more","rate":"1mbit"}`,
		`{"version":1,"op":"remove","path":"eth0/a/x/roots"}`,
	} {
		if a := n.petitionFrom("eth0/a/x", 0, request); a.Code != exitPrivilege || !strings.Contains(a.Error, "eth0/a/x is not delegated to user 0") {
			t.Errorf("%s by root, locked in: %+v", request, a)
		}
	}
	if d := cmp.Diff(before, n.state()); d != "" {
		t.Errorf("root, locked in, has changed the tree (-want +got):\n%s", d)
	}
	n.ok("remove", "eth0/a/x/roots")
	// A program that root has locked in goes on down by itself.
	if r := n.run("run", "--user", "54321:54321", "eth0/a", "--", n.bin, "run", "eth0/a/x", "--", n.bin, "self"); r.code != 0 || !strings.Contains(r.stdout, "eth0/a/x ") {
		t.Errorf("down: %v", r)
	}
}

// TestKernelDelegateHeadless: a program whose first thread has ended is in the branch
// that the others are in. The kernel shows the first one nowhere with cgroup v1, and
// where it ended with v2.
func TestKernelDelegateHeadless(t *testing.T) {
	for _, way := range []string{"bpf", "net_cls"} {
		t.Run(way, func(t *testing.T) {
			tctest.RequireRoot(t)
			if way == "bpf" {
				tctest.Cgroup2Mount(t)
			}
			n := newNetwork(t)
			defer n.run("clear") // the homes of net_cls, too
			n.public()
			n.ok("apply", n.policy("policy.toml", "binding = \""+way+"\"\n"+delegatedPolicy))
			n.agent()
			// The agent knows alice's programs outside of all branches, and in one that is
			// attached, which the first thread never was in.
			for _, attached := range []bool{false, true} {
				args := []string{"eth0/a"}
				if attached {
					args = []string{"eth0/b/mine"}
				}
				args = append([]string{"run", "--level", "tag"}, append(args, "--", n.program(), "headless", ";", "pause", ";", "petition", n.store.AgentSocketFile(), ";", "udp", netip.AddrPortFrom(n.Far4, 9).String(), "20")...)
				c := n.command(args...)
				c.Env = append(os.Environ(), tctest.Acting, shaper.BranchVariable+"=")
				c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: alice, Gid: alice}}
				in, err := c.StdinPipe()
				if err != nil {
					t.Fatal(err)
				}
				r := n.start(c)
				n.until("the end of its first thread", func() bool {
					b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.Process.Pid))
					return err == nil && strings.Contains(string(b), ") Z ")
				})
				if attached {
					if a := n.run("attach", "eth0/a", fmt.Sprint(c.Process.Pid)); !strings.Contains(a.stdout, "1 process in eth0/a\n") {
						t.Errorf("attach: %v", a)
					}
				}
				var got result
				sent := n.sentIn(func() {
					_, err := io.WriteString(in, "\n"+`{"version":1,"op":"enter","path":"eth0/b/mine"}`+"\n")
					if err = errors.Join(err, in.Close()); err != nil {
						t.Fatal(err)
					}
					got = r.wait()
				})
				if !strings.Contains(got.stdout, "eth0/b/mine: process is in branch eth0/a, ") {
					t.Errorf("attached %t: %v", attached, got)
				}
				if sent["eth0/a"] != 20 || sent["eth0/b/mine"] != 0 {
					t.Errorf("attached %t: packets a branch %v, want all in eth0/a", attached, sent)
				}
			}
		})
	}
}

// TestKernelDelegateLosesNothing holds that a branch that its user divides, with a
// program in it, loses none of its packets.
func TestKernelDelegateLosesNothing(t *testing.T) {
	n, _ := newDelegated(t)
	const port = 6000
	sink, err := lab.NewSink(context.WithoutCancel(t.Context()), n.Far, port)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	sender := n.sender("eth0/a", port, "2400000")
	n.until("the first packet", func() bool { return sink.Count(port).Packets > 0 })
	rounds := 3
	if vm.Inside() {
		rounds = 1
	}
	for range rounds {
		for _, args := range [][]string{
			{"add", "eth0/a/x", "--rate", "5mbit"},
			{"add", "eth0/a/x/y", "--rate", "2mbit"},
			{"add", "eth0/a/z", "--rate", "5mbit"},
			{"remove", "eth0/a/x/y"},
			{"remove", "eth0/a/x"},
			{"remove", "eth0/a/z"},
		} {
			if r := n.as(alice, args...).wait(); r.code != 0 {
				t.Fatalf("%s: %v", args, r)
			}
		}
	}
	before := n.sent()
	sent, got := sender.finish(sink, port)
	t.Logf("%d changes under %d packets", rounds*6, sent.Packets)
	if got.Packets+got.Dropped != sent.Packets {
		t.Errorf("%d of %d packets arrived", got.Packets+got.Dropped, sent.Packets)
	}
	if before["eth0/rest"] > 0 {
		t.Errorf("%d of %d packets went to the rest of the interface", before["eth0/rest"], sent.Packets)
	}
}

// TestDelegateRates holds that a branch gets no more for being divided, and the others
// no less: its class stays as it is and gives its parts no more than it has, which
// TestVirtualShares shows to be enough.
func TestDelegateRates(t *testing.T) {
	tctest.RequireRoot(t)
	needsPidfd(t)
	n := newNetwork(t)
	n.public()
	n.ok("apply", n.policy("policy.toml", `version = 1
[interface.eth0]
rate = "10mbit"
[interface.eth0.a]
rate = "2mbit"
ceil = "3mbit"
delegate = ["uid:54321"]
[interface.eth0.b]
rate = "2mbit"
ceil = "6mbit"
[interface.eth0.c]
rate = "2mbit"
`))
	n.agent()
	classes := func() map[hierarchy.Path]hierarchy.Class {
		t.Helper()
		record, err := n.store.Load(n.Dev)
		if err != nil {
			t.Fatal(err)
		}
		names := record.IDs.Names(n.Dev)
		all := map[hierarchy.Path]hierarchy.Class{}
		n.device(func(d *tc.Device) error {
			var s hierarchy.State
			err := d.Read(t.Context(), &s)
			for _, c := range s.On(d.Port()).Classes {
				all[names[c.ID]] = c
			}
			return err
		})
		return all
	}
	before := classes()
	for i := range 8 {
		if a := n.petition(t, alice, fmt.Sprintf(`{"version":1,"op":"add","path":"eth0/a/n%d","rate":"200kbit","ceil":"3mbit"}`+"\n", i)); a.Code != exitOK {
			t.Fatal(a)
		}
	}
	after := classes()
	whole := after["eth0/a"]
	for path, was := range before {
		c := after[path]
		if path == "eth0/a" { // an inner one is another class, and has no turns
			c.ID, c.Quantum, c.Prio = was.ID, was.Quantum, was.Prio
		}
		if diff := cmp.Diff(was, c); diff != "" {
			t.Errorf("%s (-before +after):\n%s", path, diff)
		}
	}
	var given hierarchy.Bandwidth
	parts := 0
	for path, c := range after {
		if c.Parent == whole.ID {
			given += c.Rate
			if parts++; c.Ceil > whole.Ceil {
				t.Errorf("%s may have %v of %v", path, c.Ceil, whole.Ceil)
			}
		}
	}
	if parts != 8+1 || given > whole.Rate {
		t.Errorf("%d parts of %v have %v", parts, whole.Rate, given)
	}
}

// TestDelegateTogether holds that a user may start more programs at once than the agent
// takes requests.
func TestDelegateTogether(t *testing.T) {
	n, _ := newDelegated(t)
	unlock, err := n.store.Lock(t.Context(), "test") // the first waits for it, and they for that one
	if err != nil {
		t.Fatal(err)
	}
	var all []*running
	for range 2 * agentPeersOfUser {
		all = append(all, n.as(alice, "run", "eth0/a", "--", "true"))
	}
	time.Sleep(500 * time.Millisecond)
	unlock()
	for _, r := range all {
		if r := r.wait(); r.code != 0 {
			t.Errorf("one of %d: %v", len(all), r)
		}
	}
}

const alone2 = `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.rooted]
rate = "1mbit"
delegate = ["no-such-user"]
`

// How many connections the agent takes at once, of all and of a user.
const agentPeers, agentPeersOfUser = 64, 8
