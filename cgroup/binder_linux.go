package cgroup

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/bpf"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/iface"
	"github.com/vifshape/vifshape/cgroup/netcls"
	"github.com/vifshape/vifshape/cgroup/nft"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// Hook is where classifiers sit on one network interface.
type Hook interface {
	bpf.Hook
	bpf.Ingress
	bpf.Matching
	bpf.Receiving
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
	// Formerly are other names that the interface had: homes of its branches may be by these.
	Formerly []string
	// Pods tells which pods of Kubernetes run here; nil: none.
	Pods func() ([]resolve.Pod, error)
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
	// Receiver is the index of the interface that carries the tree for what this one
	// receives, 0 when there is none. Nil: there is none.
	Receiver func() (uint32, error)
	// Bare says that the interface has no link-layer header.
	Bare bool
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
	flows  *bpf.Receiver
	rules  *bpf.Matches
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
	known  []hierarchy.Matched    // branches with matches that are wanted, in full
	guard  *bpf.Guard
	marker *bpf.Marker
	links  *iface.Conn // nil: nothing was asked yet
	last   *choice     // on the interface, when this Binder last looked or changed it
	is     uint32      // its version
	beside bool        // rules of a former way lie beside it
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
	if cfg.Receiver == nil {
		cfg.Receiver = func() (uint32, error) { return 0, nil }
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

// Close lets go of descriptors. What is on the hook stays. A net_cls hierarchy that
// was mounted by this package goes again when nothing is in it and no interface
// needs it.
func (b *Binder) Close() error {
	errs := []error{b.egress.Close(), b.flows.Close(), b.rules.Close(), b.guard.Close(), b.marker.Close()}
	if b.links != nil {
		errs = append(errs, b.links.Close())
	}
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
// the classifier. Flows is how many flows there is to be room for where the interface has a
// tree for what it receives, which the classifier then tells apart as well; 0: it has none.
// Matched are the branches of the tree that have matches.
func (b *Binder) Hook(flows uint32, matched ...hierarchy.Matched) (hierarchy.Hook, error) {
	if err := b.choose(); err != nil {
		return hierarchy.Hook{}, err
	}
	h := hierarchy.Hook{Way: b.way.name, Version: way.Version}
	if flows > 0 {
		h.Receive, h.Flows = way.Version, flows
		if err := b.receives(); err != nil {
			return hierarchy.Hook{}, err
		}
	}
	if b.known = matched; len(matched) > 0 {
		h.Match = way.Version
		if err := Matches(b.cfg, b.way.name, matched); err != nil {
			return hierarchy.Hook{}, fmt.Errorf("%s: match: %w", b.cfg.Interface, err)
		}
	}
	if err := b.warnTCX(b.way); err != nil {
		return hierarchy.Hook{}, b.wrap(err)
	}
	return h, nil
}

// Matches says why packets of an interface cannot get into branches by matches where processes
// are bound by a way, nil when they can. Of the Config it needs what tells of the interface.
func Matches(c Config, w bind.Way, all []hierarchy.Matched) error {
	switch {
	case w != bind.WayBPF:
		return fmt.Errorf("with binding %s packets get into branches by what is bound alone: it takes binding bpf", w)
	case c.Bare && asked(all, func(m match.Match) bool { return len(m.MAC) > 0 }):
		return errors.New("mac: the interface has no such addresses: leave the key out")
	}
	if err := bpf.Check(all); err != nil {
		return err
	}
	if asked(all, func(m match.Match) bool { return len(m.Host) > 0 }) {
		return hosts(c)
	}
	return nil
}

func asked(all []hierarchy.Matched, key func(match.Match) bool) bool {
	return slices.ContainsFunc(all, func(x hierarchy.Matched) bool { return slices.ContainsFunc(x.Match, key) })
}

// hosts says why the addresses of our side cannot be told on an interface, nil when they can:
// the firewall translates them, and the kernel does not say what they were.
func hosts(c Config) error {
	untold := bpf.Tracks()
	if untold == nil {
		return nil
	}
	chains, err := nft.Translations(c.NetNSFD, c.Interface, c.Index)
	if err != nil || len(chains) == 0 {
		return err
	}
	return fmt.Errorf("host: the firewall translates addresses here (%s), and this kernel does not say what they were before: for what is sent have the firewall set a mark in a chain at forward, and write mark = \"0x10\" instead of host; what is received comes to matches before it can be marked: %w", strings.Join(chains, ", "), untold)
}

// receives says why received packets cannot get their class here, nil when they can.
func (b *Binder) receives() error {
	err := bpf.Shows(b.way.name)
	if err == nil {
		var is uint32
		if is, _, err = b.received(); err == nil && is != way.Version {
			err = bpf.TryReceive()
		}
	}
	if err != nil {
		err = fmt.Errorf("%s: ingress: %w", b.cfg.Interface, err)
	}
	return err
}

// received is the version of the programs for what the interface receives, and how many
// flows they have room for.
func (b *Binder) received() (version, flows uint32, err error) {
	return b.flows.Read(b.egress, b.rules, b.cfg.Receiver)
}

// Flows counts the table by which received packets get their class; its Room is 0 where
// there is none.
func (b *Binder) Flows() (bpf.Table, error) {
	t, err := b.flows.Table()
	return t, b.wrap(err)
}

// Homes are those of the interface, in the hierarchy of the way chosen, else of the
// classifier on the interface, else of the way that would be chosen. They are good until
// [Binder.Close].
func (b *Binder) Homes() (home.Homes, error) {
	if err := b.settle(); err != nil {
		return home.Homes{}, err
	}
	return b.homes(), nil
}

func (b *Binder) homes() home.Homes {
	return home.Homes{Tree: b.tree(), NetNS: b.cfg.NetNS, Interface: b.cfg.Interface}
}

// Fresh tells that the cgroup of a target was made just now: nothing was ever in it that
// could know another class, and to bind it needs no word to open sockets.
func (b *Binder) Fresh(target bind.Target) { b.fresh[target.Name] = true }

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

// Resolve finds what the bindings of branches name, see [resolve.Resolve], in the hierarchy
// of the way chosen, and as far as that can bind it. Watch may be nil.
func (b *Binder) Resolve(ctx context.Context, branches []resolve.Branch, watch resolve.Watch) (*resolve.Resolution, error) {
	if err := b.choose(); err != nil {
		return nil, err
	}
	return b.resolve(ctx, b.resolving(watch), branches)
}

// ResolvePods is Resolve for what belongs to some pods, by their ids, and for nothing else.
func (b *Binder) ResolvePods(ctx context.Context, branches []resolve.Branch, ids []string) (*resolve.Resolution, error) {
	if err := b.choose(); err != nil {
		return nil, err
	}
	cfg := b.resolving(nil)
	cfg.Only = ids
	return b.resolve(ctx, cfg, branches)
}

func (b *Binder) resolve(ctx context.Context, cfg resolve.Config, branches []resolve.Branch) (*resolve.Resolution, error) {
	r, err := resolve.Resolve(ctx, cfg, branches)
	if err != nil {
		return nil, b.wrap(err)
	}
	maps.Copy(b.paths, r.Cgroups)
	return r, nil
}

// resolving is what bindings are resolved for, once a way is chosen.
func (b *Binder) resolving(watch resolve.Watch) resolve.Config {
	return resolve.Config{
		Tree: b.tree(), Interface: b.cfg.Interface, Formerly: b.cfg.Formerly, NetNS: b.cfg.NetNS, NetNSFD: b.cfg.NetNSFD, Root: b.cfg.Root,
		NoUsers: b.way.store.Holds(bind.TargetUser), NoLinks: b.way.store.Holds(bind.TargetLink), Pods: b.cfg.Pods, Watch: watch,
	}
}

// Like says of a pending binding whether what it names is known to the machine, and which
// bindings may have been meant else, see [resolve.Like].
func (b *Binder) Like(ctx context.Context, x bind.Binding) (known bool, near []bind.Binding) {
	if err := b.choose(); err != nil {
		return true, nil
	}
	return resolve.Like(ctx, b.resolving(nil), x)
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

func (b *Binder) wrap(err error) error {
	if err == nil || strings.HasPrefix(err.Error(), b.cfg.Interface+": ") { // the hook's errors say so
		return err
	}
	return fmt.Errorf("%s: classifier: %w", b.cfg.Interface, err)
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
