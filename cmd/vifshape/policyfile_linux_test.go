package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
)

// TestPolicyFile holds that a policy comes from a file, or from a pipe that a shell has
// made, and that nothing else is waited for.
func TestPolicyFile(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "policy.toml")
	if err := os.WriteFile(file, []byte("version = 1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	link, pipe := filepath.Join(dir, "link.toml"), filepath.Join(dir, "pipe.toml")
	if err := os.Symlink(file, link); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(pipe, 0o644); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if _, err := w.WriteString("version = 1\n"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	for name, want := range map[string]string{
		file: "", link: "", fmt.Sprintf("/dev/fd/%d", r.Fd()): "",
		pipe:        "is a named pipe: read it into a file, or write - and pipe it in",
		dir:         "is a directory",
		"/dev/zero": "is a device",
	} {
		f, err := shaper.OpenPolicy(name)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, not %q", name, err, want)
		}
		if err != nil {
			continue
		}
		b := make([]byte, 100)
		if n, err := f.Read(b); err != nil || string(b[:n]) != "version = 1\n" {
			t.Errorf("%s: read %q, %v", name, b[:n], err)
		}
		f.Close()
	}
}
