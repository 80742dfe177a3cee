package match

import (
	"strings"
	"testing"
)

// read is a match from "key value, key value ...".
func readMatch(t *testing.T, text string) (m Match) {
	t.Helper()
	for part := range strings.SplitSeq(text, ", ") {
		key, value, _ := strings.Cut(part, " ")
		if err := m.Add(key, value); part != "" && err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestMeet(t *testing.T) {
	for _, tt := range []struct{ a, b, want string }{
		{"dport 80", "proto tcp", `{ proto = "tcp", dport = 80 }`},
		{"dport 1-1024", "dport 80, to 10.0.0.0/8", `{ to = "10.0.0.0/8", dport = 80 }`},
		{"from 10.0.0.0/8", "from 10.1.0.0/16", `{ from = "10.1.0.0/16" }`},
		{"from 10.0.0.0/8", "from 192.168.0.0/16", ""},
		{"from 10.0.0.0/8", "to 2001:db8::/32", ""},
		{"dport 80", "dport 443", ""},
		{"dport 80", "proto icmp", ""},
		{"mark 0x10/0xf0", "mark 0x1/0xf", `{ mark = "0x11/0xff" }`},
		{"mark 0x10/0xf0", "mark 0x20", ""},
		{"dscp EF", "dscp CS1", ""},
		{"", "dscp CS1", `{ dscp = "CS1" }`},
		{"", "", "{}"},
	} {
		a, b := readMatch(t, tt.a), readMatch(t, tt.b)
		for range 2 {
			both, ok := Meet(&a, &b)
			if got := both.Text(); ok != (tt.want != "") || ok && got != tt.want {
				t.Errorf("%s and %s: %s, %v; want %s", tt.a, tt.b, got, ok, tt.want)
			}
			a, b = b, a
		}
	}
}

func TestJoin(t *testing.T) {
	for _, tt := range []struct{ a, b, want string }{
		{"proto tcp, dport 80", "proto tcp, dport 443", `{ proto = "tcp", dport = [80, 443] }`},
		{"dport 80-89", "dport 90-99", `{ dport = "80-99" }`},
		{"dport 80", "dport 80", "{ dport = 80 }"},
		{"proto tcp, dport 80", "proto udp, dport 443", ""},
		{"proto tcp, dport 80", "dport 80", ""},
		{"from 10.0.0.1", "from 10.0.0.2", `{ from = ["10.0.0.1", "10.0.0.2"] }`},
	} {
		a, b := readMatch(t, tt.a), readMatch(t, tt.b)
		one, ok := Join(&a, &b)
		if got := one.Text(); ok != (tt.want != "") || ok && got != tt.want {
			t.Errorf("%s or %s: %s, %v; want %s", tt.a, tt.b, got, ok, tt.want)
		}
	}
}
