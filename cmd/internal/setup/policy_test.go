//go:build linux

package setup

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/qdisc"
)

var update = flag.Bool("update", false, "write the golden files")

func found(t *testing.T, binding, text string) Found {
	t.Helper()
	b, err := bind.Parse(binding)
	if err != nil {
		t.Fatal(err)
	}
	return Found{b, text}
}

// machines are surveys by the names of their golden files.
func machines(t *testing.T) map[string]*Survey {
	prefix := netip.MustParsePrefix
	odd := &Survey{
		Uplinks: []Uplink{{Name: `eth"0'.100`, What: "vlan", IPv6: true}, {Name: `a\b`, What: "tunnel (tun)", IPv4: true}, {Name: "wlp*", What: "physical", IPv4: true}},
		LANs: []LAN{
			{Name: `br "x`, Prefixes: []netip.Prefix{prefix("192.168.1.0/24"), prefix("fd00:1::/64")}},
			{Name: "eth1.5", Prefixes: []netip.Prefix{prefix("192.168.1.0/24")}},
			{Name: "eth1_5", Prefixes: []netip.Prefix{prefix("192.168.0.0/16")}},
		},
		Listeners: []Found{
			found(t, `unit:foo@bar\x2dbaz.service`, "listens on tcp 80"),
			found(t, `unit:foo@bar-x2dbaz.service`, "listens on tcp 81"),
			found(t, "unit:rate.service", "listens on tcp 82\nversion = 2"),
			found(t, "unit:rest.service", "listens on udp 53"),
			found(t, "unit:backup.service", "listens on tcp 873"),
			found(t, "unit:calls.service", "listens on tcp 5060"),
			found(t, "unit:guests.service", "listens on tcp 1"),
			found(t, `cgroup:/o'penrc."é"`, "listens on tcp 8080"),
			found(t, "cgroup:/a/"+strings.Repeat("long", 40), "listens on tcp 8081"),
		},
		Containers: []Found{found(t, "container:a.b_c-d", "container in /docker/1\x1b[2J"), found(t, "container:rest", ""), found(t, "cgroup:/kubepods", "")},
		Users:      []Found{found(t, "user:first.last", "900 processes"), found(t, `user:DOM\jo`, "9 processes"), found(t, "user:1000", "8 processes")},
		SSH:        []uint16{22, 2222},
		Gaps:       []string{"something:\nversion = 3"},
	}
	crowd := &Survey{Uplinks: []Uplink{{Name: "bond0", What: "bond", Speed: 20 * hierarchy.Gbit, IPv4: true}}}
	for i := range 3 * mostOffers {
		crowd.Containers = append(crowd.Containers, found(t, fmt.Sprintf("container:c%d", i), "container"))
		crowd.Listeners = append(crowd.Listeners, found(t, fmt.Sprintf("unit:u%d.service", i), "listens on tcp 1"))
		crowd.Users = append(crowd.Users, found(t, fmt.Sprintf("user:u%d", i), "5 processes"))
	}
	return map[string]*Survey{
		"plain": {Uplinks: []Uplink{{Name: "eth0", What: "physical", Speed: hierarchy.Gbit, IPv4: true, IPv6: true}}},
		"usual": {
			Uplinks: []Uplink{
				{Name: "eth0", What: "physical", Speed: hierarchy.Gbit, IPv4: true, IPv6: true},
				{Name: "wlan0", What: "physical", IPv4: true, Root: hierarchy.Root{Kind: "cake", Handle: 0x80010000}},
			},
			LANs:       []LAN{{"lan0", []netip.Prefix{prefix("192.168.1.0/24"), prefix("2001:db8:1::/64")}}, {"wg0", []netip.Prefix{prefix("10.8.0.0/24")}}},
			Forwards:   true,
			SSH:        []uint16{2222},
			Listeners:  []Found{found(t, "unit:asterisk.service", "listens on udp 5060"), found(t, "unit:gitlab-runner.service", "listens on tcp 8093"), found(t, "unit:nginx.service", "listens on tcp 80, 443"), found(t, "unit:rsync.service", "listens on tcp 873"), found(t, "unit:squid.service", "listens on tcp 3128")},
			Containers: []Found{found(t, "container:shop", "container in /system.slice/docker-1.scope")},
			Users:      []Found{found(t, "user:alice", "12 processes")},
		},
		"bare": {
			Uplinks: []Uplink{{Name: "br0", What: "bridge", IPv4: true, Bridge: true, Root: hierarchy.Root{Kind: "htb", Handle: hierarchy.ID(0)}}},
			LANs:    []LAN{{"lan0", []netip.Prefix{prefix("192.168.1.0/24")}}},
			NoMatch: errors.New("it takes binding bpf"),
			SSH:     []uint16{22},
			Logins:  []Found{found(t, "unit:ssh.service", "listens on tcp 22")},
		},
		"nohost": {
			Uplinks: []Uplink{{Name: "eth0", What: "physical", IPv4: true}},
			LANs:    []LAN{{"lan0", []netip.Prefix{prefix("192.168.1.0/24")}}},
			NoHost:  errors.New("host: the firewall translates addresses here"),
		},
		"odd":   odd,
		"crowd": crowd,
	}
}

// ready is a line that is not in force; see [policy.Note].
var ready = regexp.MustCompile(`(?m)^#([^ #\n].*)$`)

// checked holds that a policy is right, and gives the names of its branches and what is bound.
func checked(t *testing.T, text string) (branches, bound []string) {
	t.Helper()
	p, err := policy.Parse("policy.toml", strings.NewReader(text), qdisc.Kinds())
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	if all := p.Unquoted(policy.VLAN); len(all)+len(p.Warnings) > 0 {
		t.Errorf("warnings: %v %v\n%s", all, p.Warnings, text)
	}
	for _, tree := range p.Trees {
		for b := range tree.All() {
			branches = append(branches, string(b.Path))
			for _, x := range b.Bind {
				bound = append(bound, x.String())
			}
		}
	}
	return branches, bound
}

// Each policy is right as it is, with each of its lines put in force, and with all of them.
// With all of them, everything that was found is bound on each interface, or said to be left
// out.
func TestPolicyRight(t *testing.T) {
	for name, s := range machines(t) {
		for _, p := range Purposes {
			for _, m := range []*Measurement{nil, {Host: "192.0.2.1:5201", By: "iperf3", Time: 5 * time.Second, Interface: s.Uplinks[0].Name, Up: 12_345_678, Down: 345_678_901}} {
				t.Run(name+"/"+string(p), func(t *testing.T) {
					text := s.Policy(p, "", m)
					checked(t, text)
					for _, at := range ready.FindAllStringIndex(text, -1) {
						checked(t, text[:at[0]]+text[at[0]+1:])
					}
					branches, bound := checked(t, ready.ReplaceAllString(text, "$1"))
					if want := len(s.Uplinks) * (len(s.Listeners) + len(s.Containers) + len(s.Users)); name != "crowd" {
						for _, f := range append(append(append([]Found{}, s.Listeners...), s.Containers...), s.Users...) {
							if n := strings.Count("\n"+strings.Join(bound, "\n")+"\n", "\n"+f.Bind.String()+"\n"); n != len(s.Uplinks) {
								t.Errorf("%s is bound %d times in %v, of %d", f.Bind, n, branches, want)
							}
						}
					} else if !strings.Contains(text, fmt.Sprintf("%d more were found.", 2*mostOffers)) {
						t.Errorf("what is left out is not said\n%s", text)
					}
				})
			}
		}
	}
}

// What the policies look like.
func TestPolicyGolden(t *testing.T) {
	all := machines(t)
	for _, x := range []struct {
		file    string
		survey  *Survey
		purpose Purpose
		why     string
		m       *Measurement
	}{
		{"home", all["plain"], Home, "nothing says otherwise", nil},
		{"home-measured", all["plain"], Home, "", &Measurement{Host: "192.0.2.1:5201", By: "iperf3", Time: 5 * time.Second, Interface: "eth0", Up: 40_123_456, Down: 99_876_543}},
		{"server", all["usual"], Server, "", nil},
		{"tenants", all["odd"], Tenants, "", nil},
		{"build", all["usual"], Build, "", nil},
		{"router", all["usual"], Router, "it forwards packets, and there are networks behind lan0", nil},
		{"router-nohost", all["nohost"], Router, "", nil},
		{"server-bare", all["bare"], Server, "", nil},
		{"tenants-bare", all["bare"], Tenants, "", nil},
		{"build-bare", all["bare"], Build, "", nil},
	} {
		t.Run(x.file, func(t *testing.T) {
			got, file := x.survey.Policy(x.purpose, x.why, x.m), filepath.Join("testdata", x.file+".toml")
			if *update {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("(-want +got)\n%s", diff)
			}
		})
	}
}

// What a machine is taken to be for, and by what.
func TestGuess(t *testing.T) {
	lan := []LAN{{"lan0", []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}}}
	unit, container := []Found{found(t, "unit:nginx.service", "listens on tcp 80")}, []Found{found(t, "container:shop", "")}
	alice, bob := found(t, "user:alice", "9 processes"), found(t, "user:bob", "7 processes")
	for _, x := range []struct {
		name string
		s    Survey
		want Purpose
		why  string
	}{
		{"nothing", Survey{}, Home, "nothing says otherwise"},
		{"a LAN, and it does not forward", Survey{LANs: lan}, Home, "nothing says otherwise"},
		{"it forwards for containers", Survey{Forwards: true, Containers: container}, Tenants, "containers run: shop"},
		{"it forwards for a LAN", Survey{Forwards: true, LANs: lan, Containers: container}, Router, "it forwards packets, and there are networks behind lan0"},
		{"a service, one user", Survey{Listeners: unit, Users: []Found{alice}}, Server, "unit:nginx.service listens on tcp 80"},
		{"users", Survey{Listeners: unit, Users: []Found{alice, bob}}, Tenants, "several users have many processes: alice, bob"},
	} {
		if got, why := x.s.Guess(); got != x.want || why != x.why {
			t.Errorf("%s: %s, %s", x.name, got, why)
		}
	}
}

func TestLess(t *testing.T) {
	for b, want := range map[hierarchy.Bandwidth]hierarchy.Bandwidth{
		0: 0, 1000: 950, 40_123_456: 38_100_000, 999_999_999: 949_000_000, 12_345: 11_600,
	} {
		if got := less(b); got != want {
			t.Errorf("%d: %d, want %d", b, got, want)
		}
	}
}

// What was measured counts where it was by an uplink, and is a line.
func TestAccept(t *testing.T) {
	s := &Survey{Uplinks: []Uplink{{Name: "eth0"}, {Name: "wlan0"}}}
	for _, x := range []struct {
		m    Measurement
		want string
	}{
		{Measurement{Interface: "wlan0", Up: hierarchy.Mbit}, ""},
		{Measurement{Host: "192.168.1.1:5201", Interface: "lan0", Up: hierarchy.Gbit}, "192.168.1.1:5201 is reached by lan0, which no default route leads to: measure to a host that is reached by eth0"},
		{Measurement{Host: "192.0.2.1:5201", Interface: "eth0", Up: 1000}, "no more than 1kbit got through to 192.0.2.1:5201: that is no line to divide"},
	} {
		got := ""
		if err := s.accept(&x.m); err != nil {
			got = err.Error()
		}
		if got != x.want {
			t.Errorf("%+v: %q", x.m, got)
		}
	}
}
