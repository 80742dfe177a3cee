package adopt_test

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/vifshape/vifshape/cmd/internal/adopt"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/survey"
)

var seed = flag.Uint64("seed", 1, "of random trees; another one looks elsewhere")

func id(minor uint32) hierarchy.ClassID { return hierarchy.ClassID(1<<16 | minor) }

// htbClass is a class of htb 1:.
func htbClass(minor, parent uint32, rate hierarchy.Bandwidth) survey.Class {
	return survey.Class{Kind: "htb", Class: hierarchy.Class{ID: id(minor), Parent: id(parent), Rate: rate, Ceil: rate, Burst: 1600, CBurst: 1600, Quantum: 200_000}}
}

// random is an htb with two levels, and filters of a few values, so that many overlap.
func random(r *rand.Rand) *survey.Interface {
	x := &survey.Interface{Name: "eth0", Root: survey.Qdisc{Kind: "htb", Handle: id(0), Default: id(0x30), R2Q: 10}}
	x.Classes = []survey.Class{
		htbClass(1, 0, 100*hierarchy.Mbit), htbClass(0x10, 1, 20*hierarchy.Mbit), htbClass(0x11, 1, 20*hierarchy.Mbit),
		htbClass(0x20, 1, 40*hierarchy.Mbit), htbClass(0x21, 0x20, 10*hierarchy.Mbit), htbClass(0x22, 0x20, 10*hierarchy.Mbit), htbClass(0x23, 0x20, 10*hierarchy.Mbit),
		htbClass(0x30, 1, 20*hierarchy.Mbit),
	}
	below := map[uint32][]uint32{1: {0x10, 0x11, 0x20, 0x21, 0x22, 0x30}, 0x20: {0x21, 0x22, 0x23}}
	for _, place := range []uint32{1, 0x20} {
		for pref := range r.IntN(9) {
			f := survey.Filter{Kind: "flower", Parent: id(place), Handle: 1, Pref: uint32(pref + 1), Class: id(pick(r, below[place]...))}
			if place == 1 {
				f.Parent = id(0)
			}
			f.Family, f.Match = pick(r, survey.Family(0), survey.IPv4, survey.IPv6), match.Match{}
			if r.IntN(3) == 0 && f.Family != 0 {
				p := []string{"10.0.0.0/8", "10.1.0.0/16", "10.1.2.3/32"}
				if f.Family == survey.IPv6 {
					p = []string{"2001:db8::/32", "2001:db8:1::/48"}
				}
				if r.IntN(2) == 0 {
					f.Match.To = []netip.Prefix{netip.MustParsePrefix(pick(r, p...))}
				} else {
					f.Match.From = []netip.Prefix{netip.MustParsePrefix(pick(r, p...))}
				}
			}
			if r.IntN(2) == 0 {
				f.Match.DPort = []match.Ports{pick(r, match.Ports{First: 80, Last: 80}, match.Ports{First: 1, Last: 1023}, match.Ports{First: 64, Last: 127})}
			}
			if r.IntN(3) == 0 {
				f.Match.Proto = []match.Proto{pick(r, match.TCP, match.UDP)}
			}
			if r.IntN(4) == 0 {
				f.Match.Mark = []match.Mark{pick(r, match.Mark{Value: 1, Mask: 1}, match.Mark{Value: 3, Mask: 1<<32 - 1})}
			}
			if r.IntN(5) == 0 {
				f.Match.DSCP = []match.DSCP{46}
			}
			f.All = f.Match.Text() == "{}"
			x.Filters = append(x.Filters, f)
		}
	}
	return x
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// packet is one that the filters of random may fit.
func packet(r *rand.Rand) (p match.Packet, family survey.Family) {
	if family = survey.IPv4; r.IntN(2) == 0 {
		family = survey.IPv6
	}
	addr := func() netip.Addr {
		if family == survey.IPv6 {
			return netip.MustParseAddr(pick(r, "2001:db8::1", "2001:db8:1::1", "fd00::1"))
		}
		return netip.MustParseAddr(pick(r, "10.0.0.1", "10.1.0.1", "10.1.2.3", "192.0.2.1"))
	}
	p = match.Packet{From: addr(), To: addr(), Proto: pick(r, match.TCP, match.UDP, 1), DSCP: pick[match.DSCP](r, 0, 46), Mark: pick[uint32](r, 0, 1, 3)}
	if p.Proto != 1 {
		p.SPort, p.DPort = 4000, pick[uint16](r, 80, 100, 1000, 5000)
	}
	return p, family
}

// classify is what tc does with a packet: the class, 0 where no filter fits (htb_classify,
// net/sched/sch_htb.c, v6.12).
func classify(x *survey.Interface, at hierarchy.ClassID, p *match.Packet, family survey.Family) hierarchy.ClassID {
	for _, f := range x.Filters {
		if f.Parent != at || f.Family != 0 && f.Family != family || !f.All && f.Match.Rank(p) == 0 {
			continue
		}
		if f.Class == id(0x20) {
			if c := classify(x, f.Class, p, family); c != 0 {
				return c
			}
		}
		return f.Class
	}
	return 0
}

// Whatever filters say, and in whatever order, the branch that a packet gets into is that of
// the class that it had.
func TestOrder(t *testing.T) {
	t.Logf("-seed %d", *seed)
	r := rand.New(rand.NewPCG(*seed, 1))
	const trees = 3000
	lost := 0
	for range trees {
		x := random(r)
		text, err := adopt.Policy(x)
		if err != nil {
			t.Fatal(err)
		}
		p, err := policy.Parse("", strings.NewReader(text), qdisc.Kinds())
		if err != nil {
			t.Fatalf("%v\n%s", err, text)
		}
		if strings.Contains(text, "not taken over: match") {
			lost++
			continue
		}
		classes := classesOf(text)
		for range 200 {
			packet, family := packet(r)
			want := classify(x, id(0), &packet, family)
			leaf, _ := p.Trees[0].Root.Decide(&packet)
			got := classes[leaf.Path]
			if want == 0 {
				want = id(0x30)
			}
			if want == id(0x20) && classes[leaf.Path.Parent()] == want && leaf.Path.Base() == hierarchy.RestName {
				continue // what no filter there claims went to the default class of all
			}
			if everything(x) != 0 && want == id(0x30) && got == 0 {
				continue
			}
			if got != want {
				t.Fatalf("%+v had class %v and is in %s, class %v\n%s\n%s", packet, want, leaf.Path, got, filters(x), text)
			}
		}
	}
	if t.Logf("%d of %d trees have a match that clashes, and is left out", lost, trees); lost > trees/50 {
		t.Error("too many")
	}
}

// everything is the class to which a filter of the root gives everything, 0 where none does.
func everything(x *survey.Interface) hierarchy.ClassID {
	i := slices.IndexFunc(x.Filters, func(f survey.Filter) bool { return f.Parent == id(0) && f.All && f.Family == 0 })
	if i < 0 {
		return 0
	}
	return x.Filters[i].Class
}

// classesOf are the classes of branches, which stand above their tables.
func classesOf(text string) map[hierarchy.Path]hierarchy.ClassID {
	all := map[hierarchy.Path]hierarchy.ClassID{}
	last := hierarchy.ClassID(0)
	for line := range strings.Lines(text) {
		if s, ok := strings.CutPrefix(strings.TrimSpace(line), "# class "); ok {
			last, _ = hierarchy.ParseClassID(s)
		}
		if s, ok := strings.CutPrefix(strings.TrimSpace(line), "[interface."); ok {
			all[hierarchy.Path(strings.ReplaceAll(strings.TrimSuffix(s, "]"), ".", "/"))] = last
		}
	}
	return all
}

func filters(x *survey.Interface) string {
	var b strings.Builder
	for _, f := range x.Filters {
		fmt.Fprintf(&b, "%v pref %d family %d %v -> %v\n", f.Parent, f.Pref, f.Family, f.Match, f.Class)
	}
	return b.String()
}
