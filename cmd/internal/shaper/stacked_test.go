package shaper

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/tctest/office"
)

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
			got, err := Twice(office.Links(), strings.Fields(tt.policy), func() (map[int]hierarchy.Root, error) { return tt.roots, nil })
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
		if d := cmp.Diff(tt.want, OverLine(link.Link{Name: "eth0", Speed: tt.speed}, tt.rate)); d != "" {
			t.Errorf("%v on %v (-want +got)\n%s", tt.rate, tt.speed, d)
		}
	}
}

func TestOverIngress(t *testing.T) {
	for _, tt := range []struct {
		speed, rate hierarchy.Bandwidth
		want        string
	}{
		{0, hierarchy.Tbit, ""},
		{hierarchy.Gbit, 950 * hierarchy.Mbit, ""},
		{hierarchy.Gbit, 951 * hierarchy.Mbit, "eth0: ingress 951mbit is above 95% of its line, which is 1gbit: what comes in faster waits at the other end of the line, where no branch comes first; write 950mbit or less"},
	} {
		if d := cmp.Diff(tt.want, OverIngress(link.Link{Name: "eth0", Speed: tt.speed}, tt.rate)); d != "" {
			t.Errorf("%v on %v (-want +got)\n%s", tt.rate, tt.speed, d)
		}
	}
}
