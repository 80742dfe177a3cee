package tc_test

import (
	"encoding/binary"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// kindCase is a discipline as a policy has it.
type kindCase struct {
	kind   string
	params []string // as for leaf
	since  string   // the kernel that it takes; empty: any
	drifts bool     // the kernel itself changes what it shows of it
	anew   bool     // made anew because the kernel, which takes a change, keeps some of the old
	chance int      // bytes at the end of what the kernel shows that are different each time
	rough  bool     // tc reckons times and bursts less exactly: what it makes is not compared
}

// kindCases are the disciplines of the contract tests: of each kind the plain one
// first, then every parameter with another value. What follows on another of its
// kind is also changed into from that.
func kindCases() []kindCase {
	return slices.Concat(
		shapingCases(),
		[]kindCase{
			{kind: "pfifo"}, {kind: "pfifo", params: []string{"limit=50"}},
			{kind: "bfifo"}, {kind: "bfifo", params: []string{`limit="100kb"`}}, {kind: "bfifo", params: []string{`limit="3gb"`}},
			{kind: "pfifo_head_drop"}, {kind: "pfifo_head_drop", params: []string{"limit=50"}},
			{kind: "skbprio"}, {kind: "skbprio", params: []string{"limit=50"}},
			{kind: "fq_codel"},
			{kind: "fq_codel", params: []string{"limit=500", `memory_limit="1mib"`, `target="7ms"`, `interval="123456us"`, `quantum="300b"`, "ecn=false", "drop_batch=8", `ce_threshold="3ms"`}},
			{kind: "fq_codel", params: []string{"flows=64"}},
			{kind: "fq_codel", params: []string{`ce_threshold="1ms"`, "ce_threshold_selector=1", "ce_threshold_mask=3"}, since: "5.16"},
			{kind: "codel"},
			{kind: "codel", params: []string{"limit=50", `target="7ms"`, `interval="123456us"`, "ecn=true", `ce_threshold="1234us"`}},
			{kind: "codel", params: []string{`target="1234us"`}},
			{kind: "pie"},
			{kind: "pie", params: []string{"limit=50", `target="12345us"`, `tupdate="31ms"`, "alpha=3", "beta=21", "ecn=true", "bytemode=true"}},
			{kind: "pie", params: []string{"dq_rate_estimator=true", `target="17ms"`}},
			{kind: "fq_pie"},
			{kind: "fq_pie", params: []string{"limit=500", `target="12345us"`, `tupdate="31ms"`, "alpha=3", "beta=21", "ecn=true", "bytemode=true", "dq_rate_estimator=true", `quantum="3000b"`, `memory_limit="1mib"`, "ecn_prob=20"}},
			{kind: "fq_pie", params: []string{"flows=64"}},
			{kind: "hhf"},
			{kind: "hhf", params: []string{"limit=50", `quantum="3000b"`, "hh_limit=100", `reset_timeout="51ms"`, `admit_bytes="64kib"`, `evict_timeout="2001ms"`, "non_hh_weight=3"}},
			{kind: "sfq"},
			{kind: "sfq", params: []string{"limit=60000", "divisor=64"}},
			{kind: "sfq", params: []string{"limit=500", `perturb="3s"`, `quantum="3000b"`, "flows=100", "divisor=512", "depth=30", "headdrop=true"}},
			{kind: "sfq", params: []string{`redflowlimit="60kb"`}},
			{kind: "sfq", params: []string{`min="20kb"`, `max="50kb"`, `avpkt="500b"`, "burst=60", `probability="5%"`, "ecn=true", "harddrop=true"}},
			{kind: "sfq", params: []string{`min="30kb"`, "ewma=7"}},
			{kind: "red"},
			{kind: "red", params: []string{`limit="120kb"`, `min="20kb"`, `max="50kb"`, `avpkt="500b"`, "burst=60", `bandwidth="3mbit"`, `probability="5%"`, "ecn=true", "harddrop=true"}},
			{kind: "red", params: []string{`min="30kb"`, "ewma=7", "scell_log=13", "ecn=true", "nodrop=true"}},
			{kind: "red", params: []string{`max="60kb"`, "ecn=true", "adaptive=true"}, drifts: true},
			{kind: "choke"},
			{kind: "choke", params: []string{"limit=400", "min=20", "max=90", `avpkt="500b"`, "burst=60", `bandwidth="3mbit"`, `probability="5%"`, "ecn=true"}},
			{kind: "choke", params: []string{"min=30", "ewma=7", "scell_log=13"}},
			{kind: "sfb"},
			{kind: "sfb", params: []string{"limit=400", "max=40", "target=30", `increment="1%"`, `decrement="0.1%"`, "penalty_rate=30", "penalty_burst=40", `rehash="33333ms"`, `db="4444ms"`}},
			{kind: "sfb", params: []string{"target=10", `rehash="0s"`}},
			{kind: "tbf", params: []string{`rate="1mbit"`}},
			{kind: "tbf", params: []string{`rate="8mbit"`, `burst="20kb"`, `limit="50kb"`}},
			{kind: "tbf", params: []string{`rate="5mbit"`, `latency="100ms"`, `burst="40kb"`}},
			{kind: "tbf", params: []string{`rate="1mbit"`, `burst="9kb"`, `limit="33kb"`, `peakrate="3mbit"`, `mtu="5kb"`, `mpu="64b"`, "overhead=18", `linklayer="atm"`}, rough: true},
		},
	)
}

// Every parameter of every kind is in a case.
func TestKindCases(t *testing.T) {
	used := map[string]bool{}
	for _, c := range kindCases() {
		used[c.kind] = true
		for _, p := range c.params {
			name, _, _ := strings.Cut(p, "=")
			used[c.kind+" "+name] = true
		}
	}
	for _, k := range qdisc.Kinds() {
		if !used[k.Name] {
			t.Errorf("%s is in no case", k.Name)
			continue
		}
		for _, p := range k.Params {
			if !used[k.Name+" "+p.Name] {
				t.Errorf("%s with %s is in no case", k.Name, p.Name)
			}
		}
	}
}

// here says whether the case is for the kernel at hand. What the host lacks, or is
// too old for, the machines of TestVM have.
func (c kindCase) here(t *testing.T) bool {
	return (vm.Inside() || tctest.HasQdisc(t, c.kind)) && (c.since == "" || kernelSince(t, c.since))
}

// kernelSince says whether the kernel is that or later: "5.16".
func kernelSince(t *testing.T, want string) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	split := func(s string) (major, minor int) {
		if _, err := fmt.Sscanf(s, "%d.%d", &major, &minor); err != nil {
			t.Fatalf("version %q: %v", s, err)
		}
		return major, minor
	}
	hasMajor, hasMinor := split(unix.ByteSliceToString(u.Release[:]))
	major, minor := split(want)
	return hasMajor > major || hasMajor == major && hasMinor >= minor
}

// certain is what of the kernel's options is the same each time.
func (c kindCase) certain(options []byte) []byte { return options[:max(len(options)-c.chance, 0)] }

func (c kindCase) String() string { return strings.Join(append([]string{c.kind}, c.params...), " ") }

// kindTree is a tree with one closed branch x that has the discipline: behind the
// first packet none leaves it for a minute, so that on a machine that stops now and
// then none is sent, or dropped for its age, while a test looks.
func (b *bench) kindTree(c kindCase) *hierarchy.Tree {
	const rate = 80 // bit/s
	x := leaf("x", rate, c.kind, c.params...)
	x.Ceil, x.Burst, x.CBurst = hierarchy.Absolute(rate), 1000, 1000
	return b.tree(100*hierarchy.Mbit, x)
}

// leafOf is the leaf qdisc of a class as it is.
func (b *bench) leafOf(id hierarchy.ClassID) hierarchy.Qdisc {
	b.t.Helper()
	leaves := b.stands().Leaves
	i := slices.IndexFunc(leaves, func(l hierarchy.Leaf) bool { return l.Class == id })
	if i < 0 {
		return hierarchy.Qdisc{}
	}
	return leaves[i].Qdisc
}

// options are the bytes that the kernel shows of the leaf qdisc of a class.
func (b *bench) options(id hierarchy.ClassID) []byte {
	b.t.Helper()
	c, err := b.net.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	defer c.Close()
	msgs, err := c.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.RTM_GETQDISC, Flags: netlink.Request | netlink.Dump},
		Data:   make([]byte, 20), // struct tcmsg
	})
	if err != nil {
		b.t.Fatal(err)
	}
	for _, m := range msgs {
		if binary.NativeEndian.Uint32(m.Data[4:]) != b.Index || binary.NativeEndian.Uint32(m.Data[12:]) != uint32(id) {
			continue
		}
		ad, err := netlink.NewAttributeDecoder(m.Data[20:])
		if err != nil {
			b.t.Fatal(err)
		}
		for ad.Next() {
			if ad.Type() == unix.TCA_OPTIONS {
				return ad.Bytes()
			}
		}
	}
	return nil
}

// tc carries out a command that was printed.
func (b *bench) tc(command string) error {
	b.t.Helper()
	command, _, _ = strings.Cut(command, " # ")
	args := strings.Fields(command)
	cmd := exec.CommandContext(b.t.Context(), args[0], args[1:]...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := b.net.Start(cmd); err != nil {
		b.t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w\n%s", command, err, out.String())
	}
	return nil
}

// eachKind runs a subtest of each kind that the kernel at hand has, with its cases
// and a network, which are many less than one for every case: an emulated machine
// takes long to make and to forget one.
func eachKind(t *testing.T, f func(t *testing.T, p *lab.Pair, cases []kindCase)) {
	for cases := kindCases(); len(cases) > 0; {
		kind, n := cases[0].kind, 1
		for n < len(cases) && cases[n].kind == kind {
			n++
		}
		if of := cases[:n]; of[0].here(t) {
			t.Run(kind, func(t *testing.T) {
				tctest.RequireQdisc(t, kind)
				f(t, tctest.New(t, lab.PairConfig{}), of)
			})
		}
		cases = cases[n:]
	}
}

// openBare opens the shaped end of a network that was used before, with nothing
// left of that.
func openBare(t *testing.T, p *lab.Pair) *bench {
	t.Helper()
	b := open(t, p.Near, p.Dev)
	if root := b.stands().Root; root != (hierarchy.Root{}) {
		b.do(hierarchy.Step{Action: hierarchy.Delete, Old: &root})
	}
	return b
}

// Every kind with every parameter: we read what we made, tc makes the same of the
// command that we print for it, and what is read makes the same bytes again.
func TestKernelKindContract(t *testing.T) {
	tctest.RequireProgram(t, "tc")
	eachKind(t, func(t *testing.T, p *lab.Pair, cases []kindCase) {
		for _, c := range cases {
			if !c.here(t) {
				continue
			}
			t.Run(c.String(), func(t *testing.T) {
				b := openBare(t, p)
				tree := b.kindTree(c)
				b.apply(tree) // which reads back and compares
				id := tree.Find("eth0/x").ID
				leaf := &hierarchy.Leaf{Class: id, Qdisc: tree.Find("eth0/x").Qdisc}
				ours := c.certain(b.options(id))

				// Of what was read the kernel makes the same once more.
				remove := hierarchy.Step{Action: hierarchy.Delete, Old: leaf}
				read := &hierarchy.Leaf{Class: id, Qdisc: b.leafOf(id)}
				b.do(remove, hierarchy.Step{Action: hierarchy.Create, New: read})
				if again := c.certain(b.options(id)); !c.drifts {
					if d := cmp.Diff(ours, again); d != "" {
						t.Errorf("bytes of the kernel (-first +made of what was read)\n%s", d)
					}
				}

				if c.rough {
					return
				}
				b.do(remove)
				for _, command := range tc.Commands(b.Name, hierarchy.Step{Action: hierarchy.Create, New: leaf}) {
					if err := b.tc(command); err != nil {
						t.Fatal(err)
					}
				}
				if d := cmp.Diff(leaf.Qdisc, b.leafOf(id)); d != "" {
					t.Errorf("what tc made (-want +got)\n%s", d)
				}
				if c.drifts {
					return
				}
				if d := cmp.Diff(c.certain(b.options(id)), ours); d != "" {
					t.Errorf("bytes of the kernel (-of tc's +of ours)\n%s", d)
				}
			})
		}
	})
}

// A discipline is changed in place where the kernel can, and then no packet is
// lost; where we do not try, the kernel refuses or loses them.
func TestKernelKindChange(t *testing.T) {
	tctest.RequireProgram(t, "tc")
	eachKind(t, func(t *testing.T, p *lab.Pair, cases []kindCase) {
		for i, c := range cases {
			if i == 0 || !c.here(t) || !cases[i-1].here(t) {
				continue
			}
			t.Run(c.String(), func(t *testing.T) {
				b := openBare(t, p)
				old, want := b.kindTree(cases[i-1]), b.kindTree(c)
				b.apply(old)
				x := old.Find("eth0/x")
				b.send(p, x.ID, 7)
				s := b.stats(old, x.Path)
				if s.QLen == 0 {
					t.Fatal("nothing waits")
				}
				before := s.Packets + uint64(s.QLen)
				kept := func() uint64 { // some may be sent meanwhile: netem holds them back for a while only
					s := b.stats(old, x.Path)
					return s.Packets + uint64(s.QLen)
				}
				change := hierarchy.Step{
					Action: hierarchy.Change,
					Old:    &hierarchy.Leaf{Class: x.ID, Qdisc: x.Qdisc},
					New:    &hierarchy.Leaf{Class: x.ID, Qdisc: want.Find("eth0/x").Qdisc},
				}
				if qdisc.InPlace(x.Qdisc, want.Find("eth0/x").Qdisc) {
					b.apply(want)
					if after := kept(); after != before {
						t.Errorf("%d packets wait or were sent, %d after the change", before, after)
					}
					return
				}
				// Change all the same, as tc would.
				commands := tc.Commands(b.Name, change)
				_, args, _ := strings.Cut(commands[len(commands)-1], ": ")
				err := b.tc(fmt.Sprintf("tc qdisc change dev %s parent %v %s", b.Name, x.ID, args))
				if err == nil && !c.anew && kept() == before {
					t.Errorf("the kernel could have changed it: %s", args)
				}
				b.apply(want)
			})
		}
	})
}

// Packets go through every kind, and those that do not are counted as dropped.
func TestKernelKindTraffic(t *testing.T) {
	const sent = 60 // fewer than what fills any queue
	eachKind(t, func(t *testing.T, p *lab.Pair, cases []kindCase) {
		b, c := open(t, p.Near, p.Dev), cases[0]
		x := leaf("x", 10*hierarchy.Mbit, c.kind, c.params...)
		x.Ceil = hierarchy.Absolute(10 * hierarchy.Mbit)
		x.CBurst = 80_000 // so that some pass before the rest waits: choke keeps few of one flow
		tree := b.tree(100*hierarchy.Mbit, x)
		b.apply(tree)
		sink, err := lab.NewSink(t.Context(), p.Far, 9)
		if err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		id := tree.Find("eth0/x").ID
		b.send(p, id, sent)
		var s tc.LeafStats
		eventually(t, "the queue empties", func() bool {
			all, err := b.LeafStats()
			if err != nil {
				t.Fatal(err)
			}
			i := slices.IndexFunc(all, func(s tc.LeafStats) bool { return s.Class == id })
			if i < 0 {
				t.Fatal("no counters")
			}
			s = all[i]
			return s.QLen == 0 && s.Packets+uint64(s.Drops) == sent && sink.Count(9).Packets == s.Packets
		})
		if s.Kind != c.kind || s.Packets < sent/2 {
			t.Errorf("%s let %d of %d packets through", s.Kind, s.Packets, sent)
		}
	})
}

// What RED's user gives, tc turns into the numbers that we turn it into.
func TestKernelKindRED(t *testing.T) {
	tctest.RequireProgram(t, "tc")
	p := tctest.New(t, lab.PairConfig{})
	for _, tt := range []struct {
		kind, words string
		params      []string
	}{
		{"red", "limit 400000 min 30000 max 90000 avpkt 1000 burst 55 bandwidth 10mbit probability 0.02", []string{`limit="400kb"`, `min="30kb"`, `max="90kb"`, `avpkt="1kb"`, "burst=55", `bandwidth="10mbit"`}},
		{"red", "limit 400000 avpkt 1500 bandwidth 100mbit probability 0.1 ecn", []string{`limit="400kb"`, `avpkt="1500b"`, `bandwidth="100mbit"`, `probability="10%"`, "ecn=true"}},
		{"red", "limit 5000000 min 200000 avpkt 300 bandwidth 64kbit probability 0.5 ecn harddrop", []string{`limit="5mb"`, `min="200kb"`, `avpkt="300b"`, `bandwidth="64kbit"`, `probability="50%"`, "ecn=true", "harddrop=true"}},
		{"red", "limit 60000 min 20000 max 60000 avpkt 1000 burst 300 bandwidth 20gbit probability 0.001", []string{`limit="60kb"`, `min="20kb"`, `max="60kb"`, `avpkt="1kb"`, "burst=300", `bandwidth="20gbit"`, `probability="0.1%"`}},
		{"choke", "limit 400 min 30 max 90 burst 55 bandwidth 10mbit probability 0.02", []string{"limit=400", "min=30", "max=90", "burst=55", `bandwidth="10mbit"`}},
		{"choke", "limit 1000 avpkt 200 bandwidth 3mbit probability 0.3 ecn", []string{"limit=1000", `avpkt="200b"`, `bandwidth="3mbit"`, `probability="30%"`, "ecn=true"}},
		{"sfq", "limit 100 quantum 1514 perturb 10 flows 50 divisor 1024 depth 50 redflowlimit 60000 min 8000 max 40000 avpkt 1000 burst 20 probability 0.02 ecn", []string{"limit=100", "flows=50", "depth=50", `redflowlimit="60kb"`, `min="8kb"`, `max="40kb"`, "burst=20", "ecn=true"}},
		{"sfq", "limit 100 quantum 1514 perturb 10 flows 50 divisor 1024 depth 50 redflowlimit 100000 probability 0.02", []string{"limit=100", "flows=50", "depth=50", `redflowlimit="100kb"`}},
	} {
		c := kindCase{kind: tt.kind, params: tt.params}
		if !c.here(t) {
			continue
		}
		t.Run(tt.kind+" "+tt.words, func(t *testing.T) {
			tctest.RequireQdisc(t, c.kind)
			b := openBare(t, p)
			tree := b.kindTree(c)
			b.apply(tree)
			x := tree.Find("eth0/x")
			b.do(hierarchy.Step{Action: hierarchy.Delete, Old: &hierarchy.Leaf{Class: x.ID, Qdisc: x.Qdisc}})
			if err := b.tc(fmt.Sprintf("tc qdisc add dev %s parent %v %s %s", b.Name, x.ID, tt.kind, tt.words)); err != nil {
				t.Fatal(err)
			}
			// A probability of tc's is a fraction of 2^32, one of a policy of one
			// less: they may be one apart.
			got := b.leafOf(x.ID)
			for i := range got.Params {
				want, _ := x.Qdisc.Get("probability")
				if v := got.Params[i].Value; got.Params[i].Name == "probability" && v+1 >= want && v <= want+1 {
					got.Params[i].Value = want
				}
			}
			if d := cmp.Diff(x.Qdisc, got); d != "" {
				t.Errorf("what tc made (-want +got)\n%s", d)
			}
		})
	}
}
