package policy

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/BurntSushi/toml"
)

// maxNesting bounds tables, dotted keys and lists below each other. The decoder
// recurses into lists without a limit of its own, so the bound must hold before
// it sees the text.
const maxNesting = 32

// index says where every key of a TOML document and its value stand. The
// decoder gives positions for syntax errors only.
//
// Its entries are in the order of toml.MetaData.Keys, one for one. That is what
// ties a position to a key without a look-up, and what [index.agrees] checks.
// The scanner accepts more than TOML does: what is wrong with a document is for
// the decoder to say.
type index struct {
	text    string
	entries []entry
	stop    int      // offset where the scanner could not go on, or -1
	deep    bool     // it stopped because of maxNesting
	sources []source // the files of the text, where it is of several
	lines   []int    // offsets of line starts, made when first needed
}

// entry is a table header or a key with a value. Offsets are in bytes.
type entry struct {
	key    int32 // first byte of the (dotted) key
	last   int32 // first byte of the key's last part
	val    int32 // first byte of the value; -1 for a header
	parent int32 // entry whose table holds the key; -1 for none
}

func scan(text string) *index {
	s := scanner{index: &index{text: text, stop: -1}, header: -1}
	// A short line is about 20 bytes; guessing low costs a copy, guessing high
	// memory.
	s.entries = make([]entry, 0, len(text)/20+8)
	s.document()
	return s.index
}

type scanner struct {
	*index
	pos         int
	header      int32 // entry of the header in force, -1 before the first
	headerDepth int
}

// fail records where the scanner stopped and returns false.
func (s *scanner) fail(off int) bool {
	if s.stop < 0 {
		s.stop = off
	}
	return false
}

func (s *scanner) document() {
	for {
		s.space(true)
		if s.pos == len(s.text) {
			return
		}
		ok := false
		if s.text[s.pos] == '[' {
			ok = s.table()
		} else {
			ok = s.pair(s.header, s.headerDepth)
		}
		if !ok || !s.lineEnd() {
			return
		}
	}
}

// space skips blanks and, if lines is set, comments and line ends too.
func (s *scanner) space(lines bool) {
	for s.pos < len(s.text) {
		switch c := s.text[s.pos]; {
		case c == ' ' || c == '\t':
			s.pos++
		case lines && (c == '\n' || c == '\r'):
			s.pos++
		case lines && c == '#':
			s.comment()
		default:
			return
		}
	}
}

func (s *scanner) comment() {
	if n := strings.IndexByte(s.text[s.pos:], '\n'); n >= 0 {
		s.pos += n
	} else {
		s.pos = len(s.text)
	}
}

// lineEnd expects nothing more in this line but a comment.
func (s *scanner) lineEnd() bool {
	s.space(false)
	if s.pos == len(s.text) {
		return true
	}
	switch s.text[s.pos] {
	case '#', '\n', '\r':
		return true
	}
	return s.fail(s.pos)
}

// accept skips c if it stands at the current position.
func (s *scanner) accept(c byte) bool {
	if s.pos < len(s.text) && s.text[s.pos] == c {
		s.pos++
		return true
	}
	return false
}

// table reads a header.
func (s *scanner) table() bool {
	s.pos++
	array := s.accept('[')
	s.space(false)
	start := s.pos
	depth, last, ok := s.key()
	if !ok {
		return false
	}
	if depth > maxNesting {
		s.deep = true
		return s.fail(start)
	}
	if !s.accept(']') || array && !s.accept(']') {
		return s.fail(s.pos)
	}
	s.header, s.headerDepth = int32(len(s.entries)), depth
	s.entries = append(s.entries, entry{int32(start), int32(last), -1, -1})
	return true
}

// pair reads a key and its value. depth is the nesting of the table around it.
func (s *scanner) pair(parent int32, depth int) bool {
	start := s.pos
	n, last, ok := s.key()
	if !ok {
		return false
	}
	if depth += n; depth > maxNesting {
		s.deep = true
		return s.fail(start)
	}
	if !s.accept('=') {
		return s.fail(s.pos)
	}
	s.space(false)
	e := int32(len(s.entries))
	s.entries = append(s.entries, entry{int32(start), int32(last), int32(s.pos), parent})
	return s.value(e, depth)
}

// key reads a key of one or more parts and the blanks behind it. It returns the
// number of parts and the offset of the last.
func (s *scanner) key() (parts, last int, ok bool) {
	for {
		last = s.pos
		if _, ok := s.part(); !ok {
			return 0, 0, s.fail(s.pos)
		}
		parts++
		s.space(false)
		if !s.accept('.') {
			return parts, last, true
		}
		s.space(false)
	}
}

// part reads one part of a key and returns its text, quotes included.
func (s *scanner) part() (raw string, ok bool) {
	start := s.pos
	if s.pos < len(s.text) && (s.text[s.pos] == '"' || s.text[s.pos] == '\'') {
		ok = s.quoted(s.text[s.pos])
		return s.text[start:s.pos], ok
	}
	for s.pos < len(s.text) && bareKeyChar(s.text[s.pos]) {
		s.pos++
	}
	return s.text[start:s.pos], s.pos > start
}

func bareKeyChar(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-'
}

// value reads any value. e is the entry that it belongs to.
func (s *scanner) value(e int32, depth int) bool {
	if s.pos == len(s.text) {
		return s.fail(s.pos)
	}
	switch c := s.text[s.pos]; c {
	case '"', '\'':
		if q := s.text[s.pos : s.pos+1]; strings.HasPrefix(s.text[s.pos:], q+q+q) {
			return s.multiline(c)
		}
		return s.quoted(c)
	case '[':
		return s.list(e, depth, nil)
	case '{':
		return s.inline(e, depth)
	}
	n := strings.IndexAny(s.text[s.pos:], ",]}#\r\n")
	if n < 0 {
		n = len(s.text) - s.pos
	}
	word := strings.TrimRight(s.text[s.pos:s.pos+n], " \t")
	if word == "" {
		return s.fail(s.pos)
	}
	s.pos += len(word)
	return true
}

// quoted reads a string of one line.
func (s *scanner) quoted(quote byte) bool {
	start := s.pos
	for s.pos++; s.pos < len(s.text); s.pos++ {
		switch c := s.text[s.pos]; {
		case c == quote:
			s.pos++
			return true
		case c == '\n':
			return s.fail(start)
		case c == '\\' && quote == '"' && s.pos+1 < len(s.text) && s.text[s.pos+1] != '\n':
			s.pos++
		}
	}
	return s.fail(start)
}

// multiline reads a string between triple quotes. Up to two quotes may stand
// directly in front of the closing three, so a run of quotes ends the string
// where the run ends.
func (s *scanner) multiline(quote byte) bool {
	start := s.pos
	for s.pos += 3; s.pos < len(s.text); s.pos++ {
		switch c := s.text[s.pos]; {
		case c == quote:
			run := 1
			for s.pos+run < len(s.text) && s.text[s.pos+run] == quote {
				run++
			}
			if run >= 3 {
				s.pos += run
				return true
			}
			s.pos += run - 1
		case c == '\\' && quote == '"':
			s.pos++
		}
	}
	s.pos = len(s.text)
	return s.fail(start)
}

// list reads an array. If at is not nil it gets the offset of every element.
func (s *scanner) list(e int32, depth int, at *[]int) bool {
	return s.sequence(']', depth, func(depth int) bool {
		if at != nil {
			*at = append(*at, s.pos)
		}
		return s.value(e, depth)
	})
}

// inline reads an inline table.
func (s *scanner) inline(e int32, depth int) bool {
	return s.sequence('}', depth, func(depth int) bool { return s.pair(e, depth) })
}

// sequence reads elements with commas between them, up to the bracket that closes.
func (s *scanner) sequence(closing byte, depth int, element func(depth int) bool) bool {
	if depth++; depth > maxNesting {
		s.deep = true
		return s.fail(s.pos)
	}
	s.pos++
	for {
		s.space(true)
		if s.accept(closing) {
			return true
		}
		if !element(depth) {
			return false
		}
		s.space(true)
		if s.accept(closing) {
			return true
		}
		if !s.accept(',') {
			return s.fail(s.pos)
		}
	}
}

// agrees says whether the entries are those of the decoder's keys: the same
// number, and the same last part of each.
func (x *index) agrees(keys []toml.Key) bool {
	if x.stop >= 0 || len(keys) != len(x.entries) {
		return false
	}
	for i, k := range keys {
		s := scanner{index: x, pos: int(x.entries[i].last)}
		raw, _ := s.part()
		// Escapes are rare and dear to decode; the tests compare those.
		if last := k[len(k)-1]; raw != last && !strings.Contains(raw, `\`) && unquote(raw) != last {
			return false
		}
	}
	return true
}

// part is the offset and the text, quotes included, of part d of the key of
// entry i, where the whole path of the entry, its tables included, has n parts.
// A part that another entry holds gives that entry's.
func (x *index) part(i, d, n int) (off int, raw string) {
	s := scanner{index: &index{text: x.text, stop: -1}}
	s.pos = int(x.entries[i].key)
	parts, _, _ := s.key()
	if own := n - parts; d < own {
		return x.part(int(x.entries[i].parent), d, own)
	} else {
		d -= own
	}
	s.pos = int(x.entries[i].key)
	for {
		off = s.pos
		raw, _ = s.part()
		if d == 0 {
			return off, raw
		}
		d--
		s.space(false)
		s.accept('.')
		s.space(false)
	}
}

// path is the full path of entry i.
func (x *index) path(i int) toml.Key {
	var k toml.Key
	if p := x.entries[i].parent; p >= 0 {
		k = x.path(int(p))
	}
	s := scanner{index: &index{text: x.text, stop: -1}}
	s.pos = int(x.entries[i].key)
	for {
		raw, ok := s.part()
		if !ok {
			return k
		}
		k = append(k, unquote(raw))
		s.space(false)
		if !s.accept('.') {
			return k
		}
		s.space(false)
	}
}

// unquote is the name that one part of a key stands for.
func unquote(raw string) string {
	switch {
	case raw == "" || raw[0] != '"' && raw[0] != '\'':
		return raw
	case raw[0] == '\'' || !strings.Contains(raw, `\`):
		return raw[1 : len(raw)-1]
	}
	var v struct{ S string }
	if _, err := toml.Decode("S = "+raw, &v); err != nil {
		return raw
	}
	return v.S
}

// value is the source text of the value at off.
func (x *index) value(off int) string {
	s := scanner{index: &index{text: x.text, stop: -1}, pos: off}
	s.value(-1, 0)
	return x.text[off:s.pos]
}

// elements are the offsets of the elements of the list at off, or nothing when
// no list stands there.
func (x *index) elements(off int) []int {
	s := scanner{index: &index{text: x.text, stop: -1}, pos: off}
	if off >= len(x.text) || x.text[off] != '[' {
		return nil
	}
	var at []int
	s.list(-1, 0, &at)
	return at
}

// line is the number of the line that off is in, from 1, and its first and last
// byte without the line end.
func (x *index) line(off int) (n, start, end int) {
	if x.lines == nil {
		x.lines = append(x.lines, 0)
		for i := 0; i < len(x.text); i++ {
			j := strings.IndexByte(x.text[i:], '\n')
			if j < 0 {
				break
			}
			i += j
			x.lines = append(x.lines, i+1)
		}
	}
	n, found := slices.BinarySearch(x.lines, off)
	if found {
		n++
	}
	start, end = x.lines[n-1], len(x.text)
	if n < len(x.lines) {
		end = x.lines[n] - 1
	}
	if end > start && x.text[end-1] == '\r' {
		end--
	}
	return n, start, end
}

// column is the number of the character at off in a line that begins at start,
// from 1.
func (x *index) column(start, off int) int {
	return utf8.RuneCountInString(x.text[start:off]) + 1
}
