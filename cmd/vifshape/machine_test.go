package main

import (
	"slices"
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
)

// TestWays: net_cls is a tag that two things can read, in this order.
func TestWays(t *testing.T) {
	for binding, want := range map[string][]hierarchy.Way{
		"":        nil,
		"auto":    nil,
		"bpf":     {hierarchy.WayBPF},
		"nft":     {hierarchy.WayNft},
		"net_cls": {hierarchy.WayNetCls, hierarchy.WayNetClsNft, hierarchy.WayClsCgroup},
	} {
		if got := ways(binding); !slices.Equal(got, want) {
			t.Errorf("ways(%q) = %v, want %v", binding, got, want)
		}
	}
}
