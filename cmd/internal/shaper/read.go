package shaper

import (
	"cmp"
	"context"
	"fmt"
	"strings"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// UnshapedError says that an interface has no tree of ours, and had none.
type UnshapedError struct{ iface, root string }

func (e *UnshapedError) Error() string {
	return fmt.Sprintf("%s is not shaped by vifshape: its root qdisc is %s", e.iface, e.root)
}

// TreeOf reads an interface that has a tree of ours. The caller closes its binder.
func (m *Machine) TreeOf(ctx context.Context, iface string) (*Target, hierarchy.State, error) {
	s, err := m.Interface(iface, "")
	if err != nil {
		return nil, hierarchy.State{}, err
	}
	x := &Target{change: change{Interface: s}}
	is, err := x.read(ctx)
	root := x.On(is).Root
	if err == nil && !root.Ours() && s.Record.Policy != "" {
		err = TreeLost(s.Record, root)
	}
	if err == nil && !root.Ours() {
		err = &UnshapedError{iface, rootText(root)}
	}
	if err != nil {
		s.Binder.Close()
		return nil, is, err
	}
	return x, is, nil
}

// Applied is the tree of an apply by its record, with what was added to it and the classes
// that it was given. It is not settled: it is good for what branches there are, and their
// matches.
func (m *Machine) Applied(r *record.Record) (*hierarchy.Tree, error) {
	if r.Policy == "" {
		return nil, fmt.Errorf("the record of %s is lost, and with it what its policy says: apply that again", r.Interface)
	}
	spec, err := m.Store.Spec(r)
	if err != nil {
		return nil, err
	}
	with, err := amend.Extend(spec, qdisc.Kinds(), r.Added)
	if err != nil {
		return nil, err
	}
	_, err = r.IDs.Assign(with.Tree)
	return with.Tree, err
}

// Would is the tree that a policy's word on an interface comes to where r is in force, with
// what was added to that and stays, and the names that its branches have then. Like that of
// [Machine.Applied] it is not settled.
func Would(w Wanted, r *record.Record) (*hierarchy.Tree, hierarchy.IDs, error) {
	x := &Target{change: change{Interface: &Interface{Record: r}}, Tree: w.Tree, spec: w.Spec}
	if err := x.keepAdded(r.Added); err != nil {
		return nil, hierarchy.IDs{}, err
	}
	ids, err := r.IDs.Assign(x.Tree)
	return x.Tree, ids, err
}

// Named gives bindings the words that the policy has for them, and adds those of
// its bindings that wait for what they name, or all where none could be read.
func (x *Interface) Named(all []hierarchy.Bound, blind bool) []hierarchy.Bound {
	words := map[bind.Target]hierarchy.Bound{}
	for _, r := range x.Record.Bound {
		if r.Target.Kind == bind.TargetNone {
			r.Class, _ = x.entry(r.Path) // without an entry it is shown with no branch
		}
		if r.Target.Kind == bind.TargetNone || blind {
			all = append(all, r)
		}
		words[r.Target] = r
	}
	for i := range all {
		b := &all[i]
		if w, ok := words[b.Target]; ok && b.Target.Kind != bind.TargetNone {
			b.From = w.From
		}
		if b.From == "" && b.Target.Kind == bind.TargetCgroup && strings.HasPrefix(b.Target.Name, "/vifshape/") {
			b.From = "run"
		}
	}
	return all
}

// BranchOf is the branch that a class is of. HTB puts what has a class that it does
// not have into the rest.
func (x *Interface) BranchOf(class hierarchy.ClassID) hierarchy.Path {
	return hierarchy.Path(cmp.Or(string(x.Kernel.Names[class]), string(hierarchy.Path(x.Record.Interface).Join(hierarchy.RestName))))
}

// StartOf is the branch from which the packets of whoever is bound go on by matches.
func (x *Interface) StartOf(b hierarchy.Bound) hierarchy.Path {
	p := x.BranchOf(b.Class)
	if !b.Stays && p.Base() == hierarchy.RestName {
		p = p.Parent()
	}
	return p
}
