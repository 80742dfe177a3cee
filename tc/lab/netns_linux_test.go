package lab_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// inode tells namespaces apart, in the form of the links of /proc/PID/ns.
func inode(t *testing.T, path string) string {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("net:[%d]", st.Ino)
}

func TestKernelDo(t *testing.T) {
	tctest.RequireRoot(t)
	n, err := lab.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	home := inode(t, "/proc/thread-self/ns/net")
	want := inode(t, "/proc/self/fd/"+strconv.Itoa(n.FD()))
	if home == want {
		t.Fatal("the new namespace is the old one")
	}
	for range 20 {
		var got string
		err := n.Do(func() error {
			var err error
			got, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		})
		if err != nil || got != want {
			t.Fatalf("in namespace %s, want %s (%v)", got, want, err)
		}
	}
	boom := errors.New("boom")
	if err := n.Do(func() error { return boom }); err != boom {
		t.Errorf("Do = %v, want boom", err)
	}
	cmd := tctest.Command(t, "sayNetNS")
	var out strings.Builder
	cmd.Stdout = &out
	if err := n.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(out.String()); got != want {
		t.Errorf("process in %s, want %s", got, want)
	}
	// No thread of this process may have stayed behind.
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range tasks {
		if got, err := os.Readlink("/proc/self/task/" + e.Name() + "/ns/net"); err == nil && got != home {
			t.Errorf("thread %s is in %s", e.Name(), got)
		}
	}
	for range 2 {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
	if err := n.Do(func() error { return nil }); err == nil {
		t.Error("Do in a closed namespace succeeded")
	}
}

func TestKernelKeep(t *testing.T) {
	tctest.RequireRoot(t)
	n, err := lab.NewNetNS()
	if err != nil {
		t.Fatal(err)
	}
	name := tctest.Name()
	want := inode(t, "/proc/self/fd/"+strconv.Itoa(n.FD()))
	if err := n.Keep(name); err != nil {
		t.Fatal(err)
	}
	if err := n.Keep(name); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("second Keep: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	n, err = lab.OpenNetNS("/run/netns/" + name)
	if err != nil {
		t.Fatal(err)
	}
	if got := inode(t, "/proc/self/fd/"+strconv.Itoa(n.FD())); got != want {
		t.Errorf("opened %s, want %s", got, want)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	for range 2 {
		if err := lab.Forget(name); err != nil {
			t.Error(err)
		}
	}
	if _, err := os.Stat("/run/netns/" + name); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the name is still there: %v", err)
	}
	for _, bad := range []string{"", "..", "a/b"} {
		if err := lab.Forget(bad); err == nil {
			t.Errorf("Forget(%q) succeeded", bad)
		}
	}
}

func TestKernelPair(t *testing.T) {
	p := tctest.New(t, lab.PairConfig{MTU: 9000, TxQueueLen: 77, Queues: 3})
	tctest.Require(t, p.Far6.IsValid(), "IPv6")
	far := netip.MustParsePrefix("203.0.113.7/32")
	if err := p.Far.AddLink(lab.Link{Name: "ifb9", Kind: "ifb", Addrs: []netip.Prefix{far}}); err != nil {
		t.Fatal(err)
	}
	if err := p.Near.AddRoute(far, p.Far4, p.Dev); err != nil {
		t.Fatal(err)
	}
	for _, a := range []netip.Addr{p.Far4, p.Far6, far.Addr()} {
		var ln net.Listener
		err := p.Far.Do(func() (err error) {
			ln, err = (&net.ListenConfig{}).Listen(context.Background(), "tcp", netip.AddrPortFrom(a, 0).String())
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		err = p.Near.Do(func() error {
			c, err := net.Dial("tcp", ln.Addr().String())
			if err == nil {
				c.Close()
			}
			return err
		})
		if err != nil {
			t.Errorf("dial %v: %v", ln.Addr(), err)
		}
		ln.Close()
	}
	var got []string
	err := p.Near.Do(func() error {
		for _, f := range []string{"mtu", "txqlen"} {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				return err
			}
			defer unix.Close(fd)
			r, err := unix.NewIfreq(p.Dev)
			if err != nil {
				return err
			}
			req := map[string]uint{"mtu": unix.SIOCGIFMTU, "txqlen": unix.SIOCGIFTXQLEN}[f]
			if err := unix.IoctlIfreq(fd, req, r); err != nil {
				return err
			}
			got = append(got, f+" "+strconv.Itoa(int(r.Uint32())))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff([]string{"mtu 9000", "txqlen 77"}, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	if err := p.Far.AddLink(lab.Link{Name: "x", Kind: "nosuchkind"}); !errors.Is(err, unix.EOPNOTSUPP) {
		t.Errorf("unknown kind: %v", err)
	}
	if err := p.Close(); err != nil {
		t.Error(err)
	}
}

// A half-made network leaves nothing behind and says which step failed.
func TestKernelPairFails(t *testing.T) {
	tctest.RequireRoot(t)
	_, err := lab.NewPair(lab.PairConfig{MTU: 1})
	if err == nil || !strings.Contains(err.Error(), "make veth eth0") {
		t.Fatalf("NewPair with MTU 1: %v", err)
	}
}

// A new pair sends nothing by itself, so that tests can count packets exactly.
func TestKernelPairIsQuiet(t *testing.T) {
	for range 10 {
		p := tctest.New(t, lab.PairConfig{})
		time.Sleep(20 * time.Millisecond)
		for _, n := range []*lab.NetNS{p.Near, p.Far} {
			var b []byte
			err := n.Do(func() (err error) {
				b, err = os.ReadFile("/proc/thread-self/net/dev")
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				if (f[0] == p.Dev+":" || f[0] == p.FarDev+":") && (f[2] != "0" || f[10] != "0") {
					t.Errorf("%s received %s and sent %s packets", f[0], f[2], f[10])
				}
			}
		}
	}
}
