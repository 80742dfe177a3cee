package hierarchy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What a policy may ask for. The numbers that come from the kernel are cited
// where they are checked.
const (
	// DefaultPrio is the priority of a branch that names none: in the middle, so
	// that one branch can be put in front of the others, or behind them, without
	// touching those.
	DefaultPrio = 3
	// MaxPrio is the last priority (TC_HTB_NUMPRIO, net/sched/sch_htb.c, v6.12).
	MaxPrio = 7
	// MaxDepth is how many classes lie at most on the way from the interface's
	// own to a leaf, both counted (TC_HTB_MAXDEPTH, net/sched/sch_htb.c, v6.12).
	MaxDepth = 8
	// ManyBranches is where a policy earns a warning: after each new class the
	// kernel walks all others (tc_bind_tclass, net/sched/sch_api.c, v6.12), so
	// making 10,000 takes seconds and 60,000 minutes.
	ManyBranches = 10_000
	// MaxBranches is what class ids of 16 bits hold, less those with a meaning.
	MaxBranches = 60_000

	minQuantum = 1000              // the kernel's own least (htb_change_class, v6.12)
	maxQuantum = 16 * MiB          // far beyond use, and far from the sign bit of its int
	maxBurst   = 274 * time.Second // 2^32 ticks of 64 ns: what tc_htb_opt.buffer holds
	slowRate   = 10 * Kbit         // see the warning
	restShare  = 100               // the rest gets at least one in so many parts
)

// Problem is one mistake in a specification.
type Problem struct {
	Path    Path   // the branch
	Key     string // of the branch, such as "ceil" or "qdisc.limit"; empty: the branch itself
	Index   int    // the element of a list, such as bind; -1 where the key is no list
	Text    string // what is wrong, without the path: "ceil 5mbit is below rate 10mbit"
	Hint    string // what to write instead; may be empty
	Warning bool   // the policy can be used as it is
}

// Resolve works out every value that a specification leaves open and checks the
// whole: guarantees of branches that name none, ceilings, priorities, the rest.
// It reports all problems, in the order of the tree; the tree is nil when one of
// them is more than a warning. Kinds are the queueing disciplines on offer.
//
// The rules are those of the policy file: a branch without a rate shares, in
// equal parts, what its siblings leave of the parent's rate with the others like
// it, none beyond its own ceil; a percentage counts from the parent's rate for
// rate and from the parent's ceil for ceil. Below an interface, and below a
// branch that has bindings and children, a leaf called rest is added where there
// is none.
func Resolve(s *Spec, kinds []Kind) (*Tree, []Problem) {
	r := resolver{kinds: kinds, bound: map[Binding]Path{}}
	path := Path(s.Interface)
	root := &Branch{Class: Class{Path: path, Parent: ID(0), Link: s.Link, Prio: DefaultPrio}}
	broken := s.Broken
	rate := s.Rate.Of(0)
	switch {
	case broken:
	case s.Rate.IsZero():
		r.add(path, "", "rate is missing", fmt.Sprintf("say what the link really carries, a little less than the line: rate = %q", "940mbit"))
		broken = true
	case s.Rate.Percent():
		r.add(path, "rate", fmt.Sprintf("rate %v is a percentage, but an interface has no parent to take it from", s.Rate), `write the bandwidth of the link, for example "940mbit"`)
		broken = true
	case !s.Ceil.IsZero() && (s.Ceil.Percent() || s.Ceil.Of(0) != rate):
		r.add(path, "ceil", fmt.Sprintf("ceil %v differs from rate %v, but an interface has nobody to borrow from", s.Ceil, rate), "remove ceil, and write what the link carries as rate")
	}
	if s.Link.Overhead < 0 || s.Link.Overhead > 256 {
		r.add(path, "overhead", fmt.Sprintf("overhead %d is not between 0 and 256 bytes", s.Link.Overhead), "")
	}
	if s.Link.MPU > 256 {
		r.add(path, "mpu", fmt.Sprintf("mpu %v is not between 0b and 256b", s.Link.MPU), "")
	}
	if s.MTU != 0 && (s.MTU < 68 || s.MTU > 65536) {
		r.add(path, "mtu", fmt.Sprintf("mtu %v is not between 68b and 64kib", s.MTU), "")
	}
	root.Rate, root.Ceil = rate, rate
	r.branch(root, &s.BranchSpec, 1, broken)
	if r.count > MaxBranches {
		r.add(path, "", fmt.Sprintf("%d branches are more than the %d that class ids of 16 bits can name", r.count, MaxBranches), "")
	} else if r.count > ManyBranches {
		r.warn(path, "", fmt.Sprintf("%d branches below one interface: the kernel takes time in proportion to the square of their number to make them", r.count))
	}
	for _, p := range r.problems {
		if !p.Warning {
			return nil, r.problems
		}
	}
	return &Tree{Interface: s.Interface, Replace: s.Replace, MTU: s.MTU, Root: root}, r.problems
}

type resolver struct {
	kinds    []Kind
	problems []Problem
	bound    map[Binding]Path
	count    int
}

func (r *resolver) add(p Path, key, text, hint string) {
	r.problems = append(r.problems, Problem{Path: p, Key: key, Index: -1, Text: text, Hint: hint})
}

func (r *resolver) warn(p Path, key, text string) {
	r.problems = append(r.problems, Problem{Path: p, Key: key, Index: -1, Text: text, Warning: true})
}

// branch fills in b, whose Path, Parent, Rate and Ceil are set, and everything
// below it. Broken says that a number on the way here could not be read, so that
// what follows from it is not worth reporting.
func (r *resolver) branch(b *Branch, s *BranchSpec, depth int, broken bool) {
	r.count++
	if s.Prio != nil {
		b.Prio = *s.Prio
		if b.Prio > MaxPrio {
			r.add(b.Path, "prio", fmt.Sprintf("prio %d is not between 0 (first) and %d (last)", b.Prio, MaxPrio), "")
		}
	}
	b.Burst, b.CBurst, b.Quantum = s.Burst, s.CBurst, s.Quantum
	if !broken {
		r.burst(b.Path, "burst", b.Burst, "rate", b.Rate)
		r.burst(b.Path, "cburst", b.CBurst, "ceil", b.Ceil)
		if b.Rate < slowRate && b.Rate > 0 {
			r.warn(b.Path, "rate", fmt.Sprintf("rate %v is so low that large packets exceed it: the kernel forgives what takes longer than 60s to pay back", b.Rate))
		}
	}
	if q := b.Quantum; q != 0 && (q < minQuantum || q > maxQuantum) {
		r.add(b.Path, "quantum", fmt.Sprintf("quantum %v is not between %v and %v", q, Size(minQuantum), maxQuantum), "leave it out: it is then chosen in proportion to the rate")
	}
	b.Bind = s.Bind
	for i, x := range s.Bind {
		if at, ok := r.bound[x]; ok {
			r.problems = append(r.problems, Problem{Path: b.Path, Key: "bind", Index: i, Text: fmt.Sprintf("%v is bound to %s already", x, at), Hint: "one name goes to one branch of an interface: remove one of the two"})
			continue
		}
		r.bound[x] = b.Path
	}
	if depth == MaxDepth+1 {
		r.add(b.Path, "", fmt.Sprintf("%s is level %d below the interface; HTB has %d, the interface's own among them", b.Path.Base(), depth-1, MaxDepth), "move it up, or join two of the levels above it")
		return // once for the whole subtree
	}
	if s.Qdisc != nil {
		if len(s.Children) > 0 {
			r.add(b.Path, "qdisc", "qdisc on a branch with children: only leaves have a queue", "give it to the branches below, or to a child called rest for this branch's own traffic")
		} else {
			b.Qdisc = r.qdisc(b.Path, s.Qdisc)
		}
	}
	r.children(b, s, depth, broken)
}

func (r *resolver) burst(p Path, key string, size Size, of string, rate Bandwidth) {
	if size == 0 || rate == 0 {
		return
	}
	// size × 8 fits: sizes have 32 bits.
	if secs := uint64(size) * 8 / uint64(rate); secs >= uint64(maxBurst/time.Second) {
		most := Size(uint64(rate) / 8 * uint64(maxBurst/time.Second))
		r.add(p, key, fmt.Sprintf("%s %v takes %ds at %s %v; the kernel holds at most %v", key, size, secs, of, rate, maxBurst), fmt.Sprintf("write at most %v", most))
	} else if size < 1600 {
		r.warn(p, key, fmt.Sprintf("%s %v is less than a full packet: the branch will stay below its %s", key, size, of))
	}
}

// children works out the guarantees below b and goes down.
func (r *resolver) children(b *Branch, s *BranchSpec, depth int, broken bool) {
	specs := s.Children
	top := depth == 1
	named := slices.ContainsFunc(specs, func(c *BranchSpec) bool { return c.Name == RestName })
	implied := !named && (top || len(specs) > 0 && len(s.Bind) > 0)
	if implied {
		specs = append(slices.Clip(specs), &BranchSpec{Name: RestName})
	}
	if len(specs) == 0 {
		return
	}
	b.Children = make([]*Branch, len(specs))
	store := make([]Branch, len(specs))
	for i, c := range specs {
		broken = broken || c.Broken
		store[i] = Branch{Class: Class{Path: b.Path.Join(c.Name), Link: b.Link, Prio: b.Prio}, Implied: implied && i == len(specs)-1}
		b.Children[i] = &store[i]
	}
	if !broken {
		r.share(b, specs)
	}
	for i, c := range specs {
		x := b.Children[i]
		if err := CheckName(c.Name); err != nil {
			r.add(x.Path, "", err.Error(), "")
		}
		if c.Name == RestName && len(c.Children) > 0 {
			r.add(x.Path, "", "rest has branches below it, but it must be a leaf: it carries what no binding claims", "give the branches a parent with another name")
		}
		r.branch(x, c, depth+1, broken)
	}
}

// share gives each child of b its rate and ceil.
func (r *resolver) share(b *Branch, specs []*BranchSpec) {
	var sum Bandwidth
	var open []int // children that name no rate
	over := false
	for i, c := range specs {
		x := b.Children[i]
		x.Ceil = b.Ceil
		if !c.Ceil.IsZero() {
			x.Ceil = c.Ceil.Of(b.Ceil)
			if x.Ceil > b.Ceil {
				r.add(x.Path, "ceil", fmt.Sprintf("ceil %v is above the ceil %v of %s and could never be reached", x.Ceil, b.Ceil, b.Path), fmt.Sprintf("write at most %v, or raise that of %s", b.Ceil, b.Path))
				x.Ceil = b.Ceil
			}
			if x.Ceil < 8 {
				r.add(x.Path, "ceil", fmt.Sprintf("ceil %v of %v is less than a byte a second", c.Ceil, b.Ceil), "")
				x.Ceil = 8
			}
		}
		if c.Rate.IsZero() {
			open = append(open, i)
			continue
		}
		x.Rate = c.Rate.Of(b.Rate)
		if x.Rate < 8 {
			r.add(x.Path, "rate", fmt.Sprintf("rate %v of %v is less than a byte a second", c.Rate, b.Rate), "")
			x.Rate = 8
		}
		if x.Ceil < x.Rate {
			if c.Ceil.IsZero() {
				x.Ceil = x.Rate // above the parent altogether: the sum says so
			} else {
				r.add(x.Path, "ceil", fmt.Sprintf("ceil %v is below rate %v", x.Ceil, x.Rate), fmt.Sprintf("write ceil = %q or more, or lower the rate", x.Rate.String()))
				x.Ceil = x.Rate
			}
		}
		if sum += x.Rate; sum > b.Rate && !over {
			over = true
			total := sum
			for _, d := range specs[i+1:] {
				total += d.Rate.Of(b.Rate)
			}
			r.add(x.Path, "rate", fmt.Sprintf("rate %v is too much: the branches of %s add up to %v, which is %v more than its rate %v", x.Rate, b.Path, total, total-b.Rate, b.Rate),
				"guarantees must fit: lower them, and let branches borrow up to their ceil")
		}
	}
	if over || len(open) == 0 {
		if len(open) > 0 { // so that nothing below reports what follows from it
			for _, i := range open {
				b.Children[i].Rate = min(8, b.Children[i].Ceil)
			}
		}
		return
	}
	// Equal parts of what is left, none beyond its ceil: those with the lowest
	// ceil are settled first and leave what they cannot take to the others.
	slices.SortStableFunc(open, func(i, j int) int { return cmp.Compare(b.Children[i].Ceil, b.Children[j].Ceil) })
	left := b.Rate - sum
	for k, i := range open {
		x := b.Children[i]
		x.Rate = min(left/Bandwidth(len(open)-k), x.Ceil)
		left -= x.Rate
	}
	slices.Sort(open)
	need := max(b.Rate/restShare, 8)
	for _, i := range open {
		x := b.Children[i]
		switch {
		case specs[i].Name == RestName && x.Rate < min(need, x.Ceil):
			missing := need*Bandwidth(len(open)) - (b.Rate - sum)
			at := x.Path
			if x.Implied {
				at = b.Path
			}
			r.add(at, "", fmt.Sprintf("%v of %s's %v are guaranteed to its branches, which leaves %v for %s; it needs at least %v", sum, b.Path, b.Rate, x.Rate, x.Path, need),
				fmt.Sprintf("take %v away from the branches below %s, or give %s a rate of its own", missing, b.Path, x.Path))
		case x.Rate < 8:
			r.add(x.Path, "", fmt.Sprintf("nothing is left of %s's %v to guarantee it", b.Path, b.Rate), "write a rate here, and lower those of its siblings")
		default:
			continue
		}
		x.Rate = max(x.Rate, 8)
	}
}

// qdisc checks a queueing discipline against the kinds on offer.
func (r *resolver) qdisc(p Path, raw *RawQdisc) Qdisc {
	q := Qdisc{Kind: raw.Kind}
	i := slices.IndexFunc(r.kinds, func(k Kind) bool { return k.Name == raw.Kind })
	if i < 0 {
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
	return "known are " + strings.Join(known, ", ")
}

// words are the keys of a policy; a branch cannot be called like one of them.
var words = []string{"rate", "ceil", "prio", "burst", "cburst", "quantum", "qdisc", "bind", "ingress", "overhead", "mpu", "linklayer", "mtu", "replace", "kind"}

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

// Nearest is the one of the known names that name was most likely meant to be,
// or empty when none is close: at most a third of its letters differ.
func Nearest(name string, known []string) string {
	best, at := "", len(name)/3+1
	for _, k := range known {
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d < at || d == at && best == "" && d < len(k) {
			best, at = k, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete, replace or swap with the
// next one to turn a into b (optimal string alignment).
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var rows [3][65]int
	for j := range b {
		rows[1][j+1] = j + 1
	}
	prev2, prev, cur := &rows[0], &rows[1], &rows[2]
	for i := range a {
		cur[0] = i + 1
		for j := range b {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			cur[j+1] = min(prev[j+1]+1, cur[j]+1, prev[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				cur[j+1] = min(cur[j+1], prev2[j-1]+1)
			}
		}
		prev2, prev, cur = prev, cur, prev2
	}
	return prev[len(b)]
}
