package match_test

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	. "github.com/vifshape/vifshape/hierarchy/match"
)

// in says whether a packet is in a case.
func in(c *Case, p *Packet) bool {
	family, far, near, farMAC, nearMAC := 0, p.DPort, p.SPort, p.ToMAC, p.FromMAC
	if p.Received {
		far, near, farMAC, nearMAC = near, far, nearMAC, farMAC
	}
	if p.From.IsValid() {
		family = map[int]int{32: 4, 128: 6}[p.From.BitLen()]
	}
	ports := func(of []Ports, n uint16) bool {
		return of == nil || slices.ContainsFunc(of, func(x Ports) bool { return x.First <= n && n <= x.Last })
	}
	from, to := p.From, p.To
	switch {
	case !c.Host || !p.Host.IsValid():
	case p.Received:
		to = p.Host
	default:
		from = p.Host
	}
	mac := nearMAC
	if c.MACFar {
		mac = farMAC
	}
	return c.Family == family && (family == 0 || c.Sender.Contains(from) && c.Receiver.Contains(to)) &&
		ports(c.Far, far) && ports(c.Near, near) &&
		(c.MAC == nil || slices.Contains(c.MAC, mac)) &&
		(c.Proto == nil || slices.Contains(c.Proto, p.Proto)) &&
		(c.DSCP == nil || slices.Contains(c.DSCP, p.DSCP)) &&
		(c.VLAN == nil || slices.Contains(c.VLAN, p.VLAN)) &&
		(c.Mark == nil || slices.ContainsFunc(c.Mark, func(x Mark) bool { return p.Mark&x.Mask == x.Value }))
}

// TestCases: the greatest rank of the cases that a packet is in is its rank.
func TestCases(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 6))
	packets := map[bool][]Packet{false: all(false), true: all(true)}
	for received := range packets {
		for _, mac := range []MAC{{}, {2, 1}, {2, 3}} {
			packets[received] = append(packets[received], Packet{Received: received, FromMAC: mac}, Packet{Received: received, ToMAC: mac, Mark: 3, DSCP: 1})
		}
	}
	fits, rounds := 0, 400
	if testing.Short() {
		rounds = 80
	}
	for n := range rounds {
		m, received := random(t, r, n%2 == 0), n%4 > 1
		cases := slices.Collect(m.Cases(received))
		for i := range packets[received] {
			p := &packets[received][i]
			var most Rank
			for j := range cases {
				if in(&cases[j], p) {
					most = max(most, cases[j].Rank)
				}
			}
			if want := m.Rank(p); most != want {
				t.Fatalf("%v of %v, received %v: rank %d by its cases, want %d", p, m, received, most, want)
			} else if want != 0 {
				fits++
			}
		}
	}
	if fits < 25*rounds {
		t.Errorf("only %d fit", fits)
	}
}

// TestCasesPorts: a key on either side leaves what its other key on that side does.
func TestCasesPorts(t *testing.T) {
	m := of(t, "port=1-10 port=5-20 dport=15-30")
	var got [][2][]Ports
	for c := range m.Cases(false) {
		if c.Family == 0 {
			got = append(got, [2][]Ports{c.Far, c.Near})
		}
	}
	want := [][2][]Ports{{{{First: 15, Last: 20}}, nil}, {{{First: 15, Last: 30}}, {{First: 1, Last: 20}}}}
	if len(got) != 2 || !slices.EqualFunc(got, want, func(a, b [2][]Ports) bool { return slices.Equal(a[0], b[0]) && slices.Equal(a[1], b[1]) }) {
		t.Errorf("%v, want %v", got, want)
	}
	v6 := of(t, "to=2001::/16 host=10.0.0.0/8 host=2001::1")
	for c := range v6.Cases(false) {
		if c.Family != 6 || c.Sender != netip.MustParsePrefix("2001::1/128") || c.Receiver != netip.MustParsePrefix("2001::/16") {
			t.Errorf("%+v", c)
		}
	}
}
