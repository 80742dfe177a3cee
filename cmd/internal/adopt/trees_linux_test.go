package adopt_test

import (
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/internal/adopt"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/survey"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

var update = flag.Bool("update", false, "write the policies of testdata anew")

// tree is a tree that a tool makes, by the commands with which it does.
type tree struct {
	name   string
	qdiscs string // kinds that the kernel has to have
	filter string // the same of filters
	make   string
}

// trees are what people have. Those of tools are their own commands, as read in their
// source; numbers are chosen here.
var trees = []tree{
	{name: "htb", filter: "fw flower matchall", qdiscs: "fq_codel sfq prio", make: `
tc qdisc add dev eth0 root handle 1: htb default 30
tc class add dev eth0 parent 1: classid 1:1 htb rate 100mbit ceil 100mbit burst 64k overhead 24
tc class add dev eth0 parent 1:1 classid 1:10 htb rate 20mbit ceil 150mbit prio 0 overhead 24
tc class add dev eth0 parent 1:1 classid 1:20 htb rate 60mbit ceil 80mbit prio 1 quantum 3000 overhead 24
tc class add dev eth0 parent 1:1 classid 1:30 htb rate 30mbit prio 2 overhead 24
tc class add dev eth0 parent 1:20 classid 1:21 htb rate 30mbit ceil 80mbit prio 1 overhead 24
tc class add dev eth0 parent 1:20 classid 1:22 htb rate 30mbit ceil 80mbit prio 1 burst 50k overhead 24
tc class add dev eth0 parent 1:20 classid 1:23 htb rate 1mbit prio 9 overhead 24
tc qdisc add dev eth0 parent 1:10 handle 10: fq_codel limit 1000 target 3ms
tc qdisc add dev eth0 parent 1:21 handle 21: sfq perturb 10
tc qdisc add dev eth0 parent 1:22 handle 22: prio
tc filter add dev eth0 parent 1: protocol ip pref 1 u32 match ip protocol 6 0xff match ip dport 22 0xffff flowid 1:10
tc filter add dev eth0 parent 1: protocol ipv6 pref 2 u32 match ip6 protocol 6 0xff match ip6 dport 22 0xffff flowid 1:10
tc filter add dev eth0 parent 1: protocol ip pref 3 u32 match ip dst 10.0.0.0/8 flowid 1:20
tc filter add dev eth0 parent 1: protocol all pref 4 handle 0x5/0xff fw flowid 1:21
tc filter add dev eth0 parent 1: protocol ip pref 5 flower ip_proto udp dst_port 16384-32767 src_ip 192.168.7.0/24 action ok flowid 1:10
tc filter add dev eth0 parent 1: protocol ip pref 6 flower ip_proto tcp tcp_flags 0x2/0x2 flowid 1:10
tc filter add dev eth0 parent 1: protocol 802.1q pref 7 flower vlan_id 7 flowid 1:10
tc filter add dev eth0 parent 1: protocol ip pref 8 u32 match ip tos 0xb8 0xfc flowid 1:10
tc filter add dev eth0 parent 1: protocol ip pref 9 u32 match u16 0x0000 0xffc0 at 2 match ip protocol 6 0xff flowid 1:10
tc filter add dev eth0 parent 1: protocol ip pref 10 u32 match ip sport 1024 0xfc00 flowid 1:99
tc filter add dev eth0 parent 1:20 protocol ip pref 1 u32 match ip dst 10.1.2.3 flowid 1:21
tc filter add dev eth0 parent 1:20 protocol all pref 2 matchall flowid 1:22
`},
	// wondershaper 1.4.1, https://github.com/magnific0/wondershaper, wondershaper -a eth0 -d 16000
	// -u 4000 with a host in HIPRIODST and a port in NOPRIOPORTDST. Its filters for IPv6 have the
	// preference of those for IPv4, and the kernel refuses them.
	{name: "wondershaper", qdiscs: "sfq", make: `
tc qdisc add dev eth0 root handle 1: htb default 20
tc class add dev eth0 parent 1: classid 1:1 htb rate 4000kbit prio 5
tc class add dev eth0 parent 1:1 classid 1:10 htb rate 800kbit ceil 3800kbit prio 1
tc class add dev eth0 parent 1:1 classid 1:20 htb rate 1600kbit ceil 3800kbit prio 2
tc class add dev eth0 parent 1:1 classid 1:30 htb rate 800kbit ceil 3600kbit prio 3
tc qdisc add dev eth0 parent 1:10 handle 10: sfq perturb 10 quantum 6000
tc qdisc add dev eth0 parent 1:20 handle 20: sfq perturb 10 quantum 6000
tc qdisc add dev eth0 parent 1:30 handle 30: sfq perturb 10 quantum 6000
tc filter add dev eth0 parent 1: protocol ip prio 10 u32 match ip tos 0x10 0xff flowid 1:10
tc filter add dev eth0 parent 1: protocol ip prio 10 u32 match ip dst 192.0.2.7 flowid 1:10
tc filter add dev eth0 parent 1: protocol ip prio 11 u32 match ip protocol 1 0xff flowid 1:10
tc filter add dev eth0 parent 1: protocol ip prio 12 u32 match ip protocol 6 0xff match u8 0x05 0x0f at 0 match u16 0x0000 0xffc0 at 2 flowid 1:10
tc filter add dev eth0 parent 1: protocol ip prio 14 u32 match ip dport 6881 0xffff flowid 1:30
tc filter add dev eth0 parent 1: protocol ip prio 18 u32 match ip dst 0.0.0.0/0 flowid 1:20
ip link add ifb7 type ifb
ip link set ifb7 up
tc qdisc add dev eth0 handle ffff: ingress
tc filter add dev eth0 parent ffff: protocol ip u32 match u32 0 0 action mirred egress redirect dev ifb7
tc filter add dev eth0 parent ffff: protocol ipv6 u32 match u32 0 0 action mirred egress redirect dev ifb7
tc qdisc add dev ifb7 root handle 2: htb
tc class add dev ifb7 parent 2: classid 2:1 htb rate 16000kbit
tc filter add dev ifb7 protocol ip parent 2: prio 1 u32 match ip src 0.0.0.0/0 flowid 2:1
tc filter add dev ifb7 protocol ipv6 parent 2: prio 2 u32 match ip6 src ::/0 flowid 2:1
`},
	// wondershaper 1.4.1 -a eth0 -d 16000: it makes an htb without classes for what is sent.
	{name: "wondershaper-down", make: `
tc qdisc add dev eth0 root handle 1: htb default 20
ip link add ifb7 type ifb
ip link set ifb7 up
tc qdisc add dev eth0 handle ffff: ingress
tc filter add dev eth0 parent ffff: protocol ip u32 match u32 0 0 action mirred egress redirect dev ifb7
tc qdisc add dev ifb7 root handle 2: htb
tc class add dev ifb7 parent 2: classid 2:1 htb rate 16000kbit
tc filter add dev ifb7 protocol ip parent 2: prio 1 u32 match ip src 0.0.0.0/0 flowid 2:1
`},
	// tcconfig 0.28, https://github.com/thombashi/tcconfig, tcset eth0 --rate 100Mbps --delay 100ms
	// --loss 0.1% --network 192.168.0.10 --port 8080
	{name: "tcconfig", qdiscs: "netem", make: `
tc qdisc add dev eth0 root handle 1a1a: htb default 1
tc class add dev eth0 parent 1a1a: classid 1a1a:1 htb rate 32000000.0kbit
tc class add dev eth0 parent 1a1a: classid 1a1a:139 htb rate 100000.0Kbit ceil 100000.0Kbit burst 1250.0KB cburst 1250.0KB
tc qdisc add dev eth0 parent 1a1a:139 handle 22b3: netem delay 100ms loss 0.1%
tc filter add dev eth0 protocol ip parent 1a1a: prio 5 u32 match ip dst 192.168.0.10/32 match ip src 0.0.0.0/0 match ip dport 8080 0xffff flowid 1a1a:139
`},
	// sqm-scripts' simple.qos, https://github.com/tohojo/sqm-scripts, with UPLINK=8000 and
	// DOWNLINK=40000, fq_codel, LINKLAYER=ethernet OVERHEAD=44. The diffserv function's filters
	// are those of its functions.sh.
	{name: "sqm", qdiscs: "fq_codel", filter: "fw", make: `
tc qdisc add dev eth0 root handle 1: stab mtu 2047 tsize 512 mpu 64 overhead 44 linklayer ethernet htb default 12
tc class add dev eth0 parent 1: classid 1:1 htb quantum 1500 rate 8000kbit ceil 8000kbit
tc class add dev eth0 parent 1:1 classid 1:10 htb quantum 1500 rate 8000kbit ceil 8000kbit prio 0
tc class add dev eth0 parent 1:1 classid 1:11 htb quantum 1500 rate 128kbit ceil 2666kbit prio 1
tc class add dev eth0 parent 1:1 classid 1:12 htb quantum 1500 rate 1333kbit ceil 7984kbit prio 2
tc class add dev eth0 parent 1:1 classid 1:13 htb quantum 1500 rate 1333kbit ceil 7984kbit prio 3
tc qdisc add dev eth0 parent 1:11 handle 110: fq_codel limit 1001 target 5ms noecn quantum 300
tc qdisc add dev eth0 parent 1:12 handle 120: fq_codel limit 1001 target 5ms noecn quantum 300
tc qdisc add dev eth0 parent 1:13 handle 130: fq_codel limit 1001 target 5ms noecn quantum 300
tc filter add dev eth0 parent 1:0 protocol all prio 999 u32 match ip protocol 0 0x00 flowid 1:12
tc filter add dev eth0 parent 1:0 protocol ip prio 1 handle 1 fw classid 1:11
tc filter add dev eth0 parent 1:0 protocol ip prio 2 handle 2 fw classid 1:12
tc filter add dev eth0 parent 1:0 protocol ip prio 3 handle 3 fw classid 1:13
tc filter add dev eth0 parent 1:0 protocol ipv6 prio 4 handle 1 fw classid 1:11
tc filter add dev eth0 parent 1:0 protocol ipv6 prio 5 handle 2 fw classid 1:12
tc filter add dev eth0 parent 1:0 protocol ipv6 prio 6 handle 3 fw classid 1:13
tc filter add dev eth0 parent 1:0 protocol arp prio 7 handle 1 fw classid 1:11
tc filter add dev eth0 parent 1:0 protocol ip prio 8 u32 match ip protocol 1 0xff flowid 1:13
tc filter add dev eth0 parent 1:0 protocol ipv6 prio 9 u32 match ip6 protocol 1 0xff flowid 1:13
ip link add ifb4eth0 type ifb
tc qdisc add dev eth0 handle ffff: ingress
tc qdisc add dev ifb4eth0 root handle 1: stab mtu 2047 tsize 512 mpu 64 overhead 44 linklayer ethernet htb default 10
tc class add dev ifb4eth0 parent 1: classid 1:1 htb quantum 1500 rate 40000kbit ceil 40000kbit
tc class add dev ifb4eth0 parent 1:1 classid 1:10 htb quantum 1500 rate 40000kbit ceil 40000kbit prio 0
tc qdisc add dev ifb4eth0 parent 1:10 handle 110: fq_codel limit 1001 target 5ms ecn flows 1024
ip link set dev ifb4eth0 up
tc filter add dev eth0 parent ffff: protocol all prio 10 u32 match u32 0 0 flowid 1:1 action mirred egress redirect dev ifb4eth0
`},
	// systemd.network(5): [HierarchyTokenBucket] Handle=2 DefaultClass=31 with two classes, a
	// [FairQueueingControlledDelay] and a [TokenBucketFilter] below them.
	{name: "networkd", qdiscs: "fq_codel tbf", make: `
tc qdisc add dev eth0 root handle 2: htb default 31
tc class add dev eth0 parent 2: classid 2:30 htb rate 10mbit ceil 15mbit
tc class add dev eth0 parent 2: classid 2:31 htb rate 500kbit ceil 500kbit
tc qdisc add dev eth0 parent 2:30 handle 30: fq_codel limit 2000 flows 512 quantum 1400 ce_threshold 100ms
tc qdisc add dev eth0 parent 2:31 handle 31: tbf rate 400kbit burst 10kb latency 100ms
`},
	// What Debian's wondershaper 1.1a makes on a kernel that has no cbq (Linux 6.8 and later):
	// wondershaper eth0 6000 512
	{name: "wondershaper-debian", filter: "police", make: `
tc qdisc add dev eth0 handle ffff: ingress
tc filter add dev eth0 parent ffff: protocol ip prio 50 u32 match ip src 0.0.0.0/0 police rate 6000kbit burst 10k drop flowid :1
`},
	{name: "deep", make: `
tc qdisc add dev eth0 root handle 1: htb default 22
tc class add dev eth0 parent 1: classid 1:1 htb rate 10mbit
tc class add dev eth0 parent 1:1 classid 1:2 htb rate 6mbit ceil 8mbit
tc class add dev eth0 parent 1:2 classid 1:21 htb rate 3mbit ceil 2mbit
tc class add dev eth0 parent 1:2 classid 1:22 htb rate 3mbit
tc class add dev eth0 parent 1:1 classid 1:3 htb rate 5mbit
tc filter add dev eth0 parent 1: protocol ip pref 1 u32 match ip dport 80 0xffff flowid 1:21
tc filter add dev eth0 parent 1: protocol ip pref 2 u32 match ip dst 10.0.0.0/8 flowid 1:3
tc filter add dev eth0 parent 1: protocol ip pref 3 u32 match ip dst 10.1.0.0/16 flowid 1:21
`},
	{name: "undefault", make: `
tc qdisc add dev eth0 root handle 1: htb
tc class add dev eth0 parent 1: classid 1:1 htb rate 10mbit
tc class add dev eth0 parent 1:1 classid 1:2 htb rate 10mbit
tc filter add dev eth0 parent 1: protocol all pref 1 u32 match ip protocol 17 0xff flowid 1:2
`},
	{name: "tbf", make: `tc qdisc add dev eth0 root handle 5: tbf rate 20mbit burst 32kb limit 64kb`},
	{name: "tbf-fq_codel", qdiscs: "fq_codel", make: `
tc qdisc add dev eth0 root handle 5: tbf rate 20mbit burst 32kb latency 50ms peakrate 30mbit mtu 2000
tc qdisc add dev eth0 parent 5:1 handle 6: fq_codel
`},
	{name: "hfsc", qdiscs: "hfsc", make: `
tc qdisc add dev eth0 root handle 1: hfsc default 30
tc class add dev eth0 parent 1: classid 1:1 hfsc sc rate 10mbit ul rate 10mbit
tc class add dev eth0 parent 1:1 classid 1:10 hfsc rt m1 4mbit d 10ms m2 1mbit ls m2 2mbit
tc class add dev eth0 parent 1:1 classid 1:20 hfsc ls m2 6mbit ul m2 8mbit
tc class add dev eth0 parent 1:1 classid 1:30 hfsc ls m2 5mbit
tc filter add dev eth0 parent 1: protocol ip pref 1 u32 match ip protocol 17 0xff match ip dport 5060 0xffff flowid 1:10
`},
	{name: "cake", qdiscs: "cake", make: `tc qdisc add dev eth0 root handle 8001: cake bandwidth 18mbit diffserv4 dual-srchost nat ack-filter docsis`},
	{name: "prio", qdiscs: "prio sfq", make: `
tc qdisc add dev eth0 root handle 1: prio bands 4
tc qdisc add dev eth0 parent 1:3 handle 30: sfq perturb 10
tc filter add dev eth0 parent 1: protocol ip pref 1 u32 match ip dport 53 0xffff flowid 1:1
`},
	{name: "fq", qdiscs: "fq", make: `tc qdisc add dev eth0 root handle 7: fq limit 5000`},
	{name: "ingress", make: `
ip link add ifb7 type ifb
ip link set ifb7 up
tc qdisc add dev eth0 clsact
tc filter add dev eth0 ingress protocol all pref 5 u32 match u32 0 0 action mirred egress redirect dev ifb7
tc qdisc add dev ifb7 root handle 1: htb default 20
tc class add dev ifb7 parent 1: classid 1:1 htb rate 50mbit
tc class add dev ifb7 parent 1:1 classid 1:10 htb rate 30mbit ceil 50mbit prio 1
tc class add dev ifb7 parent 1:1 classid 1:20 htb rate 20mbit ceil 40mbit prio 2
tc filter add dev ifb7 parent 1: protocol ip pref 1 u32 match ip sport 443 0xffff flowid 1:10
`},
}

// run carries commands out in a namespace.
func run(t *testing.T, ns *lab.NetNS, commands string) {
	t.Helper()
	for line := range strings.Lines(strings.TrimSpace(commands)) {
		f := strings.Fields(line)
		tctest.Output(t, ns, f[0], f[1:]...)
	}
}

// lacks are the kinds of qdiscs and filters of a tree that the kernel does not have.
func (tt *tree) lacks(t *testing.T) (kinds []string) {
	t.Helper()
	for kind := range strings.FieldsSeq(tt.qdiscs) {
		if !tctest.HasQdisc(t, kind) {
			kinds = append(kinds, "qdisc "+kind)
		}
	}
	if tt.filter == "" {
		return kinds
	}
	ns := tctest.NetNS(t)
	tctest.TC(t, ns, "qdisc", "add", "dev", "lo", "root", "handle", "9:", "htb")
	for kind := range strings.FieldsSeq(tt.filter) {
		args := "filter add dev lo parent 9: protocol ip " + map[string]string{
			"fw": "handle 1 fw", "flower": "flower", "matchall": "matchall", "police": "u32 match u32 0 0 police rate 1mbit burst 10k drop",
		}[kind] + " classid 9:1"
		cmd := exec.CommandContext(t.Context(), tctest.RequireProgram(t, "tc"), strings.Fields(args)...)
		if err := ns.Start(cmd); err != nil {
			t.Fatal(err)
		}
		if cmd.Wait() != nil {
			kinds = append(kinds, "filter "+kind)
		}
	}
	return kinds
}

// policyOf is the policy of eth0.
func policyOf(t *testing.T, ns *lab.NetNS) (string, error) {
	t.Helper()
	c, err := rtnl.Open(rtnl.Config{NetNS: ns.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	}()
	x, err := survey.Read(c, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	return adopt.Policy(x)
}

// imported is the policy of eth0, which is right.
func imported(t *testing.T, ns *lab.NetNS) string {
	t.Helper()
	text, err := policyOf(t, ns)
	if err != nil {
		t.Fatal(err)
	}
	right(t, text)
	return text
}

// right holds that a policy is.
func right(t *testing.T, text string) {
	t.Helper()
	_, err := policy.Parse("imported", strings.NewReader(text), qdisc.Kinds())
	var wrong policy.Errors
	if errors.As(err, &wrong) {
		t.Errorf("%s\n%s", wrong.Render(), text)
	} else if err != nil {
		t.Error(err)
	}
}

// golden holds text against a file of testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	file := filepath.Join("testdata", name+".toml")
	if *update {
		t.Logf("golden %s\n%s", name, text)
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(text, "\n")); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// Trees of many tools become policies that are right. What this machine's kernel lacks, those
// of TestVM have.
func TestKernelTrees(t *testing.T) {
	for _, tt := range trees {
		lacks := tt.lacks(t)
		if len(lacks) > 0 && !vm.Inside() {
			continue
		}
		t.Run(tt.name, func(t *testing.T) {
			ns := tctest.New(t, lab.PairConfig{}).Near
			tctest.Require(t, len(lacks) == 0, strings.Join(lacks, ", "))
			if strings.Contains(tt.make, "type ifb") {
				tctest.RequireLink(t, "ifb")
			}
			run(t, ns, tt.make)
			golden(t, tt.name, imported(t, ns))
		})
	}
}
