package web

import (
	"cmp"
	"errors"
	"math"
	"slices"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/hierarchy"
)

// layout is what branches there are, as a page is told when it changes.
type layout struct {
	Interfaces []face `json:"interfaces"`
}

// face is one interface.
type face struct {
	Name     string   `json:"name"`
	Policy   string   `json:"policy"`
	Problem  string   `json:"problem,omitempty"` // what is gone, or why it could not be read
	Remedy   string   `json:"remedy,omitempty"`
	Branches []branch `json:"branches"` // parents first
}

// branch is one of them, with a row for each direction.
type branch struct {
	Path     hierarchy.Path `json:"path"`
	Depth    int            `json:"depth"`
	Leaf     bool           `json:"leaf"`
	Limit    string         `json:"limit,omitempty"` // what a limit is on, that it is for
	Sends    row            `json:"sends"`
	Receives row            `json:"receives,omitzero"`
}

// row is a branch in one direction. Rates are in bit/s, as JavaScript has numbers for.
type row struct {
	ID    uint32 `json:"id"`
	Rate  uint64 `json:"rate"`
	Ceil  uint64 `json:"ceil"`
	Reach uint64 `json:"reach"` // the least ceiling of it and those that it is in
	By    string `json:"by"`    // whose that is
	Prio  uint8  `json:"prio"`
}

// key is what a row is known by. Its number may be another's once the history has forgotten it.
type key struct {
	path      hierarchy.Path
	direction hierarchy.Direction
}

// rows give branches their numbers in one direction.
type rows struct {
	known map[key]*known
	next  uint32
}

type known struct {
	id   uint32
	last int64 // when it was last there
}

func (r *rows) number(k key, at int64) uint32 {
	n := r.known[k]
	if n == nil {
		n = &known{id: r.next}
		r.next++
		r.known[k] = n
	}
	n.last = at
	return n.id
}

// forget lets go of those that no tick since a time can have: branches come and go with programs.
func (r *rows) forget(since int64) {
	for k, n := range r.known {
		if n.last < since {
			delete(r.known, k)
		}
	}
}

// laidOut is what was seen, as a layout and what its rows did.
func laidOut(all []*observe.Live, r *rows, at int64) (l layout, uses []use) {
	l.Interfaces = []face{}
	for _, i := range all {
		f := face{Name: i.Interface, Policy: i.Policy, Branches: []branch{}}
		if i.Err != nil {
			f.Problem = i.Err.Error()
			if way := interface{ Remedy() string }(nil); errors.As(i.Err, &way) {
				f.Remedy = way.Remedy()
			}
		}
		var way []row // of the branch at hand and those that it is in, where they send
		var in []row  // and receive
		for j := range i.Branches {
			b := &i.Branches[j]
			line := func(way *[]row, d hierarchy.Direction) row {
				p := b.On(d)
				n := row{ID: r.number(key{b.Path, d}, at), Rate: uint64(p.Rate), Ceil: uint64(p.Ceil), Reach: uint64(p.Ceil), By: string(b.Path), Prio: p.Prio}
				*way = (*way)[:min(b.Depth, len(*way))]
				if len(*way) > 0 {
					if above := (*way)[len(*way)-1]; above.Reach < n.Reach {
						n.Reach, n.By = above.Reach, above.By
					}
				}
				*way = append(*way, n)
				if u := used(n.ID, p); u != (use{row: n.ID}) {
					uses = append(uses, u)
				}
				return n
			}
			out := branch{Path: b.Path, Depth: b.Depth, Leaf: b.Leaf, Limit: b.Limit, Sends: line(&way, hierarchy.Send)}
			if i.Receives {
				out.Receives = line(&in, hierarchy.Receive)
			}
			f.Branches = append(f.Branches, out)
		}
		l.Interfaces = append(l.Interfaces, f)
	}
	slices.SortFunc(uses, func(a, b use) int { return cmp.Compare(a.row, b.row) })
	return l, slices.Clip(uses)
}

// used is what a row did.
func used(id uint32, p *observe.Passing) use {
	u := use{row: id, delay: fits(uint64(p.Delay() / time.Microsecond)), backlog: fits(p.Backlog)}
	if p.Since != nil {
		u.bits, u.drops, u.marks = float32(p.Since.Bandwidth), float32(p.Since.Drops), float32(p.Since.Marks)
	}
	return u
}

// fits is the nearest number that there is room for.
func fits(n uint64) uint32 { return uint32(min(n, math.MaxUint32)) }
