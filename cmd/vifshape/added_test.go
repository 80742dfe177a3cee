package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc"
)

// specOf is what a record keeps of the only interface of a policy.
func specOf(t *testing.T, text string) json.RawMessage {
	t.Helper()
	p, err := policy.Parse("policy.toml", strings.NewReader(text), tc.Kinds())
	if err != nil {
		t.Fatal(err)
	}
	spec, err := json.Marshal(p.Specs[0])
	if err != nil {
		t.Fatal(err)
	}
	return spec
}

// amounts reads amounts that are right.
func amounts(t *testing.T) func(string) hierarchy.Amount {
	return func(s string) hierarchy.Amount {
		t.Helper()
		a, err := hierarchy.ParseAmount(s)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
}

// TestExtend holds what becomes of branches that are added to a policy.
func TestExtend(t *testing.T) {
	const text = `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.leaf]
rate = "20mbit"
prio = 2
qdisc = "sfq"
delegate = ["alice"]
[interface.eth0.inner.part]
rate = "5mbit"
[interface.eth0.inner]
rate = "10mbit"
[interface.eth0.bound]
rate = "10mbit"
bind = ["user:bob"]
`
	amount := amounts(t)
	for _, x := range []struct {
		name string
		add  []added
		want string
	}{
		{"to a leaf, which keeps its queue as its rest", []added{{Path: "eth0/leaf/x", Rate: amount("25%"), Qdisc: "pfifo"}}, `
leaf 20mbit up to 100mbit prio 2
leaf/x 5mbit up to 100mbit prio 2 pfifo
leaf/rest 15mbit up to 100mbit prio 2 sfq`},
		{"two levels", []added{{Path: "eth0/leaf/x", Rate: amount("8mbit"), Ceil: amount("10mbit")}, {Path: "eth0/leaf/x/y", Rate: amount("2mbit")}}, `
leaf 20mbit up to 100mbit prio 2
leaf/x 8mbit up to 10mbit prio 2
leaf/x/y 2mbit up to 10mbit prio 2
leaf/x/rest 6mbit up to 10mbit prio 2
leaf/rest 12mbit up to 100mbit prio 2 sfq`},
		{"without a rate it shares with the rest", []added{{Path: "eth0/leaf/x"}}, `
leaf 20mbit up to 100mbit prio 2
leaf/x 10mbit up to 100mbit prio 2
leaf/rest 10mbit up to 100mbit prio 2 sfq`},
		{"to an inner branch", []added{{Path: "eth0/inner/x", Rate: amount("5mbit")}}, `
inner 10mbit up to 100mbit prio 3
inner/part 5mbit up to 100mbit prio 3
inner/x 5mbit up to 100mbit prio 3`},
		{"to a bound one", []added{{Path: "eth0/bound/x", Rate: amount("5mbit")}}, `
bound 10mbit up to 100mbit prio 3
bound/x 5mbit up to 100mbit prio 3
bound/rest 5mbit up to 100mbit prio 3`},
		{"to the interface", []added{{Path: "eth0/x", Rate: amount("10mbit")}}, `
x 10mbit up to 100mbit prio 3`},
		{"by a user where it may", []added{{Path: "eth0/leaf/x", Rate: amount("5mbit"), By: 1000}}, `
leaf 20mbit up to 100mbit prio 2
leaf/x 5mbit up to 100mbit prio 2
leaf/rest 15mbit up to 100mbit prio 2 sfq`},
		{"what has no place", []added{{Path: "eth0/bound/x", By: 1000}, {Path: "eth0/gone/x"}, {Path: "eth0/inner/part"}, {Path: "eth0/leaf/x/y", By: 1000}}, `
eth0/bound/x goes: eth0/bound is delegated to nobody any more
eth0/gone/x goes: there is no eth0/gone any more
eth0/inner/part goes: the policy has a branch of that name
eth0/leaf/x/y goes: there is no eth0/leaf/x any more
bound 10mbit up to 100mbit prio 3`},
		{"too much", []added{{Path: "eth0/leaf/x", Rate: amount("21mbit")}}, `
eth0/leaf/x: rate 21mbit is too much: the branches of eth0/leaf add up to 21mbit, which is 1mbit more than its rate 20mbit`},
		{"nothing left to the rest", []added{{Path: "eth0/leaf/x", Rate: amount("100%")}}, `
eth0/leaf/rest: 20mbit of eth0/leaf's 20mbit are guaranteed to its branches, which leaves 0bit for eth0/leaf/rest; it needs at least 200kbit`},
		{"too deep", []added{{Path: "eth0/leaf/1"}, {Path: "eth0/leaf/1/2"}, {Path: "eth0/leaf/1/2/3"}, {Path: "eth0/leaf/1/2/3/4"}, {Path: "eth0/leaf/1/2/3/4/5"}, {Path: "eth0/leaf/1/2/3/4/5/6"}, {Path: "eth0/leaf/1/2/3/4/5/6/7"}}, `
eth0/leaf/1/2/3/4/5/6/7: 7 is level 8 below the interface; HTB has 8, the interface's own among them`},
	} {
		t.Run(x.name, func(t *testing.T) {
			spec := specOf(t, text)
			var got strings.Builder
			tree, kept, dropped, err := extend(spec, "eth0", x.add)
			if err != nil {
				fmt.Fprintf(&got, "\n%v", err)
			} else if len(kept)+len(dropped) != len(x.add) {
				t.Errorf("kept %v, dropped %v", kept, dropped)
			}
			for _, d := range dropped {
				fmt.Fprintf(&got, "\n%s goes: %s", d.Path, d.why)
			}
			if tree != nil {
				top := hierarchy.Path(strings.Join(strings.SplitN(string(x.add[0].Path), "/", 3)[:2], "/"))
				for b := range tree.All() {
					if !b.Path.Below(top) {
						continue
					}
					fmt.Fprintf(&got, "\n%s %v up to %v prio %d", b.Path[len("eth0/"):], b.Rate, b.Ceil, b.Prio)
					if b.Qdisc.Kind != "" {
						fmt.Fprintf(&got, " %s", b.Qdisc.Kind)
					}
				}
			}
			if d := cmp.Diff(x.want, got.String()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// TestBase holds how far up users may go.
func TestBase(t *testing.T) {
	r := &record{Interface: "eth0", Delegated: []delegated{
		{"eth0/a", []bind.Delegate{"uid:1"}},
		{"eth0/a/b", []bind.Delegate{"uid:1", "uid:2"}},
		{"eth0/a/b/c/d", []bind.Delegate{"uid:2"}},
		{"eth0/ab", []bind.Delegate{"uid:3", "no-such-user", "nobody"}},
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

// TestFits holds that what users add leaves nobody a rate that HTB would exceed.
func TestFits(t *testing.T) {
	const text = `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.a]
rate = "20mbit"
prio = 4
delegate = ["uid:1"]
[interface.eth0.a.slow]
rate = "8kbit"
[interface.eth0.a.open]
`
	spec := specOf(t, text)
	amount := amounts(t)
	tree := func(all ...added) *hierarchy.Tree {
		got, _, _, err := extend(spec, "eth0", all)
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	for _, x := range []struct {
		name string
		all  []added // the last one is to be added
		want string  // part of what is wrong, empty: nothing
	}{
		{"beside a slow one of the policy", []added{{Path: "eth0/a/x", Rate: amount("5mbit"), By: 1}}, ""},
		{"below the least", []added{{Path: "eth0/a/x", Rate: amount("31kbit"), By: 1}}, "eth0/a/x: rate 31kbit is below 32kbit"},
		{"the least", []added{{Path: "eth0/a/x", Rate: amount("32kbit"), By: 1}}, ""},
		{"nothing for the policy's", []added{{Path: "eth0/a/x", Rate: amount("19.78mbit"), By: 1}}, "eth0/a/open: 12kbit would be left for it"},
		{"nothing for the user's own", []added{
			{Path: "eth0/a/y", Rate: amount("19mbit"), By: 1},
			{Path: "eth0/a/y/1", By: 1}, {Path: "eth0/a/y/2", By: 1},
			{Path: "eth0/a/y/x", Rate: amount("18.79mbit"), By: 1},
		}, "eth0/a/y/1: 10kbit would be left for it"},
		{"a share of a share", []added{
			{Path: "eth0/a/y", By: 1},
			{Path: "eth0/a/y/1", Rate: amount("1%"), By: 1},
			{Path: "eth0/a/x", Rate: amount("18mbit"), By: 1},
		}, "eth0/a/y/1: 6640bit would be left for it"},
		{"a rest that comes with it", []added{
			{Path: "eth0/a/y", Rate: amount("64kbit"), By: 1},
			{Path: "eth0/a/y/1", Rate: amount("40kbit"), By: 1},
		}, "eth0/a/y/rest: 24kbit would be left for it"},
		{"before the others", []added{{Path: "eth0/a/x", Rate: amount("5mbit"), Prio: new(uint8), By: 1}}, "prio 0 comes before the prio 4"},
	} {
		t.Run(x.name, func(t *testing.T) {
			last := x.all[len(x.all)-1]
			err := fits(tree(x.all[:len(x.all)-1]...), tree(x.all...), "eth0/a", last.Path)
			if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
				t.Errorf("not %q: %v", x.want, err)
			}
		})
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
