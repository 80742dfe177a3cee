package hierarchy

import (
	"fmt"
	"slices"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Action is what a step does.
type Action uint8

// The actions. A plan holds no step for what stays as it is.
const (
	NoOp Action = iota
	Create
	Change
	Delete
)

var actions = [...]struct{ name, symbol string }{{"no-op", " "}, {"create", "+"}, {"change", "~"}, {"delete", "-"}}

// String is the action in a word.
func (a Action) String() string {
	if int(a) < len(actions) {
		return actions[a].name
	}
	return "unknown"
}

// Symbol is the sign in front of a line of a diff: + ~ - or a space.
func (a Action) Symbol() string {
	if int(a) < len(actions) {
		return actions[a].symbol
	}
	return "?"
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (a Action) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// Item is a thing of the kernel that a step acts on: *Root, *Class, *Leaf,
// *Hook, *Bound or *Matched.
type Item interface {
	// String names the item with its path where it has one: "class eth0/web (71f:1a)".
	String() string
	item()
}

// String names the qdisc.
func (r *Root) String() string { return fmt.Sprintf("root qdisc %s %v", r.Kind, r.Handle) }

// String names the class.
func (c *Class) String() string { return "class " + label(c.Path, c.ID) }

// String names the queueing discipline.
func (l *Leaf) String() string { return "qdisc " + l.Qdisc.Kind + " of " + label(l.Path, l.Class) }

// String names the classifier.
func (h *Hook) String() string { return fmt.Sprintf("classifier %s", h.Way) }

// String names the binding.
func (b *Bound) String() string {
	return "binding " + b.Target.String() + " to " + label(b.Path, b.Class)
}

// String names the branch.
func (m *Matched) String() string { return "matches of " + label(m.Path, m.ID) }

// label names a class, with its path where that is known.
func label(p Path, id ClassID) string {
	if p == "" {
		return id.String()
	}
	return fmt.Sprintf("%s (%v)", p, id)
}

func (*Root) item()    {}
func (*Class) item()   {}
func (*Leaf) item()    {}
func (*Hook) item()    {}
func (*Bound) item()   {}
func (*Matched) item() {}

// Step is one change. Old is nil for Create, New for Delete; otherwise both are
// of the same type.
type Step struct {
	Port     Port // whose root, class or leaf it is; zero for the classifier and bindings
	Action   Action
	Old, New Item
}

// Item is what the step acts on: New, or Old when it deletes.
func (s Step) Item() Item {
	if s.New != nil {
		return s.New
	}
	return s.Old
}

// String says what the step does to what, and on which port where that does not send.
func (s Step) String() string {
	text := s.Action.String() + " " + s.Item().String()
	if s.Port.Direction != Send {
		text += " of " + s.Port.String()
	}
	return text
}

// Plan is an ordered list of steps that turns one state of a device into another. The
// order keeps every moment of the way sound: the guarantees of the children that stay
// or come fit their parent's (those that go keep theirs until the last steps, so
// that their traffic is served while the bindings move), no binding points at a
// class that is not there, and a class goes only when nothing points at it any
// more.
type Plan struct {
	Device string
	Steps  []Step
	// Renames are branches that keep their class, and what goes with it, under another
	// name. What is below them goes along. The kernel knows no names: there is no step.
	Renames []Rename
}

// Rename is another name of a branch.
type Rename struct {
	Path Path    `json:"path"`
	Was  Path    `json:"was"`
	ID   ClassID `json:"classid"`
}

// Counts are how many steps create something, change it and delete it.
func (p Plan) Counts() (created, changed, deleted int) {
	var n [Delete + 1]int
	for _, s := range p.Steps {
		n[s.Action]++
	}
	return n[Create], n[Change], n[Delete]
}

// Empty says whether there is nothing to do in the kernel.
func (p Plan) Empty() bool { return len(p.Steps) == 0 }

// Diff is the plan that turns the state old into the state want. Paths, and
// where a binding comes from, are names only and make no step.
//
// The order of steps is, for one port after the other: the root qdisc; classes that
// stand in the way of others (see clear); classes that shrink, children first; new
// classes and those that grow, parents first, and of the new ones the rest as early as
// can be; leaf queues. Then, for all of them, the classifier, the bindings and the matches; and at
// last, from the last port to the first, the classes that go, children first. Taking
// everything away is the reverse, and one message for each tree.
func Diff(old, want State) Plan {
	p := Plan{Device: want.Device}
	if p.Device == "" {
		p.Device = old.Device
	}
	ports := make([]Port, 0, len(want.Ports)+len(old.Ports))
	for _, list := range [...][]PortState{want.Ports, old.Ports} {
		for i := range list {
			if !slices.Contains(ports, list[i].Port) {
				ports = append(ports, list[i].Port)
			}
		}
	}
	last, many := make([][]Step, len(ports)), 0
	for _, w := range want.Ports {
		if !old.On(w.Port).Root.Ours() { // and then all of it is new
			many += 1 + len(w.Classes) + len(w.Leaves)
		}
	}
	if many > 0 {
		p.Steps = make([]Step, 0, many+1+len(want.Bound))
	}
	for i, port := range ports {
		last[i] = p.port(old.On(port), want.On(port), &old)
	}
	p.binder(old, want)
	for _, steps := range slices.Backward(last) {
		p.Steps = append(p.Steps, steps...)
	}
	return p
}

// port appends the steps for what stays and comes on a port, and takes from all those
// bindings and matches that had to go first. It returns the steps for what goes.
func (p *Plan) port(old, want PortState, all *State) (last []Step) {
	if !want.Root.Ours() {
		if old.Root.Ours() {
			last = []Step{{Port: old.Port, Action: Delete, Old: &old.Root}}
		}
		return last
	}
	if !old.Root.Ours() {
		root := Step{Port: want.Port, Action: Create, New: &want.Root}
		if old.Root.Foreign() {
			root.Action, root.Old = Change, &old.Root
		}
		p.Steps = append(p.Steps, root)
		old.Classes, old.Leaves = nil, nil
	}
	old = p.clear(old, want, all)
	last = p.classes(old, want)
	p.leaves(old, want)
	return last
}

// clear appends the steps that take away what no change in place can turn into
// what is wanted, and returns old without it: classes that get another parent (the
// kernel leaves them silently where they are), classes below one that becomes a
// leaf, and all below those; bindings to any of them, and matches, go first. Ids that [IDs.Assign]
// gives need this only when no other number is left; foreign hands may need it
// any time.
func (p *Plan) clear(old, want PortState, all *State) PortState {
	parent := make(map[ClassID]ClassID, len(want.Classes))
	inner := make(map[ClassID]bool)
	for i := range want.Classes {
		parent[want.Classes[i].ID] = want.Classes[i].Parent
		inner[want.Classes[i].Parent] = true
	}
	gone := map[ClassID]bool{}
	for i := range old.Classes {
		c := &old.Classes[i]
		up, wanted := parent[c.ID]
		_, stays := parent[c.Parent]
		if gone[c.Parent] || wanted && up != c.Parent || stays && !inner[c.Parent] {
			gone[c.ID] = true
		}
	}
	if len(gone) == 0 {
		return old
	}
	var left []Bound
	for i := range all.Bound {
		if b := &all.Bound[i]; gone[b.Class] {
			p.Steps = append(p.Steps, Step{Action: Delete, Old: b})
		} else {
			left = append(left, *b)
		}
	}
	var others []Matched
	for i := range all.Matched {
		if m := &all.Matched[i]; gone[m.Class] {
			p.Steps = append(p.Steps, Step{Action: Delete, Old: m})
		} else {
			others = append(others, *m)
		}
	}
	all.Bound, all.Matched = left, others
	for i := len(old.Classes) - 1; i >= 0; i-- {
		if gone[old.Classes[i].ID] {
			p.Steps = append(p.Steps, Step{Port: old.Port, Action: Delete, Old: &old.Classes[i]})
		}
	}
	keep := PortState{Port: old.Port, Root: old.Root}
	for _, c := range old.Classes {
		if !gone[c.ID] {
			keep.Classes = append(keep.Classes, c)
		}
	}
	for _, l := range old.Leaves {
		if !gone[l.Class] {
			keep.Leaves = append(keep.Leaves, l)
		}
	}
	return keep
}

// classes appends the steps for changed and new classes and returns those for
// classes that go.
func (p *Plan) classes(old, want PortState) (last []Step) {
	was := make(map[ClassID]*Class, len(old.Classes))
	for i := range old.Classes {
		was[old.Classes[i].ID] = &old.Classes[i]
	}
	var shrink []Step
	rest := make([]Step, 0, max(0, len(want.Classes)-len(old.Classes)))
	for i := range want.Classes {
		w := &want.Classes[i]
		o := was[w.ID]
		delete(was, w.ID)
		if o != nil && want.Port.Direction == Send && o.Path != "" && w.Path != "" && o.Path.Base() != w.Path.Base() {
			p.Renames = append(p.Renames, Rename{w.Path, o.Path, w.ID})
		}
		switch {
		case o == nil:
			rest = append(rest, Step{Port: want.Port, Action: Create, New: w})
		case same(*o, *w):
		case w.Rate < o.Rate || w.Rate == o.Rate && w.Ceil < o.Ceil:
			shrink = append(shrink, Step{want.Port, Change, o, w})
		default:
			rest = append(rest, Step{want.Port, Change, o, w})
		}
	}
	for i := len(old.Classes) - 1; i >= 0; i-- {
		if c := &old.Classes[i]; was[c.ID] != nil {
			last = append(last, Step{Port: want.Port, Action: Delete, Old: c})
		}
	}
	restFirst(rest)
	slices.Reverse(shrink)
	p.Steps = append(append(p.Steps, shrink...), rest...)
	return last
}

// restFirst moves the step for a new class that carries what no binding claims to the
// front, behind that for its parent. The root qdisc has nowhere to put such packets
// before.
func restFirst(steps []Step) {
	at := slices.IndexFunc(steps, func(s Step) bool { return s.Action == Create && s.New.(*Class).ID == ID(RestMinor) })
	if at < 0 {
		return
	}
	rest := steps[at]
	up := slices.IndexFunc(steps, func(s Step) bool { return s.New.(*Class).ID == rest.New.(*Class).Parent })
	if up >= at { // as in a state that was read while somebody changed it
		return
	}
	copy(steps[up+2:], steps[up+1:at])
	steps[up+1] = rest
}

// same compares all but the name.
func same(a, b Class) bool {
	a.Path, b.Path = "", ""
	return a == b
}

// leaves appends the steps for new and changed leaf queues. One that goes goes
// with its class.
func (p *Plan) leaves(old, want PortState) {
	was := make(map[ClassID]*Leaf, len(old.Leaves))
	for i := range old.Leaves {
		was[old.Leaves[i].Class] = &old.Leaves[i]
	}
	for i := range want.Leaves {
		w := &want.Leaves[i]
		switch o := was[w.Class]; {
		case o == nil:
			p.Steps = append(p.Steps, Step{Port: want.Port, Action: Create, New: w})
		case !o.Qdisc.Equal(w.Qdisc):
			p.Steps = append(p.Steps, Step{want.Port, Change, o, w})
		}
	}
}

// binder appends the steps for the classifier and its bindings. Bindings need a
// classifier to hold them, and each way holds them elsewhere.
func (p *Plan) binder(old, want State) {
	if old.Hook.Way != bind.WayNone && old.Hook.Way != want.Hook.Way {
		p.bindings(old.Bound, nil)
		old.Bound = nil
	}
	p.hook(old.Hook, want.Hook)
	p.bindings(old.Bound, want.Bound)
	p.matched(old.Matched, want.Matched)
}

// matched appends the steps for branches with matches.
func (p *Plan) matched(old, want []Matched) {
	was := make(map[ClassID]*Matched, len(old))
	for i := range old {
		was[old[i].ID] = &old[i]
	}
	for i := range want {
		w := &want[i]
		o := was[w.ID]
		delete(was, w.ID)
		switch {
		case o == nil:
			p.Steps = append(p.Steps, Step{Action: Create, New: w})
		case o.Digest != w.Digest:
			p.Steps = append(p.Steps, Step{Action: Change, Old: o, New: w})
		}
	}
	for i := range old {
		if o := &old[i]; was[o.ID] == o {
			p.Steps = append(p.Steps, Step{Action: Delete, Old: o})
		}
	}
}

func (p *Plan) hook(old, want Hook) {
	switch {
	case old == want:
	case old == (Hook{}):
		p.Steps = append(p.Steps, Step{Action: Create, New: &want})
	case want == (Hook{}):
		p.Steps = append(p.Steps, Step{Action: Delete, Old: &old})
	default:
		p.Steps = append(p.Steps, Step{Action: Change, Old: &old, New: &want})
	}
}

func (p *Plan) bindings(old, want []Bound) {
	kept := make([]bool, len(old))
	var at map[bind.Target]int // in old; most plans change few, and leave the order
	for i := range want {
		w, o := &want[i], i
		if i >= len(old) || old[i].Target != w.Target {
			if at == nil {
				at = make(map[bind.Target]int, len(old))
				for i := range old {
					at[old[i].Target] = i
				}
			}
			var was bool
			if o, was = at[w.Target]; !was {
				p.Steps = append(p.Steps, Step{Action: Create, New: w})
				continue
			}
		}
		kept[o] = true
		if old[o].Class != w.Class || old[o].Open != w.Open || old[o].Stays != w.Stays {
			p.Steps = append(p.Steps, Step{Action: Change, Old: &old[o], New: w})
		}
	}
	for i := range old {
		if !kept[i] {
			p.Steps = append(p.Steps, Step{Action: Delete, Old: &old[i]})
		}
	}
}
