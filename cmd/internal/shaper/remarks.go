package shaper

import (
	"fmt"

	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// tellPlan says what a plan does not show.
func (m *Machine) tellPlan(x *Target) {
	for _, b := range x.lost {
		m.Notef(b.Path, "%s: %v, bound at run time, goes: the policy has no branch for it any more", b.Path, b.Binding)
	}
	m.tellPending(x.pending)
	m.tellOutside(x.outside)
	if f := x.next.Former; f.Kind != "" && x.On(x.before).Root.Foreign() {
		back := "`vifshape clear` puts it back"
		if f.Partial {
			back = "it has classes, filters or qdiscs of its own and cannot be put back: keep what made it"
		}
		m.Warnf(hierarchy.Path(x.Tree.Port.Device), "%s: the root qdisc %s %v is replaced; %s", x.Tree.Port.Device, f.Kind, f.Handle, back)
	}
	var anew []hierarchy.Path
	var gone []hierarchy.Bound
	for _, s := range x.Plan.Steps {
		switch old := s.Old.(type) {
		case *hierarchy.Leaf:
			if s.Action == hierarchy.Change && !qdisc.InPlace(old.Qdisc, s.New.(*hierarchy.Leaf).Qdisc) {
				anew = append(anew, s.New.(*hierarchy.Leaf).Path)
			}
		case *hierarchy.Bound:
			if s.Action == hierarchy.Delete {
				gone = append(gone, *old)
			}
		}
	}
	if len(anew) > 0 {
		others := ""
		if n := len(anew) - 1; n > 0 {
			others = fmt.Sprintf(", and those of %d more branches,", n)
		}
		m.Warnf(anew[0], "%s: its queue%s cannot be changed in place: it is made anew, and packets that wait in it then are dropped", anew[0], others)
	}
	// Processes that cannot be listed are no reason to stop a change.
	held, _ := x.Held(x.before.Bound)
	for _, b := range gone {
		if n := len(held[b.Target]); n > 0 {
			m.Warnf(b.Path, "%s: processes that are bound to it (%s: %d) leave it: what they send is up to a binding above theirs, or goes to the rest", words.Name(b.Path, b.Class), words.Printable(b.Target.String()), n)
		}
	}
}

// tellPending says which bindings name what is not there.
func (m *Machine) tellPending(all []resolve.Pending) {
	for _, w := range all {
		m.Notef(w.Path, "%s: %v is not bound yet: %s; once it is there, vifshape agent binds it at once, else the next apply", w.Path, w.Binding, w.Reason)
	}
}

// tellOutside says which bindings do not hold all processes of what they name.
func (m *Machine) tellOutside(all []resolve.Outside) {
	for _, o := range all {
		m.Warnf(o.Path, "%s: %s does not hold all of it: %s", o.Path, BindingText(o.Binding), words.Printable(o.String()))
	}
}

// BindingText is a binding, or words for that of a branch's own cgroup.
func BindingText(b bind.Binding) string {
	if b == (bind.Binding{}) {
		return "its own cgroup"
	}
	return b.String()
}
