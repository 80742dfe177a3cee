package amend

import (
	"fmt"
	"math/bits"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Unlimited is the rate of a line of which nobody knows what it carries: far beyond any
// (800 Gbit/s in 2026), so that it holds nothing up.
const Unlimited = hierarchy.Tbit

// Name is a branch's name for what a limit is put on, as unit-nginx-service for
// unit:nginx.service.
func Name(of string) string {
	name := strings.Trim(strings.Map(func(c rune) rune {
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '@', c == '+':
			return c
		}
		return '-'
	}, of), "-@+")
	if len(name) > 64 {
		name = strings.TrimRight(name[:64], "-@+")
	}
	if hierarchy.CheckName(name) != nil || name == hierarchy.RestName {
		name = strings.TrimRight("limit-"+name, "-")
	}
	return name
}

// limit puts limits, parents first, into a policy's interface. What they carry would be
// carried by the rest beside them, or by the leaf that they are the first below: out of what
// that is guaranteed they get theirs, in equal parts where they say no rate. No other
// branch's guarantee changes by them, no ceiling is above that of where they come from, and
// they borrow before that only where a limit says so.
func (x *Extended) limit(s *hierarchy.Spec, kinds []hierarchy.Kind, limits []Branch) error {
	for _, b := range limits {
		if b.receives() && s.Ingress == nil {
			s.Ingress = &hierarchy.BranchSpec{Rate: hierarchy.Absolute(Unlimited)}
		}
	}
	for len(limits) > 0 {
		parent := limits[0].Path.Parent()
		var these, others []Branch
		for _, b := range limits {
			if b.Path.Parent() == parent {
				these = append(these, b)
			} else {
				others = append(others, b)
			}
		}
		limits = others
		base, err := resolve(s, kinds)
		if err != nil {
			return err
		}
		if parent == "" { // the interface itself
			lower(s, base, these[0])
			x.Kept = append(x.Kept, these[0])
			continue
		}
		if err := x.beside(s, base, parent, these); err != nil {
			return err
		}
	}
	return nil
}

// receives says whether the limit holds for what is received, too.
func (b *Branch) receives() bool { return !b.Down.IsZero() || b.Link != nil }

// most is the ceiling of the limit in a direction; zero: none.
func (b *Branch) most(d hierarchy.Direction) hierarchy.Amount {
	switch {
	case b.Link != nil:
		return hierarchy.Absolute(b.Link.Rate(d))
	case d == hierarchy.Receive:
		return b.Down
	}
	return b.Ceil
}

// unbind takes bindings from the branches that have them. The rest stays that an inner branch
// has by its binding: programs may be in it.
func unbind(s *hierarchy.BranchSpec, all []bind.Binding) {
	if slices.ContainsFunc(s.Bind, func(b bind.Binding) bool { return slices.Contains(all, b) }) {
		s.Bind = slices.DeleteFunc(slices.Clone(s.Bind), func(b bind.Binding) bool { return slices.Contains(all, b) })
		if len(s.Children) > 0 && child(s, hierarchy.RestName) < 0 {
			s.Children = append(s.Children, &hierarchy.BranchSpec{Name: hierarchy.RestName})
		}
	}
	for _, c := range s.Children {
		unbind(c, all)
	}
}

// lower gives a whole interface a limit, unless the policy's is lower. What is guaranteed to
// its branches becomes less in proportion, and no ceiling stays above the interface's.
func lower(s *hierarchy.Spec, base *hierarchy.Tree, b Branch) {
	s.Rate = lesser(s.Rate, b.Ceil)
	narrow(s.Children, base, base.Root, s.Rate.Of(0), s.Rate.Of(0), func(c *hierarchy.BranchSpec) *hierarchy.BranchSpec { return c })
	if s.Ingress == nil {
		return
	}
	in := *s.Ingress
	in.Rate = lesser(in.Rate, b.Down)
	s.Ingress = &in
	narrow(s.Children, base.Ingress, base.Ingress.Root, in.Rate.Of(0), in.Rate.Of(0), func(c *hierarchy.BranchSpec) *hierarchy.BranchSpec {
		in := hierarchy.BranchSpec{}
		if c.Ingress != nil {
			in = *c.Ingress
		}
		c.Ingress = &in
		return c.Ingress
	})
}

// narrow makes the branches below one, which may use most now, fit into a tree whose root's
// rate is another, in one direction, of which side is what may be changed. All get a rate
// that is said: a share of what is left would be another one beside a ceiling that stays.
func narrow(all []*hierarchy.BranchSpec, base *hierarchy.Tree, of *hierarchy.Branch, is, most hierarchy.Bandwidth, side func(*hierarchy.BranchSpec) *hierarchy.BranchSpec) {
	if is == base.Root.Rate {
		return
	}
	for _, c := range all {
		b := base.Find(of.Path.Join(c.Name))
		w := side(c)
		high, low := bits.Mul64(uint64(b.Rate), uint64(is))
		part, _ := bits.Div64(high, low, uint64(base.Root.Rate)) // is below that: it fits
		ceil := most
		if w.Ceil.Percent() {
			ceil = max(w.Ceil.Of(most), hierarchy.Bandwidth(part))
		}
		ceil = min(ceil, b.Ceil)
		w.Rate, w.Ceil = hierarchy.Absolute(hierarchy.Bandwidth(part)), hierarchy.Absolute(ceil)
		narrow(c.Children, base, b, is, ceil, side)
	}
}

// lesser is the smaller of two bandwidths, of which one may not be written.
func lesser(a, b hierarchy.Amount) hierarchy.Amount {
	if b.IsZero() || !a.IsZero() && a.Of(0) <= b.Of(0) {
		return a
	}
	return b
}

// side is one direction of what limits are put beside.
type side struct {
	of   *hierarchy.Branch // the branch above
	from *hierarchy.Branch // that would carry what the limits do
	left hierarchy.Bandwidth
	open hierarchy.Bandwidth // the part of each that says no rate
}

// newSide is the direction of a tree; nil where nothing is shaped.
func newSide(t *hierarchy.Tree, parent hierarchy.Path, rates []hierarchy.Amount) *side {
	if t == nil {
		return nil
	}
	d := &side{of: t.Find(parent)}
	if d.from = t.Find(parent.Join(hierarchy.RestName)); d.from == nil {
		d.from = d.of
	}
	d.left = d.from.Rate
	parts := hierarchy.Bandwidth(1) // the rest's
	for _, r := range rates {
		if r.IsZero() {
			parts++
		} else {
			d.left -= min(r.Of(d.of.Rate), d.left)
		}
	}
	d.open = d.left / parts
	return d
}

// spec is what a limit is in this direction.
func (d *side) spec(rate, ceil hierarchy.Amount, prio *uint8) *hierarchy.BranchSpec {
	most := d.from.Ceil
	if !ceil.IsZero() {
		most = min(most, ceil.Of(d.of.Ceil))
	}
	if rate.IsZero() {
		open := max(min(d.open, most), 8)
		d.left -= min(open, d.left)
		rate = hierarchy.Absolute(open)
	}
	if prio == nil {
		prio = &d.from.Prio
	}
	return &hierarchy.BranchSpec{Rate: rate, Ceil: hierarchy.Absolute(most), Prio: prio}
}

// emulated are the delays and losses of what limits come from, for each direction: HTB has
// queues at its leaves alone, and nothing gets out of a slow link by a limit. Nil: none.
func emulated(of *hierarchy.BranchSpec) (send, receive *hierarchy.RawQdisc) {
	i := child(of, hierarchy.RestName)
	if i < 0 {
		return nil, nil
	}
	link := func(b *hierarchy.BranchSpec) *hierarchy.RawQdisc {
		if b == nil || b.Qdisc == nil || b.Qdisc.Kind != "netem" {
			return nil
		}
		return b.Qdisc
	}
	return link(of.Children[i]), link(of.Children[i].Ingress)
}

// beside puts limits below one branch.
func (x *Extended) beside(s *hierarchy.Spec, base *hierarchy.Tree, parent hierarchy.Path, limits []Branch) error {
	of := &s.BranchSpec
	_, below, _ := strings.Cut(string(parent), "/")
	for name := range strings.SplitSeq(below, "/") {
		i := child(of, name)
		if below == "" {
			break
		}
		if i < 0 {
			for _, b := range limits {
				x.Dropped = append(x.Dropped, Dropped{b, fmt.Sprintf("there is no %s any more", parent)})
			}
			return nil
		}
		of = of.Children[i]
	}
	if base.Find(parent).Entry() == nil {
		for _, b := range limits {
			x.Dropped = append(x.Dropped, Dropped{b, fmt.Sprintf("%s has no rest that it could be part of", parent)})
		}
		return nil
	}
	limits = slices.DeleteFunc(limits, func(b Branch) bool {
		there := child(of, b.Path.Base()) >= 0
		if there {
			x.Dropped = append(x.Dropped, Dropped{b, "the policy has a branch of that name"})
		}
		return there
	})
	for _, b := range limits { // and of none that goes: the policy binds that itself
		unbind(&s.BranchSpec, b.Bind)
	}
	var rates, ingress []hierarchy.Amount
	for _, b := range limits {
		rates, ingress = append(rates, b.Rate), append(ingress, b.Ingress)
	}
	send, receive := newSide(base, parent, rates), newSide(base.Ingress, parent, ingress)
	divide(of)
	link, ingressLink := emulated(of)
	taken := hierarchy.Bandwidth(0)
	for _, b := range limits {
		rate := b.Rate.Of(send.of.Rate)
		if rate > 0 && rate >= send.from.Rate-taken {
			others := ""
			if taken > 0 {
				others = fmt.Sprintf(" less %v for other limits", taken)
			}
			return ProblemError{hierarchy.Problem{Path: b.Path, Key: "rate", Text: fmt.Sprintf("rate %v is too much: %v%s is guaranteed to %s, where it comes from, and something must stay for that", b.Rate, send.from.Rate, others, send.from.Path)}}
		}
		taken += rate
		spec := send.spec(b.Rate, b.most(hierarchy.Send), b.Prio)
		spec.Name, spec.Bind = b.Path.Base(), b.Bind
		switch {
		case b.Link != nil:
			spec.Qdisc = b.Link.Leaf(hierarchy.Send)
		case b.Qdisc != "":
			spec.Qdisc = &hierarchy.RawQdisc{Kind: b.Qdisc}
		default:
			spec.Qdisc = link
		}
		if receive != nil {
			spec.Ingress = receive.spec(b.Ingress, b.most(hierarchy.Receive), b.Prio)
			if spec.Ingress.Qdisc = ingressLink; b.Link != nil {
				spec.Ingress.Qdisc = b.Link.Leaf(hierarchy.Receive)
			}
		}
		insert(of, spec)
		x.Kept = append(x.Kept, b)
	}
	i := child(of, hierarchy.RestName)
	if i < 0 {
		of.Children, i = append(of.Children, &hierarchy.BranchSpec{Name: hierarchy.RestName}), len(of.Children)
	}
	rest := *of.Children[i]
	rest.Rate = hierarchy.Absolute(send.left)
	if receive != nil {
		in := hierarchy.BranchSpec{}
		if rest.Ingress != nil {
			in = *rest.Ingress
		}
		in.Rate = hierarchy.Absolute(receive.left)
		rest.Ingress = &in
	}
	of.Children[i] = &rest
	return nil
}
