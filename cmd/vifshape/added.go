package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
)

// added is a branch that was made while the policy was in force.
type added struct {
	Path  hierarchy.Path   `json:"path"`
	Rate  hierarchy.Amount `json:"rate,omitzero"`
	Ceil  hierarchy.Amount `json:"ceil,omitzero"`
	Prio  *uint8           `json:"prio,omitempty"`
	Qdisc string           `json:"qdisc,omitempty"` // a kind
	By    uint32           `json:"by,omitempty"`    // the user; 0: root
}

// delegated is a branch with the users it is delegated to.
type delegated struct {
	Path hierarchy.Path  `json:"path"`
	To   []bind.Delegate `json:"to"`
}

// to are the delegates in words.
func (d delegated) to() string {
	names := make([]string, len(d.To))
	for i, t := range d.To {
		names[i] = string(t)
	}
	return strings.Join(names, ", ")
}

// uid is the number of a delegate; ok is false for one that this machine does not
// know, and for root, however it is called here.
func uid(d bind.Delegate) (id uint32, ok bool) {
	if id, ok := d.UID(); ok {
		return id, true
	}
	u, err := user.Lookup(string(d))
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(u.Uid, 10, 32)
	return uint32(n), err == nil && n != 0 && n != bind.OverflowUID
}

// problemError is what is wrong with a tree to which branches were added.
type problemError struct{ hierarchy.Problem }

func (e problemError) Error() string { return fmt.Sprintf("%s: %s", e.Path, e.Text) }

// unfitError says that a branch was added for which the policy has no room now.
type unfitError struct {
	path hierarchy.Path
	err  error
}

func (e unfitError) Error() string {
	return fmt.Sprintf("%s was added while an earlier policy was in force and does not fit into this one: %v", e.path, e.err)
}

func (e unfitError) Unwrap() error { return e.err }

// droppedBranch is a branch that was added and goes, and why.
type droppedBranch struct {
	added
	why string
}

// extend is the tree of a policy's interface with branches added. It goes the way of
// a policy, so that nothing can be added that could not be written there.
func extend(spec json.RawMessage, iface string, all []added) (tree *hierarchy.Tree, kept []added, dropped []droppedBranch, err error) {
	var s hierarchy.Spec
	if err := json.Unmarshal(spec, &s); err != nil {
		return nil, nil, nil, err
	}
	s.Interface = iface
	for _, a := range all {
		if why := a.addTo(&s); why != "" {
			dropped = append(dropped, droppedBranch{a, why})
			continue
		}
		kept = append(kept, a)
	}
	tree, problems := hierarchy.Resolve(&s, tc.Kinds())
	if i := slices.IndexFunc(problems, func(p hierarchy.Problem) bool { return !p.Warning }); i >= 0 {
		return nil, nil, nil, problemError{problems[i]}
	}
	return tree, kept, dropped, nil
}

// addTo puts the branch into a policy's interface, or says why it has no place there.
// A leaf that gets its first branch keeps its queue as its rest: its programs are
// there.
func (a *added) addTo(s *hierarchy.Spec) (why string) {
	parent, given := &s.BranchSpec, false
	at := hierarchy.Path(s.Interface)
	_, below, _ := strings.Cut(string(a.Path), "/")
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
	case a.By != 0 && !given:
		return fmt.Sprintf("%s is delegated to nobody any more", at)
	case named(name) >= 0:
		return "the policy has a branch of that name"
	}
	if len(parent.Children) == 0 && len(names) > 1 {
		parent.Children = []*hierarchy.BranchSpec{{Name: hierarchy.RestName, Qdisc: parent.Qdisc}}
		parent.Qdisc = nil
	}
	b := &hierarchy.BranchSpec{Name: name, Rate: a.Rate, Ceil: a.Ceil, Prio: a.Prio}
	if a.Qdisc != "" {
		b.Qdisc = &hierarchy.RawQdisc{Kind: a.Qdisc}
	}
	to := len(parent.Children)
	if i := named(hierarchy.RestName); i == to-1 && i >= 0 { // the rest stays the last
		to = i
	}
	parent.Children = slices.Insert(parent.Children, to, b)
	return ""
}

// keepAdded puts the branches that were added to the former policy into the tree of
// the next one.
func (x *target) keepAdded() (err error) {
	all := x.record.Added
	if len(all) == 0 {
		return nil
	}
	tree, kept, dropped, err := extend(x.spec, x.tree.Interface, all)
	if err == nil {
		x.tree, x.added, x.dropped = tree, kept, dropped
		return nil
	}
	for i := range all {
		if _, _, _, err := extend(x.spec, x.tree.Interface, all[:i+1]); err != nil {
			return unfitError{all[i].Path, err}
		}
	}
	return err
}

// delegations are the branches of a tree that are delegated.
func delegations(t *hierarchy.Tree) (all []delegated) {
	for b := range t.All() {
		if len(b.Delegate) > 0 {
			all = append(all, delegated{b.Path, b.Delegate})
		}
	}
	return all
}

// addedRemarks says on stderr what becomes of delegations and added branches. What
// stays as it is is for plan alone.
func (m *machine) addedRemarks(x *target, all bool) {
	for _, d := range x.dropped {
		m.warnf("%s, which was added at run time, goes: %s", d.Path, d.why)
	}
	for _, d := range x.next.Delegated {
		for _, to := range d.To {
			if _, ok := uid(to); !ok {
				m.warnf("%s is delegated to %s, who is no user of this machine", d.Path, printable(string(to)))
			}
		}
	}
	if !all {
		return
	}
	for _, a := range x.added {
		m.notef("%s stays: it was added at run time", a.Path)
	}
	was := map[hierarchy.Path]string{}
	for _, d := range x.record.Delegated {
		was[d.Path] = d.to()
	}
	for _, d := range x.next.Delegated {
		if was[d.Path] != d.to() {
			m.notef("%s is delegated to %s", d.Path, printable(d.to()))
		}
		delete(was, d.Path)
	}
	for _, d := range x.record.Delegated {
		if _, gone := was[d.Path]; gone {
			m.notef("%s is delegated to nobody any more", d.Path)
		}
	}
}

const (
	// mostAdded is how many branches users may add below one that is delegated to
	// them.
	mostAdded = 64
	// leastAdded is the least rate of a leaf where users add branches. A slower one
	// might borrow more than its share: it gets a frame of 1500 bytes in each turn,
	// which package tc gives to 24 kbit/s and above in proportion.
	leastAdded = 32 * hierarchy.Kbit
)

// petitioner is who asks for something through the agent.
type petitioner struct {
	uid   uint32
	homes []hierarchy.Path // the branches that it runs in: several where its threads are in different ones
}

// deniedError says that somebody asked for what is not delegated to them.
type deniedError struct{ error }

func (e deniedError) Unwrap() error { return e.error }

// held refuses what lies outside of a branch that the petitioner runs in.
func (w *petitioner) held(p hierarchy.Path) error {
	for _, home := range w.homes {
		if !p.Below(home) {
			return deniedError{fmt.Errorf("%s: process is in branch %s, from where programs go only to that branch and below", p, home)}
		}
	}
	return nil
}

// enters refuses a branch that the petitioner may not start programs in. Root may: the
// cgroups' files are its own.
func (w *petitioner) enters(r *record, p hierarchy.Path) error {
	if w.uid == 0 {
		return w.held(p)
	}
	_, _, err := w.base(r, p)
	return err
}

// base is the branch at or above p up to which the petitioner may divide it: given, the
// uppermost that is delegated to it, but none above one that it runs in. Nothing is
// delegated to root: one that comes here is one that may not do it by itself.
func (w *petitioner) base(r *record, p hierarchy.Path) (base, given hierarchy.Path, err error) {
	if err := w.held(p); err != nil {
		return "", "", err
	}
	for _, d := range r.Delegated {
		if !p.Below(d.Path) || given != "" && !given.Below(d.Path) {
			continue
		}
		if slices.ContainsFunc(d.To, func(to bind.Delegate) bool { id, ok := uid(to); return ok && id == w.uid }) {
			given = d.Path
		}
	}
	switch {
	case given == "" || w.uid == bind.OverflowUID:
		return "", "", deniedError{fmt.Errorf("%s is not delegated to user %d", p, w.uid)}
	}
	base = given
	for _, home := range w.homes { // above p all of them, and so one above the other
		if home.Below(base) {
			base = home
		}
	}
	return base, given, nil
}

// amend changes the branches that were added to an interface. Change sets tree and
// added of a target; the rest is that of apply, with the policy that was applied last.
func (m *machine) amend(ctx context.Context, what string, path hierarchy.Path, change func(*target) error) error {
	unlock, err := m.store.lock(ctx, what+" "+string(path))
	if err != nil {
		return err
	}
	defer unlock()
	s, err := m.shaped(path.Interface(), "")
	if err != nil {
		return err
	}
	x := &target{shaped: s, amends: true}
	defer release([]*target{x})
	r := s.record
	if _, err := x.entry(hierarchy.Path(r.Interface).Join(hierarchy.RestName)); err != nil {
		return err // there is always one, if there is a tree
	}
	if err := x.stands(hierarchy.ID(hierarchy.RootMinor)); err != nil {
		return err
	}
	x.spec = r.Spec
	if err := change(x); err != nil {
		return err
	}
	if err := m.settle(ctx, r.Policy, r.Binding, x); err != nil {
		return err
	}
	if x.blind != nil {
		return x.blind
	}
	return m.apply(ctx, []*target{x})
}

// add makes a branch below another one. Without a petitioner root asks.
func (m *machine) add(ctx context.Context, a added, who *petitioner) error {
	parent := a.Path.Parent()
	switch {
	case a.Path.Base() == hierarchy.RestName:
		return fmt.Errorf("%s: the rest comes by itself with the first branch below %s", a.Path, parent)
	case parent.Base() == hierarchy.RestName:
		return fmt.Errorf("%s: the rest stays a leaf: add the branch to %s", a.Path, parent.Parent())
	}
	return m.amend(ctx, "add", a.Path, func(x *target) error {
		r := x.record
		base := hierarchy.Path("")
		if who != nil {
			var given hierarchy.Path
			var err error
			if base, given, err = who.base(r, parent); err != nil {
				return err
			}
			n := 0
			for _, o := range r.Added {
				if o.By != 0 && o.Path.Below(given) {
					n++
				}
			}
			if n >= mostAdded {
				return fmt.Errorf("%s: %s has %d branches that were added, and that is the most", a.Path, given, n)
			}
		}
		if err := x.exists(parent); err != nil {
			return err
		}
		if _, _, ok := r.IDs.Find(a.Path); ok {
			return fmt.Errorf("%s is there already", a.Path)
		}
		tree, all, dropped, err := extend(r.Spec, r.Interface, append(slices.Clone(r.Added), a))
		if err != nil {
			return err
		}
		if len(dropped) > 0 { // the record is of another policy than the spec
			return fmt.Errorf("%s: %s", dropped[0].Path, dropped[0].why)
		}
		if who != nil {
			before, _, _, err := extend(r.Spec, r.Interface, r.Added)
			if err != nil {
				return err
			}
			if err := fits(before, tree, base, a.Path); err != nil {
				return err
			}
		}
		x.tree, x.added = tree, all
		return nil
	})
}

// fits holds what a user added against what the policy says of base, and what it leaves
// to the others, who may share what nobody was guaranteed. That rates and ceilings fit
// has been seen to: they do everywhere.
func fits(before, t *hierarchy.Tree, base, path hierarchy.Path) error {
	of, b := t.Find(base), t.Find(path)
	if b.Prio < of.Prio {
		return fmt.Errorf("%s: prio %d comes before the prio %d of %s: write %d or more", path, b.Prio, of.Prio, base, of.Prio)
	}
	if b.Rate < leastAdded {
		return fmt.Errorf("%s: rate %v is below %v, which is the least for a branch that users add", path, b.Rate, leastAdded)
	}
	for o := range t.All() {
		if !o.Leaf() || o.Rate >= leastAdded || !o.Path.Below(path.Parent()) {
			continue
		}
		if was := before.Find(o.Path); was == nil || was.Rate > o.Rate {
			return fmt.Errorf("%s: %v would be left for it, and users leave it %v at least", o.Path, o.Rate, leastAdded)
		}
	}
	return nil
}

// exists says what is wrong with the path of a branch; the interface's is none.
func (x *shaped) exists(path hierarchy.Path) error {
	if path == hierarchy.Path(x.record.Interface) {
		return nil
	}
	if _, _, ok := x.record.IDs.Find(path); ok {
		return nil
	}
	_, err := x.entry(path)
	return err
}

// remove takes a branch away that was added. Without a petitioner root asks.
func (m *machine) remove(ctx context.Context, path hierarchy.Path, who *petitioner) error {
	return m.amend(ctx, "remove", path, func(x *target) error {
		r := x.record
		if who != nil {
			if _, _, err := who.base(r, path.Parent()); err != nil {
				return err
			}
		}
		i := slices.IndexFunc(r.Added, func(a added) bool { return a.Path == path })
		if i < 0 {
			if err := x.exists(path); err != nil {
				return err
			}
			return fmt.Errorf("%s was not added, it is the policy's: change %s and apply it", path, r.policy())
		}
		if who != nil && r.Added[i].By == 0 {
			return deniedError{fmt.Errorf("%s was added by root", path)}
		}
		for _, o := range r.Added {
			if o.Path != path && o.Path.Below(path) {
				return fmt.Errorf("%s has branches below it: remove %s first", path, o.Path)
			}
		}
		for _, b := range r.Bindings {
			if b.Path == path { // at run time: the policy does not know the branch
				return fmt.Errorf("%s: %v is bound to it: `vifshape unbind %s %v` takes it from there", path, b.Binding, path, b.Binding)
			}
		}
		gone, err := x.binder.RemoveHome(path)
		if err != nil {
			return err
		}
		if !gone {
			return fmt.Errorf("%s: processes live in it: end them, or `vifshape attach` them to another branch", path)
		}
		x.tree, x.added, _, err = extend(r.Spec, r.Interface, slices.Delete(slices.Clone(r.Added), i, i+1))
		return err
	})
}
