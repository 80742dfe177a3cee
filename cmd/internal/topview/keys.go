package topview

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
)

// Action is what a key asks for that the screen cannot do itself. Its zero value is nothing.
type Action struct {
	Quit bool
	Open hierarchy.Path // to look at who sends by a branch, from now on
	Shut bool           // to look at that no more
	Cap  *Cap
	Move *Move
}

// Cap is a limit that somebody wants.
type Cap struct {
	What     string   // as the command limit takes it
	On       []string // the interfaces; none: what it is on says that
	Up, Down string   // as somebody wrote them; both empty: the limit is to go
}

// Move is a process that is to go to a branch.
type Move struct {
	PID int
	To  hierarchy.Path
}

// moving is a process for which a branch is looked for.
type moving struct {
	pid  int
	name string
}

// prompt is a question, and what was typed until now.
type prompt struct {
	question, text string
	done           func(text string) Action
	live           func(text string) // for each letter; nil: nothing
}

func (p *prompt) line() string { return " " + p.question + p.text + "_" }

// Tell shows what became of an action.
func (m *Model) Tell(text string) {
	m.message = words.Printable(strings.Join(strings.Fields(text), " "))
}

// Key is for each key, by the names that bubbletea has for them.
func (m *Model) Key(key string) Action {
	if key == "ctrl+c" {
		return Action{Quit: true}
	}
	m.message = ""
	switch {
	case m.prompt != nil:
		return m.typed(key)
	case m.help:
		m.help = false
		return Action{}
	case key == "?" || key == "h" || key == "f1":
		m.help = true
		return Action{}
	case key == "space" || key == " ":
		m.freeze()
		return Action{}
	case key == "u":
		m.unit = (m.unit + 1) % units
		m.arrange()
		return Action{}
	case m.open != nil:
		return m.openKey(key)
	}
	return m.treeKey(key)
}

// freeze stops the screen, or goes on with the newest look.
func (m *Model) freeze() {
	if m.frozen = !m.frozen; !m.frozen && m.next != nil {
		m.Show(*m.next)
		m.next = nil
	}
}

// typed is for keys while something is asked.
func (m *Model) typed(key string) Action {
	p := m.prompt
	switch key {
	case "enter":
		m.prompt = nil
		return p.done(p.text)
	case "esc":
		m.prompt = nil
		if p.live != nil {
			p.live("")
		}
		return Action{}
	case "backspace":
		_, n := utf8.DecodeLastRuneInString(p.text)
		p.text = p.text[:len(p.text)-n]
	case "ctrl+u":
		p.text = ""
	case "space":
		p.text += " "
	default:
		if utf8.RuneCountInString(key) == 1 { // others are names of keys that write nothing
			m.Paste(key)
		}
		return Action{}
	}
	if p.live != nil {
		p.live(p.text)
	}
	return Action{}
}

// Paste adds a text to what was typed, where something is asked.
func (m *Model) Paste(text string) {
	if m.prompt == nil {
		return
	}
	m.prompt.text += strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
	if m.prompt.live != nil {
		m.prompt.live(m.prompt.text)
	}
}

// page is how far a key goes that goes far.
func (m *Model) page() int { return max(1, m.height-4) }

// treeKey is for keys over the tree.
func (m *Model) treeKey(key string) Action {
	at := m.cursor()
	r := m.current()
	switch key {
	case "q":
		return Action{Quit: true}
	case "esc":
		m.moving = nil
		m.find("")
	case "up", "k":
		m.goTo(at - 1)
	case "down", "j":
		m.goTo(at + 1)
	case "pgup", "ctrl+b":
		m.goTo(at - m.page())
	case "pgdown", "ctrl+f":
		m.goTo(at + m.page())
	case "home", "g":
		m.goTo(0)
	case "end", "G":
		m.goTo(len(m.shown) - 1)
	case "s":
		m.sort(m.by + 1)
	case "S":
		m.sort(m.by + columns - 1)
	case "t":
		m.sort(byTree)
	case "d":
		m.turn()
	case "left", "-":
		m.fold(r)
	case "right", "+":
		if r != nil {
			delete(m.folded, r.Path)
			m.arrange()
		}
	case "z":
		m.foldAll()
	case "/":
		m.prompt = &prompt{question: "filter: ", text: m.filter, live: m.find, done: func(string) Action { return Action{} }}
	case "enter":
		return m.enter(r)
	case "c":
		m.cap(r)
	}
	return Action{}
}

func (m *Model) sort(by column) {
	m.by = by % columns
	m.first = 0
	m.arrange()
	if m.by != byTree {
		m.goTo(0)
	}
}

// turn looks at the other direction, where that is shaped.
func (m *Model) turn() {
	if !m.receives() {
		m.Tell("nothing is shaped that is received")
		return
	}
	m.way = hierarchy.Receive - m.direction()
	m.arrange()
}

// find filters.
func (m *Model) find(text string) {
	m.filter = text
	m.arrange()
}

// fold hides what is in a branch, or goes to the one that it is in.
func (m *Model) fold(r *row) {
	switch {
	case r == nil || m.by != byTree:
	case !r.Leaf && !m.folded[r.Path]:
		m.folded[r.Path] = true
	case r.Path.Parent() != "":
		m.at = r.Path.Parent()
	}
	m.arrange()
}

// foldAll leaves interfaces and what is directly in them, or unfolds all.
func (m *Model) foldAll() {
	if len(m.folded) > 0 {
		clear(m.folded)
	} else {
		for i := range m.rows {
			if r := &m.rows[i]; r.Depth == 1 && !r.Leaf {
				m.folded[r.Path] = true
			}
		}
	}
	m.arrange()
}

// enter opens a branch, or has found where a process is to go.
func (m *Model) enter(r *row) Action {
	switch {
	case r == nil || r.ID == 0 || !r.ended.IsZero():
		return Action{}
	case m.moving != nil:
		a := Action{Move: &Move{m.moving.pid, r.Path}}
		m.moving = nil
		return a
	}
	m.open = &opened{path: r.Path}
	return Action{Open: r.Path}
}

// cap asks for a limit on what a row stands for.
func (m *Model) cap(r *row) {
	switch {
	case r == nil || !r.ended.IsZero():
	case r.Limit != "":
		var on []string
		for i := range m.rows {
			if x := &m.rows[i]; x.Limit == r.Limit && x.ended.IsZero() {
				on = append(on, x.Path.Interface())
			}
		}
		m.askCap(r.Limit, "; nothing takes it away", on...)
	case r.Depth == 0:
		m.askCap(string(r.Path), "")
	default:
		m.Tell("the policy says what it may: open it and cap a process, or change the policy")
	}
}

func (m *Model) askCap(what, more string, on ...string) {
	m.prompt = &prompt{question: fmt.Sprintf("limit %s to (as 10mbit, or UP/DOWN as 5mbit/20mbit%s): ", words.Printable(what), more), done: func(text string) Action {
		up, down, two := strings.Cut(strings.TrimSpace(text), "/")
		switch {
		case text == "" && more == "":
			return Action{}
		case !two:
			down = up
		}
		for _, s := range []string{up, down} {
			if s == "" {
				continue
			}
			if _, err := hierarchy.ParseBandwidth(s); err != nil {
				m.Tell(err.Error())
				return Action{}
			}
		}
		return Action{Cap: &Cap{what, on, up, down}}
	}}
}

// keys are what the last line says.
func (m *Model) keys() []string {
	switch {
	case m.moving != nil:
		return []string{fmt.Sprintf("Enter: move %s[%d] to this branch", words.Printable(m.moving.name), m.moving.pid), "Esc: leave it"}
	case m.open != nil:
		return []string{"?:help", "q:quit", "Esc:back", "c:cap", "m:move", "u:units", "space:freeze"}
	}
	all := []string{"?:help", "q:quit", "Enter:open", "/:filter", "s:sort", "-:fold"}
	switch {
	case m.direction() == hierarchy.Receive:
		all = append(all, "d:sending")
	case m.receives():
		all = append(all, "d:receiving")
	}
	return append(all, "u:units", "space:freeze", "c:cap")
}

// helpLines are all keys, and what columns mean.
func (m *Model) helpLines(room int) []string {
	title := func(s string) string { return m.style.in(bold, fit(" "+s, m.width)) }
	lines := []string{
		title("KEYS"),
		" up down PgUp PgDn Home End   go (k, j, g and G do, too)",
		" Enter     open a branch: processes and connections, who sends most first",
		" Esc       back; no filter",
		" /         show branches with a text in their path",
		" - +       fold a branch, unfold it (left and right do, too); z all",
		" s S t     sort by the next or last column; t: in the policy's order",
		" d         look at the other direction, where what is received is shaped",
		" u         bits, bytes or packets",
		" space     freeze the screen, or go on",
		" c         limit an interface, a limit or, in a branch, a process",
		" m         in a branch: move a process to another one",
		" q         quit",
		title("COLUMNS"),
		" OF CEILING  what goes through, as a share of the most that it may",
		" WAIT        how long the last packet in the queue waits until it is sent",
		" DROPS       packets a second that the queue has dropped",
		" BORROW      the share of packets that went with what a branch above lent",
		" PROC        processes that are bound, with those of the branches within",
		" SENDS 5mbit+   and what goes by UDP, of which the kernel does not tell",
	}
	for i, l := range lines {
		if !strings.HasPrefix(l, "\x1b") {
			lines[i] = fit(l, m.width)
		}
	}
	return lines[:min(len(lines), room)]
}
