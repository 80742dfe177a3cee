package tc_test

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/tctest"
)

// virtualTime says whether time passes only while everything waits, so that
// what is measured has no noise.
func virtualTime() bool {
	b, err := os.ReadFile("/proc/cmdline")
	return err == nil && strings.Contains(string(b), "time-travel=inf-cpu")
}

// sender is one word of demand behind a leaf: "tcp", "udp", with the number of
// flows or the payload of a datagram behind a slash, and with the rate on the wire
// behind an @ where that is less than the branch can take. A "<" in front of it says that
// the far end sends.
type sender struct {
	end
	word     string
	protocol string
	flows    int
	size     int
	rate     hierarchy.Bandwidth // Unlimited: all that the branch may get, and more
}

// end is a branch for one direction.
type end struct {
	path hierarchy.Path
	port hierarchy.Port
}

func parseSender(t testing.TB, dev string, path hierarchy.Path, word string) sender {
	t.Helper()
	s := sender{end: end{path, hierarchy.Port{Device: dev}}, word: word, flows: 1, rate: hierarchy.Unlimited}
	word, down := strings.CutPrefix(word, "<")
	if down {
		s.port.Direction = hierarchy.Receive
	}
	text, rate, ok := strings.Cut(word, "@")
	if ok {
		var err error
		if s.rate, err = hierarchy.ParseBandwidth(rate); err != nil {
			t.Fatal(err)
		}
	}
	var number string
	s.protocol, number, ok = strings.Cut(text, "/")
	n := 0
	if ok {
		var err error
		if n, err = strconv.Atoi(number); err != nil {
			t.Fatal(err)
		}
	}
	if s.protocol == "tcp" {
		s.flows = max(n, 1)
	} else {
		s.size = cmp.Or(n, 1200)
	}
	return s
}

// plot reads a tree and its demand: the rate of the interface in the first line,
// then a branch in each, indented by two spaces for each level, as
//
//	name rate [ceil=RATE] [prio=N] [quantum=SIZE] [qdisc=KIND] [sender ...]
//
// A rate of "-" is none. Where the far end sends as well, the same holds for receiving.
func plot(t testing.TB, dev, text string) (hierarchy.Spec, []sender) {
	t.Helper()
	amount := func(s string) hierarchy.Amount {
		if s == "-" {
			return hierarchy.Amount{}
		}
		a, err := hierarchy.ParseAmount(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	spec := hierarchy.Spec{Interface: dev}
	var senders []sender
	type place struct {
		b    *hierarchy.BranchSpec
		path hierarchy.Path
	}
	var stack []place
	for line := range strings.Lines(strings.Trim(text, "\n")) {
		f := strings.Fields(line)
		if len(f) == 0 {
			continue
		}
		depth := (len(line) - len(strings.TrimLeft(line, " "))) / 2
		if stack == nil {
			spec.Rate = amount(f[0])
			stack = []place{{&spec.BranchSpec, hierarchy.Path(dev)}}
			continue
		}
		b := &hierarchy.BranchSpec{Name: f[0], Rate: amount(f[1])}
		up := stack[depth-1]
		path := up.path.Join(f[0])
		for _, word := range f[2:] {
			key, value, ok := strings.Cut(word, "=")
			var err error
			switch {
			case !ok:
				senders = append(senders, parseSender(t, dev, path, word))
			case key == "ceil":
				b.Ceil = amount(value)
			case key == "prio":
				var n int
				n, err = strconv.Atoi(value)
				prio := uint8(n)
				b.Prio = &prio
			case key == "quantum":
				b.Quantum, err = hierarchy.ParseSize(value)
			case key == "qdisc":
				b.Qdisc = &hierarchy.RawQdisc{Kind: value}
			default:
				err = fmt.Errorf("%q", word)
			}
			if err != nil {
				t.Fatalf("%s: %v", line, err)
			}
		}
		up.b.Children = append(up.b.Children, b)
		stack = append(stack[:depth], place{b, path})
	}
	if strings.Contains(text, "<") {
		alike(&spec.BranchSpec)
	}
	return spec, senders
}

// alike has a branch and those below it receive as they send.
func alike(b *hierarchy.BranchSpec) {
	as := *b
	b.Ingress = &as
	for _, c := range b.Children {
		alike(c)
	}
}

// counter counts the datagrams of one size that arrive at a port, and costs next to
// nothing: a filter drops them, and the kernel says how many it dropped.
type counter struct{ fd, size int }

func newCounter(t testing.TB, n *lab.NetNS, port uint16, size int) counter {
	t.Helper()
	fd := -1
	err := n.Do(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	nothing := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &nothing}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: int(port)}); err != nil {
		t.Fatal(err)
	}
	return counter{fd, size}
}

// count is what has arrived, on the wire.
func (c counter) count(t testing.TB) lab.Count {
	t.Helper()
	var mem [9]uint32 // SK_MEMINFO_VARS of linux/sock_diag.h, the last one SK_MEMINFO_DROPS
	size := uint32(unsafe.Sizeof(mem))
	if _, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(c.fd), unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&mem[0])), uintptr(unsafe.Pointer(&size)), 0); errno != 0 {
		t.Fatal(errno)
	}
	n := uint64(mem[8])
	return lab.Count{Time: time.Now(), Packets: n, Payload: n * uint64(c.size), Wire: n * uint64(c.size+udpHeaders)}
}

// udpHeaders are the bytes of Ethernet, IPv4 and UDP in front of a payload.
const udpHeaders = 14 + 20 + 8

// field is a network with a tree that changes while traffic runs.
type field struct {
	*bench
	pair    *lab.Pair
	ids     hierarchy.IDs
	kernel  hierarchy.Kernel
	sinks   map[*lab.NetNS]*lab.Sink
	ports   map[string]uint16 // by path and word
	udp     map[string]counter
	batch   time.Duration // what a sender of datagrams hands over at a time; the queues hold more
	running map[string]*lab.Source
}

const (
	firstPort = 6000
	firstUDP  = 7000
	manyPorts = 256
)

func newField(t testing.TB) *field {
	t.Helper()
	f := &field{pair: tctest.New(t, lab.PairConfig{}), ports: map[string]uint16{}, udp: map[string]counter{}, batch: 50 * time.Millisecond,
		running: map[string]*lab.Source{}, sinks: map[*lab.NetNS]*lab.Sink{}}
	f.bench = open(t, f.pair.Near, f.pair.Dev)
	f.kernel = hierarchy.Kernel{Device: f.Name, Parts: []hierarchy.Part{f.Device, f.Receiver()}}
	t.Cleanup(f.close)
	return f
}

// way is where a direction begins, where it ends, and by which address.
func (f *field) way(p hierarchy.Port) (from, to *lab.NetNS, at netip.Addr) {
	if p.Direction == hierarchy.Receive {
		return f.pair.Far, f.pair.Near, f.pair.Near4
	}
	return f.pair.Near, f.pair.Far, f.pair.Far4
}

// sink is the one at an end.
func (f *field) sink(n *lab.NetNS) *lab.Sink {
	f.t.Helper()
	if s := f.sinks[n]; s != nil {
		return s
	}
	var list []uint16
	for p := range manyPorts {
		list = append(list, uint16(firstPort+p))
	}
	s, err := lab.NewSink(f.t.Context(), n, list...)
	if err != nil {
		f.t.Fatal(err)
	}
	f.sinks[n] = s
	return s
}

// tell has the packets of a port be of a class in both directions, and what is received take
// the way through the tree.
func (f *field) tell(port uint16, class hierarchy.ClassID) {
	f.t.Helper()
	tctest.TC(f.t, f.net, "qdisc", "replace", "dev", f.Name, "clsact")
	for table, x := range []struct{ hook, then string }{ // both hooks are of one qdisc, and so are their tables: numbered as they are made
		{"ingress", "pipe action mirred egress redirect dev vif-" + f.Name},
		{"egress", "ok"},
	} {
		for i, match := range []string{"dport", "sport"} {
			tctest.TC(f.t, f.net, strings.Fields(fmt.Sprintf("filter replace dev %s %s pref 7 protocol ip handle %x::%x u32 match ip %s %d 0xffff action skbedit priority %v %s",
				f.Name, x.hook, 0x800+table, 2*(int(port)-firstPort+2)+i, match, port, class, x.then))...)
		}
	}
}

// close ends the traffic and gives the network back before the test ends: a test
// makes many. Closing again does nothing.
func (f *field) close() {
	f.stop(nil)
	for _, c := range f.udp {
		unix.Close(c.fd)
	}
	clear(f.udp)
	for _, s := range f.sinks {
		if err := s.Close(); err != nil {
			f.t.Error(err)
		}
	}
	if err := f.pair.Close(); err != nil {
		f.t.Error(err)
	}
}

// stop ends the traffic of which keep says no.
func (f *field) stop(keep func(key string) bool) {
	for key, s := range f.running {
		if keep == nil || !keep(key) {
			if err := s.Stop(); err != nil {
				f.t.Error(err)
			}
			delete(f.running, key)
		}
	}
}

// share is what a branch should get and what it got.
type share struct {
	end
	ideal, got hierarchy.Bandwidth
}

func (s share) off() float64 {
	if s.ideal == 0 {
		return float64(s.got)
	}
	return float64(s.got)/float64(s.ideal) - 1
}

// worst is the one that is furthest off.
func worst(all []share) (worst share) {
	for _, s := range all {
		if math.Abs(s.off()) >= math.Abs(worst.off()) {
			worst = s
		}
	}
	return worst
}

// again looks once more, four times as long, where a first look is off, and twelve times as
// long where that one is, too. What chance did evens out; a fault does not.
func again[T any](look func(times int) T, off func(T) bool) T {
	got := look(1)
	for _, times := range []int{4, 12} {
		if !off(got) {
			break
		}
		got = look(times)
	}
	return got
}

// phase makes the tree what text says, and the traffic, lets it run for settle and
// counts for the time of window, and [again] where a share is further off than bound: how
// flows of TCP meet is chance.
func (f *field) phase(text string, settle, window time.Duration, bound float64) (*hierarchy.Tree, []share) {
	f.t.Helper()
	spec, senders := plot(f.t, f.Name, text)
	tree, problems := hierarchy.Resolve(&spec, qdisc.Kinds())
	for _, p := range problems {
		if !p.Warning {
			f.t.Fatalf("%s: %s: %s", p.Path, p.Key, p.Text)
		}
	}
	var err error
	if f.ids, err = f.ids.Assign(tree); err != nil {
		f.t.Fatal(err)
	}
	trees := []*hierarchy.Tree{tree}
	ways := []func(context.Context, *hierarchy.Tree) error{f.Settle, f.Receiver().Settle}
	if tree.Ingress != nil {
		trees = append(trees, tree.Ingress)
	}
	ideal, words := map[end]hierarchy.Bandwidth{}, map[end]int{}
	for i, tree := range trees {
		demand := map[hierarchy.Path]hierarchy.Bandwidth{}
		for _, s := range senders {
			if s.port != tree.Port {
				continue
			}
			if words[s.end]++; s.rate == hierarchy.Unlimited || demand[s.path] == hierarchy.Unlimited {
				demand[s.path] = hierarchy.Unlimited
			} else {
				demand[s.path] += s.rate
			}
		}
		for path, rate := range tree.Ideal(demand) {
			ideal[end{path, tree.Port}] = rate
		}
		if err := ways[i](f.t.Context(), tree); err != nil {
			f.t.Fatal(err)
		}
	}
	before, err := f.kernel.Read(f.t.Context())
	if err == nil {
		err = f.kernel.Apply(f.t.Context(), before, tree.State(), hierarchy.Diff(before, tree.State()))
	}
	if err != nil {
		f.t.Fatal(err)
	}
	want := map[string]bool{}
	key := func(s sender) string { return fmt.Sprintf("%s %s %d", s.path, s.word, f.offer(s, ideal, words)) }
	for _, s := range senders {
		want[key(s)] = true
	}
	f.stop(func(k string) bool { return want[k] })
	for _, s := range senders {
		if f.running[key(s)] == nil {
			f.start(tree, s, key(s), f.offer(s, ideal, words))
		} else if tree.Ingress != nil {
			f.tell(f.ports[key(s)], tree.Find(s.path).ID)
		}
	}
	time.Sleep(settle)
	return tree, again(func(times int) (shares []share) {
		before := map[string]lab.Count{}
		for _, s := range senders {
			before[key(s)] = f.count(s, key(s))
		}
		time.Sleep(time.Duration(times) * window)
		got := map[end]hierarchy.Bandwidth{}
		for _, s := range senders {
			got[s.end] += f.count(s, key(s)).WireRate(before[key(s)])
		}
		for _, tree := range trees {
			for b := range tree.All() {
				if e := (end{b.Path, tree.Port}); words[e] > 0 {
					shares = append(shares, share{e, ideal[e], got[e]})
				}
			}
		}
		return shares
	}, func(shares []share) bool { return math.Abs(worst(shares).off()) > bound })
}

func (f *field) count(s sender, key string) lab.Count {
	f.t.Helper()
	if c, ok := f.udp[key]; ok {
		return c.count(f.t)
	}
	_, to, _ := f.way(s.port)
	return f.sink(to).Count(f.ports[key])
}

// offer is what a sender of datagrams sends: more than its part of what the branch
// shall get.
func (f *field) offer(s sender, ideal map[end]hierarchy.Bandwidth, words map[end]int) hierarchy.Bandwidth {
	switch {
	case s.protocol == "tcp":
		return 0
	case s.rate != hierarchy.Unlimited:
		return s.rate
	}
	return ideal[s.end] * 13 / 10 / hierarchy.Bandwidth(words[s.end])
}

func (f *field) start(tree *hierarchy.Tree, s sender, key string, rate hierarchy.Bandwidth) {
	f.t.Helper()
	from, to, at := f.way(s.port)
	if f.ports[key] == 0 {
		f.ports[key] = uint16(firstPort + len(f.ports))
	}
	if _, ok := f.udp[key]; !ok && s.protocol == "udp" {
		f.ports[key] += firstUDP - firstPort
		f.udp[key] = newCounter(f.t, to, f.ports[key], s.size)
	}
	f.sink(to)
	if tree.Ingress != nil {
		f.tell(f.ports[key], tree.Find(s.path).ID)
	}
	src, err := lab.Start(f.t.Context(), lab.Traffic{
		NetNS: from, Protocol: s.protocol, To: netip.AddrPortFrom(at, f.ports[key]),
		Flows: s.flows, Size: s.size, Rate: rate, Lag: time.Second, Batch: 1 + int(float64(rate)/8/float64(s.size+udpHeaders)*f.batch.Seconds()), Control: greedy(tree.Find(s.path).ID, s.protocol),
	})
	if err != nil {
		f.t.Fatal(err)
	}
	f.running[key] = src
}
