package hierarchy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
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
