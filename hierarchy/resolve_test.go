package hierarchy_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	. "github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// option sets one key of a branch; a *BranchSpec is one too: a child.
type option interface{ set(*BranchSpec) }

type optionFunc func(*BranchSpec)

func (f optionFunc) set(b *BranchSpec) { f(b) }

// node is a branch of a specification.
type node struct{ *BranchSpec }

func (n node) set(b *BranchSpec) { b.Children = append(b.Children, n.BranchSpec) }

func branch(name string, opts ...option) node {
	b := &BranchSpec{Name: name}
	for _, o := range opts {
		o.set(b)
	}
	return node{b}
}

// amount reads one; tests write only good ones.
func amount(s string) Amount {
	a, err := ParseAmount(s)
	if err != nil {
		panic(err)
	}
	return a
}

func rate(s string) option { return optionFunc(func(b *BranchSpec) { b.Rate = amount(s) }) }
func ceil(s string) option { return optionFunc(func(b *BranchSpec) { b.Ceil = amount(s) }) }
func prio(p uint8) option  { return optionFunc(func(b *BranchSpec) { b.Prio = &p }) }
func broken() option       { return optionFunc(func(b *BranchSpec) { b.Broken = true }) }
func quantum(q Size) option {
	return optionFunc(func(b *BranchSpec) { b.Quantum = q })
}
func bursts(burst, cburst Size) option {
	return optionFunc(func(b *BranchSpec) { b.Burst, b.CBurst = burst, cburst })
}
func qdisc(kind string, params ...RawParam) option {
	return optionFunc(func(b *BranchSpec) { b.Qdisc = &RawQdisc{kind, params} })
}
func binds(names ...string) option {
	return optionFunc(func(b *BranchSpec) {
		for _, n := range names {
			x, err := bind.Parse(n)
			if err != nil {
				panic(err)
			}
			b.Bind = append(b.Bind, x)
		}
	})
}

// ingress is what holds for receiving.
func ingress(opts ...option) option {
	return optionFunc(func(b *BranchSpec) { b.Ingress = branch("", opts...).BranchSpec })
}

func eth0(opts ...option) *Spec {
	return &Spec{Interface: "eth0", BranchSpec: *branch("", opts...).BranchSpec}
}

var kinds = []Kind{
	{Name: "pfifo", Params: []Param{{Name: "limit", Type: Count, Min: 1, Max: 1000}}},
	{Name: "fq_codel", Params: []Param{{Name: "limit", Type: Count, Min: 1}, {Name: "target", Type: Duration}, {Name: "interval", Type: Duration}},
		Verify: func(q Qdisc) error {
			t, _ := q.Get("target")
			if i, ok := q.Get("interval"); ok && t > i {
				return errors.New("target is longer than interval")
			}
			return nil
		}},
	{Name: "hhf"},
}

// lines prints a tree as one line per branch.
func lines(t *Tree) []string {
	var out []string
	for b := range t.All() {
		s := fmt.Sprintf("%s %v/%v prio %d", b.Path, b.Rate, b.Ceil, b.Prio)
		if b.Implied {
			s += " implied"
		}
		out = append(out, s)
	}
	return out
}

func TestResolve(t *testing.T) {
	for _, r := range []struct {
		name string
		spec *Spec
		want []string
	}{
		{"an interface alone has its rest", eth0(rate("100mbit")), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/rest 100mbit/100mbit prio 3 implied"}},
		{"a ceil that says the same", eth0(rate("100mbit"), ceil("100%")), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/rest 100mbit/100mbit prio 3 implied"}},
		{"the rest takes what is left", eth0(rate("100mbit"), branch("a", rate("30mbit"))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 30mbit/100mbit prio 3", "eth0/rest 70mbit/100mbit prio 3 implied"}},
		{"those without a rate share in equal parts, the rest among them", eth0(rate("100mbit"), branch("a", rate("40mbit")), branch("b"), branch("c")), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 40mbit/100mbit prio 3", "eth0/b 20mbit/100mbit prio 3", "eth0/c 20mbit/100mbit prio 3", "eth0/rest 20mbit/100mbit prio 3 implied"}},
		{"a low ceil leaves its part to the others", eth0(rate("100mbit"), branch("a"), branch("b", ceil("10mbit"))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 45mbit/100mbit prio 3", "eth0/b 10mbit/10mbit prio 3", "eth0/rest 45mbit/100mbit prio 3 implied"}},
		{"two low ceils, the lower first", eth0(rate("100mbit"), branch("a", ceil("30mbit")), branch("b", ceil("10mbit")), branch("c"), branch("rest", ceil("20mbit"))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 30mbit/30mbit prio 3", "eth0/b 10mbit/10mbit prio 3", "eth0/c 40mbit/100mbit prio 3", "eth0/rest 20mbit/20mbit prio 3"}},
		{"ceils below everything leave some unguaranteed", eth0(rate("100mbit"), branch("a", ceil("10mbit")), branch("rest", ceil("20mbit"))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 10mbit/10mbit prio 3", "eth0/rest 20mbit/20mbit prio 3"}},
		{"percentages: rate of the parent's rate, ceil of the parent's ceil", eth0(rate("100mbit"), branch("a", rate("50%"), ceil("80%"), branch("b", rate("10%"), ceil("50%")))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 50mbit/80mbit prio 3", "eth0/a/b 5mbit/40mbit prio 3", "eth0/rest 50mbit/100mbit prio 3 implied"}},
		{"three thirds in percent", eth0(rate("100mbit"), branch("a", rate("33.333%")), branch("b", rate("33.333%")), branch("c", rate("33.333%"), ceil("50%")), branch("rest", rate("0.001%"))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 33333kbit/100mbit prio 3", "eth0/b 33333kbit/100mbit prio 3", "eth0/c 33333kbit/50mbit prio 3", "eth0/rest 1kbit/100mbit prio 3"}},
		{"a rate of its own lets the rest be below one in a hundred", eth0(rate("100mbit"), branch("a", rate("99990kbit")), branch("rest", rate("10kbit"))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 99990kbit/100mbit prio 3", "eth0/rest 10kbit/100mbit prio 3"}},
		{"so does a ceil", eth0(rate("100mbit"), branch("a", rate("99990kbit")), branch("rest", ceil("10kbit"))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 99990kbit/100mbit prio 3", "eth0/rest 10kbit/10kbit prio 3"}},
		{"just one in a hundred is left", eth0(rate("100mbit"), branch("a", rate("99%"))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 99mbit/100mbit prio 3", "eth0/rest 1mbit/100mbit prio 3 implied"}},
		{"the rest has its least before others share", eth0(rate("100mbit"), branch("a", rate("98500kbit")), branch("b"), branch("c")), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 98500kbit/100mbit prio 3", "eth0/b 250kbit/100mbit prio 3", "eth0/c 250kbit/100mbit prio 3", "eth0/rest 1mbit/100mbit prio 3 implied"}},
		{"a remainder goes to the last", eth0(rate("100bit"), branch("a"), branch("b")), []string{
			"eth0 100bit/100bit prio 3", "eth0/a 33bit/100bit prio 3", "eth0/b 33bit/100bit prio 3", "eth0/rest 34bit/100bit prio 3 implied"}},
		{"a bound branch with children has a rest", eth0(rate("100mbit"), branch("a", rate("50mbit"), binds("user:a"), branch("b", rate("10mbit")))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 50mbit/100mbit prio 3", "eth0/a/b 10mbit/100mbit prio 3", "eth0/a/rest 40mbit/100mbit prio 3 implied", "eth0/rest 50mbit/100mbit prio 3 implied"}},
		{"an unbound one has none", eth0(rate("100mbit"), branch("a", rate("50mbit"), branch("b", rate("10mbit")))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 50mbit/100mbit prio 3", "eth0/a/b 10mbit/100mbit prio 3", "eth0/rest 50mbit/100mbit prio 3 implied"}},
		{"a bound leaf has none", eth0(rate("100mbit"), branch("a", rate("50mbit"), binds("user:a"))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 50mbit/100mbit prio 3", "eth0/rest 50mbit/100mbit prio 3 implied"}},
		{"prio is inherited", eth0(rate("100mbit"), branch("a", prio(0), branch("b"), branch("c", prio(7), branch("d")))), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/a 50mbit/100mbit prio 0", "eth0/a/b 25mbit/100mbit prio 0", "eth0/a/c 25mbit/100mbit prio 7", "eth0/a/c/d 25mbit/100mbit prio 7", "eth0/rest 50mbit/100mbit prio 3 implied"}},
		{"eight classes on the way", eth0(rate("100mbit"), chain(7)), []string{
			"eth0 100mbit/100mbit prio 3", "eth0/l1 50mbit/100mbit prio 3", "eth0/l1/l2 50mbit/100mbit prio 3", "eth0/l1/l2/l3 50mbit/100mbit prio 3",
			"eth0/l1/l2/l3/l4 50mbit/100mbit prio 3", "eth0/l1/l2/l3/l4/l5 50mbit/100mbit prio 3", "eth0/l1/l2/l3/l4/l5/l6 50mbit/100mbit prio 3",
			"eth0/l1/l2/l3/l4/l5/l6/l7 50mbit/100mbit prio 3", "eth0/rest 50mbit/100mbit prio 3 implied"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			tree, problems := Resolve(r.spec, kinds)
			for _, p := range problems {
				if !p.Warning {
					t.Errorf("%s: %s", p.Path, p.Text)
				}
			}
			if tree == nil {
				t.Fatal("no tree")
			}
			if d := cmp.Diff(r.want, lines(tree)); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
		})
	}
}

// chain is n branches, each below the one before.
func chain(n int, opts ...option) node {
	c := branch(fmt.Sprintf("l%d", n), opts...)
	for i := n - 1; i > 0; i-- {
		c = branch(fmt.Sprintf("l%d", i), c)
	}
	return c
}

func TestResolveCarries(t *testing.T) {
	s := eth0(rate("100mbit"), branch("a", bursts(5000, 6000), quantum(3000), binds("user:a", "unit:b.service"), qdisc("fq_codel", RawParam{"interval", "100ms", true}, RawParam{"limit", "10", false})))
	s.Line = Line{Layer: "atm", Overhead: 18, MPU: 64}
	s.MTU, s.Replace = 1500, true
	tree, problems := Resolve(s, kinds)
	if len(problems) > 0 {
		t.Fatal(problems)
	}
	if tree.Port.Device != "eth0" || tree.MTU != 1500 || tree.Line != s.Line || !tree.Replace || tree.Root.Parent != ID(0) {
		t.Errorf("got %+v", tree)
	}
	want := &Branch{
		Class: Class{Path: "eth0/a", Rate: 50 * Mbit, Ceil: 100 * Mbit, Burst: 5000, CBurst: 6000, Quantum: 3000, Prio: 3},
		Qdisc: Qdisc{"fq_codel", []Setting{{"limit", 10}, {"interval", 100_000_000}}},
		Bind:  []bind.Binding{{Kind: bind.User, Name: "a"}, {Kind: bind.Unit, Name: "b.service"}},
	}
	if d := cmp.Diff(want, tree.Find("eth0/a")); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
	if tree.Root.Entry() != tree.Find("eth0/rest") || tree.Find("eth0/a").Entry() != tree.Find("eth0/a") || tree.Find("eth0/x") != nil {
		t.Error("the entry or a search is wrong")
	}
}

// told prints problems as one line each.
func told(problems []Problem) (all []string) {
	for _, p := range problems {
		key := p.Key
		if p.Index >= 0 {
			key += fmt.Sprintf("[%d]", p.Index)
		}
		s := strings.TrimSuffix(string(p.Path)+" "+key, " ") + ": "
		if p.Warning {
			s += "warning: "
		}
		s += p.Text
		if p.Hint != "" {
			s += " | " + p.Hint
		}
		all = append(all, s)
	}
	return all
}

func TestResolveProblems(t *testing.T) {
	link := func(change func(*Spec)) *Spec {
		s := eth0(rate("100mbit"))
		change(s)
		return s
	}
	for _, r := range []struct {
		name string
		spec *Spec
		want []string
	}{
		// The interface.
		{"rate missing", eth0(), []string{`eth0: rate is missing | say what the link really carries, a little less than the line: rate = "940mbit"`}},
		{"rate missing, and below it only what does not follow from that", eth0(branch("a", rate("10mbit"), ceil("5mbit"), prio(9))), []string{
			`eth0: rate is missing | say what the link really carries, a little less than the line: rate = "940mbit"`,
			`eth0/a prio: prio 9 is not between 0 (first) and 7 (last)`}},
		{"rate in percent", eth0(rate("50%")), []string{`eth0 rate: rate 50% is a percentage, but an interface has no parent to take it from | write the bandwidth of the link, for example "940mbit", or a share of what its driver says: "95% of link"`}},
		{"rate below a byte", eth0(rate("7bit")), []string{`eth0 rate: rate 7bit is less than a byte a second, 8bit`}},
		{"ceil differs", eth0(rate("100mbit"), ceil("50mbit")), []string{`eth0 ceil: ceil 50mbit differs from rate 100mbit, but an interface has nobody to borrow from | remove ceil, and write what the link carries as rate`}},
		{"ceil differs in percent", eth0(rate("100mbit"), ceil("50%")), []string{`eth0 ceil: ceil 50% (50mbit) differs from rate 100mbit, but an interface has nobody to borrow from | remove ceil, and write what the link carries as rate`}},
		{"overhead", link(func(s *Spec) { s.Line.Overhead = -1 }), []string{"eth0 overhead: overhead -1 is not between 1 and 256 bytes"}},
		{"mpu", link(func(s *Spec) { s.Line.MPU = 300 }), []string{"eth0 mpu: mpu 300b is not between 1b and 256b"}},
		{"linklayer", link(func(s *Spec) { s.Line.Layer = "docis" }), []string{`eth0 linklayer: linklayer "docis" is not known | did you mean "docsis"? known are ` + strings.Join(Layers(), ", ")}},
		{"linklayer far from all", link(func(s *Spec) { s.Line.Layer = "fibre" }), []string{`eth0 linklayer: linklayer "fibre" is not known | known are ` + strings.Join(Layers(), ", ")}},
		{"mtu", link(func(s *Spec) { s.MTU = 67 }), []string{"eth0 mtu: mtu 67b is not between 68b and 64kib"}},
		{"no name", link(func(s *Spec) { s.Interface = "" }), []string{": an interface without a name"}},
		{"slash in the name", link(func(s *Spec) { s.Interface = "a/b" }), []string{`a/b: "a/b" cannot be an interface: its name has no slash, colon or space`}},

		{"byte 0xa0 in the name", link(func(s *Spec) { s.Interface = "voilà" }), []string{`voilà: "voilà" cannot be an interface: the kernel takes its byte 0xa0 for a space`}},
		{"longest name", link(func(s *Spec) { s.Interface = "fifteen-bytes-1" }), nil},
		{"alternative name", link(func(s *Spec) { s.Interface = "sixteen-bytes-12" }), nil},
		{"no alternative name", link(func(s *Spec) { s.Interface = strings.Repeat("x", 128) }), []string{
			fmt.Sprintf("%s: %[1]q cannot be an interface: a name has at most 15 bytes, an alternative one 127, and this one has 128", strings.Repeat("x", 128))}},
		{"pattern", link(func(s *Spec) { s.Interface = "wlp[0-9]*" }), nil},
		{"hardware address", link(func(s *Spec) { s.Interface = "mac=52:54:00:12:34:56" }), nil},
		{"no pattern", link(func(s *Spec) { s.Interface = "wlp[" }), []string{
			`wlp[: "wlp[" is no pattern of interfaces | a [ opens a list of characters as in [a-c], and must be closed; write [[] for the bracket itself`}},
		{"no hardware address", link(func(s *Spec) { s.Interface = "mac=52:54:00:12:34" }), []string{
			`mac=52:54:00:12:34: "mac=52:54:00:12:34" has no hardware address | write six bytes, as in "mac=52:54:00:12:34:56"`}},

		// Ceilings and rates.
		{"ceil below rate", eth0(rate("100mbit"), branch("a", rate("10mbit"), ceil("5mbit"))), []string{
			`eth0/a ceil: ceil 5mbit is below rate 10mbit | write ceil = "10mbit" or more, or lower the rate`}},
		{"ceil in percent below rate", eth0(rate("100mbit"), branch("a", rate("10%"), ceil("5%"))), []string{
			`eth0/a ceil: ceil 5% (5mbit) is below rate 10% (10mbit) | write ceil = "10mbit" or more, or lower the rate`}},
		{"ceil above the parent's", eth0(rate("100mbit"), branch("a", rate("10mbit"), ceil("200mbit"))), []string{
			`eth0/a ceil: ceil 200mbit is above the ceil 100mbit of eth0 and could never be reached | write at most 100mbit, or raise that of eth0`}},
		{"ceil above a capped parent's", eth0(rate("100mbit"), branch("a", rate("10mbit"), ceil("20mbit"), branch("b", ceil("30mbit")))), []string{
			`eth0/a/b ceil: ceil 30mbit is above the ceil 20mbit of eth0/a and could never be reached | write at most 20mbit, or raise that of eth0/a`}},
		{"a ceil of less than a byte", eth0(rate("100mbit"), branch("a", ceil("4bit"))), []string{"eth0/a ceil: ceil 4bit is less than a byte a second, 8bit"}},
		{"a percentage of less than a byte", eth0(rate("1kbit"), branch("a", rate("0.1%"), ceil("0.5%"))), []string{
			"eth0 rate: warning: rate 1kbit, like that of another branch, is so low that large packets exceed it: the kernel forgives what takes longer than 60s to pay back",
			"eth0/a ceil: ceil 0.5% of eth0 comes to 5bit, which is less than a byte a second",
			"eth0/a rate: rate 0.1% of eth0 comes to 1bit, which is less than a byte a second"}},
		{"many slow branches", eth0(rate("100mbit"), branch("a", branch("b", rate("1kbit")), branch("c", rate("2kbit"))), branch("d", rate("3kbit"))), []string{
			"eth0/a/b rate: warning: rate 1kbit, like those of 2 other branches, is so low that large packets exceed it: the kernel forgives what takes longer than 60s to pay back"}},
		{"a rate of less than a byte", eth0(rate("100mbit"), branch("a", rate("1bit"))), []string{"eth0/a rate: rate 1bit is less than a byte a second, 8bit"}},

		// Sums.
		{"too much", eth0(rate("100mbit"), branch("a", rate("60mbit")), branch("b", rate("60mbit")), branch("c", rate("10%"))), []string{
			"eth0/b rate: rate 60mbit is too much: the branches of eth0 add up to 130mbit, which is 30mbit more than its rate 100mbit | guarantees must fit: lower them, and let branches borrow up to their ceil"}},
		{"too much by one bit", eth0(rate("100mbit"), branch("a", rate("50%")), branch("b", rate("50%")), branch("rest", rate("8bit"))), []string{
			"eth0/rest rate: rate 8bit is too much: the branches of eth0 add up to 100000008bit, which is 8bit more than its rate 100mbit | guarantees must fit: lower them, and let branches borrow up to their ceil",
			"eth0/rest rate: warning: rate 8bit is so low that large packets exceed it: the kernel forgives what takes longer than 60s to pay back"}},
		{"one branch beyond its parent", eth0(rate("100mbit"), branch("a", rate("200mbit"))), []string{
			"eth0/a rate: rate 200mbit is too much: the branches of eth0 add up to 200mbit, which is 100mbit more than its rate 100mbit | guarantees must fit: lower them, and let branches borrow up to their ceil"}},
		{"nothing left for the rest", eth0(rate("100mbit"), branch("a", rate("100%"))), []string{
			"eth0: 100mbit of eth0's 100mbit are guaranteed to its branches, which leaves 0bit for eth0/rest; it needs at least 1mbit | take 1mbit away from the branches below eth0"}},
		{"too little left for a rest that is written", eth0(rate("100mbit"), branch("a", rate("99.9%")), branch("rest")), []string{
			"eth0/rest: 99900kbit of eth0's 100mbit are guaranteed to its branches, which leaves 100kbit for eth0/rest; it needs at least 1mbit | take 900kbit away from the branches below eth0, or give eth0/rest a rate of its own"}},
		{"nothing left for a bound branch's rest", eth0(rate("100mbit"), branch("a", rate("10mbit"), binds("user:a"), branch("b", rate("10mbit")))), []string{
			"eth0/a: 10mbit of eth0/a's 10mbit are guaranteed to its branches, which leaves 0bit for eth0/a/rest; it needs at least 100kbit | take 100kbit away from the branches below eth0/a"}},
		{"nothing left for others", eth0(rate("100mbit"), branch("a", rate("99%")), branch("b"), branch("c"), branch("d")), []string{
			"eth0/b: nothing is left of eth0's 100mbit to guarantee it and 2 more without a rate | write a rate here, and lower those of its siblings"}},
		{"nothing left for one other", eth0(rate("100mbit"), branch("a", rate("50mbit"), branch("b", rate("50mbit")), branch("c"))), []string{
			"eth0/a/c: nothing is left of eth0/a's 50mbit to guarantee it | write a rate here, and lower those of its siblings"}},

		// What follows from a mistake is not reported.
		{"ceil above the parent's, grandchild within what was written", eth0(rate("100mbit"), branch("a", rate("10mbit"), ceil("200mbit"), branch("b", ceil("150mbit")))), []string{
			`eth0/a ceil: ceil 200mbit is above the ceil 100mbit of eth0 and could never be reached | write at most 100mbit, or raise that of eth0`}},
		{"ceil and rate above the parent", eth0(rate("100mbit"), branch("a", rate("150mbit"), ceil("200mbit"))), []string{
			`eth0/a ceil: ceil 200mbit is above the ceil 100mbit of eth0 and could never be reached | write at most 100mbit, or raise that of eth0`,
			"eth0/a rate: rate 150mbit is too much: the branches of eth0 add up to 150mbit, which is 50mbit more than its rate 100mbit | guarantees must fit: lower them, and let branches borrow up to their ceil"}},
		{"too much leaves nothing known of those without a rate", eth0(rate("100mbit"), branch("a", rate("150mbit")), branch("b", branch("c", rate("10mbit")))), []string{
			"eth0/a rate: rate 150mbit is too much: the branches of eth0 add up to 150mbit, which is 50mbit more than its rate 100mbit | guarantees must fit: lower them, and let branches borrow up to their ceil"}},
		{"nothing left, and children with rates", eth0(rate("100mbit"), branch("a", rate("99%")), branch("b", branch("c", rate("10mbit")))), []string{
			"eth0/b: nothing is left of eth0's 100mbit to guarantee it | write a rate here, and lower those of its siblings"}},
		{"a rate too low, and children in percent", eth0(rate("100mbit"), branch("a", rate("7bit"), branch("b", rate("10%")))), []string{"eth0/a rate: rate 7bit is less than a byte a second, 8bit"}},
		{"broken: siblings and what is below are not judged, names are", eth0(rate("100mbit"), branch("a", broken(), branch("b", rate("900mbit"))), branch("c", rate("900mbit")), branch("my.d")), []string{
			`eth0/my.d: the name "my.d" is not made of letters, digits, _ - @ and +, the first a letter, digit or _: write "my-d"`}},
		{"broken alone gives no tree", eth0(rate("100mbit"), branch("a", broken())), nil},
		{"a broken interface gives no tree", eth0(broken()), nil},

		// Form.
		{"too deep, once for what is below", eth0(rate("100mbit"), chain(8, branch("x", branch("y")))), []string{
			"eth0/l1/l2/l3/l4/l5/l6/l7/l8: l8 is level 8 below the interface; HTB has 8, the interface's own among them | move it up, or join two of the levels above it"}},
		{"names", eth0(rate("100mbit"), branch("burst"), branch(""), branch("a"), branch("a")), []string{
			`eth0/burst: "burst" is a key of the policy and cannot name a branch`,
			"eth0/: a branch without a name",
			"eth0/a: eth0 has two branches called a | give one of them another name"}},
		{"a rest with children", eth0(rate("100mbit"), branch("rest", branch("a"))), []string{
			"eth0/rest: rest has branches below it, but it must be a leaf: it carries what no binding claims | give the branches a parent with another name"}},
		{"prio", eth0(rate("100mbit"), branch("a", prio(8), branch("b"))), []string{"eth0/a prio: prio 8 is not between 0 (first) and 7 (last)"}},
		{"quantum", eth0(rate("100mbit"), branch("a", quantum(999)), branch("b", quantum(16*MiB+1))), []string{
			"eth0/a quantum: quantum 999b is not between 1kb and 16mib | leave it out: it is then chosen in proportion to the rate",
			"eth0/b quantum: quantum 16777217b is not between 1kb and 16mib | leave it out: it is then chosen in proportion to the rate"}},
		{"burst beyond the ticks", eth0(rate("100mbit"), branch("a", rate("80kbit"), ceil("80kbit"), bursts(2_740_001, 3_000_000))), []string{
			"eth0/a burst: burst 2740001b takes 274s at rate 80kbit; the kernel holds at most 274s | write at most 2740kb",
			"eth0/a cburst: cburst 3mb takes 300s at ceil 80kbit; the kernel holds at most 274s | write at most 2740kb"}},
		{"burst at the limit of the ticks", eth0(rate("100mbit"), branch("a", rate("80kbit"), bursts(2_740_000, 0))), nil},
		{"burst of less than a timer's lateness", eth0(rate("100mbit"), branch("a", rate("20mbit"), bursts(249, 1249))), []string{
			"eth0/a burst: warning: burst 249b is sent in less than 100µs at rate 20mbit, and timers may be later than that: the branch will stay below its rate",
			"eth0/a cburst: warning: cburst 1249b is sent in less than 100µs at ceil 100mbit, and timers may be later than that: the branch will stay below its ceil"}},
		{"burst of less than a packet", eth0(rate("100mbit"), branch("a", rate("64kbit"), ceil("64kbit"), bursts(80, 80))), nil},

		// Bindings.
		{"bound twice", eth0(rate("100mbit"), branch("a", binds("user:a", "user:b")), branch("b", binds("unit:x.service", "user:b"))), []string{
			"eth0/b bind[1]: user:b is bound to eth0/a already | one name goes to one branch of an interface: remove one of the two"}},
		{"bound twice in one branch", eth0(rate("100mbit"), branch("a", binds("user:a", "user:a"))), []string{
			"eth0/a bind[1]: user:a is bound to eth0/a already | one name goes to one branch of an interface: remove one of the two"}},

		// Queueing disciplines.
		{"qdisc unknown", eth0(rate("100mbit"), branch("a", qdisc("fqcodel"))), []string{`eth0/a qdisc: qdisc "fqcodel" is not known | did you mean "fq_codel"?`}},
		{"qdisc far from any", eth0(rate("100mbit"), branch("a", qdisc("wonderful"))), []string{`eth0/a qdisc: qdisc "wonderful" is not known | known are pfifo, fq_codel, hhf`}},
		{"qdisc on an inner branch", eth0(rate("100mbit"), branch("a", qdisc("pfifo"), branch("b"))), []string{
			"eth0/a qdisc: qdisc on a branch with children: only leaves have a queue | give it to the branches below, or to a child called rest for this branch's own traffic"}},
		{"qdisc parameters", eth0(rate("100mbit"), branch("a", qdisc("pfifo", RawParam{"limits", "1", false}, RawParam{"limit", "0", false})), branch("b", qdisc("hhf", RawParam{"limit", "1", false}))), []string{
			`eth0/a qdisc.limits: pfifo has no parameter "limits" | did you mean "limit"?`,
			"eth0/a qdisc.limit: limit 0 is not between 1 and 1000",
			`eth0/b qdisc.limit: hhf has no parameter "limit" | it takes none`}},
		{"qdisc parameters against each other", eth0(rate("100mbit"), branch("a", qdisc("fq_codel", RawParam{"target", "9ms", true}, RawParam{"interval", "5ms", true}))), []string{
			"eth0/a qdisc: target is longer than interval"}},
		{"not against each other when one is wrong", eth0(rate("100mbit"), branch("a", qdisc("fq_codel", RawParam{"target", "9ms", true}, RawParam{"interval", "5ms", true}, RawParam{"limit", "x", false}))), []string{
			"eth0/a qdisc.limit: limit is a number: write limit = 100 without quotes and unit"}},

		// Several at once, in the order of the tree.
		{"order", eth0(rate("100mbit"), branch("a", rate("10mbit"), branch("b", prio(8)), branch("c", rate("20mbit"))), branch("d", rate("1mbit"), ceil("200mbit")), branch("rest", prio(9), quantum(1))), []string{
			"eth0/a/b prio: prio 8 is not between 0 (first) and 7 (last)",
			"eth0/a/c rate: rate 20mbit is too much: the branches of eth0/a add up to 20mbit, which is 10mbit more than its rate 10mbit | guarantees must fit: lower them, and let branches borrow up to their ceil",
			"eth0/d ceil: ceil 200mbit is above the ceil 100mbit of eth0 and could never be reached | write at most 100mbit, or raise that of eth0",
			"eth0/rest prio: prio 9 is not between 0 (first) and 7 (last)",
			"eth0/rest quantum: quantum 1b is not between 1kb and 16mib | leave it out: it is then chosen in proportion to the rate"}},
	} {
		t.Run(r.name, func(t *testing.T) {
			tree, problems := Resolve(r.spec, kinds)
			bad := strings.HasPrefix(r.name, "broken") || strings.HasPrefix(r.name, "a broken")
			bad = bad || slices.ContainsFunc(problems, func(p Problem) bool { return !p.Warning })
			got := told(problems)
			if d := cmp.Diff(r.want, got); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if (tree == nil) != bad {
				t.Errorf("the tree is %v", tree)
			}
		})
	}
}

// flat is n branches below one interface, with no rate written.
func flat(n int) *Spec {
	s := eth0(rate("100gbit"))
	for i := range n {
		s.Children = append(s.Children, &BranchSpec{Name: fmt.Sprintf("b%d", i)})
	}
	return s
}

func TestResolveMany(t *testing.T) {
	for _, r := range []struct {
		n    int // the rest and the interface come on top
		want string
	}{
		{9_998, ""},
		{9_999, "warning: 10001 branches below one interface: the kernel takes time in proportion to the square of their number to make them"},
		{59_998, "warning: 60000 branches below one interface: the kernel takes time in proportion to the square of their number to make them"},
		{59_999, "60001 branches are more than the 60000 that class ids of 16 bits can name"},
	} {
		tree, problems := Resolve(flat(r.n), nil)
		got := ""
		for _, p := range problems {
			if got += p.Text; p.Warning {
				got = "warning: " + got
			}
		}
		if got != r.want || (tree == nil) != (r.n == 59_999) {
			t.Errorf("%d branches: got %q, want %q", r.n, got, r.want)
		}
	}
}

// sound says what a resolved tree breaks.
func sound(t *Tree) error {
	seen := map[Path]bool{}
	for b := range t.All() {
		if seen[b.Path] {
			return fmt.Errorf("%s is there twice", b.Path)
		}
		seen[b.Path] = true
		if b.Rate < 8 || b.Rate > b.Ceil || b.Prio > MaxPrio {
			return fmt.Errorf("%s has rate %v, ceil %v, prio %d", b.Path, b.Rate, b.Ceil, b.Prio)
		}
		var sum Bandwidth
		for _, c := range b.Children {
			sum += c.Rate
			if c.Ceil > b.Ceil {
				return fmt.Errorf("%s has ceil %v above the %v of its parent", c.Path, c.Ceil, b.Ceil)
			}
		}
		if sum > b.Rate {
			return fmt.Errorf("the children of %s add up to %v, more than %v", b.Path, sum, b.Rate)
		}
		if (b == t.Root || len(b.Bind) > 0) && b.Entry() == nil {
			return fmt.Errorf("%s has no leaf of its own", b.Path)
		}
		if !b.Leaf() && b.Qdisc.Kind != "" {
			return fmt.Errorf("%s has a queue and children", b.Path)
		}
		if strings.Count(string(b.Path), "/") >= MaxDepth {
			return fmt.Errorf("%s is too deep", b.Path)
		}
	}
	return nil
}

// source gives a specification's next number below n.
type source func(n int) int

// bytesSource reads them from bytes, zeros behind the end.
func bytesSource(data []byte) source {
	return func(n int) int {
		if len(data) == 0 {
			return 0
		}
		x := data[0]
		data = data[1:]
		return int(x) % n
	}
}

var (
	someRates = []string{"", "", "", "", "10%", "20%", "33.333%", "0.5%", "1mbit", "5mbit", "20mbit", "300mbit", "7bit", "100%", "2gbit", "64kbit"}
	someCeils = []string{"", "", "", "", "", "50%", "80%", "100%", "10mbit", "50mbit", "1gbit", "0.001%", "99bit"}
	someNames = []string{"a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "rest"}
)

// randomSpec makes a specification of what next says; most of them are good.
func randomSpec(next source) *Spec {
	s := eth0(rate([]string{"1gbit", "100mbit", "940mbit", "8bit", "100tbit", "12345679bit"}[next(6)]))
	left := 60
	var below func(b *BranchSpec, depth int)
	below = func(b *BranchSpec, depth int) {
		n := next(5)
		if depth > 1 {
			n = next(max(2, 6-depth))
		}
		first := next(len(someNames))
		for i := range n {
			if left--; left < 0 || depth > 10 {
				return
			}
			c := &BranchSpec{Name: someNames[(first+i)%len(someNames)]}
			if x := someRates[next(len(someRates))]; x != "" {
				c.Rate = amount(x)
			}
			if x := someCeils[next(len(someCeils))]; x != "" {
				c.Ceil = amount(x)
			}
			if next(3) == 0 {
				p := uint8(next(8))
				c.Prio = &p
			}
			if next(4) == 0 {
				c.Bind = []bind.Binding{{Kind: bind.User, Name: fmt.Sprint(left)}}
			}
			if next(8) == 0 {
				c.Quantum = Size(1000 + 100*next(90))
			}
			if c.Name != RestName {
				below(c, depth+1)
			}
			b.Children = append(b.Children, c)
		}
	}
	below(&s.BranchSpec, 1)
	return s
}

// receiver gives a specification, and some of its branches, an ingress of what next says.
func receiver(s *Spec, next source) *Spec {
	s.Ingress = &BranchSpec{Rate: amount([]string{"1gbit", "100mbit", "12345679bit"}[next(3)])}
	var below func(all []*BranchSpec)
	below = func(all []*BranchSpec) {
		for _, c := range all {
			below(c.Children)
			if next(2) == 0 {
				continue
			}
			c.Ingress = &BranchSpec{}
			if x := someRates[next(len(someRates))]; x != "" {
				c.Ingress.Rate = amount(x)
			}
			if x := someCeils[next(len(someCeils))]; x != "" {
				c.Ingress.Ceil = amount(x)
			}
			if next(3) == 0 {
				p := uint8(next(8))
				c.Ingress.Prio = &p
			}
		}
	}
	below(s.Children)
	return s
}

// holdResolve is what must be true of any specification.
func holdResolve(t *testing.T, s *Spec) *Tree {
	t.Helper()
	tree, problems := Resolve(s, kinds)
	again, twice := Resolve(s, kinds)
	if d := cmp.Diff(tree, again) + cmp.Diff(problems, twice); d != "" {
		t.Fatalf("the same input gives something else (-first +second):\n%s", d)
	}
	bad := slices.ContainsFunc(problems, func(p Problem) bool { return !p.Warning })
	if bad != (tree == nil) {
		t.Fatalf("tree %v, problems %v", tree, problems)
	}
	for _, p := range problems {
		if p.Text == "" || !p.Path.Below("eth0") || strings.HasSuffix(p.Text, ".") || strings.Contains(p.Text+p.Hint, "%!") {
			t.Fatalf("bad problem %+v", p)
		}
	}
	if tree == nil {
		return nil
	}
	if err := sound(tree); err != nil {
		t.Fatal(err)
	}
	if (tree.Ingress == nil) != (s.Ingress == nil) {
		t.Fatalf("ingress is %+v, and the tree for receiving %v", s.Ingress, tree.Ingress)
	}
	for b, in := range tree.Both() {
		if in != nil && (in.Path != b.Path || in.Implied != b.Implied || len(in.Children) != len(b.Children)) {
			t.Fatalf("%+v is %+v for receiving", b, in)
		}
	}
	if tree.Ingress != nil {
		if err := sound(tree.Ingress); err != nil {
			t.Fatalf("for receiving: %v", err)
		}
	}
	return tree
}

func TestResolveRandom(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	good, both := 0, 0
	for range 4000 {
		s := randomSpec(rnd.IntN)
		if holdResolve(t, s) != nil {
			good++
		}
		if holdResolve(t, receiver(s, rnd.IntN)) != nil {
			both++
		}
	}
	if good < 400 || both < 200 {
		t.Errorf("only %d of 4000 random specifications are good, %d with ingress: the test says too little", good, both)
	}
	t.Logf("%d of 4000 good, %d with ingress", good, both)
}

func FuzzResolve(f *testing.F) {
	f.Add([]byte{})
	f.Add([]byte{0, 3, 1, 4, 0, 0, 2, 1, 9, 9, 8, 7})
	f.Add([]byte("a tree of some branches, written as any bytes"))
	f.Fuzz(func(t *testing.T, data []byte) {
		next := bytesSource(data)
		s := randomSpec(next)
		holdResolve(t, s)
		holdResolve(t, receiver(s, next))
	})
}
