package latency

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// shaped is an interface with a tree: of a branch that is slow, one beside it, and the rest.
type shaped struct {
	testing.TB
	*lab.Pair
	device *tc.Device
	tree   *hierarchy.Tree
}

// measured are its leaves.
var measured = []hierarchy.Path{slow, beside, "eth0/rest"}

const slow, beside = hierarchy.Path("eth0/slow"), hierarchy.Path("eth0/beside")

// newShaped makes one whose slow branch has a queue.
func newShaped(t testing.TB, queue hierarchy.RawQdisc) *shaped {
	return newShapedAt(t, 100*hierarchy.Mbit, queue)
}

// newShapedAt is newShaped with a rate of the interface, of which a tenth is beside.
func newShapedAt(t testing.TB, rate hierarchy.Bandwidth, queue hierarchy.RawQdisc) *shaped {
	tctest.RequireRoot(t)
	s := &shaped{TB: t, Pair: tctest.New(t, lab.PairConfig{})}
	// Where nobody listens, an error comes back for what has arrived, and is what the next
	// packet meets that is sent: it does not come to the queue.
	sink, err := lab.NewSink(context.WithoutCancel(t.Context()), s.Far, discard)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { sink.Close() })
	conn, err := rtnl.Open(rtnl.Config{NetNS: s.Near.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if s.device, err = tc.Find(conn, s.Dev); err != nil {
		t.Fatal(err)
	}
	tree, problems := hierarchy.Resolve(&hierarchy.Spec{Interface: s.Dev, BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(rate), Children: []*hierarchy.BranchSpec{
		{Name: slow.Base(), Rate: hierarchy.Absolute(1 * hierarchy.Mbit), Ceil: hierarchy.Absolute(1 * hierarchy.Mbit), Qdisc: &queue},
		{Name: beside.Base(), Rate: hierarchy.Absolute(rate / 10)},
	}}}, qdisc.Kinds())
	for _, p := range problems {
		if !p.Warning {
			t.Fatalf("%s: %s: %s", p.Path, p.Key, p.Text)
		}
	}
	if _, err := (hierarchy.IDs{}).Assign(tree); err != nil {
		t.Fatal(err)
	}
	if err := s.device.Settle(t.Context(), tree); err != nil {
		t.Fatal(err)
	}
	var is hierarchy.State
	if err := s.device.Read(t.Context(), &is); err != nil {
		t.Fatal(err)
	}
	if _, err := s.device.Do(t.Context(), hierarchy.Diff(is, tree.State()).Steps); err != nil {
		t.Fatal(err)
	}
	s.tree = tree
	return s
}

// begin measures slow, beside and the rest, in this order.
func (s *shaped) begin() *Meter {
	s.Helper()
	var queues []Queue
	for _, p := range measured {
		b := s.tree.Find(p)
		queues = append(queues, Queue{s.device.Index, b.ID, b.Qdisc.Kind})
	}
	var is unix.Stat_t
	if err := unix.Fstat(s.Near.FD(), &is); err != nil {
		s.Fatal(err)
	}
	m, err := Begin(is.Ino, queues)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { m.Close() })
	return m
}

// end is what was measured of slow and beside.
func (s *shaped) end(m *Meter) (Measured, Measured, Cost) {
	s.Helper()
	r, err := m.End(func() ([]uint64, error) {
		var n []uint64
		for _, p := range measured {
			_, is := s.counters(p)
			n = append(n, uint64(is.QLen))
		}
		return n, nil
	})
	if err != nil {
		s.Fatal(err)
	}
	s.Logf("cost: %+v; undivided: %v", r.Cost, r.Undivided)
	for i, q := range r.Queues {
		s.Logf("%d: %d packets, p50 %v, p99 %v, mean %v, longest %v, %d untimed, %d waiting, drops %v",
			i, q.Packets, q.Quantile(0.5), q.Quantile(0.99), q.Mean(), q.Longest, q.Untimed, q.Waiting, q.Drops)
	}
	return r.Queues[0], r.Queues[1], r.Cost
}

const (
	size    = 1000 // of a packet on the wire
	discard = 9    // the port that it goes to
)

// send sends packets into a branch, segments of which are one to its queue.
func (s *shaped) send(p hierarchy.Path, packets, segments int) {
	s.Helper()
	class := int(s.tree.Find(p).ID)
	const payload = size - 42
	_, err := lab.Send(s.Context(), lab.Traffic{
		NetNS: s.Near, Protocol: "udp", To: netip.AddrPortFrom(s.Far4, discard), Size: payload, Bytes: uint64(packets * payload), Segments: segments,
		Control: func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, class) },
	})
	if err != nil {
		s.Fatal(err)
	}
}

// counters are those of a branch's class and of its queue.
func (s *shaped) counters(p hierarchy.Path) (tc.ClassStats, tc.LeafStats) {
	s.Helper()
	var is hierarchy.State
	n, err := s.device.Count(context.WithoutCancel(s.Context()), &is)
	if err != nil {
		s.Fatal(err)
	}
	id := s.tree.Find(p).ID
	return n.Classes[id], n.Leaves[id]
}

// drain waits until nothing waits in a branch.
func (s *shaped) drain(p hierarchy.Path) {
	s.Helper()
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
		if _, q := s.counters(p); q.QLen == 0 {
			return
		}
		if time.Now().After(deadline) {
			s.Fatalf("%s does not get empty", p)
		}
	}
}

func bfifo(limit string) hierarchy.RawQdisc {
	return hierarchy.RawQdisc{Kind: "bfifo", Params: []hierarchy.RawParam{{Name: "limit", Text: limit, Quoted: true}}}
}

// TestKernelWaits holds measured times against what a queue of known packets takes at a known
// rate: no packet leaves earlier, and none later than all are gone. What is dropped, and how
// many leave, the kernel counts, too. It may not call programs for some that leave (Linux 6.18
// on one machine, in interrupts on one of its processors): these have to be told of.
func TestKernelWaits(t *testing.T) {
	const room, sent = 60, 100
	s := newShaped(t, bfifo("60kb"))
	m := s.begin()
	wasClass, wasQueue := s.counters(slow)
	began := time.Now()
	s.send(slow, sent, 0)
	sending := time.Since(began)
	s.send(beside, 50, 0)
	s.drain(slow)
	s.drain(beside)
	lasted := time.Since(began)
	isClass, isQueue := s.counters(slow)
	in, calm, cost := s.end(m)

	burst := int(s.tree.Find(slow).CBurst)
	least := func(packets int) time.Duration { // in which so many leave
		return time.Duration(max(0, packets*size-burst-size)) * 8 * time.Second / time.Duration(hierarchy.Mbit)
	}
	got := int(in.Packets)
	if left := isClass.Packets - wasClass.Packets; in.Packets+in.Untimed != left || got < room/2 {
		t.Errorf("%d packets were seen to leave, and %d not, but the kernel counted %d", in.Packets, in.Untimed, left)
	}
	if in.Longest < least(got)-sending || in.Longest > lasted {
		t.Errorf("the longest waited %v: %d packets take %v at least, sending took %v, and all of it %v", in.Longest, got, least(got), sending, lasted)
	}
	if p := in.Quantile(0.5); p < (least(got/2)-sending)*24/25 || p > in.Longest {
		t.Errorf("half waited %v at most: half of them take %v to leave, sending took %v", p, least(got/2), sending)
	}
	if calm.Packets+calm.Untimed != 50 || calm.Quantile(0.5) > in.Quantile(0.5)/4 {
		t.Errorf("beside it %d packets waited, half of them %v at most", calm.Packets, calm.Quantile(0.5))
	}
	sum := uint64(0)
	for _, d := range in.Drops {
		sum += d.Packets
		if !slices.Contains([]string{"QDISC_DROP", "QDISC_OVERLIMIT"}, d.Reason) {
			t.Errorf("%d packets are dropped for %q", d.Packets, d.Reason)
		}
	}
	if want := uint64(isQueue.Drops - wasQueue.Drops); sum != want || sum+in.Packets+in.Untimed != sent {
		t.Errorf("%d packets were dropped, the kernel counted %d; %d were sent and %d left", sum, want, sent, got)
	}
	if in.Waiting+calm.Waiting+uint64(len(calm.Drops)) != 0 {
		t.Errorf("%d and %d wait, beside it are dropped %v", in.Waiting, calm.Waiting, calm.Drops)
	}
	// The program's buckets are those of Go: their middles are, on average, what was added up.
	var middles uint64
	for i, n := range in.buckets {
		from, to := bounds(i)
		middles += n * (from + to) / 2
	}
	if off := float64(middles) / float64(in.Total); off < 0.96 || off > 1.04 {
		t.Errorf("the buckets come to %.3f of the sum", off)
	}
	if cost.Unknown != nil || cost.Runs < in.Packets*2 || cost.Programs <= 0 {
		t.Errorf("cost is %+v", cost)
	}
}

// TestKernelWaiting holds what is said of packets that are in the queue in the end, and that
// nothing of a measurement stays.
func TestKernelWaiting(t *testing.T) {
	s := newShaped(t, bfifo("60kb"))
	m := s.begin()
	s.send(slow, 50, 0)
	in, _, _ := s.end(m)
	if _, q := s.counters(slow); in.Waiting < uint64(q.QLen) || in.Waiting == 0 || in.Waiting+in.Packets+in.Untimed != 50 {
		t.Errorf("%d wait, %d have left and %d were not seen to; the kernel has %d still", in.Waiting, in.Packets, in.Untimed, q.QLen)
	}
	var programs []ebpf.ProgramID
	for _, p := range m.colls[0].Programs {
		info, err := p.Info()
		if err != nil {
			t.Fatal(err)
		}
		id, _ := info.ID()
		programs = append(programs, id)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	for _, id := range programs {
		for deadline := time.Now().Add(time.Minute); ; time.Sleep(2 * time.Millisecond) {
			p, err := ebpf.NewProgramFromID(id)
			if errors.Is(err, os.ErrNotExist) {
				break
			}
			if err == nil {
				p.Close()
			}
			if time.Now().After(deadline) {
				t.Fatalf("program %d stays: %v", id, err)
			}
		}
	}
	// A new one knows nothing of what was queued before it.
	m = s.begin()
	s.drain(slow)
	if in, _, _ := s.end(m); in.Packets+in.Untimed+in.Waiting != 0 {
		t.Errorf("of packets that came before, %d left, %d were not seen to, %d wait", in.Packets, in.Untimed, in.Waiting)
	}
}

// TestKernelDivided holds what is said of packets that their queue divides: their parts are
// followed where the kernel allows that, and else it is said how many were not.
func TestKernelDivided(t *testing.T) {
	tctest.RequireQdisc(t, "tbf")
	const packets, parts = 3, 10
	s := newShaped(t, hierarchy.RawQdisc{Kind: "tbf", Params: []hierarchy.RawParam{
		{Name: "rate", Text: "1mbit", Quoted: true}, {Name: "burst", Text: "2kb", Quoted: true}, {Name: "limit", Text: "60kb", Quoted: true},
	}})
	m := s.begin()
	wasClass, _ := s.counters(slow)
	s.send(slow, packets*parts, parts)
	s.drain(slow)
	isClass, isQueue := s.counters(slow)
	in, _, _ := s.end(m)
	if left := isClass.Packets - wasClass.Packets; left != packets*parts {
		t.Fatalf("%d packets left, want all %d: they were not divided, or dropped: class %+v, queue %+v", left, packets*parts, isClass, isQueue)
	}
	if undivided := m.result.Undivided; undivided != nil {
		t.Logf("not followed here: %v", undivided)
		if in.Packets != 0 || in.Untimed != packets {
			t.Errorf("%d packets were seen to leave and %d not, but nothing follows their parts", in.Packets, in.Untimed)
		}
		return
	}
	if in.Packets+in.Untimed != packets*parts || in.Packets < packets*parts/2 {
		t.Errorf("%d packets were seen to leave and %d not", in.Packets, in.Untimed)
	}
}
