package cgroup_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"golang.org/x/sys/unix"

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

// timeProgram runs a BPF program and an empty one in turn. The packet is a datagram of
// class red; its socket belongs to the caller's cgroup.
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
	packet[12], packet[14], packet[23] = 8, 0x45, unix.IPPROTO_UDP // IPv4
	buff := make([]byte, 192)                                      // struct __sk_buff
	binary.NativeEndian.PutUint32(buff[32:], uint32(red))          // priority
	const repeat = 200_000
	var ns [2][]float64
	for range rounds {
		for i, p := range []*ebpf.Program{empty, full} {
			start := time.Now()
			if _, err := p.Run(&ebpf.RunOptions{Data: packet, Context: buff, Repeat: repeat}); err != nil {
				return err
			}
			ns[i] = append(ns[i], float64(time.Since(start))/repeat)
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
	for _, many := range []int{1, 100, 10_000} {
		b.Run(fmt.Sprintf("bindings=%d", many), func(b *testing.B) {
			n := newNetwork(b)
			p := newPlace(b, bind.WayBPF)
			bind := n.binder(b, bind.WayBPF)
			apply(b, bind, bindings(p.target(p.dir), many)...)
			far, near := n.start(b, n.Far, ""), n.start(b, n.Near, p.dir)
			far.Do("sink s %s:9", n.Far4)
			n.beside(b, func() string { return near.Do("burst s %s:9 30000 %v", n.Far4, red) })
		})
	}
}

// BenchmarkMatched is the processor time of such a packet of nobody who is bound, with
// matches, over HTB alone (goal: at most 1.05 at any number of them): of one that fits
// nothing, one that fits a range of ports, and of packets to ever other addresses, of
// which some fit. Beside it are two empty programs, for the classifier and the matches
// are one behind the other, and as many u32 filters at the qdisc, of which the last fits.
func BenchmarkMatched(b *testing.B) {
	for _, x := range []struct{ prefixes, ports int }{{1, 0}, {1000, 0}, {10_000, 1000}} {
		for _, to := range []string{"none", "port", "addresses"} {
			if to == "port" && x.ports == 0 || to == "addresses" && x.prefixes == 1 {
				continue
			}
			b.Run(fmt.Sprintf("prefixes=%d,ports=%d/%s", x.prefixes, x.ports, to), func(b *testing.B) {
				n := newNetwork(b)
				tctest.Output(b, n.Near, "ip", "route", "add", "default", "via", n.Far4.String())
				tctest.Output(b, n.Far, "ip", "route", "add", "local", "default", "dev", "lo")
				r := rand.New(rand.NewPCG(1, 2))
				all := []hierarchy.Matched{
					matched(b, green, []hierarchy.ClassID{rest}, prefixes(r, x.prefixes)...),
					matched(b, blue, []hierarchy.ClassID{rest}, ranges(x.ports)...),
				}
				applyMatched(b, n.binder(b, bind.WayBPF), all[:1+min(x.ports, 1)])
				var filters strings.Builder
				many := min(x.prefixes, 1000) // the kernel has room for 4,095
				for i := range many {
					dst := fmt.Sprintf("10.9.%d.%d", i/256, i%256)
					if i == many-1 {
						dst = "0.0.0.0/0"
					}
					fmt.Fprintf(&filters, "filter add dev eth0 parent 71f: protocol ip pref 9 u32 match ip dst %s match ip protocol 17 0xff flowid %v\n", dst, red)
				}
				batch := filepath.Join(b.TempDir(), "filters")
				if err := os.WriteFile(batch, []byte(filters.String()), 0o600); err != nil {
					b.Fatal(err)
				}
				tctest.TC(b, n.Near, "-batch", batch)
				far, near := n.start(b, n.Far, ""), n.start(b, n.Near, "")
				far.Do("sink s 0.0.0.0:9")
				far.Do("sink port 0.0.0.0:5000")
				verb, at := "burst", n.Far4.String()+":9"
				switch to {
				case "port":
					at = n.Far4.String() + ":5000"
				case "addresses":
					verb = "spread"
				}
				asks := red.String()
				burst := func() string { return near.Do("%s s%s %s 30000 %s", verb, asks, at, asks) }
				got := n.during(b, func() { burst() })
				if all := got[rest] + got[green] + got[blue]; all != 30_000 || (to == "none") != (got[rest] == all) || (to == "port") != (got[blue] == all) {
					b.Errorf("%d packets in the rest, %d by prefixes, %d by ports", got[rest], got[green], got[blue])
				}
				n.besideMatches(b, &asks, burst)
			})
		}
	}
}

// prefixes are matches of receivers below 200.0.0.0, of 12 to 32 bits; one is of none there.
func prefixes(r *rand.Rand, n int) []string {
	if n == 1 {
		return []string{"to=203.0.113.0/24"}
	}
	all := make([]string, n)
	for i := range all {
		p, _ := netip.AddrFrom4([4]byte{byte(1 + r.IntN(197)), byte(r.IntN(256)), byte(r.IntN(256)), byte(r.IntN(256))}).Prefix(12 + r.IntN(21))
		all[i] = "to=" + p.String()
	}
	return all
}

// ranges are matches of ports, one of 5000.
func ranges(n int) []string {
	all := make([]string, n)
	for i := range all {
		all[i] = fmt.Sprintf("proto=udp dport=%d-%d", 10*(i+1), 10*(i+1)+i%5)
	}
	return all
}

// besideMatches is beside for the classifier with the matches behind it. Asks is the class
// that the socket asks for, none where HTB is to ask its filters.
func (n *network) besideMatches(b *testing.B, asks *string, burst func() string) {
	var programs [2]*ebpf.Program
	for i, on := range []func() (uint32, error){n.hook.EgressProgram, n.hook.MatchProgram} {
		id, err := on()
		if err != nil {
			b.Fatal(err)
		}
		programs[i] = programOf(b, id)
	}
	empty, err := emptyProgram()
	if err != nil {
		b.Fatal(err)
	}
	defer empty.Close()
	class := *asks
	bare := func() error {
		*asks = class
		return errors.Join(n.hook.DetachMatch(), n.hook.DetachEgress())
	}
	attach := func(first, second *ebpf.Program) func() error {
		return func() error {
			return errors.Join(bare(), n.hook.AttachEgress(first.FD(), "vif_egress"), n.hook.AttachMatch(second.FD(), "vif_match"))
		}
	}
	ns := inTurn(b, burst, bare, attach(empty, empty), attach(programs[0], programs[1]),
		func() error {
			err := bare()
			*asks = ""
			return err
		})
	b.ReportMetric(median(ns[0]), "ns-htb")
	b.ReportMetric(median(ns[1])/median(ns[0]), "x/htb-empty")
	over(b, ns[2], ns[0], "htb")
	b.ReportMetric(median(ns[3])/median(ns[0]), "x/htb-u32")
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

// inTurn makes the network as each of ways says, in turn, and measures bursts.
func inTurn(b *testing.B, burst func() string, ways ...func() error) [][]float64 {
	ns := make([][]float64, len(ways))
	for b.Loop() {
		for range rounds {
			for i, way := range ways {
				if err := way(); err != nil {
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
	return ns
}

// over reports how much more one way takes than another.
func over(b *testing.B, ns, than []float64, name string) {
	b.ReportMetric(median(ns)/median(than), "x/"+name)
	b.ReportMetric(slices.Min(ns)/slices.Min(than), "x/"+name+"-min")
}

// beside measures bursts without a program, with an empty one in the classifier's place
// and with the classifier, in turn.
func (n *network) beside(b *testing.B, burst func() string) {
	id, err := n.hook.EgressProgram()
	if err != nil {
		b.Fatal(err)
	}
	program := programOf(b, id)
	empty, err := emptyProgram()
	if err != nil {
		b.Fatal(err)
	}
	defer empty.Close()
	attach := func(p *ebpf.Program) func() error {
		return func() error { return n.hook.AttachEgress(p.FD(), "vif_egress") }
	}
	ns := inTurn(b, burst, n.hook.DetachEgress, attach(empty), attach(program))
	b.ReportMetric(median(ns[0]), "ns-htb")
	b.ReportMetric(median(ns[1])/median(ns[0]), "x/htb-empty")
	over(b, ns[2], ns[0], "htb")
}

// programOf is a program by its id, for the length of the benchmark.
func programOf(b *testing.B, id uint32) *ebpf.Program {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { p.Close() })
	return p
}

// receiving takes the programs of the receiving side from the interface. On puts them there
// again, with an action that redirects where that is not 0.
func (n *receiver) receiving(b *testing.B) (on func(redirect uint32) error) {
	ids := [2]uint32{}
	var err error
	if ids[0], ids[1], err = n.hook.ReceivePrograms(); err != nil {
		b.Fatal(err)
	}
	note, receive := programOf(b, ids[0]), programOf(b, ids[1])
	return func(redirect uint32) error {
		if err := n.hook.AttachNote(note.FD(), "vif_note"); err != nil {
			return err
		}
		return n.hook.AttachReceive(receive.FD(), "vif_receive", redirect)
	}
}

// bindings are one of a target, and of cgroups that are gone, which cost as much.
func bindings(target string, n int) []hierarchy.Bound {
	all := []hierarchy.Bound{bound(target, red)}
	for i := range n - 1 {
		all = append(all, bound(fmt.Sprintf("cgroup-id:%d", uint64(1<<40)+uint64(i)), green))
	}
	return all
}

// BenchmarkReceive is the processor time of an 18-byte UDP packet from a socket at the far
// end through the whole receiving side to a full socket, over an IFB with the same HTB to
// which one u32 filter redirects, and which does not tell branches apart (goal: at most 1.05
// at any number of bindings), and over no shaping at all.
func BenchmarkReceive(b *testing.B) {
	for _, many := range []int{1, 10_000} {
		for _, x := range []struct{ name, dir, verb string }{
			{"known", "a", "burst s"},       // the receiver sends, too, by what is not connected
			{"found", "a", "burst s"},       // it never does: its socket is looked up
			{"strangers", "a", "strangers"}, // each packet is of another flow: all are looked up
			{"rest", "free", "burst s"},
			{"rest strangers", "free", "strangers"},
		} {
			b.Run(fmt.Sprintf("bindings=%d/%s", many, x.name), func(b *testing.B) {
				n := newReceiver(b)
				p := newPlace(b, bind.WayBPF)
				a, dir := sub(b, p.dir, "a"), sub(b, p.dir, x.dir)
				n.apply(b, n.binder(b, bind.WayBPF), bindings(p.target(a), many)...)
				far, near := n.start(b, n.Far, ""), n.start(b, n.Near, dir)
				at := n.Near4.String() + ":9"
				near.Do("sink r %s", at)
				far.Do("burst s %s 1", at)
				if x.name == "known" {
					near.Do("more r %s 1", far.Do("name s"))
				}
				on := n.receiving(b)
				filter := func(verb, rest string) {
					tctest.TC(b, n.Near, strings.Fields("filter "+verb+" dev eth0 ingress protocol all pref 7 "+rest)...)
				}
				bare := func() error {
					filter("replace", "handle 800::800 u32 match u32 0 0 action mirred egress redirect dev ifb0")
					return nil
				}
				ns := inTurn(b, func() string { return far.Do("%s %s 30000", x.verb, at) },
					func() error {
						bare() // else the hooks go, too
						err := n.hook.DetachReceive()
						filter("delete", "")
						return err
					},
					bare,
					func() error { return on(0) },
					func() error { return on(n.in.device.Index) },
				)
				b.ReportMetric(median(ns[0]), "ns-unshaped")
				b.ReportMetric(median(ns[1]), "ns-ifb")
				over(b, ns[2], ns[1], "ifb")
				over(b, ns[3], ns[1], "ifb-mirred")
				over(b, ns[2], ns[0], "unshaped")
			})
		}
	}
}

// BenchmarkNote is what it costs to send that flows are noted: the processor time of a
// datagram of 18 bytes, and of 64 KiB by TCP, with the receiving side over the classifier
// alone, and with an empty program behind that.
func BenchmarkNote(b *testing.B) {
	for _, x := range []struct{ name, dir, burst string }{
		{"udp", "a", "burst s %s 30000"},
		{"udp rest", "free", "burst s %s 30000"},
		{"tcp", "a", "bulk c 3000"},
		{"tcp rest", "free", "bulk c 3000"},
	} {
		b.Run(x.name, func(b *testing.B) {
			n := newReceiver(b)
			p := newPlace(b, bind.WayBPF)
			a, dir := sub(b, p.dir, "a"), sub(b, p.dir, x.dir)
			n.apply(b, n.binder(b, bind.WayBPF), bound(p.target(a), red))
			far, near := n.start(b, n.Far, ""), n.start(b, n.Near, dir)
			at := n.Far4.String() + ":9"
			far.Do("sink s %s", at)
			far.Do("listen l %s", at)
			near.Do("connect c %s", at)
			far.Do("accept c l")
			far.Begin("drain c")
			on := n.receiving(b)
			empty, err := emptyProgram()
			if err != nil {
				b.Fatal(err)
			}
			defer empty.Close()
			ns := inTurn(b, func() string { return near.Do(strings.ReplaceAll(x.burst, "%s", at)) },
				n.hook.DetachReceive,
				func() error { return n.hook.AttachNote(empty.FD(), "vif_note") },
				func() error { return on(0) })
			near.Do("finish c")
			far.End()
			b.ReportMetric(median(ns[0]), "ns-classifier")
			b.ReportMetric(median(ns[1])/median(ns[0]), "x/classifier-empty")
			over(b, ns[2], ns[0], "classifier")
		})
	}
}

// BenchmarkFlowPrograms are the programs of the receiving side against an empty one, for a
// flow that is known.
func BenchmarkFlowPrograms(b *testing.B) {
	n := newReceiver(b)
	p := newPlace(b, bind.WayBPF)
	n.apply(b, n.binder(b, bind.WayBPF), bound(p.target(p.dir), red))
	note, receive, err := n.hook.ReceivePrograms()
	if err != nil {
		b.Fatal(err)
	}
	for name, id := range map[string]uint32{"note": note, "receive": receive} {
		b.Run(name, func(b *testing.B) {
			var ns [2][]float64
			for b.Loop() {
				out, err := tctest.Command(b, "join", p.dir, ";", "timeProgram", fmt.Sprint(id)).Output()
				if err != nil {
					b.Fatal(err)
				}
				if err := json.Unmarshal(out, &ns); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(median(ns[1])-median(ns[0]), "ns-over-empty")
		})
	}
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
