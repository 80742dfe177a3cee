package topview

import (
	"strings"

	"github.com/clipperhouse/displaywidth"
)

// Style is what a terminal takes. The zero value is text alone.
type Style struct {
	Terminal bool // bold and reverse letters
	Colour   bool
	ASCII    bool // bars have no other letters
}

// What of ECMA-48 terminals take, section 8.3.117. Colours are of the first eight, which
// everybody has set as his eyes want them.
const (
	plain   = "\x1b[m"
	bold    = "\x1b[1m"
	reverse = "\x1b[7m"
	red     = "\x1b[31m"
	green   = "\x1b[32m"
	yellow  = "\x1b[33m"
	cyan    = "\x1b[36m"
)

// in is a text with what makes it look so.
func (s Style) in(look, text string) string {
	colour := strings.HasPrefix(look, "\x1b[3")
	if look == "" || !s.Terminal || colour && !s.Colour {
		return text
	}
	return look + text + plain
}

// bar is a share of the width, as much as it can tell: eighths of a letter, or whole ones.
func (s Style) bar(share float64, width int) string {
	share = max(0, min(1, share))
	if s.ASCII {
		n := int(share*float64(width) + 0.5)
		if n == 0 && share > 0.01 {
			n = 1
		}
		return strings.Repeat("#", n) + strings.Repeat(".", width-n)
	}
	n := int(share*float64(width*8) + 0.5)
	b := strings.Repeat("█", n/8)
	if n%8 > 0 {
		b += string([]rune("▏▎▍▌▋▊▉")[n%8-1])
	}
	return b + strings.Repeat("·", width-(n+7)/8)
}

// fit is a text in a width: what does not fit is left out at its end, and a sign says so.
func fit(text string, width int) string {
	if displaywidth.String(text) > width {
		text = displaywidth.TruncateString(text, max(0, width), "~"[:min(1, max(0, width))])
	}
	return text + strings.Repeat(" ", max(0, width-displaywidth.String(text)))
}

// fitEnd is one of which the end is read rather than the beginning.
func fitEnd(text string, width int) string {
	over := displaywidth.String(text) - width
	if over <= 0 || width < 1 {
		return fit(text, width)
	}
	over++ // for the sign
	for g := displaywidth.StringGraphemes(text); over > 0 && g.Next(); {
		over -= g.Width()
		text = text[len(g.Value()):]
	}
	return fit("~"+text, width)
}

// right is a text at the right end of a width.
func right(text string, width int) string {
	return strings.Repeat(" ", max(0, width-displaywidth.String(text))) + fit(text, min(width, displaywidth.String(text)))
}
