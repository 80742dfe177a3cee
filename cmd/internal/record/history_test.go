package record

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
)

// says is a policy's interface that is told by its rate.
func says(rate hierarchy.Bandwidth) *hierarchy.Spec {
	return &hierarchy.Spec{Interface: "eth0", BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(rate)}}
}

// holds holds which policy a record in force came from, and which the one before it: by
// their rates, 0 for none.
func holds(t *testing.T, s *Store, iface string, now, before hierarchy.Bandwidth) {
	t.Helper()
	r, err := s.Load(iface)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := s.Spec(r)
	if err != nil || spec.Rate.Of(0) != now || spec.Interface != iface {
		t.Fatalf("the policy says %+v, %v", spec, err)
	}
	b, err := s.Before(r)
	switch {
	case err != nil:
		t.Fatal(err)
	case before == 0 && b != nil:
		t.Errorf("before it was %+v", b)
	case before != 0 && (b == nil || b.Spec.Rate.Of(0) != before || b.Interface != iface || b.Spec.Interface != iface || b.Policy == "" || b.Applied.IsZero()):
		t.Errorf("before it was %+v", b)
	}
}

func (s *Store) files(t *testing.T) (names []string) {
	t.Helper()
	ents, err := os.ReadDir(s.Dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range ents {
		names = append(names, e.Name())
	}
	return names
}

// TestHistory holds that of a policy that is applied and of what is done at run time only
// the former has a record before it, and that some steps are kept.
func TestHistory(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Locks: t.TempDir()}
	apply := func(rate hierarchy.Bandwidth) (was *Record) {
		t.Helper()
		was, err := s.Load("eth0")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Succeed(&Record{Version: Version, Interface: "eth0", Policy: "/p.toml", Applied: time.Now(), By: "root", Spec: says(rate)}, was); err != nil {
			t.Fatal(err)
		}
		return was
	}
	settle := func() {
		t.Helper()
		r, err := s.Load("eth0")
		if err != nil {
			t.Fatal(err)
		}
		s.Settle(r)
	}
	files := func(want ...string) {
		t.Helper()
		if d := cmp.Diff(want, s.files(t)); d != "" {
			t.Errorf("files (-want +got):\n%s", d)
		}
	}
	apply(1)
	settle()
	holds(t, s, "eth0", 1, 0)
	files("eth0.1.policy", "eth0.json")

	apply(2)
	settle()
	holds(t, s, "eth0", 2, 1)
	apply(3)
	holds(t, s, "eth0", 3, 2) // also before it is settled: the program may be killed
	settle()
	holds(t, s, "eth0", 3, 2)
	files("eth0.1.policy", "eth0.2.before", "eth0.2.policy", "eth0.3.before", "eth0.3.policy", "eth0.json")

	apply(3)
	settle()
	holds(t, s, "eth0", 3, 2) // nothing new was said
	files("eth0.1.policy", "eth0.2.before", "eth0.2.policy", "eth0.3.before", "eth0.3.policy", "eth0.json")

	// What is no policy's may differ alone: who classifies, and what a rollback brings back.
	for _, edit := range []func(*Record){
		func(r *Record) { r.Binding = "nft" },
		func(r *Record) { r.Added = []amend.Branch{{Path: "eth0/a"}} },
		func(r *Record) { r.Bindings = []Binding{{Path: "eth0", AtRuntime: true}} },
	} {
		was, err := s.Load("eth0")
		if err != nil {
			t.Fatal(err)
		}
		r := &Record{Version: Version, Interface: "eth0", Policy: "/p.toml", Applied: time.Now(), By: "root", Spec: says(3)}
		edit(r)
		if err := s.Succeed(r, was); err != nil || r.Serial != was.Serial+1 {
			t.Errorf("%+v comes after %+v: %v", r, was, err)
		}
		if err := s.Save(was); err != nil {
			t.Fatal(err)
		}
		s.Settle(was)
	}
	files("eth0.1.policy", "eth0.2.before", "eth0.2.policy", "eth0.3.before", "eth0.3.policy", "eth0.json")

	// bind, add and the agent save what they loaded.
	r, err := s.Load("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if applied := time.Since(r.Applied); applied < 0 || applied > time.Hour {
		t.Errorf("applied at %v", r.Applied)
	}
	r.Order = []hierarchy.Path{"eth0"}
	if err := s.Save(r); err != nil {
		t.Fatal(err)
	}
	holds(t, s, "eth0", 3, 2)

	// An apply that fails saves what was there.
	was := apply(4)
	holds(t, s, "eth0", 4, 3)
	if err := s.Save(was); err != nil {
		t.Fatal(err)
	}
	holds(t, s, "eth0", 3, 2)
	s.Settle(was)
	holds(t, s, "eth0", 3, 2)
	files("eth0.1.policy", "eth0.2.before", "eth0.2.policy", "eth0.3.before", "eth0.3.policy", "eth0.json")

	// All that are kept are found, the latest first.
	for i := range hierarchy.Bandwidth(2 * Kept) {
		apply(10 + i)
		settle()
	}
	if r, err = s.Load("eth0"); err != nil {
		t.Fatal(err)
	}
	all, err := s.History(r)
	if err != nil {
		t.Fatal(err)
	}
	renamed, err := s.History(r.Renamed("lan0")) // and not saved since
	if err != nil || len(renamed) != len(all) || renamed[Kept].Interface != "lan0" {
		t.Errorf("under another name %d of %d are found: %v", len(renamed), len(all), err)
	}
	var rates []hierarchy.Bandwidth
	for _, r := range all {
		spec, err := s.Spec(r)
		if err != nil {
			t.Fatal(err)
		}
		rates = append(rates, spec.Rate.Of(0))
	}
	if want := []hierarchy.Bandwidth{29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19}; !slices.Equal(rates, want) {
		t.Errorf("history %v, want %v", rates, want)
	}
	if got := len(s.files(t)); got != 2*Kept+2 {
		t.Errorf("%d files: %v", got, s.files(t))
	}

	if err := s.Remove("eth0"); err != nil {
		t.Fatal(err)
	}
	files()
}

// TestHistoryKilled holds that an apply that is killed has either begun, with all that
// belongs to it, or has not: at each step, of which the record's is the last.
func TestHistoryKilled(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Locks: t.TempDir()}
	none := &Record{Version: Version, Interface: "eth0"}
	one := &Record{Version: Version, Interface: "eth0", Policy: "/p.toml", Applied: time.Now(), By: "root", Spec: says(1)}
	two := &Record{Version: Version, Interface: "eth0", Policy: "/p.toml", Applied: time.Now(), By: "root", Spec: says(2)}
	if err := errors.Join(s.Succeed(one, none), s.Succeed(two, one)); err != nil {
		t.Fatal(err)
	}
	s.Settle(two)
	next := Record{Serial: 3, Interface: "eth0", Spec: says(9)}
	for _, step := range []func() error{
		func() error { return os.Link(s.File("eth0"), s.numbered("eth0", 3, beforeSuffix)) },
		func() error { return os.WriteFile(filepath.Join(s.Dir, temporary+"1"), []byte("{"), 0o600) },
		func() error { _, err := s.write(s.specFile(&next), next.Spec); return err },
	} {
		if err := step(); err != nil {
			t.Fatal(err)
		}
		holds(t, s, "eth0", 2, 1)
	}
	unlock, err := s.Lock(t.Context(), "apply")
	if err != nil {
		t.Fatal(err)
	}
	was, err := s.Load("eth0")
	if err != nil {
		t.Fatal(err)
	}
	three := &Record{Version: Version, Interface: "eth0", Policy: "/p.toml", Applied: time.Now(), By: "root", Spec: says(3)}
	if err := s.Succeed(three, was); err != nil {
		t.Fatal(err)
	}
	holds(t, s, "eth0", 3, 2)
	s.Settle(three)
	unlock()
	holds(t, s, "eth0", 3, 2)
	if d := cmp.Diff([]string{"eth0.1.policy", "eth0.2.before", "eth0.2.policy", "eth0.3.before", "eth0.3.policy", "eth0.json"}, s.files(t)); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}

	// Where the record was lost, what it led to is nobody's.
	if err := os.Remove(s.File("eth0")); err != nil {
		t.Fatal(err)
	}
	if err := s.Succeed(one, none); err != nil {
		t.Fatal(err)
	}
	s.Settle(one)
	holds(t, s, "eth0", 1, 0)
}

// TestHistoryRenamed holds that history goes with an interface to its new name, and that
// the files of one whose name begins like it are its own.
func TestHistoryRenamed(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Locks: t.TempDir()}
	none := &Record{Version: Version, Interface: "eth0"}
	one := &Record{Version: Version, Interface: "eth0", Policy: "/p.toml", Applied: time.Now(), By: "root", Spec: says(1), Order: []hierarchy.Path{"eth0"}}
	two := &Record{Version: Version, Interface: "eth0", Policy: "/p.toml", Applied: time.Now(), By: "root", Spec: says(2)}
	other := &Record{Version: Version, Interface: "eth0.7", Policy: "/p.toml", Applied: time.Now(), By: "root", Spec: says(7)}
	if err := errors.Join(s.Succeed(one, none), s.Succeed(two, one), s.Succeed(other, &Record{})); err != nil {
		t.Fatal(err)
	}
	r, err := s.Load("eth0")
	if err != nil {
		t.Fatal(err)
	}
	moved := r.Renamed("wan0")
	if b, err := s.Before(moved); err != nil || b == nil || b.Spec.Rate.Of(0) != 1 || b.Order[0] != "wan0" {
		t.Errorf("before, not saved under the new name yet: %+v, %v", b, err)
	}
	if err := s.Save(moved); err != nil {
		t.Fatal(err)
	}
	holds(t, s, "wan0", 2, 1)
	again, err := s.Load("wan0")
	if err != nil {
		t.Fatal(err)
	}
	same := &Record{Version: Version, Interface: "lan0", Was: "wan0", Policy: "/p.toml", Applied: time.Now(), By: "root", Spec: says(2)}
	same.Spec.Interface = "lan0"
	if err := s.Succeed(same, again.Renamed("lan0")); err != nil {
		t.Fatal(err)
	}
	holds(t, s, "lan0", 2, 1) // nothing new was said
	if again, err = s.Load("lan0"); err != nil {
		t.Fatal(err)
	}
	three := &Record{Version: Version, Interface: "opt0", Was: "lan0", Policy: "/p.toml", Applied: time.Now(), By: "root", Spec: says(3)}
	if err := s.Succeed(three, again.Renamed("opt0")); err != nil {
		t.Fatal(err)
	}
	s.Settle(three)
	holds(t, s, "opt0", 3, 2)
	holds(t, s, "eth0.7", 7, 0)
	if d := cmp.Diff([]string{"eth0.7.1.policy", "eth0.7.json", "eth0.homes", "lan0.homes", "opt0.1.policy", "opt0.2.before", "opt0.2.policy", "opt0.3.before", "opt0.3.policy", "opt0.json", "wan0.homes"}, s.files(t)); d != "" {
		t.Errorf("files (-want +got):\n%s", d)
	}
}

// A record of version 3 had what the policy says in it: it is read, also as the one from
// before an apply.
func TestStoreVersion3(t *testing.T) {
	s := &Store{Dir: t.TempDir(), Locks: t.TempDir()}
	if err := os.WriteFile(s.File("eth0"), []byte(`{"version":3,"interface":"eth0","ifindex":7,"policy":"/etc/p.toml","binding":"auto","way":"bpf",
"ids":{"minors":{"a":17}},"order":["eth0","eth0/a"],
"spec":{"interface":"wan0","rate":"1bit","children":[{"name":"a","rate":"40%","bind":["user:a"]}]}}`), 0o644); err != nil {
		t.Fatal(err)
	}
	r, err := s.Load("eth0")
	if err != nil {
		t.Fatal(err)
	}
	holds(t, s, "eth0", 1, 0)
	if err := s.Save(r); err != nil { // as bind does
		t.Fatal(err)
	}
	holds(t, s, "eth0", 1, 0)
	again, err := s.Load("eth0")
	if err != nil || again.Version != Version || again.Spec != nil {
		t.Fatalf("written and read again: %+v, %v", again, err)
	}
	if got, err := s.Spec(again); err != nil || !cmp.Equal(r.Spec, got, cmp.AllowUnexported(hierarchy.Amount{})) {
		t.Errorf("written and read again: %+v, %v", got, err)
	}
	if err := s.Succeed(&Record{Version: Version, Interface: "eth0", Policy: "/p.toml", Applied: time.Now(), By: "root", Spec: says(2)}, again); err != nil {
		t.Fatal(err)
	}
	now, err := s.Load("eth0")
	if err != nil {
		t.Fatal(err)
	}
	s.Settle(now)
	if b, err := s.Before(now); err != nil || b == nil || b.Spec.Children[0].Name != "a" {
		t.Errorf("before it was %+v, %v", b, err)
	}
}
