package observe

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/prove"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc/link"
)

// provePackets are sent through each way in.
const provePackets = 10

// Proof is what came of one way into a branch.
type Proof struct {
	Branch   hierarchy.Path `json:"branch"`
	From     string         `json:"from,omitempty"`  // the binding's words; with no target: the rest
	Target   bind.Target    `json:"target,omitzero"` // what was sent from
	Match    *match.Match   `json:"match,omitempty"` // that the packets fit, which are nobody's: they are not sent
	Sent     int            `json:"sent"`
	Landed   []Landed       `json:"landed"`
	Belong   []Landed       `json:"belong,omitempty"`   // where they should have, where matches refine the branch
	AtLeast  bool           `json:"at_least,omitempty"` // there were others' packets among them
	Verdict  string         `json:"verdict"`
	Why      string         `json:"why,omitempty"`         // why not all was sent
	Received *Reception     `json:"received,omitempty"`    // what it would receive; absent: nothing is sent, or received through a tree
	Other    []process      `json:"other_netns,omitempty"` // processes behind it that send from another network namespace, not tried
}

// Reception is what came of packets that were made as they would be received.
type Reception struct {
	Asked   int      `json:"asked"`
	Landed  []Landed `json:"landed"`
	Belong  []Landed `json:"belong,omitempty"`
	Verdict string   `json:"verdict"`
	Why     string   `json:"why,omitempty"` // why not all could be asked
}

// Landed is how many packets left in a branch.
type Landed struct {
	Branch  hierarchy.Path `json:"branch"`
	Packets int            `json:"packets"`
}

// ProveAll proves the ways into the branches of one interface, or into one of them and all
// below.
func ProveAll(ctx context.Context, m *shaper.Machine, iface string, path hierarchy.Path, sender func() *exec.Cmd) ([]Proof, error) {
	unlock, err := m.Store.Lock(ctx, "prove "+iface)
	if err != nil {
		return nil, err
	}
	defer unlock()
	x, s, err := m.TreeOf(ctx, iface)
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	if x.Blind != nil {
		return nil, x.Blind
	}
	if path != "" {
		if err := x.CheckPath(path); err != nil {
			return nil, err
		}
	}
	if err := sends(m, iface); err != nil {
		return nil, err
	}
	held, err := heldBy(ctx, x.Interface, s.Bound)
	if err != nil {
		return nil, err
	}
	p := &proofs{x: x, path: path, leaves: x.On(s).Leaves, receiving: x.In(s).Leaves}
	if x.Record.Matches {
		if p.tree, err = m.Applied(x.Record); err != nil {
			return nil, err
		}
	}
	var in []hierarchy.Bound
	for _, b := range append(x.Named(s.Bound, false), hierarchy.Bound{Class: hierarchy.ID(hierarchy.RestMinor), From: "rest"}) {
		rest := b.Target.Kind == bind.TargetNone && b.From == "rest"
		v := Proof{Branch: x.BranchOf(b.Class), From: b.From, Target: b.Target, Landed: []Landed{}, Verdict: proofNotTried, Other: held[b.Target].Other}
		switch {
		case path != "" && !v.Branch.Below(path):
			continue
		case rest:
			v.From, b.From = "", ""
		case b.Target.Kind == bind.TargetNone:
			v.Why = "what it names is not there"
		}
		if v.Why == "" {
			in = append(in, b)
		}
		p.all = append(p.all, v)
	}
	cfg, err := x.Binder.Proving()
	if err != nil {
		return nil, err
	}
	p.lost = x.Record.Receives && (cfg.Receive == nil || s.Hook.Receive == bpf.Unfinished || !x.In(s).Root.Ours())
	if p.lost {
		cfg.Receive = nil
	}
	cfg.Packets, cfg.Sender = provePackets, sender
	cfg.Counters = func() (map[hierarchy.ClassID]uint64, error) { return leafPackets(x.Interface, s) }
	came, err := prove.Run(ctx, in, cfg)
	if err != nil {
		return nil, fmt.Errorf("%s: classifier: %w", iface, err)
	}
	for i := range p.all {
		if v := &p.all[i]; v.Why == "" {
			p.came(v, came[0])
			came = came[1:]
		}
	}
	return p.all, p.matches()
}

// proofs are those of one interface.
type proofs struct {
	x                 *shaper.Target
	path              hierarchy.Path // of the branch that is asked for, empty: all
	leaves, receiving []hierarchy.Leaf
	lost              bool            // what is received does not come to a tree
	tree              *hierarchy.Tree // nil where no branch has matches
	all               []Proof
}

// leaf is the branch that counts a class. HTB puts what has the class of no leaf into the rest.
func (p *proofs) leaf(class hierarchy.ClassID, leaves []hierarchy.Leaf) hierarchy.Path {
	if !slices.ContainsFunc(leaves, func(l hierarchy.Leaf) bool { return l.Class == class }) {
		class = hierarchy.ID(hierarchy.RestMinor)
	}
	return p.x.BranchOf(class)
}

// belongs is the leaf in which a packet of somebody belongs.
func (p *proofs) belongs(of hierarchy.Bound, packet *match.Packet) hierarchy.Path {
	if p.tree != nil {
		if b := p.tree.Find(p.x.StartOf(of)); b != nil {
			if leaf, _ := b.Decide(packet); leaf != nil {
				return leaf.Path
			}
		}
	}
	return p.x.BranchOf(of.Class)
}

// matches asks the matches that are in force for a packet each that fits one of a branch, as
// nobody sends it, or who is bound to the branch above that has matches.
func (p *proofs) matches() error {
	if p.tree == nil {
		return nil
	}
	for b := range p.tree.All() {
		if len(b.Match) == 0 || p.path != "" && !b.Path.Below(p.path) {
			continue
		}
		above := p.tree.Scope(b)
		v := Proof{Branch: b.Entry().Path, Landed: []Landed{}, Verdict: proofNotTried, Why: "no packet that is sent fits its matches"}
		packet, fits := match.Packet{}, false
		for i := range b.Match {
			s, ok := b.Match[i].Sample(false)
			if !ok {
				continue
			}
			// another branch may have a more specific one for it
			leaf, _ := above.Decide(&s)
			if own := leaf.Path.Below(b.Path); own || !fits {
				packet, fits, v.Match = s, true, &b.Match[i]
				if own {
					break
				}
			}
		}
		if fits {
			from := hierarchy.Bound{Class: above.Entry().ID}
			class, err := p.x.Binder.Ask(&packet, from.Class)
			if err != nil {
				return err
			}
			v.Why = ""
			p.came(&v, prove.Proof{Bound: from, Sent: 1, Landed: map[hierarchy.ClassID]int{class: 1}, Seen: []bpf.Seen{{Class: class, Packets: 1, First: packet}}})
		} else {
			v.Match = &b.Match[0]
		}
		p.all = append(p.all, v)
	}
	return nil
}

// sends says why nothing can leave an interface.
func sends(m *shaper.Machine, iface string) error {
	links, err := link.List(m.Conn)
	if err != nil {
		return err
	}
	for _, l := range links {
		switch {
		case l.Name != iface:
		case !l.Up:
			return fmt.Errorf("%s is switched off: nothing leaves it, and so nothing can be proven", iface)
		case !l.Carrier:
			return fmt.Errorf("%s has no carrier: nothing leaves it, and so nothing can be proven", iface)
		}
	}
	return nil
}

// leafPackets is how many packets each leaf has sent.
func leafPackets(x *shaper.Interface, s hierarchy.State) (map[hierarchy.ClassID]uint64, error) {
	stats, err := x.Device.Stats()
	if err != nil {
		return nil, err
	}
	leaves := x.On(s).Leaves
	sent := make(map[hierarchy.ClassID]uint64, len(leaves))
	for _, l := range leaves {
		sent[l.Class] = 0
	}
	for _, c := range stats {
		if _, leaf := sent[c.Class]; leaf {
			sent[c.Class] = c.Packets
		}
	}
	return sent, nil
}

// came fills in what came of it.
func (p *proofs) came(v *Proof, x prove.Proof) {
	v.Sent, v.AtLeast = x.Sent, x.AtLeast
	if x.Err != nil {
		v.Why = x.Err.Error()
	}
	landed := map[hierarchy.Path]int{}
	for class, n := range x.Landed {
		landed[p.leaf(class, p.leaves)] += n
	}
	v.Landed = listed(landed)
	holds := false
	if len(x.Seen) > 0 {
		v.Belong, holds = p.compare(v.Branch, x.Bound, x.Seen, p.leaves)
	} else { // classes were counted
		holds = len(landed) == 1 && landed[v.Branch] > 0
	}
	switch {
	case x.Sent == 0:
		return
	case len(landed) == 0:
		v.Verdict = ProofUnseen
	case holds:
		v.Verdict = ProofHolds
	case len(x.Seen) == 0 && p.tree != nil:
		v.Verdict, v.Why = ProofUnseen, "matches go by what packets are, and that cannot be looked at here"
	default:
		v.Verdict = ProofLeaks
	}
	if p.x.Record.Receives && v.Match == nil {
		if v.Received = p.received(v.Branch, x); v.Received.Verdict == ProofLeaks {
			v.Verdict = ProofLeaks
		}
	}
}

// received is what came of what was asked to be received.
func (p *proofs) received(branch hierarchy.Path, x prove.Proof) *Reception {
	v := &Reception{Landed: []Landed{}, Verdict: proofNotTried}
	if x.NoAnswer != nil {
		v.Why = x.NoAnswer.Error()
	}
	landed, lost := map[hierarchy.Path]int{}, false
	for _, s := range x.Received {
		v.Asked += s.Packets
		if s.Class == 0 {
			lost = true
		} else {
			landed[p.leaf(s.Class, p.receiving)] += s.Packets
		}
	}
	v.Landed = listed(landed)
	holds := false
	v.Belong, holds = p.compare(branch, x.Bound, x.Received, p.receiving)
	switch {
	case p.lost:
		v.Verdict, v.Why = ProofLeaks, "what tells received packets apart is gone"
	case v.Asked == 0:
	case holds && !lost:
		v.Verdict = ProofHolds
	default:
		v.Verdict = ProofLeaks
	}
	return v
}

// compare says where packets belong, nothing where that is a branch alone, and whether they
// are there.
func (p *proofs) compare(branch hierarchy.Path, of hierarchy.Bound, all []bpf.Seen, leaves []hierarchy.Leaf) (list []Landed, holds bool) {
	belong := map[hierarchy.Path]int{}
	holds = true
	for _, s := range all {
		at := p.belongs(of, &s.First)
		belong[at] += s.Packets
		holds = holds && p.leaf(s.Class, leaves) == at
	}
	if len(belong) > 1 || len(belong) == 1 && belong[branch] == 0 {
		list = listed(belong)
	}
	return list, holds
}

func listed(in map[hierarchy.Path]int) []Landed {
	all := make([]Landed, 0, len(in))
	for _, at := range slices.Sorted(maps.Keys(in)) {
		all = append(all, Landed{at, in[at]})
	}
	return all
}

// String says it in one line.
func (v Proof) String() string {
	s := string(v.Branch)
	switch b := (&Bound{From: v.From, Target: v.Target}); {
	case v.Match != nil:
		s += " by match " + v.Match.String()
	case v.From == "" && v.Target.Kind == bind.TargetNone:
		s += " by nothing that is bound"
	default:
		s += " by " + b.name()
	}
	if v.Verdict == proofNotTried {
		return s + ": not tried: " + words.Printable(v.Why)
	}
	where, left := shares(v.Landed, v.Sent, "packet")
	switch {
	case v.AtLeast && len(where) > 0:
		where[0] = "at least " + where[0]
	case left > 0 && len(where) == 0:
		where = append(where, fmt.Sprintf("none of %d packets left %s", v.Sent, v.Branch.Interface()))
	case left > 0:
		where = append(where, fmt.Sprintf("%d did not leave", left))
	}
	s += ": " + strings.Join(where, ", ")
	if belong, _ := shares(v.Belong, v.Sent, "packet"); v.Verdict == ProofLeaks && len(belong) > 0 {
		s += " (they belong: " + strings.Join(belong, ", ") + ")"
	}
	if v.Received != nil {
		s += ", " + v.Received.in(v.Branch)
	}
	if v.Why != "" {
		s += " (" + words.Printable(v.Why) + ")"
	}
	if len(v.Other) > 0 {
		s += fmt.Sprintf(" (not tried: %s in another network namespace)", words.Number(len(v.Other), "process", "processes"))
	}
	return s + ": " + map[string]string{ProofHolds: "holds", ProofLeaks: "DOES NOT HOLD", ProofUnseen: "not proven"}[v.Verdict]
}

// in says it in words, for what should be a branch's.
func (v *Reception) in(branch hierarchy.Path) string {
	why := ""
	if v.Why != "" {
		why = " (" + words.Printable(v.Why) + ")"
	}
	switch {
	case v.Asked == 0 && v.Verdict == ProofLeaks:
		return "none received" + why
	case v.Asked == 0:
		return "received: not tried" + why
	}
	if v.Verdict == ProofHolds && len(v.Landed) == 1 && v.Landed[0].Branch == branch {
		return fmt.Sprintf("%d of %d received", v.Asked, v.Asked) + why
	}
	where, left := shares(v.Landed, v.Asked, "received")
	if left > 0 {
		where = append(where, fmt.Sprintf("%d of %d received in no branch", left, v.Asked))
	}
	if belong, _ := shares(v.Belong, v.Asked, "received"); v.Verdict == ProofLeaks && len(belong) > 0 {
		why = " (they belong: " + strings.Join(belong, ", ") + ")" + why
	}
	return strings.Join(where, ", ") + why
}

// shares says how many packets of so many are where, and how many are nowhere.
func shares(in []Landed, of int, what string) (where []string, left int) {
	left = of
	if what == "packet" && of != 1 {
		what = "packets"
	}
	for _, l := range in {
		where = append(where, fmt.Sprintf("%d of %d %s in %s", l.Packets, of, what, l.Branch))
		left -= l.Packets
	}
	return where, left
}

// The verdicts of prove.
const (
	ProofHolds    = "holds"
	ProofLeaks    = "leaks"  // packets landed elsewhere
	ProofUnseen   = "unseen" // none of them left the interface
	proofNotTried = "not tried"
)
