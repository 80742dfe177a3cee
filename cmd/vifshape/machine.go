package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// machine is the network namespace that the program runs in.
type machine struct {
	conn   *rtnl.Conn
	store  *record.Store
	runDir string
	tell   func(Remark)
	early  map[string]hierarchy.State // see ahead
	tags   []string                   // interfaces of the policy at hand that net_cls tags will bind

	missing map[string]string // of classifiers, once the kernel was asked; see lacks

	watch func(path string, matters func(name string) bool) // is told what bindings go by; may be nil
}

// openMachine opens the network namespace of the caller, with what vifshape keeps of it
// in a run directory. Nothing is changed. What is to be said besides results and errors
// is told as it comes up, by one goroutine at a time.
func openMachine(runDir string, tell func(Remark)) (*machine, error) {
	s, err := record.Open(runDir)
	if err != nil {
		return nil, err
	}
	m := &machine{store: s, runDir: runDir, tell: tell}
	m.conn, err = rtnl.Open(rtnl.Config{Warn: func(s string) { m.warnf("", "kernel: %s", s) }})
	if err != nil {
		return nil, err
	}
	return m, nil
}

func (m *machine) Close() error { return m.conn.Close() }

// lock is that of the store. Where there is no room for its file nobody else has it
// either, and trees are made and taken away nevertheless.
func (m *machine) lock(ctx context.Context, what string) (func(), error) {
	unlock, err := m.store.Lock(ctx, what)
	if record.Full(err) {
		m.warnf("", "there is no room for a lock in %s: two that change the interfaces at once will not see each other", m.store.Dir)
		return func() {}, nil
	}
	return unlock, err
}

// readPolicy parses a policy. "-" is standard input.
func readPolicy(file string) (*policy.Policy, error) {
	var r io.Reader = os.Stdin
	name := "standard input"
	if file != "-" {
		f, err := openPolicy(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r, name = f, file
	}
	return policy.Parse(name, r, qdisc.Kinds())
}

// shaped is one interface with what is known about it.
type shaped struct {
	device *tc.Device
	binder *cgroup.Binder
	kernel hierarchy.Kernel
	record *record.Record
}

// shaped opens an interface that may or may not have a tree of ours. An empty
// binding is the one of the tree that it has.
func (m *machine) shaped(iface, binding string) (*shaped, error) {
	d, r, err := m.device(iface)
	if err != nil {
		return nil, err
	}
	if binding == "" {
		binding = r.Binding
	}
	names := r.IDs.Names(iface)
	cfg := cgroup.Config{
		Hook: hook.Of(d.Interface), Interface: iface, Index: d.Index, NetNS: m.store.NetNS, RunDir: m.runDir,
		Ways: ways(binding), Classes: func(c hierarchy.ClassID) bool { return names[c] != "" },
		Others: func() ([]string, error) { return m.tagged(iface, d.Index) },
		Lacks:  m.lacks,
		Warn:   func(s string) { m.notef(hierarchy.Path(iface), "%s", s) },
		Watch:  m.watch,
	}
	b, err := cgroup.NewBinder(cfg)
	if err != nil {
		return nil, err
	}
	k := hierarchy.Kernel{Device: iface, Parts: []hierarchy.Part{d, b.Steady()}, Names: names}
	if s, ok := m.early[iface]; ok {
		k.Parts[0] = &readAhead{d, &s}
	}
	return &shaped{d, b, k, r}, nil
}

// on is what stands where the interface sends.
func (x *shaped) on(s hierarchy.State) hierarchy.PortState { return s.On(x.device.Port()) }

// tagged lists the interfaces but the given one that are bound by net_cls tags, or
// will be.
func (m *machine) tagged(iface string, index uint32) ([]string, error) {
	names, err := m.store.Interfaces()
	if err != nil {
		return nil, err
	}
	all := slices.Clone(m.tags)
	for _, n := range names {
		r, err := m.store.Load(n)
		if err != nil {
			return nil, err
		}
		if r.Way.Tagged() && r.Index != index && !slices.Contains(all, n) {
			all = append(all, n)
		}
	}
	return slices.DeleteFunc(all, func(n string) bool { return n == iface }), nil
}

// ways are those that a binding stands for, nil for auto and for none: all. With
// net_cls the tags are read by BPF, else by nf_tables, else by the kernel's own
// classifier.
func ways(binding string) []bind.Way {
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

// target is one interface on the way to what a policy wants.
type target struct {
	*shaped
	tree    *hierarchy.Tree
	next    *record.Record // the record that belongs to want
	before  hierarchy.State
	want    hierarchy.State
	plan    hierarchy.Plan
	pending []cgroup.Pending // bindings that name what is not there yet
	outside []cgroup.Outside // bindings that do not hold all of what they name
	kept    []record.Binding // bindings made at run time, that stay
	lost    []record.Binding // and those that go with their branches
	spec    json.RawMessage  // what the policy says of the interface
	added   []amend.Branch   // branches beside the policy's, in tree
	dropped []amend.Dropped  // and those that have no place in it any more
	blind   error            // why the bindings in force could not be read
	amends  bool             // what is in force is changed by what stands in the record alone
}

// unknown says whether there is a tree whose record is lost.
func (x *target) unknown() bool { return x.on(x.before).Root.Ours() && x.record.Policy == "" }

// settle works out what has to be done on the tree's interface.
func (m *machine) settle(ctx context.Context, file, binding string, x *target) error {
	s, t := x.shaped, x.tree
	ids, err := s.record.IDs.Assign(t)
	if err != nil {
		return err
	}
	if err := s.device.Settle(t); err != nil {
		return err
	}
	maps.Copy(s.kernel.Names, ids.Names(t.Port.Device))
	if x.before, err = x.read(ctx); err != nil {
		return err
	}
	if r := x.on(x.before).Root; r.Foreign() && !t.Replace {
		return foreignRootError{fmt.Errorf("%s: the root qdisc %s %v is %w", t.Port.Device, r.Kind, r.Handle, rtnl.ErrForeign)}
	}
	x.want = t.State()
	x.next = &record.Record{
		Version: record.Version, Interface: t.Port.Device, Index: s.device.Index, Policy: absolute(file),
		Binding: binding, IDs: ids, Former: s.record.Former, Was: s.record.Was,
		Spec: x.spec, Delegated: delegations(t), Added: x.added,
	}
	if !x.on(x.before).Root.Ours() {
		if x.next.Former, err = s.device.Former(); err != nil {
			return err
		}
	}
	if err := x.bind(); err != nil {
		return err
	}
	x.plan = hierarchy.Diff(x.before, x.want)
	return nil
}

// read is the state of the interface. Without privileges the bindings in force
// cannot be read; the rest of the state still can.
func (x *target) read(ctx context.Context) (hierarchy.State, error) {
	s, err := x.kernel.Read(ctx)
	if !errors.Is(err, caps.ErrNotPrivileged) {
		return s, err
	}
	x.blind = err
	k := x.kernel
	k.Parts = slices.DeleteFunc(slices.Clone(k.Parts), func(p hierarchy.Part) bool { return p.Port() == (hierarchy.Port{}) })
	return k.Read(ctx)
}

// bind puts the classifier and the bindings into the wanted state: those of the
// policy, and the cgroups that run has made for branches.
func (x *target) bind() (err error) {
	for b := range x.tree.All() {
		x.next.Order = append(x.next.Order, b.Path)
		for _, bind := range b.Bind {
			x.next.Bindings = append(x.next.Bindings, record.Binding{Path: b.Path, Binding: bind})
		}
	}
	x.keepBindings()
	if x.blind == nil {
		if x.want.Hook, err = x.binder.Hook(); errors.Is(err, caps.ErrNotPrivileged) {
			x.blind = err
		} else if err != nil {
			return err
		}
	}
	if x.blind != nil {
		x.want.Hook, x.want.Bound = x.before.Hook, x.before.Bound
		return nil
	}
	x.next.Way = x.want.Hook.Way
	r, err := x.binder.Resolve(x.next.Branches())
	if err == nil {
		err = x.refused(r)
	}
	if err != nil {
		return err
	}
	x.want.Bound, x.pending, x.outside = r.Bound, r.Pending, r.Outside
	x.next.Came(r)
	return nil
}

// absolute is the path as it is found again from another directory.
func absolute(file string) string {
	if a, err := filepath.Abs(file); err == nil && file != "-" {
		return a
	}
	return file
}

// Changes are what a policy comes to on this machine.
type Changes struct {
	m       *machine
	policy  *policy.Policy
	targets []*target
	absent  []*link.NotFoundError // interfaces of the policy that are not there, and left out
}

// plan works out every interface of a policy before the first is changed, and looks at
// the kernel while the policy is still being read. Interfaces that are not there are
// left out, unless none is. An empty binding is the policy's.
func (m *machine) plan(ctx context.Context, r *reading, binding string) (*Changes, error) {
	m.ahead(ctx)
	p, err := r.wait(ctx)
	if err != nil {
		return nil, err
	}
	if binding == "" {
		binding = p.Binding
	}
	m.tellPlaced(p.Warnings)
	c := &Changes{m: m, policy: p}
	for i, t := range p.Trees {
		s, err := m.shaped(t.Port.Device, binding)
		if no := (*link.NotFoundError)(nil); errors.As(err, &no) {
			c.absent = append(c.absent, unlike(no, p))
			continue
		}
		if err == nil {
			x := &target{shaped: s, tree: t}
			c.targets = append(c.targets, x)
			if x.spec, err = json.Marshal(p.Specs[i]); err == nil {
				err = x.keepAdded()
			}
			if err == nil {
				err = m.settle(ctx, r.file, binding, x)
			}
			if err == nil && x.want.Hook.Way.Tagged() {
				m.tags = append(m.tags, t.Port.Device)
			}
		}
		if err != nil {
			c.close()
			return nil, err
		}
	}
	if len(c.targets) == 0 {
		return nil, c.notThere()
	}
	return c, nil
}

// plans are those of the interfaces, in the policy's order.
func (c *Changes) plans() []hierarchy.Plan {
	all := make([]hierarchy.Plan, len(c.targets))
	for i, x := range c.targets {
		all[i] = x.plan
	}
	return all
}

// empty says whether there is nothing to do, and nothing to write down.
func (c *Changes) empty() bool {
	return !slices.ContainsFunc(c.targets, func(x *target) bool { return !x.plan.Empty() || x.unknown() })
}

// blind is why the bindings in force could not be read; nil: they were.
func (c *Changes) blind() error {
	for _, x := range c.targets {
		if x.blind != nil {
			return x.blind
		}
	}
	return nil
}

// tell says what the plans do not show. What stays as it is is for those who only look.
func (c *Changes) tell(stays bool) error {
	c.tellAbsent()
	if err := c.tellPlaces(); err != nil {
		return err
	}
	for _, x := range c.targets {
		about := hierarchy.Path(x.tree.Port.Device)
		if stays && x.unknown() {
			c.m.notef(about, "%s: the record of its tree is lost: apply writes it anew; what bind and add had made goes, and clear cannot put back the root qdisc from before", about)
		}
		c.m.tellPlan(x)
		c.m.tellAdded(x, stays)
		if !stays {
			continue
		}
		for _, b := range x.kept {
			c.m.notef(b.Path, "%s: %v, bound at run time, stays", b.Path, b.Binding)
		}
		if x.blind != nil {
			c.m.notef(about, "%s: bindings are left out: without privileges they can be neither read nor tried", about)
		}
	}
	return nil
}

// close lets go of descriptors. That it fails changes nothing.
func (c *Changes) close() { release(c.targets) }

// release lets go of descriptors.
func release(all []*target) {
	for _, x := range all {
		x.binder.Close()
	}
}

// apply carries the plans of all interfaces out, or none.
func (c *Changes) apply(ctx context.Context) error { return c.m.apply(ctx, c.targets) }

// apply carries out the plans of all targets, or none: when one fails, those
// before it are taken back as well.
func (m *machine) apply(ctx context.Context, all []*target) error {
	var unrecorded []error
	for i, x := range all {
		err := m.applyOne(ctx, x)
		if no := (*unrecordedError)(nil); errors.As(err, &no) {
			unrecorded = append(unrecorded, err)
			continue
		}
		if err == nil {
			continue
		}
		for _, done := range slices.Backward(all[:i]) {
			if back := m.takeBack(context.WithoutCancel(ctx), done); back != nil {
				err = partlyError{fmt.Errorf("%w; and %s, which was changed already, could not be put back: %w", err, done.tree.Port.Device, back)}
			}
		}
		return err
	}
	return errors.Join(unrecorded...)
}

// unrecordedError says that an interface is as it should be, and that there is no room
// for the record of it.
type unrecordedError struct {
	iface, policy string
	err           error
}

func (e *unrecordedError) Error() string {
	return fmt.Sprintf("%s is shaped as %s says, but there is no room for the record of it (%v): what bind and add make there, and the root qdisc from before, are not known to clear and the next apply", e.iface, e.policy, e.err)
}

func (e *unrecordedError) Unwrap() error { return e.err }

// applyOne writes the record first, so that every class the kernel may have is
// known by name even when the program is killed in the middle. Where there is no room
// for it, a policy is applied nevertheless: names and classes follow from its paths,
// and the next apply writes the record.
func (m *machine) applyOne(ctx context.Context, x *target) error {
	if err := x.leave(m); err != nil {
		return err
	}
	unsaved := m.store.Save(x.next)
	if unsaved != nil && (!record.Full(unsaved) || x.amends || x.on(x.before).Root.Foreign()) {
		return fmt.Errorf("%s: its record cannot be written, and nothing was changed: %w", x.tree.Port.Device, unsaved)
	}
	err := x.kernel.Apply(ctx, x.before, x.want, x.plan)
	var failed *hierarchy.ApplyError
	switch {
	case err == nil && unsaved != nil:
		return &unrecordedError{x.tree.Port.Device, x.next.PolicyName(), unsaved}
	case errors.Is(err, rtnl.ErrGone):
		// What was made on it went with it: there is nothing to go back to.
		err = fmt.Errorf("%s: %w: it vanished while it was being changed", x.tree.Port.Device, rtnl.ErrGone)
	case !errors.As(err, &failed) || failed.Undo != nil:
		return err
	}
	if unsaved != nil {
		return err
	}
	return errors.Join(err, m.restore(x))
}

// takeBack puts a target that was applied back to where it was.
func (m *machine) takeBack(ctx context.Context, x *target) error {
	now, err := x.kernel.Read(ctx)
	if err != nil {
		return err
	}
	if err := x.kernel.Apply(ctx, now, x.before, hierarchy.Diff(now, x.before)); err != nil {
		return err
	}
	return m.restore(x)
}

// restore writes the record that was there before.
func (m *machine) restore(x *target) error {
	if x.record.Policy == "" {
		return m.store.Remove(x.tree.Port.Device)
	}
	return m.store.Save(x.record)
}

// openPolicy opens a policy's file, which may be whose it likes. A named pipe could
// make the reader wait for ever, and a device be anything; what a shell makes of
// <(command) is a pipe without a name, and has an end.
func openPolicy(file string) (*os.File, error) {
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
