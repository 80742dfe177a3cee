package enabled

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/qdisc"
	"github.com/vifshape/vifshape/tc/tctest"
)

func write(t *testing.T, d *Dir, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(d.File(name), []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(d.File(name), mode); err != nil { // whatever the umask
		t.Fatal(err)
	}
}

const eth0 = "version = 1\n[interface.eth0]\nrate = \"5mbit\"\n"

// TestFiles: what is wrong with one file is no matter of the others, and what was read is read
// again when it has changed.
func TestFiles(t *testing.T) {
	d := &Dir{Path: filepath.Join(t.TempDir(), "not", "there")}
	if all, err := d.Files(); err != nil || len(all) != 0 {
		t.Errorf("no directory: %v %v", all, err)
	}
	d = &Dir{Path: t.TempDir()}
	write(t, d, "b", eth0, 0o644)
	write(t, d, "a", strings.Replace(eth0, "eth0", "eth1", 1), 0o600)
	write(t, d, "c", eth0, 0o644) // eth0 again
	write(t, d, "d", "version = 2\n", 0o644)
	write(t, d, "e", strings.Replace(eth0, "eth0", "eth2", 1), 0o666) // others may write
	write(t, d, ".f", strings.Replace(eth0, "eth0", "eth3", 1), 0o644)
	if err := os.WriteFile(filepath.Join(d.Path, "README"), []byte("x"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(d.File("g"), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time by what was read
		all, err := d.Files()
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, f := range all {
			text := f.Name
			if f.Err != nil {
				text += ": " + strings.TrimSpace(strings.ReplaceAll(f.Err.Error(), d.Path+"/", ""))
			}
			if (f.Err == nil) != (f.Policy != nil) {
				t.Errorf("%s: policy %v, error %v", f.Name, f.Policy, f.Err)
			}
			got = append(got, text)
		}
		want := []string{"a", "b", "c: c.toml: eth0 belongs to b.toml already", "d: d.toml:1:11: ", "e: others than root may write to e.toml", "g: g.toml is a directory"}
		for i := range max(len(want), len(got)) {
			if i >= len(got) || i >= len(want) || !strings.HasPrefix(got[i], want[i]) {
				t.Fatalf("%q\nwant, each the beginning, %q", got, want)
			}
		}
		old := time.Now().Add(-time.Hour)
		if err := os.Chtimes(d.File("a"), old, old); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Chtimes(d.File("e"), time.Now().Add(-time.Hour), time.Now().Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []os.FileMode{0o666, 0o644} { // rights change without the file
		if err := os.Chmod(d.File("e"), mode); err != nil {
			t.Fatal(err)
		}
		all, err := d.Files()
		if err != nil || (all[4].Policy != nil) != (mode == 0o644) {
			t.Errorf("with %v: %v, %+v", mode, err, all[4])
		}
	}
	if err := os.Remove(d.File("e")); err != nil {
		t.Fatal(err)
	}
	write(t, d, "a", strings.Replace(eth0, "eth0", "\"eth*\"", 1), 0o600)
	write(t, d, "h", strings.Replace(eth0, "eth0", "\"mac=52:54:00:12:34:56\"", 1), 0o644)
	write(t, d, "i", strings.Replace(eth0, "eth0", "\"eth7*\"", 1), 0o644)
	all, err := d.Files()
	if err != nil {
		t.Fatal(err)
	}
	for want, is := range map[string]hierarchy.Identity{"a": {Name: "eth2"}, "b": {Name: "eth0", MAC: "52:54:00:12:34:56"}, "h": {Name: "eth7", MAC: "52:54:00:12:34:56"}, "i": {Name: "eth70"}, "": {Name: "wlan0"}} {
		file := ""
		if want != "" {
			file = d.File(want)
		}
		if got := all.Owner(is); got != file {
			t.Errorf("%v belongs to %s, not %s", is, got, file)
		}
	}
	p, err := policy.Parse("new.toml", strings.NewReader(eth0), qdisc.Kinds())
	if err != nil {
		t.Fatal(err)
	}
	owned := new(OwnedError)
	if _, err := all.With(File{Name: "new", Policy: p}); !errors.As(err, &owned) || owned.Iface != "eth0" || owned.By != d.File("b") {
		t.Errorf("another policy for eth0: %v", err)
	}
	if with, err := all.With(File{Name: "b", Path: d.File("b"), Policy: p}); err != nil || len(with) != len(all) || with[1].Policy != p {
		t.Errorf("b in b's place: %v %v", with, err)
	}
}

// TestStage: a text is there at once or not at all, and what is the same is left alone.
func TestStage(t *testing.T) {
	d := &Dir{Path: filepath.Join(t.TempDir(), "etc", "vifshape")}
	put := func(text string) bool {
		t.Helper()
		s, err := d.Stage("home", []byte(text))
		if err != nil {
			t.Fatal(err)
		}
		changed, err := s.Commit()
		if err = errors.Join(err, s.Discard()); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(d.File("home")); err != nil || string(b) != text {
			t.Fatalf("%q %v", b, err)
		}
		return changed
	}
	if !put("one") || put("one") || !put("two") {
		t.Error("what changed is not what was said")
	}
	s, err := d.Stage("home", []byte("three"))
	if err != nil {
		t.Fatal(err)
	}
	if all, err := d.Files(); err != nil || len(all) != 1 {
		t.Errorf("what waits is a policy: %v %v", all, err)
	}
	if err := s.Discard(); err != nil {
		t.Fatal(err)
	}
	if ents, err := os.ReadDir(d.Path); err != nil || len(ents) != 1 {
		t.Errorf("left: %v %v", ents, err)
	}
	if err := d.Remove("home"); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(d.Path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the empty directory: %v", err)
	}
}

func TestCheckName(t *testing.T) {
	for _, good := range []string{"home", "10-line", "a.b_c", "user@host"} {
		if err := CheckName(good); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"", ".home", "-home", "a/b", "..", "a b", "a\n", "größe", strings.Repeat("x", 201)} {
		if CheckName(bad) == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

// TestCheckProgram: what is started with the machine must be there then, and root's.
func TestCheckProgram(t *testing.T) {
	for _, bad := range []string{"/tmp/vifshape", "/home/alice/vifshape", "/root/vifshape", "/run/vifshape", filepath.Join(t.TempDir(), "vifshape")} {
		if err := CheckProgram(bad); err == nil || !strings.Contains(err.Error(), "install "+bad+" ") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	if err := CheckProgram("/bin/sh"); err != nil {
		t.Error(err)
	}
}

// TestFixed: what others may write to is a directory of policies where it is mounted read-only,
// as a ConfigMap is, and not otherwise.
func TestFixed(t *testing.T) {
	tctest.RequireRoot(t)
	from, to := t.TempDir(), t.TempDir()
	write(t, &Dir{Path: from}, "a", eth0, 0o644)
	if err := os.Chmod(from, 0o777); err != nil {
		t.Fatal(err)
	}
	refused := func(path string) bool {
		all, err := (&Dir{Path: path}).Files()
		return err != nil && len(all) == 0
	}
	if !refused(from) {
		t.Error("others may write there")
	}
	if err := unix.Mount(from, to, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(to, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if !refused(to) {
		t.Error("others may write there where it is mounted")
	}
	if err := unix.Mount("", to, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	all, err := (&Dir{Path: to}).Files()
	if err != nil || len(all) != 1 || all[0].Err != nil {
		t.Errorf("mounted read-only: %v %v", all, err)
	}
}
