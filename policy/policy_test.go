package policy_test

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

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
		})
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
		fmt.Fprintf(&b, "interface %s", t.Interface)
		if t.Replace {
			b.WriteString(" replace")
		}
		if t.MTU != 0 {
			fmt.Fprintf(&b, " mtu %v", t.MTU)
		}
		if l := t.Root.Link; l != (hierarchy.LinkLayer{}) {
			fmt.Fprintf(&b, " overhead %d mpu %v atm %v", l.Overhead, l.MPU, l.ATM)
		}
		b.WriteByte('\n')
		for x := range t.All() {
			fmt.Fprintf(&b, "  %s rate %v ceil %v prio %d", x.Path, x.Rate, x.Ceil, x.Prio)
			for _, s := range []struct {
				name string
				size hierarchy.Size
			}{{"burst", x.Burst}, {"cburst", x.CBurst}, {"quantum", x.Quantum}} {
				if s.size != 0 {
					fmt.Fprintf(&b, " %s %v", s.name, s.size)
				}
			}
			if x.Qdisc.Kind != "" {
				fmt.Fprintf(&b, " qdisc %s", x.Qdisc.Kind)
				for _, p := range x.Qdisc.Params {
					fmt.Fprintf(&b, " %s=%d", p.Name, p.Value)
				}
			}
			if len(x.Bind) > 0 {
				fmt.Fprintf(&b, " bind %v", x.Bind)
			}
			if x.Implied {
				b.WriteString(" (added)")
			}
			b.WriteByte('\n')
		}
	}
	b.WriteString(policy.Errors(p.Warnings).Render())
	return b.String()
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
