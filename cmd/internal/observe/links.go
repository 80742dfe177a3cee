package observe

import (
	"cmp"
	"context"
	"errors"
	"fmt"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Link is an interface in the form of ls.
type Link struct {
	link.Link
	Shaper   string       `json:"shaped_by"` // "vifshape", the kind of a foreign root qdisc, or ""
	Branches []LinkBranch `json:"branches,omitempty"`
	Lost     []string     `json:"lost,omitempty"` // what the kernel has not that the last apply made
	// ReceivesFor is the interface for which this one carries what that receives, empty for
	// all that vifshape did not make for this.
	ReceivesFor string `json:"receives_for,omitempty"`

	Above []*Link `json:"-"` // what lies on it, and the one that receives for it
}

// LinkBranch is a branch in the list of interfaces.
type LinkBranch struct {
	hierarchy.Class
	Ingress *Limits `json:"ingress,omitempty"`
}

// Links are the interfaces of the network namespace, but for those that vanish meanwhile:
// those of containers come and go.
func Links(ctx context.Context, m *shaper.Machine) ([]*Link, error) {
	links, err := link.List(m.Conn)
	if err != nil {
		return nil, err
	}
	roots, err := tc.Roots(m.Conn)
	if err != nil {
		return nil, err
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Index] = l.Name
	}
	views := make([]*Link, 0, len(links))
	for _, l := range links {
		if l.Receives != 0 {
			views = append(views, &Link{Link: l, Shaper: "vifshape", ReceivesFor: cmp.Or(names[l.Receives], fmt.Sprintf("if%d", l.Receives))})
			continue
		}
		v, err := viewLink(ctx, m, l, roots[l.Index])
		var no *link.NotFoundError
		if errors.As(err, &no) || errors.Is(err, rtnl.ErrGone) {
			continue
		}
		if err != nil {
			return nil, err
		}
		views = append(views, v)
	}
	return views, nil
}

// viewLink finds out who shapes an interface.
func viewLink(ctx context.Context, m *shaper.Machine, l link.Link, root hierarchy.Root) (*Link, error) {
	v := &Link{Link: l}
	if root.Foreign() {
		v.Shaper = fmt.Sprintf("%s %v", root.Kind, root.Handle)
	}
	if !root.Ours() {
		// A record that cannot be read is reported by who needs it.
		if r, err := m.Record(l.Name, uint32(l.Index)); err == nil && r.Policy != "" {
			v.Lost = shaper.TreeLost(r, root).What
		}
		return v, nil
	}
	x, err := m.Interface(l.Name, "")
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	s, err := x.Queues(ctx)
	if err != nil {
		return nil, err
	}
	v.Shaper = "vifshape"
	in := map[hierarchy.ClassID]*Limits{}
	for _, c := range x.In(s).Classes {
		limits := limitsOf(c)
		in[c.ID] = &limits
	}
	for _, c := range ordered(x.On(s).Classes, x.Record) {
		v.Branches = append(v.Branches, LinkBranch{c, in[c.ID]})
	}
	lost := (*shaper.LostError)(nil)
	if err := x.Losses(s); errors.As(err, &lost) {
		v.Lost = lost.What
	} else if err != nil {
		return nil, err
	}
	return v, nil
}

// Grown puts what lies on another interface below it, and what receives for one, and
// gives back those that lie on none, or on several.
func Grown(views []*Link) []*Link {
	at := map[int]*Link{}
	for _, v := range views {
		at[v.Index] = v
	}
	var tops []*Link
	for _, v := range views {
		lower := at[v.Lower]
		if v.LowerNetNS != -1 || v.Peer() || lower.liesOn(v, at) {
			lower = nil
		}
		if v.Receives != 0 {
			lower = at[v.Receives]
		}
		if lower == nil {
			tops = append(tops, v)
		} else {
			lower.Above = append(lower.Above, v)
		}
	}
	return tops
}

// liesOn says whether o is v or below it: while it was listed a tree may have been
// turned around.
func (v *Link) liesOn(o *Link, at map[int]*Link) bool {
	for n := 0; v != nil && n <= len(at); n++ {
		if v == o {
			return true
		}
		v = at[v.Lower]
	}
	return false
}

// ordered gives classes their names and the order of a tree.
func ordered(classes []hierarchy.Class, r *record.Record) []hierarchy.Class {
	names := r.IDs.Names(r.Interface)
	v := Tree{}
	for _, c := range classes {
		c.Path = names[c.ID]
		v.Branches = append(v.Branches, &Branch{Class: c})
	}
	v.order(r.Order)
	out := make([]hierarchy.Class, len(v.Branches))
	for i, b := range v.Branches {
		out[i] = b.Class
	}
	return out
}
