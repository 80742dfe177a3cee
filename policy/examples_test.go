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
			p, err := policy.Parse(filepath.Base(file), bytes.NewReader(data), leaves())
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

// plan holds that a tree is made from nothing, each class once and behind its
// parent, and that there is nothing to do once it stands.
func plan(t *testing.T, tree *hierarchy.Tree) {
	t.Helper()
	if _, err := (hierarchy.IDs{}).Assign(tree); err != nil {
		t.Fatal(err)
	}
	want := tree.State()
	made := map[hierarchy.ClassID]bool{hierarchy.ID(0): true}
	for _, s := range hierarchy.Diff(hierarchy.State{Device: tree.Port.Device}, want).Steps {
		c, ok := s.Item().(*hierarchy.Class)
		if s.Action != hierarchy.Create || ok && (made[c.ID] || !made[c.Parent]) {
			t.Errorf("%s in a plan from nothing", s)
		}
		if ok {
			made[c.ID] = true
		}
	}
	if len(made) != len(want.Ports[0].Classes)+1 {
		t.Errorf("%d classes are planned of %d", len(made)-1, len(want.Ports[0].Classes))
	}
	if again := hierarchy.Diff(want, want); !again.Empty() {
		t.Errorf("with the tree in place there is still to do: %v", again.Steps)
	}
}
