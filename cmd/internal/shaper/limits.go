package shaper

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// limitedRecords are the records of interfaces with limits.
func (m *Machine) limitedRecords() ([]*record.Record, error) {
	return m.records(func(r *record.Record) bool {
		return slices.ContainsFunc(r.Added, func(b amend.Branch) bool { return b.Limit != "" })
	})
}

// records are those that are wanted, each under the name that its interface has now. A damaged
// one is reported by who reads it for what is in it.
func (m *Machine) records(wanted func(*record.Record) bool) (all []*record.Record, err error) {
	names, err := m.Store.Interfaces()
	if err != nil {
		return nil, err
	}
	for _, n := range names {
		r, err := m.Store.Load(n)
		if err == nil && wanted(r) {
			all = append(all, r)
		}
	}
	if len(all) == 0 {
		return nil, nil
	}
	links, err := link.List(m.Conn)
	for i, r := range all {
		if l := r.Moved(links); l != nil {
			all[i] = r.Renamed(l.Name)
		}
	}
	return all, err
}

// Limited is a limit with the interfaces that it is on.
type Limited struct {
	amend.Branch
	Paths []hierarchy.Path
}

// Limits are those of the network namespace, in the order in which they were made.
func (m *Machine) Limits() (all []Limited, err error) {
	err = m.eachLimit(func(b amend.Branch) {
		i := slices.IndexFunc(all, func(o Limited) bool { return o.Limit == b.Limit })
		if i < 0 {
			i, all = len(all), append(all, Limited{Branch: b})
		}
		all[i].Paths = append(all[i].Paths, b.Path)
	})
	return all, err
}

// LimitsAsPolicy is what is in force on the interfaces that have limits, as a policy would say
// it. Of limits that go with a process the notes tell.
func (m *Machine) LimitsAsPolicy() (specs []*hierarchy.Spec, notes []policy.Note, err error) {
	records, err := m.limitedRecords()
	if err != nil {
		return nil, nil, err
	}
	for _, r := range records {
		var stay []amend.Branch
		for _, b := range r.Added {
			if b.Limit == "" || len(b.Bind) > 0 && b.Holder == nil || b.Path == hierarchy.Path(r.Interface) {
				stay = append(stay, b)
			} else {
				notes = append(notes, policy.Note{Text: fmt.Sprintf("left out, as it goes with a process: %s", b.Path)})
			}
		}
		spec, err := m.Store.Spec(r)
		if err != nil {
			return nil, nil, err
		}
		with, err := amend.Extend(spec, qdisc.Kinds(), stay)
		if err != nil {
			return nil, nil, err
		}
		specs = append(specs, with.Spec)
		if with.Spec.Rate.Of(0) == amend.Unlimited {
			notes = append(notes, policy.Note{Path: hierarchy.Path(r.Interface), Key: "rate", Text: "nobody knows what the line carries: write that, and a little less"})
		}
	}
	if len(specs) == 0 {
		err = errors.New("there are no limits in this network namespace")
	}
	return specs, notes, err
}

func (m *Machine) eachLimit(visit func(amend.Branch)) error {
	records, err := m.limitedRecords()
	for _, r := range records {
		for _, b := range r.Added {
			if b.Limit != "" {
				visit(b)
			}
		}
	}
	return err
}
