package hierarchy_test

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
)

// grow makes a resolved tree of a specification that must be good.
func grow(t testing.TB, s *Spec) *Tree {
	t.Helper()
	tree, problems := Resolve(s, kinds)
	if tree == nil {
		t.Fatalf("no tree: %+v", problems)
	}
	return tree
}

func assign(t testing.TB, ids IDs, tree *Tree) IDs {
	t.Helper()
	next, err := ids.Assign(tree)
	if err != nil {
		t.Fatal(err)
	}
	if err := wellNumbered(tree); err != nil {
		t.Fatal(err)
	}
	return next
}

// wellNumbered says what is wrong with the ids of a tree.
func wellNumbered(tree *Tree) error {
	seen := map[ClassID]Path{}
	for b := range tree.All() {
		if other, twice := seen[b.ID]; twice {
			return fmt.Errorf("%s and %s are both %v", other, b.Path, b.ID)
		}
		seen[b.ID] = b.Path
		minor, fixed := b.ID.Minor(), uint16(0)
		switch b.Path {
		case tree.Root.Path:
			fixed = RootMinor
		case tree.Root.Path.Join(RestName):
			fixed = RestMinor
		}
		if b.ID.Major() != Major || fixed != 0 && minor != fixed || fixed == 0 && (minor < 0x10 || minor == Major || minor == 0xffff || minor%16 == 7) {
			return fmt.Errorf("%s has id %v", b.Path, b.ID)
		}
		for _, c := range b.Children {
			if c.Parent != b.ID {
				return fmt.Errorf("%s has parent %v, want %v", c.Path, c.Parent, b.ID)
			}
		}
	}
	return nil
}

// numbers is the id of each branch; an inner one's path ends with a slash.
func numbers(tree *Tree) map[Path]ClassID {
	m := map[Path]ClassID{}
	for b := range tree.All() {
		p := b.Path
		if !b.Leaf() {
			p += "/"
		}
		m[p] = b.ID
	}
	return m
}

// mutable is a set of branches that edits change, two levels deep.
type mutable map[string]map[string]bool

func (m mutable) spec() *Spec {
	s := eth0(rate("100gbit"))
	for i := range 12 {
		a := fmt.Sprintf("a%d", i)
		if m[a] == nil {
			continue
		}
		c := &BranchSpec{Name: a}
		for j := range 5 {
			if b := fmt.Sprintf("b%d", j); m[a][b] {
				c.Children = append(c.Children, &BranchSpec{Name: b})
			}
		}
		s.Children = append(s.Children, c)
	}
	return s
}

// edit adds or removes one branch, with all below it.
func (m mutable) edit(rnd *rand.Rand) {
	a, b := fmt.Sprintf("a%d", rnd.IntN(12)), fmt.Sprintf("b%d", rnd.IntN(5))
	switch {
	case m[a] == nil:
		m[a] = map[string]bool{}
	case rnd.IntN(4) == 0:
		delete(m, a)
	case m[a][b]:
		delete(m[a], b)
	default:
		m[a][b] = true
	}
}

// Over any edits: what stays keeps its id, what comes back gets its old one, and
// a number goes to nobody else as long as others are free.
func TestAssignEdits(t *testing.T) {
	for seed := range uint64(200) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		m, ids := mutable{}, IDs{}
		owner := map[ClassID]Path{}
		first := map[Path]ClassID{}
		for range 8 {
			for range rnd.IntN(8) {
				m.edit(rnd)
			}
			tree := grow(t, m.spec())
			before := maps.Clone(ids.Minors)
			next := assign(t, ids, tree)
			if !maps.Equal(before, ids.Minors) {
				t.Fatalf("seed %d: the memory that was passed in changed:\n%s", seed, cmp.Diff(before, ids.Minors))
			}
			ids = next
			for p, id := range numbers(tree) {
				if was, ok := first[p]; ok && was != id {
					t.Fatalf("seed %d: %s was %v and is %v", seed, p, was, id)
				}
				if o, ok := owner[id]; ok && o != p {
					t.Fatalf("seed %d: %v belonged to %s and is %s's", seed, id, o, p)
				}
				first[p], owner[id] = id, p
			}
			names := ids.Names("eth0")
			for b := range tree.All() {
				if names[b.ID] != b.Path {
					t.Fatalf("seed %d: %v is called %s, want %s", seed, b.ID, names[b.ID], b.Path)
				}
			}
			if again := assign(t, ids, tree); !maps.Equal(ids.Minors, again.Minors) || !slices.Equal(ids.Retired, again.Retired) {
				t.Fatalf("seed %d: a second time gives something else:\n%s", seed, cmp.Diff(ids, again))
			}
		}
	}
}

func TestAssignDeterministic(t *testing.T) {
	a, b := grow(t, flat(2000)), grow(t, flat(2000))
	if d := cmp.Diff(assign(t, IDs{}, a), assign(t, IDs{}, b)); d != "" {
		t.Errorf("two runs differ:\n%s", d)
	}
	if d := cmp.Diff(numbers(a), numbers(b)); d != "" {
		t.Errorf("two runs differ:\n%s", d)
	}
}

// A changed number would give every tree in use new classes at the next
// upgrade.
func TestAssignGolden(t *testing.T) {
	tree := grow(t, eth0(rate("100mbit"), branch("web", branch("api")), branch("backup")))
	assign(t, IDs{}, tree)
	want := map[Path]ClassID{"eth0/": ID(RootMinor), "eth0/rest": ID(RestMinor), "eth0/web/": ID(0x226e), "eth0/web/api": ID(0x88a), "eth0/backup": ID(0x23f3)}
	if d := cmp.Diff(want, numbers(tree)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

func TestAssignLeafToInner(t *testing.T) {
	leaf := grow(t, eth0(rate("100mbit"), branch("a")))
	ids := assign(t, IDs{}, leaf)
	inner := grow(t, eth0(rate("100mbit"), branch("a", branch("b"))))
	ids = assign(t, ids, inner)
	if was, is := leaf.Find("eth0/a").ID, inner.Find("eth0/a").ID; was == is {
		t.Errorf("eth0/a keeps %v although it turned from a leaf into an inner branch", is)
	}
	back := grow(t, eth0(rate("100mbit"), branch("a")))
	assign(t, ids, back)
	if was, is := leaf.Find("eth0/a").ID, back.Find("eth0/a").ID; was != is {
		t.Errorf("eth0/a was %v as a leaf and is %v as one again", was, is)
	}
}

// The most branches that Resolve accepts get ids, also when all of them are
// renamed at once, and then the longest given up are used again.
func TestAssignFull(t *testing.T) {
	tree := grow(t, flat(59_998))
	ids := assign(t, IDs{}, tree)
	s := flat(59_998)
	for i, c := range s.Children {
		c.Name = fmt.Sprintf("c%d", i)
	}
	renamed := grow(t, s)
	next := assign(t, ids, renamed)
	if len(next.Minors) != 59_998 || len(next.Retired) > 8192 {
		t.Errorf("%d ids and %d given up are remembered", len(next.Minors), len(next.Retired))
	}
	reused := 0
	old := ids.Names("eth0")
	for b := range renamed.All() {
		if p, ok := old[b.ID]; ok && p != b.Path {
			reused++
		}
	}
	// 61,423 numbers are there to give, 59,998 were in use.
	if free := 61_423 - 59_998; reused != 59_998-free {
		t.Errorf("%d ids were used again, want %d: the %d free ones come first", reused, 59_998-free, free)
	}
}

func TestAssignErrors(t *testing.T) {
	tree := grow(t, eth0(rate("100mbit"), branch("a"), branch("b")))
	for _, r := range []struct {
		name   string
		minors map[string]uint16
		want   string
	}{
		{"one number for two", map[string]uint16{"a": 77, "b": 77}, "class id 71f:4d is remembered for eth0/b and for another branch"},
		{"a number with a meaning", map[string]uint16{"a": RestMinor}, "class id 71f:2 is remembered for eth0/a and for another branch"},
	} {
		t.Run(r.name, func(t *testing.T) {
			got, err := IDs{Minors: r.minors}.Assign(tree)
			if err == nil || err.Error() != r.want {
				t.Errorf("error %v, want %s", err, r.want)
			}
			if d := cmp.Diff(r.minors, got.Minors); d != "" {
				t.Errorf("the memory changed:\n%s", d)
			}
		})
	}
	twin := &Tree{Port: sending, Root: &Branch{Class: Class{Path: "eth0"}}}
	for range 2 {
		twin.Root.Children = append(twin.Root.Children, &Branch{Class: Class{Path: "eth0/a"}})
	}
	known := IDs{Minors: map[string]uint16{"a": 77}}
	if _, err := known.Assign(twin); err == nil || err.Error() != "eth0/a is there twice" {
		t.Errorf("two branches of one path that is remembered: %v", err)
	}
	if _, err := (IDs{}).Assign(twin); err == nil || err.Error() != "eth0/a is there twice" {
		t.Errorf("two branches of one path: %v", err)
	}
}

// A tree that Resolve would refuse for its size is an error here too, also with
// every given-up number used again.
func TestAssignTooMany(t *testing.T) {
	tree := &Tree{Port: sending, Root: &Branch{Class: Class{Path: "eth0"}}}
	for i := range 0xfffe - 0x10 + 1 {
		tree.Root.Children = append(tree.Root.Children, &Branch{Class: Class{Path: Path(fmt.Sprint("eth0/b", i))}})
	}
	ids := IDs{Retired: []Retired{{Key: "old", Minor: 0x4711}, {Key: "older", Minor: 0x4712}}}
	if _, err := ids.Assign(tree); err == nil || err.Error() != "no class id is left for eth0/b61423" {
		t.Errorf("error %v", err)
	}
	tree.Root.Children = tree.Root.Children[:61423]
	assign(t, ids, tree)
}

func TestFind(t *testing.T) {
	tree := grow(t, eth0(rate("100mbit"), branch("a", branch("b"), branch("rest")), branch("c")))
	ids := assign(t, IDs{}, tree)
	for b := range tree.All() {
		id, inner, ok := ids.Find(b.Path)
		if id != b.ID || inner == b.Leaf() || !ok {
			t.Errorf("%s is found as %v, inner %v, %v; want %v", b.Path, id, inner, ok, b.ID)
		}
	}
	for _, p := range []Path{"eth0/d", "eth0/a/", "eth0/c/", "eth0/", ""} {
		if id, _, ok := ids.Find(p); ok || id != 0 {
			t.Errorf("%q, which is no branch, is found as %v", p, id)
		}
	}
	if e := tree.Root.Entry(); e == nil || e.ID != ID(RestMinor) {
		t.Errorf("the interface's own processes go to %v", e)
	}
	none := grow(t, eth0(rate("100mbit"), branch("a", branch("b"))))
	if e := none.Find("eth0/a").Entry(); e != nil {
		t.Errorf("a branch without a rest lets processes into %v", e.Path)
	}
}
