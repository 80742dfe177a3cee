package hierarchy_test

import (
	"fmt"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
)

func TestIdeal(t *testing.T) {
	const all = Unlimited
	type flows = map[Path]Bandwidth
	two := func() *Spec { // two tenants with two leaves each
		return eth0(rate("100mbit"),
			branch("a", rate("60mbit"), branch("x", rate("20mbit")), branch("y", rate("40mbit"))),
			branch("b", rate("30mbit"), branch("x", rate("10mbit")), branch("y", rate("20mbit"))),
			branch("rest", rate("10mbit")))
	}
	for _, r := range []struct {
		name   string
		spec   *Spec
		demand flows // in Mbit/s
		want   flows // of those that get something
	}{
		{"nobody wants anything", two(), nil, nil},
		{"all want everything: the guarantees", two(),
			flows{"a/x": all, "a/y": all, "b/x": all, "b/y": all, "rest": all},
			flows{"": 100, "a": 60, "a/x": 20, "a/y": 40, "b": 30, "b/x": 10, "b/y": 20, "rest": 10}},
		{"one alone gets all", two(), flows{"b/x": all}, flows{"": 100, "b": 100, "b/x": 100}},
		{"an idle sibling's guarantee stays in the family", two(),
			flows{"a/x": all, "b/x": all, "b/y": all, "rest": all},
			flows{"": 100, "a": 60, "a/x": 60, "b": 30, "b/x": 10, "b/y": 20, "rest": 10}},
		{"an idle family's goes to the others by their leaves' rates", two(),
			flows{"b/x": all, "b/y": all, "rest": all},
			flows{"": 100, "b": 75, "b/x": 25, "b/y": 50, "rest": 25}},
		{"what a satisfied one leaves", two(),
			flows{"a/x": 5, "a/y": all, "b/x": 5, "b/y": all},
			// y of b takes 5 from its family first; rest's 10 go 40:20 to the two.
			flows{"": 100, "a": 66_666_667, "a/x": 5, "a/y": 61_666_667, "b": 33_333_333, "b/x": 5, "b/y": 28_333_333}},
		{"demand is the limit", two(), flows{"a/x": 1, "rest": 2}, flows{"": 3, "a": 1, "a/x": 1, "rest": 2}},
		{"the first prio takes all that can be borrowed",
			eth0(rate("100mbit"), branch("a", rate("10mbit"), prio(0)), branch("b", rate("40mbit")), branch("rest", rate("30mbit"))),
			flows{"a": all, "b": all, "rest": all},
			flows{"": 100, "a": 30, "b": 40, "rest": 30}},
		{"up to its ceil, then the next",
			eth0(rate("100mbit"), branch("a", rate("10mbit"), ceil("15mbit"), prio(0)), branch("b", rate("40mbit")), branch("c", rate("10mbit")), branch("rest", rate("10mbit"), prio(7))),
			flows{"a": all, "b": all, "c": all, "rest": all},
			flows{"": 100, "a": 15, "b": 60, "c": 15, "rest": 10}},
		{"level before prio: the family's own spare goes to a late prio in it",
			eth0(rate("100mbit"), branch("a", rate("50mbit"), branch("x", rate("10mbit"), prio(7)), branch("y", rate("40mbit"))), branch("b", rate("10mbit"), prio(0)), branch("rest", rate("40mbit"))),
			flows{"a/x": all, "b": all, "rest": all},
			flows{"": 100, "a": 50, "a/x": 50, "b": 10, "rest": 40}},
		{"quanta share what is borrowed",
			eth0(rate("100mbit"), branch("a", rate("10mbit"), quantum(2000)), branch("b", rate("10mbit"), quantum(6000)), branch("rest", rate("80mbit"), quantum(2000))),
			flows{"a": all, "b": all},
			flows{"": 100, "a": 30, "b": 70}},
		{"a ceil in the middle holds both below it",
			eth0(rate("100mbit"), branch("a", rate("20mbit"), ceil("40mbit"), branch("x", rate("5mbit")), branch("y", rate("15mbit"))), branch("rest", rate("10mbit"))),
			flows{"a/x": all, "a/y": all, "rest": all},
			flows{"": 100, "a": 40, "a/x": 10, "a/y": 30, "rest": 60}},
		{"ceils at three levels",
			eth0(rate("100mbit"), branch("a", rate("20mbit"), ceil("50mbit"), branch("x", rate("10mbit"), ceil("30mbit"), branch("u", rate("5mbit"), ceil("12mbit")), branch("v", rate("5mbit"))), branch("y", rate("10mbit"))), branch("rest", rate("10mbit"), ceil("20mbit"))),
			flows{"a/x/u": all, "a/x/v": all, "a/y": all, "rest": all},
			// rest is full at 20; below a 50: u, v and y as 5:5:10 above their
			// guarantees until u is full at 12, then v and y as 5:10.
			flows{"": 70, "a": 50, "a/x": 24_666_667, "a/x/u": 12, "a/x/v": 12_666_667, "a/y": 25_333_333, "rest": 20}},
		{"an unguaranteed part is lent too",
			eth0(rate("100mbit"), branch("a", rate("10mbit")), branch("rest", rate("10mbit"), ceil("20mbit"))),
			flows{"a": all, "rest": all},
			flows{"": 100, "a": 80, "rest": 20}},
	} {
		t.Run(r.name, func(t *testing.T) {
			whole := func(f flows) flows {
				out := flows{}
				for p, v := range f {
					if v < 1000 {
						v *= Mbit
					}
					if p == "" {
						out["eth0"] = v
					} else {
						out["eth0/"+p] = v
					}
				}
				return out
			}
			got := grow(t, r.spec).Ideal(whole(r.demand))
			maps.DeleteFunc(got, func(_ Path, v Bandwidth) bool { return v == 0 })
			if d := cmp.Diff(whole(r.want), got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// randomTree is a resolved tree of a few levels, rates and ceilings of all
// sizes, and what its leaves want.
func randomTree(t *testing.T, rnd *rand.Rand, top Bandwidth) (*Tree, map[Path]Bandwidth) {
	s := &Spec{Interface: "eth0"}
	s.Rate = Absolute(top)
	var below func(b *BranchSpec, r, c Bandwidth, depth int)
	below = func(b *BranchSpec, r, c Bandwidth, depth int) {
		left := r
		for i := range 1 + rnd.IntN(4) {
			x := &BranchSpec{Name: fmt.Sprint("n", i)}
			mine := left / Bandwidth(2+rnd.IntN(4))
			most := c
			if rnd.IntN(3) == 0 {
				most = mine + Bandwidth(rnd.Float64()*float64(c-mine))
				x.Ceil = Absolute(most)
			}
			x.Rate = Absolute(mine)
			left -= mine
			p := uint8(rnd.IntN(3))
			x.Prio = &p
			if depth < 3 && rnd.IntN(2) == 0 {
				below(x, mine, most, depth+1)
			}
			b.Children = append(b.Children, x)
		}
	}
	below(&s.BranchSpec, top, top, 0)
	tree := grow(t, s)
	want := map[Path]Bandwidth{}
	for b := range tree.All() {
		if !b.Leaf() {
			continue
		}
		switch rnd.IntN(4) {
		case 0:
		case 1:
			want[b.Path] = Bandwidth(rnd.Float64() * float64(b.Ceil))
		case 2:
			want[b.Path] = Bandwidth(rnd.Float64() * 2 * float64(b.Rate))
		default:
			want[b.Path] = Unlimited
		}
	}
	return tree, want
}

// parents is the parent of each branch.
func parents(tree *Tree) map[Path]*Branch {
	up := map[Path]*Branch{}
	for b := range tree.All() {
		for _, c := range b.Children {
			up[c.Path] = b
		}
	}
	return up
}

// slack is what rounding may do to a figure.
func slack(b Bandwidth) Bandwidth { return 8 + b/100_000_000 }

func holdIdeal(t *testing.T, tree *Tree, want map[Path]Bandwidth) {
	t.Helper()
	got := tree.Ideal(want)
	up := parents(tree)
	for b := range tree.All() {
		if got[b.Path] > b.Ceil+slack(b.Ceil) {
			t.Fatalf("%s gets %v, above its ceil %v", b.Path, got[b.Path], b.Ceil)
		}
		if !b.Leaf() {
			var sum Bandwidth
			for _, c := range b.Children {
				sum += got[c.Path]
			}
			if d := max(sum, got[b.Path]) - min(sum, got[b.Path]); d > slack(b.Rate) {
				t.Fatalf("%s gets %v, and what is below it %v", b.Path, got[b.Path], sum)
			}
			continue
		}
		wants := min(want[b.Path], b.Ceil)
		if got[b.Path] > wants+slack(wants) {
			t.Fatalf("%s gets %v, more than the %v it wants", b.Path, got[b.Path], wants)
		}
		if least := min(wants, b.Rate); got[b.Path]+slack(least) < least {
			t.Fatalf("%s gets %v, less than the guarantee %v", b.Path, got[b.Path], least)
		}
		if got[b.Path]+slack(wants) >= wants {
			continue
		}
		// It wants more: all that could lend to it are spent, up to a ceiling.
		for a := up[b.Path]; a != nil; a = up[a.Path] {
			if got[a.Path]+slack(a.Rate) < a.Rate {
				t.Fatalf("%s gets %v and wants %v, and %s has %v of its %v to lend", b.Path, got[b.Path], wants, a.Path, a.Rate-got[a.Path], a.Rate)
			}
			if got[a.Path]+slack(a.Ceil) >= a.Ceil {
				break
			}
		}
	}
}

// At every speed, terabits included, where a float64's steps pass a bit.
func TestIdealRandom(t *testing.T) {
	for seed := range uint64(600) {
		rnd := rand.New(rand.NewPCG(seed, 2))
		top := []Bandwidth{Mbit, Gbit, 25*Gbit + 1, 400 * Gbit, MaxBandwidth}[seed%5]
		tree, want := randomTree(t, rnd, top)
		holdIdeal(t, tree, want)
		// Wanting more never gets a leaf less, and gets the interface no less.
		before := tree.Ideal(want)
		leaves := slices.Sorted(maps.Keys(before))
		leaf := leaves[rnd.IntN(len(leaves))]
		want[leaf] = want[leaf]/2*3 + 1000
		after := tree.Ideal(want)
		if after[leaf]+slack(top) < before[leaf] || after["eth0"]+slack(top) < before["eth0"] {
			t.Fatalf("seed %d: %s wants more and gets %v instead of %v, the interface %v instead of %v", seed, leaf, after[leaf], before[leaf], after["eth0"], before["eth0"])
		}
	}
}

// htb is a slow and independent rendering of sch_htb: token buckets, levels,
// priorities and a deficit round robin over leaves, in small steps of time.
// Packets are all of one size and tokens never pass one packet's worth, so that
// it comes close to a fluid.
type htb struct {
	branches []*Branch
	up       []int
	level    []int        // 0 for leaves; an inner branch's grows upwards
	tokens   [][2]float64 // rate, ceil; in packets
	deficit  [][]float64  // of a leaf, at each level
	turn     map[[3]int]int
	queue    []float64 // of a leaf, in packets
	sent     []float64
}

const bucket = 3 // packets

func newHTB(tree *Tree) *htb {
	h := &htb{turn: map[[3]int]int{}}
	at := map[*Branch]int{}
	up := parents(tree)
	for b := range tree.All() {
		at[b] = len(h.branches)
		h.branches = append(h.branches, b)
		above, level := -1, MaxDepth-1
		if p := up[b.Path]; p != nil {
			above = at[p]
			level = h.level[above] - 1
		}
		if b.Leaf() {
			level = 0
		}
		h.up = append(h.up, above)
		h.level = append(h.level, level)
		h.deficit = append(h.deficit, make([]float64, MaxDepth))
	}
	n := len(h.branches)
	h.tokens, h.queue, h.sent = make([][2]float64, n), make([]float64, n), make([]float64, n)
	return h
}

// lender is the branch at whose expense the leaf may send now, or -1.
func (h *htb) lender(leaf int) int {
	for i := leaf; i >= 0; i = h.up[i] {
		if h.tokens[i][1] < 0 {
			return -1
		}
		if h.tokens[i][0] >= 0 {
			return i
		}
	}
	return -1
}

// send sends one packet of the leaf that is next, and says whether there was one.
func (h *htb) send() bool {
	var best [3]int // level, prio, lender
	ready := map[[3]int][]int{}
	found := false
	for i, b := range h.branches {
		if !b.Leaf() || h.queue[i] < 1 {
			continue
		}
		l := h.lender(i)
		if l < 0 {
			continue
		}
		k := [3]int{h.level[l], int(b.Prio), l}
		if h.level[l] == 0 {
			k[2] = 0 // leaves that send on their own are in one round
		}
		ready[k] = append(ready[k], i)
		if !found || slices.Compare(k[:], best[:]) < 0 {
			best, found = k, true
		}
	}
	if !found {
		return false
	}
	// Round robin, from the leaf whose turn it is. Each passes until its deficit
	// is paid; the quanta are as their rates, the largest one packet.
	var most Bandwidth
	at := 0
	for k, i := range ready[best] {
		most = max(most, h.branches[i].Rate)
		if i <= h.turn[best] {
			at = k
		}
	}
	level := best[0]
	leaf := -1
	for leaf < 0 {
		i := ready[best][at%len(ready[best])]
		if h.deficit[i][level] >= 0 {
			leaf = i
		} else {
			h.deficit[i][level] += float64(h.branches[i].Rate) / float64(most)
			at++
		}
	}
	h.turn[best] = leaf
	h.deficit[leaf][level]--
	h.queue[leaf]--
	for i := leaf; i >= 0; i = h.up[i] {
		if h.level[i] >= level {
			h.tokens[i][0]--
		}
		h.tokens[i][1]--
		h.sent[i]++
	}
	return true
}

// run gives what each branch sent, as a part of the interface's rate.
func (h *htb) run(want map[Path]Bandwidth, steps, warm int) []float64 {
	top := float64(h.branches[0].Rate)
	for step := range steps {
		if step == warm {
			clear(h.sent)
		}
		for i, b := range h.branches {
			h.tokens[i][0] = min(h.tokens[i][0]+float64(b.Rate)/top, bucket)
			h.tokens[i][1] = min(h.tokens[i][1]+float64(b.Ceil)/top, bucket)
			if b.Leaf() {
				h.queue[i] = min(h.queue[i]+min(float64(want[b.Path])/top, 2), 50)
			}
		}
		for h.send() {
		}
	}
	part := make([]float64, len(h.sent))
	for i, n := range h.sent {
		part[i] = n / float64(steps-warm)
	}
	return part
}

// A simulation of HTB itself, packet by packet, comes to the same figures where
// leaves are either idle or backlogged. A leaf that its demand or ceil keeps from
// being backlogged now and then finds the nearest lender out of tokens and borrows
// further up; the nearest then has more for its other leaves than a fluid would
// leave it.
func TestIdealAgainstSimulation(t *testing.T) {
	backlogged := func(want map[Path]Bandwidth) {
		for p, w := range want {
			if w > 0 {
				want[p] = Unlimited
			}
		}
	}
	for _, r := range []struct {
		name    string
		prepare func(*Tree, map[Path]Bandwidth)
		within  float64 // of the interface's rate
	}{
		{"idle or backlogged", func(tree *Tree, want map[Path]Bandwidth) {
			backlogged(want)
			for b := range tree.All() {
				b.Ceil = tree.Root.Ceil
			}
		}, 0.003},
		{"idle or backlogged, ceils on inner branches", func(tree *Tree, want map[Path]Bandwidth) {
			backlogged(want)
			for b := range tree.All() {
				for _, c := range b.Children {
					if c.Leaf() {
						c.Ceil = b.Ceil
					}
				}
			}
		}, 0.005},
		{"any demand, ceils", func(*Tree, map[Path]Bandwidth) {}, 0.05},
	} {
		t.Run(r.name, func(t *testing.T) {
			worst := 0.0
			for seed := range uint64(30) {
				rnd := rand.New(rand.NewPCG(seed, 5))
				tree, want := randomTree(t, rnd, 100*Mbit)
				r.prepare(tree, want)
				got := tree.Ideal(want)
				h := newHTB(tree)
				for i, part := range h.run(want, 4000, 1000) {
					p := h.branches[i].Path
					ideal := float64(got[p]) / float64(tree.Root.Rate)
					worst = max(worst, math.Abs(part-ideal))
					if math.Abs(part-ideal) > r.within {
						t.Errorf("seed %d: %s gets %.4f of the interface in the simulation, %.4f ideally", seed, p, part, ideal)
					}
				}
			}
			t.Logf("worst difference %.4f of the interface's rate", worst)
		})
	}
}
