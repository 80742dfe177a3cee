package hierarchy

import (
	"math"
	"slices"
)

// Unlimited is the demand of a leaf that always has something to send.
const Unlimited = Bandwidth(math.MaxUint64)

// Ideal is what every branch should get for the given demand of the leaves, if
// HTB were a fluid: a leaf that is not named wants nothing; the result has every
// branch, inner ones with the sum of what is below them.
//
// Guarantees come first: each leaf gets what it wants up to its rate. What a
// branch's guarantee has left over it lends to the leaves below it that want
// more: the deepest lenders first, then upwards to the interface; among the
// leaves below one lender those with the smaller prio number first, and equals
// in proportion to their quanta (or rates, where no quantum is given), each up to
// its own ceil and those of the branches between it and the lender. That is
// the order in which htb_dequeue serves (net/sched/sch_htb.c, v6.12): level
// before priority, and within both a deficit round robin over leaves.
//
// It is what HTB comes to while each leaf is either idle or backlogged. A leaf
// that its demand or ceil keeps from being backlogged now and then finds the
// nearest lender without tokens and borrows further up, which leaves the nearest
// more for its other leaves: a few parts in a hundred of the interface's rate.
//
// HTB also departs from the fluid where one leaf may borrow from two branches above
// it in turns: an inner class keeps one place in the round for each priority, and
// moves it whatever the level is that it is served at (htb_dequeue_tree and
// htb_lookup_leaf, net/sched/sch_htb.c, v6.12). Leaves below such a branch get less
// of what the upper one lends, leaves directly below the upper one more. Package
// tc chooses quanta that make up for most of it where all leaves are busy; its
// documentation says what remains.
//
// Call it on a tree that is not settled: quanta that were chosen are no weights.
func (t *Tree) Ideal(demand map[Path]Bandwidth) map[Path]Bandwidth {
	f := fluid{}
	f.add(t.Root, -1, 0, demand)
	for i := range f.nodes {
		n := &f.nodes[i]
		if n.leaf {
			f.give(i, -1, min(n.want, n.rate))
		}
	}
	for depth := f.depth; depth >= 0; depth-- {
		for i := range f.nodes {
			if n := &f.nodes[i]; !n.leaf && n.depth == depth {
				for prio := range uint8(MaxPrio + 1) {
					f.lend(i, prio)
				}
			}
		}
	}
	got := make(map[Path]Bandwidth, len(f.nodes))
	for _, n := range f.nodes {
		got[n.path] = Bandwidth(math.Round(n.got))
	}
	return got
}

// node is a branch in the order of a walk, parents first, so that the nodes
// below one follow it up to index end.
type node struct {
	path             Path
	up, end, depth   int
	leaf             bool
	prio             uint8
	rate, ceil, want float64
	weight           float64
	got              float64
	active           float64 // weight of the leaves below it that are being filled
}

type fluid struct {
	nodes []node
	depth int // of the deepest inner branch
}

func (f *fluid) add(b *Branch, up, depth int, demand map[Path]Bandwidth) {
	i := len(f.nodes)
	n := node{path: b.Path, up: up, depth: depth, leaf: b.Leaf(), prio: b.Prio, rate: float64(b.Rate), ceil: float64(b.Ceil)}
	if n.leaf {
		n.want = min(float64(demand[b.Path]), n.ceil)
		n.weight = float64(b.Quantum)
		if b.Quantum == 0 {
			n.weight = n.rate
		}
	} else {
		f.depth = max(f.depth, depth)
	}
	f.nodes = append(f.nodes, n)
	for _, c := range b.Children {
		f.add(c, i, depth+1, demand)
	}
	f.nodes[i].end = len(f.nodes)
}

// give adds x to a leaf and to all above it up to, and without, the node stop.
func (f *fluid) give(leaf, stop int, x float64) {
	for i := leaf; i != stop; i = f.nodes[i].up {
		f.nodes[i].got += x
	}
}

// lend fills the leaves of one priority below a lender, all at once and each as
// fast as its weight, until the lender has nothing left or no leaf can take
// more. Each round ends when the first of them, or a branch above it, is full.
func (f *fluid) lend(lender int, prio uint8) {
	// Less than one part in 10^9 is rounding: sums of float64 stay far closer.
	const full = 1 - 1e-9
	l := &f.nodes[lender]
	open := []int{}
	for i := lender + 1; i < l.end; i++ {
		if n := &f.nodes[i]; n.leaf && n.prio == prio && n.got < n.want*full && f.open(i, lender, full) {
			open = append(open, i)
		}
	}
	for len(open) > 0 && l.got < l.rate*full {
		for _, i := range open {
			for a := i; a != lender; a = f.nodes[a].up {
				f.nodes[a].active = 0
			}
		}
		total := 0.0
		for _, i := range open {
			w := f.nodes[i].weight
			total += w
			for a := i; a != lender; a = f.nodes[a].up {
				f.nodes[a].active += w
			}
		}
		step := (l.rate - l.got) / total
		for _, i := range open {
			step = min(step, (f.nodes[i].want-f.nodes[i].got)/f.nodes[i].weight)
			for a := f.nodes[i].up; a != lender; a = f.nodes[a].up {
				step = min(step, (f.nodes[a].ceil-f.nodes[a].got)/f.nodes[a].active)
			}
		}
		for _, i := range open {
			f.give(i, -1, max(step, 0)*f.nodes[i].weight)
		}
		open = slices.DeleteFunc(open, func(i int) bool {
			return f.nodes[i].got >= f.nodes[i].want*full || !f.open(i, lender, full)
		})
	}
}

// open says whether every branch between a leaf and a lender is below its ceil.
func (f *fluid) open(leaf, lender int, full float64) bool {
	for a := f.nodes[leaf].up; a != lender; a = f.nodes[a].up {
		if f.nodes[a].got >= f.nodes[a].ceil*full {
			return false
		}
	}
	return true
}
