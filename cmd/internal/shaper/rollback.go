package shaper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/user"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/link"
)

// unset is the login uid of what no login has started (AUDIT_UID_UNSET, include/uapi/linux/audit.h).
const unset = "4294967295"

// now is the time of an apply, and who does it: whoever has logged in, as root does not say.
func now() (at time.Time, by string) {
	at = time.Now().UTC().Truncate(time.Millisecond)
	as := strconv.Itoa(os.Geteuid())
	who := as
	if b, err := os.ReadFile("/proc/self/loginuid"); err == nil {
		if id := strings.TrimSpace(string(b)); id != unset {
			who = id
		}
	}
	by = named(as)
	if who != as {
		by = named(who) + " as " + by
	} else if sudo := os.Getenv("SUDO_USER"); sudo != "" {
		by = sudo + " as " + by
	}
	return at, by
}

func named(uid string) string {
	if u, err := user.LookupId(uid); err == nil {
		return u.Username
	}
	return "uid:" + uid
}

// nobody begins the name of who went back because an apply was not confirmed.
const nobody = "nobody: "

// Entry is what an interface was, and when that began.
type Entry struct {
	Number  int // 0 is what it is now, 1 what it was before the last apply, and so on
	Record  *record.Record
	Changes hierarchy.Plan // from the one before to this; of bindings those of cgroups and users
}

// History is what an interface was, the latest first. An interface that is not there has none.
func (m *Machine) History(ctx context.Context, iface string) ([]Entry, error) {
	x, err := m.Interface(iface, "")
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	all, err := m.Store.History(x.Record)
	if err != nil || x.Record.Policy == "" {
		return nil, err
	}
	was := hierarchy.State{Device: iface}
	entries := make([]Entry, len(all))
	for i, r := range slices.Backward(all) {
		is, err := m.said(ctx, x, r)
		if err != nil {
			return nil, err
		}
		if i == len(all)-1 && r.Serial > 1 { // what was before it is not kept
			was = is
		}
		entries[i] = Entry{i, r, hierarchy.Diff(was, is)}
		was = is
	}
	return entries, nil
}

// said is the state that a record tells of.
func (m *Machine) said(ctx context.Context, x *Interface, r *record.Record) (hierarchy.State, error) {
	tree, err := m.Applied(r)
	d := x.Device
	if r.MTU != 0 { // else by what it is now
		d = d.WithMTU(r.MTU)
	}
	if err == nil {
		err = d.Settle(ctx, tree)
	}
	if err == nil && tree.Ingress != nil {
		err = d.Receiver().Settle(ctx, tree.Ingress)
	}
	if err != nil {
		return hierarchy.State{}, err
	}
	s := tree.State()
	s.Matched = tree.Matched()
	s.Hook = hierarchy.Hook{Way: r.Way, Version: way.Version}
	if in := tree.Ingress; in != nil {
		s.Hook.Receive, s.Hook.Flows = way.Version, in.Flows
	}
	if len(s.Matched) > 0 {
		s.Hook.Match = way.Version
	}
	for _, b := range r.Bound {
		if b.Target.Kind != bind.TargetNone {
			s.Bound = append(s.Bound, b)
		}
	}
	return s, nil
}

// Rollback goes back to what interfaces were, bindings of run time and branches that had been
// added included: number applies ago, 0 for the last one. Those are the interfaces that the
// last apply changed, where none are named, but for those that are not there. It is an apply
// itself: another one goes back to where this one began. What went back by itself already is
// not what 0 means: that would bring back what nobody confirmed. The caller closes the changes.
func (m *Machine) Rollback(ctx context.Context, ifaces []string, number int) (*Changes, error) {
	waits, err := m.Store.Unconfirmed()
	if err != nil {
		return nil, err
	}
	return m.rollback(ctx, waits, ifaces, number)
}

// Revoke is Rollback of the last apply where that is the one with an ID, and waits to be
// confirmed.
func (m *Machine) Revoke(ctx context.Context, id string) (*Changes, error) {
	waits, err := m.waiting(id)
	if err != nil {
		return nil, err
	}
	return m.rollback(ctx, waits, nil, 0)
}

// rollback is Rollback, unless an apply waited and does no more.
func (m *Machine) rollback(ctx context.Context, waits *record.Unconfirmed, ifaces []string, number int) (*Changes, error) {
	unlock, err := m.lock(ctx, "rollback")
	if err != nil {
		return nil, err
	}
	defer unlock()
	if waits != nil {
		if err := m.stillWaits(waits); err != nil {
			return nil, err
		}
	}
	named := len(ifaces) > 0
	if !named {
		if ifaces, err = m.lastApplied(); err != nil {
			return nil, err
		}
	}
	left := &Changes{}
	to := map[string]*record.Record{}
	for _, i := range ifaces {
		r, err := m.ago(i, number)
		no := (*link.NotFoundError)(nil)
		switch {
		case errors.As(err, &no) && !named:
			left.Absent = append(left.Absent, no)
		case err != nil:
			return nil, err
		default:
			to[i] = r
		}
	}
	if len(to) == 0 {
		return nil, left.NotThere()
	}
	for _, no := range left.Absent {
		m.Warnf(hierarchy.Path(no.Name), "%v; it is left out", no)
	}
	at, by := now()
	c, err := m.goBack(ctx, to, at, by)
	if err != nil {
		return nil, err
	}
	for _, iface := range slices.Sorted(maps.Keys(to)) {
		if !slices.ContainsFunc(c.Targets, func(x *Target) bool { return x.Tree.Port.Device == iface }) {
			m.Notef(hierarchy.Path(iface), "%s is as it was before it was shaped", iface)
		}
	}
	c.Absent = left.Absent
	return c, m.forgetUnconfirmed(slices.Collect(maps.Keys(to)))
}

// lastApplied are the interfaces that the last apply changed, under the names that they have
// now.
func (m *Machine) lastApplied() (last []string, err error) {
	names, err := m.Store.Interfaces()
	if err != nil {
		return nil, err
	}
	links, err := link.List(m.Conn)
	if err != nil {
		return nil, err
	}
	latest := &record.Record{}
	for _, n := range names {
		r, err := m.Store.Load(n)
		if err != nil {
			return nil, err
		}
		if l := r.Moved(links); l != nil {
			n = l.Name
		}
		switch {
		case r.Policy == "", r.Applied.IsZero(): // by limits
		case len(last) > 0 && r.Applied.Equal(latest.Applied):
			last = append(last, n)
		case len(last) == 0 || r.Boot > latest.Boot:
			latest, last = r, []string{n}
		}
	}
	if len(last) == 0 {
		return nil, errors.New("no policy is applied in this network namespace: there is nothing to go back from")
	}
	return last, nil
}

// ago is what an interface was so many applies ago; nil: not shaped.
func (m *Machine) ago(iface string, number int) (*record.Record, error) {
	x, err := m.Interface(iface, "")
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	if x.Record.Policy == "" {
		return nil, fmt.Errorf("%s is not shaped by vifshape: there is nothing to go back from", iface)
	}
	if number == 0 && strings.HasPrefix(x.Record.By, nobody) {
		return nil, fmt.Errorf("%s went back by itself at %s: `vifshape rollback --to 1 %[1]s` applies again what was not confirmed", iface, x.Record.Applied.Local().Format(time.TimeOnly))
	}
	number = max(number, 1)
	all, err := m.Store.History(x.Record)
	switch {
	case number < len(all): // whatever became of those before it
		return all[number], nil
	case err != nil:
		return nil, err
	case number == len(all) && all[number-1].Serial == 1:
		return nil, nil
	}
	return nil, fmt.Errorf("%s: of what it was before, %d are kept: `vifshape rollback --list %s` lists them", iface, len(all)-1, iface)
}

// goBack makes interfaces what records say, and those without one what they were before they
// were shaped, but for limits: all of them or none, as far as clearing has not begun. The
// caller holds the store's lock.
func (m *Machine) goBack(ctx context.Context, to map[string]*record.Record, at time.Time, by string) (_ *Changes, err error) {
	c := &Changes{m: m}
	defer func() {
		if err != nil {
			c.Close()
		}
	}()
	var clears []*clearing
	for _, iface := range slices.Sorted(maps.Keys(to)) {
		var x *Target
		if r := to[iface]; r != nil {
			x, err = m.former(ctx, iface, r)
		} else {
			x, err = m.limitsAlone(ctx, iface)
		}
		if err != nil {
			return nil, err
		}
		if x != nil {
			c.Targets = append(c.Targets, x)
			x.is(at, by)
			continue
		}
		gone, err := m.clearing(iface)
		if err != nil {
			return nil, err
		}
		defer gone.Close()
		clears = append(clears, gone)
	}
	if err := c.blind(); err != nil {
		return nil, err
	}
	for _, x := range c.Targets {
		m.tellPlan(ctx, x)
		m.tellAdded(ctx, x, to[x.Record.Interface] == nil)
		m.tellSince(x)
	}
	if err := m.apply(ctx, c.Targets); err != nil {
		return nil, err
	}
	changed := len(c.Targets) > 0
	var errs []error
	for _, x := range clears {
		did, err := m.clear(ctx, x)
		changed = changed || did
		errs = append(errs, err)
	}
	if err = errors.Join(errs...); err != nil && changed {
		err = PartlyError{err}
	}
	return c, err
}

// tellSince says what was made at run time since then, and goes, and which limits come again.
func (m *Machine) tellSince(x *Target) {
	same := func(now, then hierarchy.Path) bool { return x.Record.IDs.Home(now) == x.next.IDs.Home(then) }
	for _, a := range x.Record.Added {
		if slices.ContainsFunc(x.dropped, func(d amend.Dropped) bool { return d.Path == a.Path }) {
			continue // which is said already
		}
		if !slices.ContainsFunc(x.added, func(o amend.Branch) bool { return same(a.Path, o.Path) || a.Limit != "" && a.Limit == o.Limit }) {
			m.Warnf(a.Path, "%s, %s, goes", a.Path, a.Origin())
		}
	}
	for _, a := range x.added {
		if a.Limit != "" && limitOf(x.Record.Added, a.Limit) < 0 {
			m.Notef(a.Path, "%s, %s, is there again", a.Path, a.Origin())
		}
	}
	for _, b := range x.Record.Bindings {
		if b.AtRuntime && !slices.ContainsFunc(x.next.Bindings, func(o record.Binding) bool { return same(b.Path, o.Path) && o.Binding == b.Binding }) {
			m.Notef(b.Path, "%s: %v, bound at run time, goes", b.Path, b.Binding)
		}
	}
}

// former is an interface on the way back to a record.
func (m *Machine) former(ctx context.Context, iface string, r *record.Record) (*Target, error) {
	s, err := m.Interface(iface, r.Binding)
	if err != nil {
		return nil, err
	}
	x := &Target{change: change{Interface: s}, former: r}
	with := *r
	with.Added = slices.DeleteFunc(slices.Clone(r.Added), passed)
	for _, b := range s.Record.Added { // limits are no policy's: they stay as they are now
		if b.Limit == "" {
			continue
		}
		if i := limitOf(with.Added, b.Limit); i >= 0 {
			b.Path, with.Added[i] = with.Added[i].Path, b
		} else {
			with.Added = append(with.Added, b)
		}
	}
	err = m.settleAs(ctx, x, &with)
	if errors.As(err, new(amend.ProblemError)) { // there was no room for them
		err = m.settleAs(ctx, x, r)
	}
	if err != nil {
		s.Binder.Close()
		return nil, err
	}
	return x, nil
}

// UnconfirmedError says that an apply waits to be confirmed, and another one would hide what
// there is to go back to.
type UnconfirmedError struct{ *record.Unconfirmed }

func (e UnconfirmedError) Error() string {
	return fmt.Sprintf("%s waits to be confirmed: %s was applied by %s, and goes back at %s", e.Names(), (&record.Record{Policy: e.Policy}).PolicyName(), e.By, e.At.Format(time.TimeOnly))
}

// Remedy is what to type.
func (e UnconfirmedError) Remedy() string {
	return "`vifshape confirm` keeps what was applied, `vifshape rollback` goes back now"
}

// Unconfirmed is the apply that waits to be confirmed, as others are told of it; nil: none does.
func (m *Machine) Unconfirmed() (*UnconfirmedError, error) {
	u, err := m.Store.Unconfirmed()
	if err != nil || u == nil {
		return nil, err
	}
	return &UnconfirmedError{u}, nil
}

// confirmed refuses what would change trees while an apply waits.
func (m *Machine) confirmed() error {
	u, err := m.Unconfirmed()
	if err == nil && u != nil {
		err = *u
	}
	return err
}

// TellUnconfirmed says that an apply waits.
func (m *Machine) TellUnconfirmed() {
	if wait := (UnconfirmedError{}); errors.As(m.confirmed(), &wait) {
		m.Warnf("", "%v", wait)
		m.Hintf("", "%s", wait.Remedy())
	}
}

// unconfirmed applies what goes back unless it is confirmed. Who sees to that is there before
// anything changes.
func (m *Machine) unconfirmed(ctx context.Context, c *Changes, o ApplyOptions) error {
	if c.Empty() {
		m.Notef("", "the policy says what it said before: there is nothing to confirm")
		return m.apply(ctx, c.Targets)
	}
	u := &record.Unconfirmed{Before: map[string]uint32{}, Began: record.SinceBoot()}
	for _, x := range c.Targets {
		u.Before[x.Tree.Port.Device] = x.Record.Serial
		u.Policy, u.By = x.next.Policy, x.next.By
		x.waits = true
	}
	u.After(o.Confirm)
	err := m.Store.SetUnconfirmed(u)
	if err == nil {
		err = StartGuard(o.Watch())
	}
	if err == nil {
		err = m.apply(ctx, c.Targets)
	}
	for _, x := range c.Targets { // what failed and could not be put back goes back later
		iface := x.Tree.Port.Device
		if r, e := m.Store.Load(iface); e == nil && r.Serial == u.Before[iface] {
			delete(u.Before, iface)
		}
	}
	if err == nil && len(u.Before) == 0 {
		m.Notef("", "the policy says what it said before: there is nothing to confirm")
	}
	at, boot := u.At, u.Boot
	u.After(o.Confirm) // from now
	failed := m.Store.SetUnconfirmed(u)
	if record.Full(failed) { // then from when it began, as was written before
		u.At, u.Boot, failed = at, boot, nil
	}
	if err = errors.Join(err, failed); err != nil || len(u.Before) == 0 {
		return err
	}
	m.Notef("", "%s goes back at %s to what it was: %s", u.Names(), u.At.Format(time.TimeOnly), UnconfirmedError{u}.Remedy())
	return nil
}

// Confirm keeps the apply that waits for it and has an ID, whichever it is where that is empty.
func (m *Machine) Confirm(ctx context.Context, id string) error {
	was, err := m.waiting(id)
	if err != nil {
		return err
	}
	unlock, err := m.lock(ctx, "confirm")
	if err != nil {
		return err
	}
	defer unlock()
	if err := m.stillWaits(was); err != nil {
		return err
	}
	return m.Store.SetUnconfirmed(nil)
}

// waiting is the apply that waits and has an ID, whichever it is where that is empty.
func (m *Machine) waiting(id string) (*record.Unconfirmed, error) {
	u, err := m.Store.Unconfirmed()
	switch {
	case err != nil:
		return nil, err
	case u == nil:
		return nil, errors.New("no apply waits to be confirmed: it was confirmed, or went back, or was made without --confirm; `vifshape rollback --list` has what was applied")
	case id != "" && u.ID() != id:
		return nil, fmt.Errorf("that apply waits no more to be confirmed, and another one does, of %s; `vifshape rollback --list` has what was applied", u.Names())
	}
	return u, nil
}

// stillWaits is an error where an apply that waited does no more. The caller holds the store's lock.
func (m *Machine) stillWaits(was *record.Unconfirmed) error {
	is, err := m.Store.Unconfirmed()
	if err == nil && (is == nil || is.ID() != was.ID()) {
		err = over(was)
	}
	return err
}

// Outcome says what became of an apply that waited to be confirmed and does no more, in
// sentences. What cannot be read is left out.
func (m *Machine) Outcome(u *record.Unconfirmed) string {
	var all []string
	for _, iface := range slices.Sorted(maps.Keys(u.Before)) {
		r, err := m.Store.Load(iface)
		switch {
		case err != nil:
		case r.Policy == "" && u.Left() <= 0:
			all = append(all, iface+" was not confirmed in time, and is not shaped any more.")
		case r.Policy == "":
			all = append(all, iface+" is not shaped any more.")
		case strings.HasPrefix(r.By, nobody):
			all = append(all, iface+" was not confirmed in time, and is again what it was.")
		case r.Serial == u.Before[iface]+1:
			all = append(all, "What was applied to "+iface+" is kept.")
		default: // by a rollback: while it waited nothing else was applied
			all = append(all, iface+" is again what it was.")
		}
	}
	return strings.Join(all, " ")
}

// over is the error of what does not wait any more.
func over(u *record.Unconfirmed) error {
	return fmt.Errorf("%s waits no more to be confirmed: the time was over at %s, or somebody was faster; `vifshape rollback --list` has what is in force", u.Names(), u.At.Format(time.TimeOnly))
}

// overdue goes back from an apply that was not confirmed in time: each interface by itself, as
// one that cannot must not keep others cut off. The caller holds the store's lock. What cannot
// go back stays as it is, is said, and waits for nothing more, unless the caller has no rights
// to do it. Whoever calls did not ask for it, and does not interrupt it.
func (m *Machine) overdue(ctx context.Context) error {
	u, err := m.Store.Unconfirmed()
	if err != nil || u == nil || u.Left() > 0 {
		return err
	}
	ctx = context.WithoutCancel(ctx)
	at, policy := time.Now().UTC().Truncate(time.Millisecond), (&record.Record{Policy: u.Policy}).PolicyName()
	for _, iface := range slices.Sorted(maps.Keys(u.Before)) {
		did, err := m.putBack(ctx, iface, u.Before[iface], at, nobody+policy+" was not confirmed")
		switch {
		case NotPrivileged(err):
			return err
		case err != nil:
			m.Warnf("", "%s was not confirmed, and could not go back to what it was: %v", iface, err)
		case did:
			m.Warnf("", "%s was not confirmed, and is again what it was before %s", iface, policy)
		}
	}
	return m.Store.SetUnconfirmed(nil)
}

// putBack makes an interface what the record with a number says, 0 where it was not shaped.
// There is nothing to do where it was cleared, or where the apply was killed before it began.
func (m *Machine) putBack(ctx context.Context, iface string, serial uint32, at time.Time, by string) (did bool, err error) {
	r, err := m.Store.Load(iface)
	if err != nil || r.Policy == "" || r.Serial == serial {
		return false, err
	}
	links, err := link.List(m.Conn)
	if err != nil {
		return false, err
	}
	if l := r.Moved(links); l != nil {
		r = r.Renamed(l.Name)
	}
	all, err := m.Store.History(r)
	to := map[string]*record.Record{r.Interface: nil}
	switch i := slices.IndexFunc(all, func(r *record.Record) bool { return r.Serial == serial }); {
	case i >= 0: // whatever became of those before it
		to[r.Interface] = all[i]
	case err != nil:
		return false, err
	case serial != 0:
		return false, errors.New("the record of that is gone")
	}
	c, err := m.goBack(ctx, to, at, by)
	if err != nil {
		return false, err
	}
	c.Close()
	return true, nil
}

// forgetUnconfirmed has interfaces wait no more, nor those that are not shaped any more.
func (m *Machine) forgetUnconfirmed(ifaces []string) error {
	u, err := m.Store.Unconfirmed()
	if err != nil || u == nil {
		return err
	}
	for i := range u.Before {
		if r, err := m.Store.Load(i); slices.Contains(ifaces, i) || err == nil && r.Policy == "" {
			delete(u.Before, i)
		}
	}
	return m.Store.SetUnconfirmed(u)
}
