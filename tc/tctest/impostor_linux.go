package tctest

import (
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// Impostor puts something else where a file is expected, and says how that is called.
type Impostor struct {
	Name string
	Make func(file string) error
	Want string
}

// Impostors are those that the caller may make.
func Impostors(t *testing.T) []Impostor {
	t.Helper()
	elsewhere := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.WriteFile(elsewhere, []byte(`{"version": 2, "interface": "eth0", "policy": "forged"}`), 0o644); err != nil {
		t.Fatal(err)
	}
	all := []Impostor{
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
			Impostor{"device", func(file string) error { return unix.Mknod(file, unix.S_IFCHR|0o644, int(unix.Mkdev(1, 5))) }, "is a device"},
			Impostor{"another's", func(file string) error {
				if err := os.WriteFile(file, []byte("{}"), 0o644); err != nil {
					return err
				}
				return os.Chown(file, 12345, 12345)
			}, "belongs to user 12345, who could write anything there"},
		)
	}
	return all
}
