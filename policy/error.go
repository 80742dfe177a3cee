package policy

import (
	"fmt"
	"strings"
	"unicode"

	"github.com/vifshape/vifshape/hierarchy"
)

// Error is one mistake in a policy, or one warning about it.
type Error struct {
	File    string         // the name given to [Parse]
	Line    int            // from 1
	Column  int            // in characters, from 1
	Path    hierarchy.Path // of the interface or branch; empty outside of them
	Key     string         // such as "ceil" or "qdisc.limit"; empty: the table itself
	Value   string         // the value as it stands in the file, quotes included; empty: none
	Msg     string         // what is wrong, without the path
	Hint    string         // what to write instead; may be empty
	Source  string         // the line of the file, without its end
	Warning bool           // the policy can be used as it is
}

// Error is the mistake in one line:
// "policy.toml:14:10: eth0/web/api: ceil 5mbit is below rate 10mbit".
func (e Error) Error() string {
	var b strings.Builder
	if e.File != "" {
		fmt.Fprintf(&b, "%s:", e.File)
	}
	fmt.Fprintf(&b, "%d:%d: ", e.Line, e.Column)
	if e.Warning {
		b.WriteString("warning: ")
	}
	if e.Path != "" {
		fmt.Fprintf(&b, "%s: ", e.Path)
	}
	b.WriteString(e.Msg)
	return strings.Map(printable, b.String())
}

// printable keeps what a terminal would obey out of messages.
func printable(c rune) rune {
	if c != '\t' && !unicode.IsPrint(c) {
		return unicode.ReplacementChar
	}
	return c
}

// Errors are all mistakes of a policy in the order of the file. It may hold
// warnings between them, but never warnings alone when it is an error of
// [Parse].
type Errors []Error

// Error is every mistake on a line of its own, without source and hints.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "\n")
}

// Render is the text for a person: every mistake with its line of the file, a
// caret below the place, and the hint. It ends in a line end unless e is empty.
func (e Errors) Render() string {
	var b strings.Builder
	for i := range e {
		b.WriteString(e[i].Error())
		b.WriteByte('\n')
		if e[i].Source != "" {
			line, pad := excerpt(e[i].Source, e[i].Column)
			fmt.Fprintf(&b, "    %s\n    %s^\n", line, pad)
		}
		if e[i].Hint != "" {
			fmt.Fprintf(&b, "    hint: %s\n", strings.Map(printable, e[i].Hint))
		}
	}
	return b.String()
}

// excerptWidth bounds the part of a line that is shown, so that a policy on one
// long line does not flood the terminal once per mistake.
const excerptWidth = 120

// excerpt is the part of a line around a column, and what to print below it in
// front of the caret: tabs stay tabs, so that both lines are aligned whatever
// width the terminal gives them.
func excerpt(source string, column int) (line, pad string) {
	r := []rune(source)
	at := min(column-1, len(r))
	from, to := 0, len(r)
	if len(r) > excerptWidth {
		from = max(0, min(at-excerptWidth/2, len(r)-excerptWidth))
		to = from + excerptWidth
	}
	var l, p strings.Builder
	if from > 0 {
		l.WriteString("... ")
		p.WriteString("    ")
	}
	for i := from; i < to; i++ {
		c := printable(r[i])
		l.WriteRune(c)
		if i < at {
			if c != '\t' {
				c = ' '
			}
			p.WriteRune(c)
		}
	}
	if to < len(r) {
		l.WriteString(" ...")
	}
	return l.String(), p.String()
}
