package shaper

import (
	"slices"
	"testing"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// TestWays: net_cls is a tag that two things can read, in this order.
func TestWays(t *testing.T) {
	for binding, want := range map[string][]bind.Way{
		"":        nil,
		"auto":    nil,
		"bpf":     {bind.WayBPF},
		"nft":     {bind.WayNft},
		"net_cls": {bind.WayNetCls, bind.WayNetClsNft, bind.WayClsCgroup},
	} {
		if got := Ways(binding); !slices.Equal(got, want) {
			t.Errorf("ways(%q) = %v, want %v", binding, got, want)
		}
	}
}
