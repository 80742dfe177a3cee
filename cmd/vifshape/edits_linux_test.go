package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// shape is the policy that TestKernelEdits edits.
type shape struct {
	line, apps, rate, ceil, rest int // mbit
	prio, quantum, limit         int
	burst                        string
	sibling, other, inner        bool
	bound                        string
}

func (s shape) String() string {
	var b strings.Builder
	p := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	p("version = 1\n[interface.eth0]\nrate = \"%dmbit\"", s.line)
	p("[interface.eth0.apps]\nrate = \"%dmbit\"", s.apps)
	p("[interface.eth0.apps.app]\nrate = \"%dmbit\"\nceil = \"%dmbit\"\nprio = %d\nburst = %q\nquantum = \"%db\"", s.rate, s.ceil, s.prio, s.burst, s.quantum)
	p("qdisc = { kind = \"pfifo\", limit = %d }", s.limit)
	if s.sibling {
		p("[interface.eth0.apps.sibling]\nrate = \"5mbit\"")
	}
	if s.other {
		p("[interface.eth0.other]\nrate = \"20mbit\"")
		if s.bound != "" {
			p("bind = [%q]", s.bound)
		}
		if s.inner {
			p("[interface.eth0.other.one]\nrate = \"5mbit\"\n[interface.eth0.other.two]\nrate = \"5mbit\"")
		}
	}
	p("[interface.eth0.rest]\nrate = \"%dmbit\"", s.rest)
	return b.String()
}

// TestKernelEdits holds that edits of a policy in force lose no packet and let
// none into another class, while a bound sender keeps below its limit.
func TestKernelEdits(t *testing.T) {
	n := newNetwork(t)
	s := shape{line: 200, apps: 80, rate: 60, ceil: 100, rest: 10, prio: 3, quantum: 20000, limit: 5000, burst: "100kb"}
	edits := []struct {
		name string
		edit func(*shape)
	}{
		{"rate", func(s *shape) { s.rate ^= 8 }},
		{"ceil", func(s *shape) { s.ceil ^= 16 }},
		{"prio", func(s *shape) { s.prio ^= 1 }},
		{"burst", func(s *shape) { s.burst = map[string]string{"100kb": "90kb", "90kb": "100kb"}[s.burst] }},
		{"quantum", func(s *shape) { s.quantum ^= 1024 }},
		{"queue limit", func(s *shape) { s.limit ^= 64 }},
		{"rate of the parent", func(s *shape) { s.apps ^= 4 }},
		{"rate of the interface", func(s *shape) { s.line ^= 4 }},
		{"rate of the rest", func(s *shape) { s.rest ^= 1 }},
		{"a sibling comes or goes", func(s *shape) { s.sibling = !s.sibling }},
		{"another branch comes or goes", func(s *shape) { s.other = !s.other }},
		{"another branch becomes inner, or a leaf", func(s *shape) { s.other = true; s.inner = !s.inner }},
		{"a binding comes or goes", func(s *shape) {
			s.other = true
			s.bound = map[string]string{"": "cgroup:" + n.cgroupPath("elsewhere")}[s.bound]
		}},
		{"all at once", func(s *shape) {
			*s = shape{line: 190, apps: 70, rate: 50, ceil: 90, rest: 12, prio: 5, quantum: 30000, limit: 4000, burst: "80kb", sibling: !s.sibling, other: !s.other, inner: !s.inner}
		}},
		{"and back", func(s *shape) {
			*s = shape{line: 200, apps: 80, rate: 60, ceil: 100, rest: 10, prio: 3, quantum: 20000, limit: 5000, burst: "100kb"}
		}},
	}
	n.ok("apply", n.policy("p.toml", s.String()))
	const port = 6000
	sink, err := lab.NewSink(context.WithoutCancel(t.Context()), n.Far, port)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	// 24 mbit/s are 30,000 packets each second, which leave a processor that is
	// emulated no time for the edits.
	rounds, rate := 5, "24000000"
	if vm.Inside() {
		rounds, rate = 1, "2400000"
	}
	sender := n.sender("eth0/apps/app", port, rate)
	n.until("the first packet", func() bool { return sink.Count(port).Packets > 0 })

	for range rounds {
		for _, e := range edits {
			e.edit(&s)
			file := n.policy("p.toml", s.String())
			if r := n.run("plan", "--detailed-exitcode", file); r.code != 2 {
				t.Errorf("%s is no change: %v", e.name, r)
			}
			if r := n.run("apply", file); r.code != 0 || r.stderr != "" {
				t.Errorf("%s: %v", e.name, r)
			}
		}
	}
	sent, got := sender.finish(sink, port)
	t.Logf("%d edits under %d packets: %d arrived, %d of them when the sink was busy", rounds*len(edits), sent.Packets, got.Packets+got.Dropped, got.Dropped)
	if got.Packets+got.Dropped != sent.Packets {
		t.Errorf("%d of %d packets arrived", got.Packets+got.Dropped, sent.Packets)
	}
	record, err := n.store.Load(n.Dev)
	if err != nil {
		t.Fatal(err)
	}
	app, _, _ := record.IDs.Find("eth0/apps/app")
	apps, _, _ := record.IDs.Find("eth0/apps")
	for _, c := range tctest.TCClasses(t, n.Near, n.Dev) {
		want := uint64(0)
		switch c.ID {
		case app.String(), apps.String(), hierarchy.ID(hierarchy.RootMinor).String():
			want = sent.Packets
		}
		if c.Packets != want || c.Dropped != 0 {
			t.Errorf("class %s sent %d packets and dropped %d, not %d and none", c.ID, c.Packets, c.Dropped, want)
		}
	}
	for _, q := range tctest.TCJSON[struct {
		Kind    string
		Options struct {
			Direct uint64 `json:"direct_packets_stat"`
		}
	}](t, n.Near, "qdisc", "show", "dev", n.Dev) {
		if q.Kind == "htb" && q.Options.Direct != 0 {
			t.Errorf("%d packets went past all classes", q.Options.Direct)
		}
	}
}

// boundSender is a sender in a branch.
type boundSender struct {
	*running
	in io.Closer
}

// sender sends packets of 100 bytes on the wire to the far end, from within a
// branch.
func (n *network) sender(path hierarchy.Path, port uint16, rate string) *boundSender {
	n.Helper()
	self, err := os.Executable()
	if err != nil {
		n.Fatal(err)
	}
	c := n.command("run", string(path), "--", self, "stream", netip.AddrPortFrom(n.Far4, port).String(), "58", rate)
	c.Env = append(os.Environ(), tctest.Acting)
	in, err := c.StdinPipe()
	if err != nil {
		n.Fatal(err)
	}
	return &boundSender{n.start(c), in}
}

// finish ends the sender and returns what it sent and what arrived once nothing
// is under way any more.
func (s *boundSender) finish(sink *lab.Sink, port uint16) (sent, got lab.Count) {
	s.n.Helper()
	s.in.Close()
	r := s.wait()
	if err := json.Unmarshal([]byte(r.stdout), &sent); err != nil {
		s.n.Fatalf("sender: %v %v", err, r)
	}
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		got = sink.Count(port)
		if got.Packets+got.Dropped >= sent.Packets || time.Now().After(deadline) {
			return sent, got
		}
	}
}

// TestKernelBoundBranchSplits holds that a branch that turns into an inner one
// and back, with a program in it, loses none of its packets.
func TestKernelBoundBranchSplits(t *testing.T) {
	n := newNetwork(t)
	leaf := n.policy("leaf.toml", "version = 1\n[interface.eth0]\nrate = \"100mbit\"\n[interface.eth0.app]\nrate = \"50mbit\"\n")
	inner := n.policy("inner.toml", "version = 1\n[interface.eth0]\nrate = \"100mbit\"\n[interface.eth0.app]\nrate = \"50mbit\"\n"+
		"[interface.eth0.app.rest]\n[interface.eth0.app.part]\nrate = \"20mbit\"\n")
	n.ok("apply", leaf)
	const port = 6000
	sink, err := lab.NewSink(context.WithoutCancel(t.Context()), n.Far, port)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	sender := n.sender("eth0/app", port, "16000000")
	n.until("the first packet", func() bool { return sink.Count(port).Packets > 0 })
	for range 5 {
		n.ok("apply", inner)
		n.ok("apply", leaf)
	}
	sent, got := sender.finish(sink, port)
	if got.Packets+got.Dropped != sent.Packets {
		t.Errorf("%d of %d packets arrived", got.Packets+got.Dropped, sent.Packets)
	}
	for _, c := range tctest.TCClasses(t, n.Near, n.Dev) {
		if c.ID == hierarchy.ID(hierarchy.RestMinor).String() && c.Packets > 0 {
			t.Errorf("%d of %d packets went to the rest of the interface", c.Packets, sent.Packets)
		}
	}
}

// TestKernelBranchEnds holds that processes that lose their branch do not do so
// in silence, and are back in it when it is.
func TestKernelBranchEnds(t *testing.T) {
	n := newNetwork(t)
	with, without := n.policy("with.toml", smallPolicy), n.policy("without.toml", many(1, "1mbit"))
	n.ok("apply", with)
	n.branch("eth0/web/api", "sleep", "60")
	sleeping := func() bool { return strings.Contains(n.ok("show"), "sleep[") }
	n.until("the program in its branch", sleeping)
	const says = "warning: eth0/web/api: processes that are bound to it (cgroup:"
	for _, command := range []string{"plan", "apply"} {
		if r := n.run(command, without); r.code != 0 || strings.Count(r.stderr, "\n") != 1 || !strings.Contains(r.stderr, says) {
			t.Errorf("%s: %v", command, r)
		}
	}
	if sleeping() {
		t.Error("it is still in its branch")
	}
	if r := n.run("apply", with); r.code != 0 || r.stderr != "" {
		t.Errorf("apply: %v", r)
	}
	if !sleeping() {
		t.Error("it is not in its branch again")
	}
	if r := n.run("clear"); r.code != 0 || !strings.Contains(r.stderr, "eth0/web/api keeps its cgroup: processes live in it") {
		t.Errorf("clear: %v", r)
	}
}

// cgroupPath makes a cgroup of this network and returns its path below the
// mount.
func (n *network) cgroupPath(name string) string {
	n.Helper()
	dir := n.cgroups() + "/" + name
	if err := os.MkdirAll(dir, 0o755); err != nil {
		n.Fatal(err)
	}
	return strings.TrimPrefix(dir, tctest.Cgroup2Mount(n))
}

// TestRunWaits holds that a program which waits for another writer starts in the class
// that its branch has then.
func TestRunWaits(t *testing.T) {
	tctest.RequireRoot(t)
	n := newNetwork(t)
	const times = 6
	text := "version = 1\n[interface.eth0]\nrate = \"100mbit\"\n"
	for i := range times {
		text += fmt.Sprintf("[interface.eth0.w%d]\nrate = \"5mbit\"\n", i)
	}
	n.ok("apply", n.policy("policy.toml", text))
	want := map[string]hierarchy.Path{}
	for i := range times {
		branch := fmt.Sprintf("eth0/w%d", i)
		var unlock func()
		if err := n.Near.Do(func() (err error) {
			unlock, err = n.store.Lock(t.Context(), "test")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		// Which of the two is first is left to them.
		add, run := n.start(n.command("add", branch+"/x", "--rate", "1mbit")), n.start(n.command("run", branch, "--", "true"))
		time.Sleep(200 * time.Millisecond) // for both to come to the lock
		unlock()
		for _, r := range []*running{add, run} {
			if r := r.wait(); r.code != 0 {
				t.Fatalf("%s: %v", branch, r)
			}
		}
		want["cgroup:/vifshape/"+n.store.NetNS+"/"+branch] = hierarchy.Path(branch + "/rest")
	}
	if d := cmp.Diff(want, n.targets()); d != "" {
		t.Errorf("the branches' programs are in (-want +got):\n%s", d)
	}
}

// TestKernelRenamed holds that branches which get other names, also each other's, another
// parent, and all that back, lose no packet of the programs in them and let none into
// another class: the one that a branch has stays the same as long as its parent is.
func TestKernelRenamed(t *testing.T) {
	n := newNetwork(t)
	head := "version = 1\n[interface.eth0]\nrate = \"200mbit\"\n"
	branch := func(path, rate, from string) string {
		s := "[interface.eth0." + strings.ReplaceAll(path, "/", ".") + "]\nrate = \"" + rate + "\"\n"
		if from != "" {
			s += "renamed_from = \"" + from + "\"\n"
		}
		return s
	}
	const slow, fast = "20mbit", "60mbit"
	first := head + branch("a", fast, "") + branch("a/x", slow, "") + branch("b", fast, "") + branch("b/y", slow, "") + branch("c", slow, "")
	edits := []struct {
		name, policy string
		at           []hierarchy.Path // where the programs are then
		moved        bool             // to another class
	}{
		{"leaves", head + branch("a", fast, "") + branch("a/s", slow, "x") + branch("b", fast, "") + branch("b/t", slow, "y") + branch("c", slow, ""),
			[]hierarchy.Path{"eth0/a/s", "eth0/b/t", "eth0/c"}, false},
		{"their parents", head + branch("p", fast, "a") + branch("p/s", slow, "") + branch("q", fast, "b") + branch("q/t", slow, "") + branch("c", slow, ""),
			[]hierarchy.Path{"eth0/p/s", "eth0/q/t", "eth0/c"}, false},
		{"parents change places", head + branch("p", fast, "q") + branch("p/t", slow, "") + branch("q", fast, "p") + branch("q/s", slow, "") + branch("c", slow, ""),
			[]hierarchy.Path{"eth0/q/s", "eth0/p/t", "eth0/c"}, false},
		{"leaves change parents", head + branch("p", fast, "") + branch("p/s", slow, "eth0/q/s") + branch("q", fast, "") + branch("q/t", slow, "eth0/p/t") + branch("c", slow, ""),
			[]hierarchy.Path{"eth0/p/s", "eth0/q/t", "eth0/c"}, true},
		{"to the top and below another", head + branch("p", fast, "") + branch("p/c", slow, "eth0/c") + branch("q", slow, "eth0/q/t") + branch("s", slow, "eth0/p/s"),
			[]hierarchy.Path{"eth0/s", "eth0/q", "eth0/p/c"}, true},
		{"and back", first, []hierarchy.Path{"eth0/a/x", "eth0/b/y", "eth0/c"}, true},
	}
	n.ok("apply", n.policy("first.toml", first))
	const ports = 6000
	branches := []hierarchy.Path{"eth0/a/x", "eth0/b/y", "eth0/c"}
	sink, err := lab.NewSink(context.WithoutCancel(t.Context()), n.Far, ports, ports+1, ports+2)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	rate := "8000000"
	if vm.Inside() {
		rate = "800000"
	}
	var senders []*boundSender
	for i, p := range branches {
		senders = append(senders, n.sender(p, uint16(ports+i), rate))
		n.until("the first packet", func() bool { return sink.Count(uint16(ports+i)).Packets > 0 })
	}
	n.ok("apply", n.policy("first.toml", first)) // which notes where they are
	classes := func() (all []hierarchy.ClassID, at []hierarchy.Path) {
		r, err := n.store.Load(n.Dev)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range r.Bound { // by the cgroups, as the homes are listed
			all, at = append(all, b.Class), append(at, r.IDs.Names(n.Dev)[b.Class])
		}
		return all, at
	}
	was, _ := classes()
	for i, e := range edits {
		file := n.policy("edit.toml", e.policy)
		if i == len(edits)-1 { // only the record knows what that policy's names meant
			n.ok("rollback", "--to", fmt.Sprint(i))
		} else if r := n.run("apply", file); r.code != 0 || r.stderr != "" {
			t.Errorf("%s: %v", e.name, r)
		}
		now, at := classes()
		if d := cmp.Diff(e.at, at); d != "" {
			t.Errorf("%s: the programs are in (-want +got):\n%s", e.name, d)
		}
		if d := cmp.Diff(was, now); e.moved == (d == "") {
			t.Errorf("%s: their classes (-before +after):\n%s", e.name, d)
		}
		if r := n.run("plan", "--detailed-exitcode", file); r.code != 0 {
			t.Errorf("%s: the same again is a change: %v", e.name, r)
		}
		was = now
	}
	all := uint64(0)
	for i, s := range senders {
		sent, got := s.finish(sink, uint16(ports+i))
		if got.Packets+got.Dropped != sent.Packets {
			t.Errorf("%s: %d of %d packets arrived", branches[i], got.Packets+got.Dropped, sent.Packets)
		}
		all += sent.Packets
	}
	for _, c := range tctest.TCClasses(t, n.Near, n.Dev) {
		switch {
		case c.ID == hierarchy.ID(hierarchy.RootMinor).String() && c.Packets != all:
			t.Errorf("%d of %d packets went through the interface's class", c.Packets, all)
		case c.ID == hierarchy.ID(hierarchy.RestMinor).String() && c.Packets > 0:
			t.Errorf("%d packets went to the rest of the interface", c.Packets)
		}
	}
}
