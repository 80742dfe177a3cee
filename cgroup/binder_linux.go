package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"github.com/cilium/ebpf/btf"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Hook is where a classifier sits on one network interface.
type Hook interface {
	// AttachEgress puts a tc program at the egress hook, in place of the one
	// that it put there before, with no packet in between.
	AttachEgress(progFD int, name string) error
	// EgressProgram is the id of that program, 0 when there is none.
	EgressProgram() (id uint32, err error)
	// DetachEgress removes that program. None is no error.
	DetachEgress() error

	// AttachIngress puts a tc program at the ingress hook of another interface of
	// the same network namespace, in place of the one that it put there before for
	// this one. HasIngress says whether it is there, an error that it cannot be, and
	// DetachIngress removes it; none is no error. What they do for one interface is
	// not seen by another's.
	AttachIngress(port string, progFD int, name string) error
	HasIngress(port string) (bool, error)
	DetachIngress(port string) error

	// AttachCgroupFilter, CgroupFilter and DetachCgroupFilter do the same for
	// the kernel's own cgroup classifier on the root qdisc.
	AttachCgroupFilter() error
	CgroupFilter() (bool, error)
	DetachCgroupFilter() error
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
	// NetNS is the interface's network namespace as [NetNSKey] names it, empty
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
	// Classes says whether a class is one of this interface's: tags with others are
	// left alone. Nil: every class is. Only the ways that go by tags ask.
	Classes func(hierarchy.ClassID) bool
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
	// Watch is told what Resolve goes by, each place before it is read, so that who
	// waits for changes there misses none: a directory and which of its entries
	// matter when they come or go; a file whose content matters, with nil for the
	// entries; or "" for the interfaces of the network namespace and which of their
	// names matter. A directory may not be there yet: the one above it is told
	// before. May be nil.
	Watch func(path string, matters func(name string) bool)
}

// Binder is the classifier on one interface and its bindings, a
// [hierarchy.Part] for Hook and Bound. It is not for concurrent use, and writers
// of the same interface must exclude each other.
type Binder struct {
	cfg    Config
	way    bind.Way // that is wanted, none until it is chosen
	before clauses  // why the ways before it were not chosen
	at     bind.Way // in whose hierarchy cgroups are looked for, none until it is known
	v2, v1 *cgroupfs.Tree
	set    *set                   // on the hook
	spare  *set                   // not on the hook yet
	rules  *ruleset               // of nf_tables, as last read or written
	draft  *ruleset               // not in force yet
	former *set                   // taken off the hook by this Binder: the way back when an apply fails
	ids    map[bind.Target]uint64 // of targets, as of the last Read
	paths  map[uint64]string      // of cgroups, once seen: cheaper to check than to find
	fresh  map[string]bool        // homes that this Binder made and has not bound yet
	warned bool                   // of TCX programs
	narrow narrow
	marker marker
	hidden map[string]bool // interfaces that should be marked and cannot be
	types  *btf.Cache      // of the kernel
	last   bind.Way        // on the interface, when this Binder last looked or changed it
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
	if cfg.Classes == nil {
		cfg.Classes = func(hierarchy.ClassID) bool { return true }
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
	if cfg.Watch == nil {
		cfg.Watch = func(string, func(string) bool) {}
	}
	return &Binder{cfg: cfg, paths: map[uint64]string{}, fresh: map[string]bool{}, types: btf.NewCache()}, nil
}

// Close lets go of descriptors. What is on the hook stays. A net_cls hierarchy that
// was mounted by this package goes again when nothing is in it and no interface
// needs it.
func (b *Binder) Close() error {
	var errs []error
	for _, s := range []*set{b.set, b.spare, b.former} {
		if s != nil {
			errs = append(errs, s.close())
		}
	}
	errs = append(errs, b.narrow.close(), b.marker.close())
	for _, t := range []*cgroupfs.Tree{b.v2, b.v1} {
		if t != nil {
			errs = append(errs, t.Close())
		}
	}
	if b.v1 != nil && b.v1.Mine && !b.last.Tagged() {
		others, err := b.cfg.Others()
		if err == nil && len(others) == 0 {
			err = b.v1.Unmount()
		}
		errs = append(errs, err)
	}
	*b = Binder{cfg: b.cfg, paths: b.paths, fresh: b.fresh, warned: b.warned, types: btf.NewCache()}
	return errors.Join(errs...)
}

// Hook is the classifier as it should be: the chosen way at this version. When
// no way works the error says what was tried. It warns of programs that run before
// the classifier.
func (b *Binder) Hook() (hierarchy.Hook, error) {
	if err := b.choose(); err != nil {
		return hierarchy.Hook{}, err
	}
	if program(b.way) {
		if err := b.warnTCX(); err != nil {
			return hierarchy.Hook{}, b.wrap(err)
		}
	}
	return hierarchy.Hook{Way: b.way, Version: version}, nil
}

func ways() []bind.Way {
	return []bind.Way{bind.WayBPF, bind.WayNft, bind.WayNetCls, bind.WayNetClsNft, bind.WayClsCgroup}
}

// program says whether a way has a BPF program on the hook.
func program(w bind.Way) bool { return w == bind.WayBPF || w == bind.WayNetCls }

// tables says whether a way has rules in nf_tables.
func tables(w bind.Way) bool { return w == bind.WayNft || w == bind.WayNetClsNft }

func (b *Binder) choose() error {
	if b.way != bind.WayNone {
		return nil
	}
	var tried clauses
	refused := false // tags, by whatever they are read
	for _, w := range b.cfg.Ways {
		if refused && w.Tagged() {
			continue
		}
		err := b.alone(w)
		refused = err != nil
		if err == nil {
			err = b.prepare(w)
		}
		if err == nil {
			b.way, b.at, b.before = w, w, tried
			return nil
		}
		tried = append(tried, fmt.Errorf("binding %s: %w", w, err))
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
	if b.at != bind.WayNone {
		return nil
	}
	way, err := b.inForce()
	if errors.Is(err, caps.ErrNotPrivileged) {
		for _, way = range b.cfg.Ways {
			if t, _ := b.find(way); t != nil {
				b.at = way
				return nil
			}
		}
	}
	if err != nil {
		return b.wrap(err)
	}
	if way == bind.WayNone {
		return b.choose()
	}
	if _, err := b.hierarchy(way); err != nil {
		return b.wrap(err)
	}
	b.at = way
	return nil
}

// tree is what settle or choose found.
func (b *Binder) tree() *cgroupfs.Tree {
	if b.at.Tagged() {
		return b.v1
	}
	return b.v2
}

// prepare finds, and where needed makes, what a way stands on.
func (b *Binder) prepare(w bind.Way) error {
	if _, err := b.hierarchy(w); err != nil {
		return err
	}
	if w == bind.WayClsCgroup {
		return b.cfg.Lacks(w)
	}
	if err := b.refresh(); err != nil {
		return err
	}
	switch {
	case b.set.current(w), b.rules.current(w):
		return nil
	case tables(w) && b.cfg.Index == 0:
		return errors.New("the interface's index is not given")
	case tables(w):
		return b.tables().try(w)
	}
	if _, err := b.take(w); err != nil {
		return err
	}
	return b.cfg.Lacks(w)
}

// tables is the interface's part of nf_tables.
func (b *Binder) tables() nfTables { return nfTables{b.cfg.NetNSFD, b.cfg.Interface, b.cfg.Index} }

// hierarchy is the one in which a way's cgroups lie. One for net_cls is mounted
// when there is none.
func (b *Binder) hierarchy(w bind.Way) (*cgroupfs.Tree, error) {
	t, err := b.find(w)
	if t == nil && err == nil {
		if b.v1, err = cgroupfs.MountNetCls(b.cfg.RunDir); err == nil {
			b.cfg.Warn("mounted the net_cls cgroup hierarchy at " + b.v1.Where)
		}
		return b.v1, err
	}
	return t, err
}

// find is hierarchy without mounting: nil when net_cls is not mounted.
func (b *Binder) find(w bind.Way) (t *cgroupfs.Tree, err error) {
	if !w.Tagged() {
		if b.v2 == nil {
			b.v2, err = cgroupfs.FindV2()
		}
		if err == nil && w == bind.WayNft {
			err = b.v2.LevelsKnown()
		}
		return b.v2, err
	}
	if b.v1 == nil {
		b.v1, err = cgroupfs.FindNetCls()
	}
	return b.v1, err
}

// Why says what the classifier on the interface stands on, as in "cgroup v2 at
// /sys/fs/cgroup/unified"; nothing when there is none. It changes nothing, and
// warns as [Binder.Hook] does.
func (b *Binder) Why() (string, error) {
	way, err := b.inForce()
	if way == bind.WayNone || err != nil {
		return "", b.wrap(err)
	}
	if program(way) {
		if err := b.warnTCX(); err != nil {
			return "", b.wrap(err)
		}
	}
	t, err := b.find(way)
	if err != nil {
		return "", b.wrap(err)
	}
	if t == nil {
		return "net_cls, which is not mounted any more", nil
	}
	return basis(way, t), nil
}

const weaker = "; weaker than with BPF: root may ask for another class by SO_PRIORITY"

// basis says what a way stands on.
func basis(w bind.Way, t *cgroupfs.Tree) string {
	switch {
	case w.Tagged():
		return by(w, "net_cls at "+t.Where)
	case t.Whole:
		return by(w, "cgroup v2 at "+t.Where)
	}
	return by(w, "cgroup v2 at "+t.Where+", below the root of a cgroup namespace")
}

// by adds to what a way stands on what it works with, where that is not BPF.
func by(w bind.Way, text string) string {
	switch {
	case w == bind.WayClsCgroup:
		text += weaker
	case tables(w):
		text += ", by nf_tables"
	}
	return text
}

// refresh opens the set that is on the hook, and reads the rules of nf_tables.
func (b *Binder) refresh() error {
	var err error
	if b.rules, err = b.tables().read(); err != nil {
		return err
	}
	id, err := b.cfg.Hook.EgressProgram()
	if err != nil {
		return err
	}
	if b.set != nil && b.set.id == id {
		return nil
	}
	if b.set != nil {
		err = b.set.close()
		b.set = nil
	}
	if id != 0 && err == nil {
		b.set, err = openSet(id)
	}
	return err
}

// take is the set that goes onto the hook next.
func (b *Binder) take(w bind.Way) (*set, error) {
	if b.spare != nil && b.spare.way == w {
		return b.spare, nil
	}
	s, err := loadSet(w, b.types)
	if err != nil {
		return nil, err
	}
	if b.spare != nil {
		err = b.spare.close()
	}
	b.spare = s
	return s, err
}

// takeDraft is the rules that come into force next.
func (b *Binder) takeDraft(w bind.Way) *ruleset {
	if b.draft == nil || b.draft.way != w {
		b.draft = newRuleset(w)
	}
	return b.draft
}

// Read implements [hierarchy.Part]: it fills in Hook and Bound as they are.
//
// Path and From stay empty; the kernel does not hold them. A classifier of another
// version shows no bindings: it is replaced as a whole.
func (b *Binder) Read(_ context.Context, s *hierarchy.State) error {
	way, err := b.inForce()
	if err != nil {
		return b.wrap(err)
	}
	s.Hook, s.Bound = hierarchy.Hook{Way: way}, nil
	switch {
	case way == bind.WayNone:
		return nil
	case program(way):
		s.Hook.Version = b.set.version
		if b.rules.way != bind.WayNone {
			s.Hook.Version = 0 // they were left behind when the way was changed: they go when it is put in order
		}
	case tables(way):
		s.Hook.Version = b.rules.version
	default:
		s.Hook.Version = version
	}
	if way.Tagged() {
		s.Bound, err = b.boundV1()
	} else {
		s.Bound, err = b.boundV2(b.on(way))
	}
	slices.SortFunc(s.Bound, func(a, b hierarchy.Bound) int { return a.Target.Compare(b.Target) })
	return b.wrap(err)
}

// inForce is the way of the classifier that is on the interface.
func (b *Binder) inForce() (way bind.Way, err error) {
	defer func() { b.last = way }()
	if err := b.refresh(); err != nil {
		return bind.WayNone, err
	}
	if b.set != nil {
		return b.set.way, nil // which has the last word
	}
	on, err := b.cfg.Hook.CgroupFilter()
	if on && b.rules.way == bind.WayNone { // it is not asked where rules have written a class
		return bind.WayClsCgroup, err
	}
	return b.rules.way, err
}

// HasClassifier says whether the interface has one, of any way.
func (b *Binder) HasClassifier() (bool, error) {
	way, err := b.inForce()
	return way != bind.WayNone, b.wrap(err)
}

// on is what holds the bindings of a way that is in force as this version makes it,
// else nil.
func (b *Binder) on(w bind.Way) bindings {
	switch {
	case b.set.current(w):
		return b.set
	case b.rules.current(w):
		return b.rules
	}
	return nil
}

func (b *Binder) wrap(err error) error {
	if err == nil || strings.HasPrefix(err.Error(), b.cfg.Interface+": ") { // the hook's errors say so
		return err
	}
	return fmt.Errorf("%s: classifier: %w", b.cfg.Interface, err)
}

func (b *Binder) boundV2(on bindings) ([]hierarchy.Bound, error) {
	b.ids = map[bind.Target]uint64{}
	if on == nil {
		return nil, nil
	}
	t, err := b.hierarchy(bind.WayBPF)
	if err != nil {
		return nil, err
	}
	var bound []hierarchy.Bound
	err = on.each(func(id uint64, v binding) error {
		target := bind.ToCgroupID(id)
		path, known := b.paths[id]
		if !known || !t.Is(path, id) {
			var err error
			if path, err = t.Path(id); err == nil {
				b.paths[id] = path
			} else if !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if path != "" {
			target = bind.ToCgroup(path)
		}
		b.ids[target] = id
		bound = append(bound, hierarchy.Bound{Target: target, Class: v.class, Open: path != "" && b.open(t, path)})
		return nil
	}, func(of numbered, n uint32, class hierarchy.ClassID) error {
		x := hierarchy.Bound{Target: bind.ToUser(n), Class: class}
		if of == byLink {
			l, err := b.getLink(n, "")
			switch {
			case errors.Is(err, errNoLink):
				x.Target = bind.ToLinkIndex(n)
			case err != nil:
				return err
			default:
				x.Target, x.Open = bind.ToLink(l.name), b.unmarked(l)
				b.ids[x.Target] = uint64(n)
			}
		}
		bound = append(bound, x)
		return nil
	})
	return bound, err
}

func (b *Binder) boundV1() ([]hierarchy.Bound, error) {
	t, err := b.find(bind.WayNetCls) // reading mounts nothing
	if t == nil {
		return nil, err
	}
	return tags(t, b.ours)
}

func (b *Binder) ours(c hierarchy.ClassID) bool {
	return c.Major() == hierarchy.Major && c.Minor() != 0 && b.cfg.Classes(c)
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
	way, err := b.inForce()
	if err != nil {
		return 0, b.wrap(err)
	}
	if way == bind.WayNone {
		if err := b.choose(); err != nil {
			return 0, err
		}
		way = b.way
	}
	d := &doing{Binder: b, way: way, skip: map[string]bool{}}
	for i, s := range steps {
		if n, ok := s.New.(*hierarchy.Bound); ok && n != nil && n.Target.Kind == bind.TargetCgroup {
			d.skip[n.Target.Name] = true
		}
		if hook(s.Old).Way != hook(s.New).Way {
			d.leaves = i
		}
	}
	defer func() { err = errors.Join(err, b.wrap(d.publish())) }()
	for i, s := range steps {
		if err := ctx.Err(); err != nil {
			return i, err
		}
		switch item := s.Item().(type) {
		case *hierarchy.Hook:
			if err := d.hook(hook(s.Old), hook(s.New), steps[i+1:]); err != nil {
				return i, b.wrap(err)
			}
			b.last = hook(s.New).Way
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
	way    bind.Way        // that bindings are for at this point
	skip   map[string]bool // cgroups with a binding of their own among the steps
	leaves int             // the last step that changes the way
	// leaving are the cgroups whose bindings go with the former way.
	leaving []string
	// What happened to the set on the hook.
	changed, removed bool
	// held says that something is bound now that processes may belong to already.
	held bool
}

// publish brings into force what was done, for open sockets too.
func (d *doing) publish() error {
	switch {
	case d.rules.current(bind.WayNft) && d.way == bind.WayNft && d.changed:
		return d.tables().write(d.rules)
	case !d.set.current(bind.WayBPF):
		return nil
	}
	if d.held {
		adopted, err := d.set.adopt(d.types, d.cfg.Warn)
		if err != nil {
			return err
		}
		d.changed = d.changed || adopted
	}
	if !d.changed {
		return nil
	}
	if d.removed {
		if err := d.set.relevel(); err != nil {
			return err
		}
	}
	return d.set.publish()
}

func (d *doing) hook(was, next hierarchy.Hook, ahead []hierarchy.Step) error {
	if next.Way == bind.WayNone {
		return d.unhook(was.Way, next.Way)
	}
	on := d.former
	if on == nil || on.way != next.Way || on.version != next.Version {
		if next.Version != version {
			return fmt.Errorf("version %d of it is not known here, only %d", next.Version, version)
		}
		on = nil
	}
	if err := d.prepare(next.Way); err != nil {
		return err
	}
	d.way = next.Way
	if next.Way == bind.WayClsCgroup {
		d.bindAhead(nil, ahead)
		err := d.cfg.Hook.AttachCgroupFilter()
		if err != nil && len(d.before) > 0 { // only here it turned out that the last way is none
			err = fmt.Errorf("%w; %w", err, d.before)
		}
		if err != nil {
			return err
		}
		return d.unhook(was.Way, next.Way)
	}
	if tables(next.Way) {
		r := d.takeDraft(next.Way)
		d.bindAhead(r, ahead)
		if err := d.tables().write(r); err != nil {
			return err
		}
		d.rules, d.draft = r, nil
		return d.unhook(was.Way, next.Way)
	}
	if on == nil || on.version == version {
		// its bindings may be out of date: fill a new one
		var err error
		if on, err = d.take(next.Way); err != nil {
			return err
		}
		d.bindAhead(on, ahead)
		if d.held && was.Way != bind.WayNone { // so that what they have been given is not lost for a moment
			if _, err := on.adopt(d.types, d.cfg.Warn); err != nil {
				return err
			}
		}
	}
	if err := d.cfg.Hook.AttachEgress(on.prog.FD(), name(on.way)); err != nil {
		return err
	}
	var err error
	if d.former != nil && d.former != on {
		err = d.former.close()
	}
	d.set, d.former = on, d.set
	if d.spare == on {
		d.spare = nil
	}
	return errors.Join(err, d.unhook(was.Way, next.Way))
}

// bindAhead carries out the bindings that steps will ask for, so that they are in
// force from the first packet. What fails here fails again in its own step.
func (d *doing) bindAhead(on bindings, steps []hierarchy.Step) {
	for _, s := range steps {
		if n, ok := s.New.(*hierarchy.Bound); ok && n != nil {
			_, _ = d.put(on, n)
		}
	}
}

// unhook removes what a way had and the next one does not replace.
func (d *doing) unhook(was, next bind.Way) error {
	var errs []error
	if was == bind.WayClsCgroup && next != was {
		errs = append(errs, d.cfg.Hook.DetachCgroupFilter())
	}
	if program(was) && !program(next) {
		errs = append(errs, d.cfg.Hook.DetachEgress(), d.refresh())
	}
	if !tables(next) && d.rules != nil && d.rules.way != bind.WayNone {
		d.rules = newRuleset(bind.WayNone)
		errs = append(errs, d.tables().write(d.rules))
	}
	if was.Tagged() && next.Tagged() { // the tags stay, but for these
		for _, path := range d.leaving {
			if !d.skip[path] {
				errs = append(errs, d.remove(nil, bind.ToCgroup(path)))
			}
		}
	}
	if was.Tagged() && !next.Tagged() {
		t, err := d.hierarchy(was)
		if err == nil {
			err = untagAll(t, d.ours)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (d *doing) bound(s hierarchy.Step, i int) (err error) {
	target := s.Item().(*hierarchy.Bound).Target
	switch {
	case target.Kind == bind.TargetCgroup && !d.way.Tagged():
		t, err := d.hierarchy(d.way)
		if err == nil && s.Action == hierarchy.Delete {
			err = d.unguard(t, target.Name)
		} else if err == nil {
			err = d.guard(t, target.Name)
		}
		if err != nil {
			return err
		}
	case target.Kind == bind.TargetLink && s.Action == hierarchy.Delete:
		err = d.unmark(target.Name)
	case target.Kind == bind.TargetLink && d.way == bind.WayBPF:
		err = d.mark(target.Name)
	}
	if err != nil {
		return err
	}
	if s.Action == hierarchy.Delete && i < d.leaves {
		if target.Kind == bind.TargetCgroup {
			d.leaving = append(d.leaving, target.Name)
		}
		return nil // goes when the way does, so that no packet is without a class until then
	}
	if _, err := d.hierarchy(d.way); err != nil {
		return err
	}
	on := d.on(d.way)
	if on == nil && !d.way.Tagged() {
		if s.Action == hierarchy.Delete {
			return nil // gone with the classifier
		}
		if d.way == bind.WayNft {
			on = d.takeDraft(d.way)
		} else if on, err = d.take(d.way); err != nil {
			return err
		}
	}
	if n, ok := s.New.(*hierarchy.Bound); ok && n != nil {
		changed, err := d.put(on, n)
		d.changed = d.changed || changed
		return err
	}
	o, ok := s.Old.(*hierarchy.Bound)
	if !ok || o == nil {
		return errors.New("the step holds no binding")
	}
	d.changed, d.removed = true, true
	return d.remove(on, o.Target)
}

// put brings a binding into force and says whether there is something to publish.
func (d *doing) put(on bindings, b *hierarchy.Bound) (changed bool, err error) {
	if b.Class.Major() != hierarchy.Major || b.Class.Minor() == 0 {
		return false, errors.New("it is no class of ours; minor number 0 would be HTB's unshaped queue")
	}
	if b.Target.Kind == bind.TargetNone {
		return false, errors.New("it names nothing")
	}
	path, isCgroup := b.Target.Name, b.Target.Kind == bind.TargetCgroup
	if d.way.Tagged() {
		if !isCgroup {
			return false, fmt.Errorf("net_cls knows cgroups only, neither users, interfaces nor cgroups that are gone: %w", caps.ErrNotSupported)
		}
		return d.tag(path, b.Class)
	}
	if of, n, ok, err := d.numberOf(b.Target); ok || err != nil {
		if err != nil {
			return false, err
		}
		class, bound, err := on.number(of, n)
		if err != nil || bound && class == b.Class {
			return false, err
		}
		d.held = d.held || of == byUser && !bound
		return true, on.bindNumber(of, n, b.Class)
	}
	var (
		id   uint64
		next = binding{class: b.Class}
	)
	if isCgroup {
		if id, next.level, err = d.v2.ID(path); err != nil {
			return false, err
		}
	} else {
		id = b.Target.ID
	}
	if isCgroup {
		d.paths[id] = path
	}
	was, bound, err := on.cgroup(id)
	if err != nil || bound && was == next {
		return false, err
	}
	// a new cgroup has no sockets yet that could know another class; rules are to
	// be written in any case
	fresh := isCgroup && d.fresh[path] && d.way == bind.WayBPF
	delete(d.fresh, path)
	d.held = d.held || isCgroup && !bound && d.v2.Populated(path)
	return !fresh, on.bindCgroup(id, next)
}

func (d *doing) tag(path string, class hierarchy.ClassID) (changed bool, err error) {
	c, err := d.v1.Class(path)
	if err != nil || c == class {
		return false, err
	}
	if above, err := d.v1.Class(filepath.Dir(path)); err == nil && above != c && c.Major() == hierarchy.Major && !d.cfg.Classes(c) {
		return false, fmt.Errorf("it is bound to %v of another interface, and a net_cls tag is one for all interfaces", c)
	}
	return true, tag(d.v1, path, class, d.skip)
}

func (d *doing) remove(on bindings, target bind.Target) error {
	path, isCgroup := target.Name, target.Kind == bind.TargetCgroup
	if d.way.Tagged() {
		err := untag(d.v1, path, d.skip)
		if errors.Is(err, fs.ErrNotExist) {
			return nil // gone, and its tag with it
		}
		return err
	}
	if of, n, ok, err := d.numberOf(target); ok || err != nil {
		if errors.Is(err, errNoLink) {
			return nil // the next Read shows what is left of it as link-index:N
		}
		if err != nil {
			return err
		}
		return on.unbindNumber(of, n)
	}
	id, known := d.ids[target]
	if !known {
		var err error
		if isCgroup {
			id, _, err = d.v2.ID(path)
		} else {
			id = target.ID
		}
		if errors.Is(err, fs.ErrNotExist) {
			return nil // the next Read shows what is left of it as cgroup-id:N
		}
		if err != nil {
			return err
		}
	}
	return on.unbindCgroup(id)
}

// numberOf reads the targets that stand for a number; ok says whether it is one.
func (b *Binder) numberOf(target bind.Target) (of numbered, n uint32, ok bool, err error) {
	switch target.Kind {
	case bind.TargetLink:
		l, err := b.getLink(0, target.Name)
		return byLink, l.index, true, err
	case bind.TargetLinkIndex:
		return byLink, uint32(target.ID), true, nil
	case bind.TargetUser:
		return byUser, uint32(target.ID), true, nil
	}
	return 0, 0, false, nil
}
