package main

import (
	"strings"
	"testing"
	"text/tabwriter"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/tctest/office"
)

// TestLsTree: each interface once, below the one that carries it, and what is true
// of it.
func TestLsTree(t *testing.T) {
	const want = `
NAME       KIND                STATE       SPEED         VIA                           MTU   QUEUES  QDISC       SHAPED BY
lo         loopback            up          -             -                             1500  1       noqueue     -
eth0       physical            up          1gbit         -                             1500  1       mq          -
eth1       physical            up          1gbit         -                             1500  1       mq          -
bond0      bond                up          2gbit         eth0 eth1                     1500  1       htb         vifshape
│ web      branch 71f:3                    1gbit                                                                 up to 2gbit
│   api    branch 71f:4                    10mbit/1mbit                                                          up to 2gbit/1gbit
├─bond0.5  vlan                up          2gbit         bond0                         1500  1       noqueue     -
└─bond0.6  vlan                up          2gbit         bond0                         1500  1       noqueue     -
  └─mac6   virtual (macvlan)   up          2gbit         bond0.6                       1500  1       noqueue     -
wg0        tunnel (wireguard)  up          -             route                         1500  1       noqueue     -
br0        bridge              up          2gbit         bond0.5 vnet0 vnet1 vnet2 +2  1500  1       noqueue     -
vnet0      virtual (veth)      up          -             peer if2 (netns 3)            1500  1       noqueue     -
a0         virtual (veth)      up          -             peer b0                       1500  1       noqueue     -
b0         virtual (veth)      up          -             peer a0                       1500  1       noqueue     -
mac9       virtual (macvlan)   up          -             eth7 (netns 4)                1500  1       noqueue     -
wwan0      physical            no carrier  -             -                             1428  1       pfifo_fast  -
tun0       tunnel (tun)        down        -             -                             1500  1       noop        -
gre1       tunnel (gre)        up          -             gre2                          1500  1       noqueue     -
gre2       tunnel (gre)        up          -             gre1                          1500  1       noqueue     -
wlan0      physical            dormant     -             -                             1500  1       tbf         tbf 7:
`
	var views []*observe.Link
	for _, l := range office.Links() {
		v := &observe.Link{Link: l}
		switch l.Name {
		case "bond0":
			v.Shaper = "vifshape"
			v.Branches = []observe.LinkBranch{
				{Class: hierarchy.Class{Path: "bond0", ID: hierarchy.ID(hierarchy.RootMinor)}},
				{Class: hierarchy.Class{Path: "bond0/web", ID: hierarchy.ID(3), Rate: hierarchy.Gbit, Ceil: 2 * hierarchy.Gbit}},
				{Class: hierarchy.Class{Path: "bond0/web/api", ID: hierarchy.ID(4), Rate: 10 * hierarchy.Mbit, Ceil: 2 * hierarchy.Gbit}, Ingress: &observe.Limits{Rate: hierarchy.Mbit, Ceil: hierarchy.Gbit}},
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
