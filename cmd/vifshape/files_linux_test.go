package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// impostor puts something else where a file is expected, and says how that is called.
type impostor struct {
	name string
	make func(file string) error
	want string
}

func impostors(t *testing.T) []impostor {
	t.Helper()
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.WriteFile(elsewhere, []byte(`{"version": 2, "interface": "eth0", "policy": "forged"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	all := []impostor{
		{"named pipe", func(file string) error { return unix.Mkfifo(file, 0o644) }, "is a named pipe"},
		{"link", func(file string) error { return os.Symlink(elsewhere, file) }, "is a symbolic link"},
		{"link to nothing", func(file string) error { return os.Symlink(elsewhere+"2", file) }, "is a symbolic link"},
		{"directory", func(file string) error { return os.Mkdir(file, 0o755) }, "is a directory"},
		{"socket", func(file string) error {
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: file, Net: "unix"})
			if err == nil {
				l.SetUnlinkOnClose(false)
				err = l.Close()
			}
			return err
		}, "is a socket"},
		{"others may write", func(file string) error {
			if err := os.WriteFile(file, []byte("{}"), 0o644); err != nil {
				return err
			}
			return os.Chmod(file, 0o646)
		}, "others than root may write to "},
	}
	if os.Geteuid() == 0 {
		all = append(all,
			impostor{"device", func(file string) error { return unix.Mknod(file, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) }, "is a device"},
			impostor{"another's", func(file string) error {
				if err := os.WriteFile(file, []byte("{}"), 0o644); err != nil {
					return err
				}
				return os.Chown(file, 12345, 12345)
			}, "belongs to user 12345, who could write anything there"},
		)
	}
	return all
}

// TestImpostors holds that nothing that stands in the place of a file of ours is taken
// for it, waited for, or written to.
func TestImpostors(t *testing.T) {
	for _, x := range impostors(t) {
		t.Run(x.name, func(t *testing.T) {
			dir := t.TempDir()
			s := &store{dir: dir, locks: filepath.Join(dir, "locks"), wait: 10 * time.Millisecond}
			if err := os.Mkdir(s.locks, 0o755); err != nil {
				t.Fatal(err)
			}
			for file, try := range map[string]func() error{
				s.file("eth0"):                           func() error { _, err := s.load("eth0"); return err },
				filepath.Join(s.dir, "eth0"+homesSuffix): func() error { return s.note("eth0", true) },
				s.lockFile():                             func() error { _, err := s.lock(t.Context(), "test"); return err },
				s.agentFile():                            func() error { _, err := s.takeAgent(); return err },
			} {
				what := filepath.Base(file)
				if err := x.make(file); err != nil {
					t.Fatal(err)
				}
				before, err := os.Lstat(file)
				if err != nil {
					t.Fatal(err)
				}
				if err := try(); err == nil || !strings.Contains(err.Error(), file) || !strings.Contains(err.Error(), x.want) {
					t.Errorf("%s: %v, not %q", what, err, x.want)
				}
				if after, err := os.Lstat(file); err != nil || after.Mode() != before.Mode() || after.Size() != before.Size() || !os.SameFile(before, after) {
					t.Errorf("%s was touched: %v, %v", what, after, err)
				}
				if err := os.Remove(file); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
	t.Run("endless", func(t *testing.T) {
		s := &store{dir: t.TempDir()}
		s.locks = filepath.Join(s.dir, "locks")
		if err := os.WriteFile(s.file("eth0"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(s.file("eth0"), 1<<40); err != nil {
			t.Fatal(err)
		}
		if _, err := s.load("eth0"); err == nil || !strings.Contains(err.Error(), "is longer than 67108864 bytes") {
			t.Error(err)
		}
	})
	t.Run("directory", func(t *testing.T) {
		run := t.TempDir()
		s := &store{dir: filepath.Join(run, "ns-1"), locks: filepath.Join(run, "locks"), netNS: "ns-1", wait: time.Millisecond}
		for _, dir := range []string{s.dir, s.locks} {
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		for _, dir := range []string{s.dir, run} {
			if err := os.Chmod(dir, 0o777); err != nil {
				t.Fatal(err)
			}
			_, rerr := s.load("eth0")
			_, lerr := s.lock(t.Context(), "test")
			for _, err := range []error{rerr, lerr} {
				if want := fmt.Sprintf("others than root may write to %s: `chmod go-w %s`", dir, dir); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%v, not %q", err, want)
				}
			}
			if err := os.Chmod(dir, 0o755); err != nil {
				t.Fatal(err)
			}
		}
	})
}

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
		f, err := openPolicy(name)
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
