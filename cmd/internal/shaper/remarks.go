package shaper

import (
	"context"
	"fmt"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// tellPlan says what a plan does not show.
func (m *Machine) tellPlan(ctx context.Context, x *Target) {
	for _, b := range x.lost {
		m.Notef(b.Path, "%s: %v, bound at run time, goes: the policy has no branch for it any more", b.Path, b.Binding)
	}
	m.tellNew(x)
	m.tellPending(ctx, x.Interface, x.pending)
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

// tellNew says which branches are made anew that were to be renamed: what they are renamed
// from is not there.
func (m *Machine) tellNew(x *Target) {
	was := x.Record.IDs
	if !x.On(x.before).Root.Ours() || len(was.Minors) == 0 {
		return
	}
	for b := range x.Tree.All() {
		if b.RenamedFrom == "" {
			continue
		}
		p, ok := was.Called(x.next.IDs.Home(b.Path))
		if _, _, there := was.Find(p); ok && there {
			continue
		}
		known := x.Record.Names()
		for _, p := range x.Record.Paths() {
			known = append(known, string(p))
		}
		m.Notef(b.Path, "%s is made anew: there is no %s that it could be renamed from%s", b.Path, words.Printable(b.RenamedFrom), hierarchy.DidYouMean(hierarchy.Near(b.RenamedFrom, known)))
	}
}

// tellPending says which bindings name what is not there, and what may have been meant.
func (m *Machine) tellPending(ctx context.Context, x *Interface, all []resolve.Pending) {
	for _, w := range all {
		if near := MayMean(ctx, x.Binder, w.Binding); near != "" {
			m.Warnf(w.Path, "%s: %v is not there%s Once it is, vifshape agent binds it at once, else the next apply, bind or limit", w.Path, w.Binding, near)
			continue
		}
		m.Notef(w.Path, "%s: %v is not bound yet: %s; once it is there, vifshape agent binds it at once, else the next apply, bind or limit", w.Path, w.Binding, w.Reason)
	}
}

// MayMean asks, behind what is said of a binding, whether another one was meant; empty: the
// machine knows what it names, or nothing like it.
func MayMean(ctx context.Context, b *cgroup.Binder, x bind.Binding) string {
	known, near := b.Like(ctx, x)
	if known {
		return ""
	}
	names := make([]string, len(near))
	for i, n := range near {
		names[i] = words.Printable(n.String())
	}
	return hierarchy.DidYouMean(names)
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
