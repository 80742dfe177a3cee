package match_test

import (
	"net/netip"
	"strings"
	"testing"

	. "github.com/vifshape/vifshape/hierarchy/match"
)

// described are the words of a packet: "in to=1.2.3.4:443 proto=tcp".
func described(text string) map[string]string {
	words := map[string]string{}
	for _, f := range strings.Fields(text) {
		w, v, _ := strings.Cut(f, "=")
		words[w] = v
	}
	return words
}

func packet(t testing.TB, text string) Packet {
	t.Helper()
	p, err := ParsePacket(described(text))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestParsePacket(t *testing.T) {
	a, b := netip.MustParseAddr("1.2.3.4"), netip.MustParseAddr("2001:db8::1")
	mac := MAC{0x52, 0x54, 0, 0x12, 0x34, 0x56}
	for _, r := range []struct {
		in   string
		want Packet
	}{
		{"", Packet{}},
		{"in", Packet{Received: true}},
		{"in=false", Packet{}},
		{"to=1.2.3.4:443 proto=tcp", Packet{To: a, DPort: 443, Proto: TCP}},
		{"to=1.2.3.4:https proto=tcp", Packet{To: a, DPort: 443, Proto: TCP}},
		{"from=:53 proto=udp", Packet{SPort: 53, Proto: UDP}},
		{"from=[2001:db8::1]:53 to=2001:db8::1 proto=udp", Packet{From: b, To: b, SPort: 53, Proto: UDP}},
		{"from=[2001:db8::1]", Packet{From: b}},
		{"from=1.2.3.4 host=1.2.3.4", Packet{From: a, Host: a}},
		{"in to=2001:db8::1 host=2001:db8::1", Packet{Received: true, To: b, Host: b}},
		{"from=1.2.3.4 proto=icmp", Packet{From: a, Proto: 1}},
		{"mac=52:54:00:12:34:56", Packet{ToMAC: mac}},
		{"in mac=52:54:00:12:34:56", Packet{Received: true, FromMAC: mac}},
		{"dscp=EF mark=0x10 vlan=5", Packet{DSCP: 46, Mark: 16, VLAN: 5}},
	} {
		got, err := ParsePacket(described(r.in))
		if err != nil || got != r.want {
			t.Errorf("%q is %+v, error %v", r.in, got, err)
		}
		words := strings.Fields(got.String())
		again := map[string]string{}
		for len(words) > 0 {
			if words[0] == "in" {
				again["in"], words = "", words[1:]
				continue
			}
			again[words[0]], words = words[1], words[2:]
		}
		if back, err := ParsePacket(again); err != nil || back != got {
			t.Errorf("%q prints as %q, which is %+v, error %v", r.in, got, back, err)
		}
	}
	for in, want := range map[string]string{
		"in=yes":                      `in: "yes" says nothing more of a packet that comes in: leave it out`,
		"dst=1.2.3.4":                 `a packet has no "dst": known are in, from, to, host, proto, mac, dscp, mark, vlan`,
		"to=1.2.3.4:443":              "a packet with a port is of some protocol: say proto tcp, or udp",
		"to=1.2.3.4:443 proto=icmp":   `proto icmp has no ports: leave them out, or say "tcp", "udp", "dccp", "sctp" or "udplite"`,
		"to=10.0.0.0/8":               `to: "10.0.0.0/8" is a prefix, but a packet has one address: write one such as "10.0.0.0"`,
		"to=1.2.3.4/32":               `to: "1.2.3.4/32" is a prefix, but a packet has one address: write one such as "1.2.3.4"`,
		"to=1.2.3.4:":                 `to: "1.2.3.4:" has no port behind the colon`,
		"to=1.2.3.4:1-2 proto=tcp":    `to: "1-2" is a range, but a packet has one port`,
		"to=[::1:443":                 `to: "[::1:443": write an address of IPv6 and its port as "[2001:db8::1]:443"`,
		"to=":                         `to: "" is no address: write one such as "10.0.0.1" or "2001:db8::1", or a prefix such as "10.0.0.0/8"`,
		"to=::1 from=1.2.3.4":         "from 1.2.3.4 to ::1: no packet has addresses of IPv4 and IPv6 at once",
		"host=10.0.0.1:80":            `host: "10.0.0.1:80": write an address alone, that of our side before translation`,
		"to=::1 host=1.2.3.4":         "host 1.2.3.4: translation stays within IPv4, or within IPv6",
		"mark=0x10/0xff":              `mark: "0x10/0xff" has a mask, but a packet has one mark: write 0x10`,
		"proto=tpc mark=x":            "proto: \"tpc\" is no protocol: write a name such as \"tcp\", \"udp\" or \"icmp\", or a number from 1 to 255\nmark: \"x\" is no mark: write a number such as \"0x10\", or one with a mask, \"0x10/0xff\"",
		"mac=52:54 dscp=99 vlan=5000": "mac: \"52:54\" is no MAC address: write six bytes such as \"52:54:00:12:34:56\"\ndscp: dscp 99 is not between 0 and 63\nvlan: vlan 5000 is not between 1 and 4094",
	} {
		if p, err := ParsePacket(described(in)); err == nil || err.Error() != want || p != (Packet{}) {
			t.Errorf("%q is %+v, error %v", in, p, err)
		}
	}
}

// FuzzParsePacket: a packet or an error, never both, and a packet is read back from what
// it prints.
func FuzzParsePacket(f *testing.F) {
	f.Add("1.2.3.4:443", "[::1]:80", "tcp", "1", true)
	f.Add(":53", "::1", "udp", "0x10", false)
	f.Add("[", "]:", "", "", false)
	f.Fuzz(func(t *testing.T, from, to, proto, mark string, in bool) {
		words := map[string]string{"from": from, "to": to, "proto": proto, "mark": mark}
		if in {
			words["in"] = ""
		}
		p, err := ParsePacket(words)
		if err != nil {
			if p != (Packet{}) {
				t.Errorf("%v is %+v and the error %v", words, p, err)
			}
			return
		}
		again := described(strings.NewReplacer("from ", "from=", "to ", "to=", "proto ", "proto=", "mark ", "mark=").Replace(p.String()))
		if back, err := ParsePacket(again); err != nil || back != p {
			t.Errorf("%v prints as %q, which is %+v, error %v", words, p, back, err)
		}
	})
}
