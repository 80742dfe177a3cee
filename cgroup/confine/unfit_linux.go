package confine

import (
	"encoding/binary"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// UnfitError says that a program cannot run at LevelLock at all.
type UnfitError struct {
	Name string
	Why  string
}

func (e *UnfitError) Error() string { return fmt.Sprintf("run %s: %s", e.Name, e.Why) }

// sandboxers start what they start by bubblewrap, which makes mounts in namespaces of its
// own. In a Landlock domain nobody mounts, whatever else is allowed (hook_sb_mount,
// security/landlock/fs.c, v6.12).
var sandboxers = []string{"bwrap", "flatpak", "steam"}

// fits finds out of a program what would only show in the middle of it: an error where
// it can do nothing, and words for warn where it lacks what it may need.
func (r *ready) fits(name string, warn func(string)) error {
	if native32(r.path) && seccompAvailable() == nil {
		return &UnfitError{name, "it is a 32-bit program, of which levels lock and best let no system call through"}
	}
	path, err := filepath.EvalSymlinks(r.path)
	if err != nil {
		return nil // exec will say it
	}
	if slices.Contains(sandboxers, filepath.Base(path)) || slices.Contains(sandboxers, filepath.Base(r.path)) ||
		strings.Contains(path, "/flatpak/exports/bin/") {
		warn(fmt.Sprintf("%s makes sandboxes of namespaces and mounts (bubblewrap), which levels lock and best refuse: level tag lets it", name))
		return nil
	}
	uid := os.Getuid()
	if r.switches {
		uid = r.uid
	}
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err == nil && st.Mode&unix.S_ISUID != 0 && int(st.Uid) != uid {
		warn(fmt.Sprintf("%s has the set-user-id bit, which does not count at levels lock and best: it runs as user %d; level tag lets it become user %d", name, uid, st.Uid))
	}
	return nil
}

// native32 says whether a file is a program for this processor's 32-bit mode.
func native32(path string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false // it may be executed and not read
	}
	defer f.Close()
	var h [20]byte // the beginning of struct elf32_hdr, include/uapi/linux/elf.h
	if _, err := io.ReadFull(f, h[:]); err != nil || string(h[:5]) != "\x7fELF\x01" {
		return false
	}
	machine := binary.LittleEndian.Uint16(h[18:])
	switch runtime.GOARCH {
	case "amd64":
		return machine == 3 || machine == 62 // EM_386; EM_X86_64, which is x32
	case "arm64":
		return machine == 40 // EM_ARM
	}
	return false
}
