//go:build linux

package adopt

import (
	"fmt"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/survey"
)

// branch is a branch in the making: of a class, or of the whole interface.
type branch struct {
	id       hierarchy.ClassID // of the class; 0: it is of none
	spec     *hierarchy.BranchSpec
	notes    []note
	parent   *branch
	children []*branch
	targeted []rule // what filters give it
	shape
	received shape // of the branch that it is paired with on the IFB
}

// shape is what a branch is guaranteed, and may reach, in one direction.
type shape struct {
	shaped bool // it has any
	rate   hierarchy.Bandwidth
	ceil   hierarchy.Bandwidth // 0: its parent's
}

// note is a comment on a key, or above the table.
type note struct{ key, text string }

func (b *branch) note(key, format string, args ...any) {
	n := note{key, fmt.Sprintf(format, args...)}
	for _, o := range b.notes {
		if o == n {
			return
		}
	}
	b.notes = append(b.notes, n)
}

// add puts a branch below b.
func (b *branch) add(c *branch) {
	c.parent = b
	b.children = append(b.children, c)
}

// each walks b and what is below it, parents first.
func (b *branch) each(p hierarchy.Path, f func(hierarchy.Path, *branch)) {
	f(p, b)
	for _, c := range b.children {
		c.each(p.Join(c.spec.Name), f)
	}
}

// all are b and the branches below it, parents first.
func (b *branch) all() (all []*branch) {
	b.each("", func(_ hierarchy.Path, x *branch) { all = append(all, x) })
	return all
}

// tree is the specification of b with those below it.
func (b *branch) tree() *hierarchy.BranchSpec {
	b.spec.Children = nil
	if rest := b.rest(); rest != nil { // which comes last, as where it is not written
		rest.remove()
		b.add(rest)
	}
	for _, c := range b.children {
		b.spec.Children = append(b.spec.Children, c.tree())
	}
	return b.spec
}

// under says whether b lies below o.
func (b *branch) under(o *branch) bool {
	for p := b.parent; p != nil; p = p.parent {
		if p == o {
			return true
		}
	}
	return false
}

func (b *branch) leaf() bool { return len(b.children) == 0 }

// rest is the child of b of that name, nil where it has none.
func (b *branch) rest() *branch {
	for _, c := range b.children {
		if c.spec.Name == hierarchy.RestName {
			return c
		}
	}
	return nil
}

// remove takes a branch out from below its parent.
func (b *branch) remove() {
	p := b.parent
	for i, c := range p.children {
		if c == b {
			p.children = append(p.children[:i:i], p.children[i+1:]...)
		}
	}
	b.parent = nil
}

// becomeRest makes b the rest below scope, moving it up where it lay deeper.
func (b *branch) becomeRest(scope *branch) {
	if b.parent != scope {
		for p := b.parent; p != scope && p != nil; p = p.parent {
			p.rate -= min(p.rate, b.rate)
			if p.ceil != 0 && (b.ceil == 0 || b.ceil > p.ceil) {
				b.ceil = p.ceil
			}
			p.note("rate", "without that of class %v, which lay below it and is rest now", b.id)
		}
		b.note("", "It lay deeper, below class %v: a rest stands directly below what it is the rest of.", b.parent.id)
		old := b.parent
		b.remove()
		scope.add(b)
		if len(old.children) == 0 && old != scope {
			old.note("", "Nothing is left below it.")
		}
	}
	b.spec.Name = hierarchy.RestName
}

// plant makes branches of what stands at the root of an interface; nil where it has none.
func plant(x *survey.Interface) (*branch, error) {
	var top *branch
	switch x.Root.Kind {
	case "":
		return nil, nil
	case "htb", "hfsc", "cbq":
		top = classes(x)
	case "prio":
		top = bands(x)
	default:
		var err error
		if top, err = single(x); err != nil {
			return nil, err
		}
	}
	top.sieve(x)
	if x.Root.Kind == "htb" && top.rest() == nil && !top.leaf() {
		top.note("", "Without a default class htb sends what no filter claims past all limits; here it is in the rest.")
	}
	top.name()
	return top, nil
}

// classes makes branches of the classes of a root qdisc.
func classes(x *survey.Interface) *branch {
	by := map[hierarchy.ClassID]*branch{}
	for i := range x.Classes {
		by[x.Classes[i].ID] = ofClass(x, &x.Classes[i])
	}
	var tops []*branch
	for _, c := range x.Classes {
		b := by[c.ID]
		if p := by[c.Parent]; p != nil && p != b && !p.under(b) {
			p.add(b)
		} else {
			tops = append(tops, b)
		}
	}
	var top *branch
	if len(tops) == 1 && !tops[0].leaf() {
		top = tops[0]
		if top.ceil > top.rate {
			top.note("rate", "its ceil %v had no effect: there is nobody to borrow from", top.ceil)
		}
		top.ceil = 0
	} else {
		top = &branch{spec: &hierarchy.BranchSpec{}, shape: shape{shaped: true}}
		for _, b := range tops {
			top.rate += b.rate
			if b.ceil > b.rate {
				b.note("ceil", "was %v without effect: there was nobody to borrow from", b.ceil)
			}
			b.ceil = b.rate
			top.add(b)
		}
		top.rate = min(max(top.rate, 8), hierarchy.MaxBandwidth)
		switch len(tops) {
		case 0:
			top.rate = unknownRate(x, top)
			top.note("rate", "the root qdisc has no classes: what came was not shaped at all")
		case 1:
			top.note("rate", "that of its only class")
		default:
			top.note("rate", "the sum of its classes, which stood beside each other with none above")
		}
	}
	tidy(top)
	if d := by[x.Root.Default]; d != nil && d.leaf() && d != top {
		d.becomeRest(top)
		d.note("", "The default class: what no filter claimed.")
	}
	return top
}

// ofClass makes a branch of a class, without a name.
func ofClass(x *survey.Interface, c *survey.Class) *branch {
	b := &branch{id: c.ID, spec: &hierarchy.BranchSpec{}, shape: shape{true, c.Rate, c.Ceil}}
	b.note("", "class %v", c.ID)
	inner := false
	for _, o := range x.Classes {
		inner = inner || o.Parent == c.ID
	}
	switch c.Kind {
	case "htb":
		if c.Ceil < c.Rate {
			b.ceil = c.Rate
			b.note("ceil", "was %v, below its rate", c.Ceil)
		}
		b.bursts(c)
		if !inner {
			b.prio(c.Prio)
			if made := madeUp(c.Rate, x.Root.R2Q); c.Quantum != made {
				b.spec.Quantum = c.Quantum
			}
		}
	case "cbq":
		if c.Bounded {
			b.ceil = c.Rate
		}
		if !inner {
			b.prio(c.Prio)
		}
	case "hfsc":
		b.curves(c)
	}
	if b.rate == 0 {
		b.rate = 8
	}
	if !inner {
		b.queue(x)
	}
	return b
}

// prio has a branch come first as its class did.
func (b *branch) prio(p uint8) {
	if p > hierarchy.MaxPrio {
		b.note("prio", "was %d", p)
		p = hierarchy.MaxPrio
	}
	b.spec.Prio = &p
}

// curves makes a rate and a ceil of service curves.
func (b *branch) curves(c *survey.Class) {
	end := func(c *survey.Curve) hierarchy.Bandwidth {
		if c == nil {
			return 0
		}
		return max(c.M2, 8)
	}
	b.rate, b.ceil = end(c.RealTime), end(c.Upper)
	if b.rate == 0 {
		b.rate = end(c.Share)
	} else if c.Share != nil && end(c.Share) != b.rate {
		b.note("rate", "its share of what is left over was as that of %v; here it is in proportion to the rate", c.Share.M2)
	}
	if b.rate == 0 {
		b.rate = b.ceil
	}
	if b.ceil != 0 && b.ceil < b.rate {
		b.note("rate", "was %v, above its upper limit", b.rate)
		b.rate = b.ceil
	}
	for _, x := range []struct {
		name  string
		curve *survey.Curve
	}{{"rt", c.RealTime}, {"ls", c.Share}, {"ul", c.Upper}} {
		if x.curve != nil && x.curve.D != 0 && x.curve.M1 != x.curve.M2 {
			b.note("", "Not taken over: its %s curve begins with %v for %v: give it prio = 0 if it has to be quick.", x.name, x.curve.M1, time.Duration(x.curve.D))
		}
	}
}

// bands makes branches of a prio qdisc.
func bands(x *survey.Interface) *branch {
	top := &branch{spec: &hierarchy.BranchSpec{}, shape: shape{shaped: true}}
	top.rate = unknownRate(x, top)
	usual := 0
	if len(x.Root.PrioMap) > 0 {
		usual = int(x.Root.PrioMap[0])
	}
	for i := range x.Root.Bands {
		b := &branch{id: x.Root.Handle | hierarchy.ClassID(i+1), spec: &hierarchy.BranchSpec{}}
		b.note("", "band %d, class %v", i, b.id)
		b.prio(uint8(min(i, hierarchy.MaxPrio)))
		b.queue(x)
		top.add(b)
		if i == usual {
			b.becomeRest(top)
			b.note("", "Where the priority map puts ordinary packets.")
		}
	}
	top.note("", "Bands of prio have no rates: each branch is guaranteed a share, and prio says who gets the rest first.\nThe priority map, by which the type of service chose a band, is not taken over: match dscp instead.")
	return top
}

// single makes the rest of a root qdisc that has no classes.
func single(x *survey.Interface) (*branch, error) {
	q := x.Root.Leaf
	top := &branch{spec: &hierarchy.BranchSpec{}, shape: shape{shaped: true}}
	rest := &branch{spec: &hierarchy.BranchSpec{Name: hierarchy.RestName}}
	switch x.Root.Kind {
	case "tbf":
		rate, _ := q.Get("rate")
		top.rate = max(hierarchy.Bandwidth(rate), 8)
		if burst, ok := q.Get("burst"); ok {
			top.spec.Burst = nice(hierarchy.Size(burst), top.rate)
		}
		if limit, ok := q.Get("limit"); ok {
			rest.spec.Qdisc = &hierarchy.RawQdisc{Kind: "bfifo", Params: []hierarchy.RawParam{{Name: "limit", Text: hierarchy.Size(limit).String(), Quoted: true}}}
			rest.note("qdisc", "that of tbf; without it packets of many flows take turns (fq_codel)")
		}
		if peak, ok := q.Get("peakrate"); ok {
			top.note("rate", "not taken over: peakrate %v, at which a burst was sent", hierarchy.Bandwidth(peak))
		}
		for _, l := range x.Leaves {
			rest.notes = nil
			rest.id, rest.rate = l.Parent, top.rate
			rest.queue(x)
			rest.id, rest.rate = 0, 0
		}
	case "cake":
		rate, ok := q.Get("bandwidth")
		if top.rate = hierarchy.Bandwidth(rate); !ok || rate == 0 {
			top.rate = unknownRate(x, top)
		}
		rest.cake(x)
	default:
		if len(q.Params) == 0 && !known(x.Root.Kind) {
			return nil, fmt.Errorf("its root qdisc %s %v is of a kind that has no branches, and cannot be the queue of one", x.Root.Kind, x.Root.Handle)
		}
		top.rate = unknownRate(x, top)
		rest.setQueue(q, top.rate)
	}
	top.add(rest)
	return top, nil
}

// unknownRate is a rate for a root qdisc that has none.
func unknownRate(x *survey.Interface, top *branch) hierarchy.Bandwidth {
	if x.Speed != 0 {
		top.note("rate", "the line's; nothing shaped to less: write a little less than what it carries")
		return x.Speed
	}
	top.note("rate", "a guess: nothing shaped, and the interface does not say what it carries. Write a little less than that")
	return hierarchy.Gbit
}
