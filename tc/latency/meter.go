//go:build linux

package latency

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// Queue is a leaf.
type Queue struct {
	Index uint32 // of the interface, or of the IFB of what it receives
	Class hierarchy.ClassID
	Kind  string
}

// Result is what was measured.
type Result struct {
	Queues    []Measured // as they were given to [Begin]
	Cost      Cost
	Undivided error // why the parts could not be followed of packets that queues divide; nil: they were
}

// Measured is what a leaf let through and dropped.
type Measured struct {
	Waits
	Untimed uint64 // packets of which it cannot be told how long they waited
	Waiting uint64 // packets that came meanwhile, and wait in the end
	Drops   []Drop // the most first
}

// Drop is a reason for which packets were dropped.
type Drop struct {
	Reason  string // the kernel's name for it, as QDISC_OVERLIMIT; empty: it has none (before Linux 5.17)
	Packets uint64
}

// Cost is what measuring took of the processors, by the kernel's own clock at its programs.
type Cost struct {
	Programs time.Duration // for which they ran
	Runs     uint64
	Missed   uint64 // times that one could not run, as it ran already
	Unknown  error  // why the kernel does not say; nil: it does
}

// UnableError says why a kernel cannot measure.
type UnableError struct {
	What string
	Err  error
}

func (e *UnableError) Error() string { return fmt.Sprintf("%s: %v", e.What, e.Err) }

// Unwrap is the kernel's error.
func (e *UnableError) Unwrap() error { return e.Err }

// Remedy says what works without.
func (e *UnableError) Remedy() string {
	return "`vifshape show` says what waits now and what is dropped, `vifshape explain` what holds a branch up: both go by counters, which every kernel has"
}

// Divides says whether a kind of queue sends a packet as several, or as a copy, or may.
func Divides(kind string) bool { return slices.Contains([]string{"cake", "netem", "tbf"}, kind) }

// Meter measures from [Begin] to [Meter.End].
type Meter struct {
	queues  []Queue
	reasons map[uint32]string
	colls   []*ebpf.Collection
	links   []link.Link // what notes packets is the last: the others have to see them go
	stats   io.Closer
	result  Result
}

// Begin measures queues of a network namespace, which its inode number tells: all of a root,
// as what has no class of these is the rest's. The error is an [*UnableError] where the
// kernel cannot, and an EPERM where it may not.
func Begin(netns uint64, queues []Queue) (_ *Meter, err error) {
	types := btf.NewCache()
	kernel, err := types.Kernel()
	if err != nil {
		return nil, &UnableError{"this kernel does not describe its own types (BTF, /sys/kernel/btf/vmlinux), by which waiting is measured", err}
	}
	m := &Meter{queues: queues, reasons: reasonsOf(kernel)}
	defer func() {
		if err != nil {
			err = errors.Join(err, m.Close())
		}
	}()
	if err := m.load(netns, types); err != nil {
		return nil, refused("this kernel does not take the programs that measure", err)
	}
	if m.stats, err = ebpf.EnableStats(uint32(unix.BPF_STATS_RUN_TIME)); err != nil {
		m.result.Cost.Unknown = err
	}
	for _, name := range []string{waitsProgVifDequeue, waitsProgVifDrop, waitsProgVifConsume} {
		if err := m.attach(m.colls[0], name); err != nil {
			return nil, err
		}
	}
	if m.divides() {
		if err := m.follow(types); err != nil {
			m.result.Undivided = fmt.Errorf("this kernel lets no program follow their parts (fexit): %w", err)
		}
	}
	if err := m.attach(m.colls[0], waitsProgVifArrive); err != nil {
		return nil, err
	}
	return m, nil
}

// divides says whether a queue does that.
func (m *Meter) divides() bool {
	return slices.ContainsFunc(m.queues, func(q Queue) bool { return Divides(q.Kind) })
}

// refused is the error of what the kernel does not take.
func refused(what string, err error) error {
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("measure: %w", unix.EPERM) // the library guesses at why
	}
	return &UnableError{what, err}
}

// load loads the programs that every kernel takes.
func (m *Meter) load(netns uint64, types *btf.Cache) error {
	spec, err := loadWaits()
	if err != nil {
		return err
	}
	delete(spec.Programs, waitsProgVifDivide)
	if !m.divides() {
		delete(spec.Programs, waitsProgVifConsume)
	}
	leaves := uint32(len(m.queues))
	spec.Maps[waitsMapVifPlaces].MaxEntries = 2 * leaves
	spec.Maps[waitsMapVifLeaves].MaxEntries = leaves
	spec.Maps[waitsMapVifDrops].MaxEntries = leaves * manyReasons
	told := uint8(0)
	if len(m.reasons) > 0 {
		told = 1
	}
	err = errors.Join(
		spec.Variables[waitsVarVifNetns].Set(uint32(netns)),
		spec.Variables[waitsVarVifRoot].Set(uint32(hierarchy.ID(0))),
		spec.Variables[waitsVarVifReasons].Set(told))
	if err != nil {
		return err
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types})
	if err != nil {
		return err
	}
	m.colls = append(m.colls, c)
	for i, q := range m.queues {
		at := []waitsVifPlace{{Ifindex: q.Index, Class: uint32(q.Class)}}
		if q.Class.Minor() == hierarchy.RestMinor {
			at = append(at, waitsVifPlace{Ifindex: q.Index})
		}
		for _, place := range at {
			if err := c.Maps[waitsMapVifPlaces].Put(place, uint32(i)); err != nil {
				return fmt.Errorf("note class %v: %w", q.Class, err)
			}
		}
	}
	return nil
}

// follow puts the program to its function that follows the parts of packets, which not every
// kernel lets it sit at.
func (m *Meter) follow(types *btf.Cache) error {
	spec, err := loadWaits()
	if err != nil {
		return err
	}
	for name := range spec.Programs {
		if name != waitsProgVifDivide {
			delete(spec.Programs, name)
		}
	}
	shared := map[string]*ebpf.Map{}
	for _, name := range []string{waitsMapVifPackets, waitsMapVifLeaves} {
		shared[name] = m.colls[0].Maps[name]
		spec.Maps[name].MaxEntries = shared[name].MaxEntries()
	}
	delete(spec.Maps, waitsMapVifPlaces)
	delete(spec.Maps, waitsMapVifDrops)
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{Cache: types, MapReplacements: shared})
	if err != nil {
		if errors.Is(err, unix.EPERM) {
			err = unix.EPERM // the library guesses at why
		}
		return err
	}
	m.colls = append(m.colls, c)
	l, err := link.AttachTracing(link.TracingOptions{Program: c.Programs[waitsProgVifDivide]})
	if err == nil {
		m.links = append(m.links, l)
	}
	return err
}

// attach attaches a program, where it was loaded.
func (m *Meter) attach(c *ebpf.Collection, name string) error {
	p := c.Programs[name]
	if p == nil {
		return nil
	}
	l, err := link.AttachTracing(link.TracingOptions{Program: p})
	if err != nil {
		return refused("this kernel does not let a program sit at "+name, err)
	}
	m.links = append(m.links, l)
	return nil
}

// manyReasons are more than one leaf has.
const manyReasons = 16

// reasonsOf are the reasons that a kernel has for dropping packets; none before Linux 5.17.
// Their numbers change from version to version.
func reasonsOf(kernel *btf.Spec) map[uint32]string {
	var e *btf.Enum
	if kernel.TypeByName("skb_drop_reason", &e) != nil {
		return nil
	}
	all := map[uint32]string{}
	for _, v := range e.Values {
		all[uint32(v.Value)] = strings.TrimPrefix(v.Name, "SKB_DROP_REASON_")
	}
	return all
}

// End stops measuring and says what was measured. In between it asks how many packets wait in
// each queue: what came meanwhile and is not among these was not seen to go.
func (m *Meter) End(waiting func() ([]uint64, error)) (*Result, error) {
	arrive := len(m.links) - 1
	err := m.links[arrive].Close()
	m.links = m.links[:arrive]
	if err != nil {
		return nil, err
	}
	queued, err := waiting()
	if err != nil {
		return nil, err
	}
	if err := m.detach(); err != nil {
		return nil, err
	}
	here, err := m.here()
	if err != nil {
		return nil, err
	}
	r := &m.result
	for _, c := range m.colls {
		for _, p := range c.Programs {
			s, err := p.Stats()
			if err != nil {
				return nil, fmt.Errorf("measure: what it cost: %w", err)
			}
			r.Cost.Programs += s.Runtime
			r.Cost.Runs += s.RunCount
			r.Cost.Missed += s.RecursionMisses
		}
	}
	r.Queues = make([]Measured, len(m.queues))
	for i := range r.Queues {
		var leaf waitsVifLeaf
		if err := m.read(waitsMapVifLeaves).Lookup(uint32(i), &leaf); err != nil {
			return nil, fmt.Errorf("measure: read class %v: %w", m.queues[i].Class, err)
		}
		r.Queues[i].Waits = Waits{leaf.Packets, time.Duration(leaf.Total), time.Duration(leaf.Longest), leaf.Waits}
		r.Queues[i].Waiting = min(here[i], queued[i])
		r.Queues[i].Untimed = leaf.Untimed + here[i] - r.Queues[i].Waiting
	}
	return r, m.drops(r.Queues)
}

func (m *Meter) read(name string) *ebpf.Map { return m.colls[0].Maps[name] }

// here counts the packets that are noted in each queue.
func (m *Meter) here() ([]uint64, error) {
	var at uint64
	var p waitsVifPacket
	n := make([]uint64, len(m.queues))
	i := m.read(waitsMapVifPackets).Iterate()
	for i.Next(&at, &p) {
		n[p.Leaf]++
	}
	return n, i.Err()
}

func (m *Meter) drops(all []Measured) error {
	var why waitsVifReason
	var packets uint64
	i := m.read(waitsMapVifDrops).Iterate()
	for i.Next(&why, &packets) {
		q := &all[why.Leaf]
		q.Drops = append(q.Drops, Drop{m.reason(why.Reason), packets})
	}
	for i := range all {
		slices.SortFunc(all[i].Drops, func(a, b Drop) int {
			return cmp.Or(cmp.Compare(b.Packets, a.Packets), cmp.Compare(a.Reason, b.Reason))
		})
	}
	return i.Err()
}

// reason is the name of one; those of subsystems have numbers alone.
func (m *Meter) reason(n uint32) string {
	if name, ok := m.reasons[n]; ok || len(m.reasons) == 0 {
		return name
	}
	return fmt.Sprintf("%#x", n)
}

// detach takes the programs off the kernel's functions.
func (m *Meter) detach() (err error) {
	for _, l := range slices.Backward(m.links) {
		err = errors.Join(err, l.Close())
	}
	m.links = nil
	if m.stats != nil {
		err = errors.Join(err, m.stats.Close())
		m.stats = nil
	}
	return err
}

// Close ends measuring, if that goes on.
func (m *Meter) Close() error {
	err := m.detach()
	for _, c := range m.colls {
		c.Close()
	}
	m.colls = nil
	return err
}
