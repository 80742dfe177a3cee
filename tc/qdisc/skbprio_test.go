//go:build linux

package qdisc

import (
	"testing"
)

func TestEncodeSKBPrio(t *testing.T) {
	goldenLeaves(t, []leafMessage{{
		// tc qdisc replace dev IF parent 71f:10 handle 10: skbprio limit 50
		"skbprio", true, qdisc("skbprio", "limit", 50),
		`00000000 05000000 00001000 10001f07 00000000 0c000100 736b6270 72696f00
		 08000280 32000000`,
	}})
}
