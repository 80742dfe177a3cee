package observe

import (
	"context"
	"errors"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Figures are what one interface's branches count, in both directions. Unlike a [Tree] they
// take no privileges, and of the kernel one dump of classes and one of queues a direction:
// neither bindings nor processes are looked at.
type Figures struct {
	Interface string
	Absent    bool // it has a policy or limits, and is not there
	Limits    bool // it has limits alone, and no policy
	Branches  []Figure
	Err       error // what is gone, or why it could not be read; nil: it is shaped as it was applied
}

// Figure is one branch in one direction.
type Figure struct {
	hierarchy.Class
	Above     hierarchy.Path // the branch that it is in; empty: none
	Direction hierarchy.Direction
	Counters
	Lent     uint32 // packets sent within the branch's own rate, by it or by those in it
	Borrowed uint32 // packets sent with what a branch above lent
	// Queue is what a leaf's queue has let through and dropped, nil for a branch with others
	// in it, which has none.
	Queue *tc.LeafStats
}

// Count reads all interfaces that are shaped, or are to be. What is wrong with one keeps
// nobody from the figures of the others.
func Count(ctx context.Context, m *shaper.Machine) ([]*Figures, error) {
	names, err := m.Ours()
	if err != nil {
		return nil, err
	}
	all := make([]*Figures, 0, len(names))
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		f := &Figures{Interface: name}
		f.Err = f.read(ctx, m)
		f.Absent = vanished(f.Err)
		if r, err := m.Store.Load(name); err == nil {
			f.Limits = r.Policy == record.NoPolicy
		}
		all = append(all, f)
	}
	return all, nil
}

// read fills in the branches; its error is also what is lost. An interface that goes
// meanwhile leaves none.
func (f *Figures) read(ctx context.Context, m *shaper.Machine) error {
	x, err := m.Interface(f.Interface, "")
	if err != nil {
		return err
	}
	defer x.Binder.Close()
	s, counted, err := x.Count(ctx)
	if err != nil {
		return err
	}
	nameless := 0
	for _, p := range s.Ports {
		n, paths := counted[p.Port], make(map[hierarchy.ClassID]hierarchy.Path, len(p.Classes))
		for _, c := range p.Classes {
			paths[c.ID] = c.Path
			if c.Path == "" { // which only the record knows
				nameless++
				continue
			}
			stats := n.Classes[c.ID]
			b := Figure{Class: c, Above: paths[c.Parent], Direction: p.Port.Direction, Counters: counters(stats), Lent: stats.Lends, Borrowed: stats.Borrows}
			if q, ok := n.Leaves[c.ID]; ok {
				b.Queue = &q
			}
			f.Branches = append(f.Branches, b)
		}
	}
	if err := x.Losses(s); err != nil || nameless == 0 {
		return err
	}
	return namelessError{f.Interface, nameless}
}

// namelessError says that classes have no names.
type namelessError struct {
	iface string
	n     int
}

func (e namelessError) Error() string {
	return e.iface + ": its record is lost, or not of all its classes: they have no names to be told by, and are left out"
}

// Remedy is what to type.
func (namelessError) Remedy() string { return "apply the policy again, which writes the record anew" }

// vanished says whether an error is that the interface is not there, or went while it was
// looked at.
func vanished(err error) bool {
	var no *link.NotFoundError
	return errors.As(err, &no) || errors.Is(err, rtnl.ErrGone)
}
