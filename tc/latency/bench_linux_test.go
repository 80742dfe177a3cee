package latency

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
)

// BenchmarkMeasured is the processor time of an 18-byte datagram through the whole stack to a
// full socket at the far end, that nothing holds up, while it is measured and while it is not,
// in turn.
func BenchmarkMeasured(b *testing.B) {
	const rounds, packets = 15, 30_000
	s := newShapedAt(b, 100*hierarchy.Gbit, bfifo("60kb"))
	at := netip.AddrPortFrom(s.Far4, 9)
	err := s.Far.Do(func() error {
		full, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err == nil {
			b.Cleanup(func() { full.Close() })
		}
		return err
	})
	if err != nil {
		b.Fatal(err)
	}
	class := int(s.tree.Find(beside).ID)
	burst := func() float64 {
		used := func() int64 {
			var r unix.Rusage
			if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
				b.Fatal(err)
			}
			return r.Utime.Nano() + r.Stime.Nano()
		}
		was := used()
		_, err := lab.Send(b.Context(), lab.Traffic{
			NetNS: s.Near, Protocol: "udp", To: at, Size: 18, Bytes: packets * 18,
			Control: func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PRIORITY, class) },
		})
		if err != nil {
			b.Fatal(err)
		}
		return float64(used()-was) / packets
	}
	var bare, measured, programs []float64
	for b.Loop() {
		for range rounds {
			bare = append(bare, burst())
			m := s.begin()
			measured = append(measured, burst())
			r, err := m.End(func() ([]uint64, error) { return make([]uint64, len(m.queues)), nil })
			if err != nil {
				b.Fatal(err)
			}
			if q := r.Queues[1]; q.Packets+q.Untimed+uint64(len(q.Drops)) < packets*9/10 {
				b.Fatal(fmt.Errorf("%d packets were seen to leave, %d not", q.Packets, q.Untimed))
			}
			programs = append(programs, float64(r.Cost.Programs)/float64(r.Queues[1].Packets))
			if err := m.Close(); err != nil {
				b.Fatal(err)
			}
		}
	}
	median := func(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(bare), "ns-bare")
	b.ReportMetric(median(measured), "ns-measured")
	b.ReportMetric(median(measured)/median(bare), "measured/bare")
	b.ReportMetric(slices.Min(measured)/slices.Min(bare), "measured/bare-min")
	b.ReportMetric(median(programs), "ns-programs")
}
