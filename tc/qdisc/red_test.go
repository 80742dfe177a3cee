//go:build linux

package qdisc

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

func TestEncodeRED(t *testing.T) {
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: red limit 400000 min 30000 max 90000 avpkt 1000 burst 55 bandwidth 10mbit probability 0.02 ecn adaptive
		"red", true, qdisc("red", "limit", 400000, "min", 30000, "max", 90000, "ewma", 5, "scell_log", 15, "ecn", 1, "harddrop", 0, "nodrop", 0, "adaptive", 1),
		`00000000 05000000 00001000 10001f07 00000000 08000100 72656400 24010280
		 14000100 801a0600 30750000 905f0100 05160f05 04010200 00000000 00000000
		 00000000 01010101 01010101 01010101 02020202 02020202 02020202 03030303
		 03030303 03030304 04040404 04040404 04040405 05050505 05050505 05050506
		 06060606 06060606 06060707 07070707 07070707 07070808 08080808 08080808
		 08080909 09090909 09090909 090a0a0a 0a0a0a0a 0a0a0a0a 0a0b0b0b 0b0b0b0b
		 0b0b0b0b 0b0c0c0c 0c0c0c0c 0c0c0c0c 0d0d0d0d 0d0d0d0d 0d0d0d0d 0e0e0e0e
		 0e0e0e0e 0e0e0e0e 0f0f0f0f 0f0f0f0f 0f0f0f10 10101010 10101010 10101011
		 11111111 11111111 11111112 12121212 12121212 12121313 13131313 13131313
		 13131414 14141414 14141414 14141515 15151515 1515151f 08000300 52b81e05`,
	}})
}

func TestSettleRED(t *testing.T) {
	plain := func(params ...any) hierarchy.Qdisc {
		return qdisc("red", append(params, "ecn", 0, "harddrop", 0, "nodrop", 0, "adaptive", 0)...)
	}
	settleAll(t, []settling{
		{"red", qdisc("red"), plain("limit", 96896, "min", 8074, "max", 24224, "ewma", 3, "scell_log", 13, "probability", 85899346), ""},
		{"red by limit", qdisc("red", "limit", 400_000), plain("limit", 400_000, "min", 33333, "max", 100_000, "ewma", 5, "scell_log", 15, "probability", 85899346), ""},
		{"red by min", qdisc("red", "min", 30_000), plain("limit", 360_000, "min", 30_000, "max", 90_000, "ewma", 5, "scell_log", 15, "probability", 85899346), ""},
		{"red by min and limit", qdisc("red", "min", 30_000, "limit", 60_000), plain("limit", 60_000, "min", 30_000, "max", 60_000, "ewma", 3, "scell_log", 13, "probability", 85899346), ""},
		// tc-red(8): limit 400000 min 30000 max 90000 avpkt 1000 burst 55 bandwidth 10Mbit
		{"red of the manual", qdisc("red", "limit", 400_000, "min", 30_000, "max", 90_000, "avpkt", 1000, "burst", 55, "bandwidth", 10_000_000), plain("limit", 400_000, "min", 30_000, "max", 90_000, "ewma", 5, "scell_log", 15, "probability", 85899346), ""},
		{"red that is too small", qdisc("red", "limit", 4), hierarchy.Qdisc{}, "min 1 is not below max 1: give a larger limit"},
		{"red with a short burst", qdisc("red", "min", 30_000, "avpkt", 1000, "burst", 28), hierarchy.Qdisc{}, "burst 28 is less than the packets that fit below min: at least 30"},
		{"red with a long burst", qdisc("red", "max", 100_000_000, "burst", 100_000), hierarchy.Qdisc{}, "burst 100000 makes ewma 18, more than the kernel can count with: at most 4"},
		{"red with a large ewma", qdisc("red", "max", 100_000_000, "ewma", 5), hierarchy.Qdisc{}, "ewma 5 is more than the kernel can count with: at most 4"},
	})
}

func TestVerifyRED(t *testing.T) {
	verifyAll(t, []verified{
		{qdisc("red", "min", 20_000, "max", 15_000), "min 20kb is not below max 15kb"},
		{qdisc("red", "limit", 20_000, "max", 30_000), "max 30kb is above limit 20kb"},
		{qdisc("red", "burst", 20, "ewma", 3), "burst and ewma say the same thing: give one of them"},
		{qdisc("red", "bandwidth", 800, "scell_log", 3), "bandwidth and scell_log say the same thing: give one of them"},
		{qdisc("red", "harddrop", 1), "harddrop is about packets that ecn would mark: give ecn = true too"},
		{qdisc("red", "nodrop", 1, "ecn", 0), "nodrop is about packets that ecn cannot mark: give ecn = true too"},
		{qdisc("red", "ecn", 1, "nodrop", 1, "adaptive", 1), "the kernel does not adapt together with nodrop: give one of them"},
		{qdisc("red", "probability", 1, "adaptive", 1), "adaptive finds the probability by itself: leave one of them out"},
		{qdisc("red", "probability", 1, "adaptive", 0, "ecn", 1, "harddrop", 1), ""},
	})
}

// nodrop goes by another way than the rest of red's flags.
func TestEncodeREDFlags(t *testing.T) {
	for _, tt := range []struct {
		qdisc hierarchy.Qdisc
		old   uint64
		attr  []byte
	}{
		{qdisc("red", "limit", 4, "min", 1, "max", 2, "ewma", 1, "scell_log", 1, "ecn", 1, "harddrop", 1, "adaptive", 1), redECN | redHardDrop | redAdaptive, nil},
		{qdisc("red", "limit", 4, "min", 1, "max", 2, "ewma", 1, "scell_log", 1, "ecn", 1, "nodrop", 1), 0, []byte{9, 0, 0, 0, 15, 0, 0, 0}},
	} {
		e := rtnl.Encoder{}
		if err := red.encode(&e, tt.qdisc, true); err != nil {
			t.Fatal(err)
		}
		var attr []byte
		var old uint64
		if err := rtnl.EachAttr(e.B, func(typ uint16, v []byte) error {
			switch typ {
			case redParmsAttr:
				p, err := decodeRED(v)
				old = p.flags
				return err
			case redFlagsAttr:
				attr = v
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.attr, attr); d != "" || old != tt.old {
			t.Errorf("%v: flags %x, attribute (-want +got)\n%s", tt.qdisc, old, d)
		}
	}
}
