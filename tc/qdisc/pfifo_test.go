//go:build linux

package qdisc

import (
	"testing"
)

func TestEncodePFIFO(t *testing.T) {
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: pfifo limit 50
		"pfifo", true, qdisc("pfifo", "limit", 50),
		`00000000 05000000 00001000 10001f07 00000000
		 0a000100 70666966 6f000000
		 08000280 32000000`,
	}})
}

func TestSettlePFIFO(t *testing.T) {
	settleAll(t, []settling{
		{"pfifo", qdisc("pfifo"), qdisc("pfifo", "limit", 32), ""},
		{"pfifo with a limit", qdisc("pfifo", "limit", 7), qdisc("pfifo", "limit", 7), ""},
	})
}
