package hierarchy_test

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// delegates gives a branch to a user.
func delegates(names ...bind.Delegate) option {
	return optionFunc(func(b *BranchSpec) { b.Delegate = names })
}

// The receiving tree has the same branches, of which the same rules hold.
func TestResolveIngress(t *testing.T) {
	for _, r := range []struct {
		name string
		spec *Spec
		want []string // of receiving
	}{
		{"an interface alone has its rest", eth0(rate("40mbit"), ingress(rate("250mbit"))), []string{
			"eth0 250mbit/250mbit prio 3", "eth0/rest 250mbit/250mbit prio 3 implied"}},
		{"one without shares what its siblings leave", eth0(rate("40mbit"), ingress(rate("250mbit")),
			branch("web", rate("10mbit"), ceil("20mbit"), ingress(rate("100mbit"), ceil("200mbit"))), branch("backup", rate("10mbit"), ceil("20mbit"))), []string{
			"eth0 250mbit/250mbit prio 3", "eth0/web 100mbit/200mbit prio 3", "eth0/backup 75mbit/250mbit prio 3", "eth0/rest 75mbit/250mbit prio 3 implied"}},
		{"percentages are of the parent's", eth0(rate("40mbit"), ingress(rate("250mbit")), branch("a", ingress(rate("40%"), ceil("50%")), branch("b", ingress(rate("10%"), ceil("50%"))))), []string{
			"eth0 250mbit/250mbit prio 3", "eth0/a 100mbit/125mbit prio 3", "eth0/a/b 10mbit/62500kbit prio 3", "eth0/rest 150mbit/250mbit prio 3 implied"}},
		{"a rest that comes with a binding or a delegate", eth0(rate("40mbit"), ingress(rate("100mbit")),
			branch("a", binds("user:a"), ingress(rate("40mbit")), branch("x", ingress(rate("10mbit")))), branch("b", delegates("bob"), ingress(rate("20mbit")), branch("y"))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 40mbit/100mbit prio 3", "eth0/a/x 10mbit/100mbit prio 3", "eth0/a/rest 30mbit/100mbit prio 3 implied",
			"eth0/b 20mbit/100mbit prio 3", "eth0/b/y 10mbit/100mbit prio 3", "eth0/b/rest 10mbit/100mbit prio 3 implied", "eth0/rest 40mbit/100mbit prio 3 implied"}},
		{"a priority that is not written is that for sending", eth0(rate("40mbit"), ingress(rate("100mbit")),
			branch("calls", prio(0), branch("sip")), branch("news", prio(1), ingress(prio(6)), branch("x"), branch("y", prio(2)), branch("z", ingress(prio(7))))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/calls 33333333bit/100mbit prio 0", "eth0/calls/sip 33333333bit/100mbit prio 0",
			"eth0/news 33333333bit/100mbit prio 6", "eth0/news/x 11111111bit/100mbit prio 6", "eth0/news/y 11111111bit/100mbit prio 2", "eth0/news/z 11111111bit/100mbit prio 7",
			"eth0/rest 33333334bit/100mbit prio 3 implied"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			tree, problems := Resolve(r.spec, kinds)
			if tree == nil || len(problems) > 0 {
				t.Fatal(told(problems))
			}
			if d := cmp.Diff(r.want, lines(tree.Ingress)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			for _, x := range []*Tree{tree, tree.Ingress} {
				if err := sound(x); err != nil {
					t.Errorf("%v: %v", x.Port, err)
				}
			}
			ids := assign(t, IDs{}, tree)
			var both []*Branch
			for b, in := range tree.Both() {
				if both = append(both, b); in.Path != b.Path || in != tree.Ingress.Find(b.Path) {
					t.Errorf("%s is %s for receiving", b.Path, in.Path)
				}
			}
			if !slices.Equal(both, slices.Collect(tree.All())) {
				t.Errorf("both directions have %d branches", len(both))
			}
			for b, in := range tree.Both() {
				if b != tree.Root || in != tree.Ingress.Root {
					t.Error("a walk that was ended goes on")
				}
				break
			}
			if d := cmp.Diff(numbers(tree), numbers(tree.Ingress)); d != "" {
				t.Errorf("ids (-send +receive):\n%s", d)
			}
			s := tree.State()
			if len(s.Ports) != 2 || s.Ports[0].Port != sending || s.Ports[1].Port != receiving || len(s.Ports[1].Classes) != len(r.want) {
				t.Errorf("the state is %+v", s)
			}
			alone := grow(t, without(r.spec))
			if bare := assign(t, IDs{}, alone); cmp.Diff(bare, ids) != "" {
				t.Errorf("without the receiving tree branches have other ids: %v and %v", bare, ids)
			}
			for b, in := range alone.Both() {
				if in != nil {
					t.Errorf("%s is %s for receiving, where nothing is shaped", b.Path, in.Path)
				}
			}
		})
	}
}

// without is a specification for sending alone.
func without(s *Spec) *Spec {
	var strip func(b BranchSpec) BranchSpec
	strip = func(b BranchSpec) BranchSpec {
		b.Ingress = nil
		all := b.Children
		b.Children = nil
		for _, c := range all {
			x := strip(*c)
			b.Children = append(b.Children, &x)
		}
		return b
	}
	c := *s
	c.BranchSpec = strip(s.BranchSpec)
	return &c
}

// Each port carries what is written for it, and what is the interface's holds for both.
func TestResolveIngressCarries(t *testing.T) {
	s := eth0(rate("100mbit"), bursts(1, 2), ingress(rate("200mbit"), bursts(50_000, 60_000)),
		branch("a", quantum(3000), qdisc("hhf"), binds("user:a"), delegates("alice"),
			ingress(bursts(5000, 6000), quantum(4000), qdisc("pfifo", RawParam{"limit", "10", false}))),
		branch("b", qdisc("hhf")))
	s.Line, s.MTU, s.Replace = Line{Layer: "pppoe-ptm"}, 1500, true
	tree := grow(t, s)
	got := tree.Ingress
	if got.Line != s.Line || got.MTU != 1500 || !got.Replace || got.Root.Burst != 50_000 || got.Root.CBurst != 60_000 || got.Root.Rate != 200*Mbit*64/65 {
		t.Errorf("got %+v, %+v", got, got.Root)
	}
	want := &Branch{
		Class: Class{Path: "eth0/a", Rate: 66_666_666 * 64 / 65, Ceil: 200 * Mbit * 64 / 65, Burst: 5000, CBurst: 6000, Quantum: 4000, Prio: 3},
		Qdisc: Qdisc{"pfifo", []Setting{{"limit", 10}}},
	}
	if d := cmp.Diff(want, got.Find("eth0/a")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if q := got.Find("eth0/b").Qdisc; q.Kind != "" {
		t.Errorf("a queue that is not written is %v, that for sending", q)
	}
}

// What is wrong with the receiving tree says so; what both would have is said once.
func TestResolveIngressProblems(t *testing.T) {
	for _, r := range []struct {
		name string
		spec *Spec
		want []string
	}{
		{"none for the interface, once", eth0(rate("100mbit"), branch("a", branch("b", ingress(rate("10mbit"))), branch("c", ingress(rate("10mbit")))), branch("d", ingress())), []string{
			`eth0/a/b ingress: ingress is written here, but not for eth0 as a whole | write what the line brings in the table of eth0 itself, for example ingress = "250mbit"`}},
		{"rate missing", eth0(rate("100mbit"), ingress(), branch("a", ingress(rate("10mbit")))), []string{
			`eth0 ingress: ingress: rate is missing | say what the line really brings, a little less, so that packets wait here and not at its other end: rate = "250mbit"`}},
		{"rate in percent", eth0(rate("100mbit"), ingress(rate("50%"))), []string{
			`eth0 ingress.rate: ingress: rate 50% is a percentage, but an interface has no parent to take it from | write the bandwidth of the link, for example "940mbit", or a share of what its driver says: "95% of link"`}},
		{"rate below a byte", eth0(rate("100mbit"), ingress(rate("7bit"))), []string{"eth0 ingress.rate: ingress: rate 7bit is less than a byte a second, 8bit"}},
		{"ceil differs", eth0(rate("100mbit"), ingress(rate("10mbit"), ceil("20mbit"))), []string{
			"eth0 ingress.ceil: ingress: ceil 20mbit differs from rate 10mbit, but an interface has nobody to borrow from | remove ceil, and write what the link carries as rate"}},
		{"ceil below rate", eth0(rate("100mbit"), ingress(rate("100mbit")), branch("a", ingress(rate("10mbit"), ceil("5mbit")))), []string{
			`eth0/a ingress.ceil: ingress: ceil 5mbit is below rate 10mbit | write ceil = "10mbit" or more, or lower the rate`}},
		{"both ways", eth0(rate("100mbit"), ingress(rate("100mbit")), branch("a", prio(9), rate("200mbit"), ingress(rate("300mbit"), prio(8))), branch("b", prio(9))), []string{
			"eth0/a rate: rate 200mbit is too much: the branches of eth0 add up to 200mbit, which is 100mbit more than its rate 100mbit | guarantees must fit: lower them, and let branches borrow up to their ceil",
			"eth0/a prio: prio 9 is not between 0 (first) and 7 (last)",
			"eth0/a ingress.rate: ingress: rate 300mbit is too much: the branches of eth0 add up to 300mbit, which is 200mbit more than its rate 100mbit | guarantees must fit: lower them, and let branches borrow up to their ceil",
			"eth0/a ingress.prio: ingress: prio 8 is not between 0 (first) and 7 (last)",
			"eth0/b prio: prio 9 is not between 0 (first) and 7 (last)"}},
		{"nothing left", eth0(rate("100mbit"), ingress(rate("100mbit")), branch("a", ingress(rate("99%"))), branch("b")), []string{
			"eth0/b ingress: ingress: nothing is left of eth0's 100mbit to guarantee it | write an ingress here, and lower those of its siblings"}},
		{"too little left for a rest", eth0(rate("100mbit"), ingress(rate("100mbit")), branch("a", ingress(rate("99.9%"))), branch("rest")), []string{
			"eth0/rest ingress: ingress: 99900kbit of eth0's 100mbit are guaranteed to its branches, which leaves 100kbit for eth0/rest; it needs at least 1mbit | take 900kbit away from the branches below eth0, or give eth0/rest an ingress of its own"}},
		{"slow, once a direction", eth0(rate("100mbit"), ingress(rate("100mbit")), branch("a", rate("1kbit")), branch("b", ingress(rate("2kbit"))), branch("c", ingress(rate("2kbit")))), []string{
			"eth0/a rate: warning: rate 1kbit is so low that large packets exceed it: the kernel forgives what takes longer than 60s to pay back",
			"eth0/b ingress.rate: warning: ingress: rate 2kbit, like that of another branch, is so low that large packets exceed it: the kernel forgives what takes longer than 60s to pay back"}},
		{"bursts and quantum", eth0(rate("100mbit"), ingress(rate("100mbit")), branch("a", ingress(rate("80kbit"), ceil("80kbit"), bursts(2_740_001, 0), quantum(1))), branch("b", ingress(bursts(0, 1249)))), []string{
			"eth0/a ingress.burst: ingress: burst 2740001b takes 274s at rate 80kbit; the kernel holds at most 274s | write at most 2740kb",
			"eth0/a ingress.quantum: ingress: quantum 1b is not between 1kb and 16mib | leave it out: it is then chosen in proportion to the rate",
			"eth0/b ingress.cburst: warning: ingress: cburst 1249b is sent in less than 100µs at ceil 100mbit, and timers may be later than that: the branch will stay below its ceil"}},
		{"queues", eth0(rate("100mbit"), ingress(rate("100mbit")), branch("a", ingress(qdisc("pfifo", RawParam{"limit", "0", false}))), branch("b", ingress(qdisc("hhff"))), branch("c", ingress(qdisc("hhf")), branch("d"))), []string{
			"eth0/a ingress.qdisc.limit: ingress: limit 0 is not between 1 and 1000",
			`eth0/b ingress.qdisc: ingress: qdisc "hhff" is not known | did you mean "hhf"?`,
			"eth0/c ingress.qdisc: ingress: qdisc on a branch with children: only leaves have a queue | give it to the branches below, or to a child called rest for this branch's own traffic"}},
		{"what both trees have is said once", func() *Spec {
			s := eth0(rate("100mbit"), ingress(rate("100mbit")), chain(8), branch("burst"), branch("a", binds("user:a")), branch("a", binds("user:a")), branch("rest", delegates("bob", "bob"), branch("x")))
			s.Line.MPU = 300
			return s
		}(), []string{
			"eth0 mpu: mpu 300b is not between 1b and 256b",
			"eth0/l1/l2/l3/l4/l5/l6/l7/l8: l8 is level 8 below the interface; HTB has 8, the interface's own among them | move it up, or join two of the levels above it",
			`eth0/burst: "burst" is a key of the policy and cannot name a branch`,
			"eth0/a: eth0 has two branches called a | give one of them another name",
			"eth0/a bind[0]: user:a is bound to eth0/a already | one name goes to one branch of an interface: remove one of the two",
			"eth0/rest: rest has branches below it, but it must be a leaf: it carries what no binding claims | give the branches a parent with another name",
			"eth0/rest delegate: rest cannot be delegated: it carries what nobody claims, and must stay a leaf | delegate a branch beside it",
			"eth0/rest delegate[1]: bob is named twice | remove one of the two"}},
		{"broken: what follows from it is not judged", eth0(rate("100mbit"), ingress(rate("100mbit")), branch("a", ingress(broken())), branch("b", rate("900mbit"), ingress(rate("900mbit")))), []string{
			"eth0/b rate: rate 900mbit is too much: the branches of eth0 add up to 900mbit, which is 800mbit more than its rate 100mbit | guarantees must fit: lower them, and let branches borrow up to their ceil"}},
		{"broken alone gives no tree", eth0(rate("100mbit"), ingress(broken()), branch("a", ingress(rate("10mbit")))), nil},
	} {
		t.Run(r.name, func(t *testing.T) {
			tree, problems := Resolve(r.spec, kinds)
			if d := cmp.Diff(r.want, told(problems)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			good := len(problems) > 0 && !slices.ContainsFunc(problems, func(p Problem) bool { return !p.Warning })
			if (tree != nil) != good {
				t.Errorf("the tree is %v", tree)
			}
		})
	}
}

// The number of branches is that of one tree, and is complained of once.
func TestResolveIngressMany(t *testing.T) {
	s := flat(9_999)
	s.Ingress = &BranchSpec{Rate: amount("100gbit")}
	tree, problems := Resolve(s, nil)
	want := []string{"eth0: warning: 10001 branches below one interface: the kernel takes time in proportion to the square of their number to make them"}
	if d := cmp.Diff(want, told(problems)); d != "" || tree == nil {
		t.Errorf("the tree is %v (-want +got):\n%s", tree, d)
	}
}

// Of a policy that says the same for both directions both trees are the same, and so is
// what is wrong with them.
func TestResolveIngressMirrors(t *testing.T) {
	var mirror func(b *BranchSpec)
	mirror = func(b *BranchSpec) {
		b.Ingress = &BranchSpec{Rate: b.Rate, Ceil: b.Ceil, Prio: b.Prio, Burst: b.Burst, CBurst: b.CBurst, Quantum: b.Quantum, Qdisc: b.Qdisc}
		for _, c := range b.Children {
			mirror(c)
		}
	}
	rnd := rand.New(rand.NewPCG(5, 6))
	good := 0
	for range 2000 {
		s := randomSpec(rnd.IntN)
		one, alone := Resolve(s, kinds)
		mirror(&s.BranchSpec)
		tree, problems := Resolve(s, kinds)
		var send, want, got []string
		for _, p := range problems {
			text := string(p.Path) + " " + p.Text
			if after, ok := strings.CutPrefix(p.Text, "ingress: "); ok {
				if p.Key != "ingress" && !strings.HasPrefix(p.Key, "ingress.") {
					t.Fatalf("%+v", p)
				}
				got = append(got, string(p.Path)+" "+after)
				continue
			}
			send = append(send, text)
			if !strings.Contains(p.Text, " is level ") {
				want = append(want, text)
			}
		}
		if d := cmp.Diff(want, got); d != "" || len(send) != len(alone) {
			t.Fatalf("of %d, without ingress %d (-send +receive):\n%s", len(send), len(alone), d)
		}
		if (tree == nil) != (one == nil) {
			t.Fatalf("alone %v, both %v", one, tree)
		}
		if tree == nil {
			continue
		}
		good++
		if d := cmp.Diff(lines(one), lines(tree)) + cmp.Diff(lines(tree), lines(tree.Ingress)); d != "" {
			t.Fatal(d)
		}
	}
	if good < 200 {
		t.Errorf("only %d of 2000 random specifications are good: the test says too little", good)
	}
}

// There is room for as many flows as is written, else for some of each branch.
func TestResolveFlows(t *testing.T) {
	for _, tt := range []struct {
		branches int
		written  uint32
		want     uint32
	}{
		{2, 0, 65_536}, {1024, 0, 65_536}, {1025, 0, 131_072}, {2048, 0, 131_072}, {2049, 0, 262_144}, {10_000, 0, 1 << 20}, {20_000, 0, 1 << 20},
		{2, MinFlows, 1024}, {2, 200_000, 200_000}, {1025, 70_000, 70_000}, {2, MaxFlows, 1 << 24},
	} {
		spec := eth0(rate("1tbit"), ingress(rate("1tbit")))
		for i := range tt.branches - 2 { // the interface and its rest are two
			spec.Children = append(spec.Children, &BranchSpec{Name: fmt.Sprint("b", i)})
		}
		spec.Flows = tt.written
		tree, problems := Resolve(spec, nil)
		if tree == nil || tree.Ingress.Size() != tt.branches || tree.Ingress.Flows != tt.want || tree.Flows != 0 {
			t.Errorf("%d branches, flows %d: want room for %d: %+v, %v", tt.branches, tt.written, tt.want, tree, problems)
		}
	}
	for _, bad := range []uint32{1, MinFlows - 1, MaxFlows + 1} {
		spec := eth0(rate("1gbit"), ingress(rate("1gbit")))
		spec.Flows = bad
		if tree, problems := Resolve(spec, nil); tree != nil || len(problems) != 1 || problems[0].Key != "ingress.flows" {
			t.Errorf("flows %d: %v", bad, problems)
		}
	}
}
