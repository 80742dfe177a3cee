// Package manual writes pages of the manual, in the language of man(7), from the
// texts that help prints.
package manual

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Page is one page.
type Page struct {
	Name    string // as in "vifshape-apply"
	Section int
	Short   string // in one line
	Usage   string // empty: the page is about no command
	// Text is paragraphs, of lines that begin at the margin or are indented by two or
	// more. Indented are examples, kept as they are, and lists: a word and, behind at
	// least two spaces or below and further in, what it means. A line in capitals, or
	// one that begins with "# ", is the head of a section.
	Text    string
	Options []Option
	SeeAlso []string // as in "vifshape-qdisc(7)"
}

// Option is a flag.
type Option struct{ Name, Value, Text string }

// date is fixed, so that the same source gives the same page.
const date = "2026-11-01"

// WriteTo writes the page.
func (p *Page) WriteTo(w io.Writer) (int64, error) {
	var s strings.Builder
	name := escaped(p.Name)
	fmt.Fprintf(&s, ".TH %s %d %s vifshape vifshape\n", strings.ToUpper(name), p.Section, date)
	fmt.Fprintf(&s, ".SH NAME\n%s \\- %s\n", name, escaped(p.Short))
	if p.Usage != "" {
		fmt.Fprintf(&s, ".SH SYNOPSIS\n\\fB%s\\fR\n", escaped(p.Usage))
	}
	s.WriteString(".SH DESCRIPTION\n")
	options := p.options()
	for part := range strings.SplitSeq(p.Text, "\n\n") {
		lines := strings.Split(strings.Trim(part, "\n"), "\n")
		if head, ok := heading(lines[0]); ok {
			if head == "EXIT STATUS" { // options come before it, as in other pages
				s.WriteString(options)
				options = ""
			}
			fmt.Fprintf(&s, ".SH %s\n", escaped(head))
			lines = lines[1:]
		}
		paragraphs(&s, lines)
	}
	s.WriteString(options)
	if len(p.SeeAlso) > 0 {
		fmt.Fprintf(&s, ".SH SEE ALSO\n%s\n", escaped(strings.Join(p.SeeAlso, ", ")))
	}
	n, err := io.WriteString(w, s.String())
	return int64(n), err
}

func (p *Page) options() string {
	var s strings.Builder
	for i, o := range p.Options {
		if i == 0 {
			s.WriteString(".SH OPTIONS\n")
		}
		fmt.Fprintf(&s, ".TP\n\\fB%s\\fR", escaped(o.Name))
		if o.Value != "" {
			fmt.Fprintf(&s, " \\fI%s\\fR", escaped(o.Value))
		}
		fmt.Fprintf(&s, "\n%s\n", line(o.Text))
	}
	return s.String()
}

// heading says whether a line is the head of a section.
func heading(s string) (string, bool) {
	head, ok := strings.CutPrefix(s, "# ")
	return head, ok || s != "" && s[0] != ' ' && strings.Trim(s, "ABCDEFGHIJKLMNOPQRSTUVWXYZ ") == ""
}

// paragraphs writes lines between two empty ones.
func paragraphs(s *strings.Builder, lines []string) {
	for len(lines) > 0 {
		n := 1
		indented := strings.HasPrefix(lines[0], "  ")
		for n < len(lines) && strings.HasPrefix(lines[n], "  ") == indented {
			n++
		}
		block := lines[:n]
		lines = lines[n:]
		if !indented {
			s.WriteString(".PP\n")
			for _, l := range block {
				s.WriteString(line(l) + "\n")
			}
			continue
		}
		if list := entries(block); list != nil {
			for _, e := range list {
				fmt.Fprintf(s, ".TP\n\\fB%s\\fR\n%s\n", escaped(e.term), strings.Join(e.text, "\n"))
			}
			continue
		}
		s.WriteString(".PP\n.RS 4\n.nf\n")
		for _, l := range block {
			s.WriteString(line(strings.TrimPrefix(l, "  ")) + "\n")
		}
		s.WriteString(".fi\n.RE\n")
	}
}

// entry is a word of a list, and what it means.
type entry struct {
	term string
	text []string
}

// entries reads indented lines as a list; nil where they are none.
func entries(lines []string) []entry {
	var all []entry
	column := 0 // of the text of the last entry; below its word: 0
	for i, l := range lines {
		indent := len(l) - len(strings.TrimLeft(l, " "))
		term, text, beside := strings.Cut(l[indent:], "  ")
		switch {
		case indent > 2 && len(all) > 0 && (column == 0 || indent == column):
			e := &all[len(all)-1]
			text := line(l[indent:])
			if column == 0 && len(e.text) > 0 {
				text = ".br\n" + text // each line is a statement of its own
			}
			e.text = append(e.text, text)
		case indent == 2 && beside:
			text = strings.TrimLeft(text, " ")
			all = append(all, entry{term, []string{line(text)}})
			column = len(l) - len(text)
		case indent == 2 && i+1 < len(lines) && strings.HasPrefix(lines[i+1], "   "):
			all = append(all, entry{term: term})
			column = 0
		default:
			return nil
		}
	}
	return all
}

// line is escaped text that begins a line, where a dot or an apostrophe would be a
// request.
func line(s string) string {
	s = escaped(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

// escaped is text as it is to be seen: what roff takes for an escape, a hyphen or a
// quotation mark of its own stays what it is, so that it can be copied.
func escaped(s string) string {
	return strings.NewReplacer(`\`, `\e`, "-", `\-`, "`", `\(ga`, "'", `\(aq`, "^", `\(ha`, "~", `\(ti`).Replace(s)
}

// Write writes pages where man looks for them: section 8 into man8 below dir, and so on,
// which are made where they are not there.
func Write(dir string, pages []*Page) error {
	for _, p := range pages {
		at := filepath.Join(dir, fmt.Sprintf("man%d", p.Section))
		if err := os.MkdirAll(at, 0o755); err != nil {
			return err
		}
		f, err := os.Create(filepath.Join(at, fmt.Sprintf("%s.%d", p.Name, p.Section)))
		if err != nil {
			return err
		}
		_, err = p.WriteTo(f)
		if err := errors.Join(err, f.Close()); err != nil {
			return err
		}
	}
	return nil
}
