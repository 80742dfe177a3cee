package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// Which is the branch that would carry a packet on one interface, and why.
type Which struct {
	Path   hierarchy.Path `json:"path"` // the leaf
	Packet string         `json:"packet"`
	Start  hierarchy.Path `json:"start"` // where the decision begins
	Sender string         `json:"sender"`
	Rules  []Rule         `json:"rules"`
}

// Rule is a match that the packet was held against, in the order in which that is done.
type Rule struct {
	Path   hierarchy.Path `json:"path"`
	Number int            `json:"number"` // in the branch's list, from 1
	Match  match.Match    `json:"match"`
	// Verdict is "decides", or "fits" of one that another one was more specific than, or "misses".
	Verdict string       `json:"verdict"`
	Misses  *match.Match `json:"misses,omitempty"` // the keys that do not hold
}

// What becomes of a rule.
const (
	RuleDecides = "decides"
	RuleFits    = "fits"
	RuleMisses  = "misses"
)

// Sender is who sends a packet, or receives one that comes in. The zero value is somebody
// whom no binding claims.
type Sender struct {
	Branch hierarchy.Path // whoever is bound to it
	PID    int            // a process
}

// WhichOf answers by a tree, for whoever is bound to a branch; an empty one: to none.
func WhichOf(t *hierarchy.Tree, at hierarchy.Path, p match.Packet) (*Which, error) {
	top := t.Root.Path
	w := &Which{Start: top, Sender: "nobody has bound it"}
	if at != "" && at != top {
		w.Start, w.Sender = at, "whoever is bound to it"
	}
	return w, w.decide(t, p)
}

func (w *Which) decide(t *hierarchy.Tree, p match.Packet) error {
	top := t.Root.Path
	b := t.Find(w.Start)
	switch {
	case b == nil:
		return hierarchy.NoBranch(w.Start, paths(t))
	case p.Received && t.Ingress == nil:
		return fmt.Errorf("%s: what it receives is not shaped: give it ingress, or leave out --in", top)
	}
	leaf, by := b.Decide(&p)
	if leaf == nil {
		return fmt.Errorf("%s: nothing can be bound to it: its leaves are below, and none of them is called %s", b.Path, hierarchy.RestName)
	}
	w.Path, w.Packet, w.Rules = leaf.Path, cmp.Or(p.String(), "a packet of which nothing is said"), []Rule{}
	for i := range len(by) + 1 {
		for r := range b.Rules() {
			one := Rule{Path: r.Branch.Path, Number: r.Match + 1, Match: *r.Of(), Verdict: RuleFits}
			if i < len(by) && by[i] == r {
				one.Verdict = RuleDecides
			} else if r.Of().Rank(&p) == 0 {
				no := r.Of().Misses(&p)
				one.Verdict, one.Misses = RuleMisses, &no
			}
			w.Rules = append(w.Rules, one)
		}
		if i < len(by) {
			b = by[i].Branch
		}
	}
	return nil
}

func paths(t *hierarchy.Tree) (all []hierarchy.Path) {
	for b := range t.All() {
		all = append(all, b.Path)
	}
	return all
}

// WhichHere answers by what is in force on an interface.
func WhichHere(ctx context.Context, m *shaper.Machine, iface string, s Sender, p match.Packet) (*Which, error) {
	x, is, err := m.TreeOf(ctx, iface)
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	if err := x.Losses(is); err != nil {
		return nil, err
	}
	tree, err := m.Applied(x.Record)
	if err != nil {
		return nil, err
	}
	if s.PID == 0 {
		return WhichOf(tree, s.Branch, p)
	}
	if x.Blind != nil {
		return nil, x.Blind
	}
	if err := leads(s.PID); err != nil {
		return nil, err
	}
	bound := x.Named(is.Bound, false)
	held, err := x.Held(bound)
	if err != nil {
		return nil, err
	}
	w := &Which{Start: tree.Root.Path, Sender: fmt.Sprintf("process %d is bound to no branch", s.PID)}
	for _, b := range bound {
		if slices.Contains(held[b.Target], s.PID) {
			w.Start = x.StartOf(b)
			w.Sender = fmt.Sprintf("process %d is bound to it by %s (%v)", s.PID, words.Printable(b.From), b.Target)
		}
	}
	return w, w.decide(tree, p)
}

// leads says why a number is no process's, nil where it is: of a thread packets are the process's.
func leads(pid int) error {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("process %d is not there; one in a container has another number outside", pid)
	}
	_, leader, _ := strings.Cut(string(status), "\nTgid:")
	leader, _, _ = strings.Cut(leader, "\n")
	if leader = strings.TrimSpace(leader); err == nil && leader != strconv.Itoa(pid) {
		err = fmt.Errorf("%d is a thread of process %s: name that", pid, leader)
	}
	return err
}
