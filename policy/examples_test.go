package policy_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
)

// TestExamples keeps the examples free of mistakes and of warnings, and plans
// them.
func TestExamples(t *testing.T) {
	files, err := filepath.Glob("../examples/*.toml")
	if err != nil || len(files) < 5 {
		t.Fatalf("%d examples: %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			data, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.HasPrefix(data, []byte("# ")) {
				t.Error("does not begin with a comment that says what it shows")
			}
			names, err := policy.Over(file)
			if err != nil {
				t.Fatal(err)
			}
			var over []policy.Text
			for _, name := range names {
				f, err := os.Open(name)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				over = append(over, policy.Text{Name: name, Reader: f})
			}
			p, err := policy.Parse(filepath.Base(file), bytes.NewReader(data), exampleKinds())
			if err == nil && len(over) > 0 {
				for _, tree := range p.Trees {
					plan(t, tree)
				}
				p, err = policy.Parse(filepath.Base(file), bytes.NewReader(data), exampleKinds(), over...)
			}
			var errs policy.Errors
			if errors.As(err, &errs) {
				t.Fatal("\n" + errs.Render())
			}
			if err != nil {
				t.Fatal(err)
			}
			if len(p.Warnings) > 0 {
				t.Error("\n" + policy.Errors(p.Warnings).Render())
			}
			for _, tree := range p.Trees {
				plan(t, tree)
			}
		})
	}
}

// exampleKinds are the kinds of the examples' queues.
func exampleKinds() []hierarchy.Kind {
	return append(leaves(), hierarchy.Kind{Name: "netem", Params: []hierarchy.Param{
		{Name: "delay", Type: hierarchy.Duration}, {Name: "jitter", Type: hierarchy.Duration},
		{Name: "loss", Type: hierarchy.Percent}, {Name: "limit", Type: hierarchy.Count, Min: 1, Max: 1 << 20},
	}})
}

// plan holds that a tree is made from nothing, each class once and behind its
// parent, and that there is nothing to do once it stands.
func plan(t *testing.T, tree *hierarchy.Tree) {
	t.Helper()
	if _, err := (hierarchy.IDs{}).Assign(tree); err != nil {
		t.Fatal(err)
	}
	want := tree.State()
	type class struct {
		port hierarchy.Port
		id   hierarchy.ClassID
	}
	made, all := map[class]bool{}, 0
	for _, p := range want.Ports {
		made[class{p.Port, hierarchy.ID(0)}] = true
		all += len(p.Classes) + 1
	}
	for _, s := range hierarchy.Diff(hierarchy.State{Device: tree.Port.Device}, want).Steps {
		c, ok := s.Item().(*hierarchy.Class)
		if s.Action != hierarchy.Create || ok && (made[class{s.Port, c.ID}] || !made[class{s.Port, c.Parent}]) {
			t.Errorf("%s in a plan from nothing", s)
		}
		if ok {
			made[class{s.Port, c.ID}] = true
		}
	}
	if len(made) != all {
		t.Errorf("%d classes are planned of %d", len(made)-len(want.Ports), all-len(want.Ports))
	}
	if again := hierarchy.Diff(want, want); !again.Empty() {
		t.Errorf("with the tree in place there is still to do: %v", again.Steps)
	}
}
