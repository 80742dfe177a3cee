package survey

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// told is a filter as tc is told it, its protocol first, and what is read of it.
type told struct {
	words, match string
	unsaid       string // what is said of it, joined
	beside       string
	all          bool
}

// reads holds that filters are read as what they say.
func reads(t *testing.T, kind string, filters []told) {
	t.Helper()
	ns := tctest.New(t, lab.PairConfig{}).Near
	tctest.TC(t, ns, "qdisc", "add", "dev", "eth0", "root", "handle", "1:", "htb")
	for _, c := range []string{"1:1", "1:2"} {
		tctest.TC(t, ns, "class", "add", "dev", "eth0", "parent", "1:", "classid", c, "htb", "rate", "1mbit")
	}
	c, err := rtnl.Open(rtnl.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	for _, tt := range filters {
		tctest.TC(t, ns, append(append(strings.Fields("filter add dev eth0 parent 1: pref 5 protocol"), slices.Insert(strings.Fields(tt.words), 1, kind)...), "classid", "1:2")...)
		x, err := Read(c, "eth0")
		if err != nil {
			t.Fatal(err)
		}
		if len(x.Filters) != 1 {
			t.Fatalf("%s: %d filters", tt.words, len(x.Filters))
		}
		f := x.Filters[0]
		if got := f.Match.Text(); got != tt.match || strings.Join(f.Unsaid, "; ") != tt.unsaid || strings.Join(f.Beside, "; ") != tt.beside || f.All != tt.all || f.Class != 1<<16|2 || f.Pref != 5 {
			t.Errorf("%s: %s, all %v, unsaid %q, beside %q, class %v", tt.words, got, f.All, f.Unsaid, f.Beside, f.Class)
		}
		tctest.TC(t, ns, "filter", "del", "dev", "eth0", "parent", "1:")
	}
}

// What u32 filters say of packets.
func TestKernelU32(t *testing.T) {
	reads(t, "u32", []told{
		{words: "ip match ip src 10.0.0.0/8 match ip dst 192.0.2.1", match: `{ from = "10.0.0.0/8", to = "192.0.2.1" }`},
		{words: "ip match ip protocol 6 0xff match ip sport 443 0xffff match ip dport 8000 0xffc0", match: `{ proto = "tcp", sport = 443, dport = "8000-8063" }`},
		{words: "ip match ip dport 1 0xfff0", match: `{ dport = "1-15" }`},
		{words: "ip match ip tos 0xb8 0xfc", match: `{ dscp = "EF" }`},
		{words: "ip match ip tos 0x10 0xff", match: "{ dscp = 4 }", beside: "that there is no ECN"},
		{words: "ip match ip tos 0xe0 0xe0", match: `{ dscp = ["CS7", 57, 58, 59, 60, 61, 62, 63] }`},
		{words: "ip match ip tos 0x01 0x03", match: "{}", unsaid: "it asks for bits of ECN (0x1/0x3)"},
		{words: "ipv6 match ip6 dst 2001:db8::/32 match ip6 protocol 17 0xff match ip6 dport 53 0xffff", match: `{ to = "2001:db8::/32", proto = "udp", dport = 53 }`},
		{words: "ipv6 match ip6 priority 0xb8 0xfc", match: `{ dscp = "EF" }`},
		{words: "ipv6 match ip6 flowlabel 5 0xfffff", match: "{}", unsaid: "it asks for bytes from 1 (0x000005/0x0fffff)"},
		{words: "ip match u32 0 0", match: "{}", all: true},
		{words: "all match u32 0 0", match: "{}", all: true},
		{words: "ip match ip dst 0.0.0.0/0", match: "{}", all: true},
		{words: "all match ip dst 10.0.0.0/8", match: `{ to = "10.0.0.0/8" }`},
		{words: "ip match ip ihl 5 0xf match ip dport 22 0xffff", match: "{ dport = 22 }"},
		{words: "ip match ip nofrag match ip dport 22 0xffff", match: "{ dport = 22 }", beside: "that packets are no fragments"},
		{words: "ip match ip firstfrag match ip df", match: "{}", unsaid: "it asks for fragments"},
		{words: "ip match ip protocol 1 0xff match ip icmp_type 8 0xff", match: `{ proto = "icmp" }`, unsaid: "it asks for the type of a message (0x08/0xff)"},
		{words: "ip match ip protocol 6 0xff match u8 0x02 0x02 at 33", match: `{ proto = "tcp" }`, unsaid: "it asks for TCP's flags (0x02/0x02)"},
		{words: "ip match u16 0x0000 0xffc0 at 2", match: "{}", unsaid: "it asks for the packet's length (0x0000/0xffc0)"},
		{words: "ip match ip dport 81 0xff0f", match: "{}", unsaid: "it asks for bits of a port (0x1/0xff0f)"},
		{words: "ip match u32 0x0a000001 0xff0000ff at 16", match: "{}", unsaid: "it asks for bits of the receiver's address (0x0a000001/0xff0000ff)"},
		{words: "ip match ip protocol 6 0x0f", match: "{}", unsaid: "it asks for protocols in bits (0x6/0xf)"},
		{words: "ip match tcp dst 80 0xffff", match: "{}", unsaid: "it looks behind a header of variable length (nexthdr), which takes a hash table to find"},
		{words: "ip match u16 0x0800 0xffff at -2 match u16 0x0011 0xffff at -4 match u32 0x5254aabb 0xffffffff at -8", match: `{ mac = "52:54:aa:bb:00:11" }`, beside: "that the MAC address is the sender's"},
		{words: "arp match u32 0 0", match: "{}", all: true, unsaid: "it is for packets of protocol 0x0806"},
	})
}

// The same of flower, which this machine's kernel may lack and that of TestVM has.
func TestKernelFlower(t *testing.T) {
	if !vm.Inside() {
		ns := tctest.NetNS(t)
		tctest.TC(t, ns, "qdisc", "add", "dev", "lo", "root", "handle", "1:", "htb")
		cmd := exec.CommandContext(t.Context(), tctest.RequireProgram(t, "tc"), strings.Fields("filter add dev lo parent 1: protocol ip flower classid 1:1")...)
		if err := ns.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if cmd.Wait() != nil {
			return
		}
	}
	reads(t, "flower", []told{
		{words: "all", match: "{}", all: true},
		{words: "ip", match: "{}", all: true},
		{words: "ip src_ip 10.0.0.0/8 dst_ip 192.0.2.1", match: `{ from = "10.0.0.0/8", to = "192.0.2.1" }`},
		{words: "ip ip_proto tcp src_port 443 dst_port 8000-8100", match: `{ proto = "tcp", sport = 443, dport = "8000-8100" }`},
		{words: "ip ip_proto udp dst_port 53", match: `{ proto = "udp", dport = 53 }`},
		{words: "ip ip_proto sctp dst_port 53", match: `{ proto = "sctp", dport = 53 }`},
		{words: "ip ip_proto tcp dst_port 0x1f40/0xffc0", match: `{ proto = "tcp", dport = "8000-8063" }`},
		{words: "ipv6 dst_ip 2001:db8::/32 ip_proto udp", match: `{ to = "2001:db8::/32", proto = "udp" }`},
		{words: "ip ip_tos 0xb8/0xfc", match: `{ dscp = "EF" }`},
		{words: "802.1q vlan_id 7 vlan_ethtype ip dst_ip 10.0.0.0/8", match: `{ to = "10.0.0.0/8", vlan = 7 }`},
		{words: "802.1q vlan_prio 5", match: "{}", unsaid: "it is for frames with any tag: a match names one; it asks for the priority of a VLAN"},
		{words: "ip dst_mac 52:54:00:12:34:56", match: `{ mac = "52:54:00:12:34:56" }`, beside: "that the MAC address is the receiver's"},
		{words: "ip dst_mac 52:54:00:00:00:00/24", match: "{}", unsaid: "it asks for MAC addresses in bits or on both sides"},
		{words: "ip ip_proto icmp type 8", match: `{ proto = "icmp" }`, unsaid: "it asks for the type of a message"},
		{words: "ip ip_flags frag", match: "{}", unsaid: "it asks for fragments"},
		{words: "ip ip_ttl 64", match: "{}", unsaid: "it asks for a time to live"},
		{words: "ip ip_proto tcp tcp_flags 0x2/0x2", match: `{ proto = "tcp" }`, unsaid: "it asks for TCP's flags"},
		{words: "ip ct_state +trk+est", match: "{}", unsaid: "it asks for the state of the connection"},
		{words: "ip action drop", match: "{}", unsaid: "it drops packets: that is the firewall's"},
	})
}

// A class of cbq, which no kernel at hand has: what "tc class add ... classid 1:10 cbq rate
// 512kbit prio 1 bounded" made up to Linux 6.7.
func TestCBQ(t *testing.T) {
	e := rtnl.Encoder{}
	e.TcMsg(rtnl.TcMsg{Index: 5, Handle: 0x10010, Parent: 0x10001})
	e.AttrString(unix.TCA_KIND, "cbq")
	e.Nest(unix.TCA_OPTIONS, func() {
		e.Attr(tcaCBQShare, func() { // struct tc_cbq_lssopt
			e.B = append(e.B, 0, cbqBounded, 5, 1)
			e.B = append(e.B, make([]byte, 16)...)
		})
		e.Attr(tcaCBQPriority, func() { e.B = append(e.B, 0, 1, 1, 0, 0x40, 6, 0, 0, 0, 0, 0, 0) }) // struct tc_cbq_wrropt
		e.Attr(tcaCBQRate, func() { e.RateSpec(rtnl.RateSpec{Rate: 64_000}) })
	})
	got, ok, err := decodeClass(e.B)
	if err != nil || !ok {
		t.Fatal(ok, err)
	}
	want := Class{Kind: "cbq", Bounded: true, Class: hierarchy.Class{ID: 0x10010, Parent: 0x10001, Rate: 512 * hierarchy.Kbit}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

// What is cut short is an error, or is left out, and never a crash.
func TestTruncated(t *testing.T) {
	e := rtnl.Encoder{}
	e.Attr(tcaU32Sel, func() { e.B = append(e.B, 0, 0, 9); e.B = append(e.B, make([]byte, 40)...) })
	f := rtnl.Filter{TcMsg: rtnl.TcMsg{Handle: 0x80000800, Info: 1<<16 | 8}, Kind: "u32", Options: e.B}
	if _, _, err := decodeFilter(&f); err == nil {
		t.Error("a selector with fewer keys than it says is read")
	}
	for _, kind := range []string{"u32", "flower", "fw", "matchall", "basic", "bpf", "route", "cgroup"} {
		for typ := range uint16(120) {
			for _, n := range []int{0, 1, 3, 5, 6, 17} {
				e := rtnl.Encoder{}
				e.Attr(typ, func() { e.B = append(e.B, make([]byte, n)...) })
				f := rtnl.Filter{TcMsg: rtnl.TcMsg{Handle: 0x80000801, Info: 1<<16 | 8}, Kind: kind, Options: e.B}
				_, _, _ = decodeFilter(&f)
			}
		}
	}
}
