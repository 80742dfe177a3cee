//go:build linux

package link

import (
	"net"
	"strings"
	"testing"
	"unicode/utf8"
)

// An address says whose IFB it is, and no other address does. It must be one that an
// interface may have, and none that a manufacturer gives.
func TestMark(t *testing.T) {
	for _, of := range []int{1, 12, 0x1234567, 1<<31 - 1} {
		a := mark(of)
		for _, l := range []struct{ name, alias string }{{"vif-eth0", ""}, {"renamed", "vifshape: what ifindex 1 receives"}} {
			if got := (&Link{Name: l.name}).receives(a, l.alias); got != of {
				t.Errorf("%v of %v is %d, not %d", net.HardwareAddr(a), l, got, of)
			}
		}
		if got := (&Link{Name: "ifb0"}).receives(a, "mine"); got != 0 {
			t.Errorf("%v of somebody else is %d", net.HardwareAddr(a), got)
		}
		if len(a) != 6 || a[0]&1 != 0 || a[0]&2 == 0 {
			t.Errorf("%v is not a local address of one interface", net.HardwareAddr(a))
		}
	}
	for _, a := range []net.HardwareAddr{nil, {0x76, 0x69}, {0x52, 0x54, 0, 0, 0, 1}, {0x76, 0x69, 0, 0, 0, 0}, {0x76, 0x69, 0x80, 0, 0, 1}, {0x76, 0x69, 0, 0, 0, 0, 1}} {
		if got := (&Link{Name: "vif-eth0"}).receives(a, ""); got != 0 {
			t.Errorf("%v is %d", a, got)
		}
	}
}

// Names fit, differ at every try, and are text where that of the interface is.
func TestIFBName(t *testing.T) {
	if got := IFBName("eth0", 0); got != "vif-eth0" {
		t.Error(got)
	}
	seen := map[string]bool{}
	for _, of := range []string{"a", "elevenbytes", "twelve-bytes", "fifteen-bytes-1", "fifteen-bytes-2", "größe-größe"} {
		for try := range 10 {
			n := IFBName(of, try)
			if len(n) > 15 || !strings.HasPrefix(n, "vif-") || seen[n] || !utf8.ValidString(n) {
				t.Errorf("%s, try %d: %q", of, try, n)
			}
			seen[n] = true
		}
	}
}

// What was received is as large as the other end made it.
func TestReceived(t *testing.T) {
	for want, l := range map[int]Link{65536: {MTU: 1500, GSOMaxSize: 3000, GSOMaxSegs: 1}, 70014: {MTU: 70000}, 524280: {MTU: 1500, GROMaxSize: 524280}} {
		if got := l.Received(); int(got) != want {
			t.Errorf("%+v: %d, not %d", l, got, want)
		}
	}
}
