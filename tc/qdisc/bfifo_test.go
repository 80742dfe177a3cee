//go:build linux

package qdisc

import (
	"testing"
)

func TestEncodeBFIFO(t *testing.T) {
	goldenLeaves(t, []leafMessage{{
		// tc qdisc change dev IF parent 71f:10 bfifo limit 4294967295
		"bfifo in place", false, qdisc("bfifo", "limit", uint64(4294967295)),
		`00000000 05000000 00000000 10001f07 00000000
		 0a000100 62666966 6f000000
		 08000280 ffffffff`,
	}})
}
