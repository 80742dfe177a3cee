package hierarchy

import (
	"slices"

	"github.com/vifshape/vifshape/hierarchy/bind"
)

// State is everything of ours on one device, as it is or as it should be: a part
// for each port, and the classifier and bindings for all of them. The zero value is
// a device that vifshape has not touched. Both sides of a plan are a State; package
// tc reads ports, package cgroup Hook and Bound.
type State struct {
	Device string      `json:"device"`
	Ports  []PortState `json:"ports"`
	Hook   Hook        `json:"hook"`
	Bound  []Bound     `json:"bound"`
	// Matched are branches with matches. Of those that are read only what tells them apart is
	// known: ID, Class and Digest.
	Matched []Matched `json:"matched,omitempty"`
}

// PortState is what stands on one port.
type PortState struct {
	Port    Port    `json:"port"`
	Root    Root    `json:"root"`
	Classes []Class `json:"classes"` // parents before children
	Leaves  []Leaf  `json:"leaves"`
}

// On is what stands on a port: nothing, where the state does not have it.
func (s State) On(p Port) PortState {
	if i := s.find(p); i >= 0 {
		return s.Ports[i]
	}
	return PortState{Port: p}
}

// Set puts what stands on a port into the state, in the place of what it has.
func (s *State) Set(p PortState) {
	if i := s.find(p.Port); i >= 0 {
		s.Ports[i] = p
		return
	}
	s.Ports = append(s.Ports, p)
}

func (s State) find(p Port) int {
	return slices.IndexFunc(s.Ports, func(o PortState) bool { return o.Port == p })
}

// Root is the qdisc at the root of an interface. The zero value is the one
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

// Hook is the classifier on the device, for what it sends and, with Receive, for what it
// receives.
type Hook struct {
	Way     bind.Way `json:"way"`
	Version uint32   `json:"version"` // of the program; an older one is replaced in place
	// Receive is the version of the programs by which received packets get the class of what
	// they answer to; 0: there are none.
	Receive uint32 `json:"receive,omitempty"`
	Flows   uint32 `json:"flows,omitempty"` // of what it answers to: how many they have room for
	// Match is the version of the program by which packets get into branches that have
	// matches; 0: there is none.
	Match uint32 `json:"match,omitempty"`
}

// Bound is one binding in force: what Target names goes to class Class.
type Bound struct {
	Target bind.Target `json:"target"`
	Class  ClassID     `json:"classid"`
	Path   Path        `json:"path,omitempty"` // of the branch
	// Open says that a program is missing which the kernel would take: that against
	// root's sockets going round the queues, or, for an interface that belongs to
	// a bridge, that which marks what it brings in.
	Open bool `json:"open,omitempty"`
	// Stays says that it is bound to a branch called rest itself, not to the one above: its
	// packets are not held against that one's matches. It is false where there are none.
	Stays bool   `json:"stays,omitempty"`
	From  string `json:"from,omitempty"` // the policy's words: "unit:nginx.service", or "run" for a branch's own cgroup
}

// State is the desired state of a device that has the tree, with its tree for
// receiving, and no other. Hook and Bound are not the tree's to say and stay empty.
func (t *Tree) State() State {
	s := State{Device: t.Port.Device, Ports: []PortState{t.state()}}
	if t.Ingress != nil {
		s.Ports = append(s.Ports, t.Ingress.state())
	}
	return s
}

// state is what the tree has on its port.
func (t *Tree) state() PortState {
	s := PortState{Port: t.Port, Root: Root{Kind: "htb", Handle: ID(0)}}
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
