// Package explain says why a branch, or what processes send, is as slow as it is, and by
// which evidence. [Look] takes the counters of the tree and what the kernel tells of TCP
// connections over a time, and changes nothing; [Evidence.Judge] is a pure function of it.
package explain

import (
	"fmt"
	"slices"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
)

// Level is a branch in one direction, over the time of a look.
type Level struct {
	Path    hierarchy.Path      `json:"path"`
	Rate    hierarchy.Bandwidth `json:"rate"`
	Ceil    hierarchy.Bandwidth `json:"ceil"`
	Prio    uint8               `json:"prio"`
	Leaf    bool                `json:"leaf"`
	Gets    hierarchy.Bandwidth `json:"gets"`
	Packets uint64              `json:"packets"`
	Drops   uint64              `json:"drops"`
	Waiting float64             `json:"waiting"`         // the share of the samples in which packets waited in it, or below
	Backlog uint64              `json:"backlog_bytes"`   // on average
	Holds   string              `json:"holds,omitempty"` // the kind of its queue, where that makes packets wait by itself
}

// full says whether a level reaches what it may.
func (l *Level) full() bool { return float64(l.Gets) >= isFull*float64(l.Ceil) }

// maybe is close to it.
func (l *Level) maybe() bool { return float64(l.Gets) >= maybeFull*float64(l.Ceil) }

// Port is the tree of one direction, parents first; empty where nothing is shaped.
type Port []Level

func (p Port) find(path hierarchy.Path) *Level {
	i := slices.IndexFunc(p, func(l Level) bool { return l.Path == path })
	if i < 0 {
		return nil
	}
	return &p[i]
}

// Connection is one of TCP, over the time of a look. Shares are of that time, or of the
// samples.
type Connection struct {
	PID    int            `json:"pid"`
	Name   string         `json:"name"`
	Local  string         `json:"local"`
	Remote string         `json:"remote"`
	Branch hierarchy.Path `json:"branch"` // that carries it; empty: it cannot be told
	// LeavesBy is another interface, by which it goes past the branch; "lo" where it stays on
	// the machine.
	LeavesBy string `json:"leaves_by,omitempty"`

	Sends         hierarchy.Bandwidth `json:"sends"`          // what was acknowledged
	Receives      hierarchy.Bandwidth `json:"receives"`       // what came
	Busy          float64             `json:"busy"`           // the share in which something was under way or waited
	WindowLimited float64             `json:"window_limited"` // in which the receiver's window held it up
	BufferLimited float64             `json:"buffer_limited"` // in which the send buffer did
	BufferFull    float64             `json:"buffer_full"`    // of samples in which that was two thirds full
	AppLimited    float64             `json:"app_limited"`    // of samples in which the program had no more
	Unsent        float64             `json:"unsent"`         // of samples in which bytes waited in the socket
	UnderWay      float64             `json:"under_way"`      // of its congestion window, on average
	Resent        float64             `json:"resent"`         // of the segments
	Marked        float64             `json:"marked"`         // of those that were acknowledged
	RTT           time.Duration       `json:"rtt"`
	LeastRTT      time.Duration       `json:"least_rtt"`
	Waits         uint64              `json:"-"` // bytes that wait in the socket now
}

// Datagram is a socket of UDP, of which the kernel does not tell what goes through it.
type Datagram struct {
	PID           int
	Name          string
	Local, Remote string // Remote is empty where it sends to whom it likes
	Waits         uint64 // bytes that it sent and that wait
}

// Process is one that is looked at.
type Process struct {
	PID  int
	Name string
}

func (c *Connection) String() string {
	return fmt.Sprintf("%s[%d] to %s", words.Printable(c.Name), c.PID, c.Remote)
}

// Evidence is what was looked at.
type Evidence struct {
	Path        hierarchy.Path // the branch; empty where there is none
	Who         string         // who was asked about, where that was not the branch
	By          string         // why they are in the branch
	Unshaped    string         // why nothing is shaped; empty where it is
	Took        time.Duration
	Samples     int
	Sends       Port
	Receives    Port
	Connections []Connection // that are carried by the branch, or are of those who were asked about, the busiest first
	Datagrams   []Datagram   // likewise, in no order
	Processes   []Process    // that are bound to the branch, or have something open that it carries, in no order
	Unseen      string       // why connections could not be looked at
	Mute        string       // why nothing of those who were asked about can wait; empty: it can, or nobody knows
	Elsewhere   []string     // what should be in the branch, and is not
}

// Cause is what holds up.
type Cause string

// The causes, in the order in which they are looked for.
const (
	Unshaped    Cause = "not shaped"   // nothing is, or the tree is gone
	OtherBranch Cause = "other branch" // its sockets are carried by another branch
	AtCeiling   Cause = "ceiling"      // it has all that it may
	Starved     Cause = "priority"     // others go first
	ParentFull  Cause = "parent full"  // a branch above has all that it may
	OwnQueue    Cause = "own queue"    // which holds packets back by itself
	LineSlower  Cause = "line"         // what is below the tree takes less than its root's rate
	QueueDrops  Cause = "queue drops"  // the queue is too short for bursts
	Nothing     Cause = "nothing sent"
	OtherWay    Cause = "other interface" // what is acknowledged does not go through the branch
	Window      Cause = "receiver"        // its window is shut
	SendBuffer  Cause = "send buffer"     // it holds less than the path does
	Program     Cause = "program"         // it sends no more
	Marks       Cause = "marks"           // ECN tells connections to slow down
	PathLoses   Cause = "path loses"      // packets, beyond the branch
	Path        Cause = "path"            // it is narrow or long, beyond the branch
	NotSure     Cause = "not sure"        // figures disagree
)

// What decides. Each is far from what a case and its opposite measure: 0.93 and more of a
// ceiling against 0.7 and less, shares of 0.9 and more against 0.1 and less.
const (
	isFull    = 0.93 // of a ceiling; what waits for it counts only where it leaves
	maybeFull = 0.85
	mostly    = 0.5   // of samples, or of the time
	fullPipe  = 0.7   // of a congestion window
	loses     = 0.01  // of segments
	drops     = 0.001 // of packets, where none waits for long
	borrows   = 1.05  // times its guarantee
	noMore    = 1.25  // times its guarantee: hardly more
	hardly    = 2 * hierarchy.Kbit
)

// Verdict is an answer.
type Verdict struct {
	Cause    Cause    `json:"cause"`
	Sentence string   `json:"sentence"`
	Evidence []string `json:"evidence"`
}

// Past is 1 where nothing of those who were asked about goes by the interface, else 0.
func (v Verdict) Past() int {
	switch v.Cause {
	case Unshaped, Nothing, OtherWay:
		return 1
	}
	return 0
}

// Judge says what holds up. What waits in the tree is the tree's matter, in the direction in
// which it waits; where nothing does, whoever sends, whoever receives or the path between
// them is slow, which the kernel tells of TCP alone.
func (e *Evidence) Judge() (v Verdict) {
	defer func() { v.Evidence = e.lines() }()
	if e.Unshaped != "" {
		return Verdict{Cause: Unshaped, Sentence: e.Unshaped}
	}
	of, from := e.Sends.find(e.Path), e.Receives.find(e.Path)
	if of == nil {
		return Verdict{Cause: Unshaped, Sentence: fmt.Sprintf("%s has no class in the kernel", e.Path)}
	}
	if len(e.Elsewhere) > 0 && e.idle(of, from) {
		return Verdict{Cause: OtherBranch, Sentence: fmt.Sprintf("it is not in %s: %s", e.Path, e.Elsewhere[0])}
	}
	switch {
	case e.Mute != "":
		return Verdict{Cause: Nothing, Sentence: e.Mute}
	case of.Waiting >= mostly:
		return e.queued(e.Sends, of, "sends")
	case from != nil && from.Waiting >= mostly:
		return e.queued(e.Receives, from, "receives")
	}
	if l := e.Sends.held(e.Path); l != nil {
		return l.held("sends")
	}
	if l := e.Receives.held(e.Path); l != nil {
		return l.held("receives")
	}
	for _, d := range []struct {
		l    *Level
		does string
	}{{of, "sends"}, {from, "receives"}} {
		if d.l != nil && d.l.Holds == "" && d.l.Packets > 0 && float64(d.l.Drops) >= drops*float64(d.l.Packets+d.l.Drops) {
			return Verdict{Cause: QueueDrops, Sentence: fmt.Sprintf("the queue of %s is too short for its bursts: %d of %d packets were dropped, though it %s %s of %s",
				d.l.Path, d.l.Drops, d.l.Packets+d.l.Drops, d.does, words.Short(d.l.Gets), words.Short(d.l.Ceil))}
		}
	}
	return e.unqueued(of, from)
}

// idle says whether nothing goes through the branch of those who were asked about.
func (e *Evidence) idle(of, from *Level) bool {
	if e.Who != "" {
		return !slices.ContainsFunc(e.Connections, func(c Connection) bool { return c.Branch.Below(e.Path) })
	}
	return of.Gets <= hardly && (from == nil || from.Gets <= hardly)
}

// queued says why packets wait in a branch.
func (e *Evidence) queued(p Port, of *Level, does string) Verdict {
	if of.full() {
		s := fmt.Sprintf("%s is at its ceiling: it %s %s of %s, and packets wait in its queue", of.Path, does, words.Short(of.Gets), words.Short(of.Ceil))
		if most := p.most(of.Path, of.Path); !of.Leaf && most != nil {
			s += fmt.Sprintf("; most of it goes to %s (%s)", most.Path, words.Short(most.Gets))
		}
		return Verdict{Cause: AtCeiling, Sentence: s}
	}
	above := of
	for !above.full() && above.Path.Parent() != "" {
		above = p.find(above.Path.Parent())
	}
	if !above.full() {
		if of.Holds != "" {
			return of.held(does)
		}
		if above.maybe() || of.maybe() {
			return Verdict{Cause: NotSure, Sentence: fmt.Sprintf("not sure: packets wait in %s, which %s %s of its ceiling %s, and %s has %s of %s: nearly full, but not quite",
				of.Path, does, words.Short(of.Gets), words.Short(of.Ceil), above.Path, words.Short(above.Gets), words.Short(above.Ceil))}
		}
		return Verdict{Cause: LineSlower, Sentence: fmt.Sprintf("%s takes no more: %s goes through it, of the %s that its rate says, and packets wait all the same: its line, its driver or this machine's processors are slower than the policy believes",
			above.Path, words.Short(above.Gets), words.Short(above.Ceil))}
	}
	if first := p.first(above.Path, of); first != nil && float64(of.Gets) <= noMore*float64(of.Rate) {
		return Verdict{Cause: Starved, Sentence: fmt.Sprintf("%s gets hardly more than its guarantee of %s, as others go first: %s (prio %d before %d) takes %s of the %s that %s has",
			of.Path, words.Short(of.Rate), first.Path, first.Prio, of.Prio, words.Short(first.Gets), words.Short(above.Ceil), above.Path)}
	}
	s := fmt.Sprintf("%s waits for %s, which is full: %s of %s", of.Path, above.Path, words.Short(above.Gets), words.Short(above.Ceil))
	if most := p.most(above.Path, of.Path); most != nil {
		s += fmt.Sprintf("; most of it goes to %s (%s)", most.Path, words.Short(most.Gets))
	}
	return Verdict{Cause: ParentFull, Sentence: fmt.Sprintf("%s, and it gets %s", s, words.Short(of.Gets))}
}

// held says that its own queue holds packets of a branch back.
func (l *Level) held(does string) Verdict {
	return Verdict{Cause: OwnQueue, Sentence: fmt.Sprintf("%s %s %s of %s, and packets wait in its own queue, which holds them back by itself: it is %s",
		l.Path, does, words.Short(l.Gets), words.Short(l.Ceil), l.Holds)}
}

// held is a leaf below a branch whose queue holds packets back by itself; nil: none does.
func (p Port) held(below hierarchy.Path) *Level {
	i := slices.IndexFunc(p, func(l Level) bool { return l.Path.Below(below) && l.Holds != "" && l.Waiting >= mostly })
	if i < 0 {
		return nil
	}
	return &p[i]
}

// most is the leaf below a branch, but not below another, or that itself, that gets most; nil: none gets any.
func (p Port) most(below, but hierarchy.Path) (most *Level) {
	for i := range p {
		l := &p[i]
		if l.Leaf && l.Gets > 0 && l.Path.Below(below) && (below == but || !l.Path.Below(but)) && (most == nil || l.Gets > most.Gets) {
			most = l
		}
	}
	return most
}

// first is the leaf below a branch that borrows most before another one may; nil: none does.
func (p Port) first(below hierarchy.Path, of *Level) (first *Level) {
	for i := range p {
		l := &p[i]
		if l.Leaf && l.Path.Below(below) && !l.Path.Below(of.Path) && l.Prio < of.Prio && float64(l.Gets) > borrows*float64(l.Rate) && (first == nil || l.Gets > first.Gets) {
			first = l
		}
	}
	return first
}

// unqueued says why not more comes to a branch in which nothing waits.
func (e *Evidence) unqueued(of, from *Level) Verdict {
	acked, busiest, past, ours := hierarchy.Bandwidth(0), (*Connection)(nil), (*Connection)(nil), 0
	for i := range e.Connections {
		c := &e.Connections[i]
		if c.LeavesBy != "" {
			if past == nil && c.Sends > 0 {
				past = c
			}
			continue
		}
		ours++
		acked += c.Sends
		if busiest == nil && (c.Busy > 0 || c.Sends > 0) {
			busiest = c
		}
	}
	got := of.Gets
	if from != nil {
		got += from.Gets
	}
	switch {
	case acked > 100*hierarchy.Kbit && float64(of.Gets) < mostly*float64(acked):
		return Verdict{Cause: OtherWay, Sentence: fmt.Sprintf("what is sent does not go through %s: %s is acknowledged to the connections, and %s leaves by the branch", e.Path, words.Short(acked), words.Short(of.Gets))}
	case busiest == nil && got <= hardly && past != nil:
		return Verdict{Cause: OtherWay, Sentence: fmt.Sprintf("what is sent does not go through %s: %v leaves by %s, where %s is acknowledged", e.Path, past, past.LeavesBy, words.Short(past.Sends))}
	case busiest == nil && got <= hardly:
		return Verdict{Cause: Nothing, Sentence: fmt.Sprintf("nothing goes through %s: nobody sends or receives", e.Path)}
	case busiest == nil:
		return Verdict{Cause: Program, Sentence: fmt.Sprintf("nothing waits in %s: no more than %s is sent", e.Path, words.Short(of.Gets)) + receivedToo(from)}
	}
	v := busiest.judge(e.Path, of)
	if v.Cause == Program && ours > 1 {
		v.Sentence += fmt.Sprintf("; it is the busiest of %d connections, and %s sends %s", ours, e.Path, words.Short(of.Gets))
	}
	return v
}

func receivedToo(from *Level) string {
	if from == nil {
		return ""
	}
	return fmt.Sprintf(", and %s received", words.Short(from.Gets))
}

// weight orders connections by what they want: those that are held up come first.
func (c *Connection) weight() float64 { return c.Busy * (1 + max(c.Unsent, c.WindowLimited)) }

// judge says what holds a connection up that waits for nothing in its branch.
func (c *Connection) judge(path hierarchy.Path, of *Level) Verdict {
	say := func(cause Cause, format string, args ...any) Verdict {
		return Verdict{Cause: cause, Sentence: fmt.Sprintf(format, args...)}
	}
	switch {
	case c.WindowLimited >= mostly:
		return say(Window, "the receiver of %v takes no more: its window held the sender up for %s of the time", c, percent(c.WindowLimited))
	case c.BufferLimited >= mostly, c.Busy >= mostly && c.BufferFull >= mostly && c.Unsent < mostly && c.UnderWay < fullPipe:
		return say(SendBuffer, "the send buffer of %v is too small for its path: all that fits is under way, and %s of the congestion window is used", c, percent(c.UnderWay))
	case c.Busy < mostly, c.AppLimited >= mostly && c.Unsent < mostly:
		return say(Program, "nothing waits in %s: %s[%d] sends %s to %s and has no more", path, words.Printable(c.Name), c.PID, words.Short(c.Sends), c.Remote)
	case c.Marked >= loses:
		return say(Marks, "%v is told to slow down: %s of what it sends comes back with ECN's mark, and hardly anything waits in %s", c, percent(c.Marked), path)
	case c.Resent >= loses:
		return say(PathLoses, "the path of %v loses packets beyond %s: %s is sent again", c, path, percent(c.Resent))
	case c.Unsent >= mostly, c.UnderWay >= fullPipe:
		return say(Path, "the path of %v is what holds it up, beyond %s: the round trip takes %v (at best %v), and the congestion window is full", c, path, round(c.RTT), round(c.LeastRTT))
	}
	return say(NotSure, "not sure: nothing waits in %s, which sends %s of %s, and %v is busy for %s of the time without being held up by its receiver, its buffer or its window", path, words.Short(of.Gets), words.Short(of.Ceil), c, percent(c.Busy))
}

// lines are the figures, a line each.
func (e *Evidence) lines() []string {
	all := []string{}
	say := func(format string, args ...any) { all = append(all, fmt.Sprintf(format, args...)) }
	if e.By != "" {
		say("%s", e.By)
	}
	for _, d := range []struct {
		p    Port
		does string
	}{{e.Sends, "sends"}, {e.Receives, "receives"}} {
		for path := e.Path; path != ""; path = path.Parent() {
			l := d.p.find(path)
			if l == nil {
				break
			}
			s := fmt.Sprintf("%s %s %s of %s (guaranteed %s", path, d.does, words.Short(l.Gets), words.Short(l.Ceil), words.Short(l.Rate))
			if l.Leaf {
				s += fmt.Sprintf(", prio %d", l.Prio)
			}
			s += fmt.Sprintf("); packets waited in %s of %d samples", percent(l.Waiting), e.Samples)
			if l.Backlog > 0 {
				s += fmt.Sprintf(", %s on average", words.Bytes(l.Backlog))
				if l.Gets > 0 {
					s += fmt.Sprintf(" (%v)", round(time.Duration(float64(l.Backlog)*8/float64(l.Gets)*float64(time.Second))))
				}
			}
			if l.Drops > 0 {
				s += fmt.Sprintf("; %s", words.Number(int(l.Drops), "packet was dropped", "packets were dropped"))
			}
			say("%s", s)
		}
	}
	for _, c := range e.Connections[:min(len(e.Connections), mostConnections)] {
		way := ""
		if c.LeavesBy != "" {
			way = fmt.Sprintf(" (leaves by %s)", c.LeavesBy)
		}
		say("%v%s: %s acknowledged, busy %s (receiver's window %s, send buffer %s), program had no more in %s and bytes waited in %s of samples, %s of the congestion window under way, %s sent again, %s marked, round trip %v (least %v)",
			&c, way, words.Short(c.Sends), percent(c.Busy), percent(c.WindowLimited), percent(max(c.BufferLimited, c.BufferFull)), percent(c.AppLimited), percent(c.Unsent), percent(c.UnderWay), percent(c.Resent), percent(c.Marked), round(c.RTT), round(c.LeastRTT))
	}
	if n := len(e.Connections) - mostConnections; n > 0 {
		say("and %s", words.Number(n, "more connection", "more connections"))
	}
	for _, s := range e.Elsewhere {
		say("%s", s)
	}
	if e.Unseen != "" {
		say("connections were not looked at: %s", e.Unseen)
	}
	return all
}

// mostConnections are written, the busiest first.
const mostConnections = 5

func percent(share float64) string { return fmt.Sprintf("%.0f%%", 100*share) }

func round(d time.Duration) time.Duration {
	if d >= 10*time.Millisecond {
		return d.Round(time.Millisecond)
	}
	return d.Round(10 * time.Microsecond)
}
