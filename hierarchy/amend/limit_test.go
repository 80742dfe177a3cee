package amend_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	. "github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/emulate"
)

// TestLimit holds that a limit takes from nobody but where it comes from.
func TestLimit(t *testing.T) {
	five, user := uint8(5), bind.Binding{Kind: bind.User, Name: "alice"}
	tree := func() *hierarchy.Spec {
		return eth0(
			&hierarchy.BranchSpec{Name: "web", Rate: amount("50%"), Bind: []bind.Binding{user}},
			&hierarchy.BranchSpec{Name: "open", Ceil: amount("30mbit")},
			&hierarchy.BranchSpec{Name: "rest", Rate: amount("20mbit"), Ceil: amount("60%"), Prio: &five},
		)
	}
	limit := func(path, ceil string) Branch {
		b := Branch{Path: hierarchy.Path(path), Limit: path}
		if ceil != "" {
			b.Ceil = amount(ceil)
		}
		return b
	}
	rated := limit("eth0/x", "")
	rated.Rate = amount("5mbit")
	much := limit("eth0/x", "")
	much.Rate = amount("20mbit")
	other := limit("eth0/y", "")
	other.Rate = amount("15mbit")
	bound := limit("eth0/web/x", "3mbit")
	bound.Bind = []bind.Binding{user}
	taken := limit("eth0/web", "1mbit")
	taken.Bind = bound.Bind
	slow := limit("eth0/x", "")
	slow.Link = &emulate.Link{Up: hierarchy.Mbit, Delay: time.Second}
	const rest = "web 50mbit up to 100mbit prio 3 [user:alice]\nopen 30mbit up to 30mbit prio 3\n"
	for _, x := range []struct {
		name   string
		limits []Branch
		want   string
	}{
		{"beside the rest", []Branch{limit("eth0/x", "4mbit")}, rest + "x 4mbit up to 4mbit prio 5\nrest 16mbit up to 60mbit prio 5"},
		{"no better than the rest", []Branch{limit("eth0/x", "90mbit")}, rest + "x 10mbit up to 60mbit prio 5\nrest 10mbit up to 60mbit prio 5"},
		{"two", []Branch{limit("eth0/x", "1mbit"), limit("eth0/y", "")}, rest + "x 1mbit up to 1mbit prio 5\ny 6666666bit up to 60mbit prio 5\nrest 12333334bit up to 60mbit prio 5"},
		{"with a rate", []Branch{rated}, rest + "x 5mbit up to 60mbit prio 5\nrest 15mbit up to 60mbit prio 5"},
		{"with too much of it", []Branch{much}, "eth0/x: rate 20mbit is too much: 20mbit is guaranteed to eth0/rest, where it comes from, and something must stay for that"},
		{"with too much of it together", []Branch{rated, other}, "eth0/y: rate 15mbit is too much: 20mbit less 5mbit for other limits is guaranteed to eth0/rest, where it comes from, and something must stay for that"},
		{"below a leaf, with its binding", []Branch{bound}, "web 50mbit up to 100mbit prio 3\nweb/x 3mbit up to 3mbit prio 3 [user:alice]\nweb/rest 47mbit up to 100mbit prio 3\nopen 30mbit up to 30mbit prio 3\nrest 20mbit up to 60mbit prio 5"},
		{"one below the other", []Branch{limit("eth0/x", "4mbit"), limit("eth0/x/y", "9mbit")}, rest + "x 4mbit up to 4mbit prio 5\nx/y 2mbit up to 4mbit prio 5\nx/rest 2mbit up to 4mbit prio 5\nrest 16mbit up to 60mbit prio 5"},
		{"the whole interface", []Branch{limit("eth0", "50mbit")}, "web 25mbit up to 50mbit prio 3 [user:alice]\nopen 15mbit up to 30mbit prio 3\nrest 10mbit up to 30mbit prio 5"},
		{"and no less than it is", []Branch{limit("eth0", "500mbit")}, rest + "rest 20mbit up to 60mbit prio 5"},
		{"a link", []Branch{slow}, rest + "x 1mbit up to 1mbit prio 5 netem\nrest 19mbit up to 60mbit prio 5"},
		{"below a link", []Branch{slow, limit("eth0/x/y", "100kbit")}, rest + "x 1mbit up to 1mbit prio 5\nx/y 100kbit up to 100kbit prio 5 netem\nx/rest 900kbit up to 1mbit prio 5 netem\nrest 19mbit up to 60mbit prio 5"},
		{"where there is none", []Branch{limit("eth0/gone/x", "1mbit")}, "eth0/gone/x: there is no eth0/gone any more\n" + rest + "rest 20mbit up to 60mbit prio 5"},
		{"under a name that is taken, of a branch that keeps its binding", []Branch{taken}, "eth0/web: the policy has a branch of that name\n" + rest + "rest 20mbit up to 60mbit prio 5"},
	} {
		t.Run(x.name, func(t *testing.T) {
			policy := tree()
			before := fmt.Sprintf("%+v", *policy.Children[0])
			var lines []string
			e, err := Extend(policy, append(kinds, hierarchy.Kind{Name: "netem", Params: []hierarchy.Param{{Name: "limit", Max: 1 << 32}, {Name: "delay", Type: hierarchy.Duration, Max: 1 << 40}}}), x.limits)
			if err != nil {
				lines = []string{err.Error()}
			} else {
				for _, d := range e.Dropped {
					lines = append(lines, fmt.Sprintf("%s: %s", d.Path, d.Why))
				}
				for b := range e.Tree.All() {
					if b.Path == "eth0" {
						continue
					}
					line := fmt.Sprintf("%s %v up to %v prio %d", b.Path[len("eth0/"):], b.Rate, b.Ceil, b.Prio)
					if len(b.Bind) > 0 {
						line += fmt.Sprintf(" %v", b.Bind)
					}
					lines = append(lines, strings.TrimSpace(line+" "+b.Qdisc.Kind))
				}
			}
			if d := cmp.Diff(x.want, strings.Join(lines, "\n")); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if after := fmt.Sprintf("%+v", *policy.Children[0]); after != before {
				t.Errorf("the policy has changed from %s to %s", before, after)
			}
			for _, b := range x.limits { // a record has it
				text, err := json.Marshal(b)
				if err != nil {
					t.Fatal(err)
				}
				var got Branch
				if err := json.Unmarshal(text, &got); err != nil {
					t.Fatalf("%s: %v", text, err)
				}
				if d := cmp.Diff(b, got, cmp.AllowUnexported(hierarchy.Amount{})); d != "" {
					t.Errorf("%s (-want +got):\n%s", text, d)
				}
			}
		})
	}
}

// TestName holds that whatever a limit is put on gives a name that a branch may have.
func TestName(t *testing.T) {
	for of, want := range map[string]string{
		"unit:nginx.service": "unit-nginx-service", "cgroup:/a/b": "cgroup--a-b", "rsync-4711": "rsync-4711", "rate": "limit-rate", "rest": "limit-rest",
		"": "limit", "./x": "x", "@": "limit", "é": "limit", "unit:" + strings.Repeat("x", 80): "unit-" + strings.Repeat("x", 59),
	} {
		got := Name(of)
		if err := hierarchy.CheckName(got); got != want || err != nil {
			t.Errorf("%q: %q, want %q (%v)", of, got, want, err)
		}
	}
}
