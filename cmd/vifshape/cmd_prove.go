package main

import (
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cgroup/prove"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/link"
)

// provePackets are sent through each way in.
const provePackets = 10

func newProveCommand(e *env) *cobra.Command {
	json := false
	c := &cobra.Command{
		Use:   "prove [PATH]",
		Short: "Send packets through each binding, and say where they landed",
		Long: `Prove sends ten packets through each way into the branches, or into those from
PATH down, and says in which branch they left the interface:

  a cgroup       from a process in it, for a moment, in a cgroup of its own below
  a user         from a process of that user that no bound cgroup has
  an interface   from its other end, where that is in another network namespace
                 that has a process or a name, to be forwarded here
  the rest       from a process that nothing binds

Where nobody is bound to a branch, there is no way in to be tried; nor does prove
say anything of sockets that are open already, which show does.

Sent are UDP datagrams of 16 bytes to the groups 239.255.7.31 and ff12::71f, port 9,
which nobody listens to and no router passes on. What is to be forwarded goes to
192.0.2.1, an address that belongs to nobody, and its time to live ends at the next
router; where no route leads there, to a neighbour. Counted are these packets alone.
With binding cls_cgroup, and where the kernel lets no program count, the counters of
classes are read, until nobody else sends; "at least" is said where somebody does.

Others that change this network namespace wait meanwhile. Nothing is left behind; of a
prove that was killed the next one removes the cgroups.

EXIT STATUS
  0    all that was sent landed where it belongs; what could not be sent is said
  1    an error, there is no such branch, or nothing could be sent or seen
  3    packets landed in another branch
  4    another vifshape is changing this network namespace
  5    root is needed, or root lacks a capability that the message names
  64   wrong flags or arguments
  130  interrupted`,
		Args: args(0, 1, "one path at most"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			p, err := optionalPath(a)
			if err != nil {
				return err
			}
			return e.prove(c.Context(), p, json)
		}),
	}
	c.Flags().BoolVar(&json, "json", false, "print JSON")
	c.AddCommand(&cobra.Command{
		Use:    "sender",
		Short:  "Send what prove orders",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return prove.Sender(os.Stdin, e.stdout) },
	})
	return c
}

// The verdicts of prove.
const (
	proofHolds    = "holds"
	proofLeaks    = "leaks"  // packets landed elsewhere
	proofUnseen   = "unseen" // none of them left the interface
	proofNotTried = "not tried"
)

// proveJSON is the stable form of prove.
type proveJSON struct {
	Proofs []proofView `json:"proofs"`
}

// proofView is what came of one way into a branch.
type proofView struct {
	Branch  hierarchy.Path `json:"branch"`
	From    string         `json:"from,omitempty"`  // the binding's words; with no target: the rest
	Target  bind.Target    `json:"target,omitzero"` // what was sent from
	Sent    int            `json:"sent"`
	Landed  []landedView   `json:"landed"`
	AtLeast bool           `json:"at_least,omitempty"` // there were others' packets among them
	Verdict string         `json:"verdict"`
	Why     string         `json:"why,omitempty"`         // why not all was sent
	Other   []process      `json:"other_netns,omitempty"` // processes behind it that send from another network namespace, not tried
}

// landedView is how many packets left in a branch.
type landedView struct {
	Branch  hierarchy.Path `json:"branch"`
	Packets int            `json:"packets"`
}

func (e *env) prove(ctx context.Context, path hierarchy.Path, json bool) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	unlock, err := m.Store.Lock(ctx, "prove "+string(path))
	if err != nil {
		return err
	}
	defer unlock()
	out := proveJSON{Proofs: []proofView{}}
	err = e.each(m, path, func(iface string) error {
		v, err := proveAll(m, ctx, iface, path)
		out.Proofs = append(out.Proofs, v...)
		return err
	})
	if err != nil {
		return err
	}
	if json {
		err = e.json(out)
	} else {
		for _, v := range out.Proofs {
			e.printf("%s\n", v)
		}
	}
	switch {
	case err != nil:
		return err
	case out.any(proofLeaks):
		return codeError(exitPartly)
	case len(out.Proofs) == 0 && path == "":
		e.notef("no interface is shaped by vifshape in this network namespace")
	case len(out.Proofs) == 0:
		e.notef("nothing is bound to %s: there is nothing to prove", path)
	case out.any(proofUnseen), !out.any(proofHolds):
		return codeError(exitError)
	}
	return nil
}

func (p proveJSON) any(verdict string) bool {
	return slices.ContainsFunc(p.Proofs, func(v proofView) bool { return v.Verdict == verdict })
}

// proveAll proves the ways into the branches of one interface, or into one of them and all
// below.
func proveAll(m *shaper.Machine, ctx context.Context, iface string, path hierarchy.Path) ([]proofView, error) {
	x, s, err := m.TreeOf(ctx, iface)
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	if x.Blind != nil {
		return nil, x.Blind
	}
	if path != "" {
		if err := x.Exists(path); err != nil {
			return nil, err
		}
	}
	if err := sends(m, iface); err != nil {
		return nil, err
	}
	held, err := heldBy(x.Interface, s.Bound)
	if err != nil {
		return nil, err
	}
	var in []hierarchy.Bound
	var all []proofView
	for _, b := range append(x.Named(s.Bound, false), hierarchy.Bound{Class: hierarchy.ID(hierarchy.RestMinor), From: "rest"}) {
		rest := b.Target.Kind == bind.TargetNone && b.From == "rest"
		v := proofView{Branch: x.BranchOf(b.Class), From: b.From, Target: b.Target, Landed: []landedView{}, Verdict: proofNotTried, Other: held[b.Target].Other}
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
	cfg.Packets = provePackets
	cfg.Sender = func() *exec.Cmd { return exec.Command(selfPath, "prove", "sender") }
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
func (v *proofView) came(x *shaper.Interface, leaves []hierarchy.Leaf, p prove.Proof) {
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
		v.Landed = append(v.Landed, landedView{at, landed[at]})
	}
	switch own := landed[v.Branch]; {
	case p.Sent == 0:
	case len(landed) == 0:
		v.Verdict = proofUnseen
	case len(landed) == 1 && own > 0:
		v.Verdict = proofHolds
	default:
		v.Verdict = proofLeaks
	}
}

// String says it in one line.
func (v proofView) String() string {
	s := string(v.Branch)
	if b := (&boundView{From: v.From, Target: v.Target}); v.From == "" && v.Target.Kind == bind.TargetNone {
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
	return s + ": " + map[string]string{proofHolds: "holds", proofLeaks: "DOES NOT HOLD", proofUnseen: "not proven"}[v.Verdict]
}
