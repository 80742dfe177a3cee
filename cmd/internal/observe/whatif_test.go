package observe

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// stand is what a policy says of eth0, after what ids remember.
func stand(t *testing.T, branches string, ids hierarchy.IDs) Stand {
	t.Helper()
	p, err := policy.Parse("policy.toml", strings.NewReader("version = 1\n[interface.eth0]\nrate = \"100mbit\"\n"+branches), qdisc.Kinds())
	if err == nil {
		ids, err = ids.Assign(p.Trees[0])
	}
	if err != nil {
		t.Fatal(err)
	}
	return NewStand(p.Trees[0], ids)
}

// A branch that one of two policies lacks demands what it does where the other has its packets.
func TestForesee(t *testing.T) {
	const leaf, divided = "[interface.eth0.web]\nrate = \"50%\"\n", "[interface.eth0.web]\nrate = \"50%\"\nbind = [\"user:7\"]\n[interface.eth0.web.api]\n"
	for _, r := range []struct{ name, now, would, demand, want string }{
		{"a leaf that is divided", leaf, divided, "web", `
eth0/web 50mbit max gets 100mbit, 50mbit - gets 100mbit
eth0/web/api none, 25mbit 0bit gets 0bit
eth0/web/rest none, 25mbit max gets 100mbit
eth0/rest 50mbit 0bit gets 0bit, 50mbit 0bit gets 0bit`},
		{"a part of what is a leaf now", leaf, divided, "web/api", `
eth0/web 50mbit max gets 100mbit, 50mbit - gets 100mbit
eth0/web/api none, 25mbit max gets 100mbit
eth0/web/rest none, 25mbit 0bit gets 0bit
eth0/rest 50mbit 0bit gets 0bit, 50mbit 0bit gets 0bit`},
		{"one that becomes a leaf", divided, leaf, "web/api web/rest", `
eth0/web 50mbit - gets 100mbit, 50mbit max gets 100mbit
eth0/web/api 25mbit max gets 50mbit, none
eth0/web/rest 25mbit max gets 50mbit, none
eth0/rest 50mbit 0bit gets 0bit, 50mbit 0bit gets 0bit`},
		{"one that goes, below one without a rest", "[interface.eth0.a.x]\n[interface.eth0.a.y]\n", "[interface.eth0.a.x]\n", "a/x a/y", `
eth0/a 50mbit - gets 100mbit, 50mbit - gets 50mbit
eth0/a/x 25mbit max gets 50mbit, 50mbit max gets 50mbit
eth0/a/y 25mbit max gets 50mbit, none
eth0/rest 50mbit 0bit gets 0bit, 50mbit max gets 50mbit`},
		{"one that goes, below one with a rest", divided + "[interface.eth0.web.ftp]\n", divided, "web/ftp rest", `
eth0/web 50mbit - gets 50mbit, 50mbit - gets 50mbit
eth0/web/api 16666666bit 0bit gets 0bit, 25mbit 0bit gets 0bit
eth0/web/rest 16666667bit 0bit gets 0bit, 25mbit max gets 50mbit
eth0/web/ftp 16666667bit max gets 50mbit, none
eth0/rest 50mbit max gets 50mbit, 50mbit max gets 50mbit`},
		{"two that swap their names", "[interface.eth0.a]\nceil = \"10mbit\"\n[interface.eth0.b]\n", "[interface.eth0.b]\nrenamed_from = \"a\"\nceil = \"10mbit\"\n[interface.eth0.a]\nrenamed_from = \"b\"\n", "a", `
eth0/b (was eth0/a) 10mbit 0bit gets 0bit, 10mbit 0bit gets 0bit
eth0/a (was eth0/b) 45mbit max gets 100mbit, 45mbit max gets 100mbit
eth0/rest 45mbit 0bit gets 0bit, 45mbit 0bit gets 0bit`},
		{"one that moves", divided, "[interface.eth0.api]\nrenamed_from = \"eth0/web/api\"\n" + leaf, "api", `
eth0/api (was eth0/web/api) 25mbit max gets 100mbit, 25mbit max gets 100mbit
eth0/web 50mbit - gets 100mbit, 50mbit 0bit gets 0bit
eth0/web/rest 25mbit 0bit gets 0bit, none
eth0/rest 50mbit 0bit gets 0bit, 25mbit 0bit gets 0bit`},
	} {
		t.Run(r.name, func(t *testing.T) {
			now := stand(t, r.now, hierarchy.IDs{})
			var demands []Demand
			for _, p := range strings.Fields(r.demand) {
				demands = append(demands, Demand{Path: hierarchy.Path("eth0/" + p), Want: [2]Want{{Unlimited: true}}})
			}
			all, err := Foresee(now, stand(t, r.would, now.ids), demands)
			if err != nil || len(all) != 1 {
				t.Fatal(all, err)
			}
			got := ""
			for _, b := range all[0].Branches[1:] {
				got += "\n" + string(b.Path)
				if b.Was != "" {
					got += fmt.Sprintf(" (was %s)", b.Was)
				}
				got += " " + text(b.Now) + ", " + text(b.Would)
			}
			if d := cmp.Diff(r.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// text is the share in a line of the tables above.
func text(s *Share) string {
	switch {
	case s == nil:
		return "none"
	case s.Unlimited:
		return fmt.Sprintf("%v max gets %v", s.Rate, s.Gets)
	case s.Demand == nil:
		return fmt.Sprintf("%v - gets %v", s.Rate, s.Gets)
	}
	return fmt.Sprintf("%v %v gets %v", s.Rate, *s.Demand, s.Gets)
}

// What a branch demands is what it let through, unless packets waited all the time or were
// dropped.
func TestMeasured(t *testing.T) {
	stats := func(bytes uint64, waiting, drops uint32) (n tc.ClassStats) {
		n.Bytes, n.QLen, n.Drops = bytes, waiting, drops
		return n
	}
	mbit := Want{Amount: hierarchy.Absolute(hierarchy.Mbit)}
	for _, r := range []struct {
		name    string
		was, is tc.ClassStats
		holds   bool
		want    Want
	}{
		{"it lets all through", stats(100, 0, 0), stats(250_100, 0, 0), false, mbit},
		{"a packet waits once", stats(0, 1, 0), stats(250_000, 0, 0), false, mbit},
		{"packets wait", stats(0, 1, 0), stats(250_000, 9, 0), false, Want{Unlimited: true}},
		{"packets were dropped before", stats(0, 0, 5), stats(250_000, 0, 5), false, mbit},
		{"packets are dropped", stats(0, 0, 5), stats(250_000, 0, 6), false, Want{Unlimited: true}},
		{"its queue delays and loses them", stats(0, 1, 0), stats(250_000, 9, 6), true, mbit},
		{"it was made anew", stats(250_000, 0, 0), stats(100, 0, 0), false, Want{}},
	} {
		if got := measured(r.was, r.is, 2*time.Second, r.holds); got != r.want {
			t.Errorf("%s: %+v, want %+v", r.name, got, r.want)
		}
	}
}
