package shaper

import (
	"testing"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// TestDeeper: of the targets that hold a process the classifier takes the deepest
// cgroup, and a user after all of them.
func TestDeeper(t *testing.T) {
	for _, c := range []struct {
		a, b bind.Target
		want bool
	}{
		{bind.ToCgroup("/a/b"), bind.ToCgroup("/a"), true},
		{bind.ToCgroup("/a"), bind.ToCgroup("/a/b"), false},
		{bind.ToCgroup("/a"), bind.Target{}, true},
		{bind.ToUser(1000), bind.Target{}, true},
		{bind.ToUser(1000), bind.ToCgroup("/"), false},
		{bind.ToCgroup("/"), bind.ToUser(1000), true},
	} {
		if got := deeper(c.a, c.b); got != c.want {
			t.Errorf("deeper(%q, %q) = %v", c.a, c.b, got)
		}
	}
}
