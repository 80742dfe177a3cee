package shaper

import (
	"slices"
	"testing"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// TestBase holds how far up users may go.
func TestBase(t *testing.T) {
	r := &record.Record{Interface: "eth0", Delegated: []record.Delegated{
		{Path: "eth0/a", To: []bind.Delegate{"uid:1"}},
		{Path: "eth0/a/b", To: []bind.Delegate{"uid:1", "uid:2"}},
		{Path: "eth0/a/b/c/d", To: []bind.Delegate{"uid:2"}},
		{Path: "eth0/ab", To: []bind.Delegate{"uid:3", "no-such-user", "nobody"}},
	}}
	for _, x := range []struct {
		who         Petitioner
		path        hierarchy.Path
		base, given hierarchy.Path // empty: denied
	}{
		{Petitioner{1, nil}, "eth0/a", "eth0/a", "eth0/a"},
		{Petitioner{1, nil}, "eth0/a/b/x", "eth0/a", "eth0/a"},
		{Petitioner{2, nil}, "eth0/a/b/c/d/e", "eth0/a/b", "eth0/a/b"},
		{Petitioner{2, nil}, "eth0/a/x", "", ""},
		{Petitioner{2, nil}, "eth0/a", "", ""},
		{Petitioner{1, nil}, "eth0/ab", "", ""},
		{Petitioner{3, nil}, "eth0/a", "", ""},
		{Petitioner{3, nil}, "eth0/ab", "eth0/ab", "eth0/ab"},
		{Petitioner{1, nil}, "eth0", "", ""},
		{Petitioner{1, nil}, "eth1/a", "", ""},
		{Petitioner{4, nil}, "eth0/a", "", ""},
		{Petitioner{bind.OverflowUID, nil}, "eth0/ab", "", ""},
		{Petitioner{0, nil}, "eth0/rest", "", ""},
		{Petitioner{0, []hierarchy.Path{"eth0/a"}}, "eth0/a/x", "", ""},
		{Petitioner{1, []hierarchy.Path{"eth0/a/b"}}, "eth0/a/b/x", "eth0/a/b", "eth0/a"},
		{Petitioner{1, []hierarchy.Path{"eth0/a/b"}}, "eth0/a/x", "", ""},
		{Petitioner{1, []hierarchy.Path{"eth0/a/b"}}, "eth0/a", "", ""},
		{Petitioner{1, []hierarchy.Path{"eth0/a/b"}}, "eth0/a/bb", "", ""},
		{Petitioner{2, []hierarchy.Path{"eth0/a"}}, "eth0/a/b/x", "eth0/a/b", "eth0/a/b"},
		{Petitioner{2, []hierarchy.Path{"eth1/a"}}, "eth0/a/b/x", "", ""},
		{Petitioner{0, []hierarchy.Path{"eth0/a"}}, "eth0/ab", "", ""},
		// Threads, or the hierarchies of cgroups, are in different ones.
		{Petitioner{1, []hierarchy.Path{"eth0/a", "eth0/a/b"}}, "eth0/a/b/x", "eth0/a/b", "eth0/a"},
		{Petitioner{1, []hierarchy.Path{"eth0/a/b", "eth0/a"}}, "eth0/a/b/x", "eth0/a/b", "eth0/a"},
		{Petitioner{1, []hierarchy.Path{"eth0/a", "eth0/a/b"}}, "eth0/a/x", "", ""},
		{Petitioner{1, []hierarchy.Path{"eth0/a/b", "eth0/ab"}}, "eth0/a/b", "", ""},
		{Petitioner{0, []hierarchy.Path{"eth0/a", "eth0/ab"}}, "eth0/a/b", "", ""},
	} {
		base, given, err := x.who.base(r, x.path)
		if base != x.base || given != x.given || (err == nil) != (x.base != "") {
			t.Errorf("user %d in %v, to %s: %q of %q, %v; not %q of %q", x.who.UID, x.who.Homes, x.path, base, given, err, x.base, x.given)
		}
		// Root goes where it could put itself, were it not held.
		held := slices.ContainsFunc(x.who.Homes, func(home hierarchy.Path) bool { return !x.path.Below(home) })
		may := x.base != "" || x.who.UID == 0 && !held
		if err := x.who.MayEnter(r, x.path); (err == nil) != may {
			t.Errorf("user %d in %v enters %s: %v", x.who.UID, x.who.Homes, x.path, err)
		}
	}
}
