package amend

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/emulate"
)

// Branch is one that was added while a policy was in force.
type Branch struct {
	Path    hierarchy.Path   `json:"path"`
	Rate    hierarchy.Amount `json:"rate,omitzero"`
	Ceil    hierarchy.Amount `json:"ceil,omitzero"`
	Prio    *uint8           `json:"prio,omitempty"`
	Qdisc   string           `json:"qdisc,omitempty"`  // a kind
	Ingress hierarchy.Amount `json:"ingress,omitzero"` // the rate for receiving
	By      uint32           `json:"by,omitempty"`     // the user; 0: root

	// Limit is what a limit was put on, in the words by which it is taken away again. Empty:
	// the branch was added, and nothing below holds for it.
	Limit string           `json:"limit,omitempty"`
	Down  hierarchy.Amount `json:"down,omitzero"` // the ceiling for receiving
	// Program is the name of one whose processes are put into it.
	Program string         `json:"program,omitempty"`
	Link    *emulate.Link  `json:"link,omitempty"`   // emulated, in place of Ceil, Down and Qdisc
	Bind    []bind.Binding `json:"bind,omitempty"`   // taken from the branches that have them in the policy
	Holder  *Holder        `json:"holder,omitempty"` // nil: it stays until it is taken away
	Pod     string         `json:"pod,omitempty"`    // the id of the pod that it goes with, besides
}

// Origin says where the branch comes from, as in "eth0/x, which was added at run time, goes".
func (b *Branch) Origin() string {
	if b.Limit != "" {
		return "a limit on " + b.Limit
	}
	return "which was added at run time"
}

// Holder is what a limit goes with: when a process has ended, and a cgroup has no other.
type Holder struct {
	PID    int           `json:"pid"`
	Start  time.Duration `json:"start"`            // of the process, since that of the machine: another may get its number
	Cgroup string        `json:"cgroup,omitempty"` // from the root of its hierarchy
}

// Dropped is a branch that was added and has no place any more, and why.
type Dropped struct {
	Branch
	Why string
}

// Check refuses a branch that can be added to no policy.
func (b *Branch) Check() error {
	parent := b.Path.Parent()
	switch {
	case b.Path.Base() == hierarchy.RestName:
		return fmt.Errorf("%s: the rest comes by itself with the first branch below %s", b.Path, parent)
	case parent.Base() == hierarchy.RestName:
		return fmt.Errorf("%s: the rest stays a leaf: add the branch to %s", b.Path, parent.Parent())
	}
	return nil
}

// addTo puts the branch into a policy's interface, or says why it has no place there.
func (b *Branch) addTo(s *hierarchy.Spec) (why string) {
	parent, given := &s.BranchSpec, false
	at := hierarchy.Path(s.Interface)
	_, below, _ := strings.Cut(string(b.Path), "/")
	names := strings.Split(below, "/")
	for _, name := range names[:len(names)-1] {
		at = at.Join(name)
		i := child(parent, name)
		if i < 0 {
			return fmt.Sprintf("there is no %s any more", at)
		}
		parent = parent.Children[i]
		given = given || len(parent.Delegate) > 0
	}
	name := names[len(names)-1]
	switch {
	case b.By != 0 && !given:
		return fmt.Sprintf("%s is delegated to nobody any more", at)
	case child(parent, name) >= 0:
		return "the policy has a branch of that name"
	}
	if len(names) > 1 {
		divide(parent)
	}
	x := &hierarchy.BranchSpec{Name: name, Rate: b.Rate, Ceil: b.Ceil, Prio: b.Prio}
	if b.Qdisc != "" {
		x.Qdisc = &hierarchy.RawQdisc{Kind: b.Qdisc}
	}
	if !b.Ingress.IsZero() {
		x.Ingress = &hierarchy.BranchSpec{Rate: b.Ingress}
	}
	insert(parent, x)
	return ""
}

// divide gives a leaf its rest, which gets its queues: its programs are there.
func divide(leaf *hierarchy.BranchSpec) {
	if len(leaf.Children) > 0 {
		return
	}
	rest := &hierarchy.BranchSpec{Name: hierarchy.RestName, Qdisc: leaf.Qdisc}
	leaf.Qdisc = nil
	if in := leaf.Ingress; in != nil && in.Qdisc != nil {
		rest.Ingress = &hierarchy.BranchSpec{Qdisc: in.Qdisc}
		bare := *in
		bare.Qdisc = nil
		leaf.Ingress = &bare
	}
	leaf.Children = []*hierarchy.BranchSpec{rest}
}

// insert puts a branch below another one, of which the rest stays the last.
func insert(parent, x *hierarchy.BranchSpec) {
	to := len(parent.Children)
	if i := child(parent, hierarchy.RestName); i == to-1 && i >= 0 {
		to = i
	}
	parent.Children = slices.Insert(parent.Children, to, x)
}

// child is the place of the branch called name among those below another one; -1: there is
// none.
func child(of *hierarchy.BranchSpec, name string) int {
	return slices.IndexFunc(of.Children, func(c *hierarchy.BranchSpec) bool { return c.Name == name })
}
