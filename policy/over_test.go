package policy_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vifshape/vifshape/policy"
)

// TestOver holds what policies come to with files laid over them, and where mistakes are said to
// be.
func TestOver(t *testing.T) {
	files, err := filepath.Glob("testdata/over/*.txtar")
	if err != nil || len(files) == 0 {
		t.Fatalf("no files in testdata/over: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			last := len(a.Files) - 1
			var over []policy.Text
			for _, f := range a.Files[1:last] {
				over = append(over, policy.Text{Name: f.Name, Reader: bytes.NewReader(f.Data)})
			}
			p, err := policy.Parse("policy.toml", bytes.NewReader(a.Files[0].Data), leaves(), over...)
			got := ""
			var errs policy.Errors
			if errors.As(err, &errs) {
				got = errs.Render()
			} else if err != nil {
				t.Fatal(err)
			} else {
				got = describe(p)
				writtenDown(t, p)
				formatted(t, p)
			}
			if *update {
				a.Files[last].Data = []byte(got)
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if diff := cmp.Diff(string(a.Files[last].Data), got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestOverItself: a policy that is laid over nothing, or over itself, says what it says, and
// each mistake of two files is in one of them.
func TestOverItself(t *testing.T) {
	var texts []string
	for _, glob := range []string{"testdata/ok/*.toml", "testdata/err/*.txtar"} {
		files, err := filepath.Glob(glob)
		if err != nil || len(files) == 0 {
			t.Fatalf("no files %s: %v", glob, err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if filepath.Ext(file) == ".txtar" {
				data = txtar.Parse(data).Files[0].Data
			}
			texts = append(texts, string(data))
		}
	}
	parse := func(text string, over ...string) (*policy.Policy, error) {
		var all []policy.Text
		for _, o := range over {
			all = append(all, policy.Text{Name: "over", Reader: strings.NewReader(o)})
		}
		return policy.Parse("policy", strings.NewReader(text), leaves(), all...)
	}
	for i, text := range texts {
		want, err := parse(text)
		for _, under := range []string{"", text} {
			got, oerr := parse(under, text)
			switch {
			case (err == nil) != (oerr == nil):
				t.Errorf("%s\nover %d bytes: %v, alone: %v", text, len(under), oerr, err)
			case err == nil && (!reflect.DeepEqual(got.Specs, want.Specs) || got.Binding != want.Binding || len(got.Warnings) != len(want.Warnings)):
				t.Errorf("%s\nover %d bytes is another policy", text, len(under))
			}
		}
		for _, other := range texts[i%7 : min(i%7+40, len(texts))] {
			_, err := parse(text, other, texts[0])
			var errs policy.Errors
			if !errors.As(err, &errs) {
				continue
			}
			for _, e := range errs {
				of := map[string][]string{"policy": {text}, "over": {other, texts[0]}}[e.File]
				if !slices.ContainsFunc(of, func(s string) bool {
					lines := strings.Split(strings.TrimPrefix(s, "\ufeff"), "\n")
					return e.Line >= 1 && e.Line <= len(lines) && strings.TrimSuffix(lines[e.Line-1], "\r") == e.Source
				}) {
					t.Fatalf("%s\nunder\n%s\n%v: %q is not there", text, other, e, e.Source)
				}
			}
		}
	}
}

// TestOverAlone: whoever has a file checked that is laid over another is told of which.
func TestOverAlone(t *testing.T) {
	_, err := policy.Parse("fleet.toml.d/node.toml", strings.NewReader("[interface.eth0]\nrate = \"50mbit\"\n"), leaves())
	var errs policy.Errors
	if !errors.As(err, &errs) || len(errs) != 1 || errs[0].Hint != "what lies there is laid over fleet.toml and needs none: check that file" {
		t.Errorf("%v", err)
	}
}
