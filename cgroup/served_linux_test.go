package cgroup_test

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// requireTypes skips where the kernel does not describe its types: there nobody sees
// who sends.
func requireTypes(t testing.TB) {
	t.Helper()
	require(t, bind.WayBPF)
	s, err := cgroup.ReadSettings()
	if err != nil {
		t.Fatal(err)
	}
	tctest.Require(t, s.BTF, "BTF")
}

// TestKernelServed: an accepted connection is of the branch of who serves it,
// whoever opened the listener and accepted it, and is never released.
func TestKernelServed(t *testing.T) {
	requireTypes(t)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	free, a, to := sub(t, p.dir, "free"), sub(t, p.dir, "a"), sub(t, p.dir, "to")
	below := sub(t, to, "x", "y")
	b := n.binder(t, bind.WayBPF)
	apply(t, b, bound(p.target(a), red), bound(p.target(to), green), bound("uid:65534", blue))
	via := []string{n.Near4.String(), "[" + n.Near6.String() + "]"}
	port := 7300
	tests := []struct {
		name   string
		opened string // the cgroup in which the listener is opened
		serve  func(x *tctest.Actor)
		want   hierarchy.ClassID
	}{
		{"listener of somebody else", free, func(x *tctest.Actor) {
			x.Do("join %s", to)
			x.Do("accept c l")
			x.Do("write c 100000")
			x.Do("finish c")
		}, green},
		{"in a cgroup below", free, func(x *tctest.Actor) {
			x.Do("join %s", below)
			x.Do("accept c l")
			x.Do("write c 100000")
			x.Do("finish c")
		}, green},
		{"sendfile", free, func(x *tctest.Actor) {
			x.Do("join %s", to)
			x.Do("accept c l")
			x.Do("writeFile c 100000")
			x.Do("finish c")
		}, green},
		{"nothing but its end", free, func(x *tctest.Actor) {
			x.Do("join %s", to)
			x.Do("accept c l")
			x.Do("finish c")
		}, green},
		{"accepted by somebody else", free, func(x *tctest.Actor) {
			x.Do("accept c l")
			x.Do("hand c join %s;take c;write c 100000;finish c", to)
		}, green},
		{"forked before it is accepted", free, func(x *tctest.Actor) {
			x.Do("hand l join %s;take l;accept c l;write c 100000;finish c", to)
		}, green},
		{"of a user", free, func(x *tctest.Actor) {
			x.Do("accept c l")
			x.Do("hand c nobody;take c;write c 100000;finish c")
		}, blue},
		{"of a user in a bound cgroup", free, func(x *tctest.Actor) {
			x.Do("accept c l")
			x.Do("hand c join %s;nobody;take c;write c 100000;finish c", to)
		}, green},
		{"of a user, accepted in a bound cgroup", a, func(x *tctest.Actor) {
			x.Do("accept c l")
			x.Do("hand c join %s;nobody;take c;write c 100000;finish c", free)
		}, blue},
		{"another branch", a, func(x *tctest.Actor) {
			x.Do("accept c l")
			x.Do("hand c join %s;take c;write c 100000;finish c", to)
		}, green},
		{"nobody bound", free, func(x *tctest.Actor) {
			x.Do("accept c l")
			x.Do("write c 100000")
			x.Do("finish c")
		}, rest},
		{"given to an outsider", a, func(x *tctest.Actor) {
			x.Do("accept c l")
			x.Do("hand c join %s;take c;write c 100000;finish c", free)
		}, red},
		{"taken back by an outsider", free, func(x *tctest.Actor) {
			x.Do("join %s", to)
			x.Do("accept c l")
			x.Do("write c 100000")
			x.Do("hand c join %s;take c;write c 100000;finish c", free)
		}, green},
	}
	for i, addr := range via {
		for _, tt := range tests {
			t.Run(fmt.Sprintf("%s over %s", tt.name, []string{"IPv4", "IPv6"}[i]), func(t *testing.T) {
				port++
				at := fmt.Sprintf("%s:%d", addr, port)
				x, far := n.start(t, n.Near, tt.opened), n.start(t, n.Far, "")
				x.Do("listen l %s", at)
				n.answer(t, func() {
					far.Begin("fetch %s", at)
					tt.serve(x)
					far.End()
				}, tt.want, map[string]hierarchy.ClassID{free: rest, a: red}[tt.opened])
			})
		}
	}
}

// answer holds that all packets that answer to a connection are of one class, but for
// the listener's own.
func (n *network) answer(t *testing.T, fn func(), want, listener hierarchy.ClassID) {
	t.Helper()
	got := n.during(t, fn)
	if want != listener && got[listener] == 1 { // SYN-ACK
		delete(got, listener)
	}
	if got[want] == 0 || len(got) != 1 {
		t.Errorf("packets a class %v, want all in %v but one in %v", got, want, listener)
	}
}

// TestKernelServedRebound: what is served follows the bindings of who serves it, at
// once, and goes back to its listener's when there are none.
func TestKernelServedRebound(t *testing.T) {
	requireTypes(t)
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	free, to := sub(t, p.dir, "free"), sub(t, p.dir, "to")
	deep := sub(t, to, "deep")
	b := n.binder(t, bind.WayBPF)
	at := n.Near4.String() + ":7390"
	apply(t, b, bound(p.target(to), green))
	x, far := n.start(t, n.Near, free), n.start(t, n.Far, "")
	x.Do("listen l %s", at)
	far.Do("connect c %s", at)
	x.Do("join %s", deep)
	x.Do("accept c l")
	for i, tt := range []struct {
		bind []hierarchy.Bound
		want hierarchy.ClassID
	}{
		{[]hierarchy.Bound{bound(p.target(to), green)}, green},
		{[]hierarchy.Bound{bound(p.target(to), red)}, red},
		{[]hierarchy.Bound{bound(p.target(to), red), bound(p.target(deep), blue)}, blue},
		{[]hierarchy.Bound{bound(p.target(to), red)}, red},
		{nil, rest},
		{[]hierarchy.Bound{bound("uid:0", green)}, green},
		{[]hierarchy.Bound{bound(p.target(to), blue), bound("uid:0", green)}, blue},
	} {
		apply(t, b, tt.bind...)
		if got := n.during(t, func() { x.Do("write c 100") }); got[tt.want] == 0 || len(got) != 1 {
			t.Errorf("step %d: packets a class %v, want all in %v", i, got, tt.want)
		}
	}
}

// TestKernelServedAbove: connections through an interface above the shaped one, too.
func TestKernelServedAbove(t *testing.T) {
	requireTypes(t)
	tctest.Require(t, tctest.HasLink(t, "macvlan"), "macvlan")
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	free, to := sub(t, p.dir, "free"), sub(t, p.dir, "to")
	b := n.binder(t, bind.WayBPF)
	apply(t, b, bound(p.target(to), green))
	for i, ns := range []*lab.NetNS{n.Near, n.Far} {
		onlyIPv4(t, ns)
		parent := n.Dev
		if i > 0 {
			parent = n.FarDev
		}
		addr := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(1 + i)}), 24)
		if err := ns.AddLink(lab.Link{Name: "above", Kind: "macvlan", Parent: parent, Addrs: []netip.Prefix{addr}}); err != nil {
			t.Fatal(err)
		}
	}
	const at = "198.51.100.1:7391"
	x, far := n.start(t, n.Near, free), n.start(t, n.Far, "")
	x.Do("listen l %s", at)
	far.Do("connect c %s", at)
	x.Do("join %s", to)
	x.Do("accept c l")
	only(t, n.during(t, func() { x.Do("write c 100") }), green, 1)
}

// TestSSH: what a bound user fetches through root's sshd is of the user's branch.
func TestSSH(t *testing.T) {
	requireTypes(t)
	sftp, keygen := tctest.RequireProgram(t, "sftp"), tctest.RequireProgram(t, "ssh-keygen")
	const sshd = "/usr/sbin/sshd"
	_, err := os.Stat(sshd)
	tctest.Require(t, err == nil, "program sshd")
	n := newNetwork(t)
	p := newPlace(t, bind.WayBPF)
	apply(t, n.binder(t, bind.WayBPF), bound("uid:65534", green))

	dir := t.TempDir()
	for at := dir; at != "/"; at = filepath.Dir(at) { // for nobody
		st, err := os.Stat(at)
		if err == nil && st.Mode()&0o5 != 0o5 {
			err = os.Chmod(at, st.Mode()|0o5)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
	}
	const size = 3_000_000
	if err := os.WriteFile(filepath.Join(dir, "file"), make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
	config := fmt.Sprintf("ListenAddress %s:7600\nHostKey %s/host\nAuthorizedKeysFile %[2]s/user.pub\nStrictModes no\nUsePAM no\nPidFile none\nSubsystem sftp internal-sftp\nForceCommand internal-sftp\n", n.Near4, dir)
	if err := os.WriteFile(filepath.Join(dir, "config"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir("/run/sshd", 0o755); err == nil { // where it locks itself up
		defer os.Remove("/run/sshd")
	} else if !errors.Is(err, fs.ErrExist) {
		t.Fatal(err)
	}
	server := exec.Command(sshd, "-D", "-e", "-f", filepath.Join(dir, "config"))
	var log strings.Builder
	server.Stderr = &log
	if err := n.Near.Start(server); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = server.Process.Kill()
		_ = server.Wait()
		if t.Failed() {
			t.Log(log.String())
		}
	}()
	if err := os.WriteFile(filepath.Join(sub(t, p.dir, "free"), "cgroup.procs"), []byte(strconv.Itoa(server.Process.Pid)), 0); err != nil {
		t.Fatal(err)
	}
	got := n.during(t, func() {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
			c := exec.Command(sftp, "-q", "-i", filepath.Join(dir, "user"), "-P", "7600", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no",
				"-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-F", "none", "nobody@"+n.Near4.String()+":"+dir+"/file", dir+"/fetched")
			var out strings.Builder
			c.Stdout, c.Stderr = &out, &out
			err := n.Far.Start(c)
			if err == nil {
				err = c.Wait()
			}
			if err == nil {
				return
			}
			// It does not listen yet; a connection was once closed at its start, without a word in the log.
			early := strings.Contains(out.String(), "Connection refused") || strings.Contains(out.String(), "Connection closed")
			if !early || time.Now().After(deadline) {
				t.Fatalf("sftp: %v: %s", err, out.String())
			}
		}
	})
	if st, err := os.Stat(filepath.Join(dir, "fetched")); err != nil || st.Size() != size {
		t.Fatalf("fetched: %v", err)
	}
	// what comes before it knows the user is root's
	if got[green] < size/1500 || got[rest] > 100 || len(got) > 2 {
		t.Errorf("packets a class %v, want %d and more in %v and only those of the login in %v", got, size/1500, green, rest)
	}
}

// TestKernelServedUnderLoad: no packet of a connection that is served leaves the
// branches while bindings change and the classifier is replaced.
func TestKernelServedUnderLoad(t *testing.T) {
	requireTypes(t)
	for _, tt := range []struct {
		name string
		flip func(t *testing.T, n *network, b *cgroup.Binder, target string, i int)
	}{
		{"bindings", flipBinding},
		{"classifier of an older version", func(t *testing.T, n *network, b *cgroup.Binder, target string, i int) {
			older(t, n)
			if err := b.Close(); err != nil { // it knows better
				t.Fatal(err)
			}
			flipBinding(t, n, b, target, i)
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNetwork(t)
			p := newPlace(t, bind.WayBPF)
			a := sub(t, p.dir, "a")
			b := n.binder(t, bind.WayBPF)
			apply(t, b, bound(p.target(a), red))
			at := n.Near4.String() + ":7392"
			x, far := n.start(t, n.Near, sub(t, p.dir, "free")), n.start(t, n.Far, "")
			x.Do("listen l %s", at)
			far.Do("connect c %s", at)
			x.Do("join %s", a)
			x.Do("accept c l")
			x.Do("write c 100")
			far.Begin("drain c")
			changes := 0
			got := n.during(t, func() {
				done := make(chan struct{})
				x.Begin("write c %d", 500*loaded(200_000))
				go func() { x.End(); close(done) }()
				for sending := true; sending || changes < 5; {
					select {
					case <-done:
						sending = false
					default:
					}
					changes++
					tt.flip(t, n, b, p.target(a), changes)
				}
				x.Do("finish c")
				far.End()
			})
			t.Logf("%d changes, packets a class: %v", changes, got)
			delete(got, red)
			delete(got, green)
			if len(got) != 0 {
				t.Errorf("packets a class %v besides those in %v and %v", got, red, green)
			}
		})
	}
}
