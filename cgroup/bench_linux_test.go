package cgroup_test

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/tctest"
)

// rounds is how often two things are measured in turn; medians and minima of them
// are compared.
const rounds = 15

func median(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }

// emptyProgram is what a program costs at least.
func emptyProgram() (*ebpf.Program, error) {
	return ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()},
	})
}

// timeProgram runs a BPF program and an empty one in turn. The packet's socket belongs to
// the caller's cgroup.
func timeProgram(id ebpf.ProgramID) error {
	full, err := ebpf.NewProgramFromID(id)
	if err != nil {
		return err
	}
	empty, err := emptyProgram()
	if err != nil {
		return err
	}
	packet := make([]byte, 64)
	packet[12] = 8 // IPv4
	var ns [2][]float64
	for range rounds {
		for i, p := range []*ebpf.Program{empty, full} {
			_, d, err := p.Benchmark(packet, 200_000, nil)
			if err != nil {
				return err
			}
			ns[i] = append(ns[i], float64(d.Nanoseconds()))
		}
	}
	return json.NewEncoder(os.Stdout).Encode(ns)
}

// BenchmarkProgram is the classifier against an empty program, for a socket of a
// cgroup at some depth that is bound (goal: at most 25 ns over it).
func BenchmarkProgram(b *testing.B) {
	for _, depth := range []int{1, 8, 31} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			n := newNetwork(b)
			p := newPlace(b, bind.WayBPF)
			dir := sub(b, p.dir, slices.Repeat([]string{"d"}, depth-1)...)
			bind := n.binder(b, bind.WayBPF)
			apply(b, bind, bound(p.target(dir), red))
			id, err := n.hook.EgressProgram()
			if err != nil {
				b.Fatal(err)
			}
			var ns [2][]float64
			for b.Loop() {
				out, err := tctest.Command(b, "join", dir, ";", "timeProgram", fmt.Sprint(id)).Output()
				if err != nil {
					b.Fatal(err)
				}
				if err := json.Unmarshal(out, &ns); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(ns[0]), "ns-empty")
			b.ReportMetric(median(ns[1])-median(ns[0]), "ns-over-empty")
			b.ReportMetric(slices.Min(ns[1])-slices.Min(ns[0]), "ns-over-empty-min")
		})
	}
}

// BenchmarkPath is the processor time of an 18-byte UDP packet through the whole
// stack to a full socket at the far end, with the classifier over HTB alone, where
// the socket itself asks for the class (goal: at most 1.05 at any number of bindings).
func BenchmarkPath(b *testing.B) {
	for _, bindings := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("bindings=%d", bindings), func(b *testing.B) {
			n := newNetwork(b)
			p := newPlace(b, bind.WayBPF)
			bind := n.binder(b, bind.WayBPF)
			all := []hierarchy.Bound{bound(p.target(p.dir), red)}
			for i := range bindings - 1 { // of cgroups that are gone, which cost as much
				all = append(all, bound(fmt.Sprintf("cgroup-id:%d", uint64(1<<40)+uint64(i)), green))
			}
			apply(b, bind, all...)
			far, near := n.start(b, n.Far, ""), n.start(b, n.Near, p.dir)
			far.Do("sink s %s:9", n.Far4)
			n.beside(b, func() string { return near.Do("burst s %s:9 30000 %v", n.Far4, red) })
		})
	}
}

// BenchmarkServed is the processor time of 18 bytes sent by TCP on an accepted
// connection that another process' listener had, with the classifier over HTB alone.
func BenchmarkServed(b *testing.B) {
	n := newNetwork(b)
	p := newPlace(b, bind.WayBPF)
	apply(b, n.binder(b, bind.WayBPF), bound(p.target(p.dir), red))
	at := n.Near4.String() + ":7500"
	far, near := n.start(b, n.Far, ""), n.start(b, n.Near, "")
	near.Do("listen l %s", at)
	far.Do("connect c %s", at)
	near.Do("join %s", p.dir)
	near.Do("accept s l")
	near.Do("prompt s")
	far.Begin("drain c")
	n.beside(b, func() string { return near.Do("burst s %s 30000", at) })
	near.Do("finish s")
	far.End()
}

// beside measures bursts without a program, with an empty one in the classifier's place
// and with the classifier, in turn.
func (n *network) beside(b *testing.B, burst func() string) {
	id, err := n.hook.EgressProgram()
	if err != nil {
		b.Fatal(err)
	}
	program, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		b.Fatal(err)
	}
	defer program.Close()
	empty, err := emptyProgram()
	if err != nil {
		b.Fatal(err)
	}
	defer empty.Close()
	var ns [3][]float64
	for b.Loop() {
		for range rounds {
			for i, p := range []*ebpf.Program{nil, empty, program} {
				if p != nil {
					err = n.hook.AttachEgress(p.FD(), "vif_egress")
				} else {
					err = n.hook.DetachEgress()
				}
				if err != nil {
					b.Fatal(err)
				}
				v, err := strconv.ParseFloat(burst(), 64)
				if err != nil {
					b.Fatal(err)
				}
				ns[i] = append(ns[i], v)
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(ns[0]), "ns-htb")
	b.ReportMetric(median(ns[1])/median(ns[0]), "x/htb-empty")
	b.ReportMetric(median(ns[2])/median(ns[0]), "x/htb")
	b.ReportMetric(slices.Min(ns[2])/slices.Min(ns[0]), "x/htb-min")
}

// BenchmarkApply is the time for a new classifier with 10,000 bindings, of which 1,000
// are to cgroups that are there, and for reading them back.
func BenchmarkApply(b *testing.B) {
	n := newNetwork(b)
	p := newPlace(b, bind.WayBPF)
	var all []hierarchy.Bound
	for i := range 10_000 {
		if i < 1000 {
			all = append(all, bound(p.target(sub(b, p.dir, strconv.Itoa(i))), red))
		} else {
			all = append(all, bound(fmt.Sprintf("cgroup-id:%d", uint64(1<<40)+uint64(i)), green))
		}
	}
	for b.Loop() {
		binder := n.binder(b, bind.WayBPF)
		apply(b, binder, all...)
		if got := read(b, binder).Bound; len(got) != len(all) {
			b.Fatalf("%d bindings", len(got))
		}
		if err := n.hook.DetachEgress(); err != nil {
			b.Fatal(err)
		}
	}
}
