package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"

	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Do implements [hierarchy.Part] for steps on *hierarchy.Hook and
// *hierarchy.Bound.
//
// A new classifier gets the bindings of the steps that follow before it goes onto
// the hook, and takes the place of an older one there without a packet between
// them; when the way changes, the old one's bindings go after that. Every binding
// changes at once and alone, with nft all do together at the end; when Do returns,
// open sockets follow the changes too.
// Bindings may also come before the classifier that they are for.
func (b *Binder) Do(ctx context.Context, steps []hierarchy.Step) (done int, err error) {
	on, err := b.inForce()
	if err != nil {
		return 0, b.wrap(err)
	}
	if on == nil {
		if err := b.choose(); err != nil {
			return 0, err
		}
		on = b.way
	}
	d := &doing{Binder: b, on: on, rules: -1}
	b.tags.Others = map[string]bool{}
	for i, s := range steps {
		if n, ok := s.New.(*hierarchy.Bound); ok && n != nil && n.Target.Kind == bind.TargetCgroup {
			b.tags.Others[n.Target.Name] = true
		}
		if hook(s.Old).Way != hook(s.New).Way {
			d.leaves = i
		}
		_, matched := s.Item().(*hierarchy.Matched)
		switch had, has := hook(s.Old).Match, hook(s.New).Match; {
		case had != 0 && has == 0:
			d.unmatched, d.rules = true, len(steps)-1
		case (matched || had != has) && !d.unmatched:
			d.rules = i
		}
	}
	defer func() { err = errors.Join(err, b.wrap(d.flush())) }()
	for i, s := range steps {
		if err := ctx.Err(); err != nil {
			return i, err
		}
		switch item := s.Item().(type) {
		case *hierarchy.Hook:
			if d.unmatched {
				if err := b.rules.Change(nil, nil); err != nil {
					return i, b.wrap(fmt.Errorf("match: %w", err))
				}
			}
			if err := d.hook(hook(s.Old), hook(s.New), steps[i+1:]); err != nil {
				return i, b.wrap(err)
			}
			b.last = b.called(hook(s.New).Way)
		case *hierarchy.Bound:
			if err := d.bound(s, i); err != nil {
				return i, b.wrap(fmt.Errorf("bind %s to %s: %w", item.Target, item.Class, err))
			}
		case *hierarchy.Matched:
		default:
			return i, b.wrap(fmt.Errorf("step on a %T is not the classifier's", item))
		}
		if i == d.rules {
			if err := d.match(steps[:i+1]); err != nil {
				return i, b.wrap(fmt.Errorf("match: %w", err))
			}
		}
	}
	return len(steps), nil
}

// hook is the classifier that one side of a step names, the zero Hook for none.
func hook(i hierarchy.Item) hierarchy.Hook {
	if h, ok := i.(*hierarchy.Hook); ok && h != nil {
		return *h
	}
	return hierarchy.Hook{}
}

// doing is one call of Do.
type doing struct {
	*Binder
	on     *choice // that bindings are for at this point
	leaves int     // the last step that changes the way
	rules  int     // the last step for the matches, which are changed all at once with it; -1: there is none
	// unmatched says that the program of the matches goes. They go before anything is bound,
	// and it after that: what is bound to a rest is kept from them, and only it knows how.
	unmatched bool
	leaving   []bind.Target // whose bindings go with the former way
}

func (d *doing) hook(was, next hierarchy.Hook, ahead []hierarchy.Step) error {
	to := d.called(next.Way)
	if next.Receive == 0 {
		if err := d.flows.Detach(); err != nil {
			return err
		}
	}
	if to == nil {
		return d.unhook(d.called(was.Way), nil)
	}
	if was.Way != next.Way || was.Version != next.Version {
		if err := d.prepare(to); err != nil {
			return err
		}
		d.on = to
		err := to.classifier.Attach(next.Way, next.Version, was.Way != bind.WayNone, func() { d.bindAhead(ahead) })
		if err != nil && len(d.tried) > 0 { // only here it turned out that the last way is none
			err = fmt.Errorf("%w; %w", err, d.tried)
		}
		if err != nil {
			return err
		}
	}
	if next.Match != 0 && next.Match != was.Match { // before anything is bound that stays
		if err := way.Known(next.Match); err != nil {
			return err
		}
		if err := d.Binder.rules.Prepare(d.known); err != nil {
			return err
		}
	}
	if next.Receive != 0 {
		if err := d.receive(next.Receive, next.Flows); err != nil {
			return err
		}
	}
	return d.unhook(d.called(was.Way), to)
}

// match brings the matches into force that are there when steps are done. Sockets that are
// known follow their bindings before: what has no binding yet is held against all of the
// matches.
func (d *doing) match(steps []hierarchy.Step) error {
	if err := d.flush(); err != nil {
		return err
	}
	_, now, err := d.Binder.rules.Read()
	if err != nil {
		return err
	}
	for _, s := range steps {
		if h := hook(s.New); h != (hierarchy.Hook{}) && h.Match == 0 && hook(s.Old).Match != 0 || s.Action == hierarchy.Delete && hook(s.Old).Match != 0 {
			if err := d.Binder.rules.Detach(); err != nil {
				return err
			}
			return d.follow()
		}
		m, ok := s.Item().(*hierarchy.Matched)
		if !ok {
			continue
		}
		now = slices.DeleteFunc(now, func(x hierarchy.Matched) bool { return x.ID == m.ID })
		if s.Action != hierarchy.Delete {
			now = append(now, *m)
		}
	}
	if err := d.Binder.rules.Change(now, d.known); err != nil {
		return err
	}
	return d.follow()
}

// follow has the programs of the receiving side go by the matches that are there now, where
// they go by others.
func (d *doing) follow() error {
	is, flows, err := d.received()
	if err != nil || is != bpf.Unfinished {
		return err
	}
	return d.receive(way.Version, flows)
}

// receive puts the programs of the receiving side where they belong.
func (d *doing) receive(version, flows uint32) error {
	carrier, err := d.cfg.Receiver()
	if err == nil && carrier == 0 {
		err = errors.New("the interface that carries the tree for what is received is not there")
	}
	if err == nil {
		err = d.flows.Attach(d.egress, d.Binder.rules, version, carrier, flows)
	}
	if err != nil {
		return fmt.Errorf("ingress: %w", err)
	}
	return nil
}

// bindAhead carries out the bindings that steps will ask for, so that they are in
// force from the first packet. What fails here fails again in its own step.
func (d *doing) bindAhead(steps []hierarchy.Step) {
	for _, s := range steps {
		if n, ok := s.New.(*hierarchy.Bound); ok && n != nil {
			_ = d.put(n)
		}
	}
}

// unhook removes what a way had and the next one does not replace.
func (d *doing) unhook(was, next *choice) error {
	var errs []error
	for _, c := range []way.Classifier{d.filter, d.egress, d.tables} {
		if next == nil || c != next.classifier {
			errs = append(errs, c.Detach())
		}
	}
	switch {
	case was == nil:
	case next != nil && was.store == next.store: // bindings stay, but for these
		for _, target := range d.leaving {
			if !d.tags.Others[target.Name] {
				errs = append(errs, d.remove(was, target))
			}
		}
	default:
		errs = append(errs, was.store.Clear())
	}
	return errors.Join(errs...)
}

func (d *doing) bound(s hierarchy.Step, i int) error {
	target := s.Item().(*hierarchy.Bound).Target
	if s.Action == hierarchy.Delete {
		if err := d.release(target); err != nil {
			return err
		}
		if i < d.leaves {
			if target.Kind == bind.TargetCgroup {
				d.leaving = append(d.leaving, target)
			}
			return nil // goes when the way does, so that no packet is without a class until then
		}
	}
	if _, err := d.hierarchy(d.on); err != nil {
		return err
	}
	if n, ok := s.New.(*hierarchy.Bound); ok && n != nil {
		if err := d.put(n); err != nil {
			return err
		}
		return d.hold(target)
	}
	if o, ok := s.Old.(*hierarchy.Bound); !ok || o == nil {
		return errors.New("the step holds no binding")
	}
	return d.remove(d.on, target)
}

// hold attaches the programs that a bound cgroup or interface has beside the classifier.
func (d *doing) hold(target bind.Target) error {
	switch target.Kind {
	case bind.TargetCgroup:
		t, err := d.hierarchy(d.on)
		if err != nil {
			return err
		}
		return d.told(d.guard.Put(t, target.Name))
	case bind.TargetLink:
		return d.told(d.marker.Put(target.Name))
	}
	return nil
}

// flush brings into force what was not so at once.
func (d *doing) flush() error {
	left, err := d.on.store.Flush()
	for _, why := range left {
		d.cfg.Warn(why)
	}
	return err
}

func (d *doing) told(why string, err error) error {
	if why != "" {
		d.cfg.Warn(why)
	}
	return err
}

// release takes these programs away.
func (d *doing) release(target bind.Target) error {
	switch target.Kind {
	case bind.TargetCgroup:
		t, err := d.hierarchy(d.on)
		if err != nil {
			return err
		}
		return d.guard.Take(t, target.Name)
	case bind.TargetLink:
		return d.marker.Take(target.Name)
	}
	return nil
}

// put brings a binding into force.
func (d *doing) put(x *hierarchy.Bound) error {
	if x.Class.Major() != hierarchy.Major || x.Class.Minor() == 0 {
		return errors.New("it is no class of ours; minor number 0 would be HTB's unshaped queue")
	}
	k, err := d.key(d.on, x.Target)
	if err != nil {
		return err
	}
	class := x.Class
	if x.Stays {
		class |= way.Stays
	}
	if err := d.on.store.Put(k, class); err != nil {
		return err
	}
	delete(d.fresh, k.Path)
	return nil
}

func (d *doing) remove(w *choice, target bind.Target) error {
	k, err := d.key(w, target)
	if id, known := d.ids[target]; known && target.Kind == bind.TargetCgroup {
		k, err = way.Key{Kind: bind.TargetCgroup, ID: id, Path: target.Name}, nil // it may be another's by now
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the next Read shows what is left of it by its number
	}
	if err != nil {
		return err
	}
	return w.store.Remove(k)
}
