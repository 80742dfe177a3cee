// Package shaper is the engine: what a policy comes to on this machine, and how it is brought
// there and taken away again; the bindings of what is shaped; programs that are started and
// put inside a branch. A [Machine] is one network namespace, and the only door to packages tc
// and cgroup together. It prints nothing: results and errors are returned, and a [Remark] is
// told for what is to be said besides. Changes take root, and the lock of the package record.
// A Machine is for one goroutine.
package shaper

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/resolve"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/foreign"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Machine is the network namespace that the program runs in.
type Machine struct {
	Conn   *rtnl.Conn
	Store  *record.Store
	RunDir string
	tell   func(Remark)
	tags   []string // interfaces of the policy at hand that net_cls tags will bind, see Changes.Close

	others  map[int]time.Duration // processes of limited programs that another branch carries, with when they started
	missing map[string]string     // of classifiers, once the kernel was asked; see lacks
}

// Open opens the network namespace of the caller, with what vifshape keeps of it
// in a run directory. Nothing is changed. What is to be said besides results and errors
// is told as it comes up, by one goroutine at a time.
func Open(runDir string, tell func(Remark)) (*Machine, error) {
	s, err := record.Open(runDir)
	if err != nil {
		return nil, err
	}
	m := &Machine{Store: s, RunDir: runDir, tell: tell}
	m.Conn, err = rtnl.Open(rtnl.Config{Warn: func(s string) { m.Warnf("", "kernel: %s", s) }})
	if err != nil {
		return nil, err
	}
	return m, nil
}

// Close ends the talk with the kernel.
func (m *Machine) Close() error { return m.Conn.Close() }

// lock is that of the store. Where there is no room for its file nobody else has it
// either, and trees are made and taken away nevertheless.
//
// What was to be confirmed and was not goes back first, where nobody else has seen to it.
func (m *Machine) lock(ctx context.Context, what string) (func(), error) {
	unlock, err := m.Store.Lock(ctx, what)
	if record.Full(err) {
		m.Warnf("", "there is no room for a lock in %s: two that change the interfaces at once will not see each other", m.Store.Dir)
		unlock, err = func() {}, nil
	}
	if err != nil {
		return nil, err
	}
	err = m.overdue(ctx)
	if err == nil {
		if failed := m.pass(ctx); NotPrivileged(failed) {
			err = failed
		} else if failed != nil {
			m.Warnf("", "limits that hold nothing any more could not be taken away: %v", failed)
		}
	}
	if err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}

// ReadPolicy parses a policy, with what is laid over it. "-" is standard input.
func ReadPolicy(file string) (*policy.Policy, error) { return readPolicy(file, file, io.Discard) }

// readPolicy parses a policy with what is laid over the file as, and copies its own text.
func readPolicy(file, as string, text io.Writer) (_ *policy.Policy, err error) {
	var r io.Reader = os.Stdin
	name := "standard input"
	if file != "-" {
		f, err := OpenPolicy(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r, name = f, file
	}
	var names []string
	if as != "-" {
		if names, err = policy.Over(as); err != nil {
			return nil, err
		}
	}
	var over []policy.Text
	for _, n := range names {
		f, err := OpenPolicy(n)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		over = append(over, policy.Text{Name: n, Reader: f})
	}
	return policy.Parse(name, io.TeeReader(r, text), qdisc.Kinds(), over...)
}

// Interface is one interface with what is known about it.
type Interface struct {
	Device   *tc.Device
	Receiver *tc.Receiver // what it receives
	Binder   *cgroup.Binder
	Kernel   hierarchy.Kernel
	Record   *record.Record
}

// Interface opens an interface that may or may not have a tree of ours. An empty
// binding is the one of the tree that it has.
func (m *Machine) Interface(iface, binding string) (*Interface, error) {
	d, r, err := m.Device(iface)
	if err != nil {
		return nil, err
	}
	if binding == "" {
		binding = r.Binding
	}
	names := r.IDs.Names(iface)
	in := d.Receiver()
	cfg := cgroup.Config{
		Hook: hook.Of(d.Interface), Interface: iface, Index: d.Index, NetNS: m.Store.NetNS, RunDir: m.RunDir,
		Ways: Ways(binding), Classes: names,
		Others:   func() ([]string, error) { return m.Tagged(iface, d.Index) },
		Lacks:    m.lacks,
		Formerly: r.Formerly,
		Receiver: in.Index, Bare: d.Bare(), Pods: m.Store.BoundPods,
		Warn: func(s string) { m.Notef(hierarchy.Path(iface), "%s", s) },
	}
	b, err := cgroup.NewBinder(cfg)
	if err != nil {
		return nil, err
	}
	k := hierarchy.Kernel{Device: iface, Parts: []hierarchy.Part{d, in, b.Steady()}, Names: names}
	return &Interface{d, in, b, k, r}, nil
}

// On is what stands where the interface sends.
func (x *Interface) On(s hierarchy.State) hierarchy.PortState { return s.On(x.Device.Port()) }

// In is what stands where it receives.
func (x *Interface) In(s hierarchy.State) hierarchy.PortState { return s.On(x.Receiver.Port()) }

// Tagged lists the interfaces but the given one that are bound by net_cls tags, or
// will be.
func (m *Machine) Tagged(iface string, index uint32) ([]string, error) {
	names, err := m.Store.Interfaces()
	if err != nil {
		return nil, err
	}
	all := slices.Clone(m.tags)
	for _, n := range names {
		r, err := m.Store.Load(n)
		if err != nil {
			return nil, err
		}
		if r.Way.Tagged() && r.Index != index && !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	return slices.DeleteFunc(all, func(n string) bool { return n == iface }), nil
}

// Ways are those that a binding stands for, nil for auto and for none: all. With
// net_cls the tags are read by BPF, else by nf_tables, else by the kernel's own
// classifier.
func Ways(binding string) []bind.Way {
	switch binding {
	case "bpf":
		return []bind.Way{bind.WayBPF}
	case "nft":
		return []bind.Way{bind.WayNft}
	case "net_cls":
		return []bind.Way{bind.WayNetCls, bind.WayNetClsNft, bind.WayClsCgroup}
	}
	return nil
}

// Target is one interface on the way to what a policy wants.
type Target struct {
	change
	Tree    *hierarchy.Tree
	pending []resolve.Pending  // bindings that name what is not there yet
	outside []resolve.Outside  // bindings that do not hold all of what they name
	kept    []record.Binding   // bindings made at run time, that stay
	lost    []record.Binding   // and those that go with their branches
	spec    *hierarchy.Spec    // what the policy says of the interface
	by      hierarchy.Selector // by which it names that; empty: as in the record
	added   []amend.Branch     // branches beside the policy's, in tree
	dropped []amend.Dropped    // and those that have no place in it any more
	former  *record.Record     // whose bindings of run time it has; nil: the interface's own
	Blind   error              // why the bindings in force could not be read
	Drifted hierarchy.Plan     // what has become different since it was applied, see [Changes.Drift]
}

// Want is what the interface is to become.
func (x *Target) Want() hierarchy.State { return x.want }

// unknown says whether there is a tree whose record is lost.
func (x *Target) unknown() bool { return x.On(x.before).Root.Ours() && x.Record.Policy == "" }

// settle works out what has to be done on the tree's interface.
func (m *Machine) settle(ctx context.Context, file, binding string, x *Target) error {
	s, t := x.Interface, x.Tree
	memory := s.Record.IDs
	if x.former != nil { // names go back, too
		memory.Named = x.former.IDs.Named
	}
	ids, err := memory.Assign(t)
	if err != nil {
		return err
	}
	if err := s.Device.Settle(ctx, t); err != nil {
		return err
	}
	if t.Ingress != nil {
		if err := s.Receiver.Settle(ctx, t.Ingress); err != nil {
			return err
		}
		if err := bypassed(t.Port.Device); err != nil {
			return err
		}
	}
	if x.before, err = x.read(ctx); err != nil { // by the names that they had
		return err
	}
	maps.Copy(s.Kernel.Names, ids.Names(t.Port.Device))
	if r := x.On(x.before).Root; r.Foreign() && !t.Replace {
		return &ForeignRootError{t.Port.Device, r, false}
	}
	x.want = t.State()
	x.next = &record.Record{
		Version: record.Version, Interface: t.Port.Device, Index: s.Device.Index, Formerly: s.Record.Formerly, MTU: s.Device.MTU(), Policy: absolute(file),
		Binding: binding, IDs: ids, Former: s.Record.Former, Was: s.Record.Was,
		Spec: s.Record.Spec, Delegated: Delegations(t), Added: x.added,
		Selector: x.selector(file), Link: x.spec.Link(), Serial: s.Record.Serial, Applied: s.Record.Applied, By: s.Record.By, Boot: s.Record.Boot, Receives: t.Ingress != nil,
	}
	// Where somebody took the tree away it is as it was known: what there is now is the kernel's.
	if root := x.On(x.before).Root; root.Foreign() || !root.Ours() && s.Record.Index != s.Device.Index {
		if x.next.Former, err = foreign.Root(s.Device.Interface); err != nil {
			return err
		}
	}
	if err := x.bind(ctx); err != nil {
		return err
	}
	x.toward(x.want)
	return nil
}

// selector is that by which the policy names the interface; empty where limits have no policy.
func (x *Target) selector(file string) hierarchy.Selector {
	switch {
	case file == record.NoPolicy:
		return ""
	case x.by != "":
		return x.by
	case x.former != nil:
		return x.former.Selector
	}
	return x.Record.Selector
}

// is makes the target what somebody applies at a time.
func (x *Target) is(at time.Time, by string) {
	x.next.Spec, x.policy = x.spec, true
	x.next.Applied, x.next.By, x.next.Boot = at, by, record.SinceBoot()
}

// read is the state of the interface. Without privileges the bindings in force
// cannot be read; the rest of the state still can.
func (x *Target) read(ctx context.Context) (hierarchy.State, error) {
	s, err := x.Kernel.Read(ctx)
	if !errors.Is(err, caps.ErrNotPrivileged) {
		return s, err
	}
	x.Blind = err
	return x.of(x.Device, x.Receiver).Kernel.Read(ctx)
}

// bind puts the classifier and the bindings into the wanted state: those of the
// policy, and the cgroups that run has made for branches.
func (x *Target) bind(ctx context.Context) (err error) {
	for b := range x.Tree.All() {
		x.next.Order = append(x.next.Order, b.Path)
		limit := slices.ContainsFunc(x.added, func(a amend.Branch) bool { return a.Path == b.Path && a.Limit != "" })
		for _, bind := range b.Bind {
			x.next.Bindings = append(x.next.Bindings, record.Binding{Path: b.Path, Binding: bind, Limit: limit})
		}
	}
	x.keepBindings()
	matched := x.Tree.Matched()
	x.next.Matches = len(matched) > 0
	if x.Blind == nil {
		var flows uint32
		if x.Tree.Ingress != nil {
			flows = x.Tree.Ingress.Flows
		}
		if x.want.Hook, err = x.Binder.Hook(flows, matched...); errors.Is(err, caps.ErrNotPrivileged) {
			x.Blind = err
		} else if err != nil {
			return err
		}
	}
	if x.Blind != nil {
		x.want.Hook, x.want.Bound, x.want.Matched = x.before.Hook, x.before.Bound, x.before.Matched
		return nil
	}
	x.next.Way = x.want.Hook.Way
	r, err := x.Binder.Resolve(ctx, x.next.Branches(), nil)
	if err == nil {
		err = x.refused(r)
	}
	if err != nil {
		return err
	}
	x.want.Bound, x.want.Matched, x.pending, x.outside = r.Bound, matched, r.Pending, r.Outside
	x.next.Came(r)
	return nil
}

// absolute is the path as it is found again from another directory.
func absolute(file string) string {
	if a, err := filepath.Abs(file); err == nil && file != "-" && file != record.NoPolicy {
		return a
	}
	return file
}

// Changes are what a policy comes to on this machine.
type Changes struct {
	m       *Machine
	policy  *policy.Policy
	Targets []*Target
	Absent  []*link.NotFoundError // interfaces of the policy that are not there, and left out
	Unknown []*LinkError          // those that wait for how fast their line is
	waits   bool                  // until they are
}

// Scope is how much of a policy is meant, and how.
type Scope struct {
	Binding string // instead of the policy's; empty: that
	// Only says which of the interfaces that the policy fits are meant; nil: all.
	Only func(link.Link) bool
	// Waits says that interfaces which are not there are waited for: it is no error that
	// none is.
	Waits bool
}

// Plan works out every interface of a policy before the first is changed, and looks at
// the kernel while the policy is still being read. Interfaces that are not there are
// left out, unless none is.
func (m *Machine) Plan(ctx context.Context, r *Reading, o Scope) (*Changes, error) {
	early := m.ahead(ctx)
	p, err := r.Wait(ctx)
	if err != nil {
		return nil, err
	}
	binding := cmp.Or(o.Binding, p.Binding)
	m.TellPlaced(p.Warnings)
	c := &Changes{m: m, policy: p, waits: o.Waits}
	wanted, absent, err := m.Wanted(p, o.Only)
	if err != nil {
		return nil, err
	}
	c.Absent = absent
	for _, w := range wanted {
		t := w.Tree
		if w.Unknown != nil && o.Waits {
			c.Unknown = append(c.Unknown, w.Unknown)
			continue
		}
		if w.Unknown != nil {
			c.Close()
			return nil, w.Unknown
		}
		s, err := m.Interface(t.Port.Device, binding)
		if no := (*link.NotFoundError)(nil); errors.As(err, &no) {
			c.Absent = append(c.Absent, Unlike(no, p)) // it vanished just now
			continue
		}
		if err == nil {
			if was, ok := early[t.Port.Device]; ok {
				s.Kernel.Parts[0] = &readAhead{s.Device, &was}
			}
			x := &Target{change: change{Interface: s}, Tree: t, spec: w.Spec, by: w.By}
			c.Targets = append(c.Targets, x)
			if err = x.keepAdded(s.Record.Added); err == nil {
				err = m.settle(ctx, r.as, binding, x)
			}
			if err == nil && x.want.Hook.Way.Tagged() {
				m.tags = append(m.tags, t.Port.Device)
			}
		}
		if err != nil {
			c.Close()
			return nil, err
		}
	}
	if len(c.Targets) == 0 && !o.Waits {
		return nil, c.NotThere()
	}
	return c, nil
}

// Plans are those of the interfaces, in the policy's order.
func (c *Changes) Plans() []hierarchy.Plan {
	all := make([]hierarchy.Plan, len(c.Targets))
	for i, x := range c.Targets {
		all[i] = x.Plan
	}
	return all
}

// Empty says whether there is nothing to do, and nothing to write down.
func (c *Changes) Empty() bool {
	return !slices.ContainsFunc(c.Targets, func(x *Target) bool { return !x.Plan.Empty() || len(x.Plan.Renames) > 0 || x.unknown() })
}

// blind is why the bindings in force could not be read; nil: they were.
func (c *Changes) blind() error {
	for _, x := range c.Targets {
		if x.Blind != nil {
			return x.Blind
		}
	}
	return nil
}

// Tell says what the plans do not show. What stays as it is is for those who only look.
func (c *Changes) Tell(ctx context.Context, stays bool) error {
	if stays {
		for _, over := range c.over() {
			c.m.Notef("", "%s is laid over it", over)
		}
	}
	c.tellAbsent()
	if err := c.tellPlaces(); err != nil {
		return err
	}
	for _, x := range c.Targets {
		about := hierarchy.Path(x.Tree.Port.Device)
		if stays && x.unknown() {
			c.m.Notef(about, "%s: the record of its tree is lost: apply writes it anew; what bind and add had made goes, and clear cannot put back the root qdisc from before", about)
		}
		c.m.tellPlan(ctx, x)
		c.m.tellAdded(ctx, x, stays)
		if !stays {
			continue
		}
		for _, b := range x.kept {
			c.m.Notef(b.Path, "%s: %v, bound at run time, stays", b.Path, b.Binding)
		}
		if speed := x.spec.Link(); speed != 0 {
			c.m.Notef(about, "%s: its rate is a share of the link, which has %v", about, speed)
		}
		if x.Blind != nil {
			c.m.Notef(about, "%s: bindings are left out: without privileges they can be neither read nor tried", about)
		}
	}
	return nil
}

// over are the files that are laid over the policy's.
func (c *Changes) over() []string {
	if c.policy == nil { // it goes back
		return nil
	}
	return c.policy.Over
}

// ApplyOptions are how a policy is applied.
type ApplyOptions struct {
	What string // for others who wait meanwhile, as "apply policy.toml"
	Scope
	All bool // change nothing unless every interface of the policy is there
	// Confirm is the time after which the state before comes back, unless it is confirmed;
	// 0: it stays. Watch is the process that sees to it, by [Machine.Guard].
	Confirm time.Duration
	Watch   func() *exec.Cmd
	// Agreed is asked before anything changes whether that is what was meant; nil: it is.
	Agreed func(*Changes) error
	// Then is done when all is applied, before others may change anything; nil: nothing is. Its
	// error is that of the whole, and undoes nothing.
	Then func() error
}

// Apply brings a policy into force, all of it or nothing, under the lock of writers. The
// caller closes the changes. With an error there are none.
func (m *Machine) Apply(ctx context.Context, r *Reading, o ApplyOptions) (*Changes, error) {
	unlock, err := m.lock(ctx, o.What)
	if err != nil {
		return nil, r.Before(ctx, err)
	}
	defer unlock()
	if err := m.confirmed(); err != nil {
		return nil, r.Before(ctx, err)
	}
	c, err := m.Plan(ctx, r, o.Scope)
	if err != nil {
		return nil, err
	}
	if o.All {
		err = c.NotThere()
	}
	if err == nil {
		err = c.blind()
	}
	if err == nil && o.Agreed != nil {
		err = o.Agreed(c)
	}
	if err == nil {
		err = c.Tell(ctx, false)
	}
	at, by := now()
	for _, x := range c.Targets {
		x.is(at, by)
	}
	if err == nil && o.Confirm > 0 {
		err = m.unconfirmed(ctx, c, o)
	} else if err == nil {
		err = m.apply(ctx, c.Targets)
	}
	if err == nil && o.Then != nil {
		err = o.Then()
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// Close lets go of descriptors. That it fails changes nothing.
func (c *Changes) Close() {
	release(c.Targets)
	c.m.tags = nil
}

// release lets go of descriptors.
func release(all []*Target) {
	for _, x := range all {
		x.Binder.Close()
	}
}

// apply carries out the plans of all targets, or none: when one fails, those
// before it are taken back as well.
func (m *Machine) apply(ctx context.Context, all []*Target) error {
	if err := m.Sweep(); err != nil {
		return err
	}
	var unrecorded []error
	for i, x := range all {
		err := m.carry(ctx, &x.change)
		if no := (*UnrecordedError)(nil); errors.As(err, &no) {
			unrecorded = append(unrecorded, err)
			continue
		}
		if err == nil {
			continue
		}
		for _, done := range slices.Backward(all[:i]) {
			if back := m.takeBack(context.WithoutCancel(ctx), &done.change); back != nil {
				err = PartlyError{fmt.Errorf("%w; and %s, which was changed already, could not be put back: %w", err, done.Tree.Port.Device, back)}
			}
		}
		return err
	}
	for _, x := range all {
		if x.saved {
			m.Store.Settle(x.next)
		}
	}
	return errors.Join(unrecorded...)
}

// UnrecordedError says that an interface is as it should be, and that there is no room
// for the record of it.
type UnrecordedError struct {
	iface, policy string
	err           error
}

func (e *UnrecordedError) Error() string {
	return fmt.Sprintf("%s is shaped as %s says, but there is no room for the record of it (%v): what bind and add make there, and the root qdisc from before, are not known to clear and the next apply", e.iface, e.policy, e.err)
}

func (e *UnrecordedError) Unwrap() error { return e.err }

// OpenPolicy opens a policy's file, which may be whose it likes. A named pipe could
// make the reader wait for ever, and a device be anything; what a shell makes of
// <(command) is a pipe without a name, and has an end.
func OpenPolicy(file string) (*os.File, error) {
	if st, err := os.Stat(file); err == nil && !st.Mode().IsRegular() && st.Mode()&fs.ModeNamedPipe == 0 {
		return nil, &record.NotFileError{File: file, Mode: st.Mode()}
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var in unix.Statfs_t
	st, err := f.Stat()
	if err == nil {
		err = unix.Fstatfs(int(f.Fd()), &in)
	}
	if err == nil && !st.Mode().IsRegular() && in.Type != unix.PIPEFS_MAGIC {
		err = fmt.Errorf("%w: read it into a file, or write - and pipe it in", &record.NotFileError{File: file, Mode: st.Mode()})
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// IDs are the class ids and names that the branches have once it is applied.
func (x *Target) IDs() hierarchy.IDs { return x.next.IDs }
