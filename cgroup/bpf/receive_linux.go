package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/way"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

// Receiving is where the programs of flow.bpf.c sit on one network interface.
type Receiving interface {
	// AttachNote puts a tc program behind that of the classifier, and AttachReceive one at
	// the ingress hook, each in place of the one that it put there before. Redirect is the
	// index of the interface that an action sends the packets to for which the program
	// returns -1; 0: the program does it.
	AttachNote(progFD int, name string) error
	AttachReceive(progFD int, name string, redirect uint32) error
	// ReceivePrograms are the ids of these programs, 0 for one that is not there.
	ReceivePrograms() (note, receive uint32, err error)
	// DetachReceive removes both. None is no error.
	DetachReceive() error
}

// Receiver are the programs of flow.bpf.c on an interface, and their table of flows. They
// go by the class that packets have when the classifier has seen them, whichever that is.
type Receiver struct {
	hook   Receiving
	bare   bool   // the interface has no link-layer header
	on     *flows // at the hooks, as of the last look
	former *flows // taken off the hooks by this Receiver: the way back when an apply fails
}

// NewReceiver makes one for an interface, which may be bare: without a link-layer header.
// Nothing is read or changed yet.
func NewReceiver(hook Receiving, bare bool) *Receiver { return &Receiver{hook: hook, bare: bare} }

// Close lets go of descriptors. What is at the hooks stays.
func (r *Receiver) Close() error {
	err := errors.Join(r.on.close(), r.former.close())
	r.on, r.former = nil, nil
	return err
}

// flows are one interface's programs with their maps.
type flows struct {
	form          form // not known of those that were found
	note, receive *ebpf.Program
	ids           [2]uint32 // of the programs
	version       uint32
	ifb           uint32
	config        *ebpf.Map
	table         *ebpf.Map
	counts        *ebpf.Map
	goes          ebpf.MapID   // of the classifier's set that receive goes by, 0 for none
	rules         ebpf.MapID   // of the matches that receive goes by, 0 for none
	noted         []ebpf.MapID // that note goes by
	whole         bool         // both go by the same table
}

func (f *flows) close() error {
	if f == nil {
		return nil
	}
	var errs []error
	for _, m := range []*ebpf.Map{f.config, f.table, f.counts} {
		if m != nil {
			errs = append(errs, m.Close())
		}
	}
	for _, p := range []*ebpf.Program{f.note, f.receive} {
		if p != nil {
			errs = append(errs, p.Close())
		}
	}
	return errors.Join(errs...)
}

// plainName is a map's name without dots, which kernels before 5.3 do not take.
func plainName(s string) string { return strings.ReplaceAll(s, ".", "") }

// keep puts a map in its place, or closes it when it has none.
func (f *flows) keep(name string, m *ebpf.Map) {
	switch plainName(name) {
	case "datarcv":
		f.config = m
	case flowMapVifFlows:
		f.table = m
	case flowMapVifCounts:
		f.counts = m
	default:
		m.Close() // the programs keep it
	}
}

// Unfinished is the version of programs that are there in part, or are not as they should
// be for the classifier and the IFB at hand: they are put right by the next change.
const Unfinished = ^uint32(0)

// Read is the version of the programs that are there, 0 for none, and how many flows their
// table has room for. They must send to the IFB, whose index is asked for where there are
// some, and go by the maps of the classifier where that is a program, and by those of
// matches where there are some.
func (r *Receiver) Read(e *Egress, x *Matches, carrier func() (uint32, error)) (version, room uint32, err error) {
	if err := r.refresh(); err != nil || r.on == nil {
		return 0, 0, err
	}
	ifb, err := carrier()
	if err != nil {
		return 0, 0, err
	}
	if r.on.table != nil {
		room = r.on.table.MaxEntries()
	}
	if !r.on.whole || r.on.ifb != ifb || ifb == 0 {
		return Unfinished, room, nil
	}
	if s := e.inForce(); s != nil {
		ours, err := r.on.by(s)
		if err != nil || !ours {
			return Unfinished, room, err
		}
	}
	m, err := x.inForce()
	if err != nil {
		return 0, 0, err
	}
	rules, err := m.which()
	if err != nil || r.on.rules != rules {
		return Unfinished, room, err
	}
	return r.on.version, room, nil
}

// by says whether a classifier's set is the one that the programs go by, if they do by any.
func (f *flows) by(s *set) (bool, error) {
	if f.goes == 0 {
		return true, nil
	}
	info, err := s.config.Info()
	if err != nil {
		return false, err
	}
	id, _ := info.ID()
	return id == f.goes, nil
}

func (r *Receiver) refresh() error {
	note, receive, err := r.hook.ReceivePrograms()
	if err != nil {
		return err
	}
	ids := [2]uint32{note, receive}
	if r.on != nil && r.on.ids == ids {
		return nil
	}
	err = r.on.close()
	r.on = nil
	if err == nil && ids != [2]uint32{} {
		r.on, err = openFlows(ids)
	}
	return err
}

// openFlows finds programs again by their ids.
func openFlows(ids [2]uint32) (_ *flows, err error) {
	f := &flows{ids: ids}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("read the programs of the receiving side: %w", caps.Explain(err, unix.CAP_SYS_ADMIN)), f.close())
		}
	}()
	for i, id := range ids {
		if id == 0 {
			continue
		}
		p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
		if err != nil {
			return nil, err
		}
		_, maps, err := programInfo(p)
		if i == 0 {
			f.note, f.noted = p, maps
		} else {
			f.receive = p
		}
		if err != nil {
			return nil, err
		}
		if i == 0 {
			continue
		}
		for _, id := range maps {
			m, err := ebpf.NewMapFromID(id)
			if err != nil {
				return nil, err
			}
			name, err := mapName(m)
			if err != nil {
				return nil, errors.Join(err, m.Close())
			}
			switch plainName(name) {
			case "datavif":
				f.goes = id
			case "datamtc":
				f.rules = id
			case flowMapVifFlows:
				f.whole = slices.Contains(f.noted, id)
			}
			f.keep(name, m)
		}
	}
	if f.config == nil {
		return f, nil
	}
	b, err := f.config.LookupBytes(uint32(0))
	if err != nil {
		return nil, err
	}
	if len(b) >= 8 {
		f.version, f.ifb = binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint32(b[4:])
	}
	return f, nil
}

// TryReceive says why the kernel does not take the programs, nil when it does. It changes
// nothing.
func TryReceive() error {
	f, err := newFlows(nil, nil, false, nil, 0, hierarchy.MinFlows)
	if err != nil {
		return err
	}
	return f.close()
}

// Reception is how a kernel tells whose received packets are.
type Reception struct {
	Looks     bool // where nothing was sent before it looks for who would receive them
	Redirects bool // from the program; else an action is needed (module act_mirred)
}

// Receives says how the kernel tells whose received packets are where processes are bound
// by a way, on an interface with a link-layer header. It changes nothing.
func Receives(w bind.Way) (r Reception, err error) {
	if err := Shows(w); err != nil {
		return r, err
	}
	var s *set
	if w == bind.WayBPF {
		if s, err = loadSet(w, nil); err != nil {
			return r, err
		}
		defer s.close()
	}
	f, err := newFlows(s, nil, false, nil, 0, hierarchy.MinFlows)
	if err != nil {
		return r, err
	}
	return Reception{f.form.looks, f.form.redirects}, f.close()
}

// form is one of the programs that receive.
type form struct {
	program   string
	looks     bool // it goes by a classifier's set where it does not know a flow
	redirects bool // by itself
}

// forms are those that this kernel may take for a classifier's set, which may be nil, and an
// interface, best first.
func forms(s *set, bare bool) []form {
	look, plain := form{flowProgVifReceive, true, true}, form{flowProgVifReceivePlain, false, true}
	if bare || caps.Before(6, 4) {
		look, plain = form{flowProgVifReceiveBare, true, false}, form{flowProgVifReceiveOld, false, false}
	}
	if s == nil || caps.Before(6, 2) {
		return []form{plain}
	}
	return []form{look, plain}
}

// newFlows loads the best programs that the kernel takes, not yet at any hook, for a
// classifier's set and matches, which may be nil. The table of former programs is taken over
// where it has just that room.
func newFlows(s *set, m *matches, bare bool, former *flows, ifb, room uint32) (*flows, error) {
	var errs way.Clauses
	for _, x := range forms(s, bare) {
		f, err := x.load(s, m, former, ifb, room)
		if err == nil {
			return f, nil
		}
		if e := caps.Lacking(unix.CAP_BPF, unix.CAP_NET_ADMIN); e != nil {
			return nil, fmt.Errorf("load the programs of the receiving side: %w", e)
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("load the programs of the receiving side (Linux 5.10 or later with BPF): %w: %w", caps.ErrNotSupported, errs)
}

func (x form) load(s *set, m *matches, former *flows, ifb, room uint32) (_ *flows, err error) {
	spec, err := loadFlow()
	if err != nil {
		return nil, err
	}
	program := x.program
	if m != nil {
		program += "_match"
	}
	for n := range spec.Programs {
		if n != program && n != flowProgVifNote {
			delete(spec.Programs, n)
		}
	}
	spec.Programs[program].Name = flowProgVifReceive
	if m != nil && !m.tracks {
		spec.Programs[program].Instructions = untracked(spec.Programs[program].Instructions)
	}
	table := spec.Maps[flowMapVifFlows]
	table.MaxEntries = room
	replace := map[string]*ebpf.Map{}
	if x.looks {
		replace = map[string]*ebpf.Map{".data.vif": s.config, flowMapVifCgroups: s.cgroups, flowMapVifUsers: s.numbers[byUser], flowMapVifSockets: s.sockets}
	} else {
		for _, n := range []string{flowMapVifCgroups, flowMapVifUsers, flowMapVifSockets} {
			delete(spec.Maps, n)
		}
	}
	for n, of := range m.maps() {
		if of == nil {
			if n != matchConfig { // which has a variable, too, and is small
				delete(spec.Maps, n)
			}
			continue
		}
		spec.Maps[n].MaxEntries = of.MaxEntries()
		replace[n] = of
	}
	if m == nil {
		delete(spec.Maps, flowMapVifParts)
		delete(spec.Maps, flowMapVifSeen)
	}
	if former.known() && former.table.MaxEntries() == room {
		replace[flowMapVifFlows], replace[flowMapVifCounts] = former.table, former.counts
	}
	c, err := ebpf.NewCollectionWithOptions(spec, ebpf.CollectionOptions{MapReplacements: replace})
	if errors.Is(err, unix.ENOMEM) {
		err = fmt.Errorf("a table of %d flows takes %d MiB of memory: write fewer (flows in the ingress of the interface): %w", room, flowMemory(room)>>20, err)
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	f := &flows{form: x, note: c.DetachProgram(flowProgVifNote), receive: c.DetachProgram(program), whole: true, version: way.Version, ifb: ifb}
	defer func() {
		if err != nil {
			err = errors.Join(err, f.close())
		}
	}()
	for n := range c.Maps {
		f.keep(n, c.DetachMap(n))
	}
	for i, p := range []*ebpf.Program{f.note, f.receive} {
		info, err := p.Info()
		if err != nil {
			return nil, err
		}
		id, _ := info.ID()
		f.ids[i] = uint32(id)
	}
	if f.rules, err = m.which(); err != nil {
		return nil, err
	}
	if x.looks {
		info, err := s.config.Info()
		if err != nil {
			return nil, err
		}
		f.goes, _ = info.ID()
	}
	shift, err := second()
	if err != nil {
		return nil, err
	}
	return f, f.config.Put(uint32(0), &flowVifReceiving{Version: way.Version, Ifb: ifb, Rest: uint32(hierarchy.ID(hierarchy.RestMinor)), Shift: shift})
}

// second is the number of bits of a count of jiffies that about a second takes.
func second() (uint32, error) {
	var t unix.Timespec
	if err := unix.ClockGetres(unix.CLOCK_MONOTONIC_COARSE, &t); err != nil { // a tick (posix_get_coarse_res, kernel/time/posix-timers.c, v6.12)
		return 0, err
	}
	return uint32(bits.Len64(uint64(time.Second) / uint64(max(t.Nano(), 1)) * 2 / 3)), nil
}

// known says whether flows are noted in a table that programs of this version understand.
func (f *flows) known() bool {
	return f != nil && f.version == way.Version && f.table != nil && f.counts != nil
}

// Attach puts programs of a version to the hooks, for an IFB, a classifier and matches that are
// there, with room for so many flows: former ones as they are, new ones of this version.
//
// What is noted stays known. Where there is another room than there was, a new table is
// made, and what the former one has is carried over as far as it fits: before the programs
// are put in their places, again what has changed meanwhile, and a third time behind that.
// Only a flow that is first noted, or comes to another class, during the second of these or
// between the programs is not known as such until the third has found it, or it sends
// again: until then, a tenth of a second where 60,000 are known and some seconds where a
// million are, what it is sent is of who would receive it, or of the rest. Of the parts of
// a packet those may go to the rest whose first has come before, as with every change of
// the programs.
func (r *Receiver) Attach(e *Egress, x *Matches, version, ifb, room uint32) error {
	if err := r.refresh(); err != nil {
		return err
	}
	next := r.former
	if next == nil || next.form == (form{}) || version == way.Version || next.version != version || next.ifb != ifb {
		if err := way.Known(version); err != nil {
			return err
		}
		m, err := x.inForce()
		if err != nil {
			return err
		}
		if next, err = newFlows(e.inForce(), m, r.bare, r.on, ifb, room); err != nil {
			return err
		}
	}
	m := r.on.move(next)
	err := m.first()
	if err == nil {
		err = m.again()
	}
	redirect := ifb
	if next.form.redirects {
		redirect = 0
	}
	if err == nil {
		err = r.hook.AttachNote(next.note.FD(), flowProgVifNote)
	}
	if err == nil {
		err = r.hook.AttachReceive(next.receive.FD(), flowProgVifReceive, redirect)
	}
	if err != nil {
		if next != r.former {
			err = errors.Join(err, next.close())
		}
		return err
	}
	err = m.last()
	if r.former != next {
		err = errors.Join(err, r.former.close())
	}
	r.on, r.former = next, r.on
	return err
}

// Detach takes the programs away.
func (r *Receiver) Detach() error {
	if err := r.refresh(); err != nil || r.on == nil {
		return err
	}
	if err := r.hook.DetachReceive(); err != nil {
		return err
	}
	err := r.former.close()
	r.former, r.on = r.on, nil
	return err
}

// Shows says why the classes of a way cannot be told of what is sent, nil when they can.
func Shows(w bind.Way) error {
	if w == bind.WayClsCgroup {
		return fmt.Errorf("packets do not show the class that the kernel's own cgroup classifier gives them: bind with bpf, nft or net_cls with BPF: %w", caps.ErrNotSupported)
	}
	return nil
}
