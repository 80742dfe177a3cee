package match_test

import "testing"

// TestSample: a packet is found that fits, in either direction, wherever one can.
func TestSample(t *testing.T) {
	for _, r := range []struct {
		match       string
		sent, comes bool
	}{
		{"to=10.0.0.0/8", true, true},
		{"from=2001:db8::/32 to=::/0", true, true},
		{"from=10.0.0.0/8 from=2001:db8::/32 to=::1", true, true},
		{"host=10.0.0.1", true, true},
		{"host=10.0.0.0/24 from=10.0.0.0/8", true, true},
		{"host=10.0.0.0/24 from=192.0.2.0/24", false, true},
		{"host=10.0.0.0/24 to=192.0.2.0/24", true, false},
		{"host=10.0.0.0/24 from=192.0.2.0/24 from=10.0.0.7", true, true},
		{"dport=80", true, true},
		{"sport=80 dport=1-1023 proto=icmp proto=tcp", true, true},
		{"port=443 proto=sctp", true, true},
		{"port=443 sport=80", true, true},
		{"port=443 dport=80", true, true},
		{"port=443 dport=80 sport=1-1023", true, true},
		{"port=443 dport=80 sport=81 sport=400-500", true, true},
		{"port=443 dport=80 sport=81", false, false},
		{"proto=gre dscp=EF mark=0x10/0xf0 vlan=7 mac=02:00:00:00:00:01", true, true},
		{"dscp=CS0", true, true},
		{"mark=0/0x1", true, true},
	} {
		m := of(t, r.match)
		for received, want := range map[bool]bool{false: r.sent, true: r.comes} {
			p, ok := m.Sample(received)
			if fits := m.Rank(&p) > 0; ok != want || fits != want || p.Received != received {
				t.Errorf("%s, received %v: %+v, %v, fits %v; want %v", r.match, received, p, ok, fits, want)
			}
		}
	}
}
