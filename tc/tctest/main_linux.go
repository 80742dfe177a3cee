package tctest

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// runEnv holds the pid of the run that started a process, directly or not.
const runEnv = "VIFSHAPE_TEST_RUN"

// Main is for TestMain: it runs the tests, at a time when no other package's
// tests run, and exits. In a process started by [Command] it is an actor
// instead. After tests that succeeded it looks for leftovers, and fails the run
// when it finds a network namespace, a socket, a process, a mount, a cgroup or a
// temporary directory that a test forgot.
func Main(m *testing.M, v Verbs) {
	if os.Getenv(actEnv) != "" {
		os.Exit(v.act(os.Args[1:]))
	}
	if err := alone(); err != nil {
		fmt.Fprintln(os.Stderr, "tctest:", err)
		os.Exit(1)
	}
	if err := os.Setenv(runEnv, strconv.Itoa(os.Getpid())); err != nil {
		fmt.Fprintln(os.Stderr, "tctest:", err)
		os.Exit(1)
	}
	before := descriptors()
	code := m.Run()
	if code == 0 {
		// Processes and descriptors may still be on their way out.
		deadline := time.Now().Add(2 * time.Second)
		left := leftovers(before)
		for len(left) > 0 && time.Now().Before(deadline) {
			time.Sleep(20 * time.Millisecond)
			left = leftovers(before)
		}
		for _, l := range left {
			fmt.Fprintln(os.Stderr, "left behind by a test:", l)
			code = 1
		}
	}
	os.Exit(code)
}

// alone waits until no other package's tests run: "go test ./..." starts several
// at a time, and some measure rates while others fill the processors. The lock
// goes with the process. A test binary that a test starts is part of its run.
func alone() error {
	if os.Getenv(runEnv) != "" {
		return nil
	}
	name := filepath.Join(os.TempDir(), fmt.Sprintf("vifshape-test-%d.lock", os.Getuid()))
	fd, err := unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	for {
		if err = unix.Flock(fd, unix.LOCK_EX); err != unix.EINTR {
			return err
		}
	}
}

// descriptors counts the open network namespaces and sockets of this process.
func descriptors() map[string]int {
	n := map[string]int{}
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return n
	}
	for _, fd := range fds {
		target, err := os.Readlink("/proc/self/fd/" + fd.Name())
		if err != nil {
			continue // closed since
		}
		switch kind, _, _ := strings.Cut(target, ":"); kind {
		case "net":
			n["open network namespace"]++
		case "socket":
			n["open socket"]++
		}
	}
	return n
}

// leftovers lists what is there and was not before.
func leftovers(before map[string]int) []string {
	var left []string
	for what, n := range descriptors() {
		if n > before[what] {
			left = append(left, fmt.Sprintf("%d x %s", n-before[what], what))
		}
	}
	mark := []byte(runEnv + "=" + strconv.Itoa(os.Getpid()) + "\x00")
	procs, _ := filepath.Glob("/proc/[0-9]*/environ")
	for _, p := range procs {
		// Unreadable: gone, or not ours.
		if b, err := os.ReadFile(p); err == nil && bytes.Contains(b, mark) {
			pid := filepath.Base(filepath.Dir(p))
			if pid != strconv.Itoa(os.Getpid()) {
				cmd, _ := os.ReadFile("/proc/" + pid + "/cmdline")
				left = append(left, fmt.Sprintf("process %s: %s", pid, bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
			}
		}
	}
	m, err := mountinfo.GetMounts(nil)
	if err != nil {
		left = append(left, "mounts that cannot be listed: "+err.Error())
	}
	dirs := []string{os.TempDir(), "/run/netns"}
	for _, i := range m {
		if strings.Contains(i.Mountpoint, "/"+prefix()) {
			left = append(left, "mount "+i.Mountpoint)
		}
		if i.FSType == "cgroup2" || i.FSType == "cgroup" {
			dirs = append(dirs, i.Mountpoint)
		}
	}
	for _, d := range dirs {
		entries, err := os.ReadDir(d)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			left = append(left, err.Error())
		}
		for _, e := range entries {
			if strings.HasPrefix(e.Name(), prefix()) {
				left = append(left, filepath.Join(d, e.Name()))
			}
		}
	}
	return left
}
