package hierarchy

import (
	"cmp"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// What a policy may ask for. The numbers that come from the kernel are cited
// where they are checked.
const (
	// defaultPrio is the priority of a branch that names none: in the middle, so
	// that one branch can be put in front of the others, or behind them, without
	// touching those.
	defaultPrio = 3
	// MaxPrio is the last priority (TC_HTB_NUMPRIO, net/sched/sch_htb.c, v6.12).
	MaxPrio = 7
	// MaxDepth is how many classes lie at most on the way from the interface's
	// own to a leaf, both counted (TC_HTB_MAXDEPTH, net/sched/sch_htb.c, v6.12).
	MaxDepth = 8
	// manyBranches is where a policy earns a warning: after each new class the
	// kernel walks all others (tc_bind_tclass, net/sched/sch_api.c, v6.12), so
	// making 10,000 takes seconds and 60,000 minutes.
	manyBranches = 10_000
	// maxBranches is what class ids of 16 bits hold, less those with a meaning.
	maxBranches = 60_000

	minQuantum = 1000              // the kernel's own least (htb_change_class, v6.12)
	maxQuantum = 16 * MiB          // far beyond use, and far from the sign bit of its int
	maxBurst   = 274 * time.Second // 2^32 ticks of 64 ns: what tc_htb_opt.buffer holds
	slowRate   = 10 * Kbit         // see the warning
	restShare  = 100               // the rest gets at least one in so many parts
	minRate    = 8 * Bit           // the kernel counts bytes, and refuses 0 (htb_change_class, v6.12)
	maxName    = 15                // bytes of an interface's name: IFNAMSIZ of linux/if.h less the zero at its end
)

// Problem is one mistake in a specification.
type Problem struct {
	Path    Path   // the branch
	Key     string // of the branch, such as "ceil", "qdisc.limit", "match.dport" or "ingress.ceil"; empty: the branch itself
	Index   int    // the element of a list, such as bind or match; -1 where the key is no list
	Text    string // what is wrong, without the path: "ceil 5mbit is below rate 10mbit", or for receiving "ingress: ceil ..."
	Hint    string // what to write instead; may be empty
	Warning bool   // the policy can be used as it is
}

// Resolve works out every value that a specification leaves open and checks the
// whole: guarantees of branches that name none, ceilings, priorities, the rest.
// It reports all problems, in the order of the tree; the tree is nil when one of
// them is more than a warning, or when a part of the specification is Broken.
// Kinds are the queueing disciplines on offer.
//
// The rules are those of the policy file: a branch without a rate shares, in
// equal parts, what its siblings leave of the parent's rate with the others like
// it, none beyond its own ceil; a percentage counts from the parent's rate for
// rate and from the parent's ceil for ceil. Below an interface, and below a
// branch that has bindings, matches or delegates and children, a leaf called rest is added
// where there is none. A rest without a rate shares like the others, but never gets less
// than one part in a hundred of its parent's rate. On a line with PTM, of which HTB
// cannot count the bytes, the rates of the tree are 64/65 of those.
//
// Of a share of a line whose speed is not known the tree is an example, see [Tree.Example],
// and what is wrong is what is wrong on lines of every usual speed.
//
// An interface with Ingress has a second tree for receiving, [Tree.Ingress], with the
// same branches, of which the same holds. A priority that is not written for receiving
// is what is written for sending, and where nothing is, the parent's for receiving.
func Resolve(s *Spec, kinds []Kind) (*Tree, []Problem) {
	if s.OfLink() && s.Link() == 0 {
		return example(s, kinds)
	}
	return resolve(s, kinds)
}

// usual are speeds of lines, those of Ethernet, the most usual one first.
var usual = []Bandwidth{Gbit, 10 * Gbit, 2500 * Mbit, 100 * Mbit, 25 * Gbit, 100 * Gbit, 40 * Gbit, 5 * Gbit, 10 * Mbit, 200 * Gbit, 400 * Gbit}

// example is Resolve for a share of a line whose speed is not known: a policy is right where
// there is one that it can be used on. Of what is said of it only that counts which is said
// at every speed alike: else some number alone is the reason.
func example(s *Spec, kinds []Kind) (*Tree, []Problem) {
	type result struct {
		speed    Bandwidth
		tree     *Tree
		problems []Problem
	}
	var right, all []result
	for _, speed := range usual {
		tree, problems := resolve(s.At(speed), kinds)
		all = append(all, result{speed, tree, problems})
		if tree != nil {
			right = append(right, all[len(all)-1])
		}
	}
	if right != nil { // what is wrong with other speeds does not matter
		all = right
	}
	first, others := all[0], all[1:]
	var everywhere []Problem
	for _, p := range first.problems {
		with := fmt.Sprintf(" (on a link of %v, as an example)", first.speed)
		if len(others) == 0 || slices.ContainsFunc(others, func(o result) bool { return slices.Contains(o.problems, p) }) {
			with = ""
		}
		same := func(o Problem) bool {
			return o.Path == p.Path && o.Key == p.Key && o.Index == p.Index && o.Warning == p.Warning
		}
		if !slices.ContainsFunc(others, func(o result) bool { return !slices.ContainsFunc(o.problems, same) }) {
			p.Text += with
			everywhere = append(everywhere, p)
		}
	}
	if first.tree != nil {
		first.tree.Example = first.speed
	} else if len(everywhere) == 0 { // something else at each
		return nil, first.problems
	}
	return first.tree, everywhere
}

// resolve is Resolve for what does not depend on a line, or on one whose speed is known.
func resolve(s *Spec, kinds []Kind) (*Tree, []Problem) {
	r := resolver{kinds: kinds, bound: map[bind.Binding]Path{}, ingress: s.Ingress != nil}
	path := Path(s.Interface)
	if text, hint := Selector(s.Interface).check(); text != "" {
		r.add(path, "", text, hint)
	}
	if _, ok := s.Line.layer(); !ok {
		r.add(path, "linklayer", fmt.Sprintf("linklayer %q is not known", s.Line.Layer), suggestLayer(s.Line.Layer))
	}
	if s.Line.Overhead < 0 || s.Line.Overhead > MaxOverhead {
		r.add(path, "overhead", fmt.Sprintf("overhead %d is not between 1 and %d bytes", s.Line.Overhead, MaxOverhead), "")
	}
	if s.Line.MPU > maxMPU {
		r.add(path, "mpu", fmt.Sprintf("mpu %v is not between 1b and %v", s.Line.MPU, maxMPU), "")
	}
	if s.MTU != 0 && (s.MTU < 68 || s.MTU > 65536) {
		r.add(path, "mtu", fmt.Sprintf("mtu %v is not between 68b and 64kib", s.MTU), "")
	}
	if s.Flows != 0 && (s.Flows < MinFlows || s.Flows > MaxFlows) {
		r.add(path, "ingress.flows", fmt.Sprintf("ingress: flows %d is not between %d and %d", s.Flows, MinFlows, MaxFlows), "")
	}
	tree := r.tree(s, Send)
	if r.count > maxBranches {
		r.add(path, "", fmt.Sprintf("%d branches are more than the %d that class ids of 16 bits can name", r.count, maxBranches), "")
	} else if r.count > manyBranches {
		r.warn(path, "", fmt.Sprintf("%d branches below one interface: the kernel takes time in proportion to the square of their number to make them", r.count))
	}
	if s.Ingress != nil {
		tree.Ingress = r.tree(s, Receive)
		if tree.Ingress.Flows = s.Flows; s.Flows == 0 {
			tree.Ingress.Flows = flows(r.count)
		}
	}
	r.clashes(tree)
	r.direction = Send
	r.renames(tree)
	r.sort(tree)
	if r.broken || slices.ContainsFunc(r.problems, func(p Problem) bool { return !p.Warning }) {
		return nil, r.problems
	}
	return tree, r.problems
}

// MinFlows and MaxFlows are how many flows a policy may have noted, by which received
// packets are told apart. Each takes 128 to 144 bytes of the kernel's memory, for the whole
// of the table from the start.
const MinFlows, MaxFlows = 1 << 10, 1 << 24

// flows is how many are noted for so many branches unless a policy says it: some for each
// of them, and never few. They grow by powers of two, because a table cannot: with each
// other number a new one is made.
func flows(branches int) uint32 {
	const each, least, most = 64, 1 << 16, 1 << 20
	n := min(max(each*branches, least), most)
	return 1 << bits.Len32(uint32(n-1))
}

type resolver struct {
	kinds    []Kind
	problems []Problem
	bound    map[bind.Binding]Path
	count    int
	broken   bool // some part of the specification is
	ingress  bool // the interface has it, or it is reported that it has none
	unclear  bool // some match is wrong by itself

	direction Direction // of the tree being made
	slow      []*Branch // of that tree: whose rate is below slowRate
}

// tree makes the tree of one direction.
func (r *resolver) tree(s *Spec, d Direction) *Tree {
	r.direction, r.slow = d, nil
	path, w := Path(s.Interface), r.side(&s.BranchSpec)
	rate := w.Rate.Of(0)
	switch {
	case w.Broken:
		rate = 0
	case w.Rate.IsZero() && d == Receive:
		r.add(path, "", "rate is missing", `say what the line really brings, a little less, so that packets wait here and not at its other end: rate = "250mbit"`)
	case w.Rate.IsZero():
		r.add(path, "", "rate is missing", fmt.Sprintf("say what the link really carries, a little less than the line: rate = %q", "940mbit"))
	case w.Rate.Percent():
		r.add(path, "rate", fmt.Sprintf("rate %v is a percentage, but an interface has no parent to take it from", w.Rate), `write the bandwidth of the link, for example "940mbit", or a share of what its driver says: "95% of link"`)
	case rate < minRate:
		r.add(path, "rate", fmt.Sprintf("rate %v is less than a byte a second, 8bit", rate), "")
		rate = 0
	case rate > MaxBandwidth:
		r.add(path, "rate", fmt.Sprintf("rate %v is more than %v", rate, MaxBandwidth), "")
		rate = 0
	case !w.Ceil.IsZero() && w.Ceil.Of(rate) != rate:
		r.add(path, "ceil", fmt.Sprintf("ceil %s differs from rate %v, but an interface has nobody to borrow from", written(w.Ceil, w.Ceil.Of(rate)), rate), "remove ceil, and write what the link carries as rate")
	}
	root := &Branch{Class: Class{Path: path, Parent: ID(0), Rate: rate, Ceil: rate, Prio: defaultPrio}}
	r.branch(root, &s.BranchSpec, 1)
	r.slowBranches()
	t := &Tree{Port: Port{s.Interface, d}, Replace: s.Replace, MTU: s.MTU, Line: s.Line, Root: root}
	for b := range t.All() {
		b.Rate, b.Ceil = s.Line.share(b.Rate), s.Line.share(b.Ceil)
	}
	return t
}

var unwritten BranchSpec

// side is what a policy says of a branch for the direction at hand.
func (r *resolver) side(s *BranchSpec) *BranchSpec {
	switch {
	case r.direction == Send:
		return s
	case s.Ingress != nil:
		return s.Ingress
	}
	return &unwritten
}

// guarantee is what a policy calls a branch's rate in the direction at hand.
func (r *resolver) guarantee() string {
	if r.direction == Receive {
		return "an ingress"
	}
	return "a rate"
}

// sort puts the problems into the order of the tree. A branch's children are
// held against each other before anything below them is looked at.
func (r *resolver) sort(t *Tree) {
	if len(r.problems) < 2 {
		return
	}
	at := make(map[Path]int, r.count)
	for b := range t.All() {
		if _, twice := at[b.Path]; !twice {
			at[b.Path] = len(at)
		}
	}
	slices.SortStableFunc(r.problems, func(a, b Problem) int { return cmp.Compare(at[a.Path], at[b.Path]) })
}

func (r *resolver) add(p Path, key, text, hint string) {
	r.report(Problem{Path: p, Key: key, Index: -1, Text: text, Hint: hint})
}

func (r *resolver) warn(p Path, key, text string) {
	r.report(Problem{Path: p, Key: key, Index: -1, Text: text, Warning: true})
}

// report adds a problem of the direction at hand.
func (r *resolver) report(p Problem) {
	if r.direction == Receive {
		p.Key = strings.TrimSuffix("ingress."+p.Key, ".")
		p.Text = "ingress: " + p.Text
	}
	r.problems = append(r.problems, p)
}

// branch fills in b, whose Path, Rate and Ceil are set, and everything below it.
// A rate of 0 says that a mistake further up leaves it open, so that what follows
// from it is not worth reporting.
func (r *resolver) branch(b *Branch, s *BranchSpec, depth int) {
	w := r.side(s)
	r.broken = r.broken || w.Broken
	if w.Prio != nil {
		b.Prio = *w.Prio
		if b.Prio > MaxPrio {
			r.add(b.Path, "prio", fmt.Sprintf("prio %d is not between 0 (first) and %d (last)", b.Prio, MaxPrio), "")
		}
	} else if s.Prio != nil {
		b.Prio = *s.Prio
	}
	b.Burst, b.CBurst, b.Quantum = w.Burst, w.CBurst, w.Quantum
	if b.Rate != 0 {
		r.burst(b.Path, "burst", b.Burst, "rate", b.Rate)
		r.burst(b.Path, "cburst", b.CBurst, "ceil", b.Ceil)
		if b.Rate < slowRate {
			r.slow = append(r.slow, b)
		}
	}
	if q := b.Quantum; q != 0 && (q < minQuantum || q > maxQuantum) {
		r.add(b.Path, "quantum", fmt.Sprintf("quantum %v is not between %v and %v", q, Size(minQuantum), maxQuantum), "leave it out: it is then chosen in proportion to the rate")
	}
	if r.direction == Send {
		r.own(b, s, depth)
	}
	if depth == MaxDepth+1 {
		return // reported, once for the whole subtree
	}
	if w.Qdisc != nil {
		if len(s.Children) > 0 {
			r.add(b.Path, "qdisc", "qdisc on a branch with children: only leaves have a queue", "give it to the branches below, or to a child called rest for this branch's own traffic")
		} else {
			b.Qdisc = r.qdisc(b.Path, w.Qdisc)
		}
	}
	r.children(b, s, depth)
}

// pods makes bindings of the pods that b may carry. Other than with names that are bound,
// several branches may have the same: a pod says which of these it would like.
func (r *resolver) pods(b *Branch, s *BranchSpec) {
	if len(s.Pods) == 0 {
		return
	}
	b.Bind = slices.Clip(b.Bind)
	if b.Path.Base() == RestName && b.Path.Parent().Parent() == "" {
		r.add(b.Path, "pods", "pods on the interface's rest: it carries what no branch claims already", "give them to a branch beside it")
	}
	for i, p := range s.Pods {
		if slices.Contains(s.Pods[:i], p) {
			r.report(Problem{Path: b.Path, Key: "pods", Index: i, Text: fmt.Sprintf("%s is named twice", p), Hint: "remove one of the two"})
			continue
		}
		if p.Everywhere() && p != "*/*" {
			r.report(Problem{Path: b.Path, Key: "pods", Index: i, Warning: true, Text: fmt.Sprintf("%s has pods of every namespace, and who starts one chooses its name and labels", p), Hint: fmt.Sprintf("name the namespaces that may: %q", p.In("shop"))})
		}
		b.Bind = append(b.Bind, bind.Binding{Kind: bind.Pod, Name: string(p)})
	}
}

// own fills in and checks what b has whatever the direction.
func (r *resolver) own(b *Branch, s *BranchSpec, depth int) {
	r.count++
	b.Bind = s.Bind
	r.pods(b, s)
	for i, x := range s.Bind {
		if at, ok := r.bound[x]; ok {
			r.report(Problem{Path: b.Path, Key: "bind", Index: i, Text: fmt.Sprintf("%v is bound to %s already", x, at), Hint: "one name goes to one branch of an interface: remove one of the two"})
			continue
		}
		r.bound[x] = b.Path
	}
	b.Match = s.Match
	for i := range s.Match {
		if key, text, hint := s.Match[i].Check(); text != "" {
			r.unclear = true
			r.report(Problem{Path: b.Path, Key: strings.TrimSuffix("match."+key, "."), Index: i, Text: text, Hint: hint})
		}
	}
	b.RenamedFrom = s.RenamedFrom
	r.renamedFrom(b)
	b.Delegate = s.Delegate
	if len(s.Delegate) > 0 && b.Path.Base() == RestName {
		r.add(b.Path, "delegate", "rest cannot be delegated: it carries what nobody claims, and must stay a leaf", "delegate a branch beside it")
	}
	for i, d := range s.Delegate {
		if slices.Contains(s.Delegate[:i], d) {
			r.report(Problem{Path: b.Path, Key: "delegate", Index: i, Text: fmt.Sprintf("%s is named twice", d), Hint: "remove one of the two"})
		}
	}
	if s.Ingress != nil && !r.ingress {
		r.ingress = true
		of := b.Path.Interface()
		r.add(b.Path, "ingress", fmt.Sprintf("ingress is written here, but not for %s as a whole", of), fmt.Sprintf("write what the line brings in the table of %s itself, for example ingress = %q", of, "250mbit"))
	}
	if depth == MaxDepth+1 {
		r.add(b.Path, "", fmt.Sprintf("%s is level %d below the interface; HTB has %d, the interface's own among them", b.Path.Base(), depth-1, MaxDepth), "move it up, or join two of the levels above it")
	}
}

// slowBranches warns of branches whose rate is low: once, at the first of them,
// for a policy may have thousands.
func (r *resolver) slowBranches() {
	if len(r.slow) == 0 {
		return
	}
	like := ""
	switch n := len(r.slow) - 1; {
	case n == 1:
		like = ", like that of another branch,"
	case n > 1:
		like = fmt.Sprintf(", like those of %d other branches,", n)
	}
	first := r.slow[0]
	r.warn(first.Path, "rate", fmt.Sprintf("rate %v%s is so low that large packets exceed it: the kernel forgives what takes longer than 60s to pay back", first.Rate, like))
}

func (r *resolver) burst(p Path, key string, size Size, of string, rate Bandwidth) {
	if size == 0 {
		return
	}
	const secs = uint64(maxBurst / time.Second)
	// Both products fit: sizes have 32 bits, and rates end at MaxBandwidth.
	if most := Size(uint64(rate) * secs / 8); size > most {
		r.add(p, key, fmt.Sprintf("%s %v takes %ds at %s %v; the kernel holds at most %ds", key, size, uint64(size)*8/uint64(rate), of, rate, secs), fmt.Sprintf("write at most %v", most))
	} else if uint64(size)*8*10_000 < uint64(rate) { // as tc's default from 128mbit on
		r.warn(p, key, fmt.Sprintf("%s %v is sent in less than 100µs at %s %v, and timers may be later than that: the branch will stay below its %[3]s", key, size, of, rate))
	}
}

// children works out the guarantees below b and goes down.
func (r *resolver) children(b *Branch, s *BranchSpec, depth int) {
	specs := s.Children
	top := depth == 1
	named := slices.ContainsFunc(specs, func(c *BranchSpec) bool { return c.Name == RestName })
	implied := !named && (top || len(specs) > 0 && len(s.Bind)+len(s.Pods)+len(s.Match)+len(s.Delegate) > 0)
	if implied {
		specs = append(slices.Clip(specs), &BranchSpec{Name: RestName})
	}
	if len(specs) == 0 {
		return
	}
	b.Children = make([]*Branch, len(specs))
	store := make([]Branch, len(specs))
	known := b.Rate != 0
	for i, c := range specs {
		known = known && !r.side(c).Broken
		store[i] = Branch{Class: Class{Path: b.Path.Join(c.Name), Prio: b.Prio}, Implied: implied && i == len(specs)-1}
		b.Children[i] = &store[i]
	}
	if known {
		r.share(b, specs)
	}
	seen := make(map[string]bool, len(specs))
	for i, c := range specs {
		x := b.Children[i]
		if r.direction == Send {
			r.name(x.Path, c, seen)
		}
		r.branch(x, c, depth+1)
	}
}

// name checks the name of the branch at p against those of the siblings that were seen
// before.
func (r *resolver) name(p Path, s *BranchSpec, seen map[string]bool) {
	if err := CheckName(s.Name); err != nil {
		r.add(p, "", err.Error(), "")
	} else if seen[s.Name] {
		r.add(p, "", fmt.Sprintf("%s has two branches called %s", p.Parent(), s.Name), "give one of them another name")
	}
	seen[s.Name] = true
	if s.Name == RestName && len(s.Children) > 0 {
		r.add(p, "", "rest has branches below it, but it must be a leaf: it carries what no binding claims", "give the branches a parent with another name")
	}
}

// share gives each child of b its rate and ceil. The rate stays 0 where a
// problem leaves it open, so that nothing below reports what follows from that.
func (r *resolver) share(b *Branch, specs []*BranchSpec) {
	var sum Bandwidth
	var open, bad []int // children that name no rate; children with a problem of their own
	rest := -1          // in open
	over := false
	for i, s := range specs {
		x, c := b.Children[i], r.side(s)
		x.Ceil = b.Ceil
		if !c.Ceil.IsZero() {
			x.Ceil = c.Ceil.Of(b.Ceil)
			switch {
			case x.Ceil > b.Ceil: // kept, so that what is below is held against what was written
				r.add(x.Path, "ceil", fmt.Sprintf("ceil %v is above the ceil %v of %s and could never be reached", x.Ceil, b.Ceil, b.Path), fmt.Sprintf("write at most %v, or raise that of %s", b.Ceil, b.Path))
			case x.Ceil < minRate:
				r.add(x.Path, "ceil", tooLow("ceil", c.Ceil, x.Ceil, b), "")
				x.Ceil, bad = minRate, append(bad, i)
			}
		}
		if c.Rate.IsZero() {
			if s.Name == RestName {
				rest = len(open)
			}
			open = append(open, i)
			continue
		}
		x.Rate = c.Rate.Of(b.Rate)
		switch {
		case x.Rate < minRate:
			r.add(x.Path, "rate", tooLow("rate", c.Rate, x.Rate, b), "")
			bad = append(bad, i)
		case x.Ceil >= x.Rate:
		case c.Ceil.IsZero():
			x.Ceil = x.Rate // above the parent altogether: the sum says so
		case len(bad) == 0 || bad[len(bad)-1] != i:
			r.add(x.Path, "ceil", fmt.Sprintf("ceil %s is below rate %s", written(c.Ceil, x.Ceil), written(c.Rate, x.Rate)), fmt.Sprintf("write ceil = %q or more, or lower the rate", x.Rate.String()))
			bad = append(bad, i)
		}
		if sum += x.Rate; sum > b.Rate && !over {
			over = true
			total := sum
			for _, d := range specs[i+1:] {
				total += r.side(d).Rate.Of(b.Rate)
			}
			r.add(x.Path, "rate", fmt.Sprintf("rate %s is too much: the branches of %s add up to %v, which is %v more than its rate %v", written(c.Rate, x.Rate), b.Path, total, total-b.Rate, b.Rate),
				"guarantees must fit: lower them, and let branches borrow up to their ceil")
		}
	}
	if !over && len(open) > 0 {
		r.open(b, open, rest, sum)
	}
	for _, i := range bad {
		b.Children[i].Rate = 0
	}
}

// open gives the children that name no rate what the others leave, sum being
// what those have. The rest, if it is one of them, comes first with its least:
// it is the rest that carries what nobody thought of.
func (r *resolver) open(b *Branch, open []int, rest int, sum Bandwidth) {
	left := b.Rate - sum
	b.fill(open, left)
	if rest >= 0 {
		x := b.Children[open[rest]]
		if least := min(max(b.Rate/restShare, minRate), x.Ceil); x.Rate < least {
			if left < least {
				at := x.Path
				if x.Implied {
					at = b.Path
				}
				missing := least - left + minRate*Bandwidth(len(open)-1)
				hint := fmt.Sprintf("take %v away from the branches below %s", missing, b.Path)
				if left >= minRate {
					hint += fmt.Sprintf(", or give %s %s of its own", x.Path, r.guarantee())
				}
				r.add(at, "", fmt.Sprintf("%v of %s's %v are guaranteed to its branches, which leaves %v for %s; it needs at least %v", sum, b.Path, b.Rate, left, x.Path, least), hint)
				for _, i := range open {
					b.Children[i].Rate = 0
				}
				return
			}
			open = slices.Delete(open, rest, rest+1)
			x.Rate = least
			b.fill(open, left-least)
		}
	}
	low := slices.DeleteFunc(open, func(i int) bool { return b.Children[i].Rate >= minRate })
	if len(low) == 0 {
		return
	}
	others := ""
	switch n := len(low) - 1; {
	case n == 1:
		others = " and one more without a rate"
	case n > 1:
		others = fmt.Sprintf(" and %d more without a rate", n)
	}
	r.add(b.Children[low[0]].Path, "", fmt.Sprintf("nothing is left of %s's %v to guarantee it%s", b.Path, b.Rate, others), fmt.Sprintf("write %s here, and lower those of its siblings", r.guarantee()))
	for _, i := range low {
		b.Children[i].Rate = 0
	}
}

// fill shares left among the given children in equal parts, none beyond its
// ceil: those with the lowest ceil are settled first and leave what they cannot
// take to the others.
func (b *Branch) fill(open []int, left Bandwidth) {
	byCeil := slices.Clone(open)
	slices.SortStableFunc(byCeil, func(i, j int) int { return cmp.Compare(b.Children[i].Ceil, b.Children[j].Ceil) })
	for k, i := range byCeil {
		x := b.Children[i]
		x.Rate = min(left/Bandwidth(len(byCeil)-k), x.Ceil)
		left -= x.Rate
	}
}

// written is an amount as the policy has it, and what a percentage comes to.
func written(a Amount, v Bandwidth) string {
	if a.Percent() {
		return fmt.Sprintf("%v (%v)", a, v)
	}
	return v.String()
}

// tooLow says that HTB, which counts bytes, cannot keep a bandwidth of v.
func tooLow(key string, a Amount, v Bandwidth, parent *Branch) string {
	if a.Percent() {
		return fmt.Sprintf("%s %v of %s comes to %v, which is less than a byte a second", key, a, parent.Path, v)
	}
	return fmt.Sprintf("%s %v is less than a byte a second, 8bit", key, v)
}

// qdisc checks a queueing discipline against the kinds on offer.
func (r *resolver) qdisc(p Path, raw *RawQdisc) Qdisc {
	q := Qdisc{Kind: raw.Kind}
	i := slices.IndexFunc(r.kinds, func(k Kind) bool { return k.Name == raw.Kind })
	if i < 0 {
		if why, hint := noLeaf(raw.Kind); why != "" {
			r.add(p, "qdisc", fmt.Sprintf("qdisc %q is no leaf: it %s", raw.Kind, why), hint)
			return q
		}
		names := make([]string, len(r.kinds))
		for i, k := range r.kinds {
			names[i] = k.Name
		}
		r.add(p, "qdisc", fmt.Sprintf("qdisc %q is not known", raw.Kind), suggest(raw.Kind, names))
		return q
	}
	k := &r.kinds[i]
	good := true
	for _, x := range raw.Params {
		key := "qdisc." + x.Name
		d := k.Param(x.Name)
		if d == nil {
			names := make([]string, len(k.Params))
			for i, p := range k.Params {
				names[i] = p.Name
			}
			r.add(p, key, fmt.Sprintf("%s has no parameter %q", k.Name, x.Name), suggest(x.Name, names))
			good = false
			continue
		}
		v, err := d.Parse(x)
		if err != nil {
			r.add(p, key, err.Error(), "")
			good = false
			continue
		}
		q.Params = append(q.Params, Setting{x.Name, v})
	}
	k.Sort(q.Params)
	if k.Verify != nil && good {
		if err := k.Verify(q); err != nil {
			r.add(p, "qdisc", err.Error(), "")
		}
	}
	return q
}

// suggest names the nearest of the known names, or all of them.
func suggest(name string, known []string) string {
	if n := Nearest(name, known); n != "" {
		return fmt.Sprintf("did you mean %q?", n)
	}
	if len(known) == 0 {
		return "it takes none"
	}
	if len(known) == 1 {
		return fmt.Sprintf("the only one is %q", known[0])
	}
	return "known are " + strings.Join(known, ", ")
}

// words are the keys of a policy; a branch cannot be called like one of them.
var words = []string{"rate", "ceil", "prio", "burst", "cburst", "quantum", "qdisc", "bind", "pods", "match", "delegate", "renamed_from", "ingress", "flows", "overhead", "mpu", "linklayer", "mtu", "replace", "kind"}

// CheckName says what is wrong with the name of a branch. A name also becomes a
// directory of the cgroup file system, whose own files all have a dot in their
// names; that is why a dot is refused.
func CheckName(name string) error {
	switch {
	case name == "":
		return fmt.Errorf("a branch without a name")
	case len(name) > 64:
		return fmt.Errorf("the name is longer than 64 bytes")
	case slices.Contains(words, name):
		return fmt.Errorf("%q is a key of the policy and cannot name a branch", name)
	}
	for i, c := range []byte(name) {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
		if letter || i > 0 && (c == '-' || c == '@' || c == '+') {
			continue
		}
		clean := strings.Trim(strings.Map(func(r rune) rune {
			if r == '_' || r == '-' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
				return r
			}
			return '-'
		}, name), "-")
		err := fmt.Errorf("the name %q is not made of letters, digits, _ - @ and +, the first a letter, digit or _", name)
		if clean != "" {
			err = fmt.Errorf("%w: write %q", err, clean)
		}
		return err
	}
	return nil
}
