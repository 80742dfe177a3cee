package hierarchy

import "github.com/vifshape/vifshape/hierarchy/bind"

// State is everything of ours on one interface, as it is or as it should be.
// The zero value is an interface that vifshape has not touched. Both sides of a
// plan are a State; package tc reads Root, Classes and Leaves, package cgroup
// Hook and Bound.
type State struct {
	Interface string  `json:"interface"`
	Root      Root    `json:"root"`
	Classes   []Class `json:"classes"` // parents before children
	Leaves    []Leaf  `json:"leaves"`
	Hook      Hook    `json:"hook"`
	Bound     []Bound `json:"bound"`
}

// Root is the qdisc at the root of the interface. The zero value is the one
// that the kernel put there by itself (handle 0).
type Root struct {
	Kind   string  `json:"kind"`
	Handle ClassID `json:"handle"` // minor 0
}

// Ours says whether vifshape made the qdisc.
func (r Root) Ours() bool { return r.Kind == "htb" && r.Handle == ID(0) }

// Foreign says whether somebody else made it: neither we nor the kernel.
func (r Root) Foreign() bool { return r.Handle != 0 && !r.Ours() }

// Leaf is the queueing discipline of one leaf class.
type Leaf struct {
	Class ClassID `json:"classid"`
	Path  Path    `json:"path,omitempty"`
	Qdisc Qdisc   `json:"qdisc"`
}

// Hook is the classifier on the interface.
type Hook struct {
	Way     bind.Way `json:"way"`
	Version uint32   `json:"version"` // of the program; an older one is replaced in place
}

// Bound is one binding in force: what Target names goes to class Class.
type Bound struct {
	Target bind.Target `json:"target"`
	Class  ClassID     `json:"classid"`
	Path   Path        `json:"path,omitempty"` // of the branch
	// Open says that a program is missing which the kernel would take: that against
	// root's sockets going round the queues, or, for an interface that belongs to
	// a bridge, that which marks what it brings in.
	Open bool   `json:"open,omitempty"`
	From string `json:"from,omitempty"` // the policy's words: "unit:nginx.service", or "run" for a branch's own cgroup
}

// State is the desired state of the tree's interface. Hook and Bound are not
// the tree's to say and stay empty.
func (t *Tree) State() State {
	s := State{Interface: t.Interface, Root: Root{Kind: "htb", Handle: ID(0)}}
	classes, leaves := 0, 0
	for b := range t.All() {
		classes++
		if b.Leaf() {
			leaves++
		}
	}
	s.Classes, s.Leaves = make([]Class, 0, classes), make([]Leaf, 0, leaves)
	for b := range t.All() {
		s.Classes = append(s.Classes, b.Class)
		if b.Leaf() {
			s.Leaves = append(s.Leaves, Leaf{b.ID, b.Path, b.Qdisc})
		}
	}
	return s
}
