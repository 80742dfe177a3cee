package policy_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vifshape/vifshape/policy"
)

// FuzzParse: a policy or an error, never both or neither; every place lies in
// the file, and nothing that is printed can command a terminal.
func FuzzParse(f *testing.F) {
	for _, glob := range []string{"testdata/ok/*.toml", "../examples/*.toml", "testdata/err/*.txtar"} {
		files, err := filepath.Glob(glob)
		if err != nil || len(files) == 0 {
			f.Fatalf("no files %s: %v", glob, err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				f.Fatal(err)
			}
			if filepath.Ext(file) == ".txtar" {
				data = txtar.Parse(data).Files[0].Data
			}
			f.Add(string(data))
		}
	}
	f.Fuzz(func(t *testing.T, text string) {
		p, err := policy.Parse("p", strings.NewReader(text), leaves())
		if (p == nil) == (err == nil) {
			t.Fatalf("policy %v and error %v", p, err)
		}
		var errs policy.Errors
		switch {
		case errors.As(err, &errs):
			if len(errs) == 0 {
				t.Fatal("an error without a mistake")
			}
			if !func() bool {
				for _, e := range errs {
					if !e.Warning {
						return true
					}
				}
				return false
			}() {
				t.Fatal("warnings alone are no error")
			}
		case err != nil:
			t.Fatal(err)
		default:
			if len(p.Trees) == 0 || p.Binding == "" {
				t.Fatalf("half a policy: %+v", p)
			}
			for i, tree := range p.Trees {
				if tree == nil || (tree.Ingress == nil) != (p.Specs[i].Ingress == nil) {
					t.Fatal("no tree")
				}
			}
			writtenDown(t, p)
			formatted(t, p)
			errs = p.Warnings
		}
		lines := strings.Split(strings.TrimPrefix(text, "\ufeff"), "\n")
		for _, e := range errs {
			if e.Line < 1 || e.Line > len(lines) {
				t.Fatalf("%v: the file has %d lines", e, len(lines))
			}
			line := strings.TrimSuffix(lines[e.Line-1], "\r")
			if e.Source != line && e.Source != lines[e.Line-1] {
				t.Fatalf("%v: source %q, but the line is %q", e, e.Source, line)
			}
			if e.Column < 1 || e.Column > utf8.RuneCountInString(lines[e.Line-1])+1 {
				t.Fatalf("%v: the line has %d characters", e, utf8.RuneCountInString(line))
			}
			if e.Msg == "" || strings.Contains(e.Msg, "\n") {
				t.Fatalf("message %q", e.Msg)
			}
		}
		bad := func(c rune) bool { return c != '\n' && c != '\t' && !unicode.IsPrint(c) }
		if s := errs.Render(); strings.ContainsFunc(s, bad) {
			t.Fatalf("unprintable: %q", s)
		}
	})
}
