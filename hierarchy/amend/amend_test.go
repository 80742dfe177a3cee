package amend_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	. "github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

var kinds = []hierarchy.Kind{{Name: "pfifo"}, {Name: "sfq"}}

// amount reads one; tests write only good ones.
func amount(s string) hierarchy.Amount {
	a, err := hierarchy.ParseAmount(s)
	if err != nil {
		panic(err)
	}
	return a
}

// eth0 is an interface of 100 Mbit/s.
func eth0(branches ...*hierarchy.BranchSpec) *hierarchy.Spec {
	return &hierarchy.Spec{Interface: "eth0", BranchSpec: hierarchy.BranchSpec{Rate: amount("100mbit"), Children: branches}}
}

// TestExtend holds what becomes of branches that are added to a policy.
func TestExtend(t *testing.T) {
	prio := uint8(2)
	policy := eth0(
		&hierarchy.BranchSpec{Name: "leaf", Rate: amount("20mbit"), Prio: &prio, Qdisc: &hierarchy.RawQdisc{Kind: "sfq"}, Delegate: []bind.Delegate{"alice"}},
		&hierarchy.BranchSpec{Name: "inner", Rate: amount("10mbit"), Children: []*hierarchy.BranchSpec{{Name: "part", Rate: amount("5mbit")}}},
		&hierarchy.BranchSpec{Name: "bound", Rate: amount("10mbit"), Bind: []bind.Binding{{Kind: bind.User, Name: "bob"}}},
	)
	for _, x := range []struct {
		name string
		add  []Branch
		want string
	}{
		{"to a leaf, which keeps its queue as its rest", []Branch{{Path: "eth0/leaf/x", Rate: amount("25%"), Qdisc: "pfifo"}}, `
leaf 20mbit up to 100mbit prio 2
leaf/x 5mbit up to 100mbit prio 2 pfifo
leaf/rest 15mbit up to 100mbit prio 2 sfq`},
		{"two levels", []Branch{{Path: "eth0/leaf/x", Rate: amount("8mbit"), Ceil: amount("10mbit")}, {Path: "eth0/leaf/x/y", Rate: amount("2mbit")}}, `
leaf 20mbit up to 100mbit prio 2
leaf/x 8mbit up to 10mbit prio 2
leaf/x/y 2mbit up to 10mbit prio 2
leaf/x/rest 6mbit up to 10mbit prio 2
leaf/rest 12mbit up to 100mbit prio 2 sfq`},
		{"without a rate it shares with the rest", []Branch{{Path: "eth0/leaf/x"}}, `
leaf 20mbit up to 100mbit prio 2
leaf/x 10mbit up to 100mbit prio 2
leaf/rest 10mbit up to 100mbit prio 2 sfq`},
		{"to an inner branch", []Branch{{Path: "eth0/inner/x", Rate: amount("5mbit")}}, `
inner 10mbit up to 100mbit prio 3
inner/part 5mbit up to 100mbit prio 3
inner/x 5mbit up to 100mbit prio 3`},
		{"to a bound one", []Branch{{Path: "eth0/bound/x", Rate: amount("5mbit")}}, `
bound 10mbit up to 100mbit prio 3
bound/x 5mbit up to 100mbit prio 3
bound/rest 5mbit up to 100mbit prio 3`},
		{"to the interface", []Branch{{Path: "eth0/x", Rate: amount("10mbit")}}, `
x 10mbit up to 100mbit prio 3`},
		{"by a user where it may", []Branch{{Path: "eth0/leaf/x", Rate: amount("5mbit"), By: 1000}}, `
leaf 20mbit up to 100mbit prio 2
leaf/x 5mbit up to 100mbit prio 2
leaf/rest 15mbit up to 100mbit prio 2 sfq`},
		{"what has no place", []Branch{{Path: "eth0/bound/x", By: 1000}, {Path: "eth0/gone/x"}, {Path: "eth0/inner/part"}, {Path: "eth0/leaf/x/y", By: 1000}}, `
eth0/bound/x goes: eth0/bound is delegated to nobody any more
eth0/gone/x goes: there is no eth0/gone any more
eth0/inner/part goes: the policy has a branch of that name
eth0/leaf/x/y goes: there is no eth0/leaf/x any more
bound 10mbit up to 100mbit prio 3`},
		{"too much", []Branch{{Path: "eth0/leaf/x", Rate: amount("21mbit")}}, `
eth0/leaf/x: rate 21mbit is too much: the branches of eth0/leaf add up to 21mbit, which is 1mbit more than its rate 20mbit`},
		{"nothing left to the rest", []Branch{{Path: "eth0/leaf/x", Rate: amount("100%")}}, `
eth0/leaf/rest: 20mbit of eth0/leaf's 20mbit are guaranteed to its branches, which leaves 0bit for eth0/leaf/rest; it needs at least 200kbit`},
		{"too deep", []Branch{{Path: "eth0/leaf/1"}, {Path: "eth0/leaf/1/2"}, {Path: "eth0/leaf/1/2/3"}, {Path: "eth0/leaf/1/2/3/4"}, {Path: "eth0/leaf/1/2/3/4/5"}, {Path: "eth0/leaf/1/2/3/4/5/6"}, {Path: "eth0/leaf/1/2/3/4/5/6/7"}}, `
eth0/leaf/1/2/3/4/5/6/7: 7 is level 8 below the interface; HTB has 8, the interface's own among them`},
	} {
		t.Run(x.name, func(t *testing.T) {
			var got strings.Builder
			before := fmt.Sprintf("%+v", *policy.Children[0])
			e, err := Extend(policy, kinds, x.add)
			if err != nil {
				fmt.Fprintf(&got, "\n%v", err)
			} else if len(e.Kept)+len(e.Dropped) != len(x.add) {
				t.Errorf("kept %v, dropped %v", e.Kept, e.Dropped)
			}
			if after := fmt.Sprintf("%+v", *policy.Children[0]); after != before {
				t.Errorf("the policy has changed from %s to %s", before, after)
			}
			for _, d := range e.Dropped {
				fmt.Fprintf(&got, "\n%s goes: %s", d.Path, d.Why)
			}
			if e.Tree != nil {
				top := hierarchy.Path(strings.Join(strings.SplitN(string(x.add[0].Path), "/", 3)[:2], "/"))
				for b := range e.Tree.All() {
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

// TestExtendIngress holds that a branch that is added has its place in the receiving
// tree, too.
func TestExtendIngress(t *testing.T) {
	prio := uint8(2)
	policy := eth0(
		&hierarchy.BranchSpec{Name: "leaf", Rate: amount("20mbit"), Delegate: []bind.Delegate{"alice"}, Qdisc: &hierarchy.RawQdisc{Kind: "pfifo"},
			Ingress: &hierarchy.BranchSpec{Rate: amount("40mbit"), Prio: &prio, Qdisc: &hierarchy.RawQdisc{Kind: "sfq"}}},
		&hierarchy.BranchSpec{Name: "plain", Rate: amount("20mbit"), Qdisc: &hierarchy.RawQdisc{Kind: "pfifo"}},
	)
	sends := *policy
	policy.Ingress = &hierarchy.BranchSpec{Rate: amount("200mbit")}
	for _, x := range []struct {
		name string
		add  []Branch
		want string // of receiving
	}{
		{"with a rate for receiving", []Branch{{Path: "eth0/leaf/x", Rate: amount("5mbit"), Ingress: amount("25%"), Qdisc: "pfifo"}}, `
leaf 40mbit up to 200mbit prio 2
leaf/x 10mbit up to 200mbit prio 2
leaf/rest 30mbit up to 200mbit prio 2 sfq`},
		{"without one it shares with the rest", []Branch{{Path: "eth0/leaf/x", Rate: amount("5mbit")}}, `
leaf 40mbit up to 200mbit prio 2
leaf/x 20mbit up to 200mbit prio 2
leaf/rest 20mbit up to 200mbit prio 2 sfq`},
		{"to one that has none", []Branch{{Path: "eth0/plain/x", Ingress: amount("10mbit")}}, `
plain 80mbit up to 200mbit prio 3
plain/x 10mbit up to 200mbit prio 3
plain/rest 70mbit up to 200mbit prio 3`},
		{"two levels", []Branch{{Path: "eth0/leaf/x", Ingress: amount("8mbit")}, {Path: "eth0/leaf/x/y", Ingress: amount("2mbit")}}, `
leaf 40mbit up to 200mbit prio 2
leaf/x 8mbit up to 200mbit prio 2
leaf/x/y 2mbit up to 200mbit prio 2
leaf/x/rest 6mbit up to 200mbit prio 2
leaf/rest 32mbit up to 200mbit prio 2 sfq`},
		{"too much", []Branch{{Path: "eth0/leaf/x", Ingress: amount("41mbit")}}, `
eth0/leaf/x: ingress: rate 41mbit is too much: the branches of eth0/leaf add up to 41mbit, which is 1mbit more than its rate 40mbit`},
	} {
		t.Run(x.name, func(t *testing.T) {
			var got strings.Builder
			in := *policy.Children[0].Ingress
			e, err := Extend(policy, kinds, x.add)
			if err != nil {
				fmt.Fprintf(&got, "\n%v", err)
			} else {
				top := hierarchy.Path(strings.Join(strings.SplitN(string(x.add[0].Path), "/", 3)[:2], "/"))
				for b := range e.Tree.Ingress.All() {
					if b.Path.Below(top) {
						fmt.Fprintf(&got, "\n%s", strings.TrimSpace(fmt.Sprintf("%s %v up to %v prio %d %s", b.Path[len("eth0/"):], b.Rate, b.Ceil, b.Prio, b.Qdisc.Kind)))
					}
				}
			}
			if d := cmp.Diff(x.want, got.String()); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if now := *policy.Children[0].Ingress; now.Qdisc != in.Qdisc || policy.Children[0].Qdisc == nil {
				t.Error("the policy has changed")
			}
		})
	}
	_, err := Extend(&sends, kinds, []Branch{{Path: "eth0/plain/x", Ingress: amount("10mbit")}})
	if err == nil || !strings.HasSuffix(err.Error(), ": ingress is written here, but not for eth0 as a whole") {
		t.Errorf("where nothing is shaped that is received: %v", err)
	}
}

// TestFitsIngress holds that users take nothing from others of what is received, either.
func TestFitsIngress(t *testing.T) {
	prio := uint8(5)
	policy := eth0(&hierarchy.BranchSpec{Name: "a", Rate: amount("20mbit"), Delegate: []bind.Delegate{"uid:1"}, Ingress: &hierarchy.BranchSpec{Rate: amount("20mbit"), Prio: &prio},
		Children: []*hierarchy.BranchSpec{{Name: "open", Rate: amount("1mbit")}}})
	policy.Ingress = &hierarchy.BranchSpec{Rate: amount("100mbit")}
	before, err := Extend(policy, kinds, nil)
	if err != nil {
		t.Fatal(err)
	}
	four := uint8(4)
	for _, x := range []struct {
		add  Branch
		want string // empty: nothing is wrong
	}{
		{Branch{Ingress: amount("5mbit")}, ""},
		{Branch{}, ""},
		{Branch{Ingress: amount("31kbit")}, "eth0/a/x: ingress: rate 31kbit is below 32kbit, which is the least for a branch that users add"},
		{Branch{Ingress: amount("19.78mbit")}, "eth0/a/open: ingress: 20kbit would be left for it, and users leave it 32kbit at least"},
		{Branch{Prio: &four}, "eth0/a/x: ingress: prio 4 comes before the prio 5 of eth0/a: write 5 or more"},
		{Branch{Prio: &prio}, ""},
	} {
		x.add.Path, x.add.By = "eth0/a/x", 1
		if x.add.Rate.IsZero() {
			x.add.Rate = amount("1mbit")
		}
		with, err := Extend(policy, kinds, []Branch{x.add})
		if err != nil {
			t.Fatal(err)
		}
		got := ""
		if err := Fits(before.Tree, with.Tree, "eth0/a", "eth0/a/x"); err != nil {
			got = err.Error()
		}
		if got != x.want {
			t.Errorf("%+v: %q, want %q", x.add, got, x.want)
		}
	}
}

// TestFits holds that what users add leaves nobody a rate that HTB would exceed.
func TestFits(t *testing.T) {
	prio := uint8(4)
	policy := eth0(&hierarchy.BranchSpec{Name: "a", Rate: amount("20mbit"), Prio: &prio, Delegate: []bind.Delegate{"uid:1"},
		Children: []*hierarchy.BranchSpec{{Name: "slow", Rate: amount("8kbit")}, {Name: "open"}}})
	tree := func(all ...Branch) *hierarchy.Tree {
		got, err := Extend(policy, kinds, all)
		if err != nil {
			t.Fatal(err)
		}
		return got.Tree
	}
	for _, x := range []struct {
		name string
		all  []Branch // the last one is to be added
		want string   // part of what is wrong, empty: nothing
	}{
		{"beside a slow one of the policy", []Branch{{Path: "eth0/a/x", Rate: amount("5mbit"), By: 1}}, ""},
		{"below the least", []Branch{{Path: "eth0/a/x", Rate: amount("31kbit"), By: 1}}, "eth0/a/x: rate 31kbit is below 32kbit"},
		{"the least", []Branch{{Path: "eth0/a/x", Rate: amount("32kbit"), By: 1}}, ""},
		{"nothing for the policy's", []Branch{{Path: "eth0/a/x", Rate: amount("19.78mbit"), By: 1}}, "eth0/a/open: 12kbit would be left for it"},
		{"nothing for the user's own", []Branch{
			{Path: "eth0/a/y", Rate: amount("19mbit"), By: 1},
			{Path: "eth0/a/y/1", By: 1}, {Path: "eth0/a/y/2", By: 1},
			{Path: "eth0/a/y/x", Rate: amount("18.79mbit"), By: 1},
		}, "eth0/a/y/1: 10kbit would be left for it"},
		{"a share of a share", []Branch{
			{Path: "eth0/a/y", By: 1},
			{Path: "eth0/a/y/1", Rate: amount("1%"), By: 1},
			{Path: "eth0/a/x", Rate: amount("18mbit"), By: 1},
		}, "eth0/a/y/1: 6640bit would be left for it"},
		{"a rest that comes with it", []Branch{
			{Path: "eth0/a/y", Rate: amount("64kbit"), By: 1},
			{Path: "eth0/a/y/1", Rate: amount("40kbit"), By: 1},
		}, "eth0/a/y/rest: 24kbit would be left for it"},
		{"before the others", []Branch{{Path: "eth0/a/x", Rate: amount("5mbit"), Prio: new(uint8), By: 1}}, "prio 0 comes before the prio 4"},
	} {
		t.Run(x.name, func(t *testing.T) {
			last := x.all[len(x.all)-1]
			err := Fits(tree(x.all[:len(x.all)-1]...), tree(x.all...), "eth0/a", last.Path)
			if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
				t.Errorf("not %q: %v", x.want, err)
			}
		})
	}
}

// TestKeep holds that the branch is named which a later policy has no room for.
func TestKeep(t *testing.T) {
	policy := eth0(&hierarchy.BranchSpec{Name: "a", Rate: amount("10mbit")})
	added := []Branch{{Path: "eth0/a/x", Rate: amount("4mbit")}, {Path: "eth0/a/y", Rate: amount("7mbit")}, {Path: "eth0/b/z"}}
	var unfit UnfitError
	_, err := Keep(policy, kinds, added)
	if !errors.As(err, &unfit) || unfit.Branch.Path != "eth0/a/y" || !errors.As(err, new(ProblemError)) {
		t.Errorf("%v", err)
	}
	added[1].Rate = amount("5mbit")
	x, err := Keep(policy, kinds, added)
	if err != nil || len(x.Kept) != 2 || len(x.Dropped) != 1 || x.Tree.Find("eth0/a/rest").Rate != hierarchy.Mbit {
		t.Errorf("%+v, %v", x, err)
	}
}

// TestRoom holds that only what users added below their branch counts against it.
func TestRoom(t *testing.T) {
	added := []Branch{{Path: "eth0/a/root"}, {Path: "eth0/b/x", By: 1}}
	for i := range Most {
		if err := Room(added, "eth0/a", "eth0/a/x"); err != nil {
			t.Fatalf("after %d: %v", i, err)
		}
		added = append(added, Branch{Path: hierarchy.Path(fmt.Sprintf("eth0/a/b%d", i)), By: 1})
	}
	if err := Room(added, "eth0/a", "eth0/a/x"); err == nil || err.Error() != "eth0/a/x: eth0/a has 64 branches that were added, and that is the most" {
		t.Errorf("after %d: %v", Most, err)
	}
}
