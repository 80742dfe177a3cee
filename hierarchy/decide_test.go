package hierarchy_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// matches gives a branch matches, each with its values: "to=10.0.0.0/8 dport=80".
func matches(texts ...string) option {
	return optionFunc(func(b *BranchSpec) {
		for _, text := range texts {
			var m match.Match
			for f := range strings.FieldsSeq(text) {
				key, value, _ := strings.Cut(f, "=")
				if err := m.Add(key, value); err != nil {
					panic(err)
				}
			}
			b.Match = append(b.Match, m)
		}
	})
}

// home is a tree in which matches stand on several levels.
func home(t *testing.T) *Tree {
	return grow(t, eth0(rate("100mbit"), ingress(rate("200mbit")),
		branch("lan", matches("to=192.168.0.0/16 from=192.168.0.0/16")),
		branch("calls", matches("dscp=EF host=192.168.0.0/16", "port=5060 proto=udp host=192.168.0.0/16")),
		branch("group",
			branch("one", matches("host=192.168.0.1"),
				branch("web", matches("port=80", "port=443")),
				branch("inner",
					branch("big", matches("port=8000-9000")))),
			branch("two", matches("host=192.168.0.2")),
			branch("plain")),
		branch("bound", binds("unit:a.service"),
			branch("dns", matches("port=53")),
			branch("peer", matches("to=192.0.2.0/24")))))
}

func TestDecide(t *testing.T) {
	tree := home(t)
	for _, r := range []struct{ from, packet, want string }{
		{"eth0", "to=192.0.2.1:25 proto=tcp", "eth0/bound/peer by bound/peer 0"},
		{"eth0", "to=198.51.100.1:25 proto=tcp", "eth0/rest by"},
		{"eth0", "", "eth0/rest by"},
		{"eth0", "from=192.168.0.9 to=192.168.0.1", "eth0/lan by lan 0"},
		{"eth0", "from=192.168.0.1:9 to=192.0.2.1:443 proto=tcp", "eth0/group/one/web by group/one 0 group/one/web 1"},
		{"eth0", "in to=192.168.0.1:9 from=192.0.2.1:443 proto=tcp", "eth0/group/one/web by group/one 0 group/one/web 1"},
		{"eth0", "in from=192.168.0.1:9 to=198.51.100.1:443 proto=tcp", "eth0/rest by"}, // not of ours
		{"eth0", "from=192.168.0.1:9 to=192.0.2.1:8080 proto=tcp", "eth0/group/one/inner/big by group/one 0 group/one/inner/big 0"},
		{"eth0", "from=192.168.0.1:9 to=192.0.2.1:22 proto=tcp", "eth0/group/one/rest by group/one 0"},
		{"eth0", "from=192.168.0.2:9 to=192.0.2.1:443 proto=tcp", "eth0/group/two by group/two 0"},
		{"eth0", "from=192.168.0.3:9 to=198.51.100.1:5060 proto=udp", "eth0/calls by calls 1"},
		{"eth0", "from=192.168.0.3:9 to=198.51.100.1:443 proto=udp dscp=EF", "eth0/calls by calls 0"},
		{"eth0", "from=203.0.113.1:9 host=192.168.0.1 to=192.0.2.1:443 proto=tcp", "eth0/group/one/web by group/one 0 group/one/web 1"}, // masqueraded
		{"eth0", "in to=203.0.113.1:9 host=192.168.0.1 from=192.0.2.1:443 proto=tcp", "eth0/group/one/web by group/one 0 group/one/web 1"},
		{"eth0", "from=192.168.0.1:9 host=192.168.0.2 to=192.0.2.1:443 proto=tcp", "eth0/group/two by group/two 0"},
		{"eth0", "from=192.168.0.9 host=203.0.113.1 to=192.168.0.1", "eth0/lan by lan 0"}, // that is as the wire has it
		{"eth0", "from=:9 to=198.51.100.1:53 proto=udp", "eth0/bound/dns by bound/dns 0"},

		// Whoever is bound stays below, whatever it sends.
		{"eth0/bound", "from=192.168.0.1:9 to=192.0.2.1:443 proto=tcp", "eth0/bound/peer by bound/peer 0"},
		{"eth0/bound", "from=192.168.0.1:9 to=198.51.100.1:443 proto=tcp", "eth0/bound/rest by"},
		{"eth0/bound", "from=192.168.0.9 to=192.168.0.1", "eth0/bound/rest by"},
		{"eth0/group/plain", "from=192.168.0.1:9 to=192.0.2.1:443 proto=tcp", "eth0/group/plain by"},
		{"eth0/group/two", "from=192.168.0.1:9 to=192.0.2.1:443 proto=tcp", "eth0/group/two by"},
		{"eth0/group/one/inner", "to=192.0.2.1:8080 proto=tcp", "eth0/group/one/inner/big by group/one/inner/big 0"},
		{"eth0/group/one/inner", "to=192.0.2.1:443 proto=tcp", "none by"}, // nothing can be bound there: it has no leaf of its own
	} {
		words := map[string]string{}
		for f := range strings.FieldsSeq(r.packet) {
			w, v, _ := strings.Cut(f, "=")
			words[w] = v
		}
		p, err := match.ParsePacket(words)
		if err != nil {
			t.Fatal(err)
		}
		leaf, by := tree.Find(Path(r.from)).Decide(&p)
		got := "none"
		if leaf != nil {
			got = string(leaf.Path)
		}
		got += " by"
		for _, rule := range by {
			got += fmt.Sprintf(" %s %d", strings.TrimPrefix(string(rule.Branch.Path), "eth0/"), rule.Match)
		}
		if got != r.want {
			t.Errorf("%s from %s: %s, want %s", p, r.from, got, r.want)
		}
	}
}

// TestDecideOrder holds how what is least specific is put first: what is more specific
// stands below a branch that is as unspecific as it gets.
func TestDecideOrder(t *testing.T) {
	tree := grow(t, eth0(rate("100mbit"),
		branch("lan", matches("to=192.168.0.0/16")),
		branch("calls", matches("dscp=EF to=0.0.0.0/0 to=::/0")),
		branch("line", matches("to=0.0.0.0/0 to=::/0"),
			branch("alice", matches("host=192.168.1.10")),
			branch("bob", matches("host=192.168.1.11", "mac=52:54:00:12:34:56")))))
	from, bob := netip.MustParseAddr("192.168.1.10"), match.MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	for _, r := range []struct {
		packet match.Packet
		want   Path
	}{
		{match.Packet{From: from, To: netip.MustParseAddr("192.0.2.1")}, "eth0/line/alice"},
		{match.Packet{From: from, To: netip.MustParseAddr("192.0.2.1"), DSCP: 46}, "eth0/calls"},
		{match.Packet{From: from, To: netip.MustParseAddr("192.168.1.1"), DSCP: 46}, "eth0/lan"},
		{match.Packet{FromMAC: bob, To: netip.MustParseAddr("2001:db8::1")}, "eth0/line/bob"},
		{match.Packet{To: netip.MustParseAddr("2001:db8::1")}, "eth0/line/rest"},
		{match.Packet{FromMAC: bob}, "eth0/rest"}, // not IP
	} {
		if leaf, by := tree.Root.Decide(&r.packet); leaf.Path != r.want {
			t.Errorf("%v: %s by %v, want %s", r.packet, leaf.Path, by, r.want)
		}
	}
}

// TestDecideStays holds what confinement rests on: whatever a packet is, it goes to a leaf
// at or below the branch where the decision starts; and each rule on the way fits it.
func TestDecideStays(t *testing.T) {
	tree := home(t)
	r := rand.New(rand.NewPCG(3, 4))
	pick := func(of ...string) string { return of[r.IntN(len(of))] }
	deep := 0
	for range 20_000 {
		words := map[string]string{"proto": pick("tcp", "udp"), "dscp": pick("EF", "CS0"),
			"from": pick("192.168.0.1", "192.168.0.2", "192.168.9.9", "192.0.2.1") + ":" + pick("80", "8080", "53", "40000"),
			"to":   pick("192.168.0.1", "192.168.0.2", "192.0.2.1", "198.51.100.1") + ":" + pick("443", "5060", "53", "8001")}
		if r.IntN(2) == 0 {
			words["in"] = ""
		}
		p, err := match.ParsePacket(words)
		if err != nil {
			t.Fatal(err)
		}
		for b := range tree.All() {
			leaf, by := b.Decide(&p)
			if leaf == nil {
				if len(b.Bind)+len(b.Match) > 0 || len(by) > 0 {
					t.Fatalf("%v from %s: no leaf", p, b.Path)
				}
				continue
			}
			if !leaf.Leaf() || !leaf.Path.Below(b.Path) {
				t.Fatalf("%v from %s: %s", p, b.Path, leaf.Path)
			}
			at := b
			for _, rule := range by {
				if !rule.Branch.Path.Below(at.Path) || rule.Branch.Match[rule.Match].Rank(&p) == 0 {
					t.Fatalf("%v from %s: %v", p, b.Path, by)
				}
				at = rule.Branch
			}
			deep = max(deep, len(by))
		}
	}
	if deep < 2 {
		t.Errorf("at most %d matches on the way", deep)
	}
}

// TestResolveMatch holds that a branch with a match and branches below it has a rest, and
// that matches stand in the tree for sending alone.
func TestResolveMatch(t *testing.T) {
	tree := home(t)
	for path, want := range map[Path]bool{"eth0/rest": true, "eth0/group/one/rest": true, "eth0/bound/rest": true, "eth0/group/rest": false, "eth0/group/one/inner/rest": false, "eth0/group/two/rest": false} {
		if got := tree.Find(path) != nil; got != want {
			t.Errorf("%s: %v", path, got)
		}
	}
	for send, receive := range tree.Both() {
		if len(receive.Match) > 0 || send.Path == "eth0/group/one/web" && len(send.Match) != 2 {
			t.Errorf("%s: %v, for receiving %v", send.Path, send.Match, receive.Match)
		}
	}
	// A rest takes what it is given by a match, like any other branch.
	leaf, by := grow(t, eth0(rate("1mbit"), branch("a", matches("to=10.0.0.0/8")), branch("rest", matches("to=10.1.0.0/16")))).Root.Decide(&match.Packet{To: netip.MustParseAddr("10.1.0.1")})
	if leaf.Path != "eth0/rest" || len(by) != 1 {
		t.Errorf("%s by %v", leaf.Path, by)
	}
}

func TestResolveMatchProblems(t *testing.T) {
	for _, r := range []struct {
		name string
		spec *Spec
		want []string
	}{
		{"a clash, and another below it", eth0(rate("10mbit"),
			branch("a", matches("dport=80"), branch("x", matches("vlan=1")), branch("y", matches("vlan=2", "vlan=1"))),
			branch("group", branch("b", matches("dport=81", "dport=79-80")))), []string{
			`eth0/a match[0]: this and match 2 of eth0/group/b fit the same packets, { dport = 80 }, and neither is more specific`,
			`eth0/a/x match[0]: this and match 2 of eth0/a/y fit the same packets, { vlan = 1 }, and neither is more specific`,
			`eth0/a/y match[1]: this and match 1 of eth0/a/x fit the same packets, { vlan = 1 }, and neither is more specific`,
			`eth0/group/b match[1]: this and match 1 of eth0/a fit the same packets, { dport = 80 }, and neither is more specific`,
		}},
		{"not on different levels", eth0(rate("10mbit"), branch("a", matches("dport=80"), branch("b", matches("dport=80")))), nil},
		{"not below what nobody leaves", eth0(rate("10mbit"), branch("a", matches("vlan=1"), branch("b", matches("dport=80"))), branch("c", matches("vlan=2"), branch("d", matches("dport=80")))), nil},
		{"not for receiving where nothing is received", eth0(rate("10mbit"), branch("a", matches("port=443")), branch("b", matches("dport=80"))), nil},
		{"for receiving", eth0(rate("10mbit"), ingress(rate("10mbit")), branch("a", matches("port=443")), branch("b", matches("dport=80"))), []string{
			`eth0/a match[0]: this and match 1 of eth0/b fit the same received packets, { port = 443, dport = 80 }, and neither is more specific`,
			`eth0/b match[0]: this and match 1 of eth0/a fit the same received packets, { port = 443, dport = 80 }, and neither is more specific`,
		}},
		{"what is wrong by itself comes before", eth0(rate("10mbit"), branch("a", matches("dport=80", "dport=80 proto=icmp")), branch("b", matches("dport=80", ""))), []string{
			`eth0/a match.dport[1]: dport with proto icmp, which has no ports`,
			`eth0/b match[1]: a match without a key would fit every packet`,
		}},
	} {
		t.Run(r.name, func(t *testing.T) {
			tree, problems := Resolve(r.spec, kinds)
			var got []string
			for _, p := range problems {
				got = append(got, fmt.Sprintf("%s %s[%d]: %s", p.Path, p.Key, p.Index, p.Text))
				if p.Hint == "" {
					t.Errorf("%s: no way on", p.Text)
				}
			}
			if d := cmp.Diff(r.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if (tree == nil) != (len(r.want) > 0) {
				t.Errorf("tree %v", tree)
			}
		})
	}
}
