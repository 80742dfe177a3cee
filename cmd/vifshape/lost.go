package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
)

// lostError says that the kernel has no more what the record of an interface tells of:
// others may take a tree away, and an interface that is made anew has none.
type lostError struct {
	iface  string
	what   []string
	policy string // that it was made by, as in a record
}

func (e *lostError) Error() string {
	return fmt.Sprintf("%s is not shaped as %s says: %s", e.iface, (&record{Policy: e.policy}).policy(), strings.Join(e.what, "; "))
}

// remedy is what to type.
func (e *lostError) remedy() string {
	if e.policy == "-" {
		return "apply the policy again, which came from standard input"
	}
	return "`vifshape apply " + printable(e.policy) + "` puts it back"
}

// treeLost is the loss of everything.
func (r *record) treeLost(is hierarchy.Root) *lostError {
	return &lostError{r.Interface, []string{"the tree is gone, its root qdisc is " + rootText(is)}, r.Policy}
}

// losses says what there is no more of that the record tells of, nil where all of it is
// there. The state is the interface's, as far as it can be read.
func (x *shaped) losses(s hierarchy.State) error {
	r := x.record
	if r.Policy == "" {
		return nil
	}
	if !s.Root.Ours() {
		return r.treeLost(s.Root)
	}
	e := &lostError{iface: r.Interface, policy: r.Policy}
	bare, err := x.bare()
	if errors.Is(err, cgroup.ErrNotPrivileged) { // only rules of nf_tables are hidden
		bare, err = false, nil
	}
	if err != nil {
		return err
	}
	if bare {
		where := "its egress hook"
		switch {
		case r.Way == hierarchy.WayClsCgroup:
			where = "its root qdisc"
		case r.Way == hierarchy.WayNft, r.Way == hierarchy.WayNetClsNft:
			where = "nf_tables"
		}
		e.what = append(e.what, fmt.Sprintf("the classifier is gone from %s, and nothing is bound", where))
	}
	there := make(map[hierarchy.ClassID]bool, len(s.Classes))
	for _, c := range s.Classes {
		there[c.ID] = true
	}
	const most = 3
	missing := 0
	for _, p := range r.Order {
		id, _, ok := r.IDs.Find(p)
		if !ok || there[id] {
			continue
		}
		if missing++; missing <= most {
			e.what = append(e.what, fmt.Sprintf("the class %v of %s is gone", id, p))
		}
	}
	if missing > most {
		e.what = append(e.what, fmt.Sprintf("and those of %d more branches", missing-most))
	}
	if len(e.what) == 0 {
		return nil
	}
	return e
}

// bare says whether there is no classifier on the interface, of any way.
func (x *shaped) bare() (bool, error) {
	program, err := x.device.EgressProgram()
	if err != nil || program != 0 {
		return false, err
	}
	has, err := x.device.CgroupFilter()
	if err == nil && !has {
		has, err = x.binder.HasClassifier()
	}
	return !has, err
}

// queues reads the interface's root qdisc, classes and leaf queues alone.
func (x *shaped) queues(ctx context.Context) (hierarchy.State, error) {
	s := hierarchy.State{Interface: x.record.Interface}
	err := x.device.Read(ctx, &s)
	if errors.Is(err, tc.ErrForeign) { // which the root says as well
		err = nil
	}
	return s, err
}

// intact holds the record against the kernel: what is lost.
func (m *machine) intact(ctx context.Context, iface string) error {
	x, err := m.shaped(iface, "")
	if err != nil {
		return err
	}
	defer x.binder.Close()
	s, err := x.queues(ctx)
	if err == nil {
		err = x.losses(s)
	}
	return err
}

// onlyLost says whether err is that something is lost, which keeps nobody from looking
// at the rest.
func onlyLost(err error) bool {
	var lost *lostError
	var said codeError // by each
	return errors.As(err, &lost) || errors.As(err, &said)
}
