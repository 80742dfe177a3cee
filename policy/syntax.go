package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// syntax reports a mistake in the TOML itself. The decoder's message says what
// its state machine expected; the text around the place says more often what the
// writer meant.
func (r *report) syntax(pe toml.ParseError) {
	x := r.index
	off := max(0, min(pe.Position.Start, len(x.text)))
	for off > 0 && off < len(x.text) && !utf8.RuneStart(x.text[off]) {
		off--
	}
	has := func(s string) bool { return strings.Contains(pe.Message, s) }
	m := mistake{off: off}
	word, start, left := x.word(off)
	value := left == '=' || left == ',' || left == '['
	switch {
	case has("already been defined") || has("already created") || has("is not a table"):
		m = x.duplicate(off)
	case x.stop >= 0 && x.stop < len(x.text) && (x.text[x.stop] == '"' || x.text[x.stop] == '\'') && (has("strings cannot contain newlines") || has("unexpected EOF; expected")):
		m.off, m.msg, m.hint = x.stop, "the string has no closing quote", "close it with the quote that it begins with"
	case has("invalid escape") || has(`after '\`):
		m.msg, m.hint = "this is no escape that TOML knows in a string", `write \\ for a backslash, or put the string in single quotes`
	case has("key name appears blank"):
		m.msg = `no key stands in front of "="`
	case has("end of table array name"):
		m.msg, m.hint = "the header is not closed", "close [ with ], and [[ with ]]"
	case has("to end table name"):
		if c := x.at(off); c == "" || unicode.IsSpace(rune(c[0])) || c == "#" {
			m.msg, m.hint = "the header is not closed", "close [ with ], and [[ with ]]"
		} else {
			m.msg, m.hint = fmt.Sprintf("%q cannot stand in a header like this", c), `put the name that holds it in quotes: [interface.eth0."a+b"]`
		}
	case has("table names cannot be empty"):
		m.msg, m.hint = "the header has an empty name", "write [interface.eth0], names separated by single dots"
	case has("expected '.' or '='"):
		m.hint = `write key = value, for example rate = "10mbit"`
		c := x.at(off)
		_, first, _ := x.line(off)
		switch {
		case c == "" || c == "\n" || c == "\r":
			m.msg = "= and a value are missing"
		case strings.Trim(x.text[first:off], " \t") == "":
			m.msg = fmt.Sprintf("%q cannot begin a key", c)
		case c == ":":
			m.msg = `":" stands where "=" belongs`
		default:
			m.msg = fmt.Sprintf("= is missing in front of %q", c)
		}
	case has("out of range"):
		m.off, m.msg = start, word+" is too large"
	case strings.HasPrefix(pe.Message, "Invalid "):
		m.msg = strings.ToLower(pe.Message[:1]) + pe.Message[1:]
	case value && word == "":
		m.off, m.msg = start, "a value is missing here"
		if left == ',' {
			m.msg = "one comma too many, or a value is missing here"
		}
	case value && !strings.ContainsAny(word, "\"'[]{}="):
		m.off, m.msg = start, fmt.Sprintf("%s is not a value that TOML knows", word)
		m.hint = fmt.Sprintf("put it in quotes: %q", word)
		switch strings.ToLower(word) {
		case "true", "yes", "on":
			m.hint = "write true"
		case "false", "no", "off":
			m.hint = "write false"
		}
	case has("array terminator"):
		m.msg, m.hint = "a comma or ] is missing", "separate the values with commas and close the list with ]"
	case has("inline table terminator"):
		m.msg, m.hint = "a comma or } is missing", "separate the keys with commas and close the table with }"
	case has("to end with a newline"):
		m.msg, m.hint = "something stands behind the value or header", "write one key to a line, and comments behind #"
	default:
		m.msg = pe.Message
	}
	r.add(m)
}

// at is the character at off, empty at the end.
func (x *index) at(off int) string {
	_, n := utf8.DecodeRuneInString(x.text[off:])
	return x.text[off : off+n]
}

// word is what stands around off between the signs that separate values in a
// line, and the sign in front of it: "10 mbit" and '=' in `rate = 10 mbit`.
func (x *index) word(off int) (word string, start int, left byte) {
	_, first, last := x.line(off)
	off = min(off, last)
	start = first
	if i := strings.LastIndexAny(x.text[first:off], "=,[{"); i >= 0 {
		start = first + i + 1
		left = x.text[start-1]
	}
	end := last
	if i := strings.IndexAny(x.text[off:last], ",]}#"); i >= 0 {
		end = off + i
	}
	word = x.text[start:end]
	start += len(word) - len(strings.TrimLeft(word, " \t"))
	return strings.Trim(word, " \t"), min(start, end), left
}

// duplicate describes the entry at off as what an earlier one forbids.
func (x *index) duplicate(off int) mistake {
	// The decoder's position of a quoted key is behind the quote.
	i := slices.IndexFunc(x.entries, func(e entry) bool { return int(e.key) == off || int(e.key) == off-1 })
	if i < 0 {
		return mistake{off: off, msg: "this is defined already"}
	}
	path := x.path(i)
	m := mistake{off: int(x.entries[i].key)}
	// The earlier entry is the same, or one with a value in the way.
	first, same := -1, 0
	for j := range i {
		p := x.path(j)
		n := len(p)
		if n > same && n <= len(path) && slices.Equal(p, path[:n]) && (n == len(path) || x.entries[j].val >= 0) {
			first, same = j, n
		}
	}
	if first < 0 {
		m.msg = fmt.Sprintf("%s is defined already", path)
		return m
	}
	line, _, _ := x.line(int(x.entries[first].key))
	switch {
	case same < len(path):
		m.msg = fmt.Sprintf("%s already has a value, in line %d, and cannot be a table too", path[:same], line)
		m.hint = "keep one of the two"
	case x.entries[i].val < 0 && x.entries[first].val < 0:
		m.msg = fmt.Sprintf("[%s] stands here for the second time; the first is in line %d", path, line)
		m.hint = "put the keys of both below one header"
	default:
		m.msg = fmt.Sprintf("%s is written twice; the first is in line %d", path[same-1], line)
		m.hint = "keep one of the two"
	}
	return m
}
