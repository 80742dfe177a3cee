package topview

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/clipperhouse/displaywidth"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
)

// column is what is shown of a branch, and what rows may be sorted by.
type column int

// The columns, in the order in which a key goes through them. byTree is that of the policy.
const (
	byTree column = iota
	byNow
	byTotal
	byShare
	byWait
	byDrops
	byBorrows
	byProcesses
	columns
)

// place is a column on the screen.
type place struct {
	of    column
	way   hierarchy.Direction
	ceil  bool // the ceiling itself
	width int
	head  string
	left  bool
}

// leastName is the width that names of branches have at least: other columns go before.
const leastName = 15

// places are the columns for a width, of which the branch's name has what is left. Those that
// matter least come last in wanted.
func (m *Model) places(width int) (all []place, name int) {
	d := m.direction()
	now, total := "SENDS", "SENT"
	if d == hierarchy.Receive {
		now, total = "RECEIVES", "RECEIVED"
	}
	order := []place{
		{of: byNow, way: d, width: 9, head: now},
		{of: byTotal, way: d, width: 8, head: total},
		{of: byShare, way: d, width: 10, head: "OF CEILING", left: true},
		{of: byShare, way: d, ceil: true, width: 9, head: "CEILING"},
		{of: byWait, way: d, width: 5, head: "WAIT"},
		{of: byDrops, way: d, width: 5, head: "DROPS"},
		{of: byBorrows, way: d, width: 6, head: "BORROW"},
		{of: byProcesses, way: d, width: 4, head: "PROC"},
	}
	wanted := []int{0, 2, 4, 1, 5, 3, 6, 7}
	if m.receives() {
		o, now := hierarchy.Receive, "RECEIVES"
		if d == hierarchy.Receive {
			o, now = hierarchy.Send, "SENDS"
		}
		order = append(order,
			place{of: byNow, way: o, width: 9, head: now},
			place{of: byShare, way: o, width: 10, head: "OF CEILING", left: true},
			place{of: byWait, way: o, width: 5, head: "WAIT"},
			place{of: byTotal, way: o, width: 8, head: map[string]string{"SENDS": "SENT", "RECEIVES": "RECEIVED"}[now]},
			place{of: byDrops, way: o, width: 5, head: "DROPS"})
		wanted = append(wanted, 8, 9, 10, 11, 12)
	}
	taken := make([]bool, len(order))
	name = width - 1 // the sign of the cursor
	for _, i := range wanted {
		if name-1-order[i].width < leastName {
			break
		}
		name -= 1 + order[i].width
		taken[i] = true
	}
	for i, p := range order {
		if taken[i] {
			all = append(all, p)
		}
	}
	return all, name
}

// text is what a row has in a column, and how it looks.
func (m *Model) text(r *row, p place) (look, text string) {
	x := r.On(p.way)
	live := x.Since != nil && r.ended.IsZero()
	switch {
	case !r.ended.IsZero() && p.of == byNow:
		return "", "ended"
	case p.of == byProcesses && r.processes < 0 || !r.ended.IsZero() && p.of != byTotal:
		return "", "-"
	case p.of == byProcesses:
		return "", fmt.Sprint(r.processes)
	case p.way == hierarchy.Receive && !r.receives:
		return "", "-"
	case p.of == byTotal:
		return "", m.amount(x)
	case p.ceil:
		return "", words.Short(x.Ceil)
	case p.of == byWait:
		return hot(x.Delay() >= 100*time.Millisecond, yellow), brief(x.Delay())
	case !live:
		return "", "-"
	case p.of == byNow:
		return "", m.pace(x.Since)
	case p.of == byShare:
		s := share(x)
		look := green
		if s >= 0.93 {
			look = red
		} else if s >= 0.7 {
			look = yellow
		}
		return look, m.style.bar(s, p.width-4) + right(fmt.Sprintf("%.0f%%", 100*s), 4)
	case p.of == byDrops:
		return hot(x.Since.Drops > 0, red), scaled(x.Since.Drops)
	case p.of == byBorrows:
		return hot(x.Since.Borrowed > 0, cyan), fmt.Sprintf("%.0f%%", 100*x.Since.Borrowed)
	}
	return "", ""
}

func hot(is bool, look string) string {
	if is {
		return look
	}
	return ""
}

// pace is what goes through, in the unit.
func (m *Model) pace(p *observe.Pace) string {
	switch m.unit {
	case Bytes:
		return words.Bytes(uint64(p.Bandwidth/8)) + "/s"
	case Packets:
		return scaled(p.Packets) + "/s"
	}
	return words.Short(p.Bandwidth)
}

// amount is what has gone through since the class was made.
func (m *Model) amount(p *observe.Passing) string {
	if m.unit == Packets {
		return scaled(float64(p.Packets))
	}
	return words.Bytes(p.Bytes)
}

// scaled is a number for people.
func scaled(n float64) string {
	const units = "kMGTPE"
	if n < 9999.5 {
		return fmt.Sprintf("%.0f", n)
	}
	i := -1
	for n >= 999.5 && i < len(units)-1 {
		n /= 1000
		i++
	}
	return fmt.Sprintf("%.1f%c", n, units[i])
}

// brief is a time in five letters.
func brief(d time.Duration) string {
	switch {
	case d == 0:
		return "0"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1fms", max(0.1, float64(d)/float64(time.Millisecond)))
	case d < time.Second:
		return fmt.Sprintf("%.0fms", min(999, float64(d)/float64(time.Millisecond)))
	case d < 100*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < 1000*time.Second:
		return fmt.Sprintf("%.0fs", d.Seconds())
	}
	return ">999s"
}

// name is what a row is called on the screen.
func (m *Model) name(r *row, width int) string {
	if m.by != byTree {
		return fitEnd(words.Printable(string(r.Path)), width)
	}
	sign := ""
	if m.folded[r.Path] && !r.Leaf && m.filter == "" {
		sign = "+"
	}
	return fit(strings.Repeat("  ", r.Depth-m.indent)+sign+words.Printable(r.Path.Base()), width)
}

// line is a row of the table.
func (m *Model) line(r *row, all []place, name int, cursor bool) string {
	style, sign := m.style, " "
	if cursor {
		style, sign = Style{ASCII: style.ASCII}, ">"
	}
	var b strings.Builder
	b.WriteString(sign)
	if r.ID == 0 && r.note != "" { // it has no figures
		b.WriteString(fit(fmt.Sprintf("%s: %s", words.Printable(string(r.Path)), r.note), m.width-1))
	} else {
		b.WriteString(m.name(r, name))
		for _, p := range all {
			look, text := m.text(r, p)
			if p.left {
				text = fit(text, p.width)
			} else {
				text = right(text, p.width)
			}
			b.WriteString(" " + style.in(look, text))
		}
	}
	if cursor {
		return m.style.in(reverse, fit(b.String(), m.width))
	}
	return b.String()
}

// head is the line above the table.
func (m *Model) head(all []place, name int) string {
	s := " " + fit("BRANCH", name)
	for _, p := range all {
		if p.left {
			s += " " + fit(p.head, p.width)
		} else {
			s += " " + right(p.head, p.width)
		}
	}
	return s
}

// Lines are the screen, as many lines as it is high.
func (m *Model) Lines() []string {
	var lines []string
	bottom := m.bottom()
	switch room := max(0, m.height-len(bottom)); {
	case m.help:
		lines = m.helpLines(room)
	case m.open != nil:
		lines = m.openLines(room)
	default:
		lines = m.treeLines(room)
	}
	for len(lines) < m.height-len(bottom) {
		lines = append(lines, "")
	}
	lines = append(lines[:max(0, m.height-len(bottom))], bottom...)
	return lines[max(0, len(lines)-m.height):]
}

// treeLines are the title and the table.
func (m *Model) treeLines(room int) []string {
	all, name := m.places(m.width)
	lines := []string{m.top(m.titles()...), m.style.in(bold, fit(m.head(all, name), m.width))}
	room -= len(lines)
	at := m.cursor()
	m.scroll(at, room)
	for i := m.first; i < len(m.shown) && i < m.first+room; i++ {
		lines = append(lines, m.line(&m.rows[m.shown[i]], all, name, i == at))
	}
	if len(m.shown) == 0 && m.look.At.IsZero() {
		lines = append(lines, " looking ...")
	} else if len(m.rows) == 0 {
		lines = append(lines, fit(" no interface is shaped by vifshape in this network namespace", m.width))
	} else if len(m.shown) == 0 {
		lines = append(lines, fit(" no branch has that in its path", m.width))
	}
	return lines
}

// scroll makes what the cursor is on one of those that are seen.
func (m *Model) scroll(at, room int) {
	room = max(1, room)
	m.first = max(at-room+1, min(m.first, at))
	m.first = max(0, min(m.first, len(m.shown)-room))
}

// top is the first line: what the screen is of, and when that was. Where there is less room it
// says less.
func (m *Model) top(titles ...string) string {
	when, short := "", ""
	if !m.look.At.IsZero() {
		short = m.look.At.Format(time.TimeOnly)
		when = fmt.Sprintf("every %v  %s", m.look.Every.Round(100*time.Millisecond), short)
	}
	if m.frozen {
		short = "FROZEN  " + short
		when = short
	}
	for _, w := range []string{when, short} {
		for _, t := range titles {
			if room := m.width - displaywidth.String(w) - 2; displaywidth.String(t) <= room {
				return fit(t, room) + "  " + w
			}
		}
	}
	room := m.width - displaywidth.String(short) - 1
	if room < 10 {
		return fit(titles[len(titles)-1], m.width)
	}
	return fit(titles[len(titles)-1], room) + " " + short
}

// titles are those of the tree, the longest first.
func (m *Model) titles() []string {
	interfaces, branches := m.branches()
	s := words.Number(branches, "branch", "branches")
	if m.filter != "" {
		s += fmt.Sprintf(", with %q", m.filter)
	}
	if m.receives() {
		s += map[hierarchy.Direction]string{hierarchy.Send: ", sending", hierarchy.Receive: ", receiving"}[m.direction()]
	}
	if m.by != byTree {
		s += ", most " + m.sorted() + " first"
	}
	longer := s
	if interfaces > 0 { // else it is of a branch of one
		longer = words.Number(interfaces, "interface", "interfaces") + ", " + s
	}
	return []string{"vifshape top: " + longer, longer, s}
}

// sorted says by what.
func (m *Model) sorted() string {
	return [...]string{"", "speed", "sum", "of its ceiling", "wait", "drops", "borrowed", "processes"}[m.by]
}

// bottom are the lines below the table: what is to be said, and which keys there are or what
// is asked for.
func (m *Model) bottom() (lines []string) {
	say := m.message
	for i := range m.rows {
		if r := &m.rows[i]; say == "" && r.note != "" && r.ID != 0 {
			say = fmt.Sprintf("%s: %s", words.Printable(string(r.Path)), r.note)
		}
	}
	if say != "" && m.height > 6 {
		for _, l := range wrapped(say, m.width, 3) {
			lines = append(lines, m.style.in(yellow, l))
		}
	}
	if m.height < 4 && m.prompt == nil {
		return lines
	}
	if m.prompt != nil {
		return append(lines, m.style.in(bold, fitEnd(m.prompt.line(), m.width)))
	}
	text := ""
	for _, k := range m.keys() {
		if displaywidth.String(text)+2+displaywidth.String(k) > m.width {
			break
		}
		text += "  " + k
	}
	text = strings.TrimPrefix(text, " ")
	return append(lines, m.style.in(reverse, fit(text, m.width)))
}

// Table is a look as text, without a screen: a table for each direction.
func Table(l Look, s Style, unit Unit) string {
	m := New(s, unit)
	m.Show(l)
	name := len("BRANCH")
	for i := range m.rows {
		if r := &m.rows[i]; r.ID != 0 {
			name = max(name, 2*(r.Depth-m.indent)+displaywidth.String(words.Printable(r.Path.Base())))
		}
	}
	var b strings.Builder
	for _, d := range []hierarchy.Direction{hierarchy.Send, hierarchy.Receive} {
		if m.way = d; m.direction() != d {
			continue
		}
		all, _ := m.places(80)
		all = slices.DeleteFunc(all, func(p place) bool { return p.way != d })
		if b.Len() > 0 {
			b.WriteString("\n")
		}
		b.WriteString(strings.TrimSpace(m.head(all, name)) + "\n")
		for i := range m.rows {
			b.WriteString(strings.TrimRight(m.line(&m.rows[i], all, name, false)[1:], " ") + "\n")
		}
	}
	return b.String()
}
