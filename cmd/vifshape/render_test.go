package main

import "testing"

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
		if got := printable(s); got != want {
			t.Errorf("printable(%q) = %s, want %s", s, got, want)
		}
	}
}

// TestDeeper: of the targets that hold a process the classifier takes the deepest
// cgroup, and a user after all of them.
func TestDeeper(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want bool
	}{
		{"cgroup:/a/b", "cgroup:/a", true},
		{"cgroup:/a", "cgroup:/a/b", false},
		{"cgroup:/a", "", true},
		{"uid:1000", "", true},
		{"uid:1000", "cgroup:/", false},
		{"cgroup:/", "uid:1000", true},
	} {
		if got := deeper(c.a, c.b); got != c.want {
			t.Errorf("deeper(%q, %q) = %v", c.a, c.b, got)
		}
	}
}
