package words

import (
	"fmt"
	"io"
	"strconv"
	"unicode/utf16"
	"unicode/utf8"
)

// Terminal is where all words of the program go: names of processes, cgroups, users,
// files and interfaces (dev_valid_name, net/core/dev.c, v6.12) are other people's to
// choose, and none of them reaches a terminal that would obey it. [printable] is for
// names in the middle of text, which may not begin a line of their own either.
//
// It remembers the first error: results that did not arrive are none, whoever of those
// who printed them looked at the error.
type Terminal struct {
	w    io.Writer
	err  error
	left []byte // the beginning of a character
}

// NewTerminal is one that writes to w.
func NewTerminal(w io.Writer) *Terminal { return &Terminal{w: w} }

// Err is the first error of writing.
func (t *Terminal) Err() error { return t.err }

// Write writes what is printable as it is, and the rest as JSON does, of which it stays
// a valid text.
func (t *Terminal) Write(b []byte) (int, error) {
	if t.left == nil && plain(b) {
		_, err := t.w.Write(b)
		t.keep(err)
		return len(b), err
	}
	text, out := append(t.left, b...), []byte(nil)
	t.left = nil
	for len(text) > 0 {
		if !utf8.FullRune(text) {
			t.left = append(t.left, text...)
			break
		}
		c, n := utf8.DecodeRune(text)
		switch {
		case c == '\n' || c == '\t' || strconv.IsPrint(c) && (c != utf8.RuneError || n > 1):
			out = append(out, text[:n]...)
		case c == utf8.RuneError && n == 1:
			out = fmt.Appendf(out, `\x%02x`, text[0])
		case c > 0xffff:
			high, low := utf16.EncodeRune(c)
			out = fmt.Appendf(out, `\u%04x\u%04x`, high, low)
		default:
			out = fmt.Appendf(out, `\u%04x`, c)
		}
		text = text[n:]
	}
	_, err := t.w.Write(out)
	t.keep(err)
	return len(b), err
}

func (t *Terminal) keep(err error) {
	if t.err == nil {
		t.err = err
	}
}

// plain says whether b is what most text is.
func plain(b []byte) bool {
	for _, c := range b {
		if (c < ' ' || c > '~') && c != '\n' && c != '\t' {
			return false
		}
	}
	return true
}
