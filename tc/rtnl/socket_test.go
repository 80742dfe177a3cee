//go:build linux

package rtnl

import (
	"errors"
	"testing"

	"github.com/mdlayher/netlink"
)

// A reply is taken apart to its end, and one that is cut short is an error, wherever.
func TestCutMessage(t *testing.T) {
	message := func(data string) []byte {
		e := Encoder{}
		e.Uint32(uint32(16 + len(data)))
		e.Uint16(18)
		e.Uint16(uint16(netlink.Multi))
		e.Uint32(7)
		e.Uint32(4711)
		return append(e.B, data...)
	}
	b := append(append(message("abcde"), 0, 0, 0), message("x")...)
	for _, want := range []string{"abcde", "x"} {
		m, rest, err := cutMessage(b)
		header := netlink.Header{Length: uint32(16 + len(want)), Type: 18, Flags: netlink.Multi, Sequence: 7, PID: 4711}
		if err != nil || m.Header != header || string(m.Data) != want {
			t.Errorf("%+v, %v, not %+v with %q", m, err, header, want)
		}
		b = rest
	}
	if len(b) > 0 {
		t.Errorf("%q is left", b)
	}
	long, short := message("abcd"), message("abcd")
	long[0], short[0] = 21, 15
	for _, b := range [][]byte{message("")[:15], message("abcd")[:19], long, short} {
		if m, rest, err := cutMessage(b); !errors.Is(err, ErrMalformed) || len(rest) > 0 {
			t.Errorf("%q is %+v, %v", b, m, err)
		}
	}
}
