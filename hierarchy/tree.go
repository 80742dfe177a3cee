package hierarchy

import (
	"iter"

	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// Class is one HTB class as the kernel keeps it: what a branch becomes, and
// what is read back.
type Class struct {
	ID      ClassID   `json:"classid"`
	Parent  ClassID   `json:"parent"` // the qdisc's own id for the interface's class
	Path    Path      `json:"path,omitempty"`
	Rate    Bandwidth `json:"rate"`
	Ceil    Bandwidth `json:"ceil"`
	Burst   Size      `json:"burst"`  // bytes that may be sent at once at rate
	CBurst  Size      `json:"cburst"` // bytes that may be sent at once at ceil
	Quantum Size      `json:"quantum"`
	Prio    uint8     `json:"prio"`
	Link    LinkLayer `json:"link,omitzero"`
}

// Tree is what one port is to become: every value of the policy worked out
// and checked. Burst, CBurst and Quantum of a class and the Qdisc of a leaf are
// zero where the policy leaves them open, and every Link is; package tc settles
// them for the device at hand.
type Tree struct {
	Port    Port
	Replace bool
	MTU     Size
	Line    Line
	Root    *Branch
	Ingress *Tree     // of a tree that sends: the device's tree for receiving, nil where it has none
	Example Bandwidth // of a share of a line whose speed is not known: that for which the rates are; 0: they are what they are
	Flows   uint32    // of a tree that receives: how many flows there is room for by which packets are told apart
}

// Branch is a node of a Tree. Inner branches have no Qdisc. Their processes
// live in the child called rest, which every inner branch with a binding, a match or a
// delegate has. A tree for receiving has the branches of the one for sending, and
// Bind, Match and Delegate stand only there.
type Branch struct {
	Class
	Qdisc    Qdisc
	Bind     []bind.Binding
	Match    []match.Match
	Delegate []bind.Delegate
	Implied  bool // not in the policy: a rest that was added
	// RenamedFrom is the name that the branch had before, or its whole path; see [IDs.Assign].
	// It stands in the tree for sending alone.
	RenamedFrom string
	Children    []*Branch
}

// RestName is the name of the leaf that carries what no sibling claims.
const RestName = "rest"

// Leaf says whether the branch has no children.
func (b *Branch) Leaf() bool { return len(b.Children) == 0 }

// Entry is the leaf that the branch's own processes use: itself, or its child
// called rest, or nil when it has neither.
func (b *Branch) Entry() *Branch {
	if b.Leaf() {
		return b
	}
	for _, c := range b.Children {
		if c.Leaf() && c.Path.Base() == RestName {
			return c
		}
	}
	return nil
}

// All walks the tree parents first, children in the order of the policy.
func (t *Tree) All() iter.Seq[*Branch] {
	return func(yield func(*Branch) bool) { t.Root.walk(yield) }
}

func (b *Branch) walk(yield func(*Branch) bool) bool {
	if !yield(b) {
		return false
	}
	for _, c := range b.Children {
		if !c.walk(yield) {
			return false
		}
	}
	return true
}

// Both walks the tree as All does, each branch with what it is in the tree for
// receiving, nil where the device has none.
func (t *Tree) Both() iter.Seq2[*Branch, *Branch] {
	return func(yield func(send, receive *Branch) bool) {
		var in *Branch
		if t.Ingress != nil {
			in = t.Ingress.Root
		}
		t.Root.walkBoth(in, yield)
	}
}

func (b *Branch) walkBoth(in *Branch, yield func(send, receive *Branch) bool) bool {
	if !yield(b, in) {
		return false
	}
	for i, c := range b.Children {
		var x *Branch
		if in != nil {
			x = in.Children[i]
		}
		if !c.walkBoth(x, yield) {
			return false
		}
	}
	return true
}

// Size is the number of branches, 0 of no tree.
func (t *Tree) Size() int {
	if t == nil {
		return 0
	}
	n := 0
	for range t.All() {
		n++
	}
	return n
}

// Find is the branch with the given path, or nil.
func (t *Tree) Find(p Path) *Branch {
	for b := range t.All() {
		if b.Path == p {
			return b
		}
	}
	return nil
}
