package main

import (
	"slices"
	"strings"
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
		who         petitioner
		path        hierarchy.Path
		base, given hierarchy.Path // empty: denied
	}{
		{petitioner{1, nil}, "eth0/a", "eth0/a", "eth0/a"},
		{petitioner{1, nil}, "eth0/a/b/x", "eth0/a", "eth0/a"},
		{petitioner{2, nil}, "eth0/a/b/c/d/e", "eth0/a/b", "eth0/a/b"},
		{petitioner{2, nil}, "eth0/a/x", "", ""},
		{petitioner{2, nil}, "eth0/a", "", ""},
		{petitioner{1, nil}, "eth0/ab", "", ""},
		{petitioner{3, nil}, "eth0/a", "", ""},
		{petitioner{3, nil}, "eth0/ab", "eth0/ab", "eth0/ab"},
		{petitioner{1, nil}, "eth0", "", ""},
		{petitioner{1, nil}, "eth1/a", "", ""},
		{petitioner{4, nil}, "eth0/a", "", ""},
		{petitioner{bind.OverflowUID, nil}, "eth0/ab", "", ""},
		{petitioner{0, nil}, "eth0/rest", "", ""},
		{petitioner{0, []hierarchy.Path{"eth0/a"}}, "eth0/a/x", "", ""},
		{petitioner{1, []hierarchy.Path{"eth0/a/b"}}, "eth0/a/b/x", "eth0/a/b", "eth0/a"},
		{petitioner{1, []hierarchy.Path{"eth0/a/b"}}, "eth0/a/x", "", ""},
		{petitioner{1, []hierarchy.Path{"eth0/a/b"}}, "eth0/a", "", ""},
		{petitioner{1, []hierarchy.Path{"eth0/a/b"}}, "eth0/a/bb", "", ""},
		{petitioner{2, []hierarchy.Path{"eth0/a"}}, "eth0/a/b/x", "eth0/a/b", "eth0/a/b"},
		{petitioner{2, []hierarchy.Path{"eth1/a"}}, "eth0/a/b/x", "", ""},
		{petitioner{0, []hierarchy.Path{"eth0/a"}}, "eth0/ab", "", ""},
		// Threads, or the hierarchies of cgroups, are in different ones.
		{petitioner{1, []hierarchy.Path{"eth0/a", "eth0/a/b"}}, "eth0/a/b/x", "eth0/a/b", "eth0/a"},
		{petitioner{1, []hierarchy.Path{"eth0/a/b", "eth0/a"}}, "eth0/a/b/x", "eth0/a/b", "eth0/a"},
		{petitioner{1, []hierarchy.Path{"eth0/a", "eth0/a/b"}}, "eth0/a/x", "", ""},
		{petitioner{1, []hierarchy.Path{"eth0/a/b", "eth0/ab"}}, "eth0/a/b", "", ""},
		{petitioner{0, []hierarchy.Path{"eth0/a", "eth0/ab"}}, "eth0/a/b", "", ""},
	} {
		base, given, err := x.who.base(r, x.path)
		if base != x.base || given != x.given || (err == nil) != (x.base != "") {
			t.Errorf("user %d in %v, to %s: %q of %q, %v; not %q of %q", x.who.uid, x.who.homes, x.path, base, given, err, x.base, x.given)
		}
		// Root goes where it could put itself, were it not held.
		held := slices.ContainsFunc(x.who.homes, func(home hierarchy.Path) bool { return !x.path.Below(home) })
		may := x.base != "" || x.who.uid == 0 && !held
		if err := x.who.enters(r, x.path); (err == nil) != may {
			t.Errorf("user %d in %v enters %s: %v", x.who.uid, x.who.homes, x.path, err)
		}
	}
}

// FuzzRequest holds that what is made of a request is a branch's path, or an error.
func FuzzRequest(f *testing.F) {
	for _, s := range []string{
		`{"version":1,"op":"enter","path":"eth0/a"}`,
		`{"version":1,"op":"add","path":"eth0/a/x","rate":"5mbit","ceil":"50%","prio":3,"qdisc":"sfq"}`,
		`{"version":1,"op":"remove","path":"eth0/../x"}`,
		`{"version":2}`, `{}`, `[`, ``, "\x00", `{"path":1}`, `{"version":1,"path":"a/b"}{}`,
	} {
		f.Add(s + "\n")
	}
	f.Fuzz(func(t *testing.T, s string) {
		q, err := readRequest(strings.NewReader(s))
		if err != nil {
			return
		}
		names := strings.Split(string(q.Path), "/")
		if q.Version != agentVersion || len(names) < 2 || names[0] == "" || names[0] == "." || names[0] == ".." {
			t.Fatalf("%q: %+v", s, q)
		}
		for _, n := range names[1:] {
			if err := hierarchy.CheckName(n); err != nil {
				t.Fatalf("%q: %v", s, err)
			}
		}
	})
}
