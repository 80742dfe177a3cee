package hierarchy_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
)

// The numbers are those of tc-cake(8), less the header that the kernel counts.
func TestLineOn(t *testing.T) {
	for _, tt := range []struct {
		line       Line
		ethernet   string // what is added where the kernel counts 14 bytes of header
		ppp        string // and where it counts none
		ppp1492    Size   // what a packet of 1492 bytes then is
		ppp40      Size   // and one of 40
		ethernet40 Size
	}{
		{Line{}, "", "", 1492, 40, 54},
		{Line{Layer: "ethernet"}, "overhead 24 mpu 84", "overhead 38 mpu 84", 1530, 84, 84},
		{Line{Layer: "ether-vlan"}, "overhead 28 mpu 84", "overhead 42 mpu 84", 1534, 84, 84},
		{Line{Layer: "pppoe-vlan"}, "overhead 36 mpu 84", "overhead 50 mpu 84", 1542, 90, 90},
		{Line{Layer: "docsis"}, "overhead 4 mpu 64", "overhead 18 mpu 64", 1510, 64, 64},
		{Line{Layer: "bridged-ptm"}, "overhead 8", "overhead 22", 1514, 62, 62},
		{Line{Layer: "pppoe-ptm"}, "overhead 16", "overhead 30", 1522, 70, 70},
		{Line{Layer: "atm"}, "linklayer atm", "linklayer atm", 32 * 53, 53, 2 * 53},
		{Line{Layer: "ipoa-vcmux"}, "-6", "overhead 8 linklayer atm", 32 * 53, 53, 0},
		{Line{Layer: "ipoa-llcsnap"}, "overhead 2 linklayer atm", "overhead 16 linklayer atm", 32 * 53, 2 * 53, 2 * 53},
		{Line{Layer: "pppoa-vcmux"}, "-4", "overhead 10 linklayer atm", 32 * 53, 2 * 53, 0},
		{Line{Layer: "pppoa-llc"}, "linklayer atm", "overhead 14 linklayer atm", 32 * 53, 2 * 53, 2 * 53},
		{Line{Layer: "pppoe-vcmux"}, "overhead 18 linklayer atm", "overhead 32 linklayer atm", 32 * 53, 2 * 53, 2 * 53},
		{Line{Layer: "pppoe-llcsnap"}, "overhead 26 linklayer atm", "overhead 40 linklayer atm", 32 * 53, 2 * 53, 2 * 53},
		{Line{Layer: "bridged-vcmux"}, "overhead 10 linklayer atm", "overhead 24 linklayer atm", 32 * 53, 2 * 53, 2 * 53},
		{Line{Layer: "bridged-llcsnap"}, "overhead 18 linklayer atm", "overhead 32 linklayer atm", 32 * 53, 2 * 53, 2 * 53},
		{Line{Layer: "conservative"}, "overhead 34 linklayer atm", "overhead 48 linklayer atm", 33 * 53, 2 * 53, 2 * 53},
		{Line{Overhead: 34}, "overhead 20", "overhead 34", 1526, 74, 74},
		{Line{Overhead: 14}, "", "overhead 14", 1506, 54, 54},
		{Line{Overhead: 13}, "-1", "overhead 13", 1505, 53, 0},
		{Line{MPU: 68}, "mpu 68", "mpu 68", 1492, 68, 68},
		{Line{Layer: "docsis", Overhead: 22}, "overhead 8 mpu 64", "overhead 22 mpu 64", 1514, 64, 64},
		{Line{Layer: "docsis", MPU: 68}, "overhead 4 mpu 68", "overhead 18 mpu 68", 1510, 68, 68},
		{Line{Layer: "pppoa-vcmux", Overhead: 14, MPU: 1}, "mpu 1 linklayer atm", "overhead 14 mpu 1 linklayer atm", 32 * 53, 2 * 53, 2 * 53},
	} {
		t.Run(tt.line.String(), func(t *testing.T) {
			ppp, err := tt.line.On(0)
			if err != nil {
				t.Fatal(err)
			}
			want := []any{tt.ppp, tt.ppp1492, tt.ppp40}
			if d := cmp.Diff(want, []any{ppp.String(), ppp.Bytes(1492), ppp.Bytes(40)}); d != "" {
				t.Errorf("on PPP (-want +got):\n%s", d)
			}
			ethernet, err := tt.line.On(14)
			if strings.HasPrefix(tt.ethernet, "-") {
				if err == nil || !strings.Contains(err.Error(), "write overhead = 14") {
					t.Errorf("on Ethernet %v, error %v", ethernet, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			want = []any{tt.ethernet, tt.ethernet40}
			if d := cmp.Diff(want, []any{ethernet.String(), ethernet.Bytes(40 + 14)}); d != "" {
				t.Errorf("on Ethernet (-want +got):\n%s", d)
			}
		})
	}
	if n := len(Layers()); n != 16 {
		t.Errorf("%d layers, of which 16 are tested", n)
	}
}

func TestLineErrors(t *testing.T) {
	for _, tt := range []struct {
		line Line
		want string
	}{
		{Line{Layer: "ipoa-vcmux"}, `overhead 8 of linklayer "ipoa-vcmux" is less than the 14 bytes of header that the kernel counts with each packet of this interface, and HTB cannot subtract: write overhead = 14, which is on the safe side, or shape an interface without that header, such as ppp0`},
		{Line{Layer: "docsis", Overhead: 10}, `overhead 10 is less than the 14 bytes of header that the kernel counts with each packet of this interface, and HTB cannot subtract: write overhead = 14, which is on the safe side, or shape an interface without that header, such as ppp0`},
	} {
		if _, err := tt.line.On(14); err == nil || err.Error() != tt.want {
			t.Errorf("got %v, want %s", err, tt.want)
		}
	}
}

func TestLineString(t *testing.T) {
	for _, tt := range []struct {
		line Line
		want string
	}{
		{Line{}, ""},
		{Line{Overhead: 34}, "IP packet + 34 bytes"},
		{Line{Layer: "docsis", MPU: 68}, "docsis: IP packet + 18 bytes, at least 68 bytes"},
		{Line{Layer: "atm"}, "atm: in cells of 53 bytes that carry 48"},
		{Line{Layer: "pppoe-ptm"}, "pppoe-ptm: IP packet + 30 bytes, at 64/65 of the rates written, because one byte in 65 is PTM's own"},
	} {
		if d := cmp.Diff(tt.want, tt.line.String()); d != "" {
			t.Errorf("(-want +got):\n%s", d)
		}
	}
}

// Every rate is 64/65 of what is written, rounded down, so that guarantees still
// fit into those above.
func TestResolvePTM(t *testing.T) {
	s := eth0(rate("65mbit"), branch("a", rate("50%"), ceil("39mbit")), branch("b", rate("8bit")), branch("c", rate("6500001bit")))
	s.Line.Layer = "bridged-ptm"
	tree, problems := Resolve(s, kinds)
	if tree == nil {
		t.Fatal(problems)
	}
	got := map[Path][2]Bandwidth{}
	var sum Bandwidth
	for b := range tree.All() {
		got[b.Path] = [2]Bandwidth{b.Rate, b.Ceil}
		if b != tree.Root {
			sum += b.Rate
		}
	}
	want := map[Path][2]Bandwidth{
		"eth0":      {64 * Mbit, 64 * Mbit},
		"eth0/a":    {32 * Mbit, 38_400_000},
		"eth0/b":    {8, 64 * Mbit},
		"eth0/c":    {6_400_000, 64 * Mbit},
		"eth0/rest": {25_599_991, 64 * Mbit},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if sum > tree.Root.Rate {
		t.Errorf("guarantees of %v below %v", sum, tree.Root.Rate)
	}
}
