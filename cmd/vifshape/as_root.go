package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/words"
)

// asRoot says how to do as root what this process was called for, by arguments: with the
// line to type where that is known.
func asRoot(args []string) string {
	const how = "run it as root"
	if no, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil && no == 1 {
		return how + ", from outside of this session: its processes may gain no privileges (no_new_privs)"
	}
	if line := rootLine(os.Args[0], args, exec.LookPath); line != "" {
		return how + ": `" + line + "`"
	}
	return how
}

// rootLine is the line for a shell that starts a program as root, by the first of the
// machine's programs for that; empty where it has none.
func rootLine(program string, args []string, find func(string) (string, error)) string {
	line := []string{programForRoot(program, find)}
	line = append(line, args...)
	for i, w := range line {
		line[i] = words.Quoted(w)
	}
	text := strings.Join(line, " ")
	for _, by := range []string{"sudo", "doas"} {
		if _, err := find(by); err == nil {
			return by + " " + text
		}
	}
	if _, err := find("su"); err == nil {
		return "su -c " + words.Quoted(text)
	}
	return ""
}

// programForRoot is the name by which root finds a program that was called by some name.
// sudo has a PATH of its own, secure_path in sudoers, which not everywhere has /usr/local.
func programForRoot(name string, find func(string) (string, error)) string {
	at, err := find(name)
	if err != nil || strings.HasPrefix(at, "/proc/") { // root's /proc/self is another one
		at, err = os.Executable()
	}
	if err == nil {
		at, err = filepath.Abs(at)
	}
	if err != nil || !strings.Contains(name, "/") && slices.Contains([]string{"/usr/sbin", "/usr/bin", "/sbin", "/bin"}, filepath.Dir(at)) {
		return name
	}
	return at
}

// forUser are the arguments with which root does for this user what the user asked for: the
// program that run starts stays the user's.
func forUser(args []string) []string {
	if len(args) == 0 || args[0] != "run" {
		return args
	}
	as := fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
	if u, err := user.LookupId(fmt.Sprint(os.Getuid())); err == nil {
		as = u.Username
	}
	return slices.Concat(args[:1], []string{"--user", as}, args[1:])
}
