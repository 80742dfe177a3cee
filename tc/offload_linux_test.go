package tc_test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"unsafe"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// setOffload is "ethtool -K": command is one of ETHTOOL_S...
func setOffload(t *testing.T, n *lab.NetNS, dev string, command, value uint32) {
	t.Helper()
	err := n.Do(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		v := struct{ command, data uint32 }{command, value}
		req := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [16]byte
		}{data: unsafe.Pointer(&v)}
		copy(req.name[:], dev)
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); e != 0 {
			return e
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// found is an interface and a connection to its namespace.
func found(t *testing.T, n *lab.NetNS, dev string) (link.Link, *rtnl.Conn) {
	t.Helper()
	c := open(t, n, dev).conn
	l, err := link.Find(c, dev)
	if err != nil {
		t.Fatal(err)
	}
	return l, c
}

func offloads(t *testing.T, p *lab.Pair) link.Offloads {
	t.Helper()
	l, c := found(t, p.Near, p.Dev)
	o, err := l.Offloads(c)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

// TestKernelOffloads holds what is said about offloads against the packets that a
// tree gets to see: HTB counts each that it serves, and the bytes of all.
func TestKernelOffloads(t *testing.T) {
	ip := func(args ...string) func(*testing.T, *lab.Pair) {
		return func(t *testing.T, p *lab.Pair) {
			tctest.Output(t, p.Near, "ip", append([]string{"link", "set", "dev", p.Dev}, args...)...)
		}
	}
	ethtool := func(value uint32, commands ...uint32) func(*testing.T, *lab.Pair) {
		return func(t *testing.T, p *lab.Pair) {
			for _, c := range commands {
				setOffload(t, p.Near, p.Dev, c, value)
			}
		}
	}
	const most = 1e9
	// Where gso_max_size leaves no room for two segments, only later kernels put
	// together what was written in such pieces (tcp_grow_skb, net/ipv4/tcp_output.c,
	// since v6.10). How often it can depends on when acknowledgements come: more than one
	// segment a packet, in the mean, is what shows it.
	two := 0.0
	if kernelSince(t, "6.10") {
		two = 1515
	}
	for _, x := range []struct {
		name     string
		set      func(*testing.T, *lab.Pair)
		from, to float64 // mean packet in bytes
		want     func(*link.Offloads)
	}{
		{"default", ethtool(0), 8000, most, func(*link.Offloads) {}},
		{"no TSO, no GSO", ethtool(0, unix.ETHTOOL_STSO, unix.ETHTOOL_SGSO), 8000, most, func(o *link.Offloads) { o.TSO, o.GSO = false, false }},
		{"GRO", ethtool(1, unix.ETHTOOL_SGRO), 8000, most, func(o *link.Offloads) { o.GRO = true }},
		{"gso_max_size", ip("gso_max_size", "8000"), 3000, 8000, func(o *link.Offloads) { o.Packet = 8000 }},
		{"gso_max_size below two", ip("gso_max_size", "2000"), two, 3028, func(o *link.Offloads) { o.Packet = 3028 }},
		{"gso_max_segs", ip("gso_max_segs", "1"), 0, 1514, func(o *link.Offloads) { o.Packet = 1514 }},
		{"gso_max_segs 4", ip("gso_max_segs", "4"), 4000, 6056, func(o *link.Offloads) { o.Packet = 6056 }},
	} {
		t.Run(x.name, func(t *testing.T) {
			p := tctest.New(t, lab.PairConfig{})
			want := offloads(t, p)
			x.set(t, p)
			x.want(&want)
			got := offloads(t, p)
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("offloads (-want +got):\n%s", d)
			}
			tctest.TC(t, p.Near, "qdisc", "add", "dev", p.Dev, "root", "handle", "1:", "htb", "default", "1")
			tctest.TC(t, p.Near, "class", "add", "dev", p.Dev, "classid", "1:1", "htb", "rate", "200mbit", "burst", "256kb")
			s, err := lab.NewSink(t.Context(), p.Far, 5000)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			_, err = lab.Send(t.Context(), lab.Traffic{NetNS: p.Near, Protocol: "tcp", To: netip.AddrPortFrom(p.Far4, 5000), Bytes: 4 << 20})
			if err != nil {
				t.Fatal(err)
			}
			var bytes, served float64
			out := tctest.TC(t, p.Near, "-s", "class", "show", "dev", p.Dev)
			for l := range strings.Lines(out) {
				fmt.Sscanf(strings.TrimSpace(l), "Sent %f bytes", &bytes)
				fmt.Sscanf(strings.TrimSpace(l), "lended: %f", &served)
			}
			mean := bytes / served
			t.Logf("%+v: mean packet %.0f bytes", got, mean)
			if mean < x.from || mean > x.to {
				t.Errorf("mean packet of %.0f bytes, not %.0f to %.0f:\n%s", mean, x.from, x.to, out)
			}
		})
	}
}

// TestKernelQueues: a veth has as many as it was made with, and an interface whose
// driver does not say has none.
func TestKernelQueues(t *testing.T) {
	for _, want := range []int{1, 3} {
		p := tctest.New(t, lab.PairConfig{Queues: want})
		l, c := found(t, p.Near, p.Dev)
		if got, err := l.Queues(c); err != nil || got != want {
			t.Errorf("%d queues, %v; want %d", got, err, want)
		}
		l, c = found(t, p.Near, "lo")
		if got, err := l.Queues(c); err != nil || got != 0 {
			t.Errorf("lo: %d queues, %v", got, err)
		}
	}
}
