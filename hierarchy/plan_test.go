package hierarchy_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// sending is the port that most trees here stand on.
var sending = Port{Device: "eth0"}

// machine is a fake device with the kernel's rules. It refuses what the
// kernel refuses, and also what the kernel takes silently but must not be asked.
type machine struct {
	s     State // Classes in any order
	fail  int   // this many steps succeed before one fails; negative: all succeed
	after func()
	// strict holds children's guarantees against their parent's at every step,
	// less those of the classes in leaving.
	strict  bool
	leaving map[Port]map[ClassID]bool
	// Bindings need their class on each of these ports, and else on any.
	stay []Port
}

// on is a port to be changed; what was read of it stays what it was.
func (m *machine) on(p Port) *PortState {
	m.s.Ports = slices.Clone(m.s.Ports)
	m.s.Set(m.s.On(p))
	return &m.s.Ports[slices.IndexFunc(m.s.Ports, func(o PortState) bool { return o.Port == p })]
}

func class(p PortState, id ClassID) int {
	return slices.IndexFunc(p.Classes, func(c Class) bool { return c.ID == id })
}

func hasChildren(p PortState, id ClassID) bool {
	return slices.ContainsFunc(p.Classes, func(c Class) bool { return c.Parent == id })
}

func dropLeaf(p *PortState, id ClassID) {
	p.Leaves = slices.DeleteFunc(slices.Clone(p.Leaves), func(l Leaf) bool { return l.Class == id })
}

// holds says whether a binding to a class points at one.
func (m *machine) holds(id ClassID) bool {
	has := func(p PortState) bool { return class(p, id) >= 0 }
	for _, p := range m.stay {
		if !has(m.s.On(p)) {
			return false
		}
	}
	return slices.ContainsFunc(m.s.Ports, has)
}

func (m *machine) step(s Step) error {
	if m.fail == 0 {
		return fmt.Errorf("%v: no such luck", s)
	}
	m.fail--
	if m.after != nil {
		defer m.after()
	}
	switch x := s.Item().(type) {
	case *Root:
		p := m.on(s.Port)
		*p = PortState{Port: s.Port}
		if s.Action != Delete {
			p.Root = *x
		}
	case *Class:
		return m.doClass(s, x)
	case *Leaf:
		p := m.on(s.Port)
		if class(*p, x.Class) < 0 || hasChildren(*p, x.Class) {
			return errors.New("no leaf class")
		}
		had := slices.ContainsFunc(p.Leaves, func(l Leaf) bool { return l.Class == x.Class })
		if s.Action == Delete || (s.Action == Change) != had {
			return fmt.Errorf("%v although it was there: %v", s.Action, had)
		}
		dropLeaf(p, x.Class)
		p.Leaves = append(p.Leaves, *x)
	case *Hook:
		old := Hook{}
		if s.Old != nil {
			old = *s.Old.(*Hook)
		}
		if m.s.Hook != old {
			return errors.New("another classifier")
		}
		if s.Action == Change && old.Way != x.Way && len(m.s.Bound) > 0 {
			return errors.New("bindings would be left behind")
		}
		if m.s.Hook = (Hook{}); s.Action != Delete {
			m.s.Hook = *x
		} else if len(m.s.Bound) > 0 {
			return errors.New("bindings without a classifier")
		}
	case *Bound:
		at := slices.IndexFunc(m.s.Bound, func(b Bound) bool { return b.Target == x.Target })
		if (at < 0) != (s.Action == Create) || m.s.Hook.Way == bind.WayNone {
			return errors.New("no classifier, or the binding is or is not there")
		}
		if at >= 0 {
			m.s.Bound = slices.Delete(slices.Clone(m.s.Bound), at, at+1)
		}
		if s.Action != Delete {
			if !m.holds(x.Class) {
				return errors.New("binding to no class")
			}
			m.s.Bound = append(slices.Clone(m.s.Bound), *x)
		}
	}
	return nil
}

func (m *machine) doClass(s Step, x *Class) error {
	p := m.on(s.Port)
	at := class(*p, x.ID)
	switch s.Action {
	case Create:
		if at >= 0 || !p.Root.Ours() {
			return errors.New("exists, or no qdisc")
		}
		if x.Parent != ID(0) && class(*p, x.Parent) < 0 {
			return errors.New("no parent")
		}
		if slices.ContainsFunc(m.s.Bound, func(b Bound) bool { return b.Class == x.Parent }) && !hasChildren(*p, x.Parent) {
			return errors.New("a child below a leaf that is bound")
		}
		dropLeaf(p, x.Parent)
		p.Classes = append(slices.Clone(p.Classes), *x)
	case Change:
		if at < 0 || p.Classes[at].Parent != x.Parent {
			return errors.New("not there, or below another parent")
		}
		p.Classes = slices.Clone(p.Classes)
		p.Classes[at] = *x
	case Delete:
		if at < 0 || hasChildren(*p, x.ID) {
			return errors.New("not there, or in use")
		}
		if slices.ContainsFunc(m.s.Bound, func(b Bound) bool { return b.Class == x.ID }) {
			return errors.New("a binding points at it")
		}
		dropLeaf(p, x.ID)
		p.Classes = slices.Delete(slices.Clone(p.Classes), at, at+1)
	}
	if !m.strict {
		return nil
	}
	leaving := m.leaving[s.Port]
	sum := map[ClassID]Bandwidth{}
	for _, c := range p.Classes {
		if !leaving[c.ID] {
			sum[c.Parent] += c.Rate
		}
	}
	for _, c := range p.Classes {
		if sum[c.ID] > c.Rate && !leaving[c.ID] {
			return fmt.Errorf("the children of %s are guaranteed %v, more than its %v", c.Path, sum[c.ID], c.Rate)
		}
	}
	return nil
}

// part is the machine's side at a port, or its binder.
type part struct {
	*machine
	port Port
	read func(*State) error // changes what is read
}

func (p part) Port() Port { return p.port }

func (p part) Read(ctx context.Context, s *State) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.port == (Port{}) {
		s.Hook, s.Bound = p.s.Hook, slices.Clone(p.s.Bound)
	} else {
		is := p.s.On(p.port)
		is.Leaves, is.Classes = slices.Clone(is.Leaves), parentsFirst(is.Classes)
		s.Set(is)
	}
	if p.read != nil {
		return p.read(s)
	}
	return nil
}

func parentsFirst(in []Class) []Class {
	var out []Class
	var below func(ClassID)
	below = func(id ClassID) {
		for _, c := range in {
			if c.Parent == id {
				c.Path = ""
				out = append(out, c)
				below(c.ID)
			}
		}
	}
	below(ID(0))
	return out
}

func (p part) Do(ctx context.Context, steps []Step) (int, error) {
	for i, s := range steps {
		if err := ctx.Err(); err != nil {
			return i, err
		}
		if s.Port != p.port {
			return i, fmt.Errorf("%v: it is not for %v", s, p.port)
		}
		if err := p.step(s); err != nil {
			return i, err
		}
	}
	return len(steps), nil
}

// kernel has the ports of the machine's state, and at least the one that sends.
func (m *machine) kernel() Kernel {
	k := Kernel{Device: "eth0", Parts: []Part{part{machine: m, port: sending}}}
	for _, p := range m.s.Ports {
		if p.Port != sending {
			k.Parts = append(k.Parts, part{machine: m, port: p.Port})
		}
	}
	k.Parts = append(k.Parts, part{machine: m})
	return k
}

// only is the one port of a state, to be changed without changing others that were
// copied from it.
func only(s *State) *PortState {
	s.Ports = slices.Clone(s.Ports)
	return &s.Ports[0]
}

// stateOf is the whole state of a tree with everything bound by BPF.
func stateOf(tree *Tree) State {
	s := tree.State()
	s.Hook = Hook{Way: bind.WayBPF, Version: 1}
	for b := range tree.All() {
		for _, x := range b.Bind {
			e := b.Entry()
			s.Bound = append(s.Bound, Bound{Target: bind.ToCgroup("/" + x.Name), Class: e.ID, Path: b.Path})
		}
	}
	return s
}

// boundTree is a random good tree whose bindings are from one small set, so that
// they move between branches, with ids from the memory.
func boundTree(t *testing.T, rnd *rand.Rand, ids IDs) (*Tree, IDs) {
	for {
		s := randomSpec(rnd.IntN)
		names := rnd.Perm(12)
		var rename func(b *BranchSpec)
		rename = func(b *BranchSpec) {
			for i := range b.Bind {
				if len(names) == 0 {
					b.Bind = nil
					break
				}
				b.Bind[i].Name, names = fmt.Sprint("u", names[0]), names[1:]
			}
			if len(b.Children) == 0 && b.Name != "" && rnd.IntN(3) == 0 {
				b.Qdisc = &RawQdisc{Kind: kinds[rnd.IntN(3)].Name}
			}
			for _, c := range b.Children {
				rename(c)
			}
		}
		rename(&s.BranchSpec)
		if tree, _ := Resolve(s, kinds); tree != nil {
			return tree, assign(t, ids, tree)
		}
	}
}

// carry applies a plan step by step and checks every moment.
func carry(from, to State) error {
	plan := Diff(from, to)
	m := &machine{s: from, fail: -1, strict: true, leaving: map[Port]map[ClassID]bool{}}
	for _, p := range to.Ports {
		m.stay = append(m.stay, p.Port)
		was := from.On(p.Port)
		m.leaving[p.Port] = map[ClassID]bool{}
		for _, c := range was.Classes {
			m.leaving[p.Port][c.ID] = class(p, c.ID) < 0
		}
		m.on(p.Port) // so that it is read, too
	}
	for i, s := range plan.Steps {
		if c, ok := s.Item().(*Class); ok && s.Action == Create {
			m.leaving[s.Port][c.ID] = false
		}
		if err := m.step(s); err != nil {
			return fmt.Errorf("step %d, %v: %w", i, s, err)
		}
	}
	end, err := m.kernel().Read(context.Background())
	if err != nil {
		return err
	}
	if left := Diff(end, to); !left.Empty() {
		return fmt.Errorf("after all steps %v are left", left.Steps)
	}
	if left := Diff(to, end); !left.Empty() {
		return fmt.Errorf("after all steps %v are left the other way round", left.Steps)
	}
	for _, e := range end.Ports {
		if p := to.On(e.Port); len(e.Classes) != len(p.Classes) || len(e.Leaves) != len(p.Leaves) {
			return fmt.Errorf("the end of %v is %+v, want %+v", e.Port, e, p)
		}
	}
	if len(end.Bound) != len(to.Bound) || end.Hook != to.Hook {
		return fmt.Errorf("the end is %+v, want %+v", end, to)
	}
	if d := Diff(from, from); !d.Empty() {
		return fmt.Errorf("a state differs from itself: %v", d.Steps)
	}
	return nil
}

// From any tree of an interface to any later one.
func TestDiffRandom(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 6))
		var ids IDs
		was := State{Device: "eth0"}
		for range 5 {
			var tree *Tree
			tree, ids = boundTree(t, rnd, ids)
			is := stateOf(tree)
			is.Hook = []Hook{{bind.WayBPF, 1, 0, 0, 0}, {bind.WayBPF, 2, 2, 65_536, 0}, {bind.WayBPF, 2, 2, 100_000, 2}, {bind.WayNetCls, 1, 0, 0, 0}, {bind.WayBPF, 2, 0, 0, 2}}[rnd.IntN(5)]
			if err := carry(was, is); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			was = is
		}
		if err := carry(was, State{Device: "eth0"}); err != nil {
			t.Fatalf("seed %d: taking all away: %v", seed, err)
		}
	}
}

// From any tree to any other whose ids have nothing to do with each other, as
// when the memory is lost and numbers collide, or foreign hands were at work.
func TestDiffAnyIDs(t *testing.T) {
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 7))
		number := func() State {
			tree, _ := boundTree(t, rnd, IDs{})
			minors := rnd.Perm(40)
			for b := range tree.All() {
				if b != tree.Root && b.Path != "eth0/rest" {
					if len(minors) == 0 {
						minors = []int{100 + rnd.IntN(10_000_000)%50_000}
					}
					b.ID, minors = ID(uint16(16+minors[0])), minors[1:]
				}
			}
			for b := range tree.All() {
				for _, c := range b.Children {
					c.Parent = b.ID
				}
			}
			return stateOf(tree)
		}
		if err := carry(number(), number()); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

func steps(p Plan) []string {
	var out []string
	for _, s := range p.Steps {
		out = append(out, s.Action.Symbol()+" "+s.Item().String())
	}
	return out
}

func TestDiff(t *testing.T) {
	var ids IDs
	state := func(opts ...option) State {
		tree := grow(t, eth0(opts...))
		ids = assign(t, ids, tree)
		return stateOf(tree)
	}
	with := func(s State, change func(*State)) State { change(&s); return s }
	none := State{Device: "eth0"}
	flatTree := []option{rate("100mbit"), branch("a", rate("60mbit"), binds("user:a")), branch("b", rate("20mbit")), branch("rest", rate("10mbit"))}
	one := state(flatTree...)
	other := state(rate("100mbit"), branch("a", rate("20mbit")), branch("b", rate("70mbit"), binds("user:a")), branch("rest", rate("10mbit")))
	fewer := state(rate("100mbit"), branch("b", rate("20mbit")), branch("rest", rate("10mbit")))
	foreign := with(none, func(s *State) { s.Set(PortState{Port: sending, Root: Root{"fq_codel", 0x80010000}}) })
	id := func(p Path) ClassID {
		for c, path := range ids.Names("eth0") {
			if path == p {
				return c
			}
		}
		for _, c := range one.On(sending).Classes {
			if c.Path == p {
				return c.ID
			}
		}
		return 0
	}
	class := func(p Path) string { return fmt.Sprintf("class %s (%v)", p, id(p)) }
	leaf := func(p Path) string { return fmt.Sprintf("qdisc  of %s (%v)", p, id(p)) }
	bound := func(p Path) string { return fmt.Sprintf("binding cgroup:/a to %s (%v)", p, id(p)) }
	for _, r := range []struct {
		name     string
		old, new State
		want     []string
	}{
		{"nothing", one, one, nil},
		{"names make no difference", with(one, func(s *State) {
			p := only(s)
			p.Classes = slices.Clone(p.Classes)
			for i := range p.Classes {
				p.Classes[i].Path = ""
			}
		}), one, nil},
		{"from nothing", none, one, []string{"+ root qdisc htb 71f:", "+ " + class("eth0"), "+ " + class("eth0/rest"), "+ " + class("eth0/a"), "+ " + class("eth0/b"),
			"+ " + leaf("eth0/a"), "+ " + leaf("eth0/b"), "+ " + leaf("eth0/rest"), "+ classifier bpf", "+ " + bound("eth0/a")}},
		{"to nothing: one step for the tree", one, none, []string{"- " + bound("eth0/a"), "- classifier bpf", "- root qdisc htb 71f:"}},
		{"shrink before growth, then the binding", one, other, []string{"~ " + class("eth0/a"), "~ " + class("eth0/b"), "~ " + bound("eth0/b")}},
		{"a class goes after its binding", one, fewer, []string{"- " + bound("eth0/a"), "- " + class("eth0/a")}},
		{"over a foreign qdisc", foreign, with(fewer, func(s *State) { s.Hook = Hook{} }), []string{"~ root qdisc htb 71f:", "+ " + class("eth0"), "+ " + class("eth0/rest"), "+ " + class("eth0/b"),
			"+ " + leaf("eth0/b"), "+ " + leaf("eth0/rest")}},
		{"a foreign qdisc is left alone", foreign, none, nil},
		{"a leaf's queue", one, with(one, func(s *State) { p := only(s); p.Leaves = slices.Clone(p.Leaves); p.Leaves[0].Qdisc.Kind = "sfq" }), []string{"~ qdisc sfq of eth0/a (" + id("eth0/a").String() + ")"}},
		{"another way to classify", one, with(one, func(s *State) { s.Hook.Way = bind.WayNetCls }), []string{"- " + bound("eth0/a"), "~ classifier net_cls", "+ " + bound("eth0/a")}},
		{"a newer classifier", one, with(one, func(s *State) { s.Hook.Version = 2 }), []string{"~ classifier bpf"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			p := Diff(r.old, r.new)
			if d := cmp.Diff(r.want, steps(p)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if p.Device != "eth0" || p.Empty() != (r.want == nil) {
				t.Errorf("plan %+v", p)
			}
		})
	}
	if got := Diff(one, State{}).Device; got != "eth0" {
		t.Errorf("a plan to the zero state is for %q", got)
	}
	if got := NoOp.String() + NoOp.Symbol() + Action(9).String() + Action(9).Symbol(); got != "no-op unknown?" {
		t.Errorf("actions print as %q", got)
	}
	if got := Diff(none, one).Steps[0].String(); got != "create root qdisc htb 71f:" {
		t.Errorf("a step prints as %q", got)
	}
	if b, err := Create.MarshalText(); err != nil || !strings.EqualFold(string(b), "create") {
		t.Errorf("create is marshalled as %s, %v", b, err)
	}
}

// A state that was read while somebody changed it may have classes in any order, and a
// plan that leads there is one as well.
func TestDiffDisordered(t *testing.T) {
	root, rest := Class{ID: ID(RootMinor), Parent: ID(0), Rate: 2}, Class{ID: ID(RestMinor), Parent: ID(RootMinor), Rate: 1}
	port := Port{Device: "eth0"}
	want := State{Device: "eth0", Ports: []PortState{{Port: port, Root: Root{Kind: "htb", Handle: ID(0)}, Classes: []Class{rest, root}}}}
	if got := Diff(State{Device: "eth0"}, want).Steps; len(got) != 3 {
		t.Errorf("the plan is %v", got)
	}
}
