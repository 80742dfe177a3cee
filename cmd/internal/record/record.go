package record

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/foreign"
)

// Record is what the kernel cannot keep about one interface.
type Record struct {
	Version   int                 `json:"version"`
	Interface string              `json:"interface"`
	Index     uint32              `json:"ifindex"`            // tells the interface after it was renamed
	Formerly  []string            `json:"formerly,omitempty"` // its names before: programs that run may have homes by these
	Link      hierarchy.Bandwidth `json:"link,omitzero"`      // what the line carries, of which the rates are a share; 0: they are none
	MTU       int                 `json:"mtu,omitempty"`      // by which bursts and queues were worked out; 0: not known
	Policy    string              `json:"policy"`             // the file that the tree came from, or [NoPolicy]
	Selector  hierarchy.Selector  `json:"selector,omitempty"` // by which that names the interface
	Binding   string              `json:"binding"`
	Way       bind.Way            `json:"way,omitempty"`      // that was taken
	Receives  bool                `json:"receives,omitempty"` // there is a tree for what it receives, too
	Matches   bool                `json:"matches,omitempty"`  // branches have matches
	IDs       hierarchy.IDs       `json:"ids"`
	Order     []hierarchy.Path    `json:"order"` // branches as the policy lists them
	Bindings  []Binding           `json:"bindings,omitempty"`
	Bound     []hierarchy.Bound   `json:"bound,omitempty"` // what the bindings came to; no target: not there yet
	Former    foreign.Former      `json:"former,omitzero"` // the root qdisc that ours replaced
	Delegated []Delegated         `json:"delegated,omitempty"`
	Added     []amend.Branch      `json:"added,omitempty"` // branches, parents first

	Serial  uint32    `json:"serial,omitempty"` // of the apply that it came from, see history.go
	Applied time.Time `json:"applied,omitzero"` // when that was: of all interfaces that it changed the same
	By      string    `json:"by,omitempty"`     // who did it
	// Boot is when, since the machine was started: which was the last, where clocks are set back.
	Boot time.Duration `json:"boot,omitempty"`

	// Spec is what the policy says, where it is to be written with the record. It has a file
	// of its own, which is as long as all the rest and which few ask for: see Store.Spec.
	Spec *hierarchy.Spec `json:"-"`
	Was  string          `json:"-"` // the name under which it was found, if that is another
}

// NoPolicy stands for the file of a policy where limits alone have made a tree.
const NoPolicy = "vifshape limit"

// Binding is a binding as it was written.
type Binding struct {
	Path      hierarchy.Path `json:"path"` // the branch
	Binding   bind.Binding   `json:"binding"`
	AtRuntime bool           `json:"at_runtime,omitempty"` // by bind, not in the policy
	Limit     bool           `json:"limit,omitempty"`      // by a limit
}

// Version is the form of a record. Version 3 had what the policy says in it, and version 2
// the interface's name in the keys of class ids: both are read, so that branches keep their
// classes. Version 1 had no bindings as they were written, so that what it says would
// unbind all of them.
const Version = 4

// Delegated is a branch with the users it is delegated to.
type Delegated struct {
	Path hierarchy.Path  `json:"path"`
	To   []bind.Delegate `json:"to"`
}

// Names are the delegates in words.
func (d Delegated) Names() string {
	names := make([]string, len(d.To))
	for i, t := range d.To {
		names[i] = string(t)
	}
	return strings.Join(names, ", ")
}

// check says what cannot be true in a record that was read.
func (r *Record) check(iface string) error {
	if r.Interface != iface {
		return fmt.Errorf("it is about interface %q", r.Interface)
	}
	if r.Version == 2 {
		if err := r.upgrade(); err != nil {
			return err
		}
	}
	r.Version = Version
	if r.Spec != nil {
		r.Spec.Interface = iface
	}
	key := make(map[uint16]string, len(r.IDs.Minors))
	for k, m := range r.IDs.Minors {
		if o, twice := key[m]; twice {
			return fmt.Errorf("%q and %q have the same class id %v", iface+"/"+min(k, o), iface+"/"+max(k, o), hierarchy.ID(m))
		}
		key[m] = k
	}
	for p, n := range r.IDs.Named {
		if n.Origin != "" && n.Origin != p && r.IDs.Named[n.Origin].Now != p || n.Now != "" && r.IDs.Named[n.Now].Origin != p {
			return fmt.Errorf("%q was renamed from, or to, what does not say so", iface+"/"+p)
		}
	}
	paths := slices.Clone(r.Order)
	for _, b := range r.Bound {
		paths = append(paths, b.Path)
		if _, class, ok := r.Leaf(b.Path); ok && b.Target.Kind != bind.TargetNone && b.Class != class {
			return fmt.Errorf("%q is class %v in one place and %v in another", b.Path, class, b.Class)
		}
	}
	for _, b := range r.Bindings {
		paths = append(paths, b.Path)
	}
	for _, d := range r.Delegated {
		paths = append(paths, d.Path)
	}
	for _, a := range r.Added {
		paths = append(paths, a.Path)
	}
	for _, p := range paths {
		if !p.Below(hierarchy.Path(iface)) {
			return fmt.Errorf("%q is not below %s", p, iface)
		}
	}
	return nil
}

// upgrade makes the class ids of a record of version 2 what this one would have written.
func (r *Record) upgrade() error {
	ids := hierarchy.IDs{Minors: make(map[string]uint16, len(r.IDs.Minors)), Retired: r.IDs.Retired}
	for key, m := range r.IDs.Minors {
		below, ok := strings.CutPrefix(key, r.Interface+"/")
		if !ok {
			return fmt.Errorf("%q is not below %s", key, r.Interface)
		}
		ids.Minors[below] = m
	}
	for i, x := range ids.Retired {
		below, ok := strings.CutPrefix(x.Key, r.Interface+"/")
		if !ok {
			return fmt.Errorf("%q is not below %s", x.Key, r.Interface)
		}
		ids.Retired[i].Key = below
	}
	r.IDs = ids
	return nil
}
