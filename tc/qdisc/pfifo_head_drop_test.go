//go:build linux

package qdisc

import (
	"testing"
)

func TestEncodePFIFOHeadDrop(t *testing.T) {
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: pfifo_head_drop limit 50
		"pfifo_head_drop", true, qdisc("pfifo_head_drop", "limit", 50),
		`00000000 05000000 00001000 10001f07 00000000 14000100 70666966 6f5f6865
		 61645f64 726f7000 08000280 32000000`,
	}})
}
