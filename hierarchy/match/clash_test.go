package match_test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"

	. "github.com/vifshape/vifshape/hierarchy/match"
)

func TestRank(t *testing.T) {
	const sent = "from=10.1.2.3:40000 to=192.0.2.1:443 proto=tcp mac=52:54:00:12:34:56 dscp=EF mark=0x11 vlan=5"
	const received = "in from=192.0.2.1:443 to=10.1.2.3:40000 proto=tcp mac=52:54:00:12:34:56"
	for _, r := range []struct {
		match          string
		sent, received bool
	}{
		{"from=10.0.0.0/8", true, false},
		{"to=10.0.0.0/8", false, true},
		{"host=10.0.0.0/8", true, true},
		{"host=192.0.2.1", false, false},
		{"from=10.0.0.0/8 host=10.1.0.0/16", true, false},
		{"from=10.0.0.0/8 host=10.2.0.0/16", false, false},
		{"to=::/0", false, false},
		{"to=0.0.0.0/0", true, true},
		{"dport=443", true, false},
		{"sport=443", false, true},
		{"port=443", true, true},
		{"port=40000", true, true},
		{"port=444", false, false},
		{"sport=40000 port=443", true, false},
		{"dport=80 dport=400-500", true, false},
		{"proto=tcp", true, true},
		{"proto=udp", false, false},
		{"mac=52:54:00:12:34:56", true, true},
		{"mac=52:54:00:12:34:57", false, false},
		{"dscp=EF", true, false},
		{"dscp=CS0", false, true},
		{"mark=0x10/0xf0", true, false},
		{"mark=0x10", false, false},
		{"mark=0/0xff", false, true},
		{"vlan=5", true, false},
	} {
		m := of(t, r.match)
		s, in := packet(t, sent), packet(t, received)
		if got := m.Rank(&s) != 0; got != r.sent {
			t.Errorf("%v fits what is sent: %v", m, got)
		}
		if got := m.Rank(&in) != 0; got != r.received {
			t.Errorf("%v fits what is received: %v", m, got)
		}
	}
	const out, back = "from=203.0.113.1 host=10.1.2.3 to=192.0.2.1", "in from=192.0.2.1 to=203.0.113.1 host=10.1.2.3"
	for match, fits := range map[string][2]bool{
		"host=10.1.2.3":                    {true, true},
		"host=203.0.113.1":                 {false, false},
		"from=203.0.113.1":                 {true, false},
		"to=203.0.113.1":                   {false, true},
		"from=10.1.2.3":                    {false, false},
		"host=10.1.2.3 to=192.0.2.1":       {true, false},
		"host=10.1.2.3 from=192.0.2.1":     {false, true},
		"host=10.0.0.0/8 from=10.1.0.0/16": {true, false}, // beside host that is as it is before translation, too
		"host=10.0.0.0/8 from=203.0.113.1": {false, false},
		"host=10.0.0.0/8 to=10.1.0.0/16":   {false, true},
	} {
		m, s, in := of(t, match), packet(t, out), packet(t, back)
		if got := [2]bool{m.Rank(&s) != 0, m.Rank(&in) != 0}; got != fits {
			t.Errorf("%v, translated, fits what is sent, received: %v", m, got)
		}
	}
	var none Match
	if p := packet(t, sent); none.Rank(&p) != 0 {
		t.Error("a match without a key fits")
	}
}

// In each row the matches are in the order of their ranks for the packet, the most
// specific first.
func TestRankOrder(t *testing.T) {
	for _, r := range []struct {
		packet  string
		matches []string
	}{
		{"to=10.1.2.3:443 proto=tcp", []string{"to=10.1.0.0/16", "to=10.0.0.0/8 dport=443 proto=tcp", "to=10.0.0.0/8 dport=443", "to=10.0.0.0/8", "dport=443 proto=tcp", "dport=443"}},
		{"to=10.1.2.3:443 proto=tcp", []string{"to=0.0.0.0/0 dport=443", "dport=443"}},
		{"to=10.1.2.3:443 proto=tcp", []string{"to=10.0.0.0/8 to=10.1.2.0/24", "to=10.1.0.0/16 proto=tcp"}},
		{"from=10.1.2.3 to=192.0.2.1", []string{"from=10.1.2.0/24 to=192.0.2.0/24", "from=10.1.2.3", "from=10.1.0.0/16 to=192.0.0.0/8"}},
		{"from=10.1.2.3", []string{"host=10.1.2.3", "host=10.0.0.0/8 from=10.1.2.0/24", "from=10.1.2.0/24"}},
		{"from=192.0.2.1 host=10.1.2.3 to=10.2.0.1", []string{"to=10.0.0.0/8 host=10.1.2.3", "host=10.1.2.3", "from=192.0.2.1", "host=10.1.2.0/24"}},
		{"in from=10.2.0.1 to=192.0.2.1 host=10.1.2.3", []string{"host=10.1.2.3 to=10.0.0.0/8", "host=10.1.2.3", "to=192.0.2.1", "host=10.1.2.0/24"}},
		{"from=10.1.2.3", []string{"host=10.1.2.3", "from=10.1.2.3"}},
		{"from=10.1.2.3:80 to=192.0.2.1:443 proto=tcp", []string{"port=443", "port=80"}},
		{"in from=192.0.2.1:443 to=10.1.2.3:80 proto=tcp", []string{"port=443", "port=80"}},
		{"in from=192.0.2.1:443 to=10.1.2.3:80 proto=tcp", []string{"port=80 proto=tcp", "port=443"}},
	} {
		p := packet(t, r.packet)
		var last Rank
		for i, text := range r.matches {
			m := of(t, text)
			got := m.Rank(&p)
			if got == 0 || i > 0 && got >= last {
				t.Errorf("%v: %v has rank %d, the one before %d", p, m, got, last)
			}
			last = got
		}
	}
	a, b := MAC{2, 0, 0, 0, 0, 1}, MAC{2, 0, 0, 0, 0, 2}
	p, x, y := Packet{FromMAC: a, ToMAC: b}, Match{MAC: []MAC{a}}, Match{MAC: []MAC{b}}
	if x.Rank(&p) >= y.Rank(&p) {
		t.Error("the far MAC address does not come first in what is sent")
	}
	if p.Received = true; x.Rank(&p) <= y.Rank(&p) {
		t.Error("the far MAC address does not come first in what is received")
	}
}

func TestClashes(t *testing.T) {
	for _, r := range []struct {
		branches       string // each a list of matches behind semicolons, separated by bars
		sent, received string // "branch.match branch.match packets"
	}{
		{"to=10.0.0.0/8 | to=10.1.0.0/16", "", ""},
		{"to=10.0.0.0/8 | to=11.0.0.0/8", "", ""},
		{"to=10.0.0.0/8 | to=10.0.0.0/8", `0.0 1.0 { to = "10.0.0.0/8" }`, `0.0 1.0 { to = "10.0.0.0/8" }`},
		{"to=10.0.0.0/8 ; to=10.0.0.0/8 | to=11.0.0.0/8", "", ""}, // one branch
		{"to=10.0.0.0/8 | to=10.0.0.0/8 proto=tcp", "", ""},
		{"to=10.0.0.0/8 | from=192.168.0.0/16", "", ""},
		{"to=10.0.0.0/8 | from=11.0.0.0/8", `0.0 1.0 { from = "11.0.0.0/8", to = "10.0.0.0/8" }`, `0.0 1.0 { from = "11.0.0.0/8", to = "10.0.0.0/8" }`},
		{"to=10.0.0.0/8 | from=2000::/8", "", ""},
		{"from=10.0.0.0/8 | host=10.0.0.0/8", "", ""},
		{"from=10.0.0.0/8 | host=11.0.0.0/8", "", ""},
		{"host=10.0.0.0/8 | host=11.0.0.0/8", "", ""},
		{"host=10.0.0.0/8 | host=10.0.0.0/8", `0.0 1.0 { host = "10.0.0.0/8" }`, `0.0 1.0 { host = "10.0.0.0/8" }`},
		{"host=10.0.0.0/8 to=11.0.0.0/8 | host=10.0.0.0/8 to=11.0.0.0/8", `0.0 1.0 { to = "11.0.0.0/8", host = "10.0.0.0/8" }`, ""},
		{"from=10.0.0.0/24 to=10.0.0.0/8 | from=10.0.0.0/8 to=10.0.0.0/24", `0.0 1.0 { from = "10.0.0.0/24", to = "10.0.0.0/24" }`, `0.0 1.0 { from = "10.0.0.0/24", to = "10.0.0.0/24" }`},
		{"dport=443 | dport=80", "", ""},
		{"dport=443 | dport=1-1023", "0.0 1.0 { dport = 443 }", "0.0 1.0 { dport = 443 }"},
		{"dport=443 | dport=1-442 dport=444-1023", "", ""},
		{"dport=443 proto=tcp | dport=443 proto=udp", "", ""},
		{"dport=443 | proto=tcp", `0.0 1.0 { proto = "tcp", dport = 443 }`, `0.0 1.0 { proto = "tcp", dport = 443 }`},
		{"dport=443 | proto=icmp", "", ""},
		{"dport=443 | sport=80", "0.0 1.0 { sport = 80, dport = 443 }", "0.0 1.0 { sport = 80, dport = 443 }"},
		{"port=443 | port=80", "", ""},
		{"port=443 | port=440-450", "0.0 1.0 { port = 443 }", "0.0 1.0 { port = 443 }"},
		{"port=443 | dport=80", "", "0.0 1.0 { port = 443, dport = 80 }"},
		{"port=443 dport=1-9 | port=443 dport=5-20", "0.0 1.0 { port = 443, dport = \"5-9\" }", "0.0 1.0 { port = 443, dport = \"5-9\" }"},
		{"mac=52:54:00:12:34:56 | mac=52:54:00:12:34:57", "", ""},
		{"mac=52:54:00:12:34:56 | dscp=EF", `0.0 1.0 { mac = "52:54:00:12:34:56", dscp = "EF" }`, `0.0 1.0 { mac = "52:54:00:12:34:56", dscp = "EF" }`},
		{"dscp=EF | dscp=AF41", "", ""},
		{"mark=0x10/0xf0 | mark=0x1/0xf", `0.0 1.0 { mark = "0x11/0xff" }`, `0.0 1.0 { mark = "0x11/0xff" }`},
		{"mark=0x10/0xff | mark=0x20/0xff", "", ""},
		{"vlan=5 | vlan=6 ; vlan=5", "0.0 1.1 { vlan = 5 }", "0.0 1.1 { vlan = 5 }"},
		{"to=0.0.0.0/0 | vlan=5", `0.0 1.0 { to = "0.0.0.0/0", vlan = 5 }`, `0.0 1.0 { to = "0.0.0.0/0", vlan = 5 }`},
		{"to=::1 | to=::1 | to=::1", `0.0 1.0 { to = "::1" }`, `0.0 1.0 { to = "::1" }`},
		{"vlan=5 | vlan=5 | vlan=6 | vlan=6", "0.0 1.0 { vlan = 5 }, 2.0 3.0 { vlan = 6 }", "0.0 1.0 { vlan = 5 }, 2.0 3.0 { vlan = 6 }"},
	} {
		var branches [][]Match
		for b := range strings.SplitSeq(r.branches, "|") {
			var all []Match
			for m := range strings.SplitSeq(b, ";") {
				all = append(all, of(t, m))
			}
			branches = append(branches, all)
		}
		for received, want := range map[bool]string{false: r.sent, true: r.received} {
			var got []string
			for _, c := range Clashes(branches, received) {
				got = append(got, fmt.Sprintf("%d.%d %d.%d %v", c.A.Branch, c.A.Match, c.B.Branch, c.B.Match, c.Packets))
			}
			if got := strings.Join(got, ", "); got != want {
				t.Errorf("%s, received %v:\n%s, want\n%s", r.branches, received, got, want)
			}
		}
	}
}

// all is every packet of a small world, with values that no match of [random] has.
func all(received bool) (packets []Packet) {
	macs := []MAC{{2, 1}, {2, 2}, {2, 3}}
	ends := [][]netip.Addr{
		{netip.MustParseAddr("10.0.0.0"), netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("10.0.0.2"), netip.MustParseAddr("11.0.0.1")},
		{netip.MustParseAddr("2001::"), netip.MustParseAddr("2001::1")},
	}
	for _, end := range ends {
		for _, from := range end {
			for _, to := range end {
				for i := range 16 + 1 {
					for j := range 9 {
						for k := range 8 {
							p := Packet{Received: received, From: from, To: to, FromMAC: macs[j%3], ToMAC: macs[j/3], Proto: TCP, SPort: uint16(i%4 + 1), DPort: uint16(i/4 + 1), DSCP: DSCP(k % 2), Mark: uint32(k / 2)}
							if i == 16 {
								p.Proto, p.SPort, p.DPort = 1, 0, 0
							}
							packets = append(packets, p)
							p.Host = end[1] // translated
							packets = append(packets, p)
						}
					}
				}
			}
		}
	}
	return packets
}

// random is a match of few keys, with one prefix at most for each of them unless many.
func random(t *testing.T, r *rand.Rand, many bool) Match {
	values := map[string][]string{
		"from": {"10.0.0.0/31", "10.0.0.0", "10.0.0.1", "10.0.0.0/8", "0.0.0.0/0", "2001::/16", "2001::1"},
		"port": {"1", "2", "3", "1-2", "2-3"}, "proto": {"tcp", "icmp"}, "mac": {"02:01:00:00:00:00", "02:02:00:00:00:00"},
		"dscp": {"0", "1"}, "mark": {"0/1", "1/1", "2/2", "3"},
	}
	values["to"], values["host"], values["sport"], values["dport"] = values["from"], values["from"], values["port"], values["port"]
	for {
		var m Match
		for range 1 + r.IntN(3) {
			key := Keys()[r.IntN(10)]
			n := 1
			if many || !slices.Contains([]string{"from", "to", "host"}, key) {
				n += r.IntN(2)
			} else if len(map[string][]netip.Prefix{"from": m.From, "to": m.To, "host": m.Host}[key]) > 0 {
				continue
			}
			for range n {
				if err := m.Add(key, values[key][r.IntN(len(values[key]))]); err != nil {
					t.Fatal(err)
				}
			}
		}
		if _, text, _ := m.Check(); text == "" {
			return m
		}
	}
}

// TestClashesAll holds what is found against every packet there is: of two branches
// without a clash no packet has the same rank in both, and where one is named there is
// such a packet.
func TestClashesAll(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	packets := map[bool][]Packet{false: all(false), true: all(true)}
	ties, rounds := 0, 1000
	if testing.Short() {
		rounds = 200
	}
	for n := range rounds {
		many, received := n%4 == 3, n%2 == 1
		branches := [][]Match{{random(t, r, many)}, {random(t, r, many)}}
		if many {
			branches[0] = append(branches[0], random(t, r, many))
		}
		found := Clashes(branches, received)
		tie, said := false, false
		for i := range packets[received] {
			p := &packets[received][i]
			best := func(of []Match) (most Rank) {
				for j := range of {
					most = max(most, of[j].Rank(p))
				}
				return most
			}
			a := best(branches[0])
			if a == 0 || a != best(branches[1]) {
				continue
			}
			tie = true
			if said = len(found) > 0 && found[0].Packets.Rank(p) != 0; said {
				break
			}
		}
		if tie {
			ties++
		}
		if tie && len(found) == 0 || !tie && len(found) > 0 && !many || tie && !said && !many {
			t.Errorf("%v, received %v: clashes %v; a packet has the same rank %v, one of those that are named %v", branches, received, found, tie, said)
		}
	}
	if ties < rounds/10 || ties > rounds*9/10 {
		t.Errorf("%d of %d have packets of the same rank: the matches are too unlike each other, or too like", ties, rounds)
	}
}

// BenchmarkClashes is a branch for each of 10,000 addresses.
func BenchmarkClashes(b *testing.B) {
	for _, what := range []string{"to", "dport"} {
		b.Run(what, func(b *testing.B) {
			branches := make([][]Match, 10000)
			for i := range branches {
				branches[i] = []Match{of(b, fmt.Sprintf("to=10.0.%d.%d", i/256, i%256))}
				if what == "dport" {
					branches[i] = []Match{of(b, fmt.Sprintf("dport=%d", i+1))}
				}
			}
			for b.Loop() {
				if got := Clashes(branches, false); len(got) > 0 {
					b.Fatal(got)
				}
			}
		})
	}
}
