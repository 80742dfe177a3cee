package topview

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/explain"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
)

// opened is a branch, and who sends by it.
type opened struct {
	path  hierarchy.Path
	seen  *explain.Evidence
	err   error
	lines []user
	at    int // of lines: the cursor
	first int
}

// user is a process, or a connection of one.
type user struct {
	pid      int
	name     string
	socket   bool
	protocol string
	local    string // its port
	remote   string
	sends    hierarchy.Bandwidth
	receives hierarchy.Bandwidth
	waits    uint64
	rtt      time.Duration
	resent   float64
	told     bool // the kernel tells what it sends
	more     bool // it sends by UDP, too, of which the kernel does not tell
	ended    time.Time
}

func (u *user) same(o *user) bool {
	return u.pid == o.pid && u.socket == o.socket && u.protocol == o.protocol && u.local == o.local && u.remote == o.remote
}

// Opened is what was seen of a branch that is open, or why nothing was.
func (m *Model) Opened(path hierarchy.Path, seen *explain.Evidence, err error) {
	if m.open == nil || m.open.path != path || m.frozen {
		return
	}
	o := m.open
	if o.err = err; err != nil {
		return
	}
	old := o.lines
	o.seen, o.lines = seen, users(seen)
	for i, u := range old {
		if slices.ContainsFunc(o.lines, func(x user) bool { return x.same(&u) }) {
			continue
		}
		if u.ended.IsZero() {
			u.ended, u.sends, u.receives = m.look.At, 0, 0
		}
		if m.look.At.Sub(u.ended) < lingers {
			o.lines = slices.Insert(o.lines, min(i, len(o.lines)), u)
		}
	}
	if len(old) > 0 {
		if i := slices.IndexFunc(o.lines, func(x user) bool { return x.same(&old[o.at]) }); i >= 0 {
			o.at = i
		}
	}
	o.at = max(0, min(o.at, len(o.lines)-1))
}

// users are processes, those that send and receive most first, each with its connections.
func users(e *explain.Evidence) []user {
	of := map[int]*user{}
	for _, p := range e.Processes {
		of[p.PID] = &user{pid: p.PID, name: p.Name}
	}
	sockets := map[int][]user{}
	add := func(pid int, name string, u user) {
		p := of[pid]
		if p == nil {
			p = &user{pid: pid, name: name}
			of[pid] = p
		}
		p.sends, p.receives, p.waits = p.sends+u.sends, p.receives+u.receives, p.waits+u.waits
		p.told, p.more = p.told || u.told, p.more || !u.told
		u.pid, u.socket = pid, true
		sockets[pid] = append(sockets[pid], u)
	}
	for _, c := range e.Connections {
		add(c.PID, c.Name, user{protocol: "tcp", local: portOf(c.Local), remote: c.Remote, sends: c.Sends, receives: c.Receives, waits: c.Waits, rtt: c.RTT, resent: c.Resent, told: true})
	}
	for _, d := range e.Datagrams {
		add(d.PID, d.Name, user{protocol: "udp", local: portOf(d.Local), remote: cmp.Or(d.Remote, "to anybody"), waits: d.Waits})
	}
	first := func(a, b user) int {
		return cmp.Or(cmp.Compare(b.sends+b.receives, a.sends+a.receives), cmp.Compare(b.waits, a.waits), cmp.Compare(a.pid, b.pid), cmp.Compare(a.remote, b.remote), cmp.Compare(a.local, b.local))
	}
	var processes, all []user
	for _, p := range of {
		processes = append(processes, *p)
	}
	slices.SortFunc(processes, first)
	for _, p := range processes {
		all = append(all, p)
		slices.SortFunc(sockets[p.pid], first)
		all = append(all, sockets[p.pid]...)
	}
	if n := other(e); n > 0 {
		all = append(all, user{name: "other than TCP, about", sends: n, told: true})
	}
	return all
}

// other is what a branch sends that no connection has had acknowledged; 0 where headers may be
// the difference.
func other(e *explain.Evidence) hierarchy.Bandwidth {
	i := slices.IndexFunc(e.Sends, func(l explain.Level) bool { return l.Path == e.Path })
	if i < 0 || e.Unseen != "" {
		return 0
	}
	all, acked := e.Sends[i].Gets, hierarchy.Bandwidth(0)
	for _, c := range e.Connections {
		acked += c.Sends
	}
	if all < 10*hierarchy.Kbit || acked > all/10*9 {
		return 0
	}
	return all - acked
}

// openKey is for keys over an open branch.
func (m *Model) openKey(key string) Action {
	o := m.open
	var at *user
	if len(o.lines) > 0 {
		at = &o.lines[o.at]
	}
	switch key {
	case "q":
		return Action{Quit: true}
	case "esc", "left", "enter", "backspace":
		m.open = nil
		return Action{Shut: true}
	case "up", "k":
		o.at--
	case "down", "j":
		o.at++
	case "pgup":
		o.at -= m.page()
	case "pgdown":
		o.at += m.page()
	case "home", "g":
		o.at = 0
	case "end", "G":
		o.at = len(o.lines)
	case "c", "m":
		switch {
		case at == nil || at.pid == 0 || !at.ended.IsZero():
			m.Tell("go to a process first")
		case key == "c":
			m.askCap(fmt.Sprintf("pid:%d", at.pid), "", o.path.Interface())
		default:
			name := at.name
			for _, u := range o.lines {
				if u.pid == at.pid && !u.socket {
					name = u.name
				}
			}
			m.moving, m.open = &moving{at.pid, name}, nil
			return Action{Shut: true}
		}
	}
	o.at = max(0, min(o.at, len(o.lines)-1))
	return Action{}
}

// openLines are what is known of the branch, and the table.
func (m *Model) openLines(room int) []string {
	o := m.open
	lines := []string{m.top(words.Printable(string(o.path)))}
	for i := range m.rows {
		if r := &m.rows[i]; r.Path == o.path {
			lines = append(lines, wrapped(m.state(r), m.width, 2)...)
		}
	}
	switch {
	case o.err != nil:
		return append(lines, wrapped(words.Printable(o.err.Error()), m.width, 3)...)
	case o.seen == nil:
		return append(lines, " looking ...")
	}
	v := o.seen.Judge()
	lines = append(lines, wrapped(v.Sentence, m.width, max(1, min(3, room-5)))...)
	if o.seen.Unseen != "" {
		return append(lines, wrapped("processes and connections are not seen: "+o.seen.Unseen, m.width, 2)...)
	}
	all, rest := m.facts()
	head := " " + fit("PROCESS, CONNECTION", rest)
	for _, f := range all {
		head += " " + right(f.head, f.width)
	}
	lines = append(lines, m.style.in(bold, fit(head, m.width)))
	room = max(1, room-len(lines))
	o.first = max(0, min(max(o.at-room+1, min(o.first, o.at)), len(o.lines)-room))
	for i := o.first; i < len(o.lines) && i < o.first+room; i++ {
		u := &o.lines[i]
		s, look := " ", ""
		if !u.socket {
			look = bold
		}
		if i == o.at {
			s, look = ">", reverse
		}
		s += fit(u.text(), rest)
		for _, f := range all {
			s += " " + right(f.of(u), f.width)
		}
		lines = append(lines, m.style.in(look, fit(s, m.width)))
	}
	if len(o.lines) == 0 {
		lines = append(lines, fit(" no process has anything open that it carries", m.width))
	}
	return lines
}

// fact is a column of the table of connections.
type fact struct {
	head  string
	width int
	of    func(u *user) string
}

// facts are the columns for the width, and what they leave for the first: those at the end go
// first.
func (m *Model) facts() (all []fact, rest int) {
	told := func(text func(u *user) string) func(u *user) string {
		return func(u *user) string {
			if !u.told || !u.ended.IsZero() {
				return "-"
			}
			return text(u)
		}
	}
	of := func(text func(u *user) string) func(u *user) string {
		return told(func(u *user) string {
			if !u.socket {
				return "-"
			}
			return text(u)
		})
	}
	rest = m.width - 1
	for _, f := range []fact{
		{"SENDS", 10, told(func(u *user) string { return m.speed(u.sends) + u.and() })},
		{"RECEIVES", 10, told(func(u *user) string { return m.speed(u.receives) + u.and() })},
		{"WAITS", 7, func(u *user) string { return words.Bytes(u.waits) }},
		{"RTT", 5, of(func(u *user) string { return brief(u.rtt) })},
		{"RESENT", 6, of(func(u *user) string { return fmt.Sprintf("%.1f%%", 100*u.resent) })},
	} {
		if rest-1-f.width < 18 {
			break
		}
		rest -= 1 + f.width
		all = append(all, f)
	}
	return all, max(0, rest)
}

// and is what stands behind a sum that does not have all.
func (u *user) and() string {
	if u.more {
		return "+"
	}
	return ""
}

// speed is in bits or, with the unit, in bytes: packets of a connection are not told.
func (m *Model) speed(b hierarchy.Bandwidth) string {
	if m.unit == Bytes {
		return words.Bytes(uint64(b/8)) + "/s"
	}
	return words.Short(b)
}

// portOf is the port of an address.
func portOf(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// text is what a line is about.
func (u *user) text() string {
	s := fmt.Sprintf("%s[%d]", words.Printable(u.name), u.pid)
	if u.pid == 0 {
		s = u.name
	}
	if u.socket {
		s = fmt.Sprintf("  %s %s (:%s)", u.protocol, u.remote, u.local)
	}
	if !u.ended.IsZero() {
		s += " (ended)"
	}
	return s
}

// state is what a branch does in each direction, in a line.
func (m *Model) state(r *row) string {
	var s []string
	for _, d := range []hierarchy.Direction{hierarchy.Send, hierarchy.Receive} {
		p := r.On(d)
		if p.Since == nil {
			continue
		}
		does := "sends"
		if d == hierarchy.Receive {
			does = "receives"
		}
		text := fmt.Sprintf("%s %s of %s", does, m.pace(p.Since), words.Short(p.Ceil))
		if p.Backlog > 0 {
			text += ", " + brief(p.Delay()) + " wait"
		}
		if p.Since.Drops > 0 {
			text += ", " + scaled(p.Since.Drops) + " drops/s"
		}
		s = append(s, text)
	}
	if !r.ended.IsZero() {
		s = []string{"it has ended"}
	}
	return strings.Join(s, "; ")
}

// wrapped is a text in lines of a width, and no more than so many.
func wrapped(text string, width, most int) (lines []string) {
	line := ""
	for _, w := range strings.Fields(text) {
		if line != "" && len(line)+1+len(w) > width-1 {
			lines = append(lines, fit(" "+line, width))
			line = ""
		}
		line = strings.TrimSpace(line + " " + w)
	}
	lines = append(lines, fit(" "+line, width))
	if len(lines) > most {
		lines = lines[:most]
		last := strings.TrimRight(lines[most-1], " ")
		lines[most-1] = fit(last+" ...", width)
	}
	return lines
}
