package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/iface"
	"github.com/vifshape/vifshape/cgroup/netcls"
	"github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Hook is where classifiers sit on one network interface.
type Hook interface {
	bpf.Hook
	bpf.Ingress
	netcls.Hook
}

// Config is what a [Binder] works on.
type Config struct {
	Hook      Hook
	Interface string
	// Index is the interface's in its network namespace. Rules of nf_tables go by
	// it, and programs that run before the classifier are found by it; 0: neither.
	Index uint32
	// NetNSFD is a descriptor of that namespace, 0 for the caller's, for nf_tables.
	// Programs that run before the classifier are looked for in the caller's.
	NetNSFD int
	// NetNS is the interface's network namespace as [cgroupfs.NetNSKey] names it, empty
	// for the initial one. It keeps the cgroups of equally named interfaces apart.
	NetNS string
	// Ways are the ways to try, in this order: the first that works is taken.
	// None: all, best first.
	Ways []bind.Way
	// RunDir is where net_cls is mounted when it has to be and no better place
	// offers itself; empty: /run/vifshape.
	RunDir string
	// Root is the directory below which the state of container runtimes is looked
	// for, as in /var/lib/docker; empty: /.
	Root string
	// Classes are the interface's, with their branches: tags with others are left alone.
	// Nil: every class is. Only the ways that go by tags ask.
	Classes map[hierarchy.ClassID]hierarchy.Path
	// Others lists the other interfaces that are bound by net_cls tags. A process
	// has one tag for all interfaces, so no second one is bound by them. Nil: there
	// are none. It is asked when one of these ways is to be chosen, and by Close.
	Others func() ([]string, error)
	// Lacks says why the interface cannot have the classifier of a way; nil when it
	// can, or is not known to lack it. It is asked before a way is chosen that is not
	// on the interface yet. May be nil: nothing is known.
	Lacks func(bind.Way) error
	// Warn is told what happened besides, such as a file system that was mounted,
	// and of other programs that may keep packets from the classifier. May be nil.
	Warn func(string)
}

// Binder is the classifier on one interface and its bindings, a
// [hierarchy.Part] for Hook and Bound. It is not for concurrent use, and writers
// of the same interface must exclude each other.
type Binder struct {
	cfg  Config
	ways []*choice // all, best first

	egress *bpf.Egress
	tables *nft.Tables
	filter *netcls.Filter
	tags   *netcls.Tags
	v2, v1 *cgroupfs.Tree

	way    *choice                // that is wanted, nil until it is chosen
	tried  way.Clauses            // why the ways before it were not chosen
	at     *choice                // in whose hierarchy cgroups are looked for, nil until it is known
	ids    map[bind.Target]uint64 // of targets, as of the last Read
	paths  map[uint64]string      // of cgroups, once seen: cheaper to check than to find
	fresh  map[string]bool        // homes that this Binder made and has not bound yet
	warned bool                   // of TCX programs
	guard  *bpf.Guard
	marker *bpf.Marker
	last   *choice // on the interface, when this Binder last looked or changed it
	is     uint32  // its version
	beside bool    // rules of a former way lie beside it
}

// NewBinder makes a Binder. Nothing is read or changed yet.
func NewBinder(cfg Config) (*Binder, error) {
	switch {
	case cfg.Hook == nil:
		return nil, errors.New("classifier: no hook given")
	case cfg.Interface == "":
		return nil, errors.New("classifier: no interface given")
	case len(cfg.Ways) == 0:
		cfg.Ways = ways()
	}
	for _, w := range cfg.Ways {
		if !slices.Contains(ways(), w) {
			return nil, fmt.Errorf("binding %q is none of %v", w, ways())
		}
	}
	if cfg.RunDir == "" {
		cfg.RunDir = "/run/vifshape"
	}
	if cfg.Root == "" {
		cfg.Root = "/"
	}
	if cfg.Others == nil {
		cfg.Others = func() ([]string, error) { return nil, nil }
	}
	if cfg.Lacks == nil {
		cfg.Lacks = func(bind.Way) error { return nil }
	}
	if cfg.Warn == nil {
		cfg.Warn = func(string) {}
	}
	b := &Binder{cfg: cfg, paths: map[uint64]string{}, fresh: map[string]bool{}}
	b.reset()
	return b, nil
}

// reset makes the ways of a Binder that has looked at nothing yet.
func (b *Binder) reset() {
	b.egress = bpf.NewEgress(b.cfg.Hook)
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

// Close lets go of descriptors. What is on the hook stays. A net_cls hierarchy that
// was mounted by this package goes again when nothing is in it and no interface
// needs it.
func (b *Binder) Close() error {
	errs := []error{b.egress.Close(), b.guard.Close(), b.marker.Close()}
	for _, t := range []*cgroupfs.Tree{b.v2, b.v1} {
		if t != nil {
			errs = append(errs, t.Close())
		}
	}
	if b.v1 != nil && b.v1.Mine && (b.last == nil || b.last.store != b.tags) {
		others, err := b.cfg.Others()
		if err == nil && len(others) == 0 {
			err = b.v1.Unmount()
		}
		errs = append(errs, err)
	}
	*b = Binder{cfg: b.cfg, paths: b.paths, fresh: b.fresh, warned: b.warned}
	b.reset()
	return errors.Join(errs...)
}

// Hook is the classifier as it should be: the chosen way at this version. When
// no way works the error says what was tried. It warns of programs that run before
// the classifier.
func (b *Binder) Hook() (hierarchy.Hook, error) {
	if err := b.choose(); err != nil {
		return hierarchy.Hook{}, err
	}
	if err := b.warnTCX(b.way); err != nil {
		return hierarchy.Hook{}, b.wrap(err)
	}
	return hierarchy.Hook{Way: b.way.name, Version: way.Version}, nil
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

// Homes are those of the interface, in the hierarchy of the way chosen, else of the
// classifier on the interface, else of the way that would be chosen. They are good until
// [Binder.Close].
func (b *Binder) Homes() (home.Homes, error) {
	err := b.settle()
	return b.homes(), err
}

func (b *Binder) homes() home.Homes {
	return home.Homes{Tree: b.tree(), NetNS: b.cfg.NetNS, Interface: b.cfg.Interface}
}

// Fresh tells that the cgroup of a target was made just now: nothing was ever in it that
// could know another class, and to bind it needs no word to open sockets.
func (b *Binder) Fresh(target bind.Target) { b.fresh[target.Name] = true }

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

// warnTCX warns, once, of programs that run before the classifier: those at TCX
// come first, and unless one of them returns TCX_NEXT the filters behind are not
// asked (sch_handle_egress, net/core/dev.c, v6.12). It is silent where that cannot
// be found out: before Linux 6.6, which has no TCX, without privileges, and for an
// interface that is gone.
func (b *Binder) warnTCX(w *choice) error {
	if b.cfg.Index == 0 || b.warned {
		return nil
	}
	found, err := w.classifier.Before(b.cfg.Index)
	b.warned = len(found) > 0
	for _, x := range found {
		b.cfg.Warn(fmt.Sprintf("%s: a TCX program (%s) runs before the classifier and can keep packets from it; those for which it does not return TCX_NEXT go to the rest, or where their sender asks", b.cfg.Interface, x))
	}
	return err
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

// Resolve finds what the bindings of branches name, see [resolve.Resolve], in the hierarchy
// of the way chosen, and as far as that can bind it. Watch may be nil.
func (b *Binder) Resolve(ctx context.Context, branches []resolve.Branch, watch resolve.Watch) (*resolve.Resolution, error) {
	if err := b.choose(); err != nil {
		return nil, err
	}
	r, err := resolve.Resolve(ctx, resolve.Config{
		Tree: b.tree(), Interface: b.cfg.Interface, NetNS: b.cfg.NetNS, NetNSFD: b.cfg.NetNSFD, Root: b.cfg.Root,
		NoUsers: b.way.store.Holds(bind.TargetUser), NoLinks: b.way.store.Holds(bind.TargetLink), Watch: watch,
	}, branches)
	if err != nil {
		return nil, b.wrap(err)
	}
	maps.Copy(b.paths, r.Cgroups)
	return r, nil
}

// Why says what the classifier on the interface stands on, as in "cgroup v2 at
// /sys/fs/cgroup/unified"; nothing when there is none. It changes nothing, and
// warns as [Binder.Hook] does.
func (b *Binder) Why() (string, error) {
	on, err := b.inForce()
	if on == nil || err != nil {
		return "", b.wrap(err)
	}
	if err := b.warnTCX(on); err != nil {
		return "", b.wrap(err)
	}
	t, err := on.find()
	if err != nil {
		return "", b.wrap(err)
	}
	if t == nil {
		return "net_cls, which is not mounted any more", nil
	}
	return basis(on.name, t), nil
}

// Port implements [hierarchy.Part]: a classifier is for all ports of its device.
func (b *Binder) Port() hierarchy.Port { return hierarchy.Port{} }

// Read implements [hierarchy.Part]: it fills in Hook and Bound as they are.
//
// Path and From stay empty; the kernel does not hold them. A classifier of another
// version shows no bindings: it is replaced as a whole.
func (b *Binder) Read(ctx context.Context, s *hierarchy.State) error {
	on, err := b.inForce()
	if err != nil {
		return b.wrap(err)
	}
	s.Hook, s.Bound = hierarchy.Hook{}, nil
	if on == nil {
		return nil
	}
	s.Hook = hierarchy.Hook{Way: on.name, Version: b.is}
	if b.beside {
		s.Hook.Version = 0 // they were left behind when the way was changed: they go when it is put in order
	}
	s.Bound, err = b.bound(ctx, on)
	slices.SortFunc(s.Bound, func(a, b hierarchy.Bound) int { return a.Target.Compare(b.Target) })
	return b.wrap(err)
}

// inForce is the way of the classifier that is on the interface, nil for none. Where
// there are several, the program has the last word, and rules have written a class before
// the kernel's filter is asked.
func (b *Binder) inForce() (*choice, error) {
	b.last, b.is = nil, 0
	rules, rulesAre, err := b.tables.Read()
	if err != nil {
		return nil, err
	}
	on, is, err := b.egress.Read()
	if err != nil {
		return nil, err
	}
	b.beside = on != bind.WayNone && rules != bind.WayNone
	switch {
	case on == bind.WayNone && rules != bind.WayNone:
		on, is = rules, rulesAre
	case on == bind.WayNone:
		on, is, err = b.filter.Read()
	}
	b.last, b.is = b.called(on), is
	return b.last, err
}

// HasClassifier says whether the interface has one, of any way.
func (b *Binder) HasClassifier() (bool, error) {
	on, err := b.inForce()
	return on != nil, b.wrap(err)
}

func (b *Binder) wrap(err error) error {
	if err == nil || strings.HasPrefix(err.Error(), b.cfg.Interface+": ") { // the hook's errors say so
		return err
	}
	return fmt.Errorf("%s: classifier: %w", b.cfg.Interface, err)
}

// bound are the bindings of the way that is on the interface. Reading mounts nothing.
func (b *Binder) bound(ctx context.Context, on *choice) ([]hierarchy.Bound, error) {
	b.ids = map[bind.Target]uint64{}
	t, err := on.find()
	if t == nil || err != nil {
		return nil, err
	}
	var bound []hierarchy.Bound
	err = on.store.All(func(k way.Key, class hierarchy.ClassID) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		x := hierarchy.Bound{Class: class}
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
			l, err := iface.Get(b.cfg.NetNSFD, uint32(k.ID), "")
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
	d := &doing{Binder: b, on: on}
	b.tags.Others = map[string]bool{}
	for i, s := range steps {
		if n, ok := s.New.(*hierarchy.Bound); ok && n != nil && n.Target.Kind == bind.TargetCgroup {
			b.tags.Others[n.Target.Name] = true
		}
		if hook(s.Old).Way != hook(s.New).Way {
			d.leaves = i
		}
	}
	defer func() { err = errors.Join(err, b.wrap(d.flush())) }()
	for i, s := range steps {
		if err := ctx.Err(); err != nil {
			return i, err
		}
		switch item := s.Item().(type) {
		case *hierarchy.Hook:
			if err := d.hook(hook(s.Old), hook(s.New), steps[i+1:]); err != nil {
				return i, b.wrap(err)
			}
			b.last = b.called(hook(s.New).Way)
		case *hierarchy.Bound:
			if err := d.bound(s, i); err != nil {
				return i, b.wrap(fmt.Errorf("bind %s to %s: %w", item.Target, item.Class, err))
			}
		default:
			return i, b.wrap(fmt.Errorf("step on a %T is not the classifier's", item))
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
	on      *choice       // that bindings are for at this point
	leaves  int           // the last step that changes the way
	leaving []bind.Target // whose bindings go with the former way
}

func (d *doing) hook(was, next hierarchy.Hook, ahead []hierarchy.Step) error {
	to := d.called(next.Way)
	if to == nil {
		return d.unhook(d.called(was.Way), nil)
	}
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
	return d.unhook(d.called(was.Way), to)
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
	if err := d.on.store.Put(k, x.Class); err != nil {
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
		l, err := iface.Get(b.cfg.NetNSFD, 0, target.Name)
		return way.Key{Kind: bind.TargetLink, ID: uint64(l.Index)}, err
	case bind.TargetCgroup:
		t, err := w.find()
		if t == nil && err == nil {
			err = netcls.ErrNotMounted
		}
		if err != nil {
			return way.Key{}, err
		}
		k := way.Key{Kind: bind.TargetCgroup, Path: target.Name, Fresh: b.fresh[target.Name], Used: func() bool { return t.Populated(target.Name) }}
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
	on, err := b.inForce()
	if err != nil || on == nil || b.is != way.Version {
		return 0, b.wrap(err)
	}
	t, err := on.find()
	if t == nil || err != nil {
		return 0, b.wrap(err)
	}
	b.at = on
	k, err := b.key(on, target)
	if err == nil {
		class, _, err = on.store.Get(k)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	return class, b.wrap(err)
}

// Carrier is what brings open sockets along into the cgroup of a target: the best that
// this kernel has, nil where they follow by themselves.
func (b *Binder) Carrier(target bind.Target) (home.Carrier, error) {
	on, err := b.inForce()
	if err == nil && on == nil {
		err = way.ErrOther
	}
	if err != nil {
		return nil, b.wrap(err)
	}
	k, err := b.key(on, target)
	if err != nil {
		return nil, b.wrap(err)
	}
	c, err := on.sockets.carrier(k)
	return c, b.wrap(err)
}

// Unguarded says in words why root's sockets in the cgroup of a target may go round the
// queues, nothing when they may not.
func (b *Binder) Unguarded(target bind.Target) string {
	if err := b.settle(); err != nil {
		return err.Error()
	}
	return b.guard.Open(b.tree(), target.Name)
}
