package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc/tctest"
)

// world has the values of which matches and packets are made, so that many fit.
type world struct{ *rand.Rand }

func (w world) pick(of ...string) string { return of[w.IntN(len(of))] }

func (w world) address() string {
	return w.pick("10.0.0.1", "10.0.1.2", "10.1.2.3", "192.0.2.1", "198.51.100.77", "0.0.0.0", "255.255.255.255",
		"2001:db8::1", "2001:db8::2:1", "2001:db8:1::1", "2001:db8:1:0:8000::1", "fe80::1", "::")
}

// value is one that a match may have for a key.
func (w world) value(key string) string {
	switch key {
	case "from", "to", "host":
		a := netip.MustParseAddr(w.address())
		for {
			bits := w.IntN(a.BitLen() + 1)
			if w.IntN(3) == 0 {
				bits = a.BitLen()
			}
			if p, _ := a.Prefix(bits); w.IntN(4) == 0 || bits > 7 {
				return p.String()
			}
		}
	case "mac":
		return w.pick("02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:01:01")
	case "proto":
		return w.pick("tcp", "udp", "icmp", "icmpv6", "gre", "sctp")
	case "port", "sport", "dport":
		return w.pick("1", "80", "443", "1-1023", "400-500", "1024-65535", "8080", "53", "65535")
	case "dscp":
		return w.pick("EF", "CS0", "AF41", "LE")
	case "mark":
		return w.pick("0", "0x10", "0x10/0xf0", "0x1/0xf", "0/0x100")
	}
	return w.pick("1", "5", "4094")
}

func (w world) match() (m match.Match) {
	for {
		m = match.Match{}
		for range 1 + w.IntN(3) {
			key := match.Keys()[w.IntN(len(match.Keys()))]
			for range 1 + w.IntN(2) {
				if err := m.Add(key, w.value(key)); err != nil {
					panic(err)
				}
			}
		}
		if _, text, _ := m.Check(); text == "" {
			return m
		}
	}
}

func (w world) branch(name string, depth int) *hierarchy.BranchSpec {
	b := &hierarchy.BranchSpec{Name: name}
	for range w.IntN(4) {
		b.Match = append(b.Match, w.match())
	}
	if depth < 4 {
		for i := range w.IntN(4) {
			b.Children = append(b.Children, w.branch(string(rune('a'+i)), depth+1))
		}
	}
	if name != "" && w.IntN(10) == 0 && len(b.Children) > 0 { // one that takes by a match
		b.Children = append(b.Children, &hierarchy.BranchSpec{Name: hierarchy.RestName, Match: []match.Match{w.match()}})
	}
	return b
}

// tree is a random one in which no matches clash.
func (w world) tree(t *testing.T) *hierarchy.Tree {
	t.Helper()
	amount, err := hierarchy.ParseAmount("1gbit")
	if err != nil {
		t.Fatal(err)
	}
	spec := &hierarchy.Spec{Interface: "eth0", BranchSpec: hierarchy.BranchSpec{Rate: amount, Ingress: &hierarchy.BranchSpec{Rate: amount}}}
	for i := range 2 + w.IntN(6) {
		spec.Children = append(spec.Children, w.branch(string(rune('a'+i)), 1))
	}
	for {
		tree, problems := hierarchy.Resolve(spec, nil)
		if tree != nil {
			if _, err := (hierarchy.IDs{}).Assign(tree); err != nil {
				t.Fatal(err)
			}
			return tree
		}
		slices.SortFunc(problems, func(a, b hierarchy.Problem) int { return b.Index - a.Index })
		dropped := map[string]bool{}
		for _, p := range problems {
			if p.Key != "match" || p.Index < 0 {
				t.Fatal(p)
			}
			at := &spec.BranchSpec
			for name := range strings.SplitSeq(string(p.Path), "/") {
				if i := slices.IndexFunc(at.Children, func(c *hierarchy.BranchSpec) bool { return c.Name == name }); i >= 0 {
					at = at.Children[i]
				}
			}
			if key := fmt.Sprint(p.Path, p.Index); !dropped[key] {
				dropped[key] = true
				at.Match = slices.Delete(at.Match, p.Index, p.Index+1)
			}
		}
	}
}

// frame is a packet as the wire has it, and what is known of it.
type frame struct {
	match.Packet
	bytes []byte
}

func (w world) frame() (f frame) {
	p := &f.Packet
	from, to := netip.MustParseAddr(w.address()), netip.MustParseAddr(w.address())
	for from.Is4() != to.Is4() {
		to = netip.MustParseAddr(w.address())
	}
	p.ToMAC, p.FromMAC = match.MAC{2, 0, 0, 0, byte(w.IntN(2)), byte(1 + w.IntN(2))}, match.MAC{2, 0, 0, 0, 0, byte(1 + w.IntN(3))}
	b := append(append(f.bytes, p.ToMAC[:]...), p.FromMAC[:]...)
	if w.IntN(3) == 0 {
		p.VLAN = match.VLAN([]int{1, 5, 7}[w.IntN(3)])
		b = binary.BigEndian.AppendUint16(append(b, 0x81, 0), uint16(p.VLAN)|0xe000)
		if w.IntN(3) == 0 {
			b = append(b, 0x81, 0, 0, 99)
		}
	}
	p.Mark = []uint32{0, 0x10, 0x11, 0x110, 1}[w.IntN(5)]
	if w.IntN(10) == 0 { // ARP
		f.bytes = append(append(b, 8, 6), make([]byte, 60)...)
		return f
	}
	p.From, p.To = from, to
	p.DSCP = []match.DSCP{46, 0, 34, 1, 8}[w.IntN(5)]
	p.Proto = []match.Proto{6, 17, 1, 58, 47, 132, 136, 33}[w.IntN(8)]
	ports := []uint16{1, 80, 443, 450, 1023, 1024, 8080, 53, 65535, 40000, 0}
	sport, dport := ports[w.IntN(len(ports))], ports[w.IntN(len(ports))]
	if !slices.Contains([]match.Proto{1, 58, 47}, p.Proto) {
		p.SPort, p.DPort = sport, dport
	}
	if from.Is4() {
		h := make([]byte, 20)
		h[0], h[1], h[8], h[9] = 0x45, byte(p.DSCP)<<2|1, 64, byte(p.Proto)
		copy(h[12:], from.AsSlice())
		copy(h[16:], to.AsSlice())
		if w.IntN(4) == 0 {
			h[0] = 0x47
			h = append(h, 1, 1, 1, 1, 1, 1, 1, 0)
		}
		b = append(append(b, 8, 0), h...)
	} else {
		h := make([]byte, 40)
		h[0], h[1], h[6], h[7] = 0x60|byte(p.DSCP)>>2, byte(p.DSCP)<<6|0x10, byte(p.Proto), 64
		copy(h[8:], from.AsSlice())
		copy(h[24:], to.AsSlice())
		for _, x := range []byte{60, 0, 51} {
			if w.IntN(4) == 0 {
				more := make([]byte, 8)
				more[0] = h[6]
				if x == 51 {
					more = append(more, make([]byte, 8)...)
					more[1] = 2
				}
				h = slices.Insert(h, 40, more...)
				h[6] = x
			}
		}
		b = append(append(b, 0x86, 0xdd), h...)
	}
	b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, sport), dport)
	f.bytes = append(b, make([]byte, 40)...)
	return f
}

// runMatch is the class that the program leaves a packet of a class.
func runMatch(t *testing.T, p *ebpf.Program, f *frame, class uint32) hierarchy.ClassID {
	t.Helper()
	ret, is, err := ask(p, f.bytes, f.Mark, hierarchy.ClassID(class), 0)
	if err != nil {
		t.Fatalf("%x: %v", f.bytes, err)
	}
	if int32(ret) != -1 {
		t.Errorf("the program returned %d, want -1", int32(ret))
	}
	return is
}

// loaded is the program with tables in force.
func loaded(want *tables) (*matches, error) {
	m, err := loadMatches(want)
	if err == nil {
		err = m.change(want)
	}
	return m, err
}

// starts are the branches at which decisions may start.
func starts(tree *hierarchy.Tree) (all []*hierarchy.Branch) {
	for b := range tree.All() {
		if b.Entry() != nil && b.Path.Base() != hierarchy.RestName {
			all = append(all, b)
		}
	}
	return all
}

// tracker is a network namespace in which connections are translated, and this goroutine is.
type tracker struct {
	t testing.TB
	c *netlink.Conn
}

// newTracker is nil where the kernel does not tell addresses before translation.
func newTracker(t testing.TB) *tracker {
	t.Helper()
	askConntrack()
	if Tracks() != nil {
		return nil
	}
	n := tctest.NetNS(t)
	runtime.LockOSThread() // and the thread ends with the test
	if err := unix.Setns(n.FD(), unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	c, err := n.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &tracker{t, c}
}

// TestKernelTracks: the function that asks connection tracking is taken by a kernel that takes all
// of the program with it, and by no other.
func TestKernelTracks(t *testing.T) {
	tctest.RequireRoot(t)
	for range 2 {
		is := Tracks()
		m, err := loadTracking(&tables{}, true)
		if err == nil {
			err = m.close()
		}
		if (is == nil) != (err == nil) {
			t.Errorf("the function: %v; the program: %v", is, err)
		}
		t.Log(is)
		askConntrack()
	}
}

func (x *tracker) ask(kind int, flags netlink.HeaderFlags, family byte, attrs func(*netlink.AttributeEncoder)) {
	x.t.Helper()
	ae := netlink.NewAttributeEncoder()
	ae.ByteOrder = binary.BigEndian
	attrs(ae)
	b, err := ae.Encode()
	if err == nil {
		_, err = x.c.Execute(netlink.Message{
			Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | kind), Flags: netlink.Request | netlink.Acknowledge | flags},
			Data:   append([]byte{family, unix.NFNETLINK_V0, 0, 0}, b...),
		})
	}
	if err != nil {
		x.t.Fatal(err)
	}
}

// translate has a packet be of a connection of another address on our side, begun there or,
// forwarded, from outside. It is forgotten by what is returned.
func (x *tracker) translate(w world, f *frame) (forget func()) {
	p := &f.Packet
	near, far, nport, fport := p.From, p.To, p.SPort, p.DPort
	if p.Received {
		near, far, nport, fport = far, near, fport, nport
	}
	host := netip.MustParseAddr(w.address())
	if x == nil || !near.IsValid() || near == far || host == far || host.Is4() != near.Is4() || p.Proto != match.TCP && p.Proto != match.UDP || w.IntN(4) == 0 {
		return func() {}
	}
	p.Host = host
	const (
		ctNew, ctDelete                     = 0, 2 // IPCTNL_MSG_CT_NEW, IPCTNL_MSG_CT_DELETE
		tupleOrig, tupleReply, timeout      = 1, 2, 7
		tupleIP, tupleProto                 = 1, 2
		protoNumber, protoSource, protoDest = 1, 2, 3
	)
	tuple := func(ae *netlink.AttributeEncoder, kind uint16, from, to netip.Addr, sport, dport uint16) {
		ae.Nested(kind, func(ae *netlink.AttributeEncoder) error {
			ae.Nested(tupleIP, func(ae *netlink.AttributeEncoder) error {
				first := uint16(1) // CTA_IP_V4_SRC
				if from.Is6() {
					first = 3
				}
				ae.Bytes(first, from.AsSlice())
				ae.Bytes(first+1, to.AsSlice())
				return nil
			})
			ae.Nested(tupleProto, func(ae *netlink.AttributeEncoder) error {
				ae.Uint8(protoNumber, uint8(p.Proto))
				ae.Uint16(protoSource, sport)
				ae.Uint16(protoDest, dport)
				return nil
			})
			return nil
		})
	}
	orig := func(ae *netlink.AttributeEncoder) { tuple(ae, tupleOrig, host, far, nport, fport) }
	reply := func(ae *netlink.AttributeEncoder) { tuple(ae, tupleReply, far, near, fport, nport) }
	if w.IntN(2) == 0 {
		orig = func(ae *netlink.AttributeEncoder) { tuple(ae, tupleOrig, far, near, fport, nport) }
		reply = func(ae *netlink.AttributeEncoder) { tuple(ae, tupleReply, host, far, nport, fport) }
	}
	family := byte(unix.AF_INET)
	if near.Is6() {
		family = unix.AF_INET6
	}
	x.ask(ctNew, netlink.Create|netlink.Excl, family, func(ae *netlink.AttributeEncoder) {
		orig(ae)
		reply(ae)
		ae.Uint32(timeout, 1000)
	})
	return func() { x.ask(ctDelete, 0, family, orig) }
}

// TestKernelMatch holds the program against hierarchy.Branch.Decide: random packets from
// random branches of random trees, one tree in force after the other by the changes between
// them.
func TestKernelMatch(t *testing.T) {
	tctest.RequireRoot(t)
	w := world{rand.New(rand.NewPCG(7, 8))}
	x := newTracker(t)
	m, err := loadMatches(&tables{rules: make(map[matchVifRule]uint32), hosts: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { m.close() }()
	if m.tracks != (x != nil) {
		t.Errorf("asks connection tracking: %v", m.tracks)
	}
	moved, deep, stays, changes, sampled, translated := 0, 0, 0, 0, 0, 0
	for n := range 60 {
		tree := w.tree(t)
		former, err := m.read()
		if err != nil {
			t.Fatal(err)
		}
		want, err := compile(tree.Matched(), former)
		if err != nil {
			t.Fatal(err)
		}
		if m.holds(want) {
			changes++
			err = m.change(want)
		} else {
			m.close()
			m, err = loaded(want)
		}
		if err != nil {
			t.Fatal(err)
		}
		if now, err := m.read(); err != nil || !now.equal(want) {
			t.Fatalf("tree %d: what is in force is not what was to be, error %v", n, err)
		}
		from := starts(tree)
		for range 400 {
			f, b := w.frame(), from[w.IntN(len(from))]
			if w.IntN(2) == 0 {
				b = tree.Root
			}
			forget := x.translate(w, &f)
			leaf, by := b.Decide(&f.Packet)
			wire := f.Packet
			wire.Host = netip.Addr{}
			if other, _ := b.Decide(&wire); other != leaf {
				translated++
			}
			got := runMatch(t, m.prog, &f, uint32(b.Entry().ID))
			if got != leaf.ID {
				t.Fatalf("tree %d: %v (from %v), from %s: %v, want %s (%v) by %v\n%x", n, f.Packet, f.FromMAC, b.Path, got, leaf.Path, leaf.ID, by, f.bytes)
			}
			if len(by) > 0 {
				moved++
			} else {
				stays++
			}
			deep = max(deep, len(by))
			if got := runMatch(t, m.prog, &f, uint32(b.Entry().ID)|1<<31); got != b.Entry().ID {
				t.Fatalf("of a rest that is bound itself: %v, want %v", got, b.Entry().ID)
			}
			forget()
		}
		for c := range tree.All() {
			for i := range c.Match {
				p, ok := c.Match[i].Sample(false)
				if !ok {
					continue
				}
				f, b := &frame{p, wire(&p)}, from[w.IntN(len(from))]
				leaf, by := b.Decide(&p)
				if got := runMatch(t, m.prog, f, uint32(b.Entry().ID)); got != leaf.ID {
					t.Fatalf("tree %d: sample of %v, %v, from %s: %v, want %s (%v) by %v", n, c.Match[i], p, b.Path, got, leaf.Path, leaf.ID, by)
				}
				sampled++
			}
		}
	}
	if sampled < 500 {
		t.Errorf("%d samples of matches", sampled)
	}
	if x != nil && translated < 100 {
		t.Errorf("%d got another class by translation", translated)
	}
	if moved < 2000 || stays < 2000 || deep < 3 || changes < 30 {
		t.Errorf("%d got another class by up to %d matches, %d not; %d changes", moved, deep, stays, changes)
	}
}

// BenchmarkMatch is the program over an empty one (goal: at most 100 ns with 10,000 prefixes
// and 1,000 port rules), for packets that fit nothing, a prefix, or a port.
func BenchmarkMatch(b *testing.B) {
	tctest.RequireRoot(b)
	w := world{rand.New(rand.NewPCG(1, 2))}
	var prefixes, ports []match.Match
	for range 10_000 {
		p, _ := netip.AddrFrom4([4]byte{byte(w.IntN(200)), byte(w.IntN(256)), byte(w.IntN(256)), byte(w.IntN(256))}).Prefix(12 + w.IntN(21))
		prefixes = append(prefixes, match.Match{To: []netip.Prefix{p}})
	}
	for i := range 1000 {
		prefixes = append(prefixes, match.Match{To: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("2001:db8:%x::/48", i))}})
		ports = append(ports, match.Match{DPort: []match.Ports{{First: uint16(10 * (i + 1)), Last: uint16(10*(i+1) + i%5)}}, Proto: []match.Proto{match.TCP}})
	}
	root := []hierarchy.ClassID{hierarchy.ID(hierarchy.RestMinor), hierarchy.ID(5), hierarchy.ID(6)} // the next round begins with the class of the last
	frame := func(to string, port uint16) *frame {
		f := w.frame()
		for !f.To.Is4() || f.Proto != match.TCP || f.VLAN != 0 || len(f.bytes) != 14+20+44 {
			f = w.frame()
		}
		copy(f.bytes[30:], netip.MustParseAddr(to).AsSlice())
		binary.BigEndian.PutUint16(f.bytes[36:], port)
		return &f
	}
	empty, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, -1), asm.Return()}})
	if err != nil {
		b.Fatal(err)
	}
	defer empty.Close()
	one := []match.Match{{To: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}}
	for _, x := range []struct {
		name      string
		all       []hierarchy.Matched
		to        string
		port      uint16
		elsewhere bool
	}{
		{"one/none", []hierarchy.Matched{{Class: 5, From: root, Match: one}}, "203.0.113.1", 9, true},
		{"one/fits", []hierarchy.Matched{{Class: 5, From: root, Match: one}}, "192.0.2.1", 9, false},
		{"prefixes/none", []hierarchy.Matched{{Class: 5, From: root, Match: prefixes}}, "203.0.113.1", 9, true},
		{"prefixes/fits", []hierarchy.Matched{{Class: 5, From: root, Match: prefixes}}, prefixes[77].To[0].Addr().String(), 9, false},
		{"ports/none", []hierarchy.Matched{{Class: 6, From: root, Match: ports}}, "203.0.113.1", 9, true},
		{"ports/fits", []hierarchy.Matched{{Class: 6, From: root, Match: ports}}, "203.0.113.1", 5000, false},
		{"both/none", []hierarchy.Matched{{Class: 5, From: root, Match: prefixes}, {Class: 6, From: root, Match: ports}}, "203.0.113.1", 9, true},
		{"both/prefix", []hierarchy.Matched{{Class: 5, From: root, Match: prefixes}, {Class: 6, From: root, Match: ports}}, prefixes[77].To[0].Addr().String(), 5000, false},
		{"both/port", []hierarchy.Matched{{Class: 5, From: root, Match: prefixes}, {Class: 6, From: root, Match: ports}}, "203.0.113.1", 5000, false},
	} {
		b.Run(x.name, func(b *testing.B) {
			t, err := compile(x.all, nil)
			if err != nil {
				b.Fatal(err)
			}
			start := time.Now()
			m, err := loaded(t)
			if err != nil {
				b.Fatal(err)
			}
			defer m.close()
			b.ReportMetric(time.Since(start).Seconds()*1000, "ms-load")
			f := frame(x.to, x.port)
			in, out := make([]byte, 192), make([]byte, 192)
			binary.NativeEndian.PutUint32(in[32:], uint32(root[0]))
			const repeat = 10_000
			var ns [2][]float64
			for b.Loop() {
				for range 300 {
					for i, p := range []*ebpf.Program{empty, m.prog} {
						start := time.Now()
						if _, err := p.Run(&ebpf.RunOptions{Data: f.bytes, Context: in, ContextOut: out, Repeat: repeat}); err != nil {
							b.Fatal(err)
						}
						ns[i] = append(ns[i], float64(time.Since(start))/repeat)
					}
				}
			}
			if got := hierarchy.ClassID(binary.NativeEndian.Uint32(out[32:])); (got == root[0]) != x.elsewhere {
				b.Errorf("class %v", got)
			}
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(slices.Sorted(slices.Values(ns[1]))[len(ns[1])/2]-slices.Sorted(slices.Values(ns[0]))[len(ns[0])/2], "ns-over-empty")
			b.ReportMetric(slices.Min(ns[1])-slices.Min(ns[0]), "ns-over-empty-min")
		})
	}
}

// BenchmarkMatchHost is the program that asks connection tracking beside the same without, for
// packets of a connection that is known and of one that is not.
func BenchmarkMatchHost(b *testing.B) {
	tctest.RequireRoot(b)
	x := newTracker(b)
	tctest.Require(b, x != nil, "BTF")
	w := world{rand.New(rand.NewPCG(3, 4))}
	known := w.frame()
	for !known.Host.IsValid() || known.Host == known.From {
		for known = w.frame(); known.VLAN != 0 || !known.To.Is4() || known.Proto != match.TCP || known.From == known.To; {
			known = w.frame()
		}
		defer x.translate(w, &known)()
	}
	unknown := frame{bytes: slices.Clone(known.bytes)}
	unknown.bytes[30]++ // another receiver
	root := hierarchy.ID(hierarchy.RestMinor)
	all, err := compile([]hierarchy.Matched{{Class: 5, From: []hierarchy.ClassID{root, 5}, Match: []match.Match{{Host: []netip.Prefix{netip.PrefixFrom(known.Host, 32)}}}}}, nil)
	if err != nil {
		b.Fatal(err)
	}
	var programs [2]*ebpf.Program
	for i := range programs {
		m, err := loadTracking(all, i == 1)
		if err == nil {
			err = m.change(all)
		}
		if err != nil {
			b.Fatal(err)
		}
		defer m.close()
		programs[i] = m.prog
	}
	in, out := make([]byte, 192), make([]byte, 192)
	binary.NativeEndian.PutUint32(in[32:], uint32(root))
	const repeat = 10_000
	frames := []*frame{&known, &unknown}
	var ns [2][2][]float64 // by frame and program; not in benchmarks of their own, which would run in another namespace
	for b.Loop() {
		for range 300 {
			for i, f := range frames {
				for j, p := range programs {
					start := time.Now()
					if _, err := p.Run(&ebpf.RunOptions{Data: f.bytes, Context: in, ContextOut: out, Repeat: repeat}); err != nil {
						b.Fatal(err)
					}
					ns[i][j] = append(ns[i][j], float64(time.Since(start))/repeat)
					if got := hierarchy.ClassID(binary.NativeEndian.Uint32(out[32:])); (got != root) != (f == &known && j == 1) {
						b.Fatalf("class %v", got)
					}
				}
			}
		}
	}
	b.ReportMetric(0, "ns/op")
	for i, name := range []string{"known", "unknown"} {
		without, with := slices.Sorted(slices.Values(ns[i][0])), slices.Sorted(slices.Values(ns[i][1]))
		b.ReportMetric(without[len(without)/2], "ns-without-"+name)
		b.ReportMetric(with[len(with)/2], "ns-with-"+name)
		b.ReportMetric(with[len(with)/2]/without[len(without)/2], "ratio-"+name)
	}
}

// TestKernelMatchReceived holds the receiving side's program against Decide: whoever is bound
// is told by a flow that has been noted.
func TestKernelMatchReceived(t *testing.T) {
	tctest.RequireRoot(t)
	w := world{rand.New(rand.NewPCG(9, 10))}
	track := newTracker(t)
	moved, bound, translated := 0, 0, 0
	for n := range 20 {
		tree := w.tree(t)
		want, err := compile(tree.Matched(), nil)
		if err != nil {
			t.Fatal(err)
		}
		m, err := loaded(want)
		if err != nil {
			t.Fatal(err)
		}
		f, err := form{program: flowProgVifReceiveOld}.load(nil, m, nil, 7, hierarchy.MinFlows)
		if err != nil {
			t.Fatal(err)
		}
		from := starts(tree)
		for range 400 {
			x := w.frame()
			x.Received = true
			b, class := tree.Root, uint32(0)
			if multicast := len(x.bytes) > 33 && x.To.Is4() && x.To.As4()[0] >= 224; x.SPort != 0 && x.DPort != 0 && x.VLAN == 0 && !multicast && w.IntN(2) == 0 {
				b = from[w.IntN(len(from))]
				class = uint32(b.Entry().ID)
				bound++
			}
			k := flowVifFlow{Proto: uint8(x.Proto)}
			if class != 0 {
				copy(k.Local[:], x.To.AsSlice())
				copy(k.Remote[:], x.From.AsSlice())
				k.Lport, k.Rport = native16(byte(x.DPort>>8), byte(x.DPort)), native16(byte(x.SPort>>8), byte(x.SPort))
				if x.To.Is6() {
					k.V6 = 1
				}
				if err := f.table.Put(k, flowVifOwner{Class: class, Kind: 3}); err != nil {
					t.Fatal(err)
				}
			}
			forget := track.translate(w, &x)
			leaf, by := b.Decide(&x.Packet)
			wire := x.Packet
			wire.Host = netip.Addr{}
			if other, _ := b.Decide(&wire); other != leaf {
				translated++
			}
			if got := runMatch(t, f.receive, &x, 0); got != leaf.ID {
				t.Fatalf("tree %d: %v, from %s: %v, want %s (%v) by %v\n%x", n, x.Packet, b.Path, got, leaf.Path, leaf.ID, by, x.bytes)
			}
			forget()
			moved += min(len(by), 1)
			if class != 0 {
				if err := f.table.Put(k, flowVifOwner{Class: class | 1<<31, Kind: 3}); err != nil {
					t.Fatal(err)
				}
				if got := runMatch(t, f.receive, &x, 0); got != b.Entry().ID {
					t.Fatalf("of a rest that is bound itself: %v, want %v", got, b.Entry().ID)
				}
				if err := f.table.Delete(k); err != nil {
					t.Fatal(err)
				}
			}
		}
		if err := errors.Join(f.close(), m.close()); err != nil {
			t.Error(err)
		}
	}
	if track != nil && translated < 40 {
		t.Errorf("%d got another class by translation", translated)
	}
	if moved < 1000 || bound < 500 {
		t.Errorf("%d got another class by matches, %d were bound", moved, bound)
	}
}

// TestKernelMatchParts: the parts of a packet go by the ports of the first.
func TestKernelMatchParts(t *testing.T) {
	tctest.RequireRoot(t)
	rest, dns := hierarchy.ID(hierarchy.RestMinor), hierarchy.ID(5)
	var x match.Match
	for _, kv := range [][2]string{{"dport", "53"}, {"proto", "udp"}} {
		if err := x.Add(kv[0], kv[1]); err != nil {
			t.Fatal(err)
		}
	}
	want, err := compile([]hierarchy.Matched{{Class: dns, From: []hierarchy.ClassID{rest}, Match: []match.Match{x}}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	m, err := loaded(want)
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	ethernet := make([]byte, 12)
	v4 := func(id byte, offset uint16, more bool, payload ...byte) []byte {
		h := make([]byte, 20)
		h[0], h[5], h[9], h[12], h[16] = 0x45, id, 17, 10, 11
		binary.BigEndian.PutUint16(h[6:], offset/8)
		if more {
			h[6] |= 0x20
		}
		return slices.Concat(ethernet, []byte{8, 0}, h, payload, make([]byte, 40))
	}
	v6 := func(id byte, offset uint16, more bool, payload ...byte) []byte {
		h := make([]byte, 48)
		h[0], h[6], h[8], h[24], h[40], h[47] = 0x60, 44, 0x20, 0x30, 60, id // destination options before what the first has
		binary.BigEndian.PutUint16(h[42:], offset)
		if more {
			h[43] |= 1
		}
		return slices.Concat(ethernet, []byte{0x86, 0xdd}, h, payload, make([]byte, 40))
	}
	options := []byte{17, 0, 0, 0, 0, 0, 0, 0}
	for i, r := range []struct {
		packet []byte
		want   hierarchy.ClassID
	}{
		{v4(1, 8, true, 9, 9, 0, 53), rest}, // nobody has seen the first
		{v4(1, 0, true, 9, 9, 0, 53), dns},
		{v4(1, 8, true, 9, 9, 9, 9), dns},
		{v4(1, 16, false, 9, 9, 9, 9), dns},
		{v4(2, 0, true, 9, 9, 0, 54), rest},
		{v4(2, 8, false, 9, 9, 0, 53), rest},
		{v4(1, 0, true, 9, 9, 0, 54), rest}, // the number is another's now
		{v4(1, 8, true, 9, 9, 0, 53), rest},
		{v6(1, 0, true, append(options, 9, 9, 0, 53)...), dns},
		{v6(1, 8, false, 9, 9, 9, 9), dns},
		{v6(2, 8, false, append(options, 9, 9, 0, 53)...), rest},
	} {
		if got := runMatch(t, m.prog, &frame{bytes: r.packet}, uint32(rest)); got != r.want {
			t.Errorf("packet %d: %v, want %v", i, got, r.want)
		}
	}
}
