package hierarchy_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
)

// twoStates are a tree and a later one with a bit of everything different.
func twoStates(t *testing.T) (before, want State) {
	t.Helper()
	first := grow(t, eth0(rate("100mbit"),
		branch("a", rate("60mbit"), binds("user:a"), branch("x", rate("20mbit"), binds("user:x")), branch("y", rate("20mbit"))),
		branch("b", rate("20mbit"), qdisc("pfifo"), binds("user:b"))))
	ids := assign(t, IDs{}, first)
	second := grow(t, eth0(rate("90mbit"),
		branch("a", rate("30mbit"), binds("user:a"), branch("x", rate("10mbit"))),
		branch("b", rate("40mbit"), qdisc("fq_codel"), binds("user:x")),
		branch("c", rate("5mbit"), binds("user:c"))))
	assign(t, ids, second)
	return stateOf(first), stateOf(second)
}

// differs says how what the machine shows differs from a state.
func differs(t *testing.T, m *machine, from State) []string {
	t.Helper()
	now, err := m.kernel().Read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	return steps(Diff(from, now))
}

func TestApply(t *testing.T) {
	before, want := twoStates(t)
	m := &machine{s: before, fail: -1}
	if err := m.kernel().Apply(context.Background(), before, want, Diff(before, want)); err != nil {
		t.Fatal(err)
	}
	if d := differs(t, m, want); d != nil {
		t.Errorf("left over: %v", d)
	}
	if err := m.kernel().Apply(context.Background(), want, want, Diff(want, want)); err != nil {
		t.Errorf("an empty plan: %v", err)
	}
}

// Whatever step fails, first or last, of a change, of a first tree and of its
// removal: all is as it was before, and the error says so.
func TestApplyFailsAtEachStep(t *testing.T) {
	before, want := twoStates(t)
	none := State{Device: "eth0"}
	for _, r := range []struct {
		name         string
		before, want State
	}{{"change", before, want}, {"first", none, want}} {
		plan := Diff(r.before, r.want)
		for n, s := range plan.Steps {
			m := &machine{s: r.before, fail: n}
			k := m.kernel()
			onceOnly(m, k)
			err := k.Apply(context.Background(), r.before, r.want, plan)
			var failed *ApplyError
			if !errors.As(err, &failed) {
				t.Fatalf("%s, step %d: error %v", r.name, n, err)
			}
			if text := s.String() + ": no such luck; everything is as it was before"; err.Error() != text {
				t.Errorf("%s, step %d: got %q, want %q", r.name, n, err, text)
			}
			if failed.Undo != nil || !failed.Left.Empty() {
				t.Errorf("%s, step %d: undo %v, left %v", r.name, n, failed.Undo, steps(failed.Left))
			}
			if d := differs(t, m, r.before); d != nil {
				t.Errorf("%s, step %d: it is not as before: %v", r.name, n, d)
			}
		}
	}
}

// onceOnly lets a machine's failure happen once.
func onceOnly(m *machine, k Kernel) {
	for i, p := range k.Parts {
		k.Parts[i] = oncePart{p, m}
	}
}

type oncePart struct {
	Part
	m *machine
}

func (p oncePart) Do(ctx context.Context, steps []Step) (int, error) {
	n, err := p.Part.Do(ctx, steps)
	if err != nil {
		p.m.fail = -1
	}
	return n, err
}

// When going back fails as well, at any step of it, the error says exactly what
// differs from before.
func TestApplyUndoFails(t *testing.T) {
	before, want := twoStates(t)
	plan := Diff(before, want)
	for n := 1; n < len(plan.Steps); n += 3 {
		for again := range n {
			m := &machine{s: before, fail: n}
			k := m.kernel()
			for i, p := range k.Parts {
				k.Parts[i] = nth{p, m, again}
			}
			err := k.Apply(context.Background(), before, want, plan)
			var failed *ApplyError
			if !errors.As(err, &failed) {
				t.Fatalf("fail at %d, then %d: %v", n, again, err)
			}
			if d := cmp.Diff(differs(t, m, before), steps(failed.Left)); d != "" {
				t.Errorf("fail at %d, then %d: what differs (-really +said):\n%s", n, again, d)
			}
			if (failed.Undo == nil) != failed.Left.Empty() {
				t.Errorf("fail at %d, then %d: undo %v, left %v", n, again, failed.Undo, steps(failed.Left))
			}
		}
	}
}

// nth makes the steps after a first failure fail again after so many.
type nth struct {
	Part
	m     *machine
	again int
}

func (p nth) Do(ctx context.Context, steps []Step) (int, error) {
	n, err := p.Part.Do(ctx, steps)
	if err != nil {
		p.m.fail = p.again
	}
	return n, err
}

func TestApplyErrorText(t *testing.T) {
	before, want := twoStates(t)
	plan := Diff(before, want)
	m := &machine{s: before, fail: 2} // and then all others
	err := m.kernel().Apply(context.Background(), before, want, plan)
	undo, left := Diff(m.s, before).Steps[0], differs(t, m, before)
	text := plan.Steps[2].String() + ": no such luck; going back failed as well: " + undo.String() + ": no such luck; what differs from before: "
	if len(left) != 2 || !strings.HasPrefix(err.Error(), text) {
		t.Errorf("got %q, want it to begin with %q and to name %v", err, text, left)
	}
}

// A context that ends in the middle stops the plan and not the way back.
func TestApplyCancelled(t *testing.T) {
	before, want := twoStates(t)
	plan := Diff(before, want)
	for n := range plan.Steps {
		ctx, cancel := context.WithCancel(context.Background())
		m := &machine{s: before, fail: -1}
		left := n
		m.after = func() {
			if left--; left < 0 {
				cancel()
			}
		}
		err := m.kernel().Apply(ctx, before, want, plan)
		cancel()
		var failed *ApplyError
		if !errors.As(err, &failed) || !errors.Is(err, context.Canceled) || failed.Undo != nil {
			t.Errorf("after %d steps: %v", n, err)
		}
		if d := differs(t, m, before); d != nil {
			t.Errorf("after %d steps: it is not as before: %v", n, d)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	m := &machine{s: before, fail: -1}
	if err := m.kernel().Apply(ctx, before, want, plan); !errors.Is(err, context.Canceled) || differs(t, m, before) != nil {
		t.Errorf("cancelled before it began: %v", err)
	}

	// While it is read back, the interrupt is told like any other.
	ctx, cancel = context.WithCancel(context.Background())
	m = &machine{s: before, fail: -1}
	k := m.kernel()
	k.Parts[0] = part{machine: m, port: sending, read: func(*State) error {
		if ctx.Err() != nil {
			return nil // it is read once more, to go back
		}
		cancel()
		return ctx.Err()
	}}
	const undone = "context canceled; everything is as it was before"
	if err := k.Apply(ctx, before, want, plan); err == nil || err.Error() != undone {
		t.Errorf("cancelled while it was read back: %v, want %s", err, undone)
	}
}

// A kernel that takes a step and then shows something else is found out.
func TestApplyMismatch(t *testing.T) {
	before, want := twoStates(t)
	m := &machine{s: before, fail: -1}
	k := m.kernel()
	lie := true
	k.Parts[0] = part{machine: m, port: sending, read: func(s *State) error {
		if lie {
			lie = false
			s.Ports[0].Classes[1].Rate++
		}
		return nil
	}}
	err := k.Apply(context.Background(), before, want, Diff(before, want))
	var failed *ApplyError
	var mismatch *MismatchError
	if !errors.As(err, &failed) || !errors.As(err, &mismatch) || failed.Undo != nil || len(mismatch.Left.Steps) != 1 {
		t.Fatalf("error %v", err)
	}
	c := *mismatch.Left.Steps[0].Item().(*Class)
	if text := "the kernel shows something else than was asked for: change " + c.String() + "; everything is as it was before"; err.Error() != text {
		t.Errorf("got %q, want %q", err, text)
	}
	if d := differs(t, m, before); d != nil {
		t.Errorf("it is not as before: %v", d)
	}
	many := &MismatchError{Left: Diff(State{Device: "eth0"}, want)}
	if text := "the kernel shows something else than was asked for: create root qdisc htb 71f:, create class eth0 (71f:1), create " + (&want.Ports[0].Classes[1]).String() + " and "; len(many.Error()) < len(text) {
		t.Errorf("got %q", many)
	}
}

func TestApplyReadFails(t *testing.T) {
	before, want := twoStates(t)
	broken := errors.New("no answer")
	m := &machine{s: before, fail: -1}
	k := m.kernel()
	reads := 0
	k.Parts[1] = part{machine: m, read: func(*State) error {
		if reads++; reads == 1 {
			return broken
		}
		return nil
	}}
	err := k.Apply(context.Background(), before, want, Diff(before, want))
	if err == nil || err.Error() != "reading back: no answer; everything is as it was before" || differs(t, m, before) != nil {
		t.Errorf("reading back failed once: %v", err)
	}
	m = &machine{s: before, fail: -1}
	k = m.kernel()
	k.Parts[0] = part{machine: m, port: sending, read: func(*State) error { return broken }}
	err = k.Apply(context.Background(), before, want, Diff(before, want))
	var failed *ApplyError
	if !errors.As(err, &failed) || !errors.Is(failed.Undo, broken) || err.Error() != "reading back: no answer; going back failed as well: no answer" {
		t.Errorf("reading fails always: %v", err)
	}
}

// A foreign qdisc that was replaced is gone: it must not be called as before.
func TestApplyForeignLost(t *testing.T) {
	_, want := twoStates(t)
	before := State{Device: "eth0", Ports: []PortState{{Port: sending, Root: Root{Kind: "fq_codel", Handle: 0x80010000}}}}
	plan := Diff(before, want)
	m := &machine{s: before, fail: 3}
	k := m.kernel()
	onceOnly(m, k)
	err := k.Apply(context.Background(), before, want, plan)
	var failed *ApplyError
	if !errors.As(err, &failed) || failed.Undo == nil {
		t.Fatalf("error %v", err)
	}
	if d := cmp.Diff([]string{"- root qdisc fq_codel 8001:"}, steps(failed.Left)); d != "" {
		t.Errorf("what differs (-want +got):\n%s", d)
	}
	m = &machine{s: before, fail: 0}
	k = m.kernel()
	onceOnly(m, k)
	if err := k.Apply(context.Background(), before, want, plan); !errors.As(err, &failed) || failed.Undo != nil {
		t.Errorf("nothing was done, and yet: %v", err)
	}
}

// A kernel that takes a step and reports failure nevertheless is as before when
// it shows what was there before.
func TestApplyUndoComplainsButWorks(t *testing.T) {
	before, want := twoStates(t)
	m := &machine{s: before, fail: -1}
	k := m.kernel()
	k.Parts[0] = complains{k.Parts[0]}
	var failed *ApplyError
	if err := k.Apply(context.Background(), before, want, Diff(before, want)); !errors.As(err, &failed) {
		t.Fatalf("error %v", err)
	}
	if d := differs(t, m, before); (d == nil) != (failed.Undo == nil) {
		t.Errorf("undo %v, and what differs %v", failed.Undo, d)
	}
}

// complains takes all steps, and reports the last as failed.
type complains struct{ Part }

func (p complains) Do(ctx context.Context, steps []Step) (int, error) {
	n, err := p.Part.Do(ctx, steps)
	if err == nil {
		return n - 1, errors.New("out of memory for the answer")
	}
	return n, err
}

func TestReadNames(t *testing.T) {
	before, _ := twoStates(t)
	m := &machine{s: before, fail: -1}
	k := m.kernel()
	k.Names = map[ClassID]Path{}
	for _, c := range before.On(sending).Classes {
		k.Names[c.ID] = c.Path
	}
	got, err := k.Read(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	for i := range got.Bound { // the branch's own name is not the class's
		before.Bound[i].Path = k.Names[before.Bound[i].Class]
	}
	sortClasses := func(s State) State {
		p := only(&s)
		p.Classes = slices.Clone(p.Classes)
		slices.SortFunc(p.Classes, func(a, b Class) int { return int(a.ID) - int(b.ID) })
		return s
	}
	if d := cmp.Diff(sortClasses(before), sortClasses(got)); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// Random plans that fail at a random step end where they began.
func TestApplyRandom(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 8))
		first, ids := boundTree(t, rnd, IDs{})
		second, _ := boundTree(t, rnd, ids)
		before, want := stateOf(first), stateOf(second)
		plan := Diff(before, want)
		if plan.Empty() {
			continue
		}
		m := &machine{s: before, fail: rnd.IntN(len(plan.Steps))}
		k := m.kernel()
		onceOnly(m, k)
		var failed *ApplyError
		if err := k.Apply(context.Background(), before, want, plan); !errors.As(err, &failed) || failed.Undo != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
		if d := differs(t, m, before); d != nil {
			t.Fatalf("seed %d: it is not as before: %v", seed, d)
		}
	}
}

// rereader is a part that can look at single things again.
type rereader struct {
	Part
	reread func(*State, []Step) error
	full   int
}

func (r *rereader) Read(ctx context.Context, s *State) error {
	r.full++
	return r.Part.Read(ctx, s)
}

func (r *rereader) Reread(_ context.Context, s *State, steps []Step) error {
	return r.reread(s, steps)
}

// TestApplyRereads holds that a small plan is verified by what it touched, and by
// everything where that does not show what was wanted.
func TestApplyRereads(t *testing.T) {
	was := State{Device: "eth0", Ports: []PortState{{Port: sending, Root: Root{Kind: "htb", Handle: ID(0)},
		Classes: []Class{{ID: ID(1), Rate: 80}}}}}
	want := was
	only(&want).Classes = []Class{{ID: ID(1), Rate: 160}}
	for name, tt := range map[string]struct {
		shows Bandwidth
		err   error
		full  int
	}{
		"it shows the change":         {160, nil, 0},
		"it shows something else":     {80, nil, 1},
		"it cannot look at one thing": {160, errors.New("no"), 1},
	} {
		t.Run(name, func(t *testing.T) {
			q := &rereader{Part: fixed{want}, reread: func(s *State, steps []Step) error {
				s.Ports[0].Classes[0].Rate = tt.shows
				return tt.err
			}}
			k := Kernel{Device: "eth0", Parts: []Part{q, fixed{}}}
			if err := k.Apply(t.Context(), was, want, Diff(was, want)); err != nil {
				t.Fatal(err)
			}
			if q.full != tt.full {
				t.Errorf("everything was read %d times, not %d", q.full, tt.full)
			}
			if was.Ports[0].Classes[0].Rate != 80 {
				t.Error("the state before was changed")
			}
		})
	}
}

// fixed is a part that takes every step and always shows the same.
type fixed struct{ state State }

func (f fixed) Port() Port { return Port{Device: f.state.Device} }

func (f fixed) Read(_ context.Context, s *State) error {
	for _, p := range f.state.Ports {
		s.Set(p)
	}
	return nil
}

func (f fixed) Do(_ context.Context, steps []Step) (int, error) { return len(steps), nil }

// A parameter that the kernel passed over is named.
func TestMismatchParameter(t *testing.T) {
	leaf := func(minor uint16, params ...Setting) Leaf {
		return Leaf{Class: ID(minor), Path: "eth0/web", Qdisc: Qdisc{Kind: "fq", Params: params}}
	}
	state := func(leaves ...Leaf) State {
		return State{Device: "eth0", Ports: []PortState{{Port: sending, Root: Root{Kind: "htb", Handle: ID(0)}, Leaves: leaves}}}
	}
	limit, weights := Setting{"limit", 5}, Setting{"weights", 7}
	for _, tt := range []struct {
		name     string
		now      State
		mentions bool
	}{
		{"twice", state(leaf(3, limit), leaf(4, limit)), true},
		{"another value", state(leaf(3, limit, Setting{"weights", 8}), leaf(4, limit, weights)), false},
		{"another kind", state(Leaf{Class: ID(3), Qdisc: Qdisc{Kind: "pfifo", Params: []Setting{limit}}}, leaf(4, limit, weights)), false},
		{"unreadable", state(leaf(3), leaf(4, limit, weights)), false},
	} {
		e := &MismatchError{Left: Diff(tt.now, state(leaf(3, limit, weights), leaf(4, limit, weights)))}
		const mention = "; it shows nothing of weights of fq: leave that out, or use a newer kernel"
		if got := strings.HasSuffix(e.Error(), mention); got != tt.mentions || strings.Contains(e.Error(), "nothing") != got {
			t.Errorf("%s: %v", tt.name, e)
		}
	}
}
