package adopt_test

import (
	"math/rand/v2"
	"testing"

	"github.com/vifshape/vifshape/cmd/internal/adopt"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/survey"
)

// wild is a tree of which no value has to make sense: guarantees beyond the parent's, ceilings
// below rates, loops, a default class that is none, numbers that no policy takes.
func wild(r *rand.Rand, name string) *survey.Interface {
	kind := pick(r, "htb", "htb", "hfsc", "cbq")
	x := &survey.Interface{Name: name, Header: pick[hierarchy.Size](r, 0, 14), Speed: pick(r, 0, hierarchy.Gbit), Hook: pick(r, "", "ingress", "clsact")}
	x.Root = survey.Qdisc{Kind: kind, Handle: id(0), R2Q: pick[uint32](r, 0, 10), Default: id(pick[uint32](r, 0, 2, 3, 4, 9, 99))}
	link := func() hierarchy.LinkLayer {
		return hierarchy.LinkLayer{Overhead: pick[int16](r, 0, 0, 0, 24, -14, 300), MPU: pick[hierarchy.Size](r, 0, 0, 64, 1000), ATM: r.IntN(8) == 0}
	}
	x.Root.Table = link()
	bandwidth := func() hierarchy.Bandwidth {
		return hierarchy.Bandwidth(r.Uint64N(uint64(pick(r, 100, hierarchy.Kbit, hierarchy.Mbit, hierarchy.Gbit, 40*hierarchy.Gbit)))) / 8 * 8
	}
	curve := func() *survey.Curve {
		if r.IntN(2) == 0 {
			return nil
		}
		return &survey.Curve{M1: bandwidth(), M2: bandwidth(), D: pick[uint64](r, 0, 10_000_000)}
	}
	kinds := qdisc.Kinds()
	for minor := uint32(1); minor < 2+r.Uint32N(9); minor++ {
		c := survey.Class{Kind: kind, Bounded: r.IntN(2) == 0}
		c.ID, c.Parent = id(minor), id(r.Uint32N(minor+1))
		if kind == "hfsc" {
			c.RealTime, c.Share, c.Upper = curve(), curve(), curve()
		} else {
			c.Rate, c.Link = bandwidth(), link()
			c.Prio = uint8(r.IntN(10))
		}
		if kind == "htb" {
			c.Ceil = bandwidth()
			c.Burst, c.CBurst, c.Quantum = hierarchy.Size(r.Uint32()>>r.IntN(32)), hierarchy.Size(r.Uint32()>>r.IntN(32)), hierarchy.Size(r.Uint32()>>r.IntN(32))
		}
		x.Classes = append(x.Classes, c)
		if r.IntN(2) == 0 {
			k := pick(r, kinds...).Name
			l := survey.Qdisc{Kind: k, Handle: hierarchy.ClassID(minor << 20), Parent: c.ID, Leaf: hierarchy.Qdisc{Kind: k}, Below: r.IntN(9) == 0}
			if q, err := qdisc.Defaults(k, pick(r, hierarchy.Mbit, hierarchy.Gbit)); err == nil && r.IntN(5) > 0 {
				l.Leaf = q
			}
			x.Leaves = append(x.Leaves, l)
		}
	}
	x.Filters = random(r).Filters
	for i := range x.Filters {
		f := &x.Filters[i]
		f.Class = id(r.Uint32N(12))
		if f.Parent != id(0) {
			f.Parent = id(r.Uint32N(12))
		}
		if r.IntN(9) == 0 {
			f.Unsaid = []string{"it asks for what no match has"}
		}
	}
	return x
}

// Whatever stands on an interface, its policy is right.
func TestRight(t *testing.T) {
	t.Logf("-seed %d", *seed)
	r := rand.New(rand.NewPCG(*seed, 2))
	for range 3000 {
		x := wild(r, "eth0")
		if r.IntN(3) == 0 {
			x.Receive = wild(r, "ifb0")
			x.Arrive = []survey.Filter{{Kind: "u32", All: true, Redirect: 7}}
		}
		switch r.IntN(12) {
		case 0:
			x.Root = survey.Qdisc{}
			x.Classes, x.Filters, x.Leaves = nil, nil, nil
			x.Arrive = append(x.Arrive, survey.Filter{Kind: "u32", All: true, Police: hierarchy.Bandwidth(r.Uint64N(1e9))})
		case 1:
			x.Classes = nil
		}
		text, err := adopt.Policy(x)
		if err != nil {
			if x.Root.Kind == "" && x.Receive == nil {
				continue // a rate of 0
			}
			t.Fatalf("%v\n%+v", err, x)
		}
		if right(t, text); t.Failed() {
			t.Fatalf("%+v", x)
		}
	}
}
