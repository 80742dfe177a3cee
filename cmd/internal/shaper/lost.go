package shaper

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/home"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// LostError says that the kernel has no more what the record of an interface tells of, or has
// it otherwise: others may take a tree away or change it, and an interface that is made anew has
// none.
type LostError struct {
	iface  string
	What   []string
	Drops  bool   // what the interface receives is dropped, all of it
	Other  bool   // nothing is gone, but something is otherwise
	Policy string // that it was made by, as in a record
}

func (e *LostError) Error() string {
	says := (&record.Record{Policy: e.Policy}).PolicyName() + " says"
	if e.Policy == record.NoPolicy {
		says = "its limits say"
	}
	return fmt.Sprintf("%s is not shaped as %s: %s", e.iface, says, strings.Join(e.What, "; "))
}

// Remedy is what to type.
func (e *LostError) Remedy() string {
	switch e.Policy {
	case "-":
		return "apply the policy again, which came from standard input or the page of `vifshape web`"
	case record.NoPolicy:
		return (&record.Record{Policy: e.Policy}).Again()
	}
	return "`vifshape apply " + words.Printable(e.Policy) + "` puts it back"
}

// contradictionError says that the record of an interface and the kernel cannot both
// be right about which branch is which class.
type contradictionError struct {
	iface, policy, why string
}

func (e *contradictionError) Error() string {
	return fmt.Sprintf("the record of %s contradicts the kernel, and nothing is done by it: %s", e.iface, e.why)
}

func (e *contradictionError) Remedy() string {
	return (&LostError{Policy: e.policy}).Remedy() + "; nobody else than vifshape should write to the run directory"
}

// TreeLost is the loss of everything.
func TreeLost(r *record.Record, is hierarchy.Root) *LostError {
	return &LostError{iface: r.Interface, What: []string{"the tree is gone, its root qdisc is " + rootText(is)}, Policy: r.Policy}
}

// Losses is a [LostError] of what there is no more of that the record tells of, nil where
// all of it is there. The state is the interface's, as far as it can be read.
func (x *Interface) Losses(s hierarchy.State) error {
	r := x.Record
	if r.Policy == "" {
		return nil
	}
	tree := x.On(s)
	if !tree.Root.Ours() {
		return TreeLost(r, tree.Root)
	}
	e := &LostError{iface: r.Interface, Policy: r.Policy}
	bare, err := x.Bare()
	if errors.Is(err, caps.ErrNotPrivileged) { // only rules of nf_tables are hidden
		bare, err = false, nil
	}
	if err != nil {
		return err
	}
	if bare {
		where := "its egress hook"
		switch {
		case r.Way == bind.WayClsCgroup:
			where = "its root qdisc"
		case r.Way == bind.WayNft, r.Way == bind.WayNetClsNft:
			where = "nf_tables"
		}
		e.What = append(e.What, fmt.Sprintf("the classifier is gone from %s, and nothing is bound", where))
	}
	there := make(map[hierarchy.ClassID]bool, len(tree.Classes))
	for _, c := range tree.Classes {
		there[c.ID] = true
	}
	if r.Receives {
		if err := x.unreceived(s, e); err != nil {
			return err
		}
	}
	if r.Matches {
		program, err := hook.Of(x.Device.Interface).MatchProgram()
		if err != nil {
			return err
		}
		if program == 0 {
			e.What = append(e.What, "the program is gone by which packets get into branches that have matches, and they stay in the branch above")
		}
	}
	const most = 3
	missing := 0
	for _, p := range r.Order {
		id, _, ok := r.IDs.Find(p)
		if !ok || there[id] {
			continue
		}
		if missing++; missing <= most {
			e.What = append(e.What, fmt.Sprintf("the class %v of %s is gone", id, p))
		}
	}
	if missing > most {
		e.What = append(e.What, fmt.Sprintf("and those of %d more branches", missing-most))
	}
	if len(e.What) == 0 {
		return nil
	}
	return e
}

// unreceived adds what is lost of the receiving side, whose classes are looked at as far as
// the state has them. What is sent to an IFB that is gone or down is dropped.
func (x *Interface) unreceived(s hierarchy.State, e *LostError) error {
	say := func(format string, args ...any) { e.What = append(e.What, fmt.Sprintf(format, args...)) }
	note, receive, err := hook.Of(x.Device.Interface).ReceivePrograms()
	if err != nil {
		return err
	}
	switch {
	case note == 0 && receive == 0:
		say("the programs are gone that tell what it receives apart, and nothing of that is shaped")
	case receive == 0:
		say("the program is gone that puts what it receives into the tree for that, and nothing of it is shaped")
	case note == 0:
		say("the program is gone that notes whose flows it sends, and what it receives goes where it was noted before, or may go to the rest")
	}
	ifb, err := link.FindIFB(x.Device.Conn, int(x.Device.Index))
	if err != nil {
		return err
	}
	if ifb == nil || !ifb.Up {
		is, follows := "gone", ""
		if ifb != nil {
			is = "down"
		}
		if e.Drops = receive != 0; e.Drops {
			follows = ", and all that it receives is dropped"
		}
		say("the ifb is %s that carries the tree for what it receives%s", is, follows)
		return nil
	}
	in := x.In(s)
	switch {
	case !slices.ContainsFunc(s.Ports, func(p hierarchy.PortState) bool { return p.Port == in.Port }):
		return nil
	case !in.Root.Ours():
		say("the tree is gone for what it receives, or its ifb is not as it was made")
		return nil
	}
	there := make(map[hierarchy.ClassID]bool, len(in.Classes))
	for _, c := range in.Classes {
		there[c.ID] = true
	}
	for _, p := range x.Record.Order {
		if id, _, ok := x.Record.IDs.Find(p); ok && !there[id] {
			say("the class %v of %s is gone for what it receives", id, p)
			break
		}
	}
	return nil
}

// Bare says whether there is no classifier on the interface, of any way.
func (x *Interface) Bare() (bool, error) {
	program, err := hook.Of(x.Device.Interface).EgressProgram()
	if err != nil || program != 0 {
		return false, err
	}
	has, err := hook.Of(x.Device.Interface).CgroupFilter()
	if err == nil && !has {
		has, err = x.Binder.HasClassifier()
	}
	return !has, err
}

// Queues reads the interface's root qdiscs, classes and leaf queues alone.
func (x *Interface) Queues(ctx context.Context) (hierarchy.State, error) {
	return x.queues(func(s *hierarchy.State) error { return x.Device.Read(ctx, s) }, func(s *hierarchy.State) error { return x.Receiver.Read(ctx, s) })
}

// Count is [Interface.Queues] and the counters of each port, of the same dumps.
func (x *Interface) Count(ctx context.Context) (s hierarchy.State, of map[hierarchy.Port]*tc.Counted, err error) {
	of = map[hierarchy.Port]*tc.Counted{}
	s, err = x.queues(func(s *hierarchy.State) (err error) {
		of[x.Device.Port()], err = x.Device.Count(ctx, s)
		return err
	}, func(s *hierarchy.State) (err error) {
		of[x.Receiver.Port()], err = x.Receiver.Count(ctx, s)
		return err
	})
	return s, of, err
}

// queues is a state that is read by a function for what the interface sends, and by one for
// what it receives.
func (x *Interface) queues(sends, receives func(*hierarchy.State) error) (hierarchy.State, error) {
	s := hierarchy.State{Device: x.Record.Interface}
	err := sends(&s)
	if err == nil && x.Record.Receives {
		err = receives(&s)
	}
	if errors.Is(err, rtnl.ErrForeign) { // which the root says as well
		err = nil
	}
	x.Kernel.Name(&s)
	return s, err
}

// Intact holds the record against the kernel. Its error is a [LostError] for what is gone or
// otherwise; another where both cannot be right, or the kernel could not be asked.
func (m *Machine) Intact(ctx context.Context, iface string) error {
	x, err := m.Interface(iface, "")
	if err != nil {
		return err
	}
	defer x.Binder.Close()
	s, err := x.Queues(ctx)
	if err == nil {
		err = x.misplaced(s)
	}
	if err == nil {
		err = x.Losses(s)
	}
	if err == nil {
		err = m.altered(ctx, x, s)
	}
	return err
}

// altered is a [LostError] of what is otherwise than it was applied, nil where nothing is.
func (m *Machine) altered(ctx context.Context, x *Interface, s hierarchy.State) error {
	d, err := m.drift(ctx, x, s)
	if err != nil || d.Empty() {
		return err
	}
	const most = 3
	e := &LostError{iface: x.Record.Interface, Policy: x.Record.Policy, Other: true}
	for i, step := range d.Steps {
		if i == most {
			e.What = append(e.What, fmt.Sprintf("and %d changes more", len(d.Steps)-most))
			break
		}
		e.What = append(e.What, words.Past(step))
	}
	return e
}

// misplaced is the error of classes that do not lie below the branches that they
// should be below.
func (x *Interface) misplaced(s hierarchy.State) error {
	r := x.Record
	tree := x.On(s)
	if !tree.Root.Ours() {
		return nil
	}
	parent := make(map[hierarchy.ClassID]hierarchy.ClassID, len(tree.Classes))
	for _, c := range tree.Classes {
		parent[c.ID] = c.Parent
	}
	for _, p := range r.Order {
		id, _, ok := r.IDs.Find(p)
		above, _, has := r.IDs.Find(p.Parent())
		if is, there := parent[id]; ok && has && there && is != above {
			return &contradictionError{r.Interface, r.Policy, fmt.Sprintf("%s is class %v there, which in the kernel is not below %v of %s", p, id, above, p.Parent())}
		}
	}
	return nil
}

// misnamed is the error of a binding that the kernel holds for the home of a branch,
// with another branch's class.
func (m *Machine) misnamed(x *Interface, bound []hierarchy.Bound) error {
	for _, b := range bound {
		ns, p, ok := home.Parse(b.Target)
		if !ok || ns != m.Store.NetNS || p.Interface() != x.Record.Interface {
			continue
		}
		if p, ok = x.Record.IDs.Called(p); !ok {
			continue
		}
		if err := x.misnamedHome(p, b.Class); err != nil {
			return err
		}
	}
	return nil
}

func (x *Interface) misnamedHome(p hierarchy.Path, is hierarchy.ClassID) error {
	r := x.Record
	if _, class, ok := r.Leaf(p); ok && class != is {
		return &contradictionError{r.Interface, r.Policy, fmt.Sprintf("the programs of %s are in class %v, and it says %v", p, is, class)}
	}
	return nil
}

// rootText names a root qdisc, and says where it is the kernel's own.
func rootText(r hierarchy.Root) string {
	switch {
	case r.Kind == "":
		return "the kernel's own"
	case r.Handle == 0:
		return r.Kind + ", the kernel's own"
	}
	return fmt.Sprintf("%s %v", r.Kind, r.Handle)
}
