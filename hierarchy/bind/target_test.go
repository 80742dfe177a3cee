package bind_test

import (
	"cmp"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	. "github.com/vifshape/vifshape/hierarchy/bind"
)

func TestParseTarget(t *testing.T) {
	const none = " is none of cgroup:/PATH, cgroup-id:N, uid:N, link:NAME, link-index:N"
	check(t, ParseTarget, []read[Target]{
		{in: ""},
		{in: "cgroup:/", want: ToCgroup("/")},
		{in: "cgroup:/a b/c:d", want: ToCgroup("/a b/c:d")},
		{in: "cgroup-id:18446744073709551615", want: ToCgroupID(1<<64 - 1)},
		{in: "uid:0", want: ToUser(0)},
		{in: "uid:4294967295", want: ToUser(1<<32 - 1)},
		{in: "link:eth0.100", want: ToLink("eth0.100")},
		{in: "link-index:12", want: ToLinkIndex(12)},

		{in: "pid:1", err: `"pid:1"` + none},
		{in: "cgroup", err: `"cgroup"` + none},
		{in: "cgroup:", err: `"cgroup:"` + none},
		{in: ":1", err: `":1"` + none},
		{in: "uid:4294967296", err: `"uid:4294967296": the number of a uid is from 0 to 4294967295`},
		{in: "uid:root", err: `"uid:root": the number of a uid is from 0 to 4294967295`},
		{in: "cgroup-id:-1", err: `"cgroup-id:-1": the number of a cgroup-id is from 0 to 18446744073709551615`},
	})
}

// targets are some of every kind.
var targets = []Target{
	{}, ToCgroup("/"), ToCgroup("/a"), ToCgroup("/a-b"), ToCgroup("/a/b"), ToCgroupID(9), ToCgroupID(10),
	ToUser(0), ToUser(9), ToUser(10), ToUser(1000), ToLink("veth1"), ToLink("veth10"), ToLinkIndex(2), ToLinkIndex(12),
}

func TestTargetText(t *testing.T) {
	for _, x := range targets {
		if got, err := ParseTarget(x.String()); err != nil || got != x {
			t.Errorf("%q is read as %v, error %v", x, got, err)
		}
		want, _ := json.Marshal(x.String())
		if got, err := json.Marshal(x); err != nil || string(got) != string(want) {
			t.Errorf("JSON of %q: %s, error %v", x, got, err)
		}
	}
}

// TestTargetOrder: as the order of the texts, in which targets have always been shown.
func TestTargetOrder(t *testing.T) {
	got := slices.Clone(targets)
	rand.Shuffle(len(got), func(i, j int) { got[i], got[j] = got[j], got[i] })
	slices.SortFunc(got, Target.Compare)
	want := slices.Clone(targets)
	slices.SortFunc(want, func(a, b Target) int { return strings.Compare(a.String(), b.String()) })
	if !slices.Equal(got, want) {
		t.Errorf("order %v, want %v", got, want)
	}
	for _, a := range targets {
		for _, b := range targets {
			if got, want := a.Compare(b), cmp.Compare(a.String(), b.String()); got != want {
				t.Errorf("%q before %q: %d, want %d", a, b, got, want)
			}
		}
	}
}

func FuzzParseTarget(f *testing.F) {
	for _, x := range targets {
		f.Add(x.String())
	}
	f.Fuzz(func(t *testing.T, s string) {
		x, err := ParseTarget(s)
		if err != nil {
			if x != (Target{}) {
				t.Fatalf("%q: value %v with error %v", s, x, err)
			}
			return
		}
		if again, err := ParseTarget(x.String()); err != nil || again != x {
			t.Fatalf("%q: %q is read as %v, error %v", s, x, again, err)
		}
	})
}
