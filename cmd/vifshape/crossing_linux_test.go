package main

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/tctest"
)

// TestKernelLockStandard: what is a way out is not passed as a standard descriptor, and
// what programs are given every day is.
func TestKernelLockStandard(t *testing.T) {
	n := newLocked(t)
	control := filepath.Join(n.cgroups(), "eth0/web/api/cgroup.procs")
	plain := filepath.Join(n.dir, "plain")
	if err := os.WriteFile(plain, []byte("plain\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(n.dir, "fifo"), 0o644); err != nil {
		t.Fatal(err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	socket := os.NewFile(uintptr(pair[0]), "socket")
	defer socket.Close()
	defer unix.Close(pair[1])
	events, err := unix.InotifyInit1(unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	anonymous := os.NewFile(uintptr(events), "inotify")
	defer anonymous.Close()
	open := func(path string, flags int) *os.File {
		t.Helper()
		f, err := os.OpenFile(path, flags, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { f.Close() })
		return f
	}
	for _, tt := range []struct {
		name string
		file *os.File
		why  string // "": it is passed
	}{
		{"directory", open("/", os.O_RDONLY), "is a directory"},
		{"path", open(plain, unix.O_PATH), "was opened as a path alone"},
		{"cgroup", open(control, os.O_RDONLY), "is a control file of the kernel (cgroup"},
		{"cgroup for writing", open(control, os.O_WRONLY), "is a control file of the kernel (cgroup"},
		{"sysfs", open("/sys/kernel/uevent_seqnum", os.O_RDONLY), "is a control file of the kernel (sysfs)"},
		{"setting", open("/proc/sys/kernel/core_pattern", os.O_RDONLY), "is a control file of the kernel (proc)"},
		{"anonymous", anonymous, "is neither a file, a device, a pipe nor a socket"},
		{"report of proc", open("/proc/self/status", os.O_RDONLY), ""},
		{"file", open(plain, os.O_RDWR), ""},
		{"FIFO", open(filepath.Join(n.dir, "fifo"), os.O_RDWR), ""},
		{"device", open(os.DevNull, os.O_RDWR), ""},
		{"socket", socket, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			all := []string{"input"}
			if tt.name == "directory" || tt.name == "file" { // they are looked at alike
				all = []string{"input", "output", "error"}
			}
			for _, as := range all {
				c := n.command("run", "eth0/web/api", "--", "true")
				switch as {
				case "input":
					c.Stdin = tt.file
				case "output":
					c.Stdout = tt.file
				}
				r := &running{Cmd: c, n: n}
				if c.Stderr = &r.stderr; as == "error" {
					c.Stderr = tt.file
				}
				if err := n.Near.Start(c); err != nil {
					t.Fatal(err)
				}
				got := r.wait()
				if (got.code != 0) != (tt.why != "") || as != "error" && tt.why != "" && !strings.Contains(got.stderr, "error: standard "+as+" "+tt.why) {
					t.Errorf("standard %s: want %q: %v", as, tt.why, got)
				}
			}
		})
	}
	best := n.command("run", "--level", "best", "eth0/web/api", "--", "true")
	best.Stdin = open("/", os.O_RDONLY)
	if r := n.start(best).wait(); r.code != 0 || !strings.Contains(r.stderr, "not held: standard input is a directory") {
		t.Errorf("best: %v", r)
	}
	tag := n.command("run", "--level", "tag", "eth0/web/api", "--", "true")
	tag.Stdin = open("/", os.O_RDONLY)
	if r := n.start(tag).wait(); r.code != 0 || r.stderr != "" {
		t.Errorf("tag: %v", r)
	}
}

// TestKernelLockMounts: what lies outside of a chroot is covered too, for root gets there,
// and who stands on others' mounts is not locked in.
func TestKernelLockMounts(t *testing.T) {
	n := newLocked(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	control := filepath.Join(n.cgroups(), "eth0/web/api/cgroup.procs")
	dir := t.TempDir()
	in := []string{"unshare", "--mount", "sh", "-c", `mount --rbind / $0 && exec chroot $0 "$@"`, dir}
	climb := []string{"--env", tctest.Acting, "eth0/web/api", "--", self, "climb", control}
	if r := n.under(in, append([]string{"run", "--level", "tag"}, climb...)...); r.code != 0 {
		t.Fatalf("the cgroup alone: %v", r)
	}
	r := n.under(in, append([]string{"run"}, climb...)...)
	if r.code == 0 || !strings.Contains(r.stderr, unix.EROFS.Error()) {
		t.Errorf("out of a chroot: %v", r)
	}
	// as before, it is the root and the working directory of the program
	got := n.under(in, "run", "--cwd", "/tmp", "eth0/web/api", "--", "sh", "-c", "pwd; ls -di /. /proc")
	want := n.run("run", "--level", "tag", "--cwd", "/tmp", "eth0/web/api", "--", "sh", "-c", "pwd; ls -di /. /proc")
	if got.code != 0 || got.stdout != want.stdout {
		t.Errorf("in the chroot: %v, outside of it: %v", got, want)
	}
	n.failed(n.start(tctest.Command(n, "astray", ";", "vifshape", "run", "eth0/web/api", "--", "true")).wait(), exitError,
		"the working directory lies on no mount of this mount namespace")
}

// TestKernelLockState: programs that are locked in read what vifshape keeps, and ask the
// agent; they change none of it, put nothing in its place, and find nothing to lock.
func TestKernelLockState(t *testing.T) {
	n := newNetwork(t)
	n.public()
	tctest.Require(t, lockable(), "Landlock")
	sh := tctest.RequireProgram(t, "sh")
	file := n.policy("policy.toml", delegatedPolicy)
	n.ok("apply", file)
	for _, tt := range []struct{ name, script, want string }{
		{"record", `echo >$0/eth0.json`, "Read-only file system"},
		{"another", `mkfifo $0/eth1.json`, "Read-only file system"},
		{"lock", `ls $(dirname $0)/locks/* || exit 1`, "No such file or directory"},
		{"lock, by its other path", `cd $(dirname $0); ls locks/* || exit 1`, "No such file or directory"},
		{"moved", `mv $0 $0-moved`, "Read-only file system"},
		{"all moved", `mv $(dirname $0) $(dirname $0)-moved`, "Device or resource busy"},
		{"all moved, from above", `mv -T $(dirname $(dirname $0)) /moved`, "busy"},
	} {
		for _, cwd := range []string{"/", filepath.Dir(filepath.Dir(n.store.Dir))} { // from where its former mounts would be reached
			r := n.run("run", "--cwd", cwd, "eth0/a", "--", sh, "-c", tt.script, n.store.Dir)
			if r.code == 0 || !strings.Contains(r.stderr, tt.want) {
				t.Errorf("%s from %s: %v", tt.name, cwd, r)
			}
		}
	}
	// the same directory by another mount of its file system, or of a part of it
	for _, what := range []string{"/", "/run", filepath.Dir(n.store.Dir)} {
		at := t.TempDir()
		script := fmt.Sprintf("mount --rbind %s %s; exec \"$@\"", what, at)
		there := filepath.Join(at, strings.TrimPrefix(n.store.Dir, what))
		for cmd, want := range map[string]string{`echo >$0/x.json`: "Read-only file system", `ls $(dirname $0)/locks/* || exit 1`: "No such file or directory"} {
			r := n.under([]string{"unshare", "--mount", sh, "-c", script, sh}, "run", "eth0/a", "--", sh, "-c", cmd, there)
			if r.code == 0 || !strings.Contains(r.stderr, want) {
				t.Errorf("%s with %s mounted at another place: %v", cmd, what, r)
			}
		}
	}
	if out := n.ok("run", "eth0/a", "--", n.bin, "self"); !strings.Contains(out, "eth0/a") {
		t.Errorf("self: %s", out)
	}
	n.fails(exitError, "call it from outside", "run", "eth0/a", "--", n.bin, "apply", file)
	agent := n.agent()
	defer agent.end(unix.SIGTERM)
	for range 2 {
		r := n.run("run", "--user", "54321:54321", "eth0/a", "--", n.bin, "run", "eth0/a", "--", "echo", "asked")
		if r.code != 0 || r.stdout != "asked\n" {
			t.Errorf("the agent: %v", r)
		}
	}
}

// TestKernelLockUnfit: what would fail in its middle is told at the start, by name.
func TestKernelLockUnfit(t *testing.T) {
	n := newLocked(t)
	n.open(n.dir)
	sh := tctest.RequireProgram(t, "sh")
	echo := tctest.RequireProgram(t, "echo")
	dir := filepath.Join(n.dir, "var/flatpak/exports/bin")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	link := func(name string) string {
		t.Helper()
		if err := os.Symlink(echo, filepath.Join(n.dir, name)); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(n.dir, name)
	}
	write := func(name, content string, mode os.FileMode) string {
		t.Helper()
		file := filepath.Join(n.dir, name)
		if err := os.WriteFile(file, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(file, mode|0o755); err != nil {
			t.Fatal(err)
		}
		return file
	}
	script := "#!" + sh + "\necho started\n"
	suid := write("suid", script, os.ModeSetuid)
	for _, tt := range []struct {
		args []string
		told string
	}{
		{[]string{link("bwrap")}, "bwrap makes sandboxes of namespaces and mounts (bubblewrap)"},
		{[]string{link("flatpak")}, "flatpak makes sandboxes"},
		{[]string{write("var/flatpak/exports/bin/org.example.App", script, 0)}, "org.example.App makes sandboxes"},
		{[]string{"--user", "65534:65534", suid}, "suid has the set-user-id bit, which does not count at levels lock and best: it runs as user 65534; level tag lets it become user 0"},
		{[]string{suid}, ""},
		{[]string{"--level", "tag", "--user", "65534:65534", suid}, ""},
		{[]string{write("plain", script, 0)}, ""},
	} {
		args := append([]string{"run"}, tt.args[:len(tt.args)-1]...)
		r := n.run(append(args, "eth0/web/api", "--", tt.args[len(tt.args)-1])...)
		if r.code != 0 || !strings.Contains(r.stderr, tt.told) || tt.told == "" && r.stderr != "" {
			t.Errorf("%v: want %q: %v", tt.args, tt.told, r)
		}
	}
	machine, ok := map[string]byte{"amd64": 3, "arm64": 40}[runtime.GOARCH]
	tctest.Require(t, ok, "a processor with a 32-bit mode")
	elf := write("elf32", "\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00"+string([]byte{machine, 0}), 0)
	n.fails(exitCannotRun, "elf32: it is a 32-bit program", "run", "eth0/web/api", "--", elf)
	// one for another processor is its interpreter's
	other := write("other", "\x7fELF\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x08\x00", 0)
	n.fails(exitCannotRun, "other: exec format error", "run", "eth0/web/api", "--", other)
}

// TestKernelLockMountsRefused: what bubblewrap does first is refused to all, in a user
// namespace too, and not at level tag; the words of run about it are true.
func TestKernelLockMountsRefused(t *testing.T) {
	n := newLocked(t)
	unshare := tctest.RequireProgram(t, "unshare")
	for _, user := range []string{"0:0", "65534:65534"} {
		for level, want := range map[string]bool{"lock": false, "tag": true} {
			r := n.run("run", "--level", level, "--user", user, "eth0/web/api", "--",
				unshare, "--user", "--map-root-user", "--mount", "--propagation", "unchanged", "mount", "-t", "tmpfs", "none", "/tmp")
			if (r.code == 0) != want || !want && !strings.Contains(r.stderr, "permission denied") {
				t.Errorf("user %s at level %s mounts: %v, want %v", user, level, r, want)
			}
		}
	}
}
