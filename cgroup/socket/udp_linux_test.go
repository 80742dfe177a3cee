package socket

import (
	"net"
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// TestEachUDP: a socket that has another end has its address, and one that has none has not.
func TestEachUDP(t *testing.T) {
	l, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("udp4", l.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	at := netip.MustParseAddrPort(l.LocalAddr().String())
	from := netip.MustParseAddrPort(c.LocalAddr().String())
	want := map[netip.AddrPort]netip.AddrPort{at: {}, from: at}
	got := map[netip.AddrPort]netip.AddrPort{}
	err = EachUDP(0, func(u UDP) {
		if _, ours := want[u.Local]; ours {
			got[u.Local] = u.Remote
		}
	})
	if d := cmp.Diff(want, got, cmpopts.EquateComparable(netip.AddrPort{})); err != nil || d != "" {
		t.Errorf("%v (-want +got)\n%s", err, d)
	}
}
