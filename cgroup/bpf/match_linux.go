package bpf

import (
	"errors"
	"fmt"
	"iter"
	"maps"
	"reflect"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/way"
)

// matches are one interface's program and maps of matches.
type matches struct {
	id     uint32 // of the program
	prog   *ebpf.Program
	tracks bool // it asks connection tracking
	config *ebpf.Map
	scopes dual[matchVifScope, uint32]
	v4     dual[matchVifV4, uint64]
	v6     dual[matchVifV6, uint64]
	rules  dual[matchVifRule, uint32]
	ranges array[matchVifLengths] // lengths of prefixes
	ports  array[matchVifPorts]
	lists  *ebpf.Map
	kinds  *ebpf.Map
}

// dual is a map of which every entry has two values; one of them is in force.
type dual[K comparable, V uint32 | uint64] struct{ *ebpf.Map }

// read are the values of a slot.
func (d dual[K, V]) read(slot uint32) (map[K]V, error) {
	in := map[K]V{}
	return in, each(d.Map, func(k K, v [2]V) error {
		if x := v[slot&1]; x != 0 {
			in[k] = x
		}
		return nil
	})
}

// write makes the values of the slot that is not in force what they are to be. It says which
// entries differ now.
func (d dual[K, V]) write(slot uint32, want map[K]V) (differ []K, err error) {
	var keys []K
	var now [][2]V
	left := maps.Clone(want)
	err = each(d.Map, func(k K, v [2]V) error {
		x := want[k]
		delete(left, k)
		if v[0] != v[1] || v[0] != x {
			differ = append(differ, k)
		}
		if v[slot&1^1] != x {
			v[slot&1^1] = x
			keys, now = append(keys, k), append(now, v)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	for k, x := range left {
		var v [2]V
		v[slot&1^1] = x
		keys, now, differ = append(keys, k), append(now, v), append(differ, k)
	}
	return differ, putAll(d.Map, keys, now)
}

// settle makes both values of entries what they are to be, when those of want are in force.
func (d dual[K, V]) settle(differ []K, want map[K]V) error {
	var keys []K
	var now [][2]V
	for _, k := range differ {
		x := want[k]
		if x == 0 {
			if err := gone(d.Delete(&k)); err != nil {
				return err
			}
			continue
		}
		keys, now = append(keys, k), append(now, [2]V{x, x})
	}
	return putAll(d.Map, keys, now)
}

// array is a map of one entry, in which each element has two values as in [dual]. It is
// written as a whole: what stays as it is may be looked at meanwhile.
type array[T comparable] struct{ *ebpf.Map }

func (a array[T]) read() (*T, error) {
	t := new(T)
	return t, a.Lookup(uint32(0), t)
}

// write makes of it what fill does. Where that is nothing it is left alone, and so are the
// caches of all processors.
func (a array[T]) write(fill func(*T)) error {
	was, err := a.read()
	if err != nil {
		return err
	}
	now := *was
	if fill(&now); now == *was {
		return nil
	}
	return a.Put(uint32(0), &now)
}

// putAll is put for many entries.
func putAll[K, V any](m *ebpf.Map, keys []K, values []V) error {
	const few = 8
	if len(keys) > few {
		n, err := m.BatchUpdate(keys, values, nil)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, unix.ENOMEM) || errors.Is(err, ebpf.ErrNotSupported): // one by one
			keys, values = keys[n:], values[n:]
		default:
			return err
		}
	}
	for i := range keys {
		if err := put(m, &keys[i], &values[i]); err != nil {
			return err
		}
	}
	return nil
}

// putLists writes the lists that somebody is to go by.
func putLists[T any](m *ebpf.Map, lists map[uint32]T) error {
	var ids []uint32
	var all []T
	for id, list := range lists {
		ids, all = append(ids, id), append(all, list)
	}
	return putAll(m, ids, all)
}

// lists reads those that somebody goes by.
func lists[T any](m *ebpf.Map, ids iter.Seq[uint32]) (map[uint32]T, error) {
	all := map[uint32]T{}
	for id := range ids {
		if _, known := all[id]; known {
			continue
		}
		var list T
		if err := m.Lookup(id, &list); err != nil {
			return nil, err
		}
		all[id] = list
	}
	return all, nil
}

// loadMatches makes the program of what is sent with its maps, not yet on any hook, which
// have room for tables, and for others of a like size. Nothing is in them. Where rules ask for
// addresses before translation it asks connection tracking, if the kernel lets it.
func loadMatches(want *tables) (*matches, error) {
	if want.hosts {
		m, err := loadTracking(want, true)
		if err != nil {
			askConntrack()
			m, err = loadTracking(want, true)
		}
		if err == nil {
			return m, nil
		}
	}
	return loadTracking(want, false)
}

func loadTracking(want *tables, tracks bool) (*matches, error) {
	spec, err := loadMatch()
	if err != nil {
		return nil, err
	}
	if p := spec.Programs[matchProgVifMatch]; !tracks {
		p.Instructions = untracked(p.Instructions)
	}
	for name, many := range want.sizes() {
		spec.Maps[name].MaxEntries = roomFor(many)
	}
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		if e := caps.Lacking(unix.CAP_BPF, unix.CAP_NET_ADMIN); e != nil {
			err = e
		}
		return nil, fmt.Errorf("load the program of matches: %w", err)
	}
	defer c.Close()
	m := &matches{prog: c.DetachProgram(matchProgVifMatch), tracks: tracks}
	for n := range c.Maps {
		m.keep(n, c.DetachMap(n))
	}
	info, err := m.prog.Info()
	if err == nil {
		id, _ := info.ID()
		m.id = uint32(id)
		err = m.config.Put(uint32(0), &matchVifMatching{Version: way.Version, Tracks: uint32(bit(tracks, 1))})
	}
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	return m, nil
}

// inGroups are the lists of groups.
func (t *tables) inGroups() iter.Seq[uint32] {
	return func(yield func(uint32) bool) {
		for k, v := range t.v4 {
			if v>>32 != 0 && !k.head() && !yield(uint32(v)) {
				return
			}
		}
		for _, v := range t.v6 {
			if v>>32 != 0 && !yield(uint32(v)) {
				return
			}
		}
	}
}

const matchConfig = ".data.mtc"

// maps are all of them, which other programs may go by, by their names in the source; nil where
// there are no matches.
func (m *matches) maps() map[string]*ebpf.Map {
	if m == nil {
		m = &matches{}
	}
	return map[string]*ebpf.Map{
		matchConfig: m.config, matchMapVifScopes: m.scopes.Map, matchMapVifLists: m.lists, matchMapVifLengths: m.ranges.Map, matchMapVifV4: m.v4.Map,
		matchMapVifV6: m.v6.Map, matchMapVifKinds: m.kinds, matchMapVifRules: m.rules.Map, matchMapVifPorts: m.ports.Map,
	}
}

// which is the number of the matches' first map, 0 where there are none.
func (m *matches) which() (ebpf.MapID, error) {
	if m == nil {
		return 0, nil
	}
	info, err := m.config.Info()
	if err != nil {
		return 0, err
	}
	id, _ := info.ID()
	return id, nil
}

// sizes are how many entries maps are to have.
func (t *tables) sizes() map[string]int {
	return map[string]int{matchMapVifScopes: len(t.scopes), matchMapVifLists: len(t.lists), matchMapVifV4: len(t.v4), matchMapVifV6: len(t.v6), matchMapVifKinds: len(t.kinds), matchMapVifRules: len(t.rules)}
}

// roomFor is how many entries a map is made for that is to have so many at first: while it
// is changed it has the former ones, too.
func roomFor(many int) uint32 {
	const least = 1 << 6
	room := uint32(least)
	for int(room) < 3*many {
		room *= 2
	}
	return room
}

// holds says whether the maps have room for tables besides those that are there.
func (m *matches) holds(want *tables) bool {
	all := m.maps()
	for name, many := range want.sizes() {
		if 2*many >= int(all[name].MaxEntries()) {
			return false
		}
	}
	return true
}

// keep puts a map in its place, or closes it when it has none.
func (m *matches) keep(name string, of *ebpf.Map) {
	switch plainName(name) {
	case "datamtc":
		m.config = of
	case matchMapVifScopes:
		m.scopes.Map = of
	case matchMapVifLists:
		m.lists = of
	case matchMapVifLengths:
		m.ranges.Map = of
	case matchMapVifV4:
		m.v4.Map = of
	case matchMapVifV6:
		m.v6.Map = of
	case matchMapVifKinds:
		m.kinds = of
	case matchMapVifRules:
		m.rules.Map = of
	case matchMapVifPorts:
		m.ports.Map = of
	default:
		of.Close() // the program keeps it
	}
}

func (m *matches) close() error {
	if m == nil {
		return nil
	}
	var errs []error
	for _, of := range m.maps() {
		if of != nil {
			errs = append(errs, of.Close())
		}
	}
	if m.prog != nil {
		errs = append(errs, m.prog.Close())
	}
	return errors.Join(errs...)
}

// read are the tables that are in force.
func (m *matches) read() (*tables, error) {
	var c matchVifMatching
	if err := m.config.Lookup(uint32(0), &c); err != nil {
		return nil, err
	}
	t := &tables{macs: c.Macs != 0, hosts: c.Hosts != 0}
	ranges, err := m.ranges.read()
	if err != nil {
		return nil, err
	}
	ports, err := m.ports.read()
	if err != nil {
		return nil, err
	}
	slot := c.Slot & 1
	for side := range t.lengths {
		for i := range t.lengths[side] {
			t.lengths[side][i] = ranges.Sides[side][i].Slot[slot]
		}
	}
	for i := range t.ports {
		t.ports[i] = ports.Ports[i][slot]
	}
	var errs [4]error
	t.scopes, errs[0] = m.scopes.read(c.Slot)
	t.v4, errs[1] = m.v4.read(c.Slot)
	t.v6, errs[2] = m.v6.read(c.Slot)
	t.rules, errs[3] = m.rules.read(c.Slot)
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	if t.lists, err = lists[matchVifPairs](m.lists, maps.Values(t.scopes)); err != nil {
		return nil, err
	}
	t.kinds, err = lists[matchVifKinds](m.kinds, t.inGroups())
	return t, err
}

// change brings tables into force, all at once: no packet goes by some of the former and
// some of the new. Entries that stay as they are are not touched. Where it was ended halfway
// the former ones are in force, or the new ones are, and it goes on from there.
func (m *matches) change(want *tables) (err error) {
	var c matchVifMatching
	if err := m.config.Lookup(uint32(0), &c); err != nil {
		return err
	}
	if want.macs && c.Macs == 0 || want.hosts && c.Hosts == 0 {
		c.Macs, c.Hosts = c.Macs|uint32(bit(want.macs, 1)), c.Hosts|uint32(bit(want.hosts, 1))
		if err := m.config.Put(uint32(0), &c); err != nil {
			return err
		}
	}
	var after []func() error
	step := func(err error, settle func() error) error {
		after = append(after, settle)
		return err
	}
	err = errors.Join(
		putLists(m.lists, want.lists), putLists(m.kinds, want.kinds),
		change(m.scopes, c.Slot, want.scopes, step), change(m.v4, c.Slot, want.v4, step), change(m.v6, c.Slot, want.v6, step),
		change(m.rules, c.Slot, want.rules, step), m.fill(want, c.Slot&1^1))
	if err != nil {
		return err
	}
	if err := way.WaitForReaders(); err != nil { // on processors that reorder loads nobody sees the word without what it stands for
		return err
	}
	c.Slot ^= 1
	if err := m.config.Put(uint32(0), &c); err != nil {
		return err
	}
	if err := way.WaitForReaders(); err != nil {
		return err
	}
	for _, settle := range after {
		if err := settle(); err != nil {
			return err
		}
	}
	if !want.macs && c.Macs != 0 || !want.hosts && c.Hosts != 0 {
		c.Macs, c.Hosts = uint32(bit(want.macs, 1)), uint32(bit(want.hosts, 1))
		if err := m.config.Put(uint32(0), &c); err != nil {
			return err
		}
	}
	return nil
}

// fill makes the arrays' values of a slot what they are to be.
func (m *matches) fill(want *tables, slot uint32) error {
	return errors.Join(
		m.ranges.write(func(to *matchVifLengths) {
			for side := range want.lengths {
				for i, x := range want.lengths[side] {
					to.Sides[side][i].Slot[slot] = x
				}
			}
		}),
		m.ports.write(func(to *matchVifPorts) {
			for i, x := range want.ports {
				to.Ports[i][slot] = x
			}
		}))
}

func change[K comparable, V uint32 | uint64](d dual[K, V], slot uint32, want map[K]V, step func(error, func() error) error) error {
	differ, err := d.write(slot, want)
	return step(err, func() error { return d.settle(differ, want) })
}

// equal says whether tables are the same, whatever numbers groups and lists have where they
// were made from them.
func (t *tables) equal(o *tables) bool { return reflect.DeepEqual(t, o) }
