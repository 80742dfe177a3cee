package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

const maxLevel = 31 // MAX_LEVEL in bpf/bound.h

// binding is what a cgroup is bound to. Level is its depth below the root, 0 where
// that is not known.
type binding struct {
	class hierarchy.ClassID
	level uint32
}

// numbered is what is bound by a number of its own.
type numbered int

const (
	byUser numbered = iota // by user id
	byLink                 // by the index of an interface that packets came in by
)

// set is one interface's program with its maps.
type set struct {
	way     bind.Way
	version uint32
	id      uint32 // of the program
	serves  bool   // it looks who serves accepted connections; not known of one that was found
	prog    *ebpf.Program
	config  *ebpf.Map
	cgroups *ebpf.Map    // nil for net_cls, and so the others
	numbers [2]*ebpf.Map // by numbered
	sockets *ebpf.Map
	// What is to be brought into force for open sockets.
	changed, removed bool
	held             bool // what is bound now may have sockets of somebody else
}

// name is the program's, which tells the ways apart when it is found again.
func name(w bind.Way) string {
	if w == bind.WayNetCls {
		return classifyProgVifNetCls
	}
	return classifyProgVifEgress
}

// loadSet makes a new set in the kernel, with nothing bound and not yet on any
// hook. The kernel's types are read once for all that share them: it takes longer
// than all the rest.
func loadSet(w bind.Way, types *btf.Cache) (*set, error) {
	s, err := loadFirst(w, types)
	if !errors.Is(err, unix.EPERM) || errors.Is(err, caps.ErrNotPrivileged) {
		return s, err
	}
	if caps.Before(5, 11) { // maps count as locked memory there, of which little is allowed
		var limit unix.Rlimit
		lifted := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
		if err := unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &lifted, &limit); err != nil {
			return nil, fmt.Errorf("load the classifier: raise the limit of locked memory: %w", caps.Explain(err, unix.CAP_SYS_RESOURCE))
		}
		s, err = loadFirst(w, types)
		// what Exec starts must not inherit it
		if e := unix.Prlimit(0, unix.RLIMIT_MEMLOCK, &limit, nil); e != nil && err == nil {
			return nil, errors.Join(fmt.Errorf("put the limit of locked memory back: %w", e), s.close())
		}
	}
	if errors.Is(err, unix.EPERM) {
		err = fmt.Errorf("load the classifier: %w", caps.Explain(err))
	}
	return s, err
}

// loadFirst loads the first of the way's programs that the kernel takes.
func loadFirst(w bind.Way, types *btf.Cache) (*set, error) {
	progs := []string{classifyProgVifEgress, classifyProgVifEgressPlain, classifyProgVifEgressOld}
	if w == bind.WayNetCls {
		progs = []string{classifyProgVifNetCls}
	}
	var errs way.Clauses
	for _, p := range progs {
		s, err := loadProgram(w, p, types)
		if err == nil {
			return s, nil
		}
		// the library takes a refusal for a missing feature where it probes for one
		if e := caps.Lacking(unix.CAP_BPF, unix.CAP_NET_ADMIN); e != nil {
			return nil, fmt.Errorf("load the classifier: %w", e)
		}
		if e := refused(err); e != nil {
			return nil, e
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("load the classifier (Linux 5.10 or later with BPF): %w: %w", caps.ErrNotSupported, errs)
}

// refused is the kernel's refusal where that is why a program could not be loaded. With
// capabilities of a user namespace alone the description of a map's types is refused
// first, and the map then called invalid for want of it (bpf_local_storage_map_alloc_check
// before map_create asks for capabilities, kernel/bpf, v6.12), so that which error is
// seen depends on the map that comes first.
func refused(err error) error {
	if errors.Is(err, unix.EPERM) {
		return err
	}
	// A queue takes CAP_BPF always, and no description.
	m, e := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Queue, ValueSize: 4, MaxEntries: 1})
	if e == nil {
		e = m.Close()
	}
	if errors.Is(e, unix.EPERM) {
		return e
	}
	return nil
}

func loadProgram(w bind.Way, program string, types *btf.Cache) (*set, error) {
	spec, err := loadClassify()
	if err != nil {
		return nil, err
	}
	for n := range spec.Programs {
		if n != program {
			delete(spec.Programs, n)
		}
	}
	spec.Programs[program].Name = name(w)
	if w == bind.WayNetCls {
		for _, n := range []string{classifyMapVifCgroups, classifyMapVifUsers, classifyMapVifLinks, classifyMapVifSockets} {
			delete(spec.Maps, n)
		}
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	s := &set{way: w, version: way.Version, serves: program == classifyProgVifEgress, prog: c.DetachProgram(program)}
	for n := range c.Maps {
		s.keep(n, c.DetachMap(n))
	}
	info, err := s.prog.Info()
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	id, _ := info.ID()
	s.id = uint32(id)
	err = s.config.Put(uint32(0), &classifyVifConfig{
		Version: way.Version, Generation: 1, Rest: uint32(hierarchy.ID(hierarchy.RestMinor)),
	})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// openSet finds a set again by its program. A program that is not of this
// package has version 0.
func openSet(id uint32) (*set, error) {
	denied := func(err error) error {
		return fmt.Errorf("read the classifier: %w", caps.Explain(err, unix.CAP_SYS_ADMIN))
	}
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return nil, denied(err)
	}
	s := &set{id: id, prog: p, way: bind.WayBPF}
	called, ids, err := programInfo(p)
	if err != nil {
		return nil, errors.Join(denied(err), s.close())
	}
	if called == name(bind.WayNetCls) {
		s.way = bind.WayNetCls
	}
	for _, mid := range ids {
		m, err := ebpf.NewMapFromID(mid)
		if err != nil {
			return nil, errors.Join(denied(err), s.close())
		}
		called, err := mapName(m)
		if err != nil {
			return nil, errors.Join(denied(err), m.Close(), s.close())
		}
		s.keep(called, m)
	}
	if s.config == nil {
		return s, nil
	}
	b, err := s.config.LookupBytes(uint32(0))
	if err != nil {
		return nil, errors.Join(denied(err), s.close())
	}
	if len(b) >= 4 {
		s.version = binary.NativeEndian.Uint32(b)
	}
	return s, nil
}

// keep puts a map in its place, or closes it when it has none.
func (s *set) keep(name string, m *ebpf.Map) {
	switch plainName(name) {
	case "datavif":
		s.config = m
	case classifyMapVifCgroups:
		s.cgroups = m
	case classifyMapVifUsers:
		s.numbers[byUser] = m
	case classifyMapVifLinks:
		s.numbers[byLink] = m
	case classifyMapVifSockets:
		s.sockets = m
	default:
		m.Close() // the program keeps it
	}
}

// current says whether there is a set, of that way and of this package's version.
func (s *set) current(w bind.Way) bool { return s != nil && s.way == w && s.version == way.Version }

func (s *set) close() error {
	var errs []error
	for _, m := range []*ebpf.Map{s.config, s.cgroups, s.numbers[byUser], s.numbers[byLink], s.sockets} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	return errors.Join(append(errs, s.prog.Close())...)
}

func (s *set) configure(change func(*classifyVifConfig)) error {
	var c classifyVifConfig
	if err := s.config.Lookup(uint32(0), &c); err != nil {
		return err
	}
	was := c
	change(&c)
	if c == was {
		return nil
	}
	return s.config.Put(uint32(0), &c)
}

func (s *set) cgroup(id uint64) (binding, bool, error) {
	var v classifyVifBinding
	err := s.cgroups.Lookup(id, &v)
	return binding{hierarchy.ClassID(v.Class), v.Level}, err == nil, gone(err)
}

func (s *set) bindCgroup(id uint64, b binding) error {
	if b.level > maxLevel {
		return fmt.Errorf("%d levels below the root, more than %d", b.level, maxLevel)
	}
	if err := s.configure(func(c *classifyVifConfig) { c.Levels |= levelBits(b.level) }); err != nil {
		return err
	}
	return put(s.cgroups, id, &classifyVifBinding{Class: uint32(b.class), Level: b.level})
}

func (s *set) unbindCgroup(id uint64) error { return gone(s.cgroups.Delete(id)) }

func (s *set) number(of numbered, n uint32) (class hierarchy.ClassID, bound bool, err error) {
	var v uint32
	err = s.numbers[of].Lookup(n, &v)
	return hierarchy.ClassID(v), err == nil, gone(err)
}

func (s *set) bindNumber(of numbered, n uint32, class hierarchy.ClassID) error {
	return put(s.numbers[of], n, uint32(class))
}

func (s *set) unbindNumber(of numbered, n uint32) error { return gone(s.numbers[of].Delete(n)) }

// numberedOf is how a target of a kind is bound that is no cgroup.
func numberedOf(k bind.TargetKind) numbered {
	if k == bind.TargetLink {
		return byLink
	}
	return byUser
}

func (s *set) get(k way.Key) (hierarchy.ClassID, bool, error) {
	if k.Kind == bind.TargetCgroup {
		b, bound, err := s.cgroup(k.ID)
		return b.class, bound, err
	}
	return s.number(numberedOf(k.Kind), uint32(k.ID))
}

func (s *set) put(k way.Key, class hierarchy.ClassID) error {
	if k.Kind != bind.TargetCgroup {
		of := numberedOf(k.Kind)
		is, bound, err := s.number(of, uint32(k.ID))
		if err != nil || bound && is == class {
			return err
		}
		s.changed, s.held = true, s.held || of == byUser && !bound
		return s.bindNumber(of, uint32(k.ID), class)
	}
	next := binding{class, k.Level}
	was, bound, err := s.cgroup(k.ID)
	if err != nil || bound && was == next {
		return err
	}
	s.changed = s.changed || !k.Fresh // a new one has no sockets yet that could know another class
	s.held = s.held || !bound && k.Used != nil && k.Used()
	return s.bindCgroup(k.ID, next)
}

func (s *set) each(fn func(way.Key, hierarchy.ClassID) error) error {
	err := each(s.cgroups, func(id uint64, v classifyVifBinding) error {
		return fn(way.Key{Kind: bind.TargetCgroup, ID: id, Level: v.Level}, hierarchy.ClassID(v.Class))
	})
	if err != nil {
		return err
	}
	for of, kind := range []bind.TargetKind{byUser: bind.TargetUser, byLink: bind.TargetLink} {
		err := each(s.numbers[of], func(n, class uint32) error {
			return fn(way.Key{Kind: kind, ID: uint64(n)}, hierarchy.ClassID(class))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// put adds to a map, or changes what is in it. Since Linux 6.1 the kernel has a few
// elements ready and makes more in an interrupt that it sends itself, on some
// machines no sooner than with the next tick of the clock: until then there is no
// memory (unit_alloc and irq_work_raise, kernel/bpf/memalloc.c, v6.1).
func put(m *ebpf.Map, key, value any) error {
	const tick = 10 * time.Millisecond
	err := m.Put(key, value)
	for try := 0; errors.Is(err, unix.ENOMEM) && try < 10; try++ {
		time.Sleep(tick)
		err = m.Put(key, value)
	}
	if errors.Is(err, unix.E2BIG) {
		return fmt.Errorf("there are %d already, which is as many as the classifier holds", m.MaxEntries())
	}
	return err
}

// gone takes "there was none" for success.
func gone(err error) error {
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return err
}

func levelBits(level uint32) uint32 {
	if level == 0 {
		return ^uint32(1)
	}
	return 1 << level
}

// relevel clears the bits of levels at which nothing is bound any more: each
// costs a new socket a look-up.
func (s *set) relevel() error {
	var bits uint32
	err := each(s.cgroups, func(_ uint64, b classifyVifBinding) error {
		bits |= levelBits(b.Level)
		return nil
	})
	if err != nil {
		return err
	}
	return s.configure(func(c *classifyVifConfig) { c.Levels = bits })
}

// each calls fn for every entry of a map.
func each[K, V any](m *ebpf.Map, fn func(K, V) error) error {
	var (
		cursor ebpf.MapBatchCursor
		keys   = make([]K, 4096) // a bucket of the hash must fit
		values = make([]V, len(keys))
	)
	for {
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		if errors.Is(err, ebpf.ErrNotSupported) { // before 5.6
			return eachAlone(m, fn)
		}
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return err
		}
		for i := range n {
			if err := fn(keys[i], values[i]); err != nil {
				return err
			}
		}
		if err != nil { // that was the last
			return nil
		}
	}
}

func eachAlone[K, V any](m *ebpf.Map, fn func(K, V) error) error {
	var (
		key   K
		value V
	)
	it := m.Iterate()
	for it.Next(&key, &value) {
		if err := fn(key, value); err != nil {
			return err
		}
	}
	return it.Err()
}

// publish makes every socket look its class up again.
//
// A run of the program that reads the new generation must also see the bindings
// from before it, or it would cache an old class for good. Processors that do not
// reorder loads give that by themselves; on others all runs under way have to end
// first, which takes some 10 ms.
func (s *set) publish() error {
	switch runtime.GOARCH {
	case "386", "amd64", "s390x":
	default:
		if err := way.WaitForReaders(); err != nil {
			return err
		}
	}
	return s.configure(func(c *classifyVifConfig) {
		if c.Generation++; c.Generation == 0 {
			c.Generation = 1
		}
	})
}
