package observe_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// TestWhichExamples: the examples with matches do what their comments say.
func TestWhichExamples(t *testing.T) {
	for _, r := range []struct{ file, at, packet, want string }{
		{"router", "", "from=192.168.1.10:5000 to=192.0.2.1:443 proto=tcp", "wan0/house/alice"},
		{"router", "", "in from=192.0.2.1:443 to=192.168.1.10:5000 proto=tcp", "wan0/house/alice"},
		{"router", "", "from=192.168.1.10:5000 to=192.0.2.1:5000 proto=udp dscp=EF", "wan0/calls"},
		{"router", "", "in from=192.0.2.1:3478 to=192.168.2.7:40000 proto=udp", "wan0/calls"},
		{"router", "", "from=192.168.2.7:5000 to=192.0.2.1:443 proto=udp", "wan0/house/guests"},
		{"router", "", "from=[2001:db8:1:20::5]:5000 to=[2001:db8:9::1]:443 proto=tcp", "wan0/house/bob"},
		{"router", "", "from=192.168.1.99 to=192.0.2.1 proto=icmp", "wan0/house/rest"},
		{"router", "", "", "wan0/rest"},
		{"lan", "", "from=192.168.1.5:40000 to=192.168.1.9:445 proto=tcp", "eth0/lan"},
		{"lan", "", "in from=192.168.1.9:445 to=192.168.1.5:40000 proto=tcp", "eth0/lan"},
		{"lan", "", "from=192.168.1.5:40000 to=192.0.2.1:443 proto=tcp", "eth0/line/rest"},
		{"lan", "", "in from=192.0.2.1:443 to=192.168.1.5:40000 proto=tcp", "eth0/line/rest"},
		{"lan", "", "from=192.168.1.5:6881 to=192.0.2.1:50000 proto=tcp", "eth0/line/bulk"},
		{"lan", "", "from=0.0.0.0:68 to=255.255.255.255:67 proto=udp", "eth0/lan"},
		{"lan", "", "from=fe80::5 to=ff02::1 proto=icmpv6", "eth0/lan"},
		{"hypervisor", "", "mac=52:54:00:00:00:01 from=192.0.2.1:443 to=198.51.100.1:5000 proto=tcp in", "eth0/shop/rest"},
		{"hypervisor", "", "mac=52:54:00:00:00:01 from=192.0.2.1:22 to=198.51.100.1:5000 proto=tcp", "eth0/shop/ssh"},
		{"hypervisor", "", "mac=52:54:00:00:00:04", "eth0/rest"},
		{"hypervisor", "", "mac=52:54:00:00:00:04 vlan=30", "eth0/lab"},
		{"hypervisor", "eth0/host", "mac=52:54:00:00:00:01", "eth0/host"},
		{"tiers", "", "dscp=CS7", "eth0/network"},
		{"tiers", "", "dscp=EF from=192.0.2.1 to=198.51.100.1", "eth0/voice"},
		{"tiers", "", "dscp=AF32", "eth0/video"},
		{"tiers", "", "dscp=AF13", "eth0/data"},
		{"tiers", "", "dscp=LE", "eth0/bulk"},
		{"tiers", "", "dscp=CS0", "eth0/rest"},
	} {
		p, err := shaper.ReadPolicy(filepath.Join("../../../examples", r.file+".toml"))
		if err != nil {
			t.Fatal(err)
		}
		of := map[string]string{}
		for f := range strings.FieldsSeq(r.packet) {
			w, v, _ := strings.Cut(f, "=")
			of[w] = v
		}
		packet, err := match.ParsePacket(of)
		if err != nil {
			t.Fatal(err)
		}
		w, err := observe.WhichOf(p.Trees[0], hierarchy.Path(r.at), packet)
		if err != nil {
			t.Fatal(err)
		}
		if string(w.Path) != r.want {
			t.Errorf("%s: %q: %s, want %s: %+v", r.file, r.packet, w.Path, r.want, w.Rules)
		}
	}
}
