package shaper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/link"
)

// PodPlace is where a pod is.
type PodPlace struct {
	ID      string
	Paths   []hierarchy.Path // its branches, one for each shaped interface that has one for it
	Remarks []string         // what is not as its author would like
}

// TellPods notes pods that run and the ids of others that have ended, and binds what that takes:
// when it returns, what the pods send is in their branches. It tells where those are that run, all
// of them where none is given. A ceiling of a pod becomes a limit on it, which goes when it ends.
// What the sockets of one that has ended still send is its branch's as long as its interfaces are
// there, and its limit's. To let go of what has gone is left to the next [Machine.Rebind] and
// [Machine.KeepLimits].
func (m *Machine) TellPods(ctx context.Context, run []amend.Pod, gone []string) (places []PodPlace, err error) {
	unlock, err := m.lock(ctx, "pods")
	if err != nil {
		return nil, err
	}
	defer unlock()
	all, err := m.Store.Pods()
	if err != nil {
		return nil, err
	}
	for i := range all {
		all[i].Ended = all[i].Ended || slices.Contains(gone, all[i].ID)
	}
	for _, r := range run {
		i := slices.IndexFunc(all, func(p record.Pod) bool { return p.ID == r.ID })
		if i < 0 {
			i, all = len(all), append(all, record.Pod{})
		}
		all[i] = record.Pod{Pod: r, Links: all[i].Links}
	}
	if len(run)+len(gone) > 0 {
		if err := m.Store.SavePods(all); err != nil {
			return nil, err
		}
	}
	shaped, err := m.shapedRecords()
	if err != nil {
		return nil, err
	}
	var errs []error
	var waits []resolve.Pending
	if len(run) > 0 {
		var ids []string
		for _, r := range run {
			ids = append(ids, r.ID)
		}
		for _, r := range shaped {
			if slices.ContainsFunc(r.Bindings, func(b record.Binding) bool { return b.Binding.Kind == bind.Pod }) {
				done, err := m.bindPods(ctx, r.Interface, ids)
				if err != nil && !slices.ContainsFunc(run, func(p amend.Pod) bool { return resolve.Place(&p.RunningPod, r.Branches()).Branch != nil }) {
					m.Warnf(hierarchy.Path(r.Interface), "%v", err)
					err = nil // no branch of theirs is on it
				}
				if errs = append(errs, err); done != nil {
					waits = append(waits, done.Pending...)
				}
			}
		}
		changed, failed, err := m.keepPods(ctx, all, shaped, ids)
		errs = append(errs, err)
		for _, id := range ids {
			errs = append(errs, failed[id])
		}
		if changed {
			if shaped, err = m.shapedRecords(); err != nil {
				return nil, err
			}
		}
	} else if len(gone) == 0 {
		run = running(all)
	}
	receives, err := m.receivePods(run, shaped)
	if err != nil {
		return nil, err
	}
	other := m.otherCeilings(run)
	for i := range run {
		at := placeOf(&run[i], shaped, receives)
		if other != "" && run[i].Capped() {
			at.Remarks = append(at.Remarks, other)
		}
		for _, w := range waits { // of a pod that is not there
			if w.Binding.Kind == bind.Pod && strings.HasPrefix(w.Reason, run[i].String()+": ") {
				at.Remarks = append(at.Remarks, w.Reason)
			}
		}
		places = append(places, at)
	}
	return places, errors.Join(errs...)
}

// running are the pods that have not ended.
func running(all []record.Pod) []amend.Pod {
	var run []amend.Pod
	for _, p := range all {
		if !p.Ended {
			run = append(run, p.Pod)
		}
	}
	return run
}

// unlessOver are pods without those that have ended with all of their interfaces, and of whom
// nothing waits any more: who takes a branch away waits for that, and all others for him.
func (m *Machine) unlessOver(all []record.Pod) ([]record.Pod, error) {
	if len(running(all)) == len(all) {
		return all, nil
	}
	links, err := link.List(m.Conn)
	if err != nil {
		return nil, err
	}
	there := map[uint32]bool{}
	for _, l := range links {
		there[uint32(l.Index)] = true
	}
	waits, err := m.queuedPods()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(all), func(p record.Pod) bool {
		return p.Ended && !waits[p.ID] && !slices.ContainsFunc(p.Links, func(l resolve.Link) bool { return there[l.Index] })
	}), nil
}

// queuedPods are those of whom packets are in the queue of a limit, by their ids.
func (m *Machine) queuedPods() (map[string]bool, error) {
	records, err := m.limitedRecords()
	if err != nil {
		return nil, err
	}
	all := map[string]bool{}
	for _, r := range records {
		of := map[hierarchy.ClassID]string{}
		for _, b := range r.Added {
			if _, class, ok := r.Leaf(b.Path); ok && b.Pod != "" {
				of[class] = b.Pod
			}
		}
		if len(of) == 0 {
			continue
		}
		d, _, err := m.Device(r.Interface)
		if errors.As(err, new(*link.NotFoundError)) {
			continue // and so have its queues
		}
		if err != nil {
			return nil, err
		}
		sends, err := d.Stats()
		if err != nil {
			return nil, err
		}
		receives, err := d.Receiver().Stats()
		if err != nil {
			return nil, err
		}
		for _, s := range append(sends, receives...) {
			if pod := of[s.Class]; pod != "" && s.QLen > 0 {
				all[pod] = true
			}
		}
	}
	return all, nil
}

// leadTo notes the interfaces that lead to pods, by the pods' ids.
func (m *Machine) leadTo(links map[string][]resolve.Link) error {
	if len(links) == 0 {
		return nil
	}
	all, err := m.Store.Pods()
	if err != nil {
		return err
	}
	changed := false
	for i := range all {
		if now := links[all[i].ID]; len(now) > 0 && !slices.Equal(now, all[i].Links) {
			all[i].Links, changed = now, true
		}
	}
	if changed {
		err = m.Store.SavePods(all)
	}
	return err
}

// bindPods brings what is bound of some pods into line with the interface's record. However many
// others there are, it looks at these alone. Of an interface that is not there it does nothing.
func (m *Machine) bindPods(ctx context.Context, iface string, ids []string) (*resolve.Resolution, error) {
	x, err := m.Interface(iface, "")
	if errors.As(err, new(*link.NotFoundError)) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	if err := x.stands(hierarchy.ID(hierarchy.RootMinor)); err != nil {
		return nil, err
	}
	if err := x.Keep(); err != nil {
		return nil, err
	}
	r, err := x.Binder.ResolvePods(ctx, x.Record.Branches(), ids)
	if err != nil {
		return nil, err
	}
	if err := m.leadTo(r.Links); err != nil {
		return nil, err
	}
	targets := make([]bind.Target, len(r.Bound))
	for i, b := range r.Bound {
		targets[i] = b.Target
	}
	c := &change{Interface: x.of(x.Binder.SteadyOf(targets)), next: x.Record, amends: true}
	if c.before, err = c.Kernel.Read(ctx); err != nil {
		return nil, err
	}
	want := c.before
	want.Bound = r.Bound
	c.toward(want)
	return r, m.carry(ctx, c)
}

// shapedRecords are those of interfaces that are there and that a policy shapes.
func (m *Machine) shapedRecords() ([]*record.Record, error) {
	all, err := m.records(func(r *record.Record) bool { return r.Policy != "" && r.Policy != record.NoPolicy })
	return slices.DeleteFunc(all, func(r *record.Record) bool {
		_, err := link.Find(m.Conn, r.Interface)
		return errors.As(err, new(*link.NotFoundError))
	}), err
}

// receivePods says by name which interfaces receive by their policies, so that a pod may have a
// ceiling there: it alone does not have all that a node receives go through a tree. Nil: no
// pod has one.
func (m *Machine) receivePods(pods []amend.Pod, shaped []*record.Record) (map[string]bool, error) {
	if !slices.ContainsFunc(pods, func(p amend.Pod) bool { return !p.Down.IsZero() }) {
		return nil, nil
	}
	receives := map[string]bool{}
	for _, r := range shaped {
		s, err := m.Store.Spec(r)
		if err != nil {
			return nil, err
		}
		receives[r.Interface] = s.Ingress != nil
	}
	return receives, nil
}

// placeOf is where a pod is on interfaces, of which some receive.
func placeOf(p *amend.Pod, shaped []*record.Record, receives map[string]bool) PodPlace {
	at := PodPlace{ID: p.ID}
	var denied []string
	for _, r := range shaped {
		x := resolve.Place(&p.RunningPod, r.Branches())
		if x.Branch != nil {
			at.Paths = append(at.Paths, x.Branch.Path)
		}
		if x.Denied != "" {
			denied = append(denied, x.Denied)
		}
	}
	if len(denied) == len(shaped) { // the branch may be on one of several
		at.Remarks = append(at.Remarks, slices.Compact(denied)...)
	}
	if holds := func(r *record.Record) bool { return receives[r.Interface] }; !p.Down.IsZero() && len(shaped) > 0 && !slices.ContainsFunc(shaped, holds) {
		at.Remarks = append(at.Remarks, fmt.Sprintf("%s has a bandwidth for what it receives, to which it is not held: no policy here has ingress", p))
	}
	if p.Capped() && len(shaped) == 0 {
		at.Remarks = append(at.Remarks, fmt.Sprintf("%s has a bandwidth of its own, and no interface is shaped here", p))
	}
	return at
}

// otherCeilings says who else holds pods to the ceilings of their own, if any has one.
func (m *Machine) otherCeilings(pods []amend.Pod) string {
	if !slices.ContainsFunc(pods, func(p amend.Pod) bool { return p.Capped() }) {
		return ""
	}
	links, err := link.List(m.Conn)
	i := slices.IndexFunc(links, func(l link.Link) bool { return strings.HasPrefix(l.Name, "bwp") && l.Kind == "ifb" })
	if err != nil || i < 0 {
		return ""
	}
	return fmt.Sprintf("the CNI plugin bandwidth holds pods to the same annotations (%s is its): take it out of the CNI configuration", links[i].Name)
}

// podsOver says whether pods that have ended are over by now, and whether some will be.
func (m *Machine) podsOver() (over, some bool, err error) {
	all, err := m.Store.Pods()
	if err != nil {
		return false, false, err
	}
	left, err := m.unlessOver(all)
	return err == nil && len(left) < len(all), len(running(all)) < len(all), err
}

// KeepPods brings the limits on pods that have a ceiling of their own into line with what runs and
// with the policies: a policy may have given a pod another branch. Of pods that are over nothing is
// known any more. The caller holds the lock.
func (m *Machine) KeepPods(ctx context.Context) error {
	all, err := m.Store.Pods()
	if err != nil {
		return err
	}
	left, err := m.unlessOver(all)
	if err != nil {
		return err
	}
	shaped, err := m.shapedRecords()
	if err != nil {
		return err
	}
	_, failed, err := m.keepPods(ctx, left, shaped, nil)
	for _, id := range slices.Sorted(maps.Keys(failed)) {
		m.Warnf("", "%v", failed[id])
	}
	if err == nil && len(left) < len(all) { // else they are tried again
		err = m.Store.SavePods(left)
	}
	return err
}

// keepPods is KeepPods with what runs and the records of what is shaped, and says whether these
// may have become others. It makes the limits of the pods with these ids, of all where that is nil,
// and says by id what keeps it from one: that concerns nobody else.
//
// A limit on a pod that has ended stays as it is while that is not over, or becomes that of one
// that runs and is called the same.
func (m *Machine) keepPods(ctx context.Context, all []record.Pod, shaped []*record.Record, ids []string) (changed bool, failed map[string]error, err error) {
	now := running(all)
	receives, err := m.receivePods(now, shaped)
	if err != nil {
		return false, nil, err
	}
	down := func(p *amend.Pod, iface string) (none hierarchy.Amount) {
		if receives[iface] {
			return p.Down
		}
		return none
	}
	capped := func(p *amend.Pod, iface string) bool { return !p.Up.IsZero() || !down(p, iface).IsZero() }
	stale := map[hierarchy.Path]bool{}
	type limit struct {
		pod  string
		down hierarchy.Amount
	}
	missing := map[limit][]string{} // interfaces
	for _, r := range shaped {
		there := map[string]bool{}
		for _, b := range r.Added {
			if b.Pod == "" {
				there[b.Limit] = there[b.Limit] || b.Limit != "" // somebody else's, which stays
				continue
			}
			i := slices.IndexFunc(now, func(p amend.Pod) bool { return p.Limit() == b.Limit })
			switch {
			case i >= 0 && capped(&now[i], r.Interface) && b.Path.Parent() == podParent(&now[i], r, b.Path):
				there[b.Limit] = b.Pod == now[i].ID && b.Ceil == now[i].Up && b.Down == down(&now[i], r.Interface)
			case i < 0 && slices.ContainsFunc(all, func(p record.Pod) bool { return p.ID == b.Pod }):
			default:
				stale[b.Path] = true
			}
		}
		for i := range now {
			p := &now[i]
			if capped(p, r.Interface) && !there[p.Limit()] && (ids == nil || slices.Contains(ids, p.ID)) {
				l := limit{p.ID, down(p, r.Interface)}
				missing[l] = append(missing[l], r.Interface)
			}
		}
	}
	if len(stale) > 0 {
		err = m.takeEach(ctx, func(b amend.Branch) bool { return stale[b.Path] })
	}
	failed = map[string]error{}
	for i := range now {
		p := &now[i]
		for _, most := range []hierarchy.Amount{p.Down, {}} {
			on := missing[limit{p.ID, most}]
			delete(missing, limit{p.ID, most})
			if len(on) == 0 {
				continue
			}
			changed = true
			b, err := bind.Parse(p.Limit())
			if err == nil {
				_, err = m.limitOn(ctx, &Limit{Branch: amend.Branch{Limit: p.Limit(), Ceil: p.Up, Down: most, Bind: []bind.Binding{b}, Pod: p.ID}, On: on})
			}
			if err != nil {
				failed[p.ID] = errors.Join(failed[p.ID], fmt.Errorf("%s is not held to the bandwidth of its own: %w", p, err))
			}
		}
	}
	return changed || len(stale) > 0, failed, err
}

// podParent is the branch below which a limit on a pod belongs: the one that it would be in without.
func podParent(p *amend.Pod, r *record.Record, limit hierarchy.Path) hierarchy.Path {
	others := slices.DeleteFunc(r.Branches(), func(b resolve.Branch) bool { return b.Path == limit })
	at := hierarchy.Path(r.Interface)
	if x := resolve.Place(&p.RunningPod, others); x.Branch != nil {
		at = x.Branch.Path
	}
	if at.Base() == hierarchy.RestName {
		at = at.Parent()
	}
	return at
}
