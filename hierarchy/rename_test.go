package hierarchy_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
)

// from gives a branch the name that it had.
func from(was string, b node) node {
	b.RenamedFrom = was
	return b
}

// TestRename holds what becomes of class ids and homes, policy after policy: each branch is
// told as "path = home", and whose class of the policy before it has.
func TestRename(t *testing.T) {
	for _, x := range []struct {
		name     string
		policies [][]option
		want     []string
	}{
		{"once, and the key stays", [][]option{{branch("a")}, {from("a", branch("b"))}, {from("a", branch("b"))}, {branch("b")}},
			[]string{"a = a new", "b = a was a", "b = a was b", "b = a was b"}},
		{"and again", [][]option{{branch("a")}, {from("a", branch("b"))}, {from("b", branch("c"))}},
			[]string{"a = a new", "b = a was a", "c = a was b"}},
		{"and back, without a word", [][]option{{branch("a")}, {from("a", branch("b"))}, {branch("a")}},
			[]string{"a = a new", "b = a was a", "a = a was b"}},
		{"what is not there", [][]option{{branch("a")}, {branch("a"), from("x", branch("b"))}},
			[]string{"a = a new", "a = a was a, b = b new"}},
		{"the old name comes later", [][]option{{branch("a")}, {from("a", branch("b"))}, {branch("b"), branch("a")}, {branch("b"), branch("a", branch("x"))}},
			[]string{"a = a new", "b = a was a", "b = a was b, a = a~2 new", "b = a was b, a = a~2 new, a/x = a~2/x new"}},
		{"swapped, once", [][]option{{branch("a"), branch("b")}, {from("b", branch("a")), from("a", branch("b"))}, {from("b", branch("a")), from("a", branch("b"))}, {branch("a"), branch("b")}},
			[]string{"a = a new, b = b new", "a = b was b, b = a was a", "a = b was a, b = a was b", "a = b was a, b = a was b"}},
		{"in a ring", [][]option{{branch("a"), branch("b"), branch("c")}, {from("c", branch("a")), from("a", branch("b")), from("b", branch("c"))}},
			[]string{"a = a new, b = b new, c = c new", "a = c was c, b = a was a, c = b was b"}},
		{"to the name of one that goes", [][]option{{branch("a"), branch("b")}, {from("a", branch("b"))}},
			[]string{"a = a new, b = b new", "b = a was a"}},
		{"with what is below", [][]option{{branch("a", branch("x"), branch("y"))}, {from("a", branch("b", branch("x"), from("y", branch("z"))))}},
			[]string{"a = a new, a/x = a/x new, a/y = a/y new", "b = a was a, b/x = a/x was a/x, b/z = a/y was a/y"}},
		{"below one that was renamed before", [][]option{{branch("a", branch("x"))}, {from("a", branch("b", branch("x")))}, {from("a", branch("b", branch("x"), branch("y")))}, {from("b", branch("c", branch("x"), branch("y")))}},
			[]string{"a = a new, a/x = a/x new", "b = a was a, b/x = a/x was a/x", "b = a was b, b/x = a/x was b/x, b/y = a/y new", "c = a was b, c/x = a/x was b/x, c/y = a/y was b/y"}},
		{"swapped below one that is renamed", [][]option{{branch("p", branch("a"), branch("b"))}, {branch("p", from("b", branch("a")), from("a", branch("b")))}, {from("p", branch("q", from("b", branch("a")), from("a", branch("b"))))}},
			[]string{"p = p new, p/a = p/a new, p/b = p/b new", "p = p was p, p/a = p/b was p/b, p/b = p/a was p/a", "q = p was p, q/a = p/b was p/a, q/b = p/a was p/b"}},
		{"moved, with what is below, and back", [][]option{{branch("a", branch("x")), branch("o", branch("k"))}, {branch("o", branch("k"), from("eth0/a", branch("b", branch("x"))))}, {branch("o", branch("k")), from("eth0/o/b", branch("a", branch("x")))}},
			[]string{"a = a new, a/x = a/x new, o = o new, o/k = o/k new", "o = o was o, o/k = o/k was o/k, o/b = a new, o/b/x = a/x new", "o = o was o, o/k = o/k was o/k, a = a new, a/x = a/x new"}},
		{"moved once more, from below one that was moved", [][]option{{branch("a", branch("b", branch("x")))}, {from("eth0/a/b", branch("b", branch("x")))}, {from("eth0/b/x", branch("x"))}, {branch("x")}},
			[]string{"a = a new, a/b = a/b new, a/b/x = a/b/x new", "b = a/b new, b/x = a/b/x new", "x = a/b/x new", "x = a/b/x was x"}},
		{"parent and child change places", [][]option{{branch("a", branch("b", branch("x")))}, {from("eth0/a/b", branch("b", from("eth0/a", branch("a", branch("y")))))}},
			[]string{"a = a new, a/b = a/b new, a/b/x = a/b/x new", "b = a/b new, b/a = a new, b/a/y = a/y new"}},
		{"a leaf becomes an inner branch", [][]option{{branch("a")}, {from("a", branch("b", branch("x")))}},
			[]string{"a = a new", "b = a new, b/x = a/x new"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			var ids IDs
			last := map[ClassID]Path{}
			for i, branches := range x.policies {
				tree := grow(t, eth0(append(branches, rate("100mbit"))...))
				ids = assign(t, ids, tree)
				var got []string
				now := map[ClassID]Path{}
				for b := range tree.All() {
					if b.Implied || b == tree.Root {
						continue
					}
					was := "new"
					if p, ok := last[b.ID]; ok {
						was = "was " + string(p[len("eth0/"):])
					}
					got = append(got, fmt.Sprintf("%s = %s %s", b.Path[len("eth0/"):], ids.Home(b.Path)[len("eth0/"):], was))
					now[b.ID] = b.Path
				}
				if got := strings.Join(got, ", "); got != x.want[i] {
					t.Errorf("policy %d: %s, want %s", i, got, x.want[i])
				}
				last = now
			}
		})
	}
}

// known is a branch of the policies that TestRenameRandom makes, whatever it is called.
type known struct {
	name, from string
	up         *known // nil: the interface
	path       Path   // in the policy before; empty: it is new
	home       Path
	class      map[string]ClassID // by the class above and whether it is an inner one
}

// at is the path of a branch by its name and those above.
func (k *known) at() Path {
	if k == nil {
		return "eth0"
	}
	return k.up.at().Join(k.name)
}

// TestRenameRandom holds for policies that follow each other, in which branches get other
// names, also each other's, move, come and go: whoever stays keeps the home, and the class
// where the kernel can; nobody gets another one's; what was carried out is not again; and
// names go back with the record of them.
func TestRenameRandom(t *testing.T) {
	kept, moved, refused := 0, 0, 0
	for seed := range uint64(400) {
		rnd := rand.New(rand.NewPCG(seed, 4))
		var all policies
		var ids IDs
		var last *Tree
		for range 10 {
			next := all.edit(rnd)
			spec, ok := next.spec(all.list)
			if !ok {
				refused++
				continue
			}
			tree := grow(t, spec)
			was := ids
			ids = assign(t, ids, tree)
			if again := assign(t, ids, tree); !maps.Equal(again.Minors, ids.Minors) || !maps.Equal(again.Named, ids.Named) {
				t.Fatalf("seed %d: a second time gives something else: %s", seed, cmp.Diff(ids, again))
			}
			names, owner := ids.Names("eth0"), map[ClassID]*known{}
			for _, k := range next.list {
				p := k.at()
				b := tree.Find(p)
				id, inner, ok := ids.Find(p)
				if !ok || id != b.ID || inner == b.Leaf() || names[id] != p {
					t.Fatalf("seed %d: %s is %v in the tree, found as %v, %v and called %s", seed, p, b.ID, id, ok, names[id])
				}
				h := ids.Home(p)
				if q, ok := ids.Called(h); !ok || q != p {
					t.Fatalf("seed %d: the home of %s is %s, which is that of %s", seed, p, h, q)
				}
				if k.home != "" && k.home != h {
					t.Fatalf("seed %d: %s, which was %s, has home %s, and had %s", seed, p, k.path, h, k.home)
				}
				key := fmt.Sprint(b.Parent, inner)
				if was, ok := k.class[key]; ok && was != id {
					t.Fatalf("seed %d: %s, which was %s, is %v and was %v below the same class", seed, p, k.path, id, was)
				} else if ok && p != k.path {
					kept++
				}
				k.home, k.class[key], owner[id] = h, id, k
			}
			for _, k := range all.list {
				id, _, _ := was.Find(k.path)
				if o := owner[id]; o != nil && o.home != k.home {
					t.Fatalf("seed %d: %v was the class of %s and is that of %s, which was %q", seed, id, k.path, o.at(), o.path)
				} else if o == nil {
					moved++
				}
				is := slices.ContainsFunc(next.list, func(o *known) bool { return o.at() == k.path })
				if _, _, ok := ids.Find(k.path); ok != is {
					t.Fatalf("seed %d: %s is found: %v", seed, k.path, ok)
				}
			}
			if last != nil {
				then, memory := numbers(last), ids
				memory.Named = was.Named
				assign(t, memory, last)
				if d := cmp.Diff(then, numbers(last)); d != "" {
					t.Fatalf("seed %d: on the way back:\n%s", seed, d)
				}
			}
			for _, k := range next.list {
				k.path = k.at()
			}
			all, last = next, tree
		}
	}
	t.Logf("%d classes kept under another name, %d given up, %d policies could not be written", kept, moved, refused)
	if kept < 1000 || moved < 1000 || refused > 100 {
		t.Error("that is not what was to be tried")
	}
}

// policies are the branches of one of them.
type policies struct {
	list []*known
	made int // how many there ever were
}

// edit gives branches other names and parents, takes some away and makes new ones.
func (p policies) edit(rnd *rand.Rand) policies {
	next, is := policies{made: p.made}, map[*known]*known{nil: nil}
	for _, k := range p.list { // parents first
		x := *k
		x.class = maps.Clone(k.class)
		x.up, is[k] = is[k.up], &x
		next.list = append(next.list, &x)
	}
	within := func(k, up *known) bool {
		for ; k != nil && k != up; k = k.up {
		}
		return k != nil
	}
	called := func(up *known, name string) *known {
		for _, k := range next.list {
			if k.up == up && k.name == name {
				return k
			}
		}
		return nil
	}
	deep := func(k *known) bool { return k != nil && k.up != nil && k.up.up != nil }
	for range 1 + rnd.IntN(5) {
		var k *known
		if len(next.list) > 0 {
			k = next.list[rnd.IntN(len(next.list))]
		}
		switch what := rnd.IntN(8); {
		case k == nil || what < 3:
			if what == 0 || deep(k) {
				k = nil
			}
			next.made++
			next.list = append(next.list, &known{name: fmt.Sprintf("n%d", next.made), up: k, class: map[string]ClassID{}})
		case what < 6: // a name that may be another one's, who gets this one's
			name := string(rune('a' + rnd.IntN(4)))
			other := called(k.up, name)
			if k.path == "" || other != nil && other.path == "" {
				continue // a new branch may not have the old name of another: that is refused
			}
			if other != nil {
				other.name = k.name
			}
			k.name = name
		case what == 6:
			up := next.list[rnd.IntN(len(next.list))]
			if within(up, k) || deep(up) || rnd.IntN(3) == 0 {
				up = nil
			}
			if called(up, k.name) == nil && !slices.ContainsFunc(next.list, func(o *known) bool { return within(o, k) && o != k }) {
				k.up = up
			}
		default:
			next.list = slices.DeleteFunc(next.list, func(o *known) bool { return within(o, k) })
		}
	}
	depth := func(k *known) int { return strings.Count(string(k.at()), "/") }
	slices.SortStableFunc(next.list, func(a, b *known) int { return depth(a) - depth(b) })
	return next
}

// spec is the policy that says of each branch what it was, if that was something else. What
// has been carried out stays in it where it can. Ok is false where it says what the policy
// before said already, and means it anew.
func (p policies) spec(before []*known) (spec *Spec, ok bool) {
	said := map[Path]string{}
	for _, k := range before {
		said[k.path] = k.from
	}
	var old []*known // with what has been carried out, perhaps
	for _, k := range p.list {
		up := Path("eth0")
		if k.up != nil {
			up = k.up.path
		}
		switch {
		case k.path == "":
			continue
		case k.path == up.Join(k.name): // it goes along
			if k.at() != k.path {
				k.from = ""
			}
			old = append(old, k)
			continue
		case k.path.Parent() == up:
			k.from = k.path.Base()
		default:
			k.from = string(k.path)
		}
		if said[k.at()] == k.from {
			k.from = string(k.path)
		}
		if said[k.at()] == k.from {
			return nil, false
		}
	}
	spec = p.written()
	if tree, _ := Resolve(spec, kinds); tree == nil {
		for _, k := range old {
			k.from = ""
		}
		spec = p.written()
	}
	return spec, true
}

func (p policies) written() *Spec {
	spec := eth0(rate("100gbit"))
	of := map[*known]*BranchSpec{nil: &spec.BranchSpec}
	for _, k := range p.list {
		of[k] = &BranchSpec{Name: k.name, RenamedFrom: k.from}
		of[k.up].Children = append(of[k.up].Children, of[k])
	}
	return spec
}
