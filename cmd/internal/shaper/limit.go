package shaper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// Limit is a branch of its own for what somebody names, without a policy that says so: where
// a tree stands in that, below the branch that carries it otherwise, and else in the smallest
// tree that can hold it.
type Limit struct {
	amend.Branch          // but for its path
	On           []string // interfaces; empty: those of the default routes
	PIDs         []int    // processes that are put into it; of a program those of its name
	Below        bool     // with all their children
	Own          bool     // it is for the program that this process becomes
	Whole        bool     // it is the interface's own

	at string // the cgroup of its processes, once that is known
}

// NoRouteError says that there is no default route whose interface could be meant.
type NoRouteError struct{}

func (NoRouteError) Error() string { return "this network namespace has no default route" }

// Remedy is the way on.
func (NoRouteError) Remedy() string { return "name the interface: --on eth0; `vifshape ls` lists them" }

// NoNetemError says that the kernel has not what emulates links.
type NoNetemError struct{}

func (NoNetemError) Error() string {
	return "this kernel has no netem, by which packets are delayed and lost: its module sch_netem is missing"
}

// Remedy is the way on.
func (NoNetemError) Remedy() string {
	return "`modprobe sch_netem` says whether it is installed; it may be in a package of its own, as linux-modules-extra of Ubuntu and kernel-modules-extra of Fedora; rates alone (--up, --down) need nothing of it"
}

// anywhere are addresses of nobody, which only a route to all of the world is for (RFC 5737,
// RFC 3849).
var anywhere = []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// Outward are the interfaces of the default routes, those of IPv4 first, and those of a VPN
// that takes all of their packets, by rules or by routes to each half of the world.
func (m *Machine) Outward() ([]link.Link, error) {
	routes, err := link.DefaultRoutes(m.Conn)
	if err != nil {
		return nil, err
	}
	var indices []int
	for _, r := range routes {
		indices = append(indices, r.Index)
	}
	for _, to := range anywhere {
		i, err := link.RouteTo(m.Conn, to)
		if err != nil {
			return nil, err
		}
		indices = append(indices, i)
	}
	links, err := link.List(m.Conn)
	if err != nil {
		return nil, err
	}
	var all []link.Link
	for _, index := range indices {
		at := func(l link.Link) bool { return l.Index == index }
		if i := slices.IndexFunc(links, at); i >= 0 && !slices.ContainsFunc(all, at) {
			all = append(all, links[i])
		}
	}
	if len(all) == 0 {
		return nil, NoRouteError{}
	}
	return all, nil
}

// Limit makes a limit, on all of its interfaces or none; one that there is for the same
// becomes what this one says. It returns the branches.
func (m *Machine) Limit(ctx context.Context, l Limit) (made []hierarchy.Path, err error) {
	if len(l.On) == 0 {
		out, err := m.Outward()
		if err != nil {
			return nil, err
		}
		for _, o := range out {
			l.On = append(l.On, o.Name)
		}
	}
	unlock, err := m.lock(ctx, "limit "+l.Limit)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return m.limitOn(ctx, &l)
}

// limitOn is Limit on interfaces that are known, for who holds the lock.
func (m *Machine) limitOn(ctx context.Context, l *Limit) (made []hierarchy.Path, err error) {
	at, err := m.sameLimit(l)
	if err == nil && at == "" && l.housed() {
		err = m.fromHome(l)
	}
	if err != nil {
		return nil, err
	}
	var undo []func(context.Context) error
	defer func() {
		if err == nil {
			return
		}
		for i, back := range slices.Backward(undo) {
			if back := back(context.WithoutCancel(ctx)); back != nil {
				err = PartlyError{fmt.Errorf("%w; and %s could not be made what it was: %w", err, made[i], back)}
			}
		}
		made = nil
	}()
	for _, iface := range l.On {
		p, back, err := m.limit(ctx, iface, l)
		if back != nil {
			made, undo = append(made, p), append(undo, back)
		}
		if err == nil && l.housed() && at == "" {
			at, err = p, m.houseOf(ctx, p, l, false)
		}
		if err != nil {
			return made, err
		}
	}
	// Last, when all interfaces know them there: till now they are where they were.
	if len(l.PIDs) > 0 {
		if err = m.houseOf(ctx, at, l, true); err == nil {
			err = m.lead(ctx, made)
		}
	}
	return made, err
}

// lead binds to limits what leads to the network namespaces that their processes are in, and
// tells of those that nothing leads to.
func (m *Machine) lead(ctx context.Context, made []hierarchy.Path) error {
	for _, p := range made {
		r, err := m.Rebind(ctx, p.Interface(), nil)
		if err != nil {
			return err
		}
		m.tellOutside(slices.DeleteFunc(r.Outside, func(o resolve.Outside) bool { return !o.Path.Below(p) }))
	}
	return nil
}

// housed says whether it has a home, which its processes are put into.
func (l *Limit) housed() bool { return l.Own || len(l.PIDs) > 0 || l.Program != "" }

// sameLimit finds the branch in whose home the processes are of a limit that there is for the
// same, empty where there is none. One that a program makes for itself is always another: it
// may have become that by another one with a limit.
func (m *Machine) sameLimit(l *Limit) (at hierarchy.Path, err error) {
	if !l.housed() {
		return "", nil
	}
	records, err := m.limitedRecords()
	if err != nil {
		return "", err
	}
	find := func(name string) (on hierarchy.Path, there bool) {
		for _, r := range records {
			for _, b := range r.Added {
				if b.Limit != name {
					continue
				}
				if there = true; len(b.Bind) == 0 {
					on = b.Path
				}
			}
		}
		return on, there
	}
	if l.Own {
		name := l.Limit
		for n := 2; ; n++ {
			if _, there := find(l.Limit); !there {
				return "", nil
			}
			l.Limit = fmt.Sprintf("%s-%d", name, n)
		}
	}
	at, there := find(l.Limit)
	if !there {
		return "", nil
	}
	if at == "" {
		return "", fmt.Errorf("%[1]s is limited already, by a branch that is gone: `vifshape unlimit %[1]s` first", words.Printable(l.Limit))
	}
	for _, r := range records {
		if r.Interface == at.Interface() {
			l.at = home.Target(m.Store.NetNS, r.IDs.Home(at)).Name
		}
	}
	return at, nil
}

// limit makes a limit on one interface, and returns its branch with what makes the interface
// again what it was; nil: it has not changed.
func (m *Machine) limit(ctx context.Context, iface string, l *Limit) (p hierarchy.Path, back func(context.Context) error, err error) {
	if l.Link != nil && l.Link.NeedsNetem() {
		d, err := tc.Find(m.Conn, iface)
		if err != nil {
			return "", nil, err
		}
		if lacking, err := qdisc.Ask(d.Interface).Lacks(ctx, "netem"); err != nil || len(lacking) > 0 {
			return "", nil, cmp.Or(err, error(NoNetemError{}))
		}
	}
	err = m.edit(ctx, iface, m.bare, func(x *Target) error {
		b := l.Branch
		was := x.Record.Added
		added := slices.Clone(was)
		i := limitOf(added, b.Limit)
		switch {
		case i >= 0:
			b.Path = added[i].Path
		case l.Whole:
			b.Path = hierarchy.Path(iface)
		default:
			above, err := m.above(ctx, x.Interface, l)
			if err != nil {
				return err
			}
			b.Path = above.Join(amend.Name(b.Limit))
			for n := 2; x.CheckPath(b.Path) == nil && x.Record.Policy != ""; n++ {
				b.Path = above.Join(amend.Name(fmt.Sprintf("%s-%d", b.Limit, n)))
			}
		}
		if l.housed() {
			switch {
			case i >= 0:
				b.Bind = added[i].Bind
			case l.at != "": // another interface's branch has the home
				at, err := bind.Parse("cgroup:" + l.at)
				if err != nil {
					return err
				}
				b.Bind = []bind.Binding{at}
			default:
				l.at = home.Target(m.Store.NetNS, x.Record.IDs.Home(b.Path)).Name
			}
			if b.Holder != nil {
				holder := *b.Holder
				holder.Cgroup = l.at
				b.Holder = &holder
			}
		}
		switch {
		case i >= 0:
			added[i] = b
		case l.Whole:
			added = append([]amend.Branch{b}, added...)
		default:
			added = append(added, b)
		}
		p = b.Path
		back = func(ctx context.Context) error {
			if i < 0 {
				return m.takeLimits(ctx, iface, func(b amend.Branch) bool { return b.Path == p })
			}
			return m.edit(ctx, iface, nil, func(x *Target) error { return x.extend(was) })
		}
		if err := x.extend(added); err != nil {
			return err
		}
		for _, d := range x.dropped {
			if d.Path == p {
				return fmt.Errorf("%s: %s", d.Path, d.Why)
			}
		}
		return nil
	})
	if err != nil {
		back = nil
	}
	return p, back, err
}

// limitOf is where among branches a limit is; -1: nowhere.
func limitOf(added []amend.Branch, limit string) int {
	return slices.IndexFunc(added, func(a amend.Branch) bool { return a.Limit == limit })
}

// extend makes the target what its policy with these branches is.
func (x *Target) extend(added []amend.Branch) error {
	with, err := amend.Extend(x.spec, qdisc.Kinds(), added)
	if err == nil {
		x.lay(with)
	}
	return err
}

// houseOf makes the home of a limit's branch, and puts its processes into that if they are to
// be moved now.
func (m *Machine) houseOf(ctx context.Context, p hierarchy.Path, l *Limit, move bool) error {
	x, class, err := m.standing(p)
	if err != nil {
		return err
	}
	defer x.Binder.Close()
	target, err := m.makeHome(ctx, x, p, class)
	if err == nil && move {
		err = m.house(ctx, x, target, p, l)
	}
	return err
}

// house puts the processes of a limit into its home, and tells which of a program there were.
func (m *Machine) house(ctx context.Context, x *Interface, target bind.Target, p hierarchy.Path, l *Limit) error {
	got, err := x.attach(ctx, target, l.PIDs, l.Below)
	if err != nil {
		return err
	}
	for _, f := range got.Failed {
		m.Warnf(p, "%s: process %d: %v", p, f.PID, f.Err)
	}
	if len(got.Processes) == 0 && l.Program == "" {
		return fmt.Errorf("%s: no process is left that could be put into it", l.Limit)
	}
	if l.Program != "" {
		var names []string
		for _, o := range got.Processes {
			names = append(names, fmt.Sprintf("%s[%d]", words.Printable(o.Name), o.PID))
		}
		m.Notef(p, "%s: %s: %s", p, words.Number(len(names), "process", "processes"), strings.Join(names, " "))
	}
	if got.Stay != "" {
		m.Notef(p, "%s: open sockets keep their class, only new ones are the branch's: %s", p, got.Stay)
	}
	return nil
}

// bare is what the policy of an interface would say that has none.
func (m *Machine) bare(x *Interface) (*hierarchy.Spec, error) {
	s, err := x.Kernel.Read(context.Background())
	if err != nil {
		return nil, err
	}
	switch root := x.On(s).Root; {
	case root.Ours():
		return nil, fmt.Errorf("%s: the record of its tree is lost: apply its policy again, or clear it", x.Record.Interface)
	case root.Foreign():
		return nil, &ForeignRootError{x.Record.Interface, root, true}
	}
	return m.line(x)
}

// line is a policy that says what an interface's line carries, as far as the kernel knows it.
func (m *Machine) line(x *Interface) (*hierarchy.Spec, error) {
	links, err := link.List(m.Conn)
	if err != nil {
		return nil, err
	}
	rate := amend.Unlimited
	for _, l := range links {
		if l.Index == int(x.Device.Index) && l.Speed != 0 {
			rate = l.Speed
		}
	}
	if rate == amend.Unlimited {
		m.Notef(hierarchy.Path(x.Record.Interface), "%s: the kernel does not know what its line carries: all else is sent without a bound", x.Record.Interface)
	}
	return &hierarchy.Spec{Interface: x.Record.Interface, BranchSpec: hierarchy.BranchSpec{Rate: hierarchy.Absolute(rate)}}, nil
}

// limitsAlone is an interface on the way to a tree for its limits alone; nil: none of them can
// stay, or it is not there.
func (m *Machine) limitsAlone(ctx context.Context, iface string) (*Target, error) {
	s, err := m.Interface(iface, "") // bound as it is: processes are in homes of that way
	if err != nil {
		if errors.As(err, new(*link.NotFoundError)) {
			err = nil
		}
		return nil, err
	}
	x := &Target{change: change{Interface: s, goes: true}}
	limits := slices.DeleteFunc(slices.Clone(s.Record.Added), func(b amend.Branch) bool { return b.Limit == "" })
	if len(limits) > 0 {
		x.spec, err = m.line(s)
	}
	if err == nil && len(limits) > 0 {
		err = x.extend(nil)
	}
	if err == nil {
		err = x.keepAdded(limits)
	}
	if err == nil && len(x.added) > 0 {
		if err = m.settle(ctx, record.NoPolicy, s.Record.Binding, x); err == nil {
			return x, nil
		}
	}
	m.tellDropped(x)
	return nil, errors.Join(err, s.Binder.Close())
}
