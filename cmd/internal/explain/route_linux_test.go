package explain

import (
	"net/netip"
	"testing"

	"github.com/vifshape/vifshape/cgroup/socket"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// TestRoutes: a connection goes past an interface where its route leads to another one that
// does not lie on it.
func TestRoutes(t *testing.T) {
	near, far := tctest.NetNS(t), tctest.NetNS(t)
	prefix := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	for _, l := range [][2]lab.Link{
		{{Name: "eth0", Addrs: prefix("192.0.2.1/28")}, {Name: "far0", Addrs: prefix("192.0.2.2/28")}},
		{{Name: "eth1", Addrs: prefix("192.0.2.17/28")}, {Name: "far1", Addrs: prefix("192.0.2.18/28")}},
	} {
		if err := lab.AddVeth(near, l[0], far, l[1]); err != nil {
			t.Fatal(err)
		}
	}
	if err := near.AddLink(lab.Link{Name: "above", Kind: "macvlan", Parent: "eth0", Addrs: prefix("192.0.2.33/28")}); err != nil {
		t.Fatal(err)
	}
	c, err := rtnl.Open(rtnl.Config{NetNS: near.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	r, err := newRoutes(c, "eth0")
	if err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct{ from, to, want string }{
		{"192.0.2.1", "192.0.2.2", ""},
		{"192.0.2.1", "192.0.2.18", "eth1"},
		{"192.0.2.33", "192.0.2.34", ""}, // which lies on it
		{"127.0.0.1", "127.0.0.1", "lo"},
		{"192.0.2.1", "192.0.2.17", "lo"},
		{"192.0.2.1", "203.0.113.1", ""}, // no route: nobody can tell
		{"fe80::1", "fe80::2", ""},
	} {
		of := socket.TCP{Local: netip.AddrPortFrom(netip.MustParseAddr(x.from), 40000), Remote: netip.AddrPortFrom(netip.MustParseAddr(x.to), 443)}
		if got, err := r.other(of); err != nil || got != x.want {
			t.Errorf("%s to %s leaves by %q, %v; want %q", x.from, x.to, got, err, x.want)
		}
	}
	for _, l := range r.links {
		want := map[string]string{"eth1": "eth1"}[l.Name]
		if got, err := r.other(socket.TCP{Device: l.Index}); l.Name != "lo" && (err != nil || got != want) {
			t.Errorf("what is bound to %s leaves by %q, %v; want %q", l.Name, got, err, want)
		}
	}
}
