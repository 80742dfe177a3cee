package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

const downloadPolicy = `version = 1
[interface.eth0]
rate = "100mbit"
ingress = "100mbit"
[interface.eth0.web]
ingress = { rate = "10mbit", ceil = "40mbit" }
[interface.eth0.streams]
ceil = "30mbit"
ingress = { ceil = "30mbit" }
[interface.eth0.datagrams]
ingress = { rate = "5mbit", ceil = "10mbit" }
[interface.eth0.copies]
[interface.eth0.containers]
[interface.eth0.containers.routed]
bind = ["link:veth1"]
[interface.eth0.containers.bridged]
bind = ["link:veth2"]
`

// newDownloads is a network that shapes both directions, with nginx at its far end.
func newDownloads(t *testing.T) *network {
	t.Helper()
	tctest.RequireLink(t, "ifb")
	for _, p := range []string{"nginx", "curl", "iperf3"} {
		tctest.RequireProgram(t, p)
	}
	n := newNetwork(t)
	tctest.Require(t, n.Near6.IsValid(), "IPv6")
	n.nginx("", 8080)
	return n
}

// passed are the packets of each leaf in both directions while f runs.
func (n *network) passed(f func()) (sent, received map[hierarchy.Path]uint64) {
	n.Helper()
	sent, received = map[hierarchy.Path]uint64{}, map[hierarchy.Path]uint64{}
	before := n.shown()
	f()
	for p, b := range n.shown() {
		if c := b.Packets - before[p].Packets; c > 0 {
			sent[p] = c
		}
		if c := b.Ingress.Packets - before[p].Ingress.Packets; c > 0 {
			received[p] = c
		}
	}
	return sent, received
}

// shown are the leaves as show has them.
func (n *network) shown() map[hierarchy.Path]shownBranch {
	n.Helper()
	var got struct {
		Interfaces []struct{ Branches []shownBranch }
	}
	if err := json.Unmarshal([]byte(n.ok("show", "--json")), &got); err != nil || len(got.Interfaces) != 1 {
		n.Fatalf("%v: %+v", err, got)
	}
	leaves := map[hierarchy.Path]shownBranch{}
	for _, b := range got.Interfaces[0].Branches {
		if b.Ingress == nil {
			n.Fatalf("%s has no ingress", b.Path)
		}
		if b.Qdisc != nil {
			leaves[b.Path] = b
		}
	}
	return leaves
}

// TestKernelRealDownloads: every packet of programs that nobody here wrote is in the class of
// their branch, on the way out and on the way in.
func TestKernelRealDownloads(t *testing.T) {
	n := newDownloads(t)
	routed, bridged := n.behind("veth1"), n.onBridge("veth2")
	n.ok("apply", n.policy("downloads.toml", downloadPolicy))
	fetch := func(host string) []string {
		return []string{"curl", "--silent", "--show-error", "--fail", "--range", "0-1999999", "--output", os.DevNull, "http://" + host + ":8080/random"}
	}
	v4, v6 := n.Far4.String(), "["+n.Far6.String()+"]"
	// in runs a program in a branch, inside one in a container.
	in := func(branch hierarchy.Path, args ...string) {
		t.Helper()
		if r := n.branch(branch, args...).wait(); r.code != 0 {
			t.Errorf("%s: %v", args, r)
		}
	}
	inside := func(ns *lab.NetNS, args ...string) {
		t.Helper()
		if r := n.startIn(ns, exec.CommandContext(t.Context(), args[0], args[1:]...)).wait(); r.code != 0 {
			t.Errorf("%s: %v", args, r)
		}
	}
	port := 5210
	// iperf runs a client in a branch against a server at the far end.
	iperf := func(branch hierarchy.Path, args ...string) {
		t.Helper()
		port++
		server := n.iperfServer(n.Far, "", port)
		in(branch, append([]string{"iperf3", "-c", v4, "-p", fmt.Sprint(port)}, args...)...)
		server.wait()
	}
	// serve runs a server in a branch against a client at the far end.
	serve := func(branch hierarchy.Path, args ...string) {
		t.Helper()
		port++
		server := n.iperfServer(n.Near, branch, port)
		if r := n.far(append([]string{"iperf3", "-c", n.Near4.String(), "-p", fmt.Sprint(port)}, args...)...).wait(); r.code != 0 {
			t.Errorf("%s: %v", args, r)
		}
		server.wait()
	}
	masqueraded := func(ns *lab.NetNS) func() {
		return func() {
			tctest.Require(t, n.masquerade() == nil, "masquerade of nf_tables")
			inside(ns, fetch(v4)...)
		}
	}
	const web, streams, datagrams = "eth0/web", "eth0/streams", "eth0/datagrams"
	const toRouted, toBridged = "eth0/containers/routed", "eth0/containers/bridged"
	for _, tt := range []struct {
		name           string
		branch         hierarchy.Path
		run            func()
		sent, received uint64 // at least
	}{
		{"curl", web, func() { in(web, fetch(v4)...) }, 20, 1300},
		{"curl of IPv6", web, func() { in(web, fetch(v6)...) }, 20, 1300},
		{"curl at level tag", web, func() {
			if r := n.run(append([]string{"run", "--level", "tag", web, "--"}, fetch(v4)...)...); r.code != 0 {
				t.Error(r)
			}
		}, 20, 1300},
		{"iperf3", streams, func() { iperf(streams, "-n", "2M") }, 500, 20},
		{"iperf3 -R", streams, func() { iperf(streams, "-R", "-n", "2M") }, 20, 500},
		{"iperf3 -u", datagrams, func() { iperf(datagrams, "-u", "-l", "1200", "-b", "8M", "-n", "1M") }, 500, 1},
		{"iperf3 -u -R", datagrams, func() { iperf(datagrams, "-u", "-R", "-l", "1200", "-b", "8M", "-n", "1M") }, 1, 500},
		{"scp", "eth0/copies", func() { n.scp("eth0/copies") }, 20, 1300},
		{"server", streams, func() { serve(streams, "-n", "2M") }, 20, 500},
		{"server that sends", streams, func() { serve(streams, "-R", "-n", "2M") }, 500, 20},
		{"container, routed", toRouted, func() { inside(routed, fetch(v4)...) }, 20, 1300},
		{"container, by a bridge", toBridged, func() { inside(bridged, fetch(v4)...) }, 20, 1300},
		{"container, routed and masqueraded", toRouted, masqueraded(routed), 20, 1300},
		{"container, by a bridge and masqueraded", toBridged, masqueraded(bridged), 20, 1300},
	} {
		sent, received := n.passed(tt.run)
		t.Logf("%-38s sent %v, received %v", tt.name, sent, received)
		for way, got := range map[string]map[hierarchy.Path]uint64{"sent": sent, "received": received} {
			least := tt.sent
			if way == "received" {
				least = tt.received
			}
			if way == "sent" && got["eth0/rest"] <= 3 {
				delete(got, "eth0/rest") // the kernel's own, for connections that are closed already
			}
			if got[tt.branch] < least || len(got) != 1 {
				t.Errorf("%s: %s %v, want %d at least, all of %s", tt.name, way, got, least, tt.branch)
			}
		}
	}
}

// onBridge is behind with the veth in a bridge, whose packets are routed.
func (n *network) onBridge(port string) *lab.NetNS {
	n.Helper()
	inner := tctest.NetNS(n)
	gateway, inside := netip.MustParsePrefix("198.19.2.1/24"), netip.MustParsePrefix("198.19.2.2/24")
	err := n.Near.AddLink(lab.Link{Name: "br0", Kind: "bridge"})
	if err == nil { // the bridge takes what is for its port's address for itself
		err = lab.AddVeth(n.Near, lab.Link{Name: port, Master: "br0", Addrs: []netip.Prefix{gateway}}, inner, lab.Link{Name: "eth0", Addrs: []netip.Prefix{inside}})
	}
	if err == nil {
		err = inner.AddRoute(netip.PrefixFrom(n.Far4, 24), gateway.Addr(), "eth0")
	}
	if err == nil {
		err = n.Far.AddRoute(inside, n.Near4, n.FarDev)
	}
	if err != nil {
		n.Fatal(err)
	}
	return inner
}

// masquerade hides what is behind the near end with its address.
func (n *network) masquerade() error {
	c, err := nftables.New(nftables.WithNetNSFd(n.Near.FD()))
	if err != nil {
		return err
	}
	table := c.AddTable(&nftables.Table{Name: "nat", Family: nftables.TableFamilyIPv4})
	c.FlushTable(table)
	chain := c.AddChain(&nftables.Chain{
		Name: "post", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
		&expr.Meta{Key: expr.MetaKeyOIFNAME, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: append([]byte(n.Dev), 0)},
		&expr.Masq{Random: true},
	}})
	return c.Flush()
}

// scp copies a file from the far end to a branch.
func (n *network) scp(branch hierarchy.Path) {
	n.Helper()
	server := n.sshd(n.Pair.Far, n.Far4)
	file := n.policy("file", strings.Repeat("x", 2_000_000))
	args := append([]string{tctest.RequireProgram(n, "scp"), "-P", "7600"}, n.sshOptions()...)
	r := n.branch(branch, append(args, fmt.Sprintf("root@%v:%s", n.Far4, file), file+".copied")...).wait()
	if r.code != 0 {
		n.Errorf("scp: %v\n%s", r, server.stderr.String())
	}
}

// sshd starts one on port 7600 of an address, into which root gets by a key of the test, and
// ends it with the test.
func (n *network) sshd(in *lab.NetNS, address netip.Addr) *running {
	n.Helper()
	sshd := "/usr/sbin/sshd"
	_, err := os.Stat(sshd)
	tctest.Require(n, err == nil, "program sshd")
	keygen := tctest.RequireProgram(n, "ssh-keygen")
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(n.dir, key)).CombinedOutput(); err != nil {
			n.Fatalf("%v: %s", err, out)
		}
	}
	if err := os.Mkdir("/run/sshd", 0o755); err == nil { // where it locks itself up
		n.Cleanup(func() { os.Remove("/run/sshd") })
	} else if !errors.Is(err, fs.ErrExist) {
		n.Fatal(err)
	}
	config := n.policy("sshd", fmt.Sprintf("ListenAddress %s:7600\nHostKey %s/host\nAuthorizedKeysFile %[2]s/user.pub\nPermitRootLogin prohibit-password\nStrictModes no\nUsePAM no\nPidFile none\nSubsystem sftp internal-sftp\n", address, n.dir))
	server := n.startIn(in, exec.CommandContext(n.Context(), sshd, "-D", "-e", "-f", config))
	n.Cleanup(func() {
		_ = server.Process.Kill()
		server.wait()
	})
	n.listening(in, 7600)
	return server
}

// sshOptions are those by which ssh and scp get in there, and wait for nobody.
func (n *network) sshOptions() []string {
	return []string{"-q", "-F", "none", "-i", filepath.Join(n.dir, "user"), "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"}
}

// TestKernelRealBothWays: programs that download and upload at once stay below the ceilings
// of their branches, and in them. What each gets of the line is held in virtual time, where
// no other load is: here a rate is only what it must not be above.
func TestKernelRealBothWays(t *testing.T) {
	n := newDownloads(t)
	n.ok("apply", n.policy("downloads.toml", downloadPolicy))
	const seconds = "4"
	var servers, clients []*running
	for i, c := range []struct {
		branch hierarchy.Path
		args   []string
	}{
		{"eth0/streams", nil},
		{"eth0/streams", []string{"-R"}},
		{"eth0/copies", []string{"-R"}},
		{"eth0/datagrams", []string{"-u", "-R", "-l", "1200", "-b", "40M"}},
	} {
		port := 5230 + i
		servers = append(servers, n.iperfServer(n.Far, "", port))
		clients = append(clients, n.branch(c.branch, append([]string{"iperf3", "-c", n.Far4.String(), "-p", fmt.Sprint(port), "-t", seconds}, c.args...)...))
	}
	web := n.branch("eth0/web", "curl", "--silent", "--fail", "--output", os.DevNull, fmt.Sprintf("http://%v:8080/random?[1-100]", n.Far4))
	moving := func(before, now map[hierarchy.Path]shownBranch) bool {
		for _, p := range []hierarchy.Path{"eth0/web", "eth0/streams", "eth0/copies", "eth0/datagrams"} {
			if now[p].Ingress.Bytes-before[p].Ingress.Bytes < 20_000 || now["eth0/streams"].Bytes-before["eth0/streams"].Bytes < 20_000 {
				return false
			}
		}
		return true
	}
	start := time.Now() // before the count: what is counted came in this time, or less
	first := n.shown()
	last := first
	n.until("traffic of all", func() bool {
		last = n.shown()
		return moving(first, last) && time.Since(start) > 2*time.Second
	})
	took := time.Since(start).Seconds()
	for _, r := range slices.Concat(clients, servers) {
		if out := r.wait(); out.code != 0 {
			t.Errorf("%s: %v", r.Args, out)
		}
	}
	if err := n.kill(); err != nil {
		t.Error(err)
	}
	web.wait()
	for _, p := range slices.Sorted(maps.Keys(last)) {
		a, b := first[p], last[p]
		for way, c := range map[string]struct {
			bytes uint64
			ceil  hierarchy.Bandwidth
		}{"sent": {b.Bytes - a.Bytes, b.Ceil}, "received": {b.Ingress.Bytes - a.Ingress.Bytes, b.Ingress.Ceil}} {
			rate := float64(c.bytes) * 8 / took
			t.Logf("%-26s %s %.1f of %v", p, way, rate/1e6, c.ceil)
			if rate > float64(c.ceil)*1.05 { // its burst is some milliseconds of these seconds
				t.Errorf("%s: %s %.0f bit/s, above %v", p, way, rate, c.ceil)
			}
		}
		if strings.HasPrefix(string(p), "eth0/containers/") && (b.Packets > 0 || b.Ingress.Packets > 0) {
			t.Errorf("%s has packets of others: %+v", p, b)
		}
	}
	// Nobody is in the rest but the kernel itself, for connections that are closed already.
	if r := n.shown()["eth0/rest"]; r.Packets > 20 || r.Ingress.Packets > 20 {
		t.Errorf("%d packets sent, %d received in the rest are too many", r.Packets, r.Ingress.Packets)
	}
}

// TestKernelReceiveKinds: what is downloaded by an interface of any kind is of the branch
// that downloads it. What such a kind needs besides, as ARP, is the rest's.
func TestKernelReceiveKinds(t *testing.T) {
	const size = 200_000
	for _, tt := range []struct {
		kind      string
		near, far string // make x0 at both ends; port0 and port1 are a veth pair between them
	}{
		{"vlan", "ip link add link port0 name x0 type vlan id 5", "ip link add link port1 name x0 type vlan id 5"},
		{"macvlan", "ip link add link eth0 name x0 type macvlan mode bridge", "ip link add link far0 name x0 type macvlan mode bridge"},
		{"bridge", "ip link add x0 type bridge; ip link set port0 master x0", "ip link set port1 down; ip link set port1 name x0"},
		{"bond", "ip link add x0 type bond mode active-backup; ip link set port0 down; ip link set port0 master x0", "ip link set port1 down; ip link set port1 name x0"},
		{"gretap", "ip link add x0 type gretap local %[1]v remote %[2]v", "ip link add x0 type gretap local %[2]v remote %[1]v"},
		{"vxlan", "ip link add x0 type vxlan id 7 dstport 4789 dev eth0 remote %[2]v", "ip link add x0 type vxlan id 7 dstport 4789 dev far0 remote %[1]v"},
		{"gre", "ip link add x0 type gre local %[1]v remote %[2]v", "ip link add x0 type gre local %[2]v remote %[1]v"},
		{"ipip", "ip link add x0 type ipip local %[1]v remote %[2]v", "ip link add x0 type ipip local %[2]v remote %[1]v"},
	} {
		t.Run(tt.kind, func(t *testing.T) {
			for _, kind := range []string{"ifb", tt.kind} {
				tctest.RequireLink(t, kind)
			}
			for _, p := range []string{"ip", "bash", "head"} {
				tctest.RequireProgram(t, p)
			}
			n := newNetwork(t)
			if err := lab.AddVeth(n.Near, lab.Link{Name: "port0"}, n.Far, lab.Link{Name: "port1"}); err != nil {
				t.Fatal(err)
			}
			for i, ns := range []*lab.NetNS{n.Near, n.Far} {
				// The ends of a lab's veth do not ask for addresses, nor does what has its flags from them.
				script := fmt.Sprintf("ip link set port%d arp on\n", i) + []string{tt.near, tt.far}[i] + fmt.Sprintf("\nip addr add 198.19.5.%d/24 dev x0\nip link set x0 up", i+1)
				if strings.Contains(script, "%[") {
					script = fmt.Sprintf(script, n.Near4, n.Far4)
				}
				tctest.Output(t, ns, "sh", "-ec", script)
			}
			n.pour(5700, size)
			n.ok("apply", n.policy("x0.toml", strings.ReplaceAll(bothPolicy, "eth0", "x0")))
			var r result
			_, received := n.passed(func() {
				r = n.run("run", "--level", "tag", "x0/web", "--", "bash", "-c", fmt.Sprintf("head -c %d </dev/tcp/198.19.5.2/5700 | wc -c", size))
			})
			t.Log(received)
			if r.code != 0 || strings.TrimSpace(r.stdout) != fmt.Sprint(size) {
				t.Errorf("download: %v", r)
			}
			if received["x0/web"] < size/1500 || received["x0/rest"] > 20 || received["x0/calls"] != 0 {
				t.Errorf("received %v, want %d at least, all of x0/web", received, size/1500)
			}
			n.ok("clear")
			if out := tctest.Output(t, n.Near, "ip", "link", "show", "type", "ifb"); out != "" {
				t.Errorf("left behind: %s", out)
			}
		})
	}
}

// pour sends so many bytes to whoever connects to a port of the far end.
func (n *network) pour(port uint16, bytes int) {
	n.Helper()
	var l net.Listener
	if err := n.Far.Do(func() (err error) {
		l, err = net.Listen("tcp4", fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write(make([]byte, bytes)) // who asked may be gone
			c.Close()
		}
	}()
}
