package main

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/tctest"
)

// flow is datagrams of one kind.
type flow struct {
	to   string
	port uint16
	tos  int
	mark int
}

// send sends some datagrams of a flow.
func (n *network) send(f flow) {
	n.Helper()
	err := n.Near.Do(func() error {
		to := netip.MustParseAddr(f.to)
		family, level, option := unix.AF_INET, unix.IPPROTO_IP, unix.IP_TOS
		var sa unix.Sockaddr
		if to.Is4() {
			sa = &unix.SockaddrInet4{Port: int(f.port), Addr: to.As4()}
		} else {
			family, level, option = unix.AF_INET6, unix.IPPROTO_IPV6, unix.IPV6_TCLASS
			sa = &unix.SockaddrInet6{Port: int(f.port), Addr: to.As16()}
		}
		fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.SetsockoptInt(fd, level, option, f.tos); err != nil {
			return err
		}
		if f.mark != 0 {
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_MARK, f.mark); err != nil {
				return err
			}
		}
		for range datagrams {
			if err := unix.Sendto(fd, []byte("vifshape"), 0, sa); err != nil {
				return os.NewSyscallError("sendto", err)
			}
		}
		return nil
	})
	if err != nil {
		n.Fatalf("%+v: %v", f, err)
	}
}

const datagrams = 10

// foreignTree is a tree whose filters stand in an order that is not that of how specific
// they are: the port comes before the prefix, and an inner class has filters of its own.
const foreignTree = `
tc qdisc add dev eth0 root handle 1: htb default 40
tc class add dev eth0 parent 1: classid 1:1 htb rate 100mbit
tc class add dev eth0 parent 1:1 classid 1:10 htb rate 20mbit ceil 100mbit prio 1
tc class add dev eth0 parent 1:1 classid 1:20 htb rate 40mbit ceil 80mbit
tc class add dev eth0 parent 1:20 classid 1:21 htb rate 10mbit ceil 80mbit prio 2
tc class add dev eth0 parent 1:20 classid 1:22 htb rate 30mbit ceil 80mbit prio 2
tc class add dev eth0 parent 1:1 classid 1:30 htb rate 10mbit prio 3
tc class add dev eth0 parent 1:1 classid 1:40 htb rate 30mbit ceil 100mbit prio 3
tc filter add dev eth0 parent 1: protocol ip prio 1 u32 match ip dport 5060 0xffff flowid 1:10
tc filter add dev eth0 parent 1: protocol ip prio 2 u32 match ip dst 10.0.0.0/8 flowid 1:20
tc filter add dev eth0 parent 1: protocol ip prio 3 u32 match ip dst 10.1.0.0/16 flowid 1:30
tc filter add dev eth0 parent 1: protocol ip prio 4 u32 match ip tos 0xb8 0xfc flowid 1:10
tc filter add dev eth0 parent 1: protocol ip prio 5 u32 match ip dst 192.168.0.0/16 flowid 1:30
tc filter add dev eth0 parent 1: protocol ipv6 prio 6 u32 match ip6 dport 5060 0xffff flowid 1:10
tc filter add dev eth0 parent 1:20 protocol ip prio 11 u32 match ip dst 10.1.0.0/16 match ip dport 8000 0xff00 flowid 1:21
tc filter add dev eth0 parent 1:20 protocol ip prio 12 u32 match ip dst 0.0.0.0/0 flowid 1:22
`

// What had a class of somebody else's tree is in the branch that this became, where the
// policy that import makes of the tree is in force.
func TestKernelImport(t *testing.T) {
	n := newNetwork(t)
	for line := range strings.Lines(strings.TrimSpace(foreignTree)) {
		f := strings.Fields(line)
		tctest.TC(t, n.Near, f[1:]...)
	}
	for _, dst := range []string{"10.0.0.0/8", "192.168.0.0/16", "192.0.2.0/24"} {
		if err := n.Near.AddRoute(netip.MustParsePrefix(dst), n.Far4, n.Dev); err != nil {
			t.Fatal(err)
		}
	}
	var flows []flow
	receivers := []string{"10.1.2.3", "10.2.0.1", "192.168.1.1", "192.0.2.1"}
	if n.Far6.IsValid() {
		receivers = append(receivers, n.Far6.String())
	}
	for _, to := range receivers {
		for _, port := range []uint16{5060, 7936, 8000, 9} {
			for _, tos := range []int{0, 0xb8} {
				flows = append(flows, flow{to: to, port: port, tos: tos})
			}
		}
	}
	had := map[flow]string{}
	for _, f := range flows {
		before := leafPackets(n)
		n.send(f)
		for class, packets := range leafPackets(n) {
			if packets >= before[class]+datagrams {
				had[f] += class
			}
		}
	}
	file := n.policy("p.toml", n.ok("import", n.Dev))
	n.ok("check", file)
	if r := n.run("apply", "--binding", "bpf", file); r.code != 0 {
		t.Fatal(r)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	became := branches(string(text))
	seen := map[string]bool{}
	for _, f := range flows {
		in := n.sentIn(func() { n.send(f) })
		if want := became[had[f]]; want == "" || in[want] < datagrams {
			t.Errorf("%+v had class %s, which became %s: %v\n%s", f, had[f], want, in, text)
		}
		seen[had[f]] = true
	}
	if len(seen) != 5 {
		t.Errorf("only classes %v had packets", seen)
	}
	if r := n.run("plan", "--binding", "bpf", "--detailed-exitcode", file); r.code != 0 {
		t.Error(r)
	}
	if r := n.run("clear", n.Dev); r.code != exitPartly {
		t.Error(r)
	}
}

// leafPackets are the packets of the classes that have a queue.
func leafPackets(n *network) map[string]uint64 {
	all := map[string]uint64{}
	for _, c := range tctest.TCClasses(n, n.Near, n.Dev) {
		if c.ID != "1:1" && c.ID != "1:20" {
			all[c.ID] = c.Packets
		}
	}
	return all
}

// branches are those of a policy by the classes that stand above them.
func branches(text string) map[string]hierarchy.Path {
	all := map[string]hierarchy.Path{}
	class := ""
	for line := range strings.Lines(text) {
		if _, err := fmt.Sscanf(line, "# class %s", &class); err == nil {
			continue
		}
		if s, ok := strings.CutPrefix(strings.TrimSpace(line), "[interface."); ok {
			all[class] = hierarchy.Path(strings.ReplaceAll(strings.TrimSuffix(s, "]"), ".", "/"))
		}
	}
	return all
}

// What import made of trees can be put in force, where the kernel has the kinds of queues.
func TestKernelImported(t *testing.T) {
	files, err := filepath.Glob("../internal/adopt/testdata/*.toml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d policies: %v", len(files), err)
	}
	applied := 0
	for _, file := range files {
		n := newNetwork(t)
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		p := n.policy("p.toml", string(text))
		if !hasKinds(t, n.tree(string(text))) {
			continue
		}
		applied++
		if r := n.run("apply", "--binding", "bpf", p); r.code != 0 {
			t.Errorf("%s: %v", file, r)
		}
		if r := n.run("plan", "--binding", "bpf", "--detailed-exitcode", p); r.code != 0 {
			t.Errorf("%s: %v", file, r)
		}
		n.ok("clear")
	}
	if applied < 5 {
		t.Errorf("only %d of %d were applied", applied, len(files))
	}
}

// hasKinds says whether the kernel has the kinds of the queues of a tree, in both directions.
func hasKinds(t *testing.T, tree *hierarchy.Tree) bool {
	t.Helper()
	for _, tree := range []*hierarchy.Tree{tree, tree.Ingress} {
		if tree == nil {
			continue
		}
		for b := range tree.All() {
			if kind := b.Qdisc.Kind; kind != "" && !tctest.HasQdisc(t, kind) {
				return false
			}
		}
	}
	return true
}
