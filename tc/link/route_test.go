//go:build linux

package link

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// A next hop that says it is longer than what is there, or too short, is no next hop.
func TestDecodeDefaultMalformed(t *testing.T) {
	for _, length := range []uint16{0, 7, 9} {
		e := rtnl.Encoder{B: make([]byte, unix.SizeofRtMsg)}
		e.B[0], e.B[4], e.B[7] = unix.AF_INET, unix.RT_TABLE_MAIN, unix.RTN_UNICAST
		e.Attr(unix.RTA_MULTIPATH, func() {
			e.Uint16(length)
			e.Uint16(0)
			e.Uint32(3)
		})
		if got, err := decodeDefault(e.B); !errors.Is(err, rtnl.ErrMalformed) {
			t.Errorf("length %d: %v, %v", length, got, err)
		}
	}
	if _, err := decodeDefault(make([]byte, unix.SizeofRtMsg-1)); !errors.Is(err, rtnl.ErrMalformed) {
		t.Errorf("cut short: %v", err)
	}
}

// A route for one source is a default one where its destination is anything: a router has
// one for each prefix that it was given.
func TestDecodeDefaultOfSource(t *testing.T) {
	e := rtnl.Encoder{B: make([]byte, unix.SizeofRtMsg)}
	e.B[0], e.B[2], e.B[4], e.B[7] = unix.AF_INET6, 56, unix.RT_TABLE_MAIN, unix.RTN_UNICAST
	e.Attr32(unix.RTA_OIF, 7)
	e.Attr32(unix.RTA_PRIORITY, 512)
	got, err := decodeDefault(e.B)
	if want := (DefaultRoute{Index: 7, IPv6: true, Metric: 512}); err != nil || len(got) != 1 || got[0] != want {
		t.Errorf("%v, %v", got, err)
	}
}
