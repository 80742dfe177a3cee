package observe

import (
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
	Shaper   string            `json:"shaped_by"` // "vifshape", the kind of a foreign root qdisc, or ""
	Branches []hierarchy.Class `json:"branches,omitempty"`
	Lost     []string          `json:"lost,omitempty"` // what the kernel has not that the last apply made

	Above []*Link `json:"-"` // what lies on it
}

// ViewLink finds out who shapes an interface.
func ViewLink(ctx context.Context, m *shaper.Machine, l link.Link, root hierarchy.Root) (*Link, error) {
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
	d, err := tc.Find(m.Conn, l.Name)
	if err != nil {
		return nil, err
	}
	var s hierarchy.State
	if err := d.Read(ctx, &s); err != nil {
		return nil, err
	}
	r, err := m.Record(l.Name, d.Index)
	if err != nil {
		return nil, err
	}
	v.Shaper = "vifshape"
	v.Branches = ordered(s.On(d.Port()).Classes, r)
	x, err := m.Interface(l.Name, "")
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	lost := (*shaper.LostError)(nil)
	if err := x.Losses(s); errors.As(err, &lost) {
		v.Lost = lost.What
	} else if err != nil {
		return nil, err
	}
	return v, nil
}

// Vanished says whether an error is that an interface is not there any more: those
// of containers come and go.
func Vanished(err error) bool {
	var no *link.NotFoundError
	return errors.As(err, &no) || errors.Is(err, rtnl.ErrGone)
}

// Grown puts what lies on another interface below it and gives back those that
// lie on none, or on several.
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
