//go:build linux

package adopt

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/survey"
)

// police is the rate above which a filter drops what arrives, 0 where none drops everything.
func police(x *survey.Interface) hierarchy.Bandwidth {
	for _, f := range x.Arrive {
		if f.All && f.Police != 0 {
			return f.Police
		}
	}
	return 0
}

// police takes over such a rate.
func (a *adoption) police(rate hierarchy.Bandwidth) {
	a.hook()
	a.spec.Ingress, a.top.spec.Ingress = nil, &hierarchy.BranchSpec{}
	a.top.received = shape{shaped: true, rate: rate}
	a.top.note("ingress", "a filter dropped what came faster; here it waits for its turn")
}

// others says what else stands at the hooks.
func (a *adoption) others() {
	for _, f := range a.from.Arrive {
		if !f.All || f.Redirect == 0 && f.Police == 0 {
			a.head = append(a.head, fmt.Sprintf("Not taken over: at ingress, %s%s.", f.Name(), reasons(&f)))
		}
	}
	for _, f := range a.from.Depart {
		a.head = append(a.head, fmt.Sprintf("Not taken over: at egress, %s%s: it stays where it is, before the tree.", f.Name(), reasons(&f)))
	}
}

func reasons(f *survey.Filter) string {
	if len(f.Unsaid) == 0 {
		return ""
	}
	return ": " + strings.Join(f.Unsaid, "; ")
}

func (top *branch) receiving() bool { return top.received.shaped }

// receive takes over the tree on the IFB for the branches that are the same there.
func (a *adoption) receive() error {
	x := a.from.Receive
	if x == nil {
		return nil
	}
	a.hook()
	in, err := plant(x)
	if err != nil {
		return err
	}
	if in == nil {
		a.head = append(a.head, fmt.Sprintf("Not taken over: %s, which nothing shapes.", x.Name))
		return nil
	}
	if len(a.from.Shared) > 0 {
		a.top.note("ingress", "%s shaped what %s received together with this; here each has a tree of its own", x.Name, strings.Join(a.from.Shared, ", "))
	}
	a.top.pair(in, x.Name)
	return nil
}

// pair has b shape what it receives as in did on the interface of the name, and so on down
// for the branches that are the same.
func (b *branch) pair(in *branch, name string) {
	b.received = in.shape
	s := in.spec
	b.spec.Ingress = &hierarchy.BranchSpec{Burst: s.Burst, CBurst: s.CBurst, Quantum: s.Quantum, Qdisc: s.Qdisc}
	if s.Prio != nil && (b.spec.Prio == nil || *b.spec.Prio != *s.Prio) {
		b.spec.Ingress.Prio = s.Prio
	}
	for _, n := range in.notes {
		if n.key != "" && n.key != "match" && n.key != "replace" {
			b.note("ingress", "%s", n.key+": "+n.text)
		}
	}
	for _, d := range in.children {
		i := slices.IndexFunc(b.children, func(c *branch) bool { return c.sameAs(d) })
		if i < 0 {
			b.note("", "%s", "Not taken over: "+d.lost(name))
			continue
		}
		b.children[i].pair(d, name)
	}
}

// sameAs says whether b of the one tree is d of the other: a rest, or a class of the same
// number that gets the same packets, or the answers to them.
func (b *branch) sameAs(d *branch) bool {
	if b.leaf() != d.leaf() || b.received.shaped {
		return false
	}
	if b.spec.Name == hierarchy.RestName || d.spec.Name == hierarchy.RestName {
		return b.spec.Name == d.spec.Name
	}
	return b.id.Minor() == d.id.Minor() && slices.Equal(eitherWay(b.targeted), eitherWay(d.targeted))
}

// eitherWay are matches as texts that are the same for packets and for answers to them.
func eitherWay(all []rule) (texts []string) {
	for _, r := range all {
		back := r.match
		back.From, back.To, back.SPort, back.DPort = back.To, back.From, back.DPort, back.SPort
		texts = append(texts, fmt.Sprint(r.family, min(r.match.Text(), back.Text())))
	}
	slices.Sort(texts)
	return slices.Compact(texts)
}

// lost describes a branch of the IFB that no branch is the same as.
func (b *branch) lost(name string) string {
	text := fmt.Sprintf("class %v of %s", b.id, name)
	if b.shaped {
		text += fmt.Sprintf(", rate %v", b.rate)
		if b.ceil > b.rate {
			text += fmt.Sprintf(" ceil %v", b.ceil)
		}
	}
	if len(b.targeted) > 0 {
		var all []string
		for _, r := range joined(b.targeted) {
			all = append(all, r.match.String())
		}
		text += ", which got " + strings.Join(all, ", ")
	}
	return text + ": no class here has the same packets or those that they answer."
}

// onlyReceives makes of a tree for sending one for receiving alone.
func (top *branch) onlyReceives(x *survey.Interface) {
	for _, b := range top.all() {
		s := b.spec
		b.received, b.shape = b.shape, shape{}
		b.spec = &hierarchy.BranchSpec{
			Name: s.Name, Match: s.Match,
			Ingress: &hierarchy.BranchSpec{Prio: s.Prio, Burst: s.Burst, CBurst: s.CBurst, Quantum: s.Quantum, Qdisc: s.Qdisc},
		}
		if i := b.spec.Ingress; !b.received.shaped && i.Prio == nil && i.Qdisc == nil {
			b.spec.Ingress = nil
		}
		for i, n := range b.notes {
			if n.key != "" && n.key != "match" {
				b.notes[i] = note{"ingress", n.key + ": " + n.text}
			}
		}
	}
	top.shaped = true
	top.rate = unknownRate(x, top)
}
