package hierarchy_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
)

// receiving is the other port of the device.
var receiving = Port{Device: "eth0", Direction: Receive}

// received is the tree for what comes in: the same branches at half the rates.
func received(t *Tree) *Tree {
	var half func(*Branch) *Branch
	half = func(b *Branch) *Branch {
		c := *b
		c.ID, c.Parent = 0, 0
		if b == t.Root {
			c.Parent = ID(0)
		}
		c.Rate, c.Ceil, c.Children = b.Rate/2, b.Ceil/2, nil
		for _, x := range b.Children {
			c.Children = append(c.Children, half(x))
		}
		return &c
	}
	return &Tree{Port: receiving, Root: half(t.Root)}
}

// both is the state of a device with a tree on either port.
func both(t testing.TB, ids IDs, tree *Tree) (State, IDs) {
	t.Helper()
	tree.Ingress = received(tree)
	next := assign(t, ids, tree)
	if err := wellNumbered(tree.Ingress); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(numbers(tree), numbers(tree.Ingress)); d != "" {
		t.Fatalf("a branch has one class here and another there (-send +receive):\n%s", d)
	}
	return stateOf(tree), next
}

// A plan for two ports makes both trees before the classifier, moves the bindings
// when all classes are there, and takes away in reverse.
func TestPortsOrder(t *testing.T) {
	spec := eth0(rate("100mbit"), branch("a", rate("60mbit"), binds("user:a")), branch("b", rate("20mbit")), branch("rest", rate("10mbit")))
	one, ids := both(t, IDs{}, grow(t, spec))
	less, _ := both(t, ids, grow(t, eth0(rate("100mbit"), branch("b", rate("20mbit"), binds("user:a")), branch("rest", rate("10mbit")))))
	id := func(p Path) string {
		class, _, ok := ids.Find(p)
		if !ok {
			t.Fatalf("no %s", p)
		}
		return fmt.Sprintf("%s (%v)", p, class)
	}
	tree := func(sign, of string) (all []string) {
		all = append(all, sign+"root qdisc htb 71f:"+of)
		for _, p := range []Path{"eth0", "eth0/rest", "eth0/a", "eth0/b"} {
			all = append(all, sign+"class "+id(p)+of)
		}
		for _, p := range []Path{"eth0/a", "eth0/b", "eth0/rest"} {
			all = append(all, sign+"qdisc  of "+id(p)+of)
		}
		return all
	}
	const of = " of eth0 (receive)"
	none := State{Device: "eth0"}
	sends := one
	sends.Ports = one.Ports[:1]
	for _, r := range []struct {
		name     string
		old, new State
		want     []string
	}{
		{"nothing", one, one, nil},
		{"the order of ports makes no difference", State{one.Device, []PortState{one.Ports[1], one.Ports[0]}, one.Hook, one.Bound, nil}, one, nil},
		{"from nothing", none, one, append(append(tree("create ", ""), tree("create ", of)...), "create classifier bpf", "create binding cgroup:/a to "+id("eth0/a"))},
		{"to nothing", one, none, []string{"delete binding cgroup:/a to " + id("eth0/a"), "delete classifier bpf", "delete root qdisc htb 71f:" + of, "delete root qdisc htb 71f:"}},
		{"a second port", sends, one, tree("create ", of)},
		{"no second port any more", one, sends, []string{"delete root qdisc htb 71f:" + of}},
		{"a class that goes", one, less, []string{"change binding cgroup:/a to " + id("eth0/b"), "delete class " + id("eth0/a") + of, "delete class " + id("eth0/a")}},
	} {
		t.Run(r.name, func(t *testing.T) {
			var got []string
			for _, s := range Diff(r.old, r.new).Steps {
				got = append(got, s.String())
				if queue := !strings.Contains(s.String(), "classifier") && !strings.Contains(s.String(), "binding"); queue != (s.Port != Port{}) {
					t.Errorf("%v is for port %q", s, s.Port)
				}
			}
			if d := cmp.Diff(r.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// From any trees on one or two ports to any later ones, every moment is sound.
func TestPortsRandom(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 9))
		var ids IDs
		was := State{Device: "eth0"}
		for range 5 {
			tree, _ := boundTree(t, rnd, ids)
			var is State
			is, ids = both(t, ids, tree)
			if rnd.IntN(3) == 0 {
				is.Ports = is.Ports[:1]
			}
			if err := carry(was, is); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
			was = is
		}
		if err := carry(was, State{Device: "eth0"}); err != nil {
			t.Fatalf("seed %d: taking all away: %v", seed, err)
		}
	}
}

// portChanges are the changes of two ports that the tests of their failures go through.
func portChanges(t *testing.T) map[string][2]State {
	first := grow(t, eth0(rate("100mbit"),
		branch("a", rate("60mbit"), binds("user:a"), branch("x", rate("20mbit"), binds("user:x")), branch("y", rate("20mbit"))),
		branch("b", rate("20mbit"), qdisc("pfifo"), binds("user:b"))))
	second := grow(t, eth0(rate("90mbit"),
		branch("a", rate("30mbit"), binds("user:a"), branch("x", rate("10mbit"))),
		branch("b", rate("40mbit"), qdisc("fq_codel"), binds("user:x")),
		branch("c", rate("5mbit"), binds("user:c"))))
	before, ids := both(t, IDs{}, first)
	want, _ := both(t, ids, second)
	none, sends := State{Device: "eth0"}, before
	sends.Ports = before.Ports[:1]
	return map[string][2]State{"change": {before, want}, "first": {none, want}, "second port": {sends, before}, "last": {want, none}}
}

// device is a machine with both ports, whatever stands on them.
func device(s State, fail int) *machine {
	m := &machine{s: s, fail: fail}
	m.on(sending)
	m.on(receiving)
	return m
}

// Whichever step fails, of whichever port: both are as they were before.
func TestPortsFailAtEachStep(t *testing.T) {
	for name, r := range portChanges(t) {
		plan := Diff(r[0], r[1])
		for n, s := range plan.Steps {
			m := device(r[0], n)
			k := m.kernel()
			onceOnly(m, k)
			err := k.Apply(t.Context(), r[0], r[1], plan)
			var failed *ApplyError
			if !errors.As(err, &failed) || failed.Undo != nil || err.Error() != s.String()+": no such luck; everything is as it was before" {
				t.Fatalf("%s, step %d: %v", name, n, err)
			}
			if d := differs(t, m, r[0]); d != nil {
				t.Errorf("%s, step %d: it is not as before: %v", name, n, d)
			}
		}
	}
}

// Wherever the program is killed, the next apply gets to where it wanted, and clear to
// nothing.
func TestPortsKilled(t *testing.T) {
	for name, r := range portChanges(t) {
		plan := Diff(r[0], r[1])
		for n := range plan.Steps {
			for what, want := range map[string]State{"apply": r[1], "clear": {Device: "eth0"}} {
				m := device(r[0], -1)
				for _, s := range plan.Steps[:n] {
					if err := m.step(s); err != nil {
						t.Fatal(err)
					}
				}
				k := m.kernel()
				before, err := k.Read(context.Background())
				if err != nil {
					t.Fatal(err)
				}
				if err := k.Apply(t.Context(), before, want, Diff(before, want)); err != nil {
					t.Errorf("%s, killed before step %d: %s: %v", name, n, what, err)
				}
				if d := differs(t, m, want); d != nil {
					t.Errorf("%s, killed before step %d: %s leaves %v", name, n, what, d)
				}
			}
		}
	}
}

// A kernel that shows something else on the second port is found out, and both go back.
func TestPortsMismatch(t *testing.T) {
	r := portChanges(t)["change"]
	m := device(r[0], -1)
	k := m.kernel()
	lie := true
	k.Parts[1] = part{machine: m, port: receiving, read: func(s *State) error {
		if lie {
			s.Ports[1].Classes[1].Rate++
		}
		lie = false
		return nil
	}}
	var mismatch *MismatchError
	if err := k.Apply(t.Context(), r[0], r[1], Diff(r[0], r[1])); !errors.As(err, &mismatch) || len(mismatch.Left.Steps) != 1 || mismatch.Left.Steps[0].Port != receiving {
		t.Errorf("error %v", err)
	}
	if d := differs(t, m, r[0]); d != nil {
		t.Errorf("it is not as before: %v", d)
	}
}

// A step of a port that the kernel at hand does not have is refused before it does harm.
func TestPortsMissing(t *testing.T) {
	r := portChanges(t)["first"]
	m := &machine{s: r[0], fail: -1}
	err := m.kernel().Apply(t.Context(), r[0], r[1], Diff(r[0], r[1]))
	if want := "eth0: there is nobody to create root qdisc htb 71f: of eth0 (receive); everything is as it was before"; err == nil || err.Error() != want {
		t.Errorf("error %v", err)
	}
}

// Only the parts that a small plan touched are looked at again.
func TestPortsReread(t *testing.T) {
	before, ids := both(t, IDs{}, grow(t, eth0(rate("100mbit"), branch("a", rate("60mbit")))))
	want, _ := both(t, ids, grow(t, eth0(rate("100mbit"), branch("a", rate("50mbit")))))
	want.Set(before.On(sending))
	m := device(before, -1)
	k := m.kernel()
	asked := map[Port][]string{}
	for i, p := range k.Parts[:2] {
		k.Parts[i] = &rereader{Part: p, reread: func(s *State, all []Step) error {
			for _, x := range all {
				asked[p.Port()] = append(asked[p.Port()], x.String())
			}
			return p.Read(t.Context(), s)
		}}
	}
	plan := Diff(before, want)
	if err := k.Apply(t.Context(), before, want, plan); err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(map[Port][]string{receiving: {plan.Steps[0].String(), plan.Steps[1].String()}}, asked); d != "" || len(plan.Steps) != 2 {
		t.Errorf("of %d steps (-want +got):\n%s", len(plan.Steps), d)
	}
}

// Ids are the device's, whatever it is called: a branch of the second port has the
// first one's.
func TestAssignPorts(t *testing.T) {
	_, ids := both(t, IDs{}, grow(t, eth0(rate("100mbit"), branch("a"), branch("b"), branch("c"))))
	if keys := []string{"a", "b", "c"}; len(ids.Minors) != 3 || slices.ContainsFunc(keys, func(k string) bool { return ids.Minors[k] == 0 }) {
		t.Errorf("remembered are %v", ids.Minors)
	}
	if d := cmp.Diff(ids, assign(t, ids, grow(t, eth0(rate("100mbit"), branch("a"), branch("b"), branch("c"))))); d != "" {
		t.Errorf("with one port (-want +got):\n%s", d)
	}
	for path, class := range map[Path]Path{"eth0/c": "wan0/c", "eth0/rest": "wan0/rest", "eth0": "wan0"} {
		a, _, _ := ids.Find(path)
		b, _, ok := ids.Find(class)
		if a != b || !ok || ids.Names("wan0")[a] != class || ids.Names("eth0")[a] != path {
			t.Errorf("%s is %v, and %s is %v, called %s", path, a, class, b, ids.Names("wan0")[a])
		}
	}
	_, less := both(t, ids, grow(t, eth0(rate("100mbit"), branch("a"), branch("b"))))
	if want := []Retired{{"c", ids.Minors["c"]}}; !slices.Equal(less.Retired, want) {
		t.Errorf("given up are %v; want %v", less.Retired, want)
	}
}

func TestPortText(t *testing.T) {
	for p, want := range map[Port]string{sending: `eth0 {"device":"eth0"}`, receiving: `eth0 (receive) {"device":"eth0","direction":"receive"}`} {
		b, err := json.Marshal(p)
		if got := p.String() + " " + string(b); got != want || err != nil {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
		var back Port
		if err := json.Unmarshal(b, &back); back != p || err != nil {
			t.Errorf("%s is read as %v, %v", b, back, err)
		}
	}
	if err := json.Unmarshal([]byte(`{"direction":"sideways"}`), new(Port)); err == nil || Direction(9).String() != "unknown" {
		t.Errorf("an unknown direction: %v", err)
	}
	tree := grow(t, eth0(rate("1mbit"), ingress(rate("2mbit"))))
	if tree.Port != sending || tree.Ingress.Port != receiving || tree.Ingress.Ingress != nil {
		t.Errorf("the trees stand on %v and %v", tree.Port, tree.Ingress.Port)
	}
	if got := (State{}).On(receiving); got.Port != receiving || got.Root.Ours() {
		t.Errorf("nothing stands on %+v", got)
	}
}
