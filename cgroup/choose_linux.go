package cgroup

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/netcls"
	"github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// reset makes the ways of a Binder that has looked at nothing yet.
func (b *Binder) reset() {
	b.egress = bpf.NewEgress(b.cfg.Hook)
	b.flows = bpf.NewReceiver(b.cfg.Hook, b.cfg.Bare)
	b.rules = bpf.NewMatches(b.cfg.Hook)
	b.guard = bpf.NewGuard(b.cfg.NetNS, b.cfg.Interface)
	b.marker = bpf.NewMarker(b.cfg.Hook, b.cfg.NetNSFD)
	b.tables = nft.New(b.cfg.NetNSFD, b.cfg.Interface, b.cfg.Index)
	b.filter = &netcls.Filter{Hook: b.cfg.Hook}
	b.tags = &netcls.Tags{Find: b.findV1, Mount: b.mountV1, Classes: b.cfg.Classes}
	tagged := byTag{b.tags.Ours}
	b.ways = []*choice{
		{name: bind.WayBPF, find: b.findV2, classifier: b.egress, store: b.egress, sockets: byProgram{b}},
		{name: bind.WayNft, find: b.findLevels, classifier: b.tables, store: b.tables, sockets: byBirth{b}},
		{name: bind.WayNetCls, find: b.findV1, classifier: b.egress, store: b.tags, sockets: tagged},
		{name: bind.WayNetClsNft, find: b.findV1, classifier: b.tables, store: b.tags, sockets: tagged},
		{name: bind.WayClsCgroup, find: b.findV1, classifier: b.filter, store: b.tags, sockets: tagged, unseen: true},
	}
}

// called finds a way by its name, nil for none.
func (b *Binder) called(w bind.Way) *choice {
	if i := slices.IndexFunc(b.ways, func(x *choice) bool { return x.name == w }); i >= 0 {
		return b.ways[i]
	}
	return nil
}

func (b *Binder) findV2() (t *cgroupfs.Tree, err error) {
	if b.v2 == nil {
		b.v2, err = cgroupfs.FindV2()
	}
	return b.v2, err
}

func (b *Binder) findLevels() (*cgroupfs.Tree, error) {
	t, err := b.findV2()
	if err == nil {
		err = t.LevelsKnown()
	}
	return t, err
}

func (b *Binder) findV1() (t *cgroupfs.Tree, err error) {
	if b.v1 == nil {
		b.v1, err = cgroupfs.FindNetCls()
	}
	return b.v1, err
}

func ways() []bind.Way {
	return []bind.Way{bind.WayBPF, bind.WayNft, bind.WayNetCls, bind.WayNetClsNft, bind.WayClsCgroup}
}

func (b *Binder) choose() error {
	if b.way != nil {
		return nil
	}
	var tried way.Clauses
	refused := false // tags, by whatever they are read
	for _, name := range b.cfg.Ways {
		if refused && name.Tagged() {
			continue
		}
		w := b.called(name)
		err := b.alone(name)
		refused = err != nil
		if err == nil {
			err = b.prepare(w)
		}
		if err == nil {
			b.way, b.at, b.tried = w, w, tried
			return nil
		}
		tried = append(tried, fmt.Errorf("binding %s: %w", name, err))
	}
	if len(tried) > 1 {
		return fmt.Errorf("%s: nothing here tells whose packets are whose: %w", b.cfg.Interface, tried)
	}
	return fmt.Errorf("%s: %w", b.cfg.Interface, tried)
}

// alone refuses tags where another interface is bound by them.
func (b *Binder) alone(w bind.Way) error {
	if !w.Tagged() {
		return nil
	}
	others, err := b.cfg.Others()
	if err == nil && len(others) > 0 {
		err = fmt.Errorf("one process has one net_cls tag for all interfaces, and %s uses it already: bind with bpf or nft, or shape one interface", others[0])
	}
	return err
}

// settle finds the hierarchy in which the interface's cgroups are, for [Binder.tree]:
// that of the way chosen, else of the classifier on the interface, else of the way
// that would be chosen. Where nothing may be read, it is the first that is there.
func (b *Binder) settle() error {
	if b.at != nil {
		return nil
	}
	on, err := b.inForce()
	if errors.Is(err, caps.ErrNotPrivileged) {
		for _, name := range b.cfg.Ways {
			if w := b.called(name); w != nil {
				if t, _ := w.find(); t != nil {
					b.at = w
					return nil
				}
			}
		}
	}
	if err != nil {
		return b.wrap(err)
	}
	if on == nil {
		return b.choose()
	}
	if _, err := b.hierarchy(on); err != nil {
		return b.wrap(err)
	}
	b.at = on
	return nil
}

// tree is what settle or choose found.
func (b *Binder) tree() *cgroupfs.Tree {
	t, _ := b.at.find()
	return t
}

// prepare finds, and where needed makes, what a way stands on.
func (b *Binder) prepare(w *choice) error {
	if _, err := b.hierarchy(w); err != nil {
		return err
	}
	if on, err := w.classifier.Probe(w.name); on || err != nil {
		return err
	}
	return b.cfg.Lacks(w.name)
}

// hierarchy is the one in which a way's cgroups lie. One for net_cls is mounted
// when there is none.
func (b *Binder) hierarchy(w *choice) (*cgroupfs.Tree, error) {
	t, err := w.find()
	if t == nil && err == nil {
		return b.mountV1()
	}
	return t, err
}

func (b *Binder) mountV1() (t *cgroupfs.Tree, err error) {
	if t, err = b.findV1(); t != nil || err != nil {
		return t, err
	}
	if b.v1, err = cgroupfs.MountNetCls(b.cfg.RunDir); err == nil {
		b.cfg.Warn("mounted the net_cls cgroup hierarchy at " + b.v1.Where)
	}
	return b.v1, err
}

// Keep chooses the way of the classifier that is on the interface, whatever
// [Binder.Hook] would choose by now. There must be one, of this version.
func (b *Binder) Keep() error {
	on, err := b.inForce()
	switch {
	case err != nil:
	case on == nil:
		err = errors.New("there is none on the interface")
	case b.is != way.Version:
		err = errors.New("the one on the interface is another version's")
	default:
		_, err = b.hierarchy(on)
	}
	if err == nil {
		b.way, b.at = on, on
	}
	return b.wrap(err)
}
