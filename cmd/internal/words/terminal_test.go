package words

import (
	"strings"
	"testing"
)

func TestTerminal(t *testing.T) {
	for in, want := range map[string]string{
		"":                          "",
		"plain text\tand\nlines":    "plain text\tand\nlines",
		"größer 世界 é":               "größer 世界 é",
		"\x1b]0;title\a":            `\u001b]0;title\u0007`,
		"\u009b31m":                 `\u009b31m`,
		"over\rwritten\x7f":         `over\u000dwritten\u007f`,
		"right\u202eto\u2066left":   `right\u202eto\u2066left`,
		"\ufffd stays, \x9b31m not": "\ufffd stays, " + `\x9b31m not`,
		"tag\U000e0041":             `tag\udb40\udc41`,
		"two\u2028lines":            `two\u2028lines`,
	} {
		// However it comes in pieces.
		for cut := range len(in) + 1 {
			var out strings.Builder
			w := NewTerminal(&out)
			for _, part := range []string{in[:cut], in[cut:]} {
				if n, err := w.Write([]byte(part)); n != len(part) || err != nil {
					t.Fatalf("%q: %d, %v", part, n, err)
				}
			}
			if got := out.String(); got != want {
				t.Errorf("%q, cut at %d: %s, want %s", in, cut, got, want)
			}
		}
	}
}
