package bpf

import (
	"cmp"
	"errors"
	"hash/maphash"
	"math/bits"
	"slices"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Table is how full the table of flows is.
type Table struct {
	Flows   int    // in the table
	Room    int    // of the table
	Noted   uint64 // that were put into it since it was made
	Unknown uint64 // packets that went to the rest because nobody knew their flow
}

// Table counts the table.
func (r *Receiver) Table() (k Table, err error) {
	if err := r.refresh(); err != nil || r.on == nil || r.on.table == nil || r.on.counts == nil {
		return k, err
	}
	k.Room = int(r.on.table.MaxEntries())
	if err := each(r.on.table, func(flowVifFlow, flowVifOwner) error { k.Flows++; return nil }); err != nil {
		return k, err
	}
	var all []flowVifCounts
	if err := r.on.counts.Lookup(uint32(0), &all); err != nil {
		return k, err
	}
	for _, c := range all {
		k.Noted += c.Noted
		k.Unknown += c.Missed
	}
	return k, nil
}

// flowMemory is about how many bytes a table takes (htab_map_alloc, kernel/bpf/hashtab.c,
// v6.12): an element each, made with the table, and a power of two of buckets.
func flowMemory(room uint32) uint64 {
	const element, bucket = 48 + 40 + 24, 16
	return uint64(room)*element + bucket<<bits.Len32(room-1)
}

// moving carries the flows of some programs over into the table of others. The zero value
// has none.
type moving struct {
	from, to *ebpf.Map
	counts   *ebpf.Map // of the new table
	seed     maphash.Seed
	carried  map[uint64]struct{} // flows with their owners, but for when these sent or were looked for
}

// flowEntry is one flow of a table.
type flowEntry struct {
	flow  flowVifFlow
	owner flowVifOwner
}

// move is what there is to carry over to the programs that come next.
func (f *flows) move(next *flows) *moving {
	if !f.known() || !next.known() || f.table.MaxEntries() == next.table.MaxEntries() {
		return &moving{}
	}
	return &moving{f.table, next.table, next.counts, maphash.MakeSeed(), map[uint64]struct{}{}}
}

// changed are the flows that were not carried as they are, and from now on are.
func (m *moving) changed() (all []flowEntry, err error) {
	if m.from == nil {
		return nil, nil
	}
	err = each(m.from, func(f flowVifFlow, o flowVifOwner) error {
		x := flowEntry{f, o}
		x.owner.Seen, x.owner.Looked = 0, 0
		sum := maphash.Comparable(m.seed, x)
		if _, done := m.carried[sum]; !done {
			m.carried[sum] = struct{}{}
			all = append(all, flowEntry{f, o})
		}
		return nil
	})
	return all, err
}

// first carries what is there, where it is too much what has sent last, and counts it.
func (m *moving) first() error {
	all, err := m.changed()
	if err != nil || m.from == nil {
		return err
	}
	per := make([]flowVifCounts, ebpf.MustPossibleCPU())
	per[0].Noted = uint64(len(all))
	if err := m.counts.Put(uint32(0), per); err != nil {
		return err
	}
	return m.put(all)
}

// again carries what has changed since, while the programs still go by the former table.
func (m *moving) again() error {
	all, err := m.changed()
	if err != nil {
		return err
	}
	return m.put(all)
}

// put writes flows that nobody else writes yet. For what does not fit there is no memory.
func (m *moving) put(all []flowEntry) error {
	if len(all) == 0 {
		return nil
	}
	for part := range slices.Chunk(latest(all, int(m.to.MaxEntries())), 4096) {
		keys, values := make([]flowVifFlow, len(part)), make([]flowVifOwner, len(part))
		for i, x := range part {
			keys[i], values[i] = x.flow, x.owner
		}
		if _, err := m.to.BatchUpdate(keys, values, nil); err != nil && !errors.Is(err, unix.ENOMEM) {
			return err
		}
	}
	return nil
}

// last carries what was noted before the programs went by the new table, but for what
// they have noted there since.
func (m *moving) last() error {
	all, err := m.changed()
	if err != nil {
		return err
	}
	for _, x := range all {
		var is flowVifOwner
		err := m.to.Lookup(x.flow, &is)
		if err == nil && int16(x.owner.Seen-is.Seen) <= 0 {
			continue
		}
		if err = gone(err); err == nil {
			err = put(m.to, x.flow, x.owner)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// latest are the n flows that have sent last, those after the others, because a table
// that is full forgets first what was put into it first. The clock of a flow goes round
// in 18 hours: the oldest is whoever comes after the longest time in which nobody sent.
func latest(all []flowEntry, n int) []flowEntry {
	if len(all) <= n {
		return all
	}
	slices.SortFunc(all, func(a, b flowEntry) int { return cmp.Compare(a.owner.Seen, b.owner.Seen) })
	oldest, longest := 0, uint16(0)
	for i, x := range all {
		before := all[(i+len(all)-1)%len(all)]
		if gap := x.owner.Seen - before.owner.Seen; gap > longest {
			oldest, longest = i, gap
		}
	}
	return slices.Concat(all[oldest:], all[:oldest])[len(all)-n:]
}
