package match_test

import (
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy/match"
)

// of makes a match of its values: "to=10.0.0.0/8 dport=80 dport=443".
func of(t testing.TB, text string) Match {
	t.Helper()
	var m Match
	for _, f := range strings.Fields(text) {
		key, value, _ := strings.Cut(f, "=")
		if err := m.Add(key, value); err != nil {
			t.Fatal(err)
		}
	}
	return m
}

func TestAdd(t *testing.T) {
	const (
		noAddress = ` is no address: write one such as "10.0.0.1" or "2001:db8::1", or a prefix such as "10.0.0.0/8"`
		noName    = ` is no address, and names are not looked up, for what they stand for changes: write the addresses`
		noPort    = ` is no port: write a number from 1 to 65535, a range such as "8000-8100", or a name such as "https"`
		noProto   = ` is no protocol: write a name such as "tcp", "udp" or "icmp", or a number from 1 to 255`
		noDSCP    = ` is no code point: write a name such as "EF", "AF41", "CS1" or "LE", or a number from 0 to 63`
		noMark    = ` is no mark: write a number such as "0x10", or one with a mask, "0x10/0xff"`
		noMAC     = ` is no MAC address: write six bytes such as "52:54:00:12:34:56"`
	)
	for _, r := range []struct{ key, in, want, err string }{
		{"to", "10.0.0.0/8", `{ to = "10.0.0.0/8" }`, ""},
		{"from", "10.0.0.1", `{ from = "10.0.0.1" }`, ""},
		{"host", "10.0.0.1/32", `{ host = "10.0.0.1" }`, ""},
		{"to", "0.0.0.0/0", `{ to = "0.0.0.0/0" }`, ""},
		{"to", "::/0", `{ to = "::/0" }`, ""},
		{"to", "2001:DB8:0::1", `{ to = "2001:db8::1" }`, ""},
		{"to", "2001:db8::/32", `{ to = "2001:db8::/32" }`, ""},
		{"to", "", "", `""` + noAddress},
		{"to", "/8", "", `"/8"` + noAddress},
		{"to", "any", "", `"any" is every address: leave the key out, or write ["0.0.0.0/0", "::/0"] if it is the only one`},
		{"to", "10.1.2.3/8", "", `"10.1.2.3/8" has bits behind its length: write "10.0.0.0/8", or "10.1.2.3" for that address alone`},
		{"to", "10.0.0.0/33", "", `"10.0.0.0/33": the length of the prefix is from 0 to 32`},
		{"to", "10.0.0.0/08", "", `"10.0.0.0/08": the length of the prefix is from 0 to 32`},
		{"to", "::/129", "", `"::/129": the length of the prefix is from 0 to 128`},
		{"to", "10.0.0.0/255.0.0.0", "", `"10.0.0.0/255.0.0.0" has a mask: write its length, "10.0.0.0/8"`},
		{"to", "10.0.0.0/0.0.0.255", "", `"10.0.0.0/0.0.0.255" has a mask with gaps: write prefixes`},
		{"to", "fe80::1%eth0", "", `"fe80::1%eth0" has a zone, which no packet has: write "fe80::1"`},
		{"to", "::ffff:1.2.3.4", "", `"::ffff:1.2.3.4" is of IPv4: write "1.2.3.4"`},
		{"to", "::ffff:1.2.3.0/120", "", `"::ffff:1.2.3.0/120" is of IPv4: write "1.2.3.0/24"`},
		{"to", "1.2.3.4:443", "", `"1.2.3.4:443" has a port: write "1.2.3.4", and the port with dport, sport or port`},
		{"to", "[::1]:443", "", `"[::1]:443" has a port: write "::1", and the port with dport, sport or port`},
		{"to", "10.0.0.1-10.0.0.9", "", `"10.0.0.1-10.0.0.9" is a range: write it as prefixes, such as "10.0.0.0/28"`},
		{"to", "10/8", "", `"10/8" is not written in full: write "10.0.0.0/8"`},
		{"to", "192.168.", "", `"192.168." is not written in full: write "192.168.0.0/16"`},
		{"to", "10/x", "", `"10/x"` + noAddress},
		{"to", "192.168.*", "", `"192.168.*"` + noAddress},
		{"to", "010.0.0.1", "", `"010.0.0.1"` + noAddress},
		{"to", "example.com", "", `"example.com"` + noName},
		{"to", "example.com/24", "", `"example.com/24"` + noName},
		{"to", "!10.0.0.0/8", "", `"!10.0.0.0/8": a match has no "not": give what is excepted a more specific match in a branch of its own`},
		{"to", "10.0.0.1, 10.0.0.2", "", `"10.0.0.1, 10.0.0.2" has a comma: write a list, to = ["10.0.0.1", "10.0.0.2"]`},

		{"dport", "443", "{ dport = 443 }", ""},
		{"sport", "8000-8100", `{ sport = "8000-8100" }`, ""},
		{"port", "https", "{ port = 443 }", ""},
		{"port", "ftp-data", "{ port = 20 }", ""},
		{"port", "1-65535", `{ port = "1-65535" }`, ""},
		{"port", "80-80", "{ port = 80 }", ""},
		{"port", "", "", `""` + noPort},
		{"port", "*", "", `"*" is every port: leave the key out`},
		{"port", "0", "", "port 0 is in no packet: ports are from 1 to 65535"},
		{"port", "65536", "", "port 65536 is not between 1 and 65535"},
		{"port", "080", "", `"080"` + noPort},
		{"port", "8080.5", "", `"8080.5"` + noPort},
		{"port", "-1", "", `"-1": ports begin with 1: write "1-1"`},
		{"port", "0-1023", "", `"0-1023": ports begin with 1: write "1-1023"`},
		{"port", "1024-", "", `"1024-": write the range with its end, "1024-65535"`},
		{"port", "1024-70000", "", `"1024-70000": write the range with its end, "1024-65535"`},
		{"port", "90-80", "", `"90-80" goes down: write "80-90"`},
		{"port", "80:90", "", `"80:90": write a range as "80-90"`},
		{"port", "443/tcp", "", `"443/tcp": write the port alone, "443", and the protocol as proto`},
		{"port", "tcp/443", "", `"tcp/443": write the port alone, "443", and the protocol as proto`},
		{"port", "HTTPS", "", `"HTTPS": names of ports are in lower case: write "https"`},
		{"port", "webby", "", `"webby"` + noPort},
		{"port", "http-https", "", `"http-https"` + noPort},

		{"proto", "tcp", `{ proto = "tcp" }`, ""},
		{"proto", "6", `{ proto = "tcp" }`, ""},
		{"proto", "253", "{ proto = 253 }", ""},
		{"proto", "0", "", "protocol 0 is not between 1 and 255"},
		{"proto", "256", "", "protocol 256 is not between 1 and 255"},
		{"proto", "ip", "", `"ip" is every protocol: leave the key out`},
		{"proto", "ipv4", "", `"ipv4" is no protocol inside of IP: write to = "0.0.0.0/0" for all of IPv4`},
		{"proto", "ip6", "", `"ip6" is no protocol inside of IP: write to = "::/0" for all of IPv6`},
		{"proto", "ipv6-icmp", "", `"ipv6-icmp": write "icmpv6"`},
		{"proto", "TCP", "", `"TCP": names of protocols are in lower case: write "tcp"`},
		{"proto", "udp/53", "", `"udp/53" has a port: write proto = "udp" and dport = "53"`},
		{"proto", "http", "", `"http"` + noProto},

		{"dscp", "EF", `{ dscp = "EF" }`, ""},
		{"dscp", "46", `{ dscp = "EF" }`, ""},
		{"dscp", "0x2e", `{ dscp = "EF" }`, ""},
		{"dscp", "1", `{ dscp = "LE" }`, ""},
		{"dscp", "0", `{ dscp = "CS0" }`, ""},
		{"dscp", "63", "{ dscp = 63 }", ""},
		{"dscp", "64", "", `dscp 64 is above 63; if it is the whole byte (TOS), write its upper six bits, "CS2"`},
		{"dscp", "0xb8", "", `dscp 0xb8 is above 63; if it is the whole byte (TOS), write its upper six bits, "EF"`},
		{"dscp", "65", "", "dscp 65 is not between 0 and 63"},
		{"dscp", "ef", "", `"ef": names of code points are in upper case: write "EF"`},
		{"dscp", "BE", "", `"BE": write "CS0"`},
		{"dscp", "AF44", "", `"AF44"` + noDSCP},

		{"mark", "0x10/0xff", `{ mark = "0x10/0xff" }`, ""},
		{"mark", "16", `{ mark = "0x10" }`, ""},
		{"mark", "0/0xff", `{ mark = "0x0/0xff" }`, ""},
		{"mark", "0xFFFFFFFF", `{ mark = "0xffffffff" }`, ""},
		{"mark", "0x100000000", "", `"0x100000000": a mark has 32 bits`},
		{"mark", "99999999999999999999", "", `"99999999999999999999": a mark has 32 bits`},
		{"mark", "0x110/0xff", "", `"0x110/0xff" fits no packet, for its value has bits that its mask leaves out: write "0x10/0xff"`},
		{"mark", "0x10/0", "", `"0x10/0" has an empty mask, which fits every packet: leave the key out`},
		{"mark", "0x10/", "", `"0x10/"` + noMark},
		{"mark", "ff", "", `"ff"` + noMark},
		{"mark", "0x", "", `"0x"` + noMark},

		{"mac", "52:54:00:12:34:AB", `{ mac = "52:54:00:12:34:ab" }`, ""},
		{"mac", "52-54-00-12-34-56", "", `"52-54-00-12-34-56": write it with colons, "52:54:00:12:34:56"`},
		{"mac", "5254.0012.3456", "", `"5254.0012.3456": write it with colons, "52:54:00:12:34:56"`},
		{"mac", "0:0:0:0:0:0", "", `"0:0:0:0:0:0"` + noMAC},
		{"mac", "00:00:00:00:00:00", "", `"00:00:00:00:00:00" is nobody's MAC address`},
		{"mac", "52:54:00:12:34", "", `"52:54:00:12:34"` + noMAC},

		{"vlan", "100", "{ vlan = 100 }", ""},
		{"vlan", "0", "", "vlan 0 is not between 1 and 4094"},
		{"vlan", "4095", "", "vlan 4095 is not between 1 and 4094"},
		{"vlan", "eth0.5", "", `"eth0.5" is no VLAN: write its number, from 1 to 4094`},

		{"ip", "10.0.0.1", "", `a match has no key "ip": known are from, to, host, mac, proto, port, sport, dport, dscp, mark, vlan`},
	} {
		t.Run(r.key+" "+r.in, func(t *testing.T) {
			var m Match
			err := m.Add(r.key, r.in)
			text, got := "", m.String()
			if err != nil {
				text = err.Error()
				if !reflect.DeepEqual(m, Match{}) {
					t.Errorf("the match %v beside an error", m)
				}
				got = ""
			}
			if d := cmp.Diff([]string{r.want, r.err}, []string{got, text}); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// A match is read back from what its JSON is, and a value from what it prints.
func TestText(t *testing.T) {
	m := of(t, "from=10.0.0.0/8 from=::1 to=2001:db8::/32 host=10.0.0.1 mac=52:54:00:12:34:56 proto=udp proto=200 port=53 port=8000-8100 sport=1 dport=2 dscp=EF dscp=7 mark=0x10/0xff mark=9 vlan=5 vlan=6")
	b, err := json.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var back Match
	if err := json.Unmarshal(b, &back); err != nil || !reflect.DeepEqual(m, back) {
		t.Errorf("%s is read as %v, error %v", b, back, err)
	}
	want := `{ from = ["10.0.0.0/8", "::1"], to = "2001:db8::/32", host = "10.0.0.1", mac = "52:54:00:12:34:56", proto = ["udp", 200], port = [53, "8000-8100"], sport = 1, dport = 2, dscp = ["EF", 7], mark = ["0x10/0xff", "0x9"], vlan = [5, 6] }`
	if d := cmp.Diff(want, m.String()); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	var many Match
	for i := range 12 {
		many.VLAN = append(many.VLAN, VLAN(i+1))
	}
	if got, want := many.String(), "{ vlan = [1, 2, 3, 4, 5, 6, 7, 8, ... 4 more] }"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := (Match{}).String(); got != "{}" {
		t.Errorf("nothing is %s", got)
	}
	for _, bad := range []string{`{"dport":["0"]}`, `{"mark":["x"]}`, `{"to":["x"]}`, `{"vlan":[true]}`, `{"proto":["x"]}`, `{"mac":["x"]}`, `{"dscp":["x"]}`} {
		if err := json.Unmarshal([]byte(bad), &back); err == nil {
			t.Errorf("%s is read as %v", bad, back)
		}
	}
}

func TestCheck(t *testing.T) {
	for _, r := range []struct{ match, key, text string }{
		{"dport=443", "", ""},
		{"dport=443 proto=icmp proto=tcp", "", ""},
		{"from=10.0.0.0/8 from=::/0 to=::1", "", ""},
		{"", "", "a match without a key would fit every packet"},
		{"dport=443 proto=icmp", "dport", "dport with proto icmp, which has no ports"},
		{"port=443 proto=gre", "port", "port with proto gre, which has no ports"},
		{"from=10.0.0.0/8 to=::/0", "to", "to is of IPv6, and from of IPv4: no packet has both"},
		{"from=10.0.0.0/8 to=11.0.0.0/8 host=12.0.0.1", "host", "host lies neither in from nor in to, and no packet has all three"},
		{"to=::1 host=10.0.0.1", "host", "host is of IPv4, and to of IPv6: no packet has both"},
	} {
		m := of(t, r.match)
		key, text, hint := m.Check()
		if key != r.key || text != r.text || (text == "") != (hint == "") {
			t.Errorf("%v: %q, %q, hint %q", m, key, text, hint)
		}
	}
	var m Match
	for i := range 300 {
		a := fmt.Sprintf("10.0.%d.%d", i/256, i%256)
		if err := m.Add("from", a); err != nil {
			t.Fatal(err)
		}
		if err := m.Add("to", a); err != nil {
			t.Fatal(err)
		}
	}
	if _, text, _ := m.Check(); text != "a match with 90000 combinations of addresses; it has at most 65536" {
		t.Errorf("%q", text)
	}
}

// FuzzAdd: a value or an error, never both; what was read is read back from what it
// prints, and no message can command a terminal.
func FuzzAdd(f *testing.F) {
	for i, s := range []string{"10.0.0.0/8", "::1", "10/8", "1.2.3.4:443", "a.b", "8000-8100", "https", "tcp/443", "EF", "184", "0x10/0xff", "52:54:00:12:34:56", "4094", "!1", "1,2"} {
		for k := range Keys() {
			if (i+k)%2 == 0 {
				f.Add(k, s)
			}
		}
	}
	f.Fuzz(func(t *testing.T, k int, s string) {
		key := Keys()[(k%len(Keys())+len(Keys()))%len(Keys())]
		var m Match
		if err := m.Add(key, s); err != nil {
			if !reflect.DeepEqual(m, Match{}) {
				t.Errorf("%s %q: %v beside an error", key, s, m)
			}
			if text := err.Error(); strings.ContainsFunc(text, func(r rune) bool { return r < ' ' }) {
				t.Errorf("%s %q: the error has a control character: %q", key, s, text)
			}
			return
		}
		value := strings.Trim(strings.TrimSuffix(strings.TrimPrefix(m.String(), "{ "+key+" = "), " }"), `"`)
		var back Match
		if err := back.Add(key, value); err != nil || !reflect.DeepEqual(m, back) {
			t.Errorf("%s %q is %v, which is read as %v, error %v", key, s, m, back, err)
		}
		b, err := json.Marshal(m)
		back = Match{}
		if err != nil || json.Unmarshal(b, &back) != nil || !reflect.DeepEqual(m, back) {
			t.Errorf("%s %q is %s, which is read as %v", key, s, b, back)
		}
		if m.Rank(&Packet{}) != 0 && !slices.Contains([]string{"mark", "dscp"}, key) {
			t.Errorf("%v fits a packet of which nothing is known", m)
		}
	})
}
