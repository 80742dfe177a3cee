package main

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
)

func TestStore(t *testing.T) {
	s := &store{dir: t.TempDir()}
	r, err := s.load("eth0")
	if err != nil || r.Policy != "" {
		t.Fatalf("an interface without a record gave %+v, %v", r, err)
	}
	r.Policy = "/etc/p.toml"
	r.IDs = hierarchy.IDs{Minors: map[string]uint16{"eth0/web": 16}}
	r.Order = []hierarchy.Path{"eth0", "eth0/web"}
	if err := s.save(r); err != nil {
		t.Fatal(err)
	}
	back, err := s.load("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(r, back); d != "" {
		t.Errorf("record after a round trip (-want +got):\n%s", d)
	}
	names, err := s.interfaces()
	if d := cmp.Diff([]string{"eth0"}, names); d != "" || err != nil {
		t.Errorf("interfaces: %v (-want +got):\n%s", err, d)
	}
	if ents, err := os.ReadDir(s.dir); err != nil || len(ents) != 1 {
		t.Errorf("temporary files are left: %v, %v", ents, err)
	}
	if err := errors.Join(s.remove("eth0"), s.remove("eth0")); err != nil {
		t.Errorf("remove twice: %v", err)
	}
}

func TestStoreDamaged(t *testing.T) {
	s := &store{dir: t.TempDir()}
	for content, want := range map[string]string{
		`{"version":`:     "is damaged",
		`{"version": 99}`: "another version of vifshape (format 99, this one has 1)",
	} {
		if err := os.WriteFile(filepath.Join(s.dir, "eth0.json"), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := s.load("eth0"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, not %q", content, err, want)
		}
	}
}

func TestLock(t *testing.T) {
	s := &store{dir: t.TempDir(), wait: 50 * time.Millisecond}
	unlock, err := s.lock(t.Context(), "apply a.toml")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.lock(t.Context(), "apply b.toml")
	var locked *lockedError
	if !errors.As(err, &locked) || !strings.Contains(err.Error(), "vifshape apply a.toml (process ") {
		t.Errorf("second writer got %v", err)
	}
	if exitCode(err) != exitLocked {
		t.Errorf("exit code %d, not %d", exitCode(err), exitLocked)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.wait = time.Hour
	if _, err := s.lock(ctx, "apply c.toml"); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted writer got %v", err)
	}
	unlock()
	again, err := s.lock(t.Context(), "apply d.toml")
	if err != nil {
		t.Fatalf("after the first is done: %v", err)
	}
	again()
}
