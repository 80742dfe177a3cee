package main

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/vifshape/vifshape/policy"
)

// TestBadPolicyFirst: whoever may not apply anything learns what is wrong with a
// policy all the same, and only of one that is right that it cannot be applied.
func TestBadPolicyFirst(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		f := filepath.Join(dir, name)
		if err := os.WriteFile(f, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return f
	}
	good, bad := file("good.toml", smallPolicy), file("bad.toml", "version = 1\n[interface.eth0]\nrate = \"1mbps\"\n")
	e := &env{stdout: io.Discard, stderr: io.Discard, runDir: filepath.Join(good, "no directory")}
	for _, c := range []struct {
		file string
		want bool
	}{{bad, true}, {good, false}} {
		err := e.apply(t.Context(), c.file, applyOptions{})
		var mistakes policy.Errors
		if got := errors.As(err, &mistakes); err == nil || got != c.want {
			t.Errorf("%s: %v", c.file, err)
		}
	}
}
