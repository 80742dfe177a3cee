package policy_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/vifshape/vifshape/policy"
)

// TestExamples keeps the examples free of mistakes, and of warnings.
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
		})
	}
}
