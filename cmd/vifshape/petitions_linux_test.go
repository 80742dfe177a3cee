package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// asUser runs f on a thread that is another user's to the agent; it has to connect
// there itself.
func asUser(t *testing.T, uid uint32, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // it goes with the goroutine: never unlocked
		_, _, e := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0))
		if e != 0 {
			done <- e
			return
		}
		f()
		done <- nil
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// dial connects to the agent as a user.
func (n *network) dial(t *testing.T, uid uint32) (c net.Conn) {
	t.Helper()
	var err error
	asUser(t, uid, func() { c, err = net.Dial("unix", n.store.AgentSocketFile()) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// petition is what the agent answers a user.
func (n *network) petition(t *testing.T, uid uint32, request string) (a client.Reply) {
	t.Helper()
	c := n.dial(t, uid)
	defer c.Close()
	// It may have answered before all was sent.
	_, _ = io.WriteString(c, request)
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	b, err := bufio.NewReader(c).ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(b, &a)
	}
	if err != nil {
		t.Errorf("%.80q: no answer: %v", request, err)
	}
	return a
}

// needsPidfd says that the kernel must know which process a thread of another user
// belongs to.
func needsPidfd(t *testing.T) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	fd, err := unix.GetsockoptInt(fds[0], unix.SOL_SOCKET, unix.SO_PEERPIDFD)
	if err == nil {
		unix.Close(fd)
	}
	tctest.Require(t, err == nil, "SO_PEERPIDFD: Linux 6.5")
}

// TestDelegateLimits holds that nobody gets more than is delegated, and that what is
// refused changes nothing.
func TestDelegateLimits(t *testing.T) {
	needsPidfd(t)
	n, _ := newDelegated(t)
	n.ok("add", "eth0/a/roots", "--rate", "1mbit")
	add := func(rest string) string { return `{"version":1,"op":"add",` + rest + "}\n" }
	record := func() string {
		b, err := os.ReadFile(n.store.File(n.Dev))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	state, text := n.state(), record()
	for _, x := range []struct {
		name    string
		uid     uint32
		request string
		code    int
		words   string
	}{
		{"ingress that the interface has not", alice, add(`"path":"eth0/a/x","ingress":"1mbit"`), exitError, "ingress is written here, but not for eth0 as a whole"},
		{"rate above the branch's", alice, add(`"path":"eth0/a/x","rate":"21mbit"`), exitError, "rate 21mbit is too much: the branches of eth0/a add up to 22mbit, which is 2mbit more than its rate 20mbit"},
		{"rates that leave nothing to the rest", alice, add(`"path":"eth0/a/x","rate":"19mbit"`), exitError, "leaves 0bit for eth0/a/rest; it needs at least 200kbit"},
		{"percentage above all", alice, add(`"path":"eth0/a/x","rate":"101%"`), exitUsage, "is not between 0.001% and 100%"},
		{"rate of more than there is", alice, add(`"path":"eth0/a/x","rate":"99999999tbit"`), exitUsage, ""},
		{"negative rate", alice, add(`"path":"eth0/a/x","rate":"-1mbit"`), exitUsage, ""},
		{"ceil above the branch's", alice, add(`"path":"eth0/a/x","rate":"1mbit","ceil":"41mbit"`), exitError, "ceil 41mbit is above the ceil 40mbit of eth0/a"},
		{"ceil below rate", alice, add(`"path":"eth0/a/x","rate":"5mbit","ceil":"1mbit"`), exitError, "ceil 1mbit is below rate 5mbit"},
		{"prio before the branch's", alice, add(`"path":"eth0/a/x","rate":"1mbit","prio":3`), exitError, "prio 3 comes before the prio 4 of eth0/a: write 4 or more"},
		{"prio that there is not", alice, add(`"path":"eth0/a/x","rate":"1mbit","prio":8`), exitError, "prio 8 is not between"},
		{"prio that overflows", alice, add(`"path":"eth0/a/x","rate":"1mbit","prio":256`), exitUsage, ""},
		{"slow branch with a frame in each turn", alice, add(`"path":"eth0/a/x","rate":"8bit"`), exitError, "rate 8bit is below 32kbit, which is the least for a branch that users add"},
		{"burst", alice, add(`"path":"eth0/a/x","rate":"1mbit","burst":"100mb"`), exitUsage, "burst"},
		{"quantum", alice, add(`"path":"eth0/a/x","rate":"1mbit","quantum":"100mb"`), exitUsage, "quantum"},
		{"queue with parameters", alice, add(`"path":"eth0/a/x","rate":"1mbit","qdisc":{"kind":"pfifo","limit":4000000}`), exitUsage, "qdisc"},
		{"queue that is no leaf", alice, add(`"path":"eth0/a/x","rate":"1mbit","qdisc":"htb"`), exitError, "htb"},
		{"queue that there is not", alice, add(`"path":"eth0/a/x","rate":"1mbit","qdisc":"../x"`), exitError, "is not known"},
		{"delegation of its own", alice, add(`"path":"eth0/a/x","rate":"1mbit","delegate":["uid:54322"]`), exitUsage, "delegate"},
		{"binding of its own", alice, add(`"path":"eth0/a/x","rate":"1mbit","bind":["user:0"]`), exitUsage, "bind"},
		{"by another", alice, add(`"path":"eth0/a/x","rate":"1mbit","by":0`), exitUsage, "by"},
		{"beside its branch", alice, add(`"path":"eth0/x","rate":"1mbit"`), exitPrivilege, "eth0 is not delegated to user 54321"},
		{"in another's branch", alice, add(`"path":"eth0/b/x","rate":"1mbit"`), exitPrivilege, "eth0/b is not delegated to user 54321"},
		{"in another's branch below", alice, add(`"path":"eth0/b/part/x","rate":"1mbit"`), exitPrivilege, "eth0/b/part is not delegated to user 54321"},
		{"by a stranger", mallory + 1, add(`"path":"eth0/a/x","rate":"1mbit"`), exitPrivilege, "no branch is delegated to user 54323"},
		{"by the overflow user", bind.OverflowUID, add(`"path":"eth0/a/x","rate":"1mbit"`), exitPrivilege, "no branch is delegated to user 65534"},
		{"up", alice, add(`"path":"eth0/a/../x","rate":"1mbit"`), exitUsage, "is no branch"},
		{"a dot", alice, add(`"path":"eth0/a/.","rate":"1mbit"`), exitUsage, "is no branch"},
		{"an empty name", alice, add(`"path":"eth0/a//x","rate":"1mbit"`), exitUsage, "is no branch"},
		{"no name", alice, add(`"path":"eth0/a/","rate":"1mbit"`), exitUsage, "is no branch"},
		{"a NUL", alice, add(`"path":"eth0/a/x\u0000","rate":"1mbit"`), exitUsage, "is no branch"},
		{"a line end", alice, add(`"path":"eth0/a/x\n","rate":"1mbit"`), exitUsage, "is no branch"},
		{"a control file", alice, add(`"path":"eth0/a/cgroup.procs","rate":"1mbit"`), exitUsage, "is no branch"},
		{"a key of the policy", alice, add(`"path":"eth0/a/rate","rate":"1mbit"`), exitUsage, "is no branch"},
		{"a long name", alice, add(`"path":"eth0/a/` + strings.Repeat("x", 65) + `","rate":"1mbit"`), exitUsage, "is no branch"},
		{"many levels", alice, add(`"path":"eth0/a/1/2/3/4/5/6/7/8/9","rate":"1mbit"`), exitUsage, "is no branch"},
		{"a rest", alice, add(`"path":"eth0/a/rest","rate":"1mbit"`), exitError, "the rest comes by itself"},
		{"below the rest", alice, add(`"path":"eth0/a/rest/x","rate":"1mbit"`), exitError, "the rest stays a leaf"},
		{"one that is there", alice, add(`"path":"eth0/a/roots","rate":"1mbit"`), exitError, "eth0/a/roots is there already"},
		{"below one that is not there", alice, add(`"path":"eth0/a/no/x","rate":"1mbit"`), exitError, "there is no branch eth0/a/no"},
		{"an interface that is not there", alice, add(`"path":"eth9/a/x","rate":"1mbit"`), exitError, "eth9"},
		{"an interface as a file", alice, add(`"path":"../a/x","rate":"1mbit"`), exitUsage, "is no branch"},
		{"take root's away", alice, `{"version":1,"op":"remove","path":"eth0/a/roots"}` + "\n", exitPrivilege, "eth0/a/roots was added by root"},
		{"take the policy's away", mallory, `{"version":1,"op":"remove","path":"eth0/b/part"}` + "\n", exitError, "eth0/b/part was not added, it is the policy's"},
		{"take the branch itself away", alice, `{"version":1,"op":"remove","path":"eth0/a"}` + "\n", exitPrivilege, "eth0 is not delegated"},
		{"take another's away", mallory, `{"version":1,"op":"remove","path":"eth0/a/roots"}` + "\n", exitPrivilege, "eth0/a is not delegated"},
		{"enter an interface", alice, `{"version":1,"op":"enter","path":"eth0"}` + "\n", exitUsage, "is no branch"},
		{"enter the rest", alice, `{"version":1,"op":"enter","path":"eth0/rest"}` + "\n", exitPrivilege, "eth0/rest is not delegated"},
		{"enter another's", alice, `{"version":1,"op":"enter","path":"eth0/b"}` + "\n", exitPrivilege, "eth0/b is not delegated"},
		{"another operation", alice, `{"version":1,"op":"apply","path":"eth0/a"}` + "\n", exitUsage, `the agent knows no "apply"`},
		{"another version", alice, `{"version":2,"op":"add","path":"eth0/a/x"}` + "\n", exitUsage, "the request is of version 2, and this agent has 1"},
		{"another version's keys", alice, `{"version":2,"what":"add"}` + "\n", exitUsage, "the request is of version 2, and this agent has 1"},
	} {
		t.Run(x.name, func(t *testing.T) {
			a := n.petition(t, x.uid, x.request)
			t.Logf("%d %s %v", a.Code, a.Error, a.Hints)
			if a.Code != x.code || !strings.Contains(a.Error, x.words) {
				t.Errorf("not exit status %d with %q: %+v", x.code, x.words, a)
			}
			if d := cmp.Diff(text, record()); d != "" {
				t.Fatalf("the record is another one (-want +got):\n%s", d)
			}
		})
	}
	if d := cmp.Diff(state, n.state()); d != "" {
		t.Errorf("the tree is another one (-want +got):\n%s", d)
	}
}

// TestDelegateMany holds that the number of branches that users add is bounded, and
// that of several who want the same rate one gets it.
func TestDelegateMany(t *testing.T) {
	needsPidfd(t)
	n, _ := newDelegated(t)
	var mu sync.Mutex
	var work sync.WaitGroup
	codes := map[int]int{}
	for i := range 6 {
		work.Go(func() {
			a := n.petition(t, alice, fmt.Sprintf(`{"version":1,"op":"add","path":"eth0/a/race%d","rate":"8mbit"}`+"\n", i))
			mu.Lock()
			defer mu.Unlock()
			codes[a.Code]++
		})
	}
	// A policy is applied meanwhile: it comes first or last, and loses nothing.
	n.ok("apply", filepath.Join(n.dir, "policy.toml"))
	work.Wait()
	if d := cmp.Diff(map[int]int{exitOK: 2, exitError: 4}, codes); d != "" {
		t.Errorf("six who want 8mbit each of 20mbit (-want +got):\n%s", d)
	}
	record, err := n.store.Load(n.Dev)
	if err != nil {
		t.Fatal(err)
	}
	names, won := record.IDs.Names(n.Dev), ""
	for _, c := range n.sending().Classes {
		if path := string(names[c.ID]); strings.HasPrefix(path, "eth0/a/race") {
			if won = path; c.Rate != 8*hierarchy.Mbit {
				t.Errorf("%s has %v", path, c.Rate)
			}
		}
	}
	// Others' branches do not count.
	for i := 2; i < amend.Most; i++ {
		if a := n.petition(t, alice, fmt.Sprintf(`{"version":1,"op":"add","path":"eth0/a/n%d","rate":"32kbit"}`+"\n", i)); a.Code != exitOK {
			t.Fatalf("branch %d: %+v", i, a)
		}
	}
	full := n.petition(t, alice, `{"version":1,"op":"add","path":"eth0/a/more","rate":"32kbit"}`+"\n")
	if full.Code != exitError || !strings.Contains(full.Error, "eth0/a has 64 branches that were added, and that is the most") {
		t.Errorf("one more: %+v", full)
	}
	// Nor are there more to have from within one of them.
	full = n.petitionFrom(won, alice, `{"version":1,"op":"add","path":"`+won+`/more","rate":"1mbit"}`)
	if full.Code != exitError || !strings.Contains(full.Error, "eth0/a has 64 branches that were added, and that is the most") {
		t.Errorf("one more, from within %s: %+v", won, full)
	}
	for _, path := range []string{"eth0/b/x", "eth0/b/mine/x"} {
		if a := n.petition(t, mallory, `{"version":1,"op":"add","path":"`+path+`","rate":"1mbit"}`+"\n"); a.Code != exitOK {
			t.Errorf("another user's %s: %+v", path, a)
		}
	}
	// A writer that takes its time: they wait, and are told.
	err = n.Near.Do(func() error {
		unlock, err := n.store.Lock(t.Context(), "test")
		if err != nil {
			return err
		}
		go func() {
			time.Sleep(time.Second)
			unlock()
		}()
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if a := n.petition(t, mallory, `{"version":1,"op":"remove","path":"eth0/b/x"}`+"\n"); a.Code != exitOK {
		t.Errorf("while another one writes: %+v", a)
	}
	n.ok("clear")
}

// TestDelegateHammer holds that users who ask without end keep nobody else out.
func TestDelegateHammer(t *testing.T) {
	needsPidfd(t)
	n, file := newDelegated(t)
	ctx, stop := context.WithCancel(t.Context())
	var work sync.WaitGroup
	var done atomic.Int32
	for i := range agentPeersOfUser {
		work.Go(func() {
			for op := "add"; ctx.Err() == nil; done.Add(1) {
				if a := n.petition(t, alice, fmt.Sprintf(`{"version":1,"op":%q,"path":"eth0/a/h%d"}`+"\n", op, i)); a.Code == exitOK && op == "add" {
					op = "remove"
				} else if a.Code == exitOK {
					op = "add"
				}
			}
		})
	}
	const times = 10
	for range times {
		from, before := time.Now(), done.Load()
		n.ok("apply", file) // it waits for 10 s at most
		t.Logf("apply took %v; %d requests meanwhile", time.Since(from), done.Load()-before)
	}
	if a := n.petition(t, mallory, `{"version":1,"op":"add","path":"eth0/b/x","rate":"1mbit"}`+"\n"); a.Code != exitOK {
		t.Errorf("another user: %+v", a)
	}
	stop()
	work.Wait()
}

// TestDelegateApply holds what becomes of added branches with the next policy.
func TestDelegateApply(t *testing.T) {
	needsPidfd(t)
	n, file := newDelegated(t)
	for _, branch := range []string{`"eth0/a/x","rate":"5mbit"`, `"eth0/a/x/y","rate":"2mbit"`} {
		if a := n.petition(t, alice, `{"version":1,"op":"add","path":`+branch+"}\n"); a.Code != exitOK {
			t.Fatalf("%s: %+v", branch, a)
		}
	}
	n.ok("add", "eth0/rooted", "--rate", "10%", "--ceil", "50%", "--prio", "1")
	has := func(want ...string) {
		t.Helper()
		got := n.ok("show", "--json")
		for _, w := range want {
			path, not := strings.CutPrefix(w, "!")
			if strings.Contains(got, `"path": "`+path+`"`) == not {
				t.Errorf("%s: not so:\n%s", w, n.ok("show"))
			}
		}
	}
	says := func(args []string, words ...string) {
		t.Helper()
		r := n.run(args...)
		for _, w := range words {
			if r.code != 0 || !strings.Contains(r.stderr+r.stdout, w) {
				t.Errorf("%s: not %q: %v", args, w, r)
			}
		}
	}
	says([]string{"plan", file}, "eth0: no changes\n", "eth0/a/x, which was added at run time, stays", "eth0/rooted, which was added at run time, stays")
	if r := n.run("apply", file); r.code != 0 || r.stdout+r.stderr != "" {
		t.Errorf("apply: %v", r)
	}
	has("eth0/a/x/y", "eth0/a/rest", "eth0/rooted")

	small := n.policy("small.toml", strings.Replace(delegatedPolicy, `rate = "20mbit"`, `rate = "4mbit"`, 1))
	before := n.state()
	for _, command := range []string{"plan", "apply"} {
		r := n.run(command, small)
		n.failed(r, exitError, "eth0/a/x, which was added at run time, does not fit into this policy: eth0/a/x: rate 5mbit is too much")
		if !strings.Contains(r.stderr, "`vifshape remove eth0/a/x` takes it away") {
			t.Errorf("no way on: %v", r)
		}
	}
	if d := cmp.Diff(before, n.state()); d != "" {
		t.Errorf("the tree is another one (-want +got):\n%s", d)
	}
	n.fails(exitError, "remove eth0/a/x/y first", "remove", "eth0/a/x")
	n.ok("remove", "eth0/a/x/y")
	n.ok("remove", "eth0/a/x")
	n.ok("apply", small)
	n.ok("apply", file)
	n.ok("add", "eth0/a/again", "--rate", "1mbit")
	if a := n.petition(t, alice, `{"version":1,"op":"add","path":"eth0/a/x","rate":"5mbit"}`+"\n"); a.Code != exitOK {
		t.Fatal(a)
	}
	n.ok("bind", "eth0/a/again", "user:54399")
	n.fails(exitError, "eth0/a/again: user:54399 is bound to it: `vifshape unbind eth0/a/again user:54399` takes it from there", "remove", "eth0/a/again")
	n.ok("unbind", "eth0/a/again", "user:54399")
	// Withdrawn: the user's go, root's stay.
	alone := n.policy("alone.toml", strings.Replace(delegatedPolicy, `delegate = ["uid:54321"]`, "", 1))
	words := "warning: eth0/a/x, which was added at run time, goes: eth0/a is delegated to nobody any more"
	says([]string{"plan", alone}, words, "eth0/a is delegated to nobody any more")
	says([]string{"apply", alone}, words)
	has("!eth0/a/x", "eth0/a/again", "eth0/rooted")
	// The policy's own name, and a branch that goes.
	says([]string{"apply", n.policy("own.toml", alone2)}, "eth0/rooted, which was added at run time, goes: the policy has a branch of that name",
		"eth0/a/again, which was added at run time, goes: there is no eth0/a any more", "eth0/rooted is delegated to no-such-user, who is no user of this machine")
	n.ok("clear")
	n.ok("apply", file)
	has("!eth0/a/again", "!eth0/rooted")
}

// TestDelegateMessages holds that no message, and no number of them, is more than the
// agent can take.
func TestDelegateMessages(t *testing.T) {
	tctest.RequireRoot(t)
	needsPidfd(t)
	n := newNetwork(t)
	n.public()
	const users = 20
	var many []string
	for i := range users {
		many = append(many, fmt.Sprintf("%q", fmt.Sprintf("uid:%d", 60000+i)))
	}
	n.ok("apply", n.policy("policy.toml", strings.Replace(delegatedPolicy, `"uid:54321"`, `"uid:54321", `+strings.Join(many, ", "), 1)))
	agent := n.agent()
	add := `{"version":1,"op":"add","path":"eth0/a/x","rate":"1mbit"`
	for _, x := range []struct{ name, request, words string }{
		{"empty line", "\n", "a request is an object of JSON"},
		{"no JSON", "GET / HTTP/1.1\r\n", "a request is an object of JSON"},
		{"binary", "\x00\xff\xfe\x01\n", "a request is an object of JSON"},
		{"a list", "[]\n", "a request is an object of JSON"},
		{"null", "null\n", "version 0"},
		{"two in a line", add + "}" + add + "}\n", "a request is one object of JSON"},
		{"half of one", add + "\n", "a request is an object of JSON"},
		{"deep", strings.Repeat("[", 60000) + "\n", "a request is an object of JSON"},
		{"huge", add + `,"qdisc":"` + strings.Repeat("x", client.MaxMessage) + `"}` + "\n", "a request has 65536 bytes at most"},
		{"endless", strings.Repeat("x", 4*client.MaxMessage), "a request has 65536 bytes at most"},
	} {
		t.Run(x.name, func(t *testing.T) {
			if a := n.petition(t, alice, x.request); a.Code != exitUsage || !strings.Contains(a.Error, x.words) {
				t.Errorf("not %q: %+v", x.words, a)
			}
		})
	}
	// One that is not finished costs a connection for a while, and others are served.
	descriptors := func() int {
		ents, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", agent.Process.Pid))
		if err != nil {
			t.Fatal(err)
		}
		return len(ents)
	}
	before := descriptors()
	var all []net.Conn
	defer func() {
		for _, c := range all {
			c.Close()
		}
	}()
	for user := range uint32(users) {
		for range agentPeersOfUser + 2 {
			c := n.dial(t, 60000+user)
			all = append(all, c)
			_, _ = io.WriteString(c, add) // some are refused already
		}
	}
	busy, slow := 0, 0
	most := 0
	for i, c := range all {
		most = max(most, descriptors())
		var a client.Reply
		if err := errors.Join(c.SetReadDeadline(time.Now().Add(time.Minute)), json.NewDecoder(c).Decode(&a)); err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		switch {
		case a.Code == exitLocked && strings.Contains(a.Error, "more requests than it can take"):
			busy++
		case a.Code == exitUsage && strings.Contains(a.Error, "no request came within 5s"):
			slow++
		default:
			t.Errorf("connection %d: %+v", i, a)
		}
	}
	if slow != agentPeers || busy != len(all)-agentPeers {
		t.Errorf("of %d connections %d were served and %d refused, not %d", len(all), slow, busy, agentPeers)
	}
	if most > before+2*agentPeers+8 {
		t.Errorf("the agent had %d descriptors open, after %d", most, before)
	}
	n.until("the descriptors of those to be closed", func() bool { return descriptors() <= before+2 })
	if a := n.petition(t, alice, add+"}\n"); a.Code != exitOK {
		t.Errorf("after all that: %+v", a)
	}
}
