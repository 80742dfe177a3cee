package escape_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/escape"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

func TestAttempts(t *testing.T) {
	seen := map[string]bool{}
	for _, a := range escape.Attempts() {
		if seen[a.Name] {
			t.Errorf("%s is there twice", a.Name)
		}
		seen[a.Name] = true
		if a.Family == "" || a.Text == "" {
			t.Errorf("%s does not say what it is", a.Name)
		}
		for _, h := range a.Holes {
			if h.Why == "" {
				t.Errorf("%s has a hole without a reason", a.Name)
			}
		}
		if sends := a.Direction() == hierarchy.Send; sends != (a.Whose == "") {
			t.Errorf("%s is judged by what is %v", a.Name, a.Direction())
		}
		if found := escape.Find(a.Name); found == nil || found.Name != a.Name {
			t.Errorf("%s is not found", a.Name)
		}
	}
	if escape.Find("nonesuch") != nil {
		t.Error("an attempt is found that is not there")
	}
}

func TestJudge(t *testing.T) {
	root := escape.Case{Way: bind.WayBPF, Level: escape.Tag, User: escape.Root}
	lock := escape.Case{Way: bind.WayBPF, Level: escape.Lock, User: escape.Root}
	never := &escape.Attempt{}
	tag := &escape.Attempt{Holes: []escape.Hole{{Level: escape.Tag, User: escape.Root, Ways: []bind.Way{bind.WayBPF}, Why: "so it is"}}}
	always := &escape.Attempt{Holes: []escape.Hole{{Why: "no way", Impossible: true}}}
	blind := &escape.Attempt{Whose: escape.Its, Holes: []escape.Hole{{Blind: true, Why: "nobody is found"}}}
	seesNot := root
	seesNot.Blind = true
	sent := escape.Outcome{Sent: 40}
	lacking := escape.Outcome{Err: "socket: protocol not supported", Errno: unix.EPROTONOSUPPORT}
	refused := escape.Outcome{Err: "clone3: function not implemented", Errno: unix.ENOSYS}
	for _, tt := range []struct {
		name    string
		a       *escape.Attempt
		c       escape.Case
		o, free escape.Outcome
		n       escape.Counts
		changed string
		want    escape.Result
	}{
		{"own class", never, root, sent, sent, escape.Counts{Own: 40, Arrived: 40}, "", escape.Result{Verdict: escape.Held}},
		{"segments", never, root, sent, sent, escape.Counts{Own: 160, Arrived: 40}, "", escape.Result{Verdict: escape.Held}},
		{"strays", never, root, escape.Outcome{Sent: 3, Strays: 4}, sent, escape.Counts{Own: 5, Rest: 2, Arrived: 7}, "", escape.Result{Verdict: escape.Held}},
		{"too many strays", never, root, escape.Outcome{Sent: 3, Strays: 4}, sent, escape.Counts{Own: 5, Rest: 5, Arrived: 10}, "",
			escape.Result{Verdict: escape.Escaped, Reason: "5 packets went to the rest", Out: true}},
		{"strays that match", never, root, escape.Outcome{Sent: 3, Strays: 4}, sent, escape.Counts{Own: 5, Rest: 2, Matched: 2, Arrived: 9}, "", escape.Result{Verdict: escape.Held}},
		{"released by a match", never, root, sent, sent, escape.Counts{Matched: 40, Arrived: 40}, "",
			escape.Result{Verdict: escape.Escaped, Reason: "40 packets were nobody's, and went where they match", Out: true}},
		{"another branch", never, root, sent, sent, escape.Counts{Others: 40, Arrived: 40}, "",
			escape.Result{Verdict: escape.Escaped, Reason: "40 packets went to another branch", Out: true}},
		{"past the queue", never, root, sent, sent, escape.Counts{Own: 1, Arrived: 41}, "",
			escape.Result{Verdict: escape.Escaped, Reason: "40 packets went past the queue", Out: true}},
		{"a changed tree", never, root, sent, sent, escape.Counts{Own: 40, Arrived: 40}, "changed",
			escape.Result{Verdict: escape.Escaped, Reason: "changed", Out: true}},
		{"documented", tag, root, sent, sent, escape.Counts{Rest: 40, Arrived: 40}, "",
			escape.Result{Verdict: escape.Open, Reason: "so it is: 40 packets went to the rest", Out: true}},
		{"documented for another level", tag, lock, sent, sent, escape.Counts{Rest: 40, Arrived: 40}, "",
			escape.Result{Verdict: escape.Escaped, Reason: "40 packets went to the rest", Out: true}},
		{"impossible", always, lock, sent, sent, escape.Counts{Rest: 40, Arrived: 40}, "",
			escape.Result{Verdict: escape.Impossible, Reason: "no way: 40 packets went to the rest", Out: true}},
		{"where nobody is looked for", blind, seesNot, sent, sent, escape.Counts{Rest: 40, Arrived: 40}, "",
			escape.Result{Verdict: escape.Open, Reason: "nobody is found: 40 packets went to the rest", Out: true}},
		{"where somebody is", blind, root, sent, sent, escape.Counts{Rest: 40, Arrived: 40}, "",
			escape.Result{Verdict: escape.Escaped, Reason: "40 packets went to the rest", Out: true}},
		{"out in spite of an error", never, root, refused, sent, escape.Counts{Others: 1, Arrived: 1}, "",
			escape.Result{Verdict: escape.Escaped, Reason: "1 packets went to another branch", Out: true}},
		{"refused", never, lock, refused, sent, escape.Counts{}, "", escape.Result{Verdict: escape.Refused, Reason: refused.Err}},
		{"lacking", never, lock, lacking, lacking, escape.Counts{}, "", escape.Result{Verdict: escape.NotTried, Reason: lacking.Err}},
		{"missing", never, lock, escape.Outcome{Missing: "no IPv6"}, lacking, escape.Counts{}, "", escape.Result{Verdict: escape.NotTried, Reason: "no IPv6"}},
		{"nothing sent", never, root, escape.Outcome{}, sent, escape.Counts{}, "",
			escape.Result{Verdict: escape.Failed, Reason: "0 of 0 packets were counted"}},
		{"packets missing", never, root, sent, sent, escape.Counts{Own: 39, Arrived: 39}, "",
			escape.Result{Verdict: escape.Failed, Reason: "39 of 40 packets were counted"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := escape.Judge(tt.a, tt.c, &tt.o, &tt.free, tt.n, tt.changed)
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}
