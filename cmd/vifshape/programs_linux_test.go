package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

const realPolicy = `version = 1

[interface.eth0]
rate = "120mbit"

[interface.eth0.servers]
rate = "60%"

[interface.eth0.servers.web]
rate = "36mbit"

[interface.eth0.servers.six]
rate = "20mbit"

[interface.eth0.servers.datagrams]
rate = "8mbit"
ceil = "10mbit"

[interface.eth0.clients]

[interface.eth0.clients.upload]
rate = "15mbit"

[interface.eth0.clients.jobs]
rate = "12mbit"
ceil = "24mbit"

[interface.eth0.rest]
rate = "4mbit"
`

// What a packet of a full TCP segment, or a datagram of 1200 bytes, takes for
// each byte of data: Ethernet 14, IPv4 20 or IPv6 40, TCP 20 with timestamps 12,
// UDP 8; 1500 is the MTU.
const (
	wireTCP4 = 1514.0 / (1500 - 20 - 32)
	wireTCP6 = 1514.0 / (1500 - 40 - 32)
	wireUDP4 = (1200 + 14 + 20 + 8) / 1200.0
)

// iperfTime is how long each iperf3 sends, and the seconds of it that count.
const (
	iperfTime = 8
	iperfFrom = 2
	iperfTo   = 7
)

// TestKernelRealPrograms measures at the far end what programs get that nobody
// here wrote: nginx and iperf3 servers that send, iperf3 clients that send, and
// a shell with children, each in a branch of one policy and all at once. That is why it
// measures rates on the machine at hand: the kernel in virtual time has nothing to bind
// them by, and which class packets go to says nothing of what a program gets.
func TestKernelRealPrograms(t *testing.T) {
	n := newNetwork(t)
	for _, p := range []string{"nginx", "curl", "iperf3", "bash"} {
		tctest.RequireProgram(t, p)
	}
	tctest.Require(t, n.Near6.IsValid(), "IPv6")
	// The ideal allocation supposes senders that keep their queue full, as BBR
	// does not. Reno is what every kernel has and lets a namespace have.
	if err := n.Near.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv4/tcp_congestion_control", []byte("reno"), 0)
	}); err != nil {
		t.Fatal(err)
	}
	n.ok("apply", n.policy("real.toml", realPolicy))
	sink, err := lab.NewSink(t.Context(), n.Far, 5600)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()

	n.nginx("eth0/servers/web", 8080)
	six := n.iperfServer(n.Near, "eth0/servers/six", 5201)
	datagrams := n.iperfServer(n.Near, "eth0/servers/datagrams", 5202)
	upload := n.iperfServer(n.Far, "", 5203)

	// The far end of each: curl and two iperf3 take, one iperf3 is sent to, and
	// the children of one shell send to a sink.
	web := n.curl(fmt.Sprintf("http://%v:8080/random", n.Near4))
	fromSix := n.far("iperf3", "-6", "-c", n.Near6.String(), "-p", "5201", "-R", "-t", fmt.Sprint(iperfTime), "--json")
	fromDatagrams := n.far("iperf3", "-c", n.Near4.String(), "-p", "5202", "-R", "-u", "-l", "1200", "-b", "40M", "-t", fmt.Sprint(iperfTime), "--json")
	toUpload := n.branch("eth0/clients/upload", "iperf3", "-c", n.Far4.String(), "-p", "5203", "-t", fmt.Sprint(iperfTime))
	jobs := n.branch("eth0/clients/jobs", "bash", "-c",
		fmt.Sprintf(`for i in 1 2 3 4 5 6 7 8; do (exec cat /dev/zero >/dev/tcp/%v/5600) & done; wait`, n.Far4))

	time.Sleep(iperfFrom * time.Second)
	before, webBefore := sink.Count(5600), web.count()
	time.Sleep((iperfTo - iperfFrom) * time.Second)
	after, webAfter := sink.Count(5600), web.count()

	got := map[hierarchy.Path]hierarchy.Bandwidth{
		"eth0/servers/web":       webAfter.rate(webBefore, wireTCP4),
		"eth0/servers/six":       n.iperfRate(fromSix, wireTCP6),
		"eth0/servers/datagrams": n.iperfRate(fromDatagrams, wireUDP4),
		"eth0/clients/jobs":      after.WireRate(before),
	}
	if r := toUpload.wait(); r.code != 0 {
		t.Errorf("upload: %v", r)
	}
	got["eth0/clients/upload"] = n.iperfRate(upload, wireTCP4)
	for _, s := range []*running{six, datagrams} {
		if r := s.wait(); r.code != 0 {
			t.Errorf("%s: %v", s.Args, r)
		}
	}
	// It was the branch that held them: nobody sent from the rest but the
	// kernel itself, to connections that are closed already.
	for _, c := range tctest.TCClasses(t, n.Near, n.Dev) {
		if c.ID != hierarchy.ID(hierarchy.RestMinor).String() {
			continue
		}
		t.Logf("%d packets in the rest", c.Packets)
		if c.Packets > 20 {
			t.Errorf("%d packets are too many", c.Packets)
		}
	}
	if err := n.kill(); err != nil {
		t.Error(err)
	}
	jobs.wait()

	tree := n.tree(realPolicy)
	demand := map[hierarchy.Path]hierarchy.Bandwidth{}
	for p := range got {
		demand[p] = hierarchy.Unlimited
	}
	ideal := tree.Ideal(demand)
	for p, g := range got {
		off := float64(g)/float64(ideal[p]) - 1
		t.Logf("%-24s ideal %s, at the far end %s, %+.1f%%", p, words.Short(ideal[p]), words.Short(g), 100*off)
		if off < -0.1 || off > 0.1 {
			t.Errorf("%s got %s, the ideal is %s", p, words.Short(g), words.Short(ideal[p]))
		}
	}
}

// branch starts a program in a branch.
func (n *network) branch(path hierarchy.Path, args ...string) *running {
	n.Helper()
	return n.start(n.command(append([]string{"run", string(path), "--"}, args...)...))
}

// far starts a program at the far end.
func (n *network) far(args ...string) *running {
	n.Helper()
	return n.startIn(n.Far, exec.CommandContext(n.Context(), args[0], args[1:]...))
}

// listening waits until a program accepts connections on a port.
func (n *network) listening(ns *lab.NetNS, port int) {
	n.Helper()
	want := fmt.Sprintf(":%04X ", port)
	n.until(fmt.Sprintf("a listener on port %d", port), func() bool {
		found := false
		err := ns.Do(func() error {
			for _, f := range []string{"tcp", "tcp6"} {
				b, err := os.ReadFile("/proc/thread-self/net/" + f)
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					return err
				}
				for line := range strings.Lines(string(b)) {
					// Local address, far address, state; 0A is listening.
					if f := strings.Fields(line); len(f) > 3 && f[3] == "0A" && strings.HasSuffix(f[1]+" ", want) {
						found = true
					}
				}
			}
			return nil
		})
		if err != nil {
			n.Fatal(err)
		}
		return found
	})
}

// iperfServer starts a server for one test, in a branch unless that is empty.
func (n *network) iperfServer(ns *lab.NetNS, path hierarchy.Path, port int) *running {
	n.Helper()
	args := []string{"iperf3", "-s", "-1", "-p", fmt.Sprint(port), "--json"}
	start := n.far
	if path != "" {
		start = func(a ...string) *running { return n.branch(path, a...) }
	}
	r := start(args...)
	n.listening(ns, port)
	return r
}

// iperfRate is what an iperf3 received, on the wire, in the seconds that count.
func (n *network) iperfRate(r *running, wire float64) hierarchy.Bandwidth {
	n.Helper()
	out := r.wait()
	var v struct {
		Error     string
		Intervals []struct {
			Sum struct {
				Start, End, Bytes float64
				Sender            bool
			}
		}
	}
	if err := json.Unmarshal([]byte(out.stdout), &v); err != nil || v.Error != "" || out.code != 0 {
		n.Fatalf("%s: %v %v", r.Args, err, out)
	}
	var bytes, seconds float64
	for _, i := range v.Intervals {
		if i.Sum.Sender {
			n.Fatalf("%s is the sender", r.Args)
		}
		if i.Sum.Start > iperfFrom-0.5 && i.Sum.End < iperfTo+0.5 {
			bytes += i.Sum.Bytes
			seconds += i.Sum.End - i.Sum.Start
		}
	}
	if seconds == 0 {
		n.Fatalf("%s has no figures: %v", r.Args, out)
	}
	return hierarchy.Bandwidth(bytes * wire * 8 / seconds)
}

// nginx starts nginx in a branch, or at the far end where that is empty, with a file of
// random bytes. Its master forks the worker that sends. Nothing of the machine's own nginx is used.
func (n *network) nginx(path hierarchy.Path, port int) {
	n.Helper()
	random := rand.NewChaCha8([32]byte{1})
	f, err := os.Create(filepath.Join(n.dir, "random"))
	if err == nil {
		_, err = io.CopyN(f, random, 64<<20)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		n.Fatal(err)
	}
	var temp strings.Builder
	for _, k := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
		fmt.Fprintf(&temp, "  %s_temp_path %s/%s;\n", k, n.dir, k)
	}
	config := n.policy("nginx.conf", fmt.Sprintf(`
user root;
daemon off;
pid %[1]s/nginx.pid;
worker_processes 1;
events {}
http {
  access_log off;
%[2]s  server {
    listen [::]:%[3]d ipv6only=off;
    root %[1]s;
    sendfile on;
  }
}
`, n.dir, temp.String(), port))
	args := []string{"nginx", "-e", filepath.Join(n.dir, "error.log"), "-c", config}
	ns, c := n.Far, exec.Command(args[0], args[1:]...)
	if path != "" {
		ns, c = n.Near, n.command(append([]string{"run", string(path), "--"}, args...)...)
		c.Cancel = func() error { return c.Process.Signal(syscall.SIGTERM) }
	}
	r := n.startIn(ns, c)
	n.Cleanup(func() {
		_ = c.Process.Signal(syscall.SIGTERM)
		if out := r.wait(); out.stderr != "" {
			n.Errorf("nginx: %v", out)
		}
	})
	n.listening(ns, port)
}

// received counts what a program prints.
type received struct{ bytes atomic.Uint64 }

func (r *received) Write(b []byte) (int, error) {
	r.bytes.Add(uint64(len(b)))
	return len(b), nil
}

type arrived struct {
	at    time.Time
	bytes uint64
}

func (r *received) count() arrived { return arrived{time.Now(), r.bytes.Load()} }

func (a arrived) rate(before arrived, wire float64) hierarchy.Bandwidth {
	return hierarchy.Bandwidth(float64(a.bytes-before.bytes) * wire * 8 / a.at.Sub(before.at).Seconds())
}

// curl fetches something again and again at the far end until the test ends.
func (n *network) curl(url string) *received {
	n.Helper()
	got := &received{}
	c := exec.CommandContext(n.Context(), "curl", "--silent", "--show-error", "--fail", url+"?[1-100]")
	c.Stdout, c.Stderr = got, os.Stderr
	if err := n.Far.Start(c); err != nil {
		n.Fatal(err)
	}
	n.Cleanup(func() { _ = c.Wait() }) // killed with the test
	return got
}
