package policy

import (
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"github.com/vifshape/vifshape/hierarchy"
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
	if x.stop == len(x.text) {
		off = x.stop // the decoder points at the last character then
	}
	has := func(s string) bool { return strings.Contains(pe.Message, s) }
	m := mistake{off: off}
	word, start, left := x.word(off)
	value := left == '=' || left == ',' || left == '[' || left == 0 && has("expected value")
	c := x.at(off)
	switch {
	case has("already been defined") || has("already created") || has("is not a table"):
		m = x.duplicate(off)
	case x.stop >= 0 && x.stop < len(x.text) && (x.text[x.stop] == '"' || x.text[x.stop] == '\'') && (has("strings cannot contain newlines") || has("unexpected EOF; expected")):
		m.off, m.msg, m.hint = x.stop, "the string has no closing quote", "close it with the quote that it begins with"
	case has("invalid escape") || has(`after '\`):
		m.msg, m.hint = "this is no escape that TOML knows in a string", `write \\ for a backslash, or put the string in single quotes`
	case has("table names cannot be empty"):
		m.msg, m.hint = "the header has an empty name", "write [interface.eth0], names separated by single dots"
	case has("table array name") || has("table name") && strings.Trim(c, " \t\r\n#") == "":
		m.msg, m.hint = "the header is not closed", "close [ with ], and [[ with ]]"
	case has("table name") && off > 0 && strings.ContainsRune(" \t", rune(x.text[off-1])):
		m.msg, m.hint = "a header has no space between names", "write a dot there, as in [interface.eth0]"
	case has("table name"):
		m.msg, m.hint = fmt.Sprintf("%q cannot stand in a header like this", c), `put the name that holds it in quotes: [interface.eth0."a+b"]`
	case has("expected '.' or '='") || has("expected key separator"):
		m.msg, m.hint = x.noEquals(off, c), `write key = value, for example rate = "10mbit"`
	case x.stop == len(x.text) && (left != '=' || word != ""):
		m = x.open()
	case has("key name appears blank"):
		m.msg = `no key stands in front of "="`
	case has("expected value") && c == "=":
		m.msg = `one "=" too many`
	case has("out of range"):
		m.off, m.msg = start, word+" is too large"
	case strings.HasPrefix(pe.Message, "Invalid ") && !has("float value"): // that is an address
		m.msg = lower(pe.Message)
	case value && word == "":
		m.off, m.msg = start, "a value is missing here"
		if left == ',' {
			m.msg = "one comma too many, or a value is missing here"
		}
	case value && !strings.ContainsAny(word, "\"'[]{}="):
		m.off, m.msg = start, fmt.Sprintf("%s is not a value that TOML knows", word)
		m.hint = fmt.Sprintf("put it in quotes: %q", word)
		const curly = "“”„‘’"
		switch w := strings.ToLower(word); {
		case w == "true" || w == "yes" || w == "on":
			m.hint = "write true"
		case w == "false" || w == "no" || w == "off":
			m.hint = "write false"
		case strings.ContainsAny(word, curly):
			m.hint = fmt.Sprintf("use plain quotes: %q", strings.Trim(word, curly))
		}
	case has("array terminator"):
		m.msg, m.hint = "a comma or ] is missing", "separate the values with commas and close the list with ]"
	case has("inline table terminator"):
		m.msg, m.hint = "a comma or } is missing", "separate the keys with commas and close the table with }"
	case has("to end with a newline"):
		m.msg, m.hint = "something stands behind the value or header", "write one key to a line, and comments behind #"
	default:
		m.msg = lower(strings.TrimSuffix(pe.Message, "."))
	}
	r.add(m)
}

// headed says whether a line of a text may be the header of a table.
func headed(text string) bool {
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimLeft(line, " \t"), "[") {
			return true
		}
	}
	return false
}

// others reports what is wrong by itself in the part of the file that is TOML: what
// the line with the mistake says is left out, and all behind it where that is a header,
// opens a string of several lines, or has no sense without it.
func (r *report) others(kinds []hierarchy.Kind) {
	x := r.index
	off := r.found[len(r.found)-1].off
	_, start, end := x.line(off)
	// A list or string may have begun in a line before.
	for _, e := range slices.Backward(x.entries) {
		top := e.parent < 0 || x.entries[e.parent].val < 0
		if int(e.key) > off || !top {
			continue
		}
		if _, first, last := x.line(int(e.key)); e.val >= 0 && int(e.val)+len(x.value(int(e.val))) > last && first < start {
			start = first
		}
		break
	}
	before, line := x.text[:start], x.text[start:end]
	texts := []string{before}
	if triple := line[min(off-start, len(line)):]; !headed(line) && !strings.HasPrefix(triple, `"""`) && !strings.HasPrefix(triple, "'''") {
		texts = []string{before + strings.Repeat(" ", len(line)) + x.text[end:], before}
	}
	defer func() { r.index = x }()
	for _, text := range texts {
		r.index = scan(text)
		if r.index.stop >= 0 {
			continue
		}
		doc, keys, err := decode(text, -1)
		if err != nil || !r.index.agrees(keys) {
			continue
		}
		rd := reader{report: r, keys: keys, kinds: kinds, policy: &Policy{}, partly: true}
		rd.read(doc)
		return
	}
}

// lower is s with its first letter in lower case.
func lower(s string) string { return strings.ToLower(s[:1]) + s[1:] }

// open describes the list or table that is open at the end of the file.
func (x *index) open() mistake {
	e := entry{val: -1}
	for i := int32(len(x.entries)) - 1; i >= 0 && x.entries[i].val >= 0; i = e.parent {
		e = x.entries[i]
	}
	switch {
	case e.val >= 0 && x.at(int(e.val)) == "[":
		return mistake{off: int(e.val), msg: "the list has no end", hint: "close it with ]"}
	case e.val >= 0 && x.at(int(e.val)) == "{":
		return mistake{off: int(e.val), msg: "the table has no end", hint: "close it with }"}
	}
	return mistake{off: x.stop, msg: "the file ends too early"}
}

// noEquals says what is wrong with the character c at off, where a key should
// have gone on or ended.
func (x *index) noEquals(off int, c string) string {
	_, first, _ := x.line(off)
	switch {
	case strings.Trim(c, "\r\n") == "":
		return "= and a value are missing"
	case strings.Trim(x.text[first:off], " \t") == "":
		return fmt.Sprintf("%q cannot begin a key", c)
	case c == ":":
		return `":" stands where "=" belongs`
	case bareKeyChar(x.text[off-1]) && !strings.Contains(`"'`, c):
		return fmt.Sprintf("%q cannot stand in a key like this", c)
	}
	return fmt.Sprintf("= is missing in front of %q", c)
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
