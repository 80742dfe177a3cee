package tc_test

import (
	"encoding/binary"
	"errors"
	"math"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/emulate"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// emulated is a network in which ports are behind a link both ways; leaf may make
// another leaf of the link's.
func emulated(t *testing.T, l emulate.Link, leaf func(*hierarchy.RawQdisc), ports ...uint16) *field {
	t.Helper()
	f := newField(t)
	x := branch("x", l.Up)
	x.Ceil, x.Qdisc = hierarchy.Absolute(l.Up), l.Leaf(hierarchy.Send)
	x.Ingress = &hierarchy.BranchSpec{Rate: hierarchy.Absolute(l.Down), Ceil: hierarchy.Absolute(l.Down), Qdisc: l.Leaf(hierarchy.Receive)}
	if leaf != nil {
		leaf(x.Qdisc)
		leaf(x.Ingress.Qdisc)
	}
	tree := resolve(t, hierarchy.Spec{Interface: f.Name, BranchSpec: hierarchy.BranchSpec{
		Rate: hierarchy.Absolute(hierarchy.Gbit), Ingress: &hierarchy.BranchSpec{Rate: hierarchy.Absolute(hierarchy.Gbit)}, Children: []*hierarchy.BranchSpec{x}}})
	if err := errors.Join(f.Settle(t.Context(), tree), f.Receiver().Settle(t.Context(), tree.Ingress)); err != nil {
		t.Fatal(err)
	}
	before, err := f.kernel.Read(t.Context())
	if err == nil {
		err = f.kernel.Apply(t.Context(), before, tree.State(), hierarchy.Diff(before, tree.State()))
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range ports {
		f.tell(p, tree.Find("eth0/x").ID)
	}
	return f
}

// numbered sends datagrams with numbers and returns how many arrive, and how many of
// them behind one that was sent later.
func (f *field) numbered(d hierarchy.Direction, port uint16, packets, size int, each time.Duration) (arrived, late int) {
	f.t.Helper()
	from, to, at := f.way(hierarchy.Port{Direction: d})
	var in, out net.Conn
	open := func(n *lab.NetNS, c *net.Conn, dial func() (net.Conn, error)) {
		f.t.Helper()
		if err := n.Do(func() (err error) { *c, err = dial(); return err }); err != nil {
			f.t.Fatal(err)
		}
	}
	addr := net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, port))
	open(to, &in, func() (net.Conn, error) { return net.ListenUDP("udp4", addr) })
	defer in.Close()
	open(from, &out, func() (net.Conn, error) { return net.DialUDP("udp4", nil, addr) })
	defer out.Close()
	done := make(chan error)
	go func() {
		b := make([]byte, 2000)
		last := uint64(0)
		for {
			if _, err := in.Read(b); err != nil {
				done <- err
				return
			}
			n := binary.NativeEndian.Uint64(b)
			if arrived++; n < last {
				late++
			}
			last = max(last, n)
		}
	}()
	b := make([]byte, size-udpHeaders)
	for i := range packets {
		binary.NativeEndian.PutUint64(b, uint64(i))
		if _, err := out.Write(b); err != nil {
			f.t.Fatal(err)
		}
		time.Sleep(each)
	}
	if err := in.SetReadDeadline(time.Now().Add(2 * time.Second)); err != nil {
		f.t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, os.ErrDeadlineExceeded) {
		f.t.Fatal(err)
	}
	return arrived, late
}

// TestKernelEmulate: packets stay in order and none is lost behind a link with a jitter,
// both ways, whatever the kernel.
func TestKernelEmulate(t *testing.T) {
	tctest.RequireQdisc(t, "netem")
	tctest.RequireLink(t, "ifb")
	f := emulated(t, emulate.Link{Up: 20 * hierarchy.Mbit, Down: 20 * hierarchy.Mbit, Delay: 50 * time.Millisecond, Jitter: 10 * time.Millisecond}, nil, firstPort)
	for _, d := range []hierarchy.Direction{hierarchy.Send, hierarchy.Receive} {
		if arrived, late := f.numbered(d, firstPort, 500, 1000, time.Millisecond); arrived != 500 || late != 0 {
			t.Errorf("%v: %d of 500 arrived, %d behind one that was sent later", d, arrived, late)
		}
	}
}

// likely says whether n of total is what a probability makes of it, within six
// deviations: a fault, and not chance, if it is not.
func likely(n, total int, p float64) bool {
	return math.Abs(float64(n)-float64(total)*p) <= 6*math.Sqrt(float64(total)*p*(1-p))
}

// In virtual time, a link is what its figures say, both ways.
func TestVirtualEmulate(t *testing.T) {
	if !vm.Inside() {
		t.Parallel()
		vm.Run(t, vm.VirtualTime(), vm.V2, "", "-test.run=^TestVirtualEmulate$")
		return
	}
	const (
		port = firstPort
		ms   = time.Millisecond
	)
	both := []hierarchy.Direction{hierarchy.Send, hierarchy.Receive}
	for _, name := range []string{"3g", "bad-wifi", "satellite", "starlink"} { // of the others nothing else is asked
		p, err := emulate.Find(name)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(p.Name, func(t *testing.T) {
			f := emulated(t, p.Link, nil, port)
			defer f.close()
			e, err := lab.NewEcho(t.Context(), f.pair.Far, port)
			if err != nil {
				t.Fatal(err)
			}
			defer e.Close()
			got, err := lab.Measure(t.Context(), lab.Probe{NetNS: f.pair.Near, To: netip.AddrPortFrom(f.pair.Far4, port), Count: 200, Interval: 7 * ms})
			if err != nil {
				t.Fatal(err)
			}
			t.Logf("there %+v, and back %+v, %d of %d lost", got.There, got.RoundTrip, got.Lost, got.Sent)
			for n, q := range []lab.Quantiles{got.There, got.RoundTrip} {
				n := time.Duration(n + 1)
				// The kernel's timer and a packet's way cost a few microseconds.
				if least, most := n*(p.Link.Delay-p.Link.Jitter), n*(p.Link.Delay+p.Link.Jitter)+n*20*time.Microsecond; q.Min < least || q.Max > most {
					t.Errorf("%d way(s) took %v to %v, want %v to %v", n, q.Min, q.Max, least, most)
				}
			}
			back := 1 - float64(p.Link.Loss)/hierarchy.Whole
			if !likely(got.Lost, got.Sent, 1-back*back) {
				t.Errorf("%d of %d were lost there and back, each way %v", got.Lost, got.Sent, 1-back)
			}
		})
	}
	t.Run("loss", func(t *testing.T) {
		l := emulate.Link{Up: 10 * hierarchy.Mbit, Down: 10 * hierarchy.Mbit, Delay: 20 * ms}
		if err := l.Set("loss", "0.5%"); err != nil {
			t.Fatal(err)
		}
		f := emulated(t, l, nil, port)
		for _, d := range both {
			arrived, late := f.numbered(d, port, 10_000, 1000, ms)
			t.Logf("%v: %d of 10000 arrived", d, arrived)
			if !likely(10_000-arrived, 10_000, 0.005) || late != 0 {
				t.Errorf("%v: %d of 10000 arrived, %d too late", d, arrived, late)
			}
		}
	})
	// Packets closer together than the jitter.
	t.Run("order", func(t *testing.T) {
		l := emulate.Link{Up: 20 * hierarchy.Mbit, Down: 20 * hierarchy.Mbit, Delay: 50 * ms, Jitter: 10 * ms}
		without := func(q *hierarchy.RawQdisc) {
			for i, p := range q.Params {
				if p.Name == "rate" {
					q.Params = append(q.Params[:i:i], q.Params[i+1:]...)
					return
				}
			}
			t.Fatalf("no rate in %v", q)
		}
		for _, tt := range []struct {
			name string
			leaf func(*hierarchy.RawQdisc)
		}{{"as it is", nil}, {"netem without a rate", without}} {
			f := emulated(t, l, tt.leaf, port)
			for _, d := range both {
				arrived, late := f.numbered(d, port, 1000, 1000, ms)
				t.Logf("%s, %v: %d arrived, %d behind one that was sent later", tt.name, d, arrived, late)
				if arrived != 1000 || (late != 0) != (tt.leaf != nil) {
					t.Errorf("%s, %v: %d of 1000 arrived, %d behind one that was sent later", tt.name, d, arrived, late)
				}
			}
			f.close()
		}
	})
	// Small packets get all of the rate, and full ones wait as behind a modem.
	t.Run("queue", func(t *testing.T) {
		for _, name := range []string{"3g", "satellite", "cable"} {
			p, err := emulate.Find(name)
			if err != nil {
				t.Fatal(err)
			}
			f := emulated(t, p.Link, nil, port)
			for _, d := range both {
				each := time.Duration(256 * 8 * 1e9 / float64(p.Link.Rate(d)) / 0.98)
				if arrived, _ := f.numbered(d, port, 1000, 256, each); arrived != 1000 {
					t.Errorf("%s, %v: of small packets within the rate, %d of 1000 arrived", name, d, arrived)
				}
			}
			f.close()
		}
		// More than the line takes: the queue is full, and ends.
		p, err := emulate.Find("cable")
		if err != nil {
			t.Fatal(err)
		}
		f := emulated(t, p.Link, nil, port, port+1)
		c := newCounter(t, f.pair.Far, port+1, 1514-udpHeaders)
		defer unix.Close(c.fd)
		e, err := lab.NewEcho(t.Context(), f.pair.Far, port)
		if err != nil {
			t.Fatal(err)
		}
		defer e.Close()
		s, err := lab.Start(t.Context(), lab.Traffic{NetNS: f.pair.Near, Protocol: "udp", To: netip.AddrPortFrom(f.pair.Far4, port+1), Size: 1514 - udpHeaders, Rate: 2 * p.Link.Up})
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * time.Second)
		before := c.count(t)
		got, err := lab.Measure(t.Context(), lab.Probe{NetNS: f.pair.Near, To: netip.AddrPortFrom(f.pair.Far4, port), Count: 100, Interval: 100 * ms})
		rate := c.count(t).WireRate(before)
		if err = errors.Join(err, s.Stop()); err != nil {
			t.Fatal(err)
		}
		const full = 71 * 1514 * 8 * time.Second / 1_000_000 // that many at 1mbit
		t.Logf("%v of packets that wait %+v, a full queue is %v, %d of %d lost", rate, got.There, full, got.Lost, got.Sent)
		if got.There.Max > full+10*ms || got.There.P50 < full*8/10 || rate < 970*hierarchy.Kbit || rate > 1010*hierarchy.Kbit {
			t.Errorf("behind %v they waited %+v, of a queue of %v", rate, got.There, full)
		}
	})
}
