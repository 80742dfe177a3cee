package main

import (
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
)

// office is a machine with interfaces of many kinds, as link.List lists them.
func office() []link.Link {
	const gbit = hierarchy.Gbit
	up := func(l link.Link) link.Link {
		l.Up, l.Carrier, l.OperState, l.MTU, l.TxQueues, l.LowerNetNS = true, true, "up", 1500, 1, -1
		if l.Qdisc == "" {
			l.Qdisc = "noqueue"
		}
		return l
	}
	links := []link.Link{
		up(link.Link{Index: 1, Name: "lo", Nature: link.Loopback}),
		up(link.Link{Index: 2, Name: "eth0", Nature: link.Physical, Speed: gbit, Master: 4, Qdisc: "mq"}),
		up(link.Link{Index: 3, Name: "eth1", Nature: link.Physical, Speed: gbit, Master: 4, Qdisc: "mq"}),
		up(link.Link{Index: 4, Name: "bond0", Kind: "bond", Nature: link.Bond, Speed: 2 * gbit, Members: []string{"eth0", "eth1"}, Qdisc: "htb"}),
		up(link.Link{Index: 5, Name: "bond0.5", Kind: "vlan", Nature: link.VLAN, Speed: 2 * gbit, Lower: 4, LowerName: "bond0", Master: 9}),
		up(link.Link{Index: 6, Name: "bond0.6", Kind: "vlan", Nature: link.VLAN, Speed: 2 * gbit, Lower: 4, LowerName: "bond0"}),
		up(link.Link{Index: 7, Name: "mac6", Kind: "macvlan", Nature: link.Virtual, Speed: 2 * gbit, Lower: 6, LowerName: "bond0.6"}),
		up(link.Link{Index: 8, Name: "wg0", Kind: "wireguard", Nature: link.Tunnel, ByRoute: true}),
		up(link.Link{Index: 9, Name: "br0", Kind: "bridge", Nature: link.Bridge, Speed: 2 * gbit, Members: []string{"bond0.5", "vnet0", "vnet1", "vnet2", "vnet3", "vnet4"}}),
		up(link.Link{Index: 10, Name: "vnet0", Kind: "veth", Nature: link.Virtual, Lower: 2, Master: 9}),
		up(link.Link{Index: 11, Name: "a0", Kind: "veth", Nature: link.Virtual, Lower: 12, LowerName: "b0"}),
		up(link.Link{Index: 12, Name: "b0", Kind: "veth", Nature: link.Virtual, Lower: 11, LowerName: "a0"}),
		up(link.Link{Index: 13, Name: "mac9", Kind: "macvlan", Nature: link.Virtual, Lower: 2, LowerName: "eth7"}),
		{Index: 14, Name: "wwan0", Nature: link.Physical, Up: true, OperState: "down", LowerNetNS: -1, MTU: 1428, TxQueues: 1, Qdisc: "pfifo_fast"},
		{Index: 15, Name: "tun0", Kind: "tun", Nature: link.Tunnel, OperState: "down", LowerNetNS: -1, MTU: 1500, TxQueues: 1, Qdisc: "noop"},
		up(link.Link{Index: 16, Name: "gre1", Kind: "gre", Nature: link.Tunnel, Lower: 17, LowerName: "gre2"}),
		up(link.Link{Index: 17, Name: "gre2", Kind: "gre", Nature: link.Tunnel, Lower: 16, LowerName: "gre1"}),
		up(link.Link{Index: 18, Name: "wlan0", Nature: link.Physical, Qdisc: "tbf"}),
	}
	links[9].LowerNetNS, links[12].LowerNetNS = 3, 4
	links[17].OperState = "dormant"
	return links
}

// TestLsTree: each interface once, below the one that carries it, and what is true
// of it.
func TestLsTree(t *testing.T) {
	const want = `
NAME       KIND                STATE       SPEED   VIA                           MTU   QUEUES  QDISC       SHAPED BY
lo         loopback            up          -       -                             1500  1       noqueue     -
eth0       physical            up          1gbit   -                             1500  1       mq          -
eth1       physical            up          1gbit   -                             1500  1       mq          -
bond0      bond                up          2gbit   eth0 eth1                     1500  1       htb         vifshape
│ web      branch 71f:3                    1gbit                                                           up to 2gbit
│   api    branch 71f:4                    10mbit                                                          up to 2gbit
├─bond0.5  vlan                up          2gbit   bond0                         1500  1       noqueue     -
└─bond0.6  vlan                up          2gbit   bond0                         1500  1       noqueue     -
  └─mac6   virtual (macvlan)   up          2gbit   bond0.6                       1500  1       noqueue     -
wg0        tunnel (wireguard)  up          -       route                         1500  1       noqueue     -
br0        bridge              up          2gbit   bond0.5 vnet0 vnet1 vnet2 +2  1500  1       noqueue     -
vnet0      virtual (veth)      up          -       peer if2 (netns 3)            1500  1       noqueue     -
a0         virtual (veth)      up          -       peer b0                       1500  1       noqueue     -
b0         virtual (veth)      up          -       peer a0                       1500  1       noqueue     -
mac9       virtual (macvlan)   up          -       eth7 (netns 4)                1500  1       noqueue     -
wwan0      physical            no carrier  -       -                             1428  1       pfifo_fast  -
tun0       tunnel (tun)        down        -       -                             1500  1       noop        -
gre1       tunnel (gre)        up          -       gre2                          1500  1       noqueue     -
gre2       tunnel (gre)        up          -       gre1                          1500  1       noqueue     -
wlan0      physical            dormant     -       -                             1500  1       tbf         tbf 7:
`
	var views []*linkView
	for _, l := range office() {
		v := &linkView{Link: l}
		switch l.Name {
		case "bond0":
			v.Shaper = "vifshape"
			v.Branches = []hierarchy.Class{
				{Path: "bond0", ID: hierarchy.ID(hierarchy.RootMinor)},
				{Path: "bond0/web", ID: hierarchy.ID(3), Rate: hierarchy.Gbit, Ceil: 2 * hierarchy.Gbit},
				{Path: "bond0/web/api", ID: hierarchy.ID(4), Rate: 10 * hierarchy.Mbit, Ceil: 2 * hierarchy.Gbit},
			}
		case "wlan0":
			v.Shaper = "tbf 7:"
		}
		views = append(views, v)
	}
	var got strings.Builder
	w := tabwriter.NewWriter(&got, 0, 0, 2, ' ', 0)
	writeViews(w, views)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(strings.TrimPrefix(want, "\n"), got.String()); d != "" {
		t.Errorf("(-want +got)\n%s\n%s", d, got.String())
	}
}

// TestTwice: whoever shapes what another one carries is named, once.
func TestTwice(t *testing.T) {
	const wait = ": packets then wait twice and get the smaller rate; "
	ours, tbf := hierarchy.Root{Kind: "htb", Handle: hierarchy.ID(0)}, hierarchy.Root{Kind: "tbf", Handle: 7 << 16}
	for _, tt := range []struct {
		name, policy string
		roots        map[int]hierarchy.Root // by index
		want         []string
	}{
		{name: "nothing below or above", policy: "lo wwan0 a0 b0 vnet0"},
		{name: "a VLAN alone", policy: "bond0.6"},
		{name: "VLAN and bond", policy: "bond0.6 bond0", want: []string{
			"bond0: what bond0.6 sends leaves by it, and the policy shapes both" + wait + "shape bond0 alone, unless the two rates are meant to hold together"}},
		{name: "far above", policy: "mac6 eth0", want: []string{
			"eth0: what mac6 sends leaves by it, and the policy shapes both" + wait + "shape eth0 alone, unless the two rates are meant to hold together"}},
		{name: "several", policy: "mac6 bond0.6 bond0.5 br0 bond0", want: []string{
			"bond0: what bond0.5, bond0.6 and 2 more send leaves by it, and the policy shapes all of them" + wait + "shape bond0 alone, unless the two rates are meant to hold together",
			"bond0.6: what mac6 sends leaves by it, and the policy shapes both" + wait + "shape bond0.6 alone, unless the two rates are meant to hold together",
			"bond0.5: what br0 sends leaves by it, and the policy shapes both" + wait + "shape bond0.5 alone, unless the two rates are meant to hold together"}},
		{name: "ours below", policy: "bond0.6 bond0.5", roots: map[int]hierarchy.Root{4: ours}, want: []string{
			"bond0: what bond0.5 and bond0.6 send leaves by it, and vifshape shapes bond0 already" + wait + "`vifshape clear bond0` ends that"}},
		{name: "ours above", policy: "eth0", roots: map[int]hierarchy.Root{4: ours}, want: []string{
			"eth0: what bond0 sends leaves by it, and vifshape shapes bond0 already" + wait + "`vifshape clear bond0` ends that"}},
		{name: "ours and the policy's make one pair each", policy: "eth0 eth1", roots: map[int]hierarchy.Root{4: ours}, want: []string{
			"eth0: what bond0 sends leaves by it, and vifshape shapes bond0 already" + wait + "`vifshape clear bond0` ends that",
			"eth1: what bond0 sends leaves by it, and vifshape shapes bond0 already" + wait + "`vifshape clear bond0` ends that"}},
		{name: "the kernel's own htb", policy: "eth0", roots: map[int]hierarchy.Root{}},
		{name: "tunnel by route", policy: "wg0 br0 bond0", want: []string{
			"bond0: what wg0 sends leaves by the route to the other end of the tunnel, which may lead by it, and the policy shapes both" + wait + "shape bond0 alone, unless the two rates are meant to hold together",
			"br0: what wg0 sends leaves by the route to the other end of the tunnel, which may lead by it, and the policy shapes both" + wait + "shape br0 alone, unless the two rates are meant to hold together",
			"bond0: what br0 sends leaves by it, and the policy shapes both" + wait + "shape bond0 alone, unless the two rates are meant to hold together"}},
		{name: "tunnel in a container", policy: "wg0 b0 vnet0", want: []string{
			"b0: what wg0 sends leaves by the route to the other end of the tunnel, which may lead by it, and the policy shapes both" + wait + "shape b0 alone, unless the two rates are meant to hold together"}},
		{name: "tunnel and somebody else's", policy: "wg0", roots: map[int]hierarchy.Root{18: tbf}, want: []string{
			"wlan0: what wg0 sends leaves by the route to the other end of the tunnel, which may lead by it, and wlan0 has a root qdisc tbf 7: that vifshape did not make" + wait +
				"`tc qdisc del dev wlan0 root` removes it, if what made it does not make it again"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := twice(office(), strings.Fields(tt.policy), func() (map[int]hierarchy.Root, error) { return tt.roots, nil })
			if err != nil {
				t.Fatal(err)
			}
			if d := cmp.Diff(tt.want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
		})
	}
}

func TestOverLine(t *testing.T) {
	for _, tt := range []struct {
		speed, rate hierarchy.Bandwidth
		want        string
	}{
		{0, hierarchy.Tbit, ""},
		{hierarchy.Gbit, hierarchy.Gbit, ""},
		{hierarchy.Gbit, 2500 * hierarchy.Mbit, "eth0: rate 2.5gbit is above the 1gbit of its line: what the line cannot carry waits in the driver or is dropped there, whatever its branch; write what the line carries, or a little less"},
	} {
		if d := cmp.Diff(tt.want, overLine(link.Link{Name: "eth0", Speed: tt.speed}, tt.rate)); d != "" {
			t.Errorf("%v on %v (-want +got)\n%s", tt.rate, tt.speed, d)
		}
	}
}
