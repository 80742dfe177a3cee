package observe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// Forecast is what the branches of an interface get in one direction, by the policy in force
// and by another one.
type Forecast struct {
	Interface string              `json:"interface"`
	Direction hierarchy.Direction `json:"direction"`
	Policy    string              `json:"policy,omitempty"` // in force; empty: none
	Branches  []ForecastBranch    `json:"branches"`
}

// ForecastBranch is a branch of either policy. A nil [Share] is that of a policy which does
// not have it, or does not shape this direction.
type ForecastBranch struct {
	Path       hierarchy.Path `json:"path"`
	Was        hierarchy.Path `json:"was,omitempty"` // its path now, where the other policy renames it
	Now        *Share         `json:"now,omitempty"`
	Would      *Share         `json:"would,omitempty"`
	Difference *int64         `json:"difference_bps,omitempty"` // of what it gets, in bits a second
}

// Share is what a branch may have, wants and gets under a policy.
type Share struct {
	Rate      hierarchy.Bandwidth  `json:"rate"`
	Ceil      hierarchy.Bandwidth  `json:"ceil"`
	Demand    *hierarchy.Bandwidth `json:"demand,omitempty"`    // of a leaf, unless that is
	Unlimited bool                 `json:"unlimited,omitempty"` // as much as it gets
	Gets      hierarchy.Bandwidth  `json:"gets"`
}

// Demand is what a branch wants, in each direction.
type Demand struct {
	Path hierarchy.Path
	Want [2]Want
}

// Want is what a branch wants in one direction. The zero value is nothing.
type Want struct {
	Amount    hierarchy.Amount // a percentage is one of the interface's rate
	Unlimited bool             // as much as it gets
}

// Stand is an interface's branches under a policy. The zero value is an interface without.
type Stand struct {
	Tree   *hierarchy.Tree
	ids    hierarchy.IDs
	byHome map[hierarchy.Path]*hierarchy.Branch // in the tree for sending
}

// NewStand is a tree that is not settled, with the names that its branches have, and had.
func NewStand(t *hierarchy.Tree, ids hierarchy.IDs) Stand {
	s := Stand{t, ids, map[hierarchy.Path]*hierarchy.Branch{}}
	for b := range t.All() {
		s.byHome[ids.Home(b.Path)] = b
	}
	return s
}

// on is the tree for a direction; nil: there is none.
func (s Stand) on(d hierarchy.Direction) *hierarchy.Tree {
	if s.Tree == nil || d == hierarchy.Send {
		return s.Tree
	}
	return s.Tree.Ingress
}

// find is the branch with that path, or nil.
func (s Stand) find(p hierarchy.Path) *hierarchy.Branch {
	if b := s.byHome[s.ids.Home(p)]; b != nil && b.Path == p {
		return b
	}
	return nil
}

// like is what a branch of another stand is in this one, or nil.
func (s Stand) like(of Stand, p hierarchy.Path) *hierarchy.Branch { return s.byHome[of.ids.Home(p)] }

// carries is the leaf for the packets that are a branch's of another stand; empty: there is no
// tree. Apply leads those that are bound to a branch to its rest, where it is divided. Where
// there is no such branch, nothing but what is above it may still claim them.
func (s Stand) carries(of Stand, p hierarchy.Path) hierarchy.Path {
	for ; s.Tree != nil && p != ""; p = p.Parent() {
		if b := s.like(of, p); b != nil && b.Entry() != nil {
			return b.Entry().Path
		}
	}
	return ""
}

// Foresee is what the branches of one interface get for demands, now and as they would be:
// where it sends, and where it receives if either shapes that. Demands are of leaves of
// either.
func Foresee(now, would Stand, demands []Demand) ([]*Forecast, error) {
	stands := [2]Stand{now, would}
	var leaf [2][]hierarchy.Path
	for _, d := range demands {
		of, err := demanding(stands, d.Path)
		if err != nil {
			return nil, err
		}
		for i, s := range stands {
			leaf[i] = append(leaf[i], s.carries(of, d.Path))
		}
	}
	pairs := pair(now, would)
	var all []*Forecast
	for _, d := range []hierarchy.Direction{hierarchy.Send, hierarchy.Receive} {
		line := would.on(d) // whose rate percentages are of
		if line == nil {
			line = now.on(d)
		}
		if line == nil {
			continue
		}
		var by [2]allotted
		for i, s := range stands {
			want := map[hierarchy.Path]hierarchy.Bandwidth{}
			for j, x := range demands {
				p, more := leaf[i][j], hierarchy.Unlimited
				if w := x.Want[d]; !w.Unlimited {
					more = w.Amount.Of(line.Root.Rate)
				}
				want[p] += min(more, hierarchy.Unlimited-want[p])
			}
			by[i] = allot(s.on(d), want)
		}
		f := &Forecast{Interface: would.Tree.Port.Device, Direction: d}
		for _, x := range pairs {
			if b := compare(by, x); b.Now != nil || b.Would != nil {
				f.Branches = append(f.Branches, b)
			}
		}
		all = append(all, f)
	}
	return all, nil
}

// demanding is the stand in which the path is a leaf: that which would be, else that of now.
func demanding(stands [2]Stand, p hierarchy.Path) (Stand, error) {
	var inner *hierarchy.Branch
	var known []hierarchy.Path
	for _, s := range slices.Backward(stands[:]) {
		b := s.find(p)
		if b != nil && b.Leaf() {
			return s, nil
		}
		if inner == nil {
			inner = b
		}
		if s.Tree != nil {
			known = append(known, paths(s.Tree)...)
		}
	}
	if inner == nil {
		slices.Sort(known)
		return Stand{}, hierarchy.NoBranch(p, slices.Compact(known))
	}
	for !inner.Leaf() {
		inner = inner.Children[0]
	}
	return Stand{}, fmt.Errorf("%s is divided, and only leaves demand something: write what those below it do, as %s", p, inner.Path)
}

// pair lists the branches of both stands, each with what it is in the other: as the one that
// would be has them, and behind those of each branch those that go.
func pair(now, would Stand) (all [][2]*hierarchy.Branch) {
	var walk func(is, will *hierarchy.Branch)
	walk = func(is, will *hierarchy.Branch) {
		all = append(all, [2]*hierarchy.Branch{is, will})
		if will != nil {
			for _, c := range will.Children {
				walk(now.like(would, c.Path), c)
			}
		}
		if is != nil {
			for _, c := range is.Children {
				if would.like(now, c.Path) == nil {
					walk(c, nil)
				}
			}
		}
	}
	var root *hierarchy.Branch
	if now.Tree != nil {
		root = now.Tree.Root
	}
	walk(root, would.Tree.Root)
	return all
}

// allotted is what the branches of a tree want and get; nil: there is no tree.
type allotted map[hierarchy.Path]*Share

func allot(t *hierarchy.Tree, want map[hierarchy.Path]hierarchy.Bandwidth) allotted {
	if t == nil {
		return nil
	}
	s, get := allotted{}, t.Ideal(want)
	for b := range t.All() {
		x := &Share{Rate: b.Rate, Ceil: b.Ceil, Gets: get[b.Path]}
		if w := want[b.Path]; w == hierarchy.Unlimited {
			x.Unlimited = true
		} else if b.Leaf() {
			x.Demand = &w
		}
		s[b.Path] = x
	}
	return s
}

// compare is what a branch gets by each, of both.
func compare(by [2]allotted, of [2]*hierarchy.Branch) (x ForecastBranch) {
	if b := of[0]; b != nil {
		x.Path, x.Now = b.Path, by[0][b.Path]
	}
	if b := of[1]; b != nil {
		if x.Path != b.Path {
			x.Was = x.Path
		}
		x.Path, x.Would = b.Path, by[1][b.Path]
	}
	if x.Now != nil && x.Would != nil {
		more := int64(x.Would.Gets) - int64(x.Now.Gets)
		x.Difference = &more
	}
	return x
}

// foreseen is an interface of a policy, as it is and as it would be.
type foreseen struct {
	*shaper.Interface // nil: nothing of ours is in force
	now, would        Stand
}

// WhatIf is what the branches of a policy's interfaces get for demands, now and by that policy.
// Of an interface that is not there, or has no policy in force, only the latter is known. Without
// demands they are what is measured over a time, and interfaces of which nothing is are left
// out. Either is told.
func WhatIf(ctx context.Context, m *shaper.Machine, p *policy.Policy, demands []Demand, sample time.Duration) ([]*Forecast, error) {
	wanted, _, err := m.Wanted(p, nil)
	if err != nil && !errors.As(err, new(*shaper.MisnamedError)) {
		return nil, err
	}
	var all []*foreseen
	var names []string
	for i, s := range p.Specs {
		of := slices.DeleteFunc(slices.Clone(wanted), func(w shaper.Wanted) bool { return string(w.By) != s.Interface })
		if len(of) == 0 { // it is not there
			of = []shaper.Wanted{{Tree: p.Trees[i], Spec: s}}
		}
		for _, w := range of {
			x, unknown, err := foresee(ctx, m, w)
			if err != nil {
				return nil, err
			}
			iface := w.Tree.Port.Device
			if of := w.Tree.Example; of != 0 {
				m.Notef(hierarchy.Path(iface), "the rate of %s is a share of its link: what is said is of one of %v, as an example", iface, of)
			}
			names = append(names, iface)
			switch {
			case unknown == nil:
				all = append(all, x)
			case len(demands) == 0:
				m.Notef(hierarchy.Path(iface), "%s is left out: %v", iface, unknown)
			default:
				m.Notef(hierarchy.Path(iface), "what the branches of %s get now is left out: %v", iface, unknown)
				all = append(all, x)
			}
		}
	}
	by := map[string][]Demand{}
	for _, d := range demands {
		iface := d.Path.Interface()
		if !slices.Contains(names, iface) {
			return nil, fmt.Errorf("the policy has no interface %s%s", iface, hierarchy.DidYouMean(hierarchy.Near(iface, names)))
		}
		by[iface] = append(by[iface], d)
	}
	if len(demands) == 0 {
		if by, err = measure(ctx, all, sample); err != nil {
			return nil, err
		}
	}
	var out []*Forecast
	for _, x := range all {
		iface := x.would.Tree.Port.Device
		forecasts, err := Foresee(x.now, x.would, by[iface])
		if err != nil {
			return nil, err
		}
		for _, f := range forecasts {
			if len(demands) == 0 && x.now.on(f.Direction) == nil {
				m.Notef(hierarchy.Path(iface), "what %s receives is left out: it is not shaped now, so that nothing of it is measured", iface)
				continue
			}
			if x.Interface != nil {
				f.Policy = x.Record.Policy
			}
			out = append(out, f)
		}
	}
	return out, nil
}

// foresee is an interface as it is, or why that is unknown, and as it would be.
func foresee(ctx context.Context, m *shaper.Machine, w shaper.Wanted) (f *foreseen, unknown, err error) {
	f = &foreseen{}
	r := &record.Record{}
	x, is, unknown := m.TreeOf(ctx, w.Tree.Port.Device)
	if unknown == nil {
		defer x.Binder.Close()
		unknown = x.Losses(is)
	}
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if unknown == nil {
		var tree *hierarchy.Tree
		if tree, unknown = m.Applied(x.Record); unknown == nil {
			r = x.Record
			f.Interface, f.now = x.Interface, NewStand(tree, r.IDs)
		}
	}
	tree, ids, err := shaper.Would(w, r)
	if err != nil {
		return nil, nil, err
	}
	f.would = NewStand(tree, ids)
	return f, unknown, nil
}

// measure finds out what leaves demand: what each lets through in a time, the same of all
// interfaces.
func measure(ctx context.Context, all []*foreseen, sample time.Duration) (map[string][]Demand, error) {
	if len(all) == 0 {
		return nil, errors.New("nothing of the policy is in force, so that nothing is measured: say what branches demand, as in --demand eth0/web=80mbit")
	}
	was := make([]counted, len(all))
	for i, x := range all {
		var err error
		if was[i], err = count(x.Interface); err != nil {
			return nil, err
		}
	}
	select {
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-time.After(sample):
	}
	by := map[string][]Demand{}
	for i, x := range all {
		is, err := count(x.Interface)
		if err != nil {
			return nil, err
		}
		took := is.at.Sub(was[i].at)
		for b, in := range x.now.Tree.Both() {
			if !b.Leaf() {
				continue
			}
			d := Demand{Path: b.Path}
			d.Want[hierarchy.Send] = measured(was[i].sent[b.ID], is.sent[b.ID], took, qdisc.Holds(b.Qdisc))
			if in != nil {
				d.Want[hierarchy.Receive] = measured(was[i].received[b.ID], is.received[b.ID], took, qdisc.Holds(in.Qdisc))
			}
			by[x.Record.Interface] = append(by[x.Record.Interface], d)
		}
	}
	return by, nil
}

// measured is what a leaf demands that let so much through between two looks. Where packets
// waited at both, or were dropped meanwhile, it would have taken more, and nobody can say how
// much. A queue that makes packets wait or drops them of its own accord says nothing by that.
func measured(was, is tc.ClassStats, took time.Duration, holds bool) Want {
	if !holds && (was.QLen > 0 && is.QLen > 0 || is.Drops > was.Drops) {
		return Want{Unlimited: true}
	}
	return Want{Amount: hierarchy.Absolute(min(rate(was.Bytes, is.Bytes, took), hierarchy.MaxBandwidth))}
}
