//go:build linux

package adopt

import (
	"slices"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/survey"
)

// known says whether leaves may have a kind of qdisc.
func known(kind string) bool {
	return slices.ContainsFunc(qdisc.Kinds(), func(k hierarchy.Kind) bool { return k.Name == kind })
}

// queue gives a branch the qdisc that its class had. A queue that nobody chose is left out.
func (b *branch) queue(x *survey.Interface) {
	for _, l := range x.Leaves {
		if l.Parent != b.id {
			continue
		}
		switch {
		case !known(l.Kind):
			b.note("qdisc", "not taken over: its queue was %s %v, which no branch can have", l.Kind, l.Handle)
			return
		case l.Below:
			b.note("qdisc", "not taken over: what stands below %s %v", l.Kind, l.Handle)
		}
		b.setQueue(l.Leaf, b.rate)
	}
}

// dependent says whether what is left out of a kind follows from what is written.
func dependent(kind string) bool {
	return slices.Contains([]string{"red", "choke", "sfb", "netem", "tbf"}, kind)
}

// setQueue writes down a qdisc, without what it would be given anyway in a branch of a rate.
func (b *branch) setQueue(q hierarchy.Qdisc, rate hierarchy.Bandwidth) {
	kinds := qdisc.Kinds()
	k := kinds[slices.IndexFunc(kinds, func(k hierarchy.Kind) bool { return k.Name == q.Kind })]
	raw := &hierarchy.RawQdisc{Kind: q.Kind}
	b.spec.Qdisc = raw
	if len(q.Params) == 0 && len(k.Params) > 0 && q.Kind != "netem" {
		b.note("qdisc", "its parameters are not taken over: there is something among them that no policy can say")
		return
	}
	usual, err := qdisc.Defaults(q.Kind, rate)
	_, red := q.Get("min")
	for _, s := range q.Params {
		p := k.Param(s.Name)
		v, ok := usual.Get(s.Name)
		if p == nil || err == nil && ok && v == s.Value && !red && !dependent(q.Kind) {
			continue
		}
		raw.Params = append(raw.Params, rawParam(p, s.Value))
	}
}

// rawParam is a parameter as a policy has it.
func rawParam(p *hierarchy.Param, v uint64) hierarchy.RawParam {
	r := hierarchy.RawParam{Name: p.Name, Text: p.Format(v)}
	r.Quoted = p.Type != hierarchy.Count && p.Type != hierarchy.Flag && p.Type != hierarchy.Signed
	return r
}

// cake makes the rest of a root qdisc of kind cake. What it says of the line is the
// interface's, and of the bandwidth as well.
func (b *branch) cake(x *survey.Interface) {
	q := hierarchy.Qdisc{Kind: "cake"}
	for _, s := range x.Root.Leaf.Params {
		if !slices.Contains([]string{"bandwidth", "autorate-ingress", "raw", "overhead", "mpu", "atm", "ingress"}, s.Name) {
			q.Params = append(q.Params, s)
		}
	}
	if v, _ := x.Root.Leaf.Get("autorate-ingress"); v != 0 {
		b.note("", "Not taken over: autorate-ingress, for a rate that nobody has to write.")
	}
	b.setQueue(q, hierarchy.Gbit)
	if d, ok := x.Root.Leaf.Get("diffserv"); ok && qdisc.Value("cake", "diffserv", d) != "besteffort" {
		b.note("", "The classes of %s are kept, but have no shares: these come from cake's own bandwidth.", qdisc.Value("cake", "diffserv", d))
	}
}

// Bursts that tc works out are a packet of 1600 bytes, and what is sent in a tick of the
// clock, which is a nanosecond (get_hz, tc/tc_core.c, iproute2 6.1).
const usualBurst = 1600

// bursts takes over those that somebody has chosen: larger ones than tc works out.
func (b *branch) bursts(c *survey.Class) {
	chosen := func(size hierarchy.Size, rate hierarchy.Bandwidth) bool {
		return uint64(size) > usualBurst+uint64(rate)/8_000_000_000+uint64(rate)/8_000_000*2 // rounded up to microseconds
	}
	if chosen(c.Burst, c.Rate) {
		b.spec.Burst = nice(c.Burst, c.Rate)
	}
	if chosen(c.CBurst, c.Ceil) {
		b.spec.CBurst = nice(c.CBurst, c.Ceil)
	}
}

// nice is the roundest size that the kernel shows as this one: tc counts bursts in whole
// microseconds.
func nice(size hierarchy.Size, rate hierarchy.Bandwidth) hierarchy.Size {
	slack := hierarchy.Size(min(uint64(rate)/8_000_000, 1<<20)) + 1
	for _, unit := range []hierarchy.Size{hierarchy.KiB, 1000, 100} {
		if up := (size + unit - 1) / unit * unit; up >= size && up-size <= slack && size > unit {
			return up
		}
	}
	return size
}

// madeUp is the quantum that the kernel gives a class of which nobody says one
// (htb_change_class, net/sched/sch_htb.c, v6.12).
func madeUp(rate hierarchy.Bandwidth, r2q uint32) hierarchy.Size {
	return hierarchy.Size(min(max(uint64(rate)/8/uint64(max(r2q, 1)), 1000), 200_000))
}

// tidy leaves out what says no more than a default: priorities, where all are the same, and
// quanta that are in proportion to rates.
func tidy(top *branch) {
	var leaves []*branch
	for _, b := range top.all() {
		if b.leaf() {
			leaves = append(leaves, b)
		}
	}
	same := !slices.ContainsFunc(leaves, func(b *branch) bool {
		return b.spec.Prio == nil || *b.spec.Prio != *leaves[0].spec.Prio
	})
	if same {
		for _, b := range leaves {
			b.spec.Prio = nil
		}
	}
}

// line is what the classes or the root's size table say of the line.
func line(x *survey.Interface, top *branch) (l hierarchy.Line) {
	var says []hierarchy.LinkLayer
	if x.Root.Table != (hierarchy.LinkLayer{}) {
		says = append(says, x.Root.Table)
	}
	for _, c := range x.Classes {
		if c.Link != (hierarchy.LinkLayer{}) && !slices.Contains(says, c.Link) {
			says = append(says, c.Link)
		}
	}
	if x.Root.Kind == "cake" {
		return cakeLine(x, top)
	}
	if len(says) == 0 {
		return l
	}
	if len(says) > 1 {
		var texts []string
		for _, s := range says[1:] {
			texts = append(texts, s.String())
		}
		top.note("overhead", "not taken over: %s, which others of its classes or its size table say", strings.Join(texts, "; "))
	}
	return addition(x, top, says[0])
}

// addition is what adds to each packet, the interface's own header among it.
func addition(x *survey.Interface, top *branch, add hierarchy.LinkLayer) (l hierarchy.Line) {
	if add.ATM {
		l.Layer = "atm"
	}
	switch whole := int(add.Overhead) + int(x.Header); {
	case add.Overhead == 0:
	case add.Overhead < 0:
		top.note("overhead", "not taken over: %d bytes less than the kernel counts, and HTB cannot subtract", -int(add.Overhead))
	case whole > hierarchy.MaxOverhead:
		top.note("overhead", "not taken over: %d bytes, more than any line has", add.Overhead)
	default:
		l.Overhead = int16(whole)
		if x.Header != 0 {
			top.note("overhead", "%d and the header of %d bytes, which is counted from the IP packet here", add.Overhead, x.Header)
		}
	}
	if l.MPU = add.MPU; l.MPU > hierarchy.MaxOverhead {
		top.note("mpu", "not taken over: %v, more than any line has", l.MPU)
		l.MPU = 0
	}
	return l
}

// cakeLine is what cake says of the line, in its own words the same.
func cakeLine(x *survey.Interface, top *branch) (l hierarchy.Line) {
	q := x.Root.Leaf
	raw, _ := q.Get("raw")
	overhead, _ := q.Get("overhead")
	mpu, _ := q.Get("mpu")
	atm, _ := q.Get("atm")
	add := hierarchy.LinkLayer{Overhead: int16(int64(overhead)), MPU: hierarchy.Size(mpu), ATM: qdisc.Value("cake", "atm", atm) == "atm"}
	if raw != 0 {
		return addition(x, top, add)
	}
	if add.ATM {
		l.Layer = "atm"
	}
	if qdisc.Value("cake", "atm", atm) == "ptm" {
		l.Layer = "bridged-ptm"
		top.note("linklayer", "for PTM; check its overhead")
	}
	if o := int64(overhead); o > 0 && o <= hierarchy.MaxOverhead {
		l.Overhead = int16(o)
	} else if o != 0 {
		top.note("overhead", "not taken over: %d", o)
	}
	l.MPU = add.MPU
	return l
}
