package policy

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/vifshape/vifshape/hierarchy"
)

// mistake is an Error whose place is still an offset.
type mistake struct {
	off       int
	path      hierarchy.Path
	key       string
	value     bool // a value stands at off
	msg, hint string
	warning   bool
}

// report collects the mistakes of one file.
type report struct {
	file  string
	index *index
	found []mistake
}

func (r *report) add(m mistake) { r.found = append(r.found, m) }

// errs are the mistakes found, in the order of the file.
func (r *report) errs() Errors {
	slices.SortStableFunc(r.found, func(a, b mistake) int { return cmp.Compare(a.off, b.off) })
	var all Errors
	for _, m := range r.found {
		line, start, end := r.index.line(m.off)
		file, before := r.index.of(m.off)
		e := Error{File: cmp.Or(file, r.file), Line: line - before, Column: r.index.column(start, m.off), Path: m.path, Key: m.key,
			Msg: cut(m.msg), Hint: cut(m.hint), Source: r.index.text[start:end], Warning: m.warning}
		if m.value {
			e.Value = r.index.value(m.off)
		}
		all = append(all, e)
	}
	return all
}

// cut shortens a text that quotes a very long value.
func cut(s string) string {
	const keep = 250
	if len(s) <= 2*keep {
		return s
	}
	return strings.ToValidUTF8(s[:keep], "") + " ... " + strings.ToValidUTF8(s[len(s)-keep:], "")
}

// characters checks what TOML says about a file's characters before anything
// else looks at them.
func (r *report) characters() bool {
	text := r.index.text
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c >= utf8.RuneSelf:
			if u, n := utf8.DecodeRuneInString(text[i:]); u != utf8.RuneError || n > 1 {
				i += n - 1
				continue
			}
			hint := "save the file as UTF-8"
			if strings.HasPrefix(text, "\xff\xfe") || strings.HasPrefix(text, "\xfe\xff") {
				hint = "the file looks like UTF-16; " + hint
			}
			r.add(mistake{off: i, msg: fmt.Sprintf("byte 0x%02x is not UTF-8", c), hint: hint})
			return false
		case c >= ' ' && c != 0x7f || c == '\t' || c == '\n':
			continue
		case c == '\r' && i+1 < len(text) && text[i+1] == '\n':
			continue
		case c == '\r':
			r.add(mistake{off: i, msg: "a carriage return without a line feed", hint: "end lines with a line feed, alone or behind a carriage return"})
			return false
		case c == 0:
			r.add(mistake{off: i, msg: "a NUL byte", hint: "a policy is text in UTF-8, not UTF-16 or binary data"})
			return false
		}
		r.add(mistake{off: i, msg: fmt.Sprintf("control character 0x%02x", c), hint: "remove it"})
		return false
	}
	return true
}
