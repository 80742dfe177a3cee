package iface

import (
	"errors"
	"testing"

	"github.com/mdlayher/netlink"
)

// TestWhole: a list that was changed while it was read is asked for again, and not
// for ever.
func TestWhole(t *testing.T) {
	broken := errors.New("broken")
	for _, tt := range []struct {
		name        string
		interrupted int
		err         error
		fails       bool
	}{{"whole", 0, nil, false}, {"interrupted", 3, nil, false}, {"again and again", 1000, nil, true}, {"an error", 0, broken, true}} {
		asked := 0
		got, err := Whole(func() ([]netlink.Message, error) {
			asked++
			m := netlink.Message{Header: netlink.Header{Flags: netlink.Multi}}
			last := m
			if asked <= tt.interrupted {
				last.Header.Flags |= netlink.DumpInterrupted
			}
			return []netlink.Message{m, last}, tt.err
		})
		if (err != nil) != tt.fails || tt.err != nil && !errors.Is(err, tt.err) || err == nil && (len(got) != 2 || asked != tt.interrupted+1) {
			t.Errorf("%s: %d messages, %v, asked %d times", tt.name, len(got), err, asked)
		}
	}
}
