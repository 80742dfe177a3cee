package shaper

import (
	"context"
	"fmt"
	"os/user"
	"slices"
	"strconv"
	"strings"

	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// UID is the number of a delegate; ok is false for one that this machine does not
// know, and for root, however it is called here.
func UID(d bind.Delegate) (id uint32, ok bool) {
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

// keepAdded puts branches that were added to the former policy into the tree of the next
// one, where those above them are now.
func (x *Target) keepAdded(all []amend.Branch) error {
	was := x.Record.IDs
	if len(all) == 0 {
		return nil
	}
	ids, err := was.Assign(x.Tree)
	if err != nil {
		return err
	}
	var added []amend.Branch
	var dropped []amend.Dropped
	at := map[hierarchy.Path]hierarchy.Path{}
	for _, a := range all {
		if a.Path.Parent() == "" { // a limit on the interface itself, which is called as it was
			added = append(added, a)
			continue
		}
		is, ok := ids.Called(was.Home(a.Path))
		if _, _, there := ids.Find(is); ok && there && is != a.Path {
			dropped = append(dropped, amend.Dropped{Branch: a, Why: fmt.Sprintf("it is %s of the policy", is)})
			continue
		}
		up := a.Path.Parent()
		is, ok = at[up]
		if !ok {
			is, ok = ids.Called(was.Home(up))
		}
		if !ok {
			dropped = append(dropped, amend.Dropped{Branch: a, Why: fmt.Sprintf("what was %s is there no more", up)})
			continue
		}
		at[a.Path] = is.Join(a.Path.Base())
		a.Path = at[a.Path]
		added = append(added, a)
	}
	with, err := amend.Keep(x.spec, qdisc.Kinds(), added)
	if err == nil {
		x.lay(with)
		x.dropped = append(dropped, x.dropped...)
	}
	return err
}

// lay makes the target what a policy with branches added is.
func (x *Target) lay(with amend.Extended) {
	x.Tree, x.added, x.dropped = with.Tree, with.Kept, with.Dropped
}

// Delegations are the branches of a tree that are delegated.
func Delegations(t *hierarchy.Tree) (all []record.Delegated) {
	for b := range t.All() {
		if len(b.Delegate) > 0 {
			all = append(all, record.Delegated{Path: b.Path, To: b.Delegate})
		}
	}
	return all
}

// tellAdded says what becomes of delegations and added branches. What
// stays as it is is for plan alone.
func (m *Machine) tellAdded(ctx context.Context, x *Target, all bool) {
	m.tellDropped(x)
	for _, d := range x.next.Delegated {
		for _, to := range d.To {
			user := bind.Binding{Kind: bind.User, Name: string(to)}
			if _, ok := UID(to); !ok {
				m.Warnf(d.Path, "%s is delegated to %s, who is no user of this machine%s", d.Path, words.Printable(string(to)), strings.ReplaceAll(MayMean(ctx, x.Binder, user), user.Kind.String()+":", ""))
			}
		}
	}
	if !all {
		return
	}
	for _, a := range x.added {
		m.Notef(a.Path, "%s, %s, stays", a.Path, a.Origin())
	}
	was := map[hierarchy.Path]string{}
	for _, d := range x.Record.Delegated {
		was[d.Path] = d.Names()
	}
	for _, d := range x.next.Delegated {
		if was[d.Path] != d.Names() {
			m.Notef(d.Path, "%s is delegated to %s", d.Path, words.Printable(d.Names()))
		}
		delete(was, d.Path)
	}
	for _, d := range x.Record.Delegated {
		if _, gone := was[d.Path]; gone {
			m.Notef(d.Path, "%s is delegated to nobody any more", d.Path)
		}
	}
}

// tellDropped says which added branches go.
func (m *Machine) tellDropped(x *Target) {
	for _, d := range x.dropped {
		m.Warnf(d.Path, "%s, %s, goes: %s", d.Path, d.Origin(), d.Why)
	}
}

// Petitioner is who asks for something through the agent.
type Petitioner struct {
	UID   uint32
	Homes []hierarchy.Path // the branches that it runs in: several where its threads are in different ones
}

// DeniedError says that somebody asked for what is not delegated to them.
type DeniedError struct{ Err error }

func (e DeniedError) Error() string { return e.Err.Error() }
func (e DeniedError) Unwrap() error { return e.Err }

// held refuses what lies outside of a branch that the petitioner runs in.
func (w *Petitioner) held(p hierarchy.Path) error {
	for _, home := range w.Homes {
		if !p.Below(home) {
			return DeniedError{fmt.Errorf("%s: process is in branch %s, from where programs go only to that branch and below", p, home)}
		}
	}
	return nil
}

// MayEnter refuses a branch that the petitioner may not start programs in. Root may: the
// cgroups' files are its own.
func (w *Petitioner) MayEnter(r *record.Record, p hierarchy.Path) error {
	if w.UID == 0 {
		return w.held(p)
	}
	_, _, err := w.base(r, p)
	return err
}

// base is the branch at or above p up to which the petitioner may divide it: given, the
// uppermost that is delegated to it, but none above one that it runs in. Nothing is
// delegated to root: one that comes here is one that may not do it by itself.
func (w *Petitioner) base(r *record.Record, p hierarchy.Path) (base, given hierarchy.Path, err error) {
	if err := w.held(p); err != nil {
		return "", "", err
	}
	for _, d := range r.Delegated {
		if !p.Below(d.Path) || given != "" && !given.Below(d.Path) {
			continue
		}
		if slices.ContainsFunc(d.To, func(to bind.Delegate) bool { id, ok := UID(to); return ok && id == w.UID }) {
			given = d.Path
		}
	}
	switch {
	case given == "" || w.UID == bind.OverflowUID:
		return "", "", DeniedError{fmt.Errorf("%s is not delegated to user %d", p, w.UID)}
	}
	base = given
	for _, home := range w.Homes { // above p all of them, and so one above the other
		if home.Below(base) {
			base = home
		}
	}
	return base, given, nil
}

// amend changes the branches that were added to an interface. Edit sets tree and
// added of a target; the rest is that of apply, with the policy that was applied last.
func (m *Machine) amend(ctx context.Context, what string, path hierarchy.Path, edit func(*Target) error) error {
	unlock, err := m.lock(ctx, what+" "+string(path))
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.confirmed(); err != nil {
		return err
	}
	return m.edit(ctx, path.Interface(), nil, edit)
}

// edit is amend for who holds the lock. Where no policy is applied, base is what one would
// say; nil: then there is nothing to edit.
func (m *Machine) edit(ctx context.Context, iface string, base func(*Interface) (*hierarchy.Spec, error), edit func(*Target) error) error {
	s, err := m.Interface(iface, "")
	if err != nil {
		return err
	}
	x := &Target{change: change{Interface: s, amends: true}}
	defer release([]*Target{x})
	r, file, binding := s.Record, s.Record.Policy, s.Record.Binding
	if file == "" && base != nil {
		file, binding = record.NoPolicy, "auto"
		x.spec, err = base(s)
	} else if file == record.NoPolicy { // nobody else makes a tree again that was lost
		x.spec, err = m.Store.Spec(r)
	} else if x.spec, err = m.base(ctx, x); err != nil {
		return err
	}
	if err == nil {
		err = edit(x)
	}
	if err == nil {
		err = m.settle(ctx, file, binding, x)
	}
	if err != nil {
		return err
	}
	if r.Policy == "" {
		x.next.Spec = x.spec
	}
	if x.Blind != nil {
		return x.Blind
	}
	if err := m.apply(ctx, []*Target{x}); err != nil {
		return err
	}
	m.tellPending(ctx, x.Interface, slices.DeleteFunc(x.pending, func(p resolve.Pending) bool {
		return slices.ContainsFunc(r.Bindings, func(b record.Binding) bool { return b.Binding == p.Binding })
	}))
	return nil
}

// base is what the policy says that is in force, of which the kernel must have a tree. What
// that has lost, as where somebody was killed who changed it, is put back with the change.
func (m *Machine) base(ctx context.Context, x *Target) (*hierarchy.Spec, error) {
	if _, err := x.entry(hierarchy.Path(x.Record.Interface).Join(hierarchy.RestName)); err != nil {
		return nil, err // there is always one, if there is a tree
	}
	s, err := x.Queues(ctx)
	if err != nil {
		return nil, err
	}
	if root := x.On(s).Root; !root.Ours() {
		return nil, TreeLost(x.Record, root)
	}
	return m.Store.Spec(x.Record)
}

// Add makes a branch below another one. Without a petitioner root asks.
func (m *Machine) Add(ctx context.Context, a amend.Branch, who *Petitioner) error {
	if err := a.Check(); err != nil {
		return err
	}
	parent := a.Path.Parent()
	return m.amend(ctx, "add", a.Path, func(x *Target) error {
		r := x.Record
		base := hierarchy.Path("")
		if who != nil {
			var given hierarchy.Path
			var err error
			if base, given, err = who.base(r, parent); err != nil {
				return err
			}
			if err := amend.Room(r.Added, given, a.Path); err != nil {
				return err
			}
		}
		if err := x.CheckPath(parent); err != nil {
			return err
		}
		if _, _, ok := r.IDs.Find(a.Path); ok {
			return fmt.Errorf("%s is there already", a.Path)
		}
		with, err := amend.Extend(x.spec, qdisc.Kinds(), append(slices.Clone(r.Added), a))
		if err != nil {
			return err
		}
		if len(with.Dropped) > 0 { // the record is of another policy than the spec
			return fmt.Errorf("%s: %s", with.Dropped[0].Path, with.Dropped[0].Why)
		}
		if who != nil {
			before, err := amend.Extend(x.spec, qdisc.Kinds(), r.Added)
			if err != nil {
				return err
			}
			if err := amend.Fits(before.Tree, with.Tree, base, a.Path); err != nil {
				return err
			}
		}
		x.lay(with)
		return nil
	})
}

// CheckPath is the error of a path that no branch has, nil for the interface's own.
func (x *Interface) CheckPath(path hierarchy.Path) error {
	if path == hierarchy.Path(x.Record.Interface) {
		return nil
	}
	if _, _, ok := x.Record.IDs.Find(path); ok {
		return nil
	}
	_, err := x.entry(path)
	return err
}

// Remove takes a branch away that was added. Without a petitioner root asks.
func (m *Machine) Remove(ctx context.Context, path hierarchy.Path, who *Petitioner) error {
	return m.amend(ctx, "remove", path, func(x *Target) error {
		r := x.Record
		if who != nil {
			if _, _, err := who.base(r, path.Parent()); err != nil {
				return err
			}
		}
		i := slices.IndexFunc(r.Added, func(a amend.Branch) bool { return a.Path == path })
		if i < 0 {
			if err := x.CheckPath(path); err != nil {
				return err
			}
			return fmt.Errorf("%s was not added, it is the policy's: change %s and apply it", path, r.PolicyName())
		}
		if who != nil && r.Added[i].By == 0 {
			return DeniedError{fmt.Errorf("%s was added by root", path)}
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
		h, err := x.Binder.Homes()
		if err != nil {
			return err
		}
		gone, err := h.Remove(r.IDs.Home(path))
		if err != nil {
			return err
		}
		if !gone {
			return fmt.Errorf("%s: processes live in it: end them, or `vifshape attach` them to another branch", path)
		}
		with, err := amend.Extend(x.spec, qdisc.Kinds(), slices.Delete(slices.Clone(r.Added), i, i+1))
		x.Tree, x.added = with.Tree, with.Kept
		return err
	})
}
