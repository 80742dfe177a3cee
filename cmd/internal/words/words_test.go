package words

import (
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
)

// TestPrintable: what other people name does nothing to a terminal.
func TestPrintable(t *testing.T) {
	for s, want := range map[string]string{
		"":                   "",
		"nginx: worker":      "nginx: worker",
		"größer":             "größer",
		`a "b"`:              `a "b"`,
		"\x1b]0;title\a":     `"\x1b]0;title\a"`,
		"two\nlines":         `"two\nlines"`,
		"\xff":               `"\xff"`,
		"right\u202eto left": `"right\u202eto left"`,
	} {
		if got := Printable(s); got != want {
			t.Errorf("printable(%q) = %s, want %s", s, got, want)
		}
	}
}

func TestList(t *testing.T) {
	for want, all := range map[string][]hierarchy.Bandwidth{"-": nil, "1mbit": {hierarchy.Mbit}, "1mbit, 2kbit": {hierarchy.Mbit, 2 * hierarchy.Kbit}} {
		if got := List(all); got != want {
			t.Errorf("%v is listed as %q, not %q", all, got, want)
		}
	}
}
