package hierarchy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	. "github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// TestMatched: to go by [Tree.Matched] from a branch's leaf is to decide from that branch.
func TestMatched(t *testing.T) {
	tree := home(t)
	if _, err := (IDs{}).Assign(tree); err != nil {
		t.Fatal(err)
	}
	all := tree.Matched()
	ids := map[ClassID]Path{}
	for b := range tree.All() {
		ids[b.ID] = b.Path
	}
	var from []string
	for _, m := range all {
		text := fmt.Sprintf("%s %s", m.Path, ids[m.Class])
		for _, f := range m.From {
			text += " " + string(ids[f])
		}
		from = append(from, text)
	}
	want := []string{
		"eth0/lan eth0/lan eth0/rest",
		"eth0/calls eth0/calls eth0/rest",
		"eth0/group/one eth0/group/one/rest eth0/rest",
		"eth0/group/one/web eth0/group/one/web eth0/group/one/rest",
		"eth0/group/one/inner/big eth0/group/one/inner/big eth0/group/one/rest",
		"eth0/group/two eth0/group/two eth0/rest",
		"eth0/bound/dns eth0/bound/dns eth0/rest eth0/bound/rest",
		"eth0/bound/peer eth0/bound/peer eth0/rest eth0/bound/rest",
	}
	if !slices.Equal(from, want) {
		t.Errorf("%q, want %q", from, want)
	}
	r := rand.New(rand.NewPCG(9, 10))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	moved := 0
	for range 5000 {
		p, err := match.ParsePacket(map[string]string{"proto": pick("tcp", "udp"), "dscp": pick("EF", "CS0"), "in": pick("true", "false"),
			"from": pick("192.168.0.1", "192.168.0.2", "192.0.2.1") + ":" + pick("80", "8080", "53"), "to": pick("192.168.0.1", "192.168.0.2", "198.51.100.1") + ":" + pick("443", "5060", "8001")})
		if err != nil {
			t.Fatal(err)
		}
		for b := range tree.All() {
			if b.Entry() == nil || b.Path.Base() == RestName {
				continue
			}
			class := b.Entry().ID
			for range len(all) + 1 {
				var most match.Rank
				at := class
				for _, m := range all {
					for i := range m.Match {
						if rank := m.Match[i].Rank(&p); slices.Contains(m.From, at) && rank > most {
							most, class = rank, m.Class
						}
					}
				}
			}
			leaf, by := b.Decide(&p)
			if class != leaf.ID {
				t.Fatalf("%v from %s: %s, want %s", p, b.Path, ids[class], leaf.Path)
			}
			moved += len(by)
		}
	}
	if moved < 1000 {
		t.Errorf("only %d matches fit", moved)
	}
}

// TestMatchedDiff: the plan has a step for each branch whose matches come, change or go,
// after the bindings and before classes go; those of a class that has to go first go before it.
func TestMatchedDiff(t *testing.T) {
	state := func(opts ...option) State {
		tree := grow(t, eth0(append(opts, rate("100mbit"))...))
		if _, err := (IDs{}).Assign(tree); err != nil {
			t.Fatal(err)
		}
		s := tree.State()
		s.Matched = tree.Matched()
		return s
	}
	steps := func(from, to State) (all []string) {
		for _, s := range Diff(from, to).Steps {
			all = append(all, fmt.Sprintf("%v %T %s", s.Action, s.Item(), pathOf(s.Item())))
		}
		return all
	}
	was := state(branch("a", matches("dport=1")), branch("b", matches("dport=2")), branch("c", matches("dport=3")))
	want := state(branch("a", matches("dport=1")), branch("b", matches("dport=2", "dport=4")), branch("d", matches("dport=5")))
	shown := want // as it is read back
	shown.Matched = nil
	for _, m := range want.Matched {
		shown.Matched = append(shown.Matched, Matched{ID: m.ID, Class: m.Class, Digest: m.Digest})
	}
	if left := Diff(shown, want); !left.Empty() {
		t.Errorf("left: %v", left.Steps)
	}
	var got []string
	for _, s := range steps(was, want) {
		if _, rest, ok := strings.Cut(s, "*hierarchy.Matched "); ok {
			got = append(got, strings.Fields(s)[0]+" "+rest)
		}
	}
	if wanted := []string{"change eth0/b", "create eth0/d", "delete eth0/c"}; !slices.Equal(got, wanted) {
		t.Errorf("%q, want %q", got, wanted)
	}
	all := steps(was, want)
	if last := all[len(all)-1]; last != "delete *hierarchy.Class eth0/c" {
		t.Errorf("%q", all)
	}
	deeper := state(branch("a", branch("x")), branch("b", matches("dport=2")))
	moved := deeper
	moved.Ports = slices.Clone(deeper.Ports)
	moved.Ports[0].Classes = slices.Clone(deeper.Ports[0].Classes)
	for i, c := range moved.Ports[0].Classes {
		if c.Path == "eth0/b" { // as foreign hands may leave it
			moved.Ports[0].Classes[i].Parent = moved.Ports[0].Classes[i-1].Parent + 1
		}
	}
	if all := steps(moved, deeper); len(all) < 3 || all[0] != "delete *hierarchy.Matched eth0/b" || all[1] != "delete *hierarchy.Class eth0/b" {
		t.Errorf("%q", all)
	}
}

func pathOf(i Item) Path {
	switch i := i.(type) {
	case *Matched:
		return i.Path
	case *Class:
		return i.Path
	}
	return ""
}
