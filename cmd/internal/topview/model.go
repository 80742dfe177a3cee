package topview

import (
	"cmp"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
)

// lingers is how long a row stays of what has ended.
const lingers = 10 * time.Second

// Unit is what is counted in.
type Unit int

// The units, in the order in which a key goes through them.
const (
	Bits Unit = iota
	Bytes
	Packets
	units
)

// Look is what is seen at one time.
type Look struct {
	At    time.Time
	Every time.Duration // until the next
	Trees []*observe.Live
	// Processes are those that are bound to branches; nil: they were not counted.
	Processes map[hierarchy.Path]int
}

// Model is the state of the screen. Its zero value is not ready, see [New].
type Model struct {
	look    Look
	next    *Look // what came since it was frozen; nil: it is not frozen, or nothing came
	frozen  bool
	rows    []row // in the order of trees, parents first
	shown   []int // of rows: those that are neither folded nor filtered away, as they are sorted
	at      hierarchy.Path
	first   int // of shown: the first on the screen
	indent  int // the depth of what is not indented
	folded  map[hierarchy.Path]bool
	filter  string
	by      column
	unit    Unit
	way     hierarchy.Direction
	prompt  *prompt
	help    bool
	message string
	open    *opened
	moving  *moving
	width   int
	height  int
	style   Style
}

// row is a branch, or an interface that has none.
type row struct {
	observe.LiveBranch
	receives  bool
	note      string // of an interface: what is wrong with it
	processes int    // in it and in those within; -1: not counted
	ended     time.Time
}

// Units are the words for units.
func Units() map[string]Unit { return map[string]Unit{"bit": Bits, "byte": Bytes, "packets": Packets} }

// New is an empty screen.
func New(s Style, u Unit) *Model {
	return &Model{unit: u, folded: map[hierarchy.Path]bool{}, width: 80, height: 24, style: s, by: byTree}
}

// Resize is for when the terminal has another size.
func (m *Model) Resize(width, height int) { m.width, m.height = max(1, width), max(1, height) }

// Show is for each look. Frozen, the screen keeps the last.
func (m *Model) Show(l Look) {
	if m.frozen {
		m.next = &l
		return
	}
	if l.Processes == nil {
		l.Processes = m.look.Processes
	}
	m.look = l
	m.merge(rowsOf(l))
	m.indent = deepest
	for i := range m.rows {
		m.indent = min(m.indent, m.rows[i].Depth)
	}
	m.arrange()
}

// Count is for each time that processes were counted.
func (m *Model) Count(processes map[hierarchy.Path]int) {
	if m.look.Processes = processes; m.frozen {
		return
	}
	for i := range m.rows {
		if r := &m.rows[i]; r.ID != 0 && r.ended.IsZero() {
			if r.processes = -1; processes != nil {
				r.processes = processes[r.Path]
			}
		}
	}
	sum(m.rows)
	m.arrange()
}

// rowsOf are the rows of a look.
func rowsOf(l Look) []row {
	n := 0
	for _, t := range l.Trees {
		n += len(t.Branches) + 1
	}
	rows := make([]row, 0, n)
	for _, t := range l.Trees {
		note := ""
		switch {
		case t.Absent:
			note = "has a policy and is not there now"
		case t.Err != nil:
			note = words.Printable(strings.TrimPrefix(t.Err.Error(), t.Interface+" "))
		}
		if len(t.Branches) == 0 {
			rows = append(rows, row{LiveBranch: observe.LiveBranch{Path: hierarchy.Path(t.Interface)}, note: cmp.Or(note, "has no branches"), processes: -1})
			continue
		}
		start := len(rows)
		for _, b := range t.Branches {
			r := row{LiveBranch: b, receives: t.Receives, processes: -1}
			if l.Processes != nil {
				r.processes = l.Processes[b.Path]
			}
			rows = append(rows, r)
		}
		rows[start].note = note
		sum(rows[start:])
	}
	return rows
}

// sum adds the processes of branches to those that they are in.
func sum(rows []row) {
	var within [deepest + 2]int // by depth: what branches had that are not added to the one above
	for i := len(rows) - 1; i >= 0; i-- {
		r := &rows[i]
		if r.processes < 0 {
			continue
		}
		d := min(r.Depth, deepest)
		r.processes += within[d+1]
		within[d] += r.processes
		within[d+1] = 0
	}
}

// merge takes rows in the place of those that there are, and keeps for a while what has ended
// where it stood.
func (m *Model) merge(rows []row) {
	same := slices.EqualFunc(rows, m.rows, func(a, b row) bool { return a.Path == b.Path && b.ended.IsZero() })
	if same || m.rows == nil {
		m.rows = rows
		return
	}
	there := make(map[hierarchy.Path]bool, len(rows))
	for _, r := range rows {
		there[r.Path] = true
	}
	gone := map[hierarchy.Path][]row{} // behind the row of that path
	before := hierarchy.Path("")
	for _, r := range m.rows {
		if there[r.Path] {
			before = r.Path
			continue
		}
		if r.ended.IsZero() {
			r.ended = m.look.At
			r.Sends.Since, r.Receives.Since, r.processes = nil, nil, -1
		}
		if r.ID != 0 && m.look.At.Sub(r.ended) < lingers {
			gone[before] = append(gone[before], r)
		}
	}
	m.rows = append(make([]row, 0, len(rows)+len(gone)), gone[""]...)
	for _, r := range rows {
		m.rows = append(append(m.rows, r), gone[r.Path]...)
	}
}

// arrange works out which rows are shown, in which order.
func (m *Model) arrange() {
	m.shown = m.shown[:0]
	wanted := strings.ToLower(m.filter)
	matches := func(r *row) bool {
		return wanted == "" || strings.Contains(strings.ToLower(string(r.Path)), wanted)
	}
	if m.by != byTree {
		for i := range m.rows {
			if r := &m.rows[i]; (r.Leaf || r.ID == 0) && matches(r) {
				m.shown = append(m.shown, i)
			}
		}
		slices.SortStableFunc(m.shown, func(a, b int) int { return cmp.Compare(m.value(&m.rows[b]), m.value(&m.rows[a])) })
		return
	}
	keep := m.kept(matches)
	hidden := -1 // the depth of a folded branch that rows lie in; -1: none
	for i := range m.rows {
		r := &m.rows[i]
		if hidden >= 0 && r.Depth > hidden {
			continue
		}
		hidden = -1
		if keep != nil && !keep[i] {
			continue
		}
		m.shown = append(m.shown, i)
		if m.folded[r.Path] && wanted == "" {
			hidden = r.Depth
		}
	}
}

// kept are the rows that match, and those that they are in; nil: all.
func (m *Model) kept(matches func(*row) bool) []bool {
	if m.filter == "" {
		return nil
	}
	keep := make([]bool, len(m.rows))
	var above [deepest + 1]bool // by depth: the next one above is that of a row that is kept
	for i := len(m.rows) - 1; i >= 0; i-- {
		r := &m.rows[i]
		d := min(r.Depth, deepest)
		if keep[i] = above[d] || matches(r); keep[i] && d > 0 {
			above[d-1] = true
		}
		above[d] = false
	}
	return keep
}

// deepest is a depth that no tree has: HTB has eight levels.
const deepest = 63

// cursor is where the cursor is among those shown, which is the nearest before where what it
// was on is hidden.
func (m *Model) cursor() int {
	for p := m.at; p != ""; p = p.Parent() {
		for i, r := range m.shown {
			if m.rows[r].Path == p {
				return i
			}
		}
	}
	return 0
}

// current is the row that the cursor is on; nil: there is none.
func (m *Model) current() *row {
	if len(m.shown) == 0 {
		return nil
	}
	return &m.rows[m.shown[m.cursor()]]
}

// go to a row of those shown.
func (m *Model) goTo(i int) {
	if len(m.shown) > 0 {
		m.at = m.rows[m.shown[max(0, min(i, len(m.shown)-1))]].Path
	}
}

// passing is what a row does in the direction that is looked at.
func (m *Model) passing(r *row) *observe.Passing { return r.On(m.direction()) }

// direction is that which is looked at: sending, where nothing received is shaped.
func (m *Model) direction() hierarchy.Direction {
	if m.receives() {
		return m.way
	}
	return hierarchy.Send
}

// receives says whether something is shaped that is received.
func (m *Model) receives() bool {
	return slices.ContainsFunc(m.look.Trees, func(t *observe.Live) bool { return t.Receives })
}

// value is what rows are sorted by.
func (m *Model) value(r *row) float64 {
	p := m.passing(r)
	pace := observe.Pace{}
	if p.Since != nil {
		pace = *p.Since
	}
	switch m.by {
	case byNow:
		if m.unit == Packets {
			return pace.Packets
		}
		return float64(pace.Bandwidth)
	case byTotal:
		if m.unit == Packets {
			return float64(p.Packets)
		}
		return float64(p.Bytes)
	case byShare:
		return share(p)
	case byWait:
		return float64(p.Delay())
	case byDrops:
		return pace.Drops
	case byBorrows:
		return pace.Borrowed
	case byProcesses:
		return float64(r.processes)
	}
	return 0
}

// share is how much of its ceiling a branch has.
func share(p *observe.Passing) float64 {
	if p.Since == nil || p.Ceil == 0 {
		return 0
	}
	return float64(p.Since.Bandwidth) / float64(p.Ceil)
}

// branches says how many there are, but for interfaces themselves.
func (m *Model) branches() (interfaces, branches int) {
	for i := range m.rows {
		switch r := &m.rows[i]; {
		case !r.ended.IsZero():
		case r.Path.Parent() == "":
			interfaces++
		default:
			branches++
		}
	}
	return interfaces, branches
}
