package amend

import (
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
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
// A leaf that gets its first branch keeps its queues as its rest: its programs are
// there.
func (b *Branch) addTo(s *hierarchy.Spec) (why string) {
	parent, given := &s.BranchSpec, false
	at := hierarchy.Path(s.Interface)
	_, below, _ := strings.Cut(string(b.Path), "/")
	names := strings.Split(below, "/")
	named := func(name string) int {
		return slices.IndexFunc(parent.Children, func(c *hierarchy.BranchSpec) bool { return c.Name == name })
	}
	for _, name := range names[:len(names)-1] {
		at = at.Join(name)
		i := named(name)
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
	case named(name) >= 0:
		return "the policy has a branch of that name"
	}
	if len(parent.Children) == 0 && len(names) > 1 {
		rest := &hierarchy.BranchSpec{Name: hierarchy.RestName, Qdisc: parent.Qdisc}
		parent.Qdisc = nil
		if in := parent.Ingress; in != nil && in.Qdisc != nil {
			rest.Ingress = &hierarchy.BranchSpec{Qdisc: in.Qdisc}
			bare := *in
			bare.Qdisc = nil
			parent.Ingress = &bare
		}
		parent.Children = []*hierarchy.BranchSpec{rest}
	}
	x := &hierarchy.BranchSpec{Name: name, Rate: b.Rate, Ceil: b.Ceil, Prio: b.Prio}
	if b.Qdisc != "" {
		x.Qdisc = &hierarchy.RawQdisc{Kind: b.Qdisc}
	}
	if !b.Ingress.IsZero() {
		x.Ingress = &hierarchy.BranchSpec{Rate: b.Ingress}
	}
	to := len(parent.Children)
	if i := named(hierarchy.RestName); i == to-1 && i >= 0 { // the rest stays the last
		to = i
	}
	parent.Children = slices.Insert(parent.Children, to, x)
	return ""
}
