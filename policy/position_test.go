package policy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/BurntSushi/toml"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/rogpeppe/go-internal/txtar"
)

func TestPositions(t *testing.T) {
	type place struct {
		Path        string
		Line, Col   int // of the key's last part
		VLine, VCol int // of the value; 0 for a header
	}
	tests := []struct {
		name, text string
		want       []place
	}{
		{"empty", "", nil},
		{"comment alone", "# a = 1", nil},
		{"keys", "a = 1\nb=2", []place{{"a", 1, 1, 1, 5}, {"b", 2, 1, 2, 3}}},
		{"blanks", "\ta\t=\t1 # b = 2\n", []place{{"a", 1, 2, 1, 6}}},
		{"CRLF", "a = 1\r\nb = 2\r\n", []place{{"a", 1, 1, 1, 5}, {"b", 2, 1, 2, 5}}},
		{"header", "[ a . b ] # x\nc = 1", []place{{"a.b", 1, 7, 0, 0}, {"a.b.c", 2, 1, 2, 5}}},
		{"list header", "[[a.b]]\nc = 1", []place{{"a.b", 1, 5, 0, 0}, {"a.b.c", 2, 1, 2, 5}}},
		{"dotted", "a . b.c = 1", []place{{"a.b.c", 1, 7, 1, 11}}},
		{"dotted below a header", "[x]\na.b = 1", []place{{"x", 1, 2, 0, 0}, {"x.a.b", 2, 3, 2, 7}}},
		{"quoted", `"a.b".'c"' = 1`, []place{{`"a.b"."c\""`, 1, 7, 1, 14}}},
		{"escapes", `"\u0061\"]" = "\\"`, []place{{`"a\"]"`, 1, 1, 1, 15}}},
		{"characters", `"äö" = "ü"  # é`, []place{{`"äö"`, 1, 1, 1, 8}}},
		{"inline", "a = { b = 1, c.d = { e = 2 } }", []place{
			{"a", 1, 1, 1, 5}, {"a.b", 1, 7, 1, 11}, {"a.c.d", 1, 16, 1, 20}, {"a.c.d.e", 1, 22, 1, 26}}},
		{"inline over lines", "a = {\n b = 1, # c = 2\n d = 3,\n}", []place{
			{"a", 1, 1, 1, 5}, {"a.b", 2, 2, 2, 6}, {"a.d", 3, 2, 3, 6}}},
		{"tables in a list", "a = [{b = 1}, {b = 2}]", []place{
			{"a", 1, 1, 1, 5}, {"a.b", 1, 7, 1, 11}, {"a.b", 1, 16, 1, 20}}},
		{"list over lines", "a = [\n 1, # ]\n \"]\", ']' ,\n]\nb = 2", []place{{"a", 1, 1, 1, 5}, {"b", 5, 1, 5, 5}}},
		{"long string", "a = \"\"\"\nb = 1 \\\"\"\"\\\"\"\"\"\"\nc = '''\n\"\"\"''''\nd = 1", []place{
			{"a", 1, 1, 1, 5}, {"c", 3, 1, 3, 5}, {"d", 5, 1, 5, 5}}},
		{"date", "a = 2026-01-31 10:00:00Z # x\nb = [10:00, 11:00]", []place{{"a", 1, 1, 1, 5}, {"b", 2, 1, 2, 5}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var v any
			md, err := toml.Decode(tt.text, &v)
			if err != nil {
				t.Fatal(err)
			}
			x := scan(tt.text)
			if !x.agrees(md.Keys()) {
				t.Fatalf("stopped at %d with %d entries; the decoder has the keys %v", x.stop, len(x.entries), md.Keys())
			}
			var got []place
			for i, e := range x.entries {
				path := x.path(i)
				off, _ := x.part(i, len(path)-1, len(path))
				p := place{Path: path.String()}
				var start int
				p.Line, start, _ = x.line(off)
				p.Col = x.column(start, off)
				if e.val >= 0 {
					p.VLine, start, _ = x.line(int(e.val))
					p.VCol = x.column(start, int(e.val))
				}
				got = append(got, p)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestElements(t *testing.T) {
	const text = "a = [ 1,\n [2, 3], # 4\n \"5, 6\", { x = [7] }, ]"
	x := scan(text)
	var got []string
	for _, off := range x.elements(int(x.entries[0].val)) {
		got = append(got, x.value(off))
	}
	if diff := cmp.Diff([]string{"1", "[2, 3]", `"5, 6"`, "{ x = [7] }"}, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if got := x.elements(0); got != nil {
		t.Errorf("elements of a key: %v", got)
	}
}

// FuzzPositions holds the position index against the decoder: whatever that
// accepts has the same keys and the same values in both, and where the index
// stops, the decoder finds a mistake.
func FuzzPositions(f *testing.F) {
	for _, text := range seeds(f) {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		text = strings.TrimPrefix(text, "\ufeff")
		r := report{index: &index{text: text}}
		if !r.characters() {
			return
		}
		x := scan(text)
		if x.deep {
			return
		}
		doc, keys, err := decode(text, x.stop)
		if err != nil {
			if strings.Contains(err.Error(), "decoder failed") {
				t.Fatal(err)
			}
			return
		}
		if !x.agrees(keys) {
			t.Fatalf("stopped at %d with %d entries; the decoder has the keys %q", x.stop, len(x.entries), keys)
		}
		for i, k := range keys {
			if got := x.path(i); !slices.Equal(got, k) {
				t.Errorf("entry %d is %q, in the decoder %q", i, got, k)
			}
			for d := range k {
				if _, raw := x.part(i, d, len(k)); unquote(raw) != k[d] {
					t.Errorf("part %d of %q is %s", d, k, raw)
				}
			}
			val := int(x.entries[i].val)
			want, ok := lookUp(doc, k)
			if val < 0 || !ok {
				continue
			}
			var got struct{ V any }
			if _, err := toml.Decode("V = "+x.value(val), &got); err != nil {
				t.Errorf("value of %q is %q: %v", k, x.value(val), err)
			} else if diff := cmp.Diff(want, got.V, cmpopts.EquateNaNs()); diff != "" {
				t.Errorf("value of %q (-decoder +index):\n%s", k, diff)
			}
			if list, ok := want.([]any); ok && len(x.elements(val)) != len(list) {
				t.Errorf("%q has %d elements, in the decoder %d", k, len(x.elements(val)), len(list))
			}
		}
	})
}

// lookUp is the value at a path that leads through tables only.
func lookUp(v any, path toml.Key) (any, bool) {
	for _, name := range path {
		m, ok := v.(map[string]any)
		if !ok {
			return nil, false
		}
		v = m[name]
	}
	return v, true
}

// seeds are the policies of testdata and the examples.
func seeds(tb testing.TB) []string {
	tb.Helper()
	var texts []string
	for _, glob := range []string{"testdata/ok/*.toml", "../examples/*.toml", "testdata/err/*.txtar"} {
		files, err := filepath.Glob(glob)
		if err != nil || len(files) == 0 {
			tb.Fatalf("no files %s: %v", glob, err)
		}
		for _, file := range files {
			data, err := os.ReadFile(file)
			if err != nil {
				tb.Fatal(err)
			}
			if filepath.Ext(file) == ".txtar" {
				data = txtar.Parse(data).Files[0].Data
			}
			texts = append(texts, string(data))
		}
	}
	return texts
}
