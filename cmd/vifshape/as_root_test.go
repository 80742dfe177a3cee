package main

import (
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestRootLine holds what is to be typed: by which program, and the words as a shell takes them.
func TestRootLine(t *testing.T) {
	apply := []string{"apply", "my policy.toml"}
	for _, tt := range []struct {
		name, program string
		args          []string
		there         string // programs
		want          string
	}{
		{"sudo", "vifshape", apply, "/usr/bin/sudo /usr/bin/su /usr/sbin/vifshape", "sudo vifshape apply 'my policy.toml'"},
		{"doas", "vifshape", apply, "/usr/bin/doas /usr/bin/su /usr/sbin/vifshape", "doas vifshape apply 'my policy.toml'"},
		{"su", "vifshape", apply, "/usr/bin/su /usr/sbin/vifshape", `su -c 'vifshape apply '\''my policy.toml'\'''`},
		{"none", "vifshape", apply, "/usr/sbin/vifshape", ""},
		{"where root may not look", "vifshape", apply[:1], "/usr/bin/sudo /usr/local/sbin/vifshape", "sudo /usr/local/sbin/vifshape apply"},
		{"called by its path", "/usr/sbin/vifshape", apply[:1], "/usr/bin/sudo /usr/sbin/vifshape", "sudo /usr/sbin/vifshape apply"},
		{"a path with a space", "/home/al ice/vifshape", apply[:1], "/usr/bin/sudo", "sudo '/home/al ice/vifshape' apply"},
		{"quotes", "vifshape", []string{"bind", "eth0/web", "unit:worker@*.service", "it's", "", "a\nb"}, "/usr/bin/sudo /usr/bin/vifshape", `sudo vifshape bind eth0/web 'unit:worker@*.service' 'it'\''s' '' $'\x61\x0a\x62'`},
		{"variables", "vifshape", []string{"run", "eth0/web", "--", "sh", "-c", `echo "$HOME" | cat`}, "/usr/bin/sudo /usr/bin/vifshape", `sudo vifshape run eth0/web -- sh -c 'echo "$HOME" | cat'`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			find := func(name string) (string, error) {
				if strings.Contains(name, "/") {
					return name, nil
				}
				for _, at := range strings.Fields(tt.there) {
					if filepath.Base(at) == name {
						return at, nil
					}
				}
				return "", errors.New("not there")
			}
			if got := rootLine(tt.program, tt.args, find); got != tt.want {
				t.Errorf("%s\nwant %s", got, tt.want)
			}
		})
	}
}

// TestRootLineRelative: root's directory may be another one, and its /proc/self is.
func TestRootLineRelative(t *testing.T) {
	abs, err := filepath.Abs("vifshape")
	if err != nil {
		t.Fatal(err)
	}
	find := func(name string) (string, error) {
		if name == "sudo" || strings.Contains(name, "/") {
			return name, nil
		}
		return "", exec.ErrNotFound
	}
	if got := rootLine("./vifshape", []string{"clear"}, find); got != "sudo "+abs+" clear" {
		t.Errorf("%s", got)
	}
	for _, name := range []string{selfPath, "vifshape"} {
		if got := rootLine(name, nil, find); strings.Contains(got, "/proc/") || !filepath.IsAbs(strings.TrimPrefix(got, "sudo ")) {
			t.Errorf("called as %s: %s", name, got)
		}
	}
}

// TestForUser: what run starts as root stays the user's.
func TestForUser(t *testing.T) {
	got := forUser([]string{"run", "eth0/web", "--", "true"})
	if len(got) != 6 || got[0] != "run" || got[1] != "--user" || !slices.Equal(got[3:], []string{"eth0/web", "--", "true"}) {
		t.Errorf("%q", got)
	}
	if got := forUser([]string{"clear"}); !slices.Equal(got, []string{"clear"}) {
		t.Errorf("%q", got)
	}
}
