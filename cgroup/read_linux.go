package cgroup

import (
	"context"
	"errors"
	"io/fs"
	"slices"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/iface"
	"github.com/vifshape/vifshape/cgroup/netcls"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Read implements [hierarchy.Part]: it fills in Hook and Bound as they are.
//
// Path and From stay empty; the kernel does not hold them. A classifier of another
// version shows no bindings: it is replaced as a whole.
func (b *Binder) Read(ctx context.Context, s *hierarchy.State) error { return b.read(ctx, s, b.all) }

// read is Read with those that are bound.
func (b *Binder) read(ctx context.Context, s *hierarchy.State, each bindings) error {
	on, err := b.inForce()
	if err != nil {
		return b.wrap(err)
	}
	s.Hook, s.Bound, s.Matched = hierarchy.Hook{}, nil, nil
	if s.Hook.Match, s.Matched, err = b.rules.Read(); err != nil {
		return b.wrap(err)
	}
	if s.Hook.Receive, s.Hook.Flows, err = b.received(); err != nil || on == nil {
		return b.wrap(err)
	}
	s.Hook.Way, s.Hook.Version = on.name, b.is
	if b.beside {
		s.Hook.Version = 0 // they were left behind when the way was changed: they go when it is put in order
	}
	s.Bound, err = b.bound(ctx, on, each)
	slices.SortFunc(s.Bound, func(a, b hierarchy.Bound) int { return a.Target.Compare(b.Target) })
	return b.wrap(err)
}

// inForce is the way of the classifier that is on the interface, nil for none. It looks for
// what lies beside it, too.
func (b *Binder) inForce() (*choice, error) {
	on, err := b.deciding()
	if err != nil || on == nil || on.classifier != b.egress {
		return on, err
	}
	rules, _, err := b.tables.Read()
	if err != nil {
		b.last = nil
		return nil, err
	}
	b.beside = rules != bind.WayNone
	return on, nil
}

// deciding is inForce for those who need no more than what binds packets. Where there are
// several ways, the program has the last word, and rules have written a class before the
// kernel's filter is asked: what comes after is not read.
func (b *Binder) deciding() (*choice, error) {
	b.last, b.is, b.beside = nil, 0, false
	on, is, err := b.egress.Read()
	if err == nil && on == bind.WayNone {
		on, is, err = b.tables.Read()
	}
	if err == nil && on == bind.WayNone {
		on, is, err = b.filter.Read()
	}
	if err != nil {
		return nil, err
	}
	b.last, b.is = b.called(on), is
	return b.last, nil
}

// HasClassifier says whether the interface has one, of any way.
func (b *Binder) HasClassifier() (bool, error) {
	on, err := b.deciding()
	return on != nil, b.wrap(err)
}

// bindings calls a function for those in the store of a way.
type bindings func(ctx context.Context, on *choice, fn func(way.Key, hierarchy.ClassID) error) error

// all are all bindings.
func (b *Binder) all(ctx context.Context, on *choice, fn func(way.Key, hierarchy.ClassID) error) error {
	return on.store.All(ctx, fn)
}

// these are the bindings of some targets.
func (b *Binder) these(targets []bind.Target) bindings {
	return func(_ context.Context, on *choice, fn func(way.Key, hierarchy.ClassID) error) error {
		for _, target := range targets {
			k, err := b.key(on, target)
			if errors.Is(err, fs.ErrNotExist) {
				continue
			}
			if err != nil {
				return err
			}
			class, bound, err := on.store.Get(k)
			if err == nil && bound {
				err = fn(k, class)
			}
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		return nil
	}
}

// bound are the bindings of the way that is on the interface. Reading mounts nothing.
func (b *Binder) bound(ctx context.Context, on *choice, each bindings) ([]hierarchy.Bound, error) {
	b.ids = map[bind.Target]uint64{}
	t, err := on.find()
	if t == nil || err != nil {
		return nil, err
	}
	var bound []hierarchy.Bound
	err = each(ctx, on, func(k way.Key, class hierarchy.ClassID) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		x := hierarchy.Bound{Class: class &^ way.Stays, Stays: class&way.Stays != 0}
		switch k.Kind {
		case bind.TargetCgroup:
			path, err := b.pathOf(t, k)
			if err != nil {
				return err
			}
			x.Target, x.Open = bind.ToCgroup(path), path != "" && b.guard.Missing(t, path)
			if path == "" {
				x.Target = bind.ToCgroupID(k.ID)
			}
		case bind.TargetUser:
			x.Target = bind.ToUser(uint32(k.ID))
		case bind.TargetLink:
			l, err := b.link(uint32(k.ID), "")
			switch {
			case errors.Is(err, iface.ErrNone):
				x.Target = bind.ToLinkIndex(uint32(k.ID))
			case err != nil:
				return err
			default:
				x.Target, x.Open = bind.ToLink(l.Name), b.marker.Missing(l)
			}
		}
		if k.ID != 0 && x.Target.Name != "" {
			b.ids[x.Target] = k.ID
		}
		bound = append(bound, x)
		return nil
	})
	return bound, err
}

// link is [iface.Get] in the Binder's network namespace. There may be one for each of many bindings.
func (b *Binder) link(index uint32, name string) (l iface.Link, err error) {
	if b.links == nil {
		if b.links, err = iface.Dial(b.cfg.NetNSFD); err != nil {
			return l, err
		}
	}
	return b.links.Get(index, name)
}

// pathOf is the path of a cgroup, empty where it is gone.
func (b *Binder) pathOf(t *cgroupfs.Tree, k way.Key) (string, error) {
	if k.Path != "" {
		return k.Path, nil
	}
	path, known := b.paths[k.ID]
	if known && t.Is(path, k.ID) {
		return path, nil
	}
	path, err := t.Path(k.ID)
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err == nil {
		b.paths[k.ID] = path
	}
	return path, err
}

// key is a target as a way's store has it. What is not there any more is
// [fs.ErrNotExist].
func (b *Binder) key(w *choice, target bind.Target) (k way.Key, err error) {
	switch target.Kind {
	case bind.TargetUser:
		return way.Key{Kind: bind.TargetUser, ID: target.ID}, nil
	case bind.TargetCgroupID:
		return way.Key{Kind: bind.TargetCgroup, ID: target.ID}, nil
	case bind.TargetLinkIndex:
		return way.Key{Kind: bind.TargetLink, ID: target.ID}, nil
	case bind.TargetLink:
		l, err := b.link(0, target.Name)
		return way.Key{Kind: bind.TargetLink, ID: uint64(l.Index)}, err
	case bind.TargetCgroup:
		t, err := w.find()
		if t == nil && err == nil {
			err = netcls.ErrNotMounted
		}
		if err != nil {
			return way.Key{}, err
		}
		k := way.Key{Kind: bind.TargetCgroup, Path: target.Name, Fresh: b.fresh[target.Name], Used: func() bool { return t.Connected(target.Name) }}
		k.ID, k.Level, err = t.ID(target.Name)
		if err == nil && t.V2() {
			b.paths[k.ID] = target.Name
		}
		return k, err
	}
	return way.Key{}, errors.New("it names nothing")
}

// Class finds the class that the cgroup of a target is bound to: 0 when there is none,
// when it is not bound, or when no classifier of this version is on the interface. It
// changes nothing and takes one look-up.
func (b *Binder) Class(target bind.Target) (class hierarchy.ClassID, err error) {
	class, _, err = b.boundTo(target)
	return class, err
}

// boundTo is Class, and whether what is bound stays there.
func (b *Binder) boundTo(target bind.Target) (class hierarchy.ClassID, stays bool, err error) {
	on, err := b.deciding()
	if err != nil || on == nil || b.is != way.Version {
		return 0, false, b.wrap(err)
	}
	t, err := on.find()
	if t == nil || err != nil {
		return 0, false, b.wrap(err)
	}
	b.at = on
	k, err := b.key(on, target)
	if err == nil {
		class, _, err = on.store.Get(k)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return 0, false, nil
	}
	return class &^ way.Stays, class&way.Stays != 0, b.wrap(err)
}
