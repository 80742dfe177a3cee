package observe

import (
	"context"
	"fmt"
	"maps"
	"os/exec"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/prove"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/link"
)

// provePackets are sent through each way in.
const provePackets = 10

// Proof is what came of one way into a branch.
type Proof struct {
	Branch  hierarchy.Path `json:"branch"`
	From    string         `json:"from,omitempty"`  // the binding's words; with no target: the rest
	Target  bind.Target    `json:"target,omitzero"` // what was sent from
	Sent    int            `json:"sent"`
	Landed  []Landed       `json:"landed"`
	AtLeast bool           `json:"at_least,omitempty"` // there were others' packets among them
	Verdict string         `json:"verdict"`
	Why     string         `json:"why,omitempty"`         // why not all was sent
	Other   []process      `json:"other_netns,omitempty"` // processes behind it that send from another network namespace, not tried
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
	var in []hierarchy.Bound
	var all []Proof
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
		all = append(all, v)
	}
	cfg, err := x.Binder.Proving()
	if err != nil {
		return nil, err
	}
	cfg.Packets, cfg.Sender = provePackets, sender
	cfg.Counters = func() (map[hierarchy.ClassID]uint64, error) { return leafPackets(x.Interface, s) }
	proofs, err := prove.Run(ctx, in, cfg)
	if err != nil {
		return nil, fmt.Errorf("%s: classifier: %w", iface, err)
	}
	for i := range all {
		if all[i].Why == "" {
			all[i].came(x.Interface, x.On(s).Leaves, proofs[0])
			proofs = proofs[1:]
		}
	}
	return all, nil
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

// came fills in what came of it. HTB puts what has the class of no leaf into the rest.
func (v *Proof) came(x *shaper.Interface, leaves []hierarchy.Leaf, p prove.Proof) {
	v.Sent, v.AtLeast = p.Sent, p.AtLeast
	if p.Err != nil {
		v.Why = p.Err.Error()
	}
	landed := map[hierarchy.Path]int{}
	for class, n := range p.Landed {
		if !slices.ContainsFunc(leaves, func(l hierarchy.Leaf) bool { return l.Class == class }) {
			class = hierarchy.ID(hierarchy.RestMinor)
		}
		landed[x.BranchOf(class)] += n
	}
	for _, at := range slices.Sorted(maps.Keys(landed)) {
		v.Landed = append(v.Landed, Landed{at, landed[at]})
	}
	switch own := landed[v.Branch]; {
	case p.Sent == 0:
	case len(landed) == 0:
		v.Verdict = ProofUnseen
	case len(landed) == 1 && own > 0:
		v.Verdict = ProofHolds
	default:
		v.Verdict = ProofLeaks
	}
}

// String says it in one line.
func (v Proof) String() string {
	s := string(v.Branch)
	if b := (&Bound{From: v.From, Target: v.Target}); v.From == "" && v.Target.Kind == bind.TargetNone {
		s += " by nothing that is bound"
	} else {
		s += " by " + b.name()
	}
	if v.Verdict == proofNotTried {
		return s + ": not tried: " + words.Printable(v.Why)
	}
	var where []string
	left := v.Sent
	for _, l := range v.Landed {
		where = append(where, fmt.Sprintf("%d of %d packets in %s", l.Packets, v.Sent, l.Branch))
		left -= l.Packets
	}
	switch {
	case v.AtLeast && len(where) > 0:
		where[0] = "at least " + where[0]
	case left > 0 && len(where) == 0:
		where = append(where, fmt.Sprintf("none of %d packets left %s", v.Sent, v.Branch.Interface()))
	case left > 0:
		where = append(where, fmt.Sprintf("%d did not leave", left))
	}
	s += ": " + strings.Join(where, ", ")
	if v.Why != "" {
		s += " (" + words.Printable(v.Why) + ")"
	}
	if len(v.Other) > 0 {
		s += fmt.Sprintf(" (not tried: %s in another network namespace)", words.Number(len(v.Other), "process", "processes"))
	}
	return s + ": " + map[string]string{ProofHolds: "holds", ProofLeaks: "DOES NOT HOLD", ProofUnseen: "not proven"}[v.Verdict]
}

// The verdicts of prove.
const (
	ProofHolds    = "holds"
	ProofLeaks    = "leaks"  // packets landed elsewhere
	ProofUnseen   = "unseen" // none of them left the interface
	proofNotTried = "not tried"
)
