//go:build linux

package rtnl

import (
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// HasModule looks for a module among those in use and in the lists of the kernel's;
// known says that there are lists.
func HasModule(name string) (has, known bool) {
	if _, err := os.Stat("/sys/module/" + name); err == nil {
		return true, true
	}
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return false, false
	}
	dir := filepath.Join("/lib/modules", unix.ByteSliceToString(u.Release[:]))
	for _, list := range []string{"modules.builtin", "modules.dep"} {
		b, err := os.ReadFile(filepath.Join(dir, list))
		if err != nil {
			continue
		}
		known = true
		if strings.Contains(string(b), "/"+name+".ko") {
			return true, true
		}
	}
	return false, known
}
