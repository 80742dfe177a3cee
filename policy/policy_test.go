package policy_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
)

var update = flag.Bool("update", false, "rewrite the expected texts in testdata; read them before you commit")

// leaves are the queueing disciplines of these tests.
func leaves() []hierarchy.Kind {
	return []hierarchy.Kind{
		{Name: "pfifo", Params: []hierarchy.Param{{Name: "limit", Type: hierarchy.Count, Min: 1, Max: 1 << 20}}},
		{Name: "bfifo", Params: []hierarchy.Param{{Name: "limit", Type: hierarchy.Bytes, Min: 1600, Max: 1 << 30}}},
		{
			Name: "tbf",
			Params: []hierarchy.Param{
				{Name: "rate", Type: hierarchy.Rate, Min: 8},
				{Name: "burst", Type: hierarchy.Bytes, Min: 1600},
				{Name: "latency", Type: hierarchy.Duration, Min: 1000},
			},
			Verify: func(q hierarchy.Qdisc) error {
				if _, ok := q.Get("rate"); !ok {
					return errors.New(`tbf needs a rate: write rate = "10mbit" in the table`)
				}
				return nil
			},
		},
		{Name: "sfq", Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Count, Min: 1, Max: 65536},
			{Name: "perturb", Type: hierarchy.Duration},
			{Name: "headdrop", Type: hierarchy.Flag},
		}},
		{Name: "fq_codel", Params: []hierarchy.Param{
			{Name: "limit", Type: hierarchy.Count, Min: 1, Max: 1 << 20},
			{Name: "flows", Type: hierarchy.Count, Min: 1, Max: 65536},
			{Name: "target", Type: hierarchy.Duration, Min: 1000},
			{Name: "interval", Type: hierarchy.Duration, Min: 1000},
			{Name: "quantum", Type: hierarchy.Bytes, Min: 256, Max: 1 << 20},
			{Name: "ecn", Type: hierarchy.Flag},
		}},
	}
}

func TestParse(t *testing.T) {
	files, err := filepath.Glob("testdata/ok/*.toml")
	if err != nil || len(files) == 0 {
		t.Fatalf("no policies in testdata/ok: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".toml"), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			p, err := policy.Parse("policy.toml", bytes.NewReader(data), leaves())
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(file, ".toml")+".golden", describe(p))
			writtenDown(t, p)
			formatted(t, p)
		})
	}
}

// writtenDown holds that what a policy says is the same after it was written down as
// JSON.
func writtenDown(t *testing.T, p *policy.Policy) {
	t.Helper()
	for i, want := range p.Specs {
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		got := new(hierarchy.Spec)
		if err := json.Unmarshal(b, got); err != nil || !reflect.DeepEqual(want, got) {
			t.Errorf("%s is read back as another, %v (-want +got):\n%s", b, err, cmp.Diff(want, got, cmp.AllowUnexported(hierarchy.Amount{})))
		}
		if tree, _ := hierarchy.Resolve(got, leaves()); !reflect.DeepEqual(p.Trees[i], tree) {
			t.Errorf("%s gives another tree", b)
		}
	}
}

func golden(t *testing.T, file, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", file, diff)
	}
}

// describe writes a policy as one line per branch, with all that was given.
func describe(p *policy.Policy) string {
	var b strings.Builder
	fmt.Fprintf(&b, "binding %s\n", p.Binding)
	for _, t := range p.Trees {
		fmt.Fprintf(&b, "interface %s", t.Port.Device)
		if t.Replace {
			b.WriteString(" replace")
		}
		if t.MTU != 0 {
			fmt.Fprintf(&b, " mtu %v", t.MTU)
		}
		if s := t.Line.String(); s != "" {
			fmt.Fprintf(&b, " line %s", s)
		}
		b.WriteByte('\n')
		describeTree(&b, t)
		if t.Ingress != nil {
			fmt.Fprintf(&b, " receiving, room for %d flows\n", t.Ingress.Flows)
			describeTree(&b, t.Ingress)
		}
	}
	b.WriteString(policy.Errors(append(p.Warnings, p.Unquoted(policy.VLAN)...)).Render())
	return b.String()
}

func describeTree(b *strings.Builder, t *hierarchy.Tree) {
	for x := range t.All() {
		fmt.Fprintf(b, "  %s rate %v ceil %v prio %d", x.Path, x.Rate, x.Ceil, x.Prio)
		for _, s := range []struct {
			name string
			size hierarchy.Size
		}{{"burst", x.Burst}, {"cburst", x.CBurst}, {"quantum", x.Quantum}} {
			if s.size != 0 {
				fmt.Fprintf(b, " %s %v", s.name, s.size)
			}
		}
		if x.Qdisc.Kind != "" {
			fmt.Fprintf(b, " qdisc %s", x.Qdisc.Kind)
			for _, p := range x.Qdisc.Params {
				fmt.Fprintf(b, " %s=%d", p.Name, p.Value)
			}
		}
		if len(x.Bind) > 0 {
			fmt.Fprintf(b, " bind %v", x.Bind)
		}
		for _, m := range x.Match {
			fmt.Fprintf(b, " match %v", m)
		}
		if len(x.Delegate) > 0 {
			fmt.Fprintf(b, " delegate %v", x.Delegate)
		}
		if x.RenamedFrom != "" {
			fmt.Fprintf(b, " renamed from %s", x.RenamedFrom)
		}
		if x.Implied {
			b.WriteString(" (added)")
		}
		b.WriteByte('\n')
	}
}

// TestMistakes compares every mistake with its exact text. Each archive holds
// the policy and what is said about it.
func TestMistakes(t *testing.T) {
	files, err := filepath.Glob("testdata/err/*.txtar")
	if err != nil {
		t.Fatal(err)
	}
	different := map[string]bool{}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			a, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if len(a.Files) == 0 || a.Files[0].Name != "policy.toml" || len(a.Files) > 2 {
				t.Fatal("want a policy.toml and a want")
			}
			_, err = policy.Parse("policy.toml", bytes.NewReader(a.Files[0].Data), leaves())
			var errs policy.Errors
			if !errors.As(err, &errs) {
				t.Fatalf("error is %v, not Errors", err)
			}
			if *update {
				a.Files = append(a.Files[:1], txtar.File{Name: "want", Data: []byte(errs.Render())})
				if err := os.WriteFile(file, txtar.Format(a), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if len(a.Files) != 2 || a.Files[1].Name != "want" {
				t.Fatal("no want; run with -update")
			}
			if diff := cmp.Diff(string(a.Files[1].Data), errs.Render()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			for _, e := range errs {
				different[e.Msg] = true
			}
		})
	}
	if len(files) < 60 || len(different) < 60 {
		t.Errorf("%d files with %d different messages; at least 60 of both are wanted", len(files), len(different))
	}
}

func TestErrors(t *testing.T) {
	_, err := policy.Parse("p.toml", strings.NewReader("version = 1\n[interface.eth0]\nrate = \"1mbit\"\n[interface.eth0.slow]\nrate = \"5kbit\"\n[interface.eth0.web]\nrate = \"10kbit\"\nceil = '9kbit'\n"), leaves())
	want := policy.Errors{
		{File: "p.toml", Line: 5, Column: 8, Path: "eth0/slow", Key: "rate", Value: `"5kbit"`, Source: `rate = "5kbit"`, Warning: true,
			Msg: "rate 5kbit is so low that large packets exceed it: the kernel forgives what takes longer than 60s to pay back"},
		{File: "p.toml", Line: 8, Column: 8, Path: "eth0/web", Key: "ceil", Value: "'9kbit'", Source: "ceil = '9kbit'",
			Msg: "ceil 9kbit is below rate 10kbit", Hint: `write ceil = "10kbit" or more, or lower the rate`},
	}
	var got policy.Errors
	if !errors.As(err, &got) {
		t.Fatalf("error is %v", err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	if diff := cmp.Diff("p.toml:8:8: eth0/web: ceil 9kbit is below rate 10kbit", got[1].Error()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	got[1].File = ""
	if diff := cmp.Diff("8:8: eth0/web: ceil 9kbit is below rate 10kbit", got[1].Error()); diff != "" {
		t.Errorf("without a file (-want +got):\n%s", diff)
	}
}

// TestIngressKeys holds that keys below ingress are named in full.
func TestIngressKeys(t *testing.T) {
	_, err := policy.Parse("p.toml", strings.NewReader(`version = 1
[interface.eth0]
rate = "1mbit"
ingress = { rate = "1mbit", prio = 1 }
[interface.eth0.a.ingress]
rate = "20kbit"
ceil = '10kbit'
qdisc = { kind = "pfifo", limit = 0 }
cell = "1mbit"
[interface.eth0.b]
ingress = "1mbit"
[interface.eth0.c.ingress]
qdisc.kind = 7
[interface.eth0.d]
ingress = "1"
`), leaves())
	var errs policy.Errors
	if !errors.As(err, &errs) {
		t.Fatalf("error is %v", err)
	}
	var got []string
	for _, e := range errs {
		got = append(got, fmt.Sprintf("%d:%d %s %s %s", e.Line, e.Column, e.Path, e.Key, e.Value))
	}
	want := []string{"4:29 eth0 ingress.prio ", "8:35 eth0/a ingress.qdisc.limit 0", "9:1 eth0/a ingress.cell ", `13:14 eth0/c ingress.qdisc.kind 7`, `15:11 eth0/d ingress "1"`}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// TestNotRead is what is no mistake in a policy.
func TestNotRead(t *testing.T) {
	_, err := policy.Parse("p", iotest.ErrReader(os.ErrPermission), leaves())
	if !errors.Is(err, os.ErrPermission) {
		t.Errorf("error is %v, want %v", err, os.ErrPermission)
	}
	_, err = policy.Parse("p", strings.NewReader(strings.Repeat("#", 64<<20+1)), leaves())
	if want := "p: a policy has at most 64mib"; err == nil || err.Error() != want {
		t.Errorf("error is %v, want %s", err, want)
	}
}

// TestEnd is files without a last line end, which archives cannot hold.
func TestEnd(t *testing.T) {
	for _, tt := range []struct{ text, want string }{
		{"", "1:1: the policy is empty\n    hint: write version = 1, and [interface.eth0] with rate = \"...\" below it\n"},
		{"version", "1:8: = and a value are missing\n    version\n           ^\n    hint: write key = value, for example rate = \"10mbit\"\n"},
		{"version =", "1:10: a value is missing here\n    version =\n             ^\n"},
		{"version = 'x", "1:11: the string has no closing quote\n    version = 'x\n              ^\n    hint: close it with the quote that it begins with\n"},
		{"version = [1", "1:11: the list has no end\n    version = [1\n              ^\n    hint: close it with ]\n"},
		{"[ü", "1:2: \"ü\" cannot stand in a header like this\n    [ü\n     ^\n    hint: put the name that holds it in quotes: [interface.eth0.\"a+b\"]\n"},
		{"[interface", "1:11: the header is not closed\n    [interface\n              ^\n    hint: close [ with ], and [[ with ]]\n"},
		{"# é\n[interface.", "2:12: the header has an empty name\n    [interface.\n               ^\n    hint: write [interface.eth0], names separated by single dots\n"},
		{"version = 2", "1:11: version 2 is not known; this vifshape reads version 1\n    version = 2\n              ^\n"},
	} {
		_, err := policy.Parse("", strings.NewReader(tt.text), leaves())
		var errs policy.Errors
		if !errors.As(err, &errs) {
			t.Errorf("%q: error is %v", tt.text, err)
		} else if diff := cmp.Diff(tt.want, errs.Render()); diff != "" {
			t.Errorf("%q (-want +got):\n%s", tt.text, diff)
		}
	}
}

// TestHostile is text that is made to hurt: each gives a mistake, at a place, and
// in a message of bounded length.
func TestHostile(t *testing.T) {
	const n = 1 << 20
	for _, tt := range []struct{ name, text string }{
		{"end in a key", "version"},
		{"end in a string", "version = \""},
		{"end in an escape", "version = \"\\"},
		{"end in a long string", "version = \"\"\""},
		{"end in a header", "["},
		{"end in a list", "version = ["},
		{"end in a table", "version = {"},
		{"end behind a key", "version = 1\nbinding"},
		{"lists", "version = " + strings.Repeat("[", n)},
		{"tables", "version = " + strings.Repeat("{a=", n)},
		{"header", "[a" + strings.Repeat(".a", n) + "]"},
		{"dotted key", "a" + strings.Repeat(".a", n) + " = 1"},
		{"lists behind a mistake", "version = \"1\" " + strings.Repeat("[", n)},
		{"lists below a mistake", "version = 1 2\na = " + strings.Repeat("[", n)},
		{"long word", "version = " + strings.Repeat("x", n)},
		{"long value", "version = 1\n[interface.eth0]\nrate = \"" + strings.Repeat("9", n) + "\""},
		{"long name", "version = 1\n[interface.eth0]\nrate = \"1mbit\"\n[interface.eth0." + strings.Repeat("x", n) + "]"},
		{"long key", "version = 1\n" + strings.Repeat("x", n) + " = 1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := policy.Parse("p", strings.NewReader(tt.text), leaves())
			var errs policy.Errors
			if !errors.As(err, &errs) {
				t.Fatalf("error is %v", err)
			}
			for _, e := range errs {
				if e.Line < 1 || e.Column < 1 || len(e.Msg) > 1000 || len(e.Hint) > 1000 {
					t.Errorf("%d:%d: message of %d bytes, hint of %d", e.Line, e.Column, len(e.Msg), len(e.Hint))
				}
			}
		})
	}
}
