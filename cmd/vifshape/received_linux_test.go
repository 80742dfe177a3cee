package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/google/nftables"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/doctor"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

const bothPolicy = `version = 1
binding = "bpf"
[interface.eth0]
rate = "40mbit"
ingress = "100mbit"
[interface.eth0.web]
rate = "10mbit"
ingress = { rate = "30mbit", ceil = "60mbit" }
qdisc = "pfifo"
[interface.eth0.calls]
rate = "5mbit"
prio = 0
`

// newBoth is a network that shapes both directions, and whose far end sends to whoever
// connects to its port 5700 as much as it takes.
func newBoth(t *testing.T) *network {
	t.Helper()
	tctest.RequireLink(t, "ifb")
	for _, p := range []string{"bash", "head"} {
		tctest.RequireProgram(t, p)
	}
	n := newNetwork(t)
	var l net.Listener
	if err := n.Far.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(n.Far4, 5700).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	t.Cleanup(func() { // of a client that was killed nothing may come any more
		stop()
		l.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer context.AfterFunc(ctx, func() { c.Close() })()
				defer c.Close()
				for b := make([]byte, 64<<10); ; {
					if _, err := c.Write(b); err != nil {
						return
					}
				}
			})
		}
	})
	n.ok("apply", n.policy("both.toml", bothPolicy))
	return n
}

// download is a program of a branch that receives so many bytes.
func (n *network) download(branch string, bytes int) *running {
	n.Helper()
	return n.start(n.command("run", "--level", "tag", branch, "--", "bash", "-c", fmt.Sprintf("exec head -c %d </dev/tcp/%v/5700 >/dev/null", bytes, n.Far4)))
}

type shownBranch struct {
	Path           hierarchy.Path
	Rate, Ceil     hierarchy.Bandwidth
	Sending        uint64 `json:"sending_bps"`
	Bytes, Packets uint64
	Prio           uint8
	Qdisc          *hierarchy.Qdisc
	Ingress        *struct {
		Rate, Ceil     hierarchy.Bandwidth
		Receiving      uint64 `json:"receiving_bps"`
		Bytes, Packets uint64
		Prio           uint8
		Qdisc          *hierarchy.Qdisc
	}
}

// TestKernelShowBoth holds that show has both directions of each branch beside each other,
// as the kernel counts them, for people and for programs.
func TestKernelShowBoth(t *testing.T) {
	n := newBoth(t)
	const size = 2_000_000
	if r := n.download("eth0/web", size).wait(); r.code != 0 {
		t.Fatal(r)
	}
	text := n.ok("show")
	t.Log("\n" + text)
	for _, line := range []string{
		`BRANCH +CLASS +RATE +CEIL +PRIO +SENT/RECEIVED +DROPPED +WAITING +QDISC`,
		`eth0 +71f:1 +40mbit/100mbit +40mbit/100mbit +- +[0-9.]+k?B/2\.[0-9]MB +[0-9]+/[0-9]+ +[0-9.]+k?B/[0-9.]+k?B +-`,
		`  web +71f:[0-9a-f]+ +10mbit/30mbit +40mbit/60mbit +3 +[0-9.]+k?B/2\.[0-9]MB +\S+ +\S+ +pfifo.*/.*[a-z].*`,
		`  calls +71f:[0-9a-f]+ +5mbit/35mbit +40mbit/100mbit +0 +0B/0B +0/0 +0B/0B +[a-z].*`,
		`  eth0: [0-9]+ flows? known, room for 65536.*`,
	} {
		if !regexp.MustCompile(`(?m)^` + line + `$`).MatchString(text) {
			t.Errorf("no line like %s", line)
		}
	}
	var got struct {
		Interfaces []struct {
			Branches []shownBranch
			Flows    struct {
				Known, Room    int
				Noted, Evicted *uint64
			}
		}
	}
	if err := json.Unmarshal([]byte(n.ok("show", "--json")), &got); err != nil || len(got.Interfaces) != 1 {
		t.Fatalf("%v: %+v", err, got)
	}
	if f := got.Interfaces[0].Flows; f.Known == 0 || f.Room < 65536 || f.Noted == nil || *f.Noted < uint64(f.Known) || f.Evicted == nil || *f.Evicted != 0 {
		t.Errorf("flows: %+v", f)
	}
	seen := 0
	for _, b := range got.Interfaces[0].Branches {
		in := b.Ingress
		switch {
		case in == nil:
			t.Errorf("%s has no ingress", b.Path)
		case b.Path == "eth0/web":
			seen++
			if in.Rate != 30*hierarchy.Mbit || in.Ceil != 60*hierarchy.Mbit || in.Prio != 3 || in.Qdisc == nil || b.Qdisc.Kind != "pfifo" || in.Qdisc.Kind == "pfifo" ||
				in.Bytes < size || in.Bytes > size*12/10 || in.Packets == 0 || b.Bytes > size/4 {
				t.Errorf("%+v, ingress %+v", b, *in)
			}
		case b.Path == "eth0/calls":
			seen++
			if in.Bytes != 0 || in.Prio != 0 || in.Qdisc == nil {
				t.Errorf("%+v, ingress %+v", b, *in)
			}
		}
	}
	if seen != 2 {
		t.Errorf("%d of the branches are shown", seen)
	}

	// What comes in just now.
	d := n.download("eth0/web", 1<<40)
	n.until("traffic", func() bool {
		return strings.Contains(n.ok("show", "eth0/web", "--sample", "50ms"), "SENDING/RECEIVING")
	})
	type parsed struct {
		Interfaces []struct{ Branches []shownBranch }
		Branches   []shownBranch // self's
	}
	find := func(text string, path hierarchy.Path) shownBranch {
		t.Helper()
		var all parsed
		if err := json.Unmarshal([]byte(text), &all); err != nil {
			t.Fatal(err)
		}
		for _, i := range all.Interfaces {
			all.Branches = append(all.Branches, i.Branches...)
		}
		i := slices.IndexFunc(all.Branches, func(b shownBranch) bool { return b.Path == path })
		if i < 0 || all.Branches[i].Ingress == nil {
			t.Fatalf("no %s that receives in %s", path, text)
		}
		return all.Branches[i]
	}
	self := []string{"run", "--level", "tag", "eth0/web", "--", n.bin, "self", "--sample", "1s"}
	for _, command := range [][]string{{"show", "--json", "--sample", "1s"}, append(self, "--json")} {
		before := find(n.ok("show", "--json"), "eth0/web")
		text := n.ok(command...)
		after, is := find(n.ok("show", "--json"), "eth0/web"), find(text, "eth0/web")
		sent, received := 8*(after.Bytes-before.Bytes), 8*(after.Ingress.Bytes-before.Ingress.Bytes)
		// A second, of those that the counters are from: no more than these, however late.
		if is.Ingress.Receiving == 0 || is.Ingress.Receiving > received || is.Sending > sent || sent > received/4 {
			t.Errorf("%v: sending %d, receiving %d; %d bits were sent around it, and %d received", command, is.Sending, is.Ingress.Receiving, sent, received)
		}
		if command[0] == "show" && find(text, "eth0/calls").Ingress.Receiving != 0 {
			t.Errorf("calls receives: %s", text)
		}
	}
	words := n.run(self...)
	if err := n.kill(); err != nil {
		t.Error(err)
	}
	d.wait()
	t.Logf("\n%v", words)
	if m := regexp.MustCompile(`(?m)^eth0/web +71f:\S+ +10mbit/30mbit +40mbit/60mbit +3 .*/[0-9.]+[kmg]?bit +.*run \(bpf\)$`); words.code != 0 || !m.MatchString(words.stdout) {
		t.Errorf("self: %v", words)
	}
}

// TestKernelFirewallBypassed: rules that would see no packet any more are no secret.
func TestKernelFirewallBypassed(t *testing.T) {
	for family, hook := range map[nftables.TableFamily]*nftables.ChainHook{
		nftables.TableFamilyNetdev: nftables.ChainHookIngress,
		nftables.TableFamilyINet:   nftables.ChainHookRef(5), // NF_INET_INGRESS
	} {
		n := newBoth(t)
		file, other := filepath.Join(n.dir, "both.toml"), n.policy("other.toml", "version = 1\n[interface.eth0]\nrate = \"40mbit\"\n")
		put := func(table, dev string) {
			t.Helper()
			err := n.Near.Do(func() error {
				c, err := nftables.New()
				if err != nil {
					return err
				}
				tb, drop := c.AddTable(&nftables.Table{Name: table, Family: family}), nftables.ChainPolicyDrop
				c.AddChain(&nftables.Chain{Name: "in", Table: tb, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityFilter, Device: dev, Policy: &drop})
				return c.Flush()
			})
			tctest.Require(t, !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT), "nf_tables with chains at ingress")
			if err != nil {
				t.Fatal(err)
			}
		}
		put("others", "lo")
		n.ok("plan", file)
		put("wall", n.Dev)
		if r := n.download("eth0/web", 1000).wait(); r.code != 0 { // past a wall that drops all
			t.Error(r)
		}
		for _, command := range []string{"plan", "apply"} {
			n.fails(exitError, "wall in), which would see no packet any more: move them to a chain at prerouting, or take ingress out of the policy", command, file)
		}
		d := n.diagnose("--policy", file, n.Dev)
		for _, group := range []string{doctor.GroupInterface, "policy"} {
			if s, text, _, _ := d.find(t, group, "firewall"); s != "missing" || !strings.Contains(text, " wall in") || strings.Contains(text, "others") {
				t.Errorf("%s, firewall: %s: %s", group, s, text)
			}
		}
		n.ok("apply", other)
	}
}

// TestKernelReceivedDropped: what is said to be dropped is.
func TestKernelReceivedDropped(t *testing.T) {
	n := newBoth(t)
	var near, far net.PacketConn
	listen := func(c *net.PacketConn, in *lab.NetNS, at netip.Addr) {
		t.Helper()
		err := in.Do(func() (err error) {
			*c, err = net.ListenPacket("udp", netip.AddrPortFrom(at, 5701).String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { (*c).Close() })
	}
	listen(&near, n.Near, n.Near4)
	listen(&far, n.Far, n.Far4)
	send := func(words string) {
		t.Helper()
		if _, err := far.WriteTo([]byte(words), near.LocalAddr()); err != nil {
			t.Fatal(err)
		}
	}
	gets := func(want string) {
		t.Helper()
		b := make([]byte, 99)
		err := near.SetReadDeadline(time.Now().Add(time.Minute))
		if err != nil {
			t.Fatal(err)
		}
		if k, _, err := near.ReadFrom(b); err != nil || string(b[:k]) != want {
			t.Errorf("received %q, %v; want %q", b[:k], err, want)
		}
	}
	for _, script := range []string{"ip link set vif-eth0 down", "ip link del vif-eth0"} {
		send("before")
		gets("before")
		n.shell(script)
		send("meanwhile")
		n.fails(exitError, "and all that it receives is dropped", "show")
		n.ok("apply", filepath.Join(n.dir, "both.toml"))
	}
	send("after")
	gets("after")
}

// TestKernelAgentLossReceived: what others take away of the receiving side the agent says
// at once, and puts it back with --repair.
func TestKernelAgentLossReceived(t *testing.T) {
	n := newBoth(t)
	file := filepath.Join(n.dir, "both.toml")
	r, err := n.store.Load(n.Dev)
	if err != nil {
		t.Fatal(err)
	}
	web, _, _ := r.IDs.Find("eth0/web")
	take := []struct{ script, lost string }{
		{"ip link del vif-eth0", "the ifb is gone that carries the tree for what it receives, and all that it receives is dropped"},
		{"ip link set vif-eth0 down", "the ifb is down that carries the tree for what it receives, and all that it receives is dropped"},
		{"ip link set vif-eth0 txqueuelen 1000", "its ifb is not as it was made"},
		{"tc qdisc del dev vif-eth0 root", "the tree is gone for what it receives"},
		{"tc class del dev vif-eth0 classid " + web.String(), "of eth0/web is gone for what it receives"},
		{"tc filter del dev eth0 ingress", "the program is gone that puts what it receives into the tree for that, and nothing of it is shaped"},
		{"tc filter del dev eth0 egress pref 2", "the program is gone that notes whose flows it sends, and what it receives goes where it was noted before, or may go to the rest"},
		{"tc filter del dev eth0 egress pref 2; tc filter del dev eth0 ingress; ip link del vif-eth0", "the ifb is gone that carries the tree for what it receives"},
	}
	whole := func() bool {
		n.Helper()
		return n.run("show").code == 0 && n.ok("plan", file) == "eth0: no changes\n"
	}
	a := n.agent()
	said := 0 // of the log, that was looked at
	says := func(words string) {
		t.Helper()
		n.until(fmt.Sprintf("%q in the agent's log", words), func() bool { return strings.Contains(a.said()[said:], words) })
		said = len(a.said())
	}
	for _, x := range take {
		n.shell(x.script)
		says(x.lost)
		n.fails(exitError, x.lost, "show")
		n.ok("apply", file)
		if !whole() {
			t.Errorf("after %s and apply it is not as before", x.script)
		}
		// It is said again when it is lost again.
		if err := a.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		a.told("READY=1")
		said = len(a.said())
	}
	a.end(syscall.SIGTERM)

	a, said = n.agent("--repair"), 0
	for _, x := range take[:3] { // each waits twice as long as the one before it
		n.shell(x.script)
		says("put back what was lost")
		if log := a.said(); !strings.Contains(log, x.lost) {
			t.Errorf("it does not say that %s:\n%s", x.lost, log)
		}
		if !whole() {
			t.Errorf("after %s it was not put back", x.script)
		}
	}
	if r := n.download("eth0/web", 100_000).wait(); r.code != 0 {
		t.Error(r)
	}

	// An interface that goes leaves nothing behind.
	n.shell("ip link del eth0")
	n.until("the ifb to go with its interface", func() bool {
		return !strings.Contains(tctest.Output(n, n.Near, "ip", "link", "show"), "vif-eth0")
	})
	a.end(syscall.SIGTERM)
	n.ok("clear")
}

// TestKernelDoctorPrograms: programs of others that see what arrives before ours are told
// of, by doctor, plan and apply.
func TestKernelDoctorPrograms(t *testing.T) {
	n := newBoth(t)
	file := filepath.Join(n.dir, "both.toml")
	none := n.diagnose("--policy", file, n.Dev)
	for _, f := range none.Findings {
		if f.Topic == "XDP" || f.Topic == "TCX programs" {
			t.Errorf("%s before there is one", f.Topic)
		}
	}
	attach := func(name string, kind ebpf.ProgramType, verdict int32, put func(p *ebpf.Program, index int) (link.Link, error)) bool {
		t.Helper()
		err := n.Near.Do(func() error {
			p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Name: name, Type: kind, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, verdict), asm.Return()}})
			if err != nil {
				return err
			}
			defer p.Close()
			l, err := net.InterfaceByName(n.Dev)
			if err != nil {
				return err
			}
			on, err := put(p, l.Index)
			if err == nil {
				t.Cleanup(func() { on.Close() })
			}
			return err
		})
		if err != nil && !errors.Is(err, ebpf.ErrNotSupported) {
			t.Fatal(err)
		}
		return err == nil
	}
	xdp := attach("first", ebpf.XDP, 2, func(p *ebpf.Program, index int) (link.Link, error) { // XDP_PASS
		return link.AttachXDP(link.XDPOptions{Program: p, Interface: index, Flags: link.XDPGenericMode})
	})
	tcx := attach("second", ebpf.SchedCLS, -1, func(p *ebpf.Program, index int) (link.Link, error) { // TCX_NEXT
		return link.AttachTCX(link.TCXOptions{Program: p, Interface: index, Attach: ebpf.AttachTCXIngress})
	})
	d := n.diagnose("--policy", file, n.Dev)
	for _, group := range []string{doctor.GroupInterface, "policy"} {
		if s, text, _, _ := d.find(t, group, "XDP"); xdp && (s != "weaker" || !strings.Contains(text, "sees what arrives before all others")) {
			t.Errorf("%s, XDP: %s: %s", group, s, text)
		}
		if s, text, _, _ := d.find(t, group, "TCX programs"); tcx && (s != "weaker" || !strings.Contains(text, "at ingress: id ") || !strings.Contains(text, "second")) {
			t.Errorf("%s, TCX: %s: %s", group, s, text)
		}
	}
	for _, command := range []string{"plan", "apply"} {
		r := n.run(command, file)
		if want := "eth0: TCX programs at ingress (id "; tcx && (r.code != 0 || strings.Count(r.stderr, want) != 1 || !strings.Contains(r.stderr, "second")) {
			t.Errorf("%s does not say %q: %v", command, want, r)
		}
	}
	if r := n.run("show"); r.code != 0 || r.stderr != "" {
		t.Errorf("show: %v", r)
	}
	if xdp && !strings.Contains(n.ok("ls", "--json"), `"xdp": true`) {
		t.Error("ls --json does not tell of XDP")
	}
}

// TestKernelFlowsFull: show and doctor say that there were more flows than the table has
// room for.
func TestKernelFlowsFull(t *testing.T) {
	n := newBoth(t)
	const room, flows = 4096, 6000
	n.ok("apply", n.policy("small.toml", strings.Replace(bothPolicy, `ingress = "100mbit"`, fmt.Sprintf(`ingress = { rate = "100mbit", flows = %d }`, room), 1)))
	n.ok("run", "--level", "tag", "eth0/web", "--", "bash", "-c", fmt.Sprintf("for ((i = 1; i <= %d; i++)); do echo >/dev/udp/%v/$i; done", flows, n.Far4))
	var got struct {
		Interfaces []struct {
			Flows struct{ Known, Room, Noted, Evicted int }
		}
	}
	if err := json.Unmarshal([]byte(n.ok("show", "--json")), &got); err != nil || len(got.Interfaces) != 1 {
		t.Fatalf("%v: %+v", err, got)
	}
	if f := got.Interfaces[0].Flows; f.Room != room || f.Known > f.Room || f.Known < f.Room/2 || f.Noted < flows*9/10 || f.Evicted != f.Noted-f.Known {
		t.Errorf("%+v", f)
	}
	if s := n.ok("show"); !strings.Contains(s, "made room for others, and what they are sent goes to the rest until they send again") {
		t.Errorf("show:\n%s", s)
	}
	d := n.diagnose(n.Dev)
	if s, text, _, _ := d.find(t, doctor.GroupInterface, "flows"); s != "weaker" || !strings.Contains(text, "made room for others") {
		t.Errorf("flows: %s: %s", s, text)
	}
	for _, f := range d.Findings {
		if more := fmt.Sprintf("; flows = %d in the ingress of the interface makes room for more", 2*room); f.Topic == "flows" && !strings.HasSuffix(f.Follows, more) {
			t.Errorf("what follows: %s, want %s", f.Follows, more)
		}
	}
}

// TestDelegateReceived: users divide both directions of what is delegated to them,
// and neither further than it goes.
func TestDelegateReceived(t *testing.T) {
	needsPidfd(t)
	tctest.RequireLink(t, "ifb")
	n := newNetwork(t)
	n.public()
	n.ok("apply", n.policy("both.toml", bothPolicy+fmt.Sprintf("delegate = [\"uid:%d\"]\n", alice)))
	n.agent()
	add := []string{"add", "eth0/calls/ci", "--rate", "1mbit", "--ingress"}
	n.failed(n.as(alice, append(add, "36mbit")...).wait(), exitError, "ingress: rate 36mbit is too much")
	if r := n.as(alice, append(add, "20mbit")...).wait(); r.code != 0 {
		t.Fatal(r)
	}
	if s := n.ok("show"); !regexp.MustCompile(`(?m)^    ci +71f:[0-9a-f]+ +1mbit/20mbit +40mbit/100mbit +0 `).MatchString(s) {
		t.Errorf("show:\n%s", s)
	}
	// Users see both directions, and of the table of flows nothing.
	if r := n.as(alice, "show").wait(); r.code != 0 || !strings.Contains(r.stdout, "1mbit/20mbit") || strings.Contains(r.stdout, "known") {
		t.Error(r)
	}
	if r := n.as(alice, "ls").wait(); r.code != 0 || !strings.Contains(r.stdout, "receives for eth0") {
		t.Error(r)
	}
	if r := n.as(alice, "doctor", n.Dev).wait(); !strings.Contains(r.stdout, "received packets") || strings.Contains(r.stdout, "could not be looked at: read the programs") {
		t.Error(r)
	}
	if r := n.as(alice, "remove", "eth0/calls/ci").wait(); r.code != 0 {
		t.Error(r)
	}
}
