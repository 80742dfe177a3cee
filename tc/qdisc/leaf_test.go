//go:build linux

package qdisc

import (
	"errors"
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

func TestHolds(t *testing.T) {
	for _, x := range []struct {
		q    hierarchy.Qdisc
		want bool
	}{
		{qdisc("netem", "limit", 1000), true},
		{qdisc("pfifo", "limit", 1000), false},
		{qdisc("cake", "autorate-ingress", 0), false},
		{qdisc("cake", "autorate-ingress", 1), true},
		{qdisc("cake", "bandwidth", 8000), true},
	} {
		if got := Holds(x.q); got != x.want {
			t.Errorf("%v: %v", x.q, got)
		}
	}
}

func TestEncodeLeafRefused(t *testing.T) {
	for _, tt := range []struct {
		name  string
		class hierarchy.ClassID
		qdisc hierarchy.Qdisc
		want  string
	}{
		{"unknown kind", hierarchy.ID(2), qdisc("wfq"), `qdisc "wfq" cannot be made`},
		{"not settled", hierarchy.ID(2), qdisc("pfifo"), "qdisc pfifo has no limit: it was not settled"},
		{"the root's handle", hierarchy.ID(0x71f), qdisc("pfifo", "limit", 1), "class 71f:71f cannot have a qdisc: its handle would be another's"},
		{"clsact's handle", hierarchy.ID(0xffff), qdisc("pfifo", "limit", 1), "class 71f:ffff cannot have a qdisc: its handle would be another's"},
		{"a burst of years", hierarchy.ID(2), qdisc("tbf", "rate", 8000, "burst", 5000, "limit", 1), "burst 5kb is more than tbf can count at 8kbit: at most 4294b"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Encode(5, &hierarchy.Leaf{Class: tt.class, Qdisc: tt.qdisc}, true)
			if err == nil || err.Error() != tt.want {
				t.Errorf("got %v, want %s", err, tt.want)
			}
		})
	}
}

// TestMarks: what a kernel does not tell is none, and what is cut off is an error; the numbers
// themselves are held against packets, in package tc.
func TestMarks(t *testing.T) {
	for _, tt := range []struct {
		kind  string
		stats []byte
		want  uint64
		err   error
	}{
		{kind: "bfifo"},
		{kind: "drr", stats: []byte{1, 2, 3, 4}},
		{kind: "red", stats: []byte{1, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 4, 0, 0, 0}, want: 4},
		{kind: "red", stats: make([]byte, 12), err: rtnl.ErrMalformed},
		{kind: "fq", stats: make([]byte, 80)}, // of a kernel that counts none
		{kind: "cake"},
		{kind: "cake", stats: []byte{7, 0, cakeTins, 0, 1, 2, 3, 4}, err: rtnl.ErrMalformed},
	} {
		if got, err := Marks(tt.kind, tt.stats); got != tt.want || !errors.Is(err, tt.err) {
			t.Errorf("%s, % x: %d, %v", tt.kind, tt.stats, got, err)
		}
	}
}
