package tc_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// How long traffic runs before it is counted, and how long it is counted.
const (
	settleTime = 2 * time.Second
	countTime  = 6 * time.Second
)

// shaped is an interface with a tree, made by us or by tc with the values that
// tc chooses by itself.
func shaped(b *testing.B, ours bool, rate hierarchy.Bandwidth, children ...*hierarchy.BranchSpec) (*lab.Pair, *hierarchy.Tree) {
	b.Helper()
	p := tctest.New(b, lab.PairConfig{})
	x := open(b, p.Near, p.Dev)
	tree := x.tree(rate, children...)
	if ours {
		x.apply(tree)
		for br := range tree.All() {
			br.Quantum = 0 // the ideal goes by the rates, not by what was chosen for them
		}
		return p, tree
	}
	tctest.Output(b, p.Near, tctest.RequireProgram(b, "tc"), "qdisc", "add", "dev", p.Dev, "root", "handle", "71f:", "htb", "default", "2")
	for br := range tree.All() {
		tctest.Output(b, p.Near, "tc", "class", "add", "dev", p.Dev, "parent", br.Parent.String(), "classid", br.ID.String(),
			"htb", "rate", fmt.Sprintf("%dbit", br.Rate), "ceil", fmt.Sprintf("%dbit", br.Ceil), "prio", fmt.Sprint(br.Prio))
	}
	return p, tree
}

// greedy is into for traffic that keeps a queue filled: BBR, where it is the
// default of TCP, does not.
func greedy(class hierarchy.ClassID, protocol string) func(fd int) error {
	return func(fd int) error {
		if protocol == "tcp" {
			if err := unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, "cubic"); err != nil {
				return err
			}
		}
		return into(class)(fd)
	}
}

// shares sends into every leaf what it can take and more, and returns what
// arrived of each at the far end, in bits per second on the wire.
func shares(b *testing.B, p *lab.Pair, tree *hierarchy.Tree, protocol string, flows int) map[hierarchy.Path]hierarchy.Bandwidth {
	b.Helper()
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	ports := map[hierarchy.Path]uint16{}
	var list []uint16
	demand := map[hierarchy.Path]hierarchy.Bandwidth{}
	for br := range tree.All() {
		if br.Leaf() {
			ports[br.Path] = uint16(6000 + len(list))
			list = append(list, ports[br.Path])
			demand[br.Path] = hierarchy.Unlimited
		}
	}
	sink, err := lab.NewSink(ctx, p.Far, list...)
	if err != nil {
		b.Fatal(err)
	}
	ideal := tree.Ideal(demand)
	for path, port := range ports {
		id := tree.Find(path).ID
		t := lab.Traffic{NetNS: p.Near, Protocol: protocol, To: netip.AddrPortFrom(p.Far4, port), Flows: flows, Control: greedy(id, protocol)}
		if protocol == "udp" {
			t.Rate = ideal[path] * 13 / 10
		}
		if _, err := lab.Start(ctx, t); err != nil {
			b.Fatal(err)
		}
	}
	time.Sleep(settleTime)
	before := map[hierarchy.Path]lab.Count{}
	for path, port := range ports {
		before[path] = sink.Count(port)
	}
	time.Sleep(countTime)
	got := map[hierarchy.Path]hierarchy.Bandwidth{}
	for path, port := range ports {
		got[path] = sink.Count(port).WireRate(before[path])
	}
	return got
}

// BenchmarkRate measures the rate on the wire over the configured rate of a
// single branch, for values chosen by us and by tc, in turns.
func BenchmarkRate(b *testing.B) {
	for _, rate := range []hierarchy.Bandwidth{10 * hierarchy.Mbit, 100 * hierarchy.Mbit, hierarchy.Gbit, 5 * hierarchy.Gbit} {
		for _, flows := range []int{1, 10} {
			b.Run(fmt.Sprintf("%v/flows=%d", rate, flows), func(b *testing.B) {
				var sum [2]float64
				n := 0
				for b.Loop() {
					n++
					for i, ours := range []bool{true, false} {
						p, tree := shaped(b, ours, rate)
						got := shares(b, p, tree, "tcp", flows)
						sum[i] += float64(got[tree.Root.Path.Join(hierarchy.RestName)]) / float64(rate)
						if err := p.Close(); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(sum[0]/float64(n), "wire/rate")
				b.ReportMetric(sum[1]/float64(n), "tc-wire/rate")
			})
		}
	}
}

// BenchmarkShares measures how far the worst leaf of a tree of three levels is
// from the ideal allocation when all of them want more, for values chosen by us
// and by tc, in turns. A third of the interface is guaranteed to nobody, so that
// much is borrowed, at two levels.
func BenchmarkShares(b *testing.B) {
	part := func(name, rate string, children ...*hierarchy.BranchSpec) *hierarchy.BranchSpec {
		a, err := hierarchy.ParseAmount(rate)
		if err != nil {
			b.Fatal(err)
		}
		return &hierarchy.BranchSpec{Name: name, Rate: a, Children: children}
	}
	tree := []*hierarchy.BranchSpec{
		part("a", "40%", part("x", "50%"), part("y", "25%")),
		part("b", "20%", part("x", "50%"), part("y", "25%")),
		part("c", "5%"), part(hierarchy.RestName, "5%"),
	}
	for _, rate := range []hierarchy.Bandwidth{20 * hierarchy.Mbit, 200 * hierarchy.Mbit, hierarchy.Gbit} {
		for _, protocol := range []string{"tcp", "udp"} {
			b.Run(fmt.Sprintf("%v/%s", rate, protocol), func(b *testing.B) {
				var worst [2]float64
				for b.Loop() {
					for i, ours := range []bool{true, false} {
						p, t := shaped(b, ours, rate, tree...)
						demand := map[hierarchy.Path]hierarchy.Bandwidth{}
						for br := range t.All() {
							demand[br.Path] = hierarchy.Unlimited
						}
						ideal := t.Ideal(demand)
						for path, got := range shares(b, p, t, protocol, 4) {
							worst[i] = max(worst[i], math.Abs(float64(got)/float64(ideal[path])-1))
						}
						if err := p.Close(); err != nil {
							b.Fatal(err)
						}
					}
				}
				b.ReportMetric(worst[0]*100, "%worst")
				b.ReportMetric(worst[1]*100, "tc-%worst")
			})
		}
	}
}

// BenchmarkLatency measures what a small flow waits for, from the sender's call to
// the far kernel: inside a branch of 10 Mbit/s that ten TCP flows fill, in the
// branch beside it, and in that one when nothing else runs. The leaf qdiscs are the
// kernel's best.
func BenchmarkLatency(b *testing.B) {
	const rate = 10 * hierarchy.Mbit
	for b.Loop() {
		p, tree := shaped(b, true, 100*hierarchy.Mbit,
			&hierarchy.BranchSpec{Name: "busy", Rate: hierarchy.Absolute(rate), Ceil: hierarchy.Absolute(rate)},
			&hierarchy.BranchSpec{Name: "calm", Rate: hierarchy.Absolute(rate)})
		sink, err := lab.NewSink(b.Context(), p.Far, 6000)
		if err != nil {
			b.Fatal(err)
		}
		echo, err := lab.NewEcho(b.Context(), p.Far, 5999)
		if err != nil {
			b.Fatal(err)
		}
		probe := func(path hierarchy.Path) lab.Latency {
			l, err := lab.Measure(b.Context(), lab.Probe{
				NetNS: p.Near, To: netip.AddrPortFrom(p.Far4, 5999), Count: 700, Interval: 7 * time.Millisecond, Control: into(tree.Find(path).ID),
			})
			if err != nil {
				b.Fatal(err)
			}
			return l
		}
		idle := probe("eth0/calm")
		src, err := lab.Start(b.Context(), lab.Traffic{
			NetNS: p.Near, Protocol: "tcp", To: netip.AddrPortFrom(p.Far4, 6000), Flows: 10, Control: greedy(tree.Find("eth0/busy").ID, "tcp"),
		})
		if err != nil {
			b.Fatal(err)
		}
		time.Sleep(settleTime)
		busy, calm := probe("eth0/busy"), probe("eth0/calm")
		if err := errors.Join(src.Stop(), echo.Close(), sink.Close(), p.Close()); err != nil {
			b.Fatal(err)
		}
		for name, l := range map[string]lab.Latency{"idle": idle, "busy": busy, "calm": calm} {
			b.ReportMetric(float64(l.There.P99)/1e6, name+"-p99-ms")
			b.ReportMetric(float64(l.Lost)/float64(l.Sent)*100, name+"-%lost")
		}
	}
}
