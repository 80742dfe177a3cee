// Package guest is the inside of a machine of package vm: what runs as its
// first process, and as the modprobe that the kernel calls.
package guest

import "strings"

// JobFile is where the machine finds its [Job], as JSON.
const JobFile = "/job.json"

// Base is where systemd's machine has what is at the top of others.
const Base = "/vm"

// Rebooted is the variable that the program has after a reboot.
const Rebooted = "VIFSHAPE_VM_REBOOTED"

// Modules lists the modules that the machine may load, one a line: name, the
// modules it needs (space separated, "?" before those it can do without) and
// its aliases (space separated patterns), separated by tabs. The modules
// themselves are in ModuleDir as NAME.ko.
const (
	Modules   = "/modules.txt"
	ModuleDir = "/modules"
)

// Job is what a machine is booted for.
type Job struct {
	Args    []string // program and arguments
	Reboot  bool     // whether it runs once more, after a reboot
	Env     []string
	Dir     string // working directory
	Cgroup  string // "v2", "hybrid" or "v1"
	Systemd bool   // whether the first process is systemd, on the disk
	Output  string // terminal device that the program writes to
	Mark    string // random word that starts the last line, followed by the exit status
}

// ModuleName is the one form of a module's name that the kernel uses for both
// spellings, with a dash and with an underscore.
func ModuleName(s string) string { return strings.ReplaceAll(s, "-", "_") }
