package observe

import (
	"context"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
)

// Live is one interface's tree at one time, with what went through it since the look before.
type Live struct {
	Interface string
	Policy    string // that it was made by, as in a record
	Absent    bool   // it has a policy, and is not there
	Receives  bool   // what it receives is shaped, too
	Err       error  // what is gone, or why it could not be read; nil: it is shaped as it was applied
	Branches  []LiveBranch
}

// LiveBranch is a branch; those of a [Live] have the order of the policy, parents first.
type LiveBranch struct {
	ID    hierarchy.ClassID
	Path  hierarchy.Path // of a class without a name its id stands in it
	Depth int            // 0: the interface's own
	Leaf  bool
	Limit string // what a limit is on, that it is for; empty: none
	Sends Passing
	// Receives is zero where what the interface receives is not shaped.
	Receives Passing
}

// Passing is a branch in one direction. Of one with others in it drops and what waits are the
// sums over its leaves, which alone have queues.
type Passing struct {
	Limits
	Bytes, Packets uint64 // since the class was made
	Drops          uint64 // of the queues, as packets came or while they waited
	Marks          uint64 // packets that they marked, see [tc.LeafStats]
	Backlog        uint64 // bytes that wait
	Queue          uint64 // packets that wait
	Since          *Pace  // nil: this is the first look at it
}

// Pace is what went through between two looks, a second.
type Pace struct {
	Bandwidth hierarchy.Bandwidth
	Packets   float64
	Drops     float64
	Marks     float64
	Borrowed  float64 // the share of packets that went with what a branch above lent: 0 to 1
}

// Delay is how long the last packet that waits will wait: at what goes through now or, where
// nothing does, at what is guaranteed.
func (p *Passing) Delay() time.Duration {
	at := p.Rate
	if p.Since != nil && p.Since.Bandwidth > 0 {
		at = p.Since.Bandwidth
	}
	if at == 0 || p.Backlog == 0 {
		return 0
	}
	return time.Duration(float64(p.Backlog) * 8 / float64(at) * float64(time.Second))
}

// Sampler looks at all trees of a machine, again and again, and has what goes through them
// between two looks. A look takes no privileges, and of the kernel a dump of classes a direction,
// and one of queues: of a large tree only every few looks, as that costs more. What branches there
// are it finds out where a record was written or a class came or went, and otherwise now and then,
// as others may change a ceiling. It is for one goroutine, as its machine is.
type Sampler struct {
	m     *shaper.Machine
	trees []*sampled
	found time.Time     // when it found out what there is; zero: that is to be done
	saved time.Time     // when the run directory was last written to before
	cost  time.Duration // of finding out
	took  time.Duration // of a look besides, as the last few were
}

const (
	refind = 10 * time.Second // how long what there is may be believed, at least
	large  = 1000             // branches, from which on dumps of queues are rarer
	rarely = 4                // looks are between two of these
)

// NewSampler is one that has not looked yet. The caller closes it before the machine.
func NewSampler(m *shaper.Machine) *Sampler { return &Sampler{m: m} }

// Close lets go of descriptors.
func (s *Sampler) Close() {
	for _, t := range s.trees {
		t.close()
	}
	s.trees = nil
}

// sampled is one interface.
type sampled struct {
	Live
	x     *shaper.Interface // nil: it cannot be opened
	was   [2]tally
	looks int
}

func (t *sampled) close() {
	if t.x != nil {
		t.x.Binder.Close()
	}
}

// tally is what the classes of one direction had counted at a time, and their queues at the last
// two times that they were looked at.
type tally struct {
	at      time.Time
	classes map[hierarchy.ClassID]tc.ClassStats
	queues  [2]queues
}

// queues is what those of leaves had dropped and marked at a time.
type queues struct {
	at   time.Time
	told map[hierarchy.ClassID]told
}

// told is how many packets the senders of a queue were told by that they are too fast.
type told struct {
	drops uint32
	marks uint64
}

// Look looks at all interfaces that are shaped, or are to be. What is wrong with one keeps
// nobody from what others do.
func (s *Sampler) Look(ctx context.Context) ([]*Live, error) {
	for last := false; ; last = true {
		if err := s.find(ctx); err != nil {
			return nil, err
		}
		began := clock()
		all, same := make([]*Live, 0, len(s.trees)), true
		for _, t := range s.trees {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			l, ok := t.look(last)
			all, same = append(all, l), same && ok
		}
		if took := began.passed(); s.took == 0 {
			s.took = took
		} else {
			s.took = (3*s.took + took) / 4
		}
		if !same { // what comes and goes all the time is seen with the next look
			s.found = time.Time{}
		}
		if same || last {
			return all, nil
		}
	}
}

// Rest is how long to wait after a look for one every interval, or for less, so that no more than
// a fortieth of a processor's time goes into looks: trees may be large.
func (s *Sampler) Rest(interval time.Duration) time.Duration {
	return max(interval-s.took, 39*s.took)
}

// moment is a point in time, and in that of the processors.
type moment struct {
	at   time.Time
	used time.Duration
}

func clock() moment {
	var r unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &r) // of ourselves it is always told
	return moment{time.Now(), time.Duration(r.Utime.Nano() + r.Stime.Nano())}
}

// passed is what a processor has worked since, at most. Others may have had it meanwhile, and
// other goroutines another one.
func (m moment) passed() time.Duration {
	is := clock()
	return min(is.at.Sub(m.at), is.used-m.used)
}

// find finds out what there is, unless that is known.
func (s *Sampler) find(ctx context.Context) error {
	var saved time.Time
	if st, err := os.Stat(s.m.Store.Dir); err == nil {
		saved = st.ModTime()
	}
	if saved.Equal(s.saved) && time.Since(s.found) < max(refind, 100*s.cost) {
		return nil
	}
	began := clock()
	names, err := s.m.Ours()
	if err != nil {
		return err
	}
	trees := make([]*sampled, 0, len(names))
	for _, name := range names {
		if err := ctx.Err(); err != nil {
			return err
		}
		t := &sampled{Live: Live{Interface: name}}
		t.Err = t.open(ctx, s.m)
		t.Absent = vanished(t.Err)
		trees = append(trees, t)
		i := slices.IndexFunc(s.trees, func(o *sampled) bool { return o.Interface == name })
		if i >= 0 && t.x != nil && s.trees[i].x != nil && s.trees[i].x.Device.Index == t.x.Device.Index {
			t.was, t.looks = s.trees[i].was, s.trees[i].looks
		}
	}
	s.Close()
	s.trees, s.found, s.saved, s.cost = trees, time.Now(), saved, began.passed()
	return nil
}

// open finds out what branches an interface has. Its error is also what is lost.
func (t *sampled) open(ctx context.Context, m *shaper.Machine) error {
	x, err := m.Interface(t.Interface, "")
	if err != nil {
		return err
	}
	t.x, t.Policy = x, x.Record.Policy
	s, err := x.Queues(ctx)
	if err != nil {
		return err
	}
	leaves, in := leavesOf(x.On(s)), x.In(s)
	received := make(map[hierarchy.ClassID]hierarchy.Class, len(in.Classes))
	for _, c := range in.Classes {
		received[c.ID] = c
	}
	t.Receives = len(received) > 0
	limits := map[hierarchy.Path]string{}
	for _, a := range x.Record.Added {
		limits[a.Path] = a.Limit
	}
	depth := map[hierarchy.ClassID]int{}
	for _, c := range ordered(x.On(s).Classes, x.Record) {
		if c.Path == "" {
			c.Path = hierarchy.Path(t.Interface).Join(c.ID.String())
		}
		d, below := depth[c.Parent]
		if below {
			d++
		}
		depth[c.ID] = d
		t.Branches = append(t.Branches, LiveBranch{
			ID: c.ID, Path: c.Path, Depth: d, Leaf: leaves[c.ID] != nil, Limit: limits[c.Path],
			Sends: Passing{Limits: limitsOf(c)}, Receives: Passing{Limits: limitsOf(received[c.ID])},
		})
	}
	return x.Losses(s)
}

// look is what the interface does now, and false where its classes are not those that it had.
// Nothing is kept of such a look, unless it is the last.
func (t *sampled) look(last bool) (*Live, bool) {
	l := t.Live
	if t.x == nil || len(t.Branches) == 0 {
		return &l, true
	}
	now, err := t.count()
	if err != nil {
		l.Err, l.Absent, l.Branches = err, vanished(err), nil
		return &l, false
	}
	same := len(now[hierarchy.Send].classes) == len(t.Branches)
	for _, b := range t.Branches {
		_, there := now[hierarchy.Send].classes[b.ID]
		same = same && there
	}
	if !same && !last {
		return &l, false
	}
	l.Branches = slices.Clone(t.Branches)
	fill(l.Branches, t.was, now)
	t.was = now
	t.looks++
	return &l, same
}

// count reads the counters of both directions.
func (t *sampled) count() (now [2]tally, err error) {
	ports := []port{t.x.Device}
	if t.Receives {
		ports = append(ports, t.x.Receiver)
	}
	for d, p := range ports {
		classes, err := p.Stats()
		if err != nil {
			return now, err
		}
		now[d] = tally{time.Now(), byClass(classes), t.was[d].queues}
		if len(classes) > large && t.looks > 1 && t.looks%rarely != 0 {
			continue
		}
		leaves, err := p.LeafStats()
		if err != nil {
			return now, err
		}
		q := queues{time.Now(), make(map[hierarchy.ClassID]told, len(leaves))}
		for _, l := range leaves {
			q.told[l.Class] = told{l.Drops, l.Marks}
		}
		now[d].queues = [2]queues{now[d].queues[1], q}
	}
	return now, nil
}

// fill puts what was counted at two times into branches, whose parents come first.
func fill(all []LiveBranch, was, now [2]tally) {
	above := make([]int, len(all)) // where the parent of each is; itself: it has none
	var way []int                  // from the interface's own to the one at hand
	for i := range all {
		way = append(way[:min(all[i].Depth, len(way))], i)
		above[i] = way[max(0, len(way)-2)]
	}
	sent := make([]float64, len(all)) // packets of leaves, unsplit, between the two times
	for _, d := range []hierarchy.Direction{hierarchy.Send, hierarchy.Receive} {
		clear(sent)
		for i := len(all) - 1; i >= 0; i-- {
			p, up := all[i].On(d), all[above[i]].On(d)
			lent, borrowed := p.count(was[d], now[d], all[i].ID, all[i].Leaf)
			if all[i].Leaf {
				sent[i] = lent + borrowed
			}
			if sent[i] > 0 && p.Since != nil {
				p.Since.Borrowed = min(1, borrowed/sent[i])
			}
			if up == p {
				continue
			}
			sent[above[i]] += sent[i]
			up.Drops, up.Marks, up.Backlog, up.Queue = up.Drops+p.Drops, up.Marks+p.Marks, up.Backlog+p.Backlog, up.Queue+p.Queue
			if p.Since != nil {
				up.since().Drops += p.Since.Drops
				up.since().Marks += p.Since.Marks
			}
		}
	}
}

// On is the branch in one direction.
func (b *LiveBranch) On(d hierarchy.Direction) *Passing {
	if d == hierarchy.Receive {
		return &b.Receives
	}
	return &b.Sends
}

func (p *Passing) since() *Pace {
	if p.Since == nil {
		p.Since = &Pace{}
	}
	return p.Since
}

// count adds what a class and its queue, if it has one, count themselves, and gives back how
// many packets, unsplit, went within the class's rate and with what one above lent.
func (p *Passing) count(was, now tally, id hierarchy.ClassID, leaf bool) (lent, borrowed float64) {
	is, there := now.classes[id]
	if !there {
		return 0, 0
	}
	p.Bytes, p.Packets = is.Bytes, is.Packets
	last, told := now.queues[0], now.queues[1]
	if leaf {
		p.Drops, p.Marks, p.Backlog, p.Queue = uint64(told.told[id].drops), told.told[id].marks, uint64(is.Backlog), uint64(is.QLen)
	}
	before, known := was.classes[id]
	if !known || is.Bytes < before.Bytes || is.Packets < before.Packets { // the class was made anew
		return 0, 0
	}
	took := now.at.Sub(was.at)
	pace := p.since()
	pace.Bandwidth = rate(before.Bytes, is.Bytes, took)
	pace.Packets = float64(is.Packets-before.Packets) / took.Seconds()
	if n, known := last.told[id]; leaf && known {
		took := told.at.Sub(last.at).Seconds()
		drops, marks := told.told[id].drops-n.drops, uint32(told.told[id].marks)-uint32(n.marks) // they wrap around
		if drops < 1<<31 && marks < 1<<31 {                                                      // else the queue was made anew
			pace.Drops, pace.Marks = float64(drops)/took, float64(marks)/took
		}
	}
	return float64(is.Lends - before.Lends), float64(is.Borrows - before.Borrows)
}
