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

// machine is a fake interface with the kernel's rules. It refuses what the
// kernel refuses, and also what the kernel takes silently but must not be asked.
type machine struct {
	s     State // Classes in any order
	fail  int   // this many steps succeed before one fails; negative: all succeed
	after func()
	// strict holds children's guarantees against their parent's at every step,
	// less those of the classes in leaving.
	strict  bool
	leaving map[ClassID]bool
}

func (m *machine) class(id ClassID) int {
	return slices.IndexFunc(m.s.Classes, func(c Class) bool { return c.ID == id })
}

func (m *machine) hasChildren(id ClassID) bool {
	return slices.ContainsFunc(m.s.Classes, func(c Class) bool { return c.Parent == id })
}

func (m *machine) dropLeaf(id ClassID) {
	m.s.Leaves = slices.DeleteFunc(slices.Clone(m.s.Leaves), func(l Leaf) bool { return l.Class == id })
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
		m.s.Classes, m.s.Leaves = nil, nil
		m.s.Root = Root{}
		if s.Action == Delete {
			return nil
		}
		m.s.Root = *x
	case *Class:
		return m.doClass(s, x)
	case *Leaf:
		if m.class(x.Class) < 0 || m.hasChildren(x.Class) {
			return errors.New("no leaf class")
		}
		had := slices.ContainsFunc(m.s.Leaves, func(l Leaf) bool { return l.Class == x.Class })
		if s.Action == Delete || (s.Action == Change) != had {
			return fmt.Errorf("%v although it was there: %v", s.Action, had)
		}
		m.dropLeaf(x.Class)
		m.s.Leaves = append(m.s.Leaves, *x)
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
			if m.class(x.Class) < 0 {
				return errors.New("binding to no class")
			}
			m.s.Bound = append(slices.Clone(m.s.Bound), *x)
		}
	}
	return nil
}

func (m *machine) doClass(s Step, x *Class) error {
	at := m.class(x.ID)
	switch s.Action {
	case Create:
		if at >= 0 || !m.s.Root.Ours() {
			return errors.New("exists, or no qdisc")
		}
		if x.Parent != ID(0) && m.class(x.Parent) < 0 {
			return errors.New("no parent")
		}
		if slices.ContainsFunc(m.s.Bound, func(b Bound) bool { return b.Class == x.Parent }) && !m.hasChildren(x.Parent) {
			return errors.New("a child below a leaf that is bound")
		}
		m.dropLeaf(x.Parent)
		m.s.Classes = append(slices.Clone(m.s.Classes), *x)
	case Change:
		if at < 0 || m.s.Classes[at].Parent != x.Parent {
			return errors.New("not there, or below another parent")
		}
		m.s.Classes = slices.Clone(m.s.Classes)
		m.s.Classes[at] = *x
	case Delete:
		if at < 0 || m.hasChildren(x.ID) {
			return errors.New("not there, or in use")
		}
		if slices.ContainsFunc(m.s.Bound, func(b Bound) bool { return b.Class == x.ID }) {
			return errors.New("a binding points at it")
		}
		m.dropLeaf(x.ID)
		m.s.Classes = slices.Delete(slices.Clone(m.s.Classes), at, at+1)
	}
	if !m.strict {
		return nil
	}
	sum := map[ClassID]Bandwidth{}
	for _, c := range m.s.Classes {
		if !m.leaving[c.ID] {
			sum[c.Parent] += c.Rate
		}
	}
	for _, c := range m.s.Classes {
		if sum[c.ID] > c.Rate && !m.leaving[c.ID] {
			return fmt.Errorf("the children of %s are guaranteed %v, more than its %v", c.Path, sum[c.ID], c.Rate)
		}
	}
	return nil
}

// part is the machine's queue side or its binder side.
type part struct {
	*machine
	binder bool
	read   func(*State) error // changes what is read
}

func (p part) Read(ctx context.Context, s *State) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if p.binder {
		s.Hook, s.Bound = p.s.Hook, slices.Clone(p.s.Bound)
	} else {
		s.Root, s.Leaves = p.s.Root, slices.Clone(p.s.Leaves)
		s.Classes = parentsFirst(p.s.Classes)
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
		if err := p.step(s); err != nil {
			return i, err
		}
	}
	return len(steps), nil
}

func (m *machine) kernel() Kernel {
	return Kernel{Interface: "eth0", Queue: part{machine: m}, Binder: part{machine: m, binder: true}}
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
	m := &machine{s: from, fail: -1, strict: true, leaving: map[ClassID]bool{}}
	stays := map[ClassID]bool{}
	for _, c := range to.Classes {
		stays[c.ID] = true
	}
	for _, c := range from.Classes {
		m.leaving[c.ID] = !stays[c.ID]
	}
	for i, s := range plan.Steps {
		if c, ok := s.Item().(*Class); ok && s.Action == Create {
			m.leaving[c.ID] = false
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
	if len(end.Classes) != len(to.Classes) || len(end.Leaves) != len(to.Leaves) || len(end.Bound) != len(to.Bound) || end.Hook != to.Hook {
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
		was := State{Interface: "eth0"}
		for range 5 {
			var tree *Tree
			tree, ids = boundTree(t, rnd, ids)
			is := stateOf(tree)
			is.Hook = []Hook{{bind.WayBPF, 1}, {bind.WayBPF, 2}, {bind.WayNetCls, 1}}[rnd.IntN(3)]
			if err := carry(was, is); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			was = is
		}
		if err := carry(was, State{Interface: "eth0"}); err != nil {
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
	none := State{Interface: "eth0"}
	flatTree := []option{rate("100mbit"), branch("a", rate("60mbit"), binds("user:a")), branch("b", rate("20mbit")), branch("rest", rate("10mbit"))}
	one := state(flatTree...)
	other := state(rate("100mbit"), branch("a", rate("20mbit")), branch("b", rate("70mbit"), binds("user:a")), branch("rest", rate("10mbit")))
	fewer := state(rate("100mbit"), branch("b", rate("20mbit")), branch("rest", rate("10mbit")))
	foreign := with(none, func(s *State) { s.Root = Root{"fq_codel", 0x80010000} })
	id := func(p Path) ClassID {
		for c, path := range ids.Names("eth0") {
			if path == p {
				return c
			}
		}
		for _, c := range one.Classes {
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
			s.Classes = slices.Clone(s.Classes)
			for i := range s.Classes {
				s.Classes[i].Path = ""
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
		{"a leaf's queue", one, with(one, func(s *State) { s.Leaves = slices.Clone(s.Leaves); s.Leaves[0].Qdisc.Kind = "sfq" }), []string{"~ qdisc sfq of eth0/a (" + id("eth0/a").String() + ")"}},
		{"another way to classify", one, with(one, func(s *State) { s.Hook.Way = bind.WayNetCls }), []string{"- " + bound("eth0/a"), "~ classifier net_cls", "+ " + bound("eth0/a")}},
		{"a newer classifier", one, with(one, func(s *State) { s.Hook.Version = 2 }), []string{"~ classifier bpf"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			p := Diff(r.old, r.new)
			if d := cmp.Diff(r.want, steps(p)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if p.Interface != "eth0" || p.Empty() != (r.want == nil) {
				t.Errorf("plan %+v", p)
			}
		})
	}
	if got := Diff(one, State{}).Interface; got != "eth0" {
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
