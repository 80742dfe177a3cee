package doctor

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// remedies knows how a part of the kernel that is missing can be had here.
type remedies struct {
	release string // of the kernel, as uname -r
	modules string // what modules.dep lists; empty where this kernel has no modules here
	distro  string // the distribution's name for itself and those it is like
}

func newRemedies() (remedies, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return remedies{}, fmt.Errorf("ask for the kernel's version: %w", err)
	}
	r := remedies{release: unix.ByteSliceToString(u.Release[:])}
	// What cannot be read says nothing, and no command is offered then.
	dep, _ := os.ReadFile(filepath.Join("/lib/modules", r.release, "modules.dep"))
	r.modules = string(dep)
	osRelease, _ := os.ReadFile("/etc/os-release")
	for line := range strings.Lines(string(osRelease)) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		if key == "ID" || key == "ID_LIKE" {
			r.distro += " " + strings.Trim(value, `"'`)
		}
	}
	return r, nil
}

// module says why a module is not there, and what brings it.
func (r *remedies) module(name string) (why string, fix []string) {
	config := configured(name)
	if config == "" {
		config = "CONFIG_" + strings.ToUpper(strings.Replace(name, "sch_", "net_sch_", 1))
	}
	is := func(d string) bool { return strings.Contains(r.distro+" ", " "+d+" ") }
	switch {
	case strings.Contains(r.modules, "/"+name+".ko"):
		return "its module is installed and was not loaded", []string{"modprobe " + name}
	case r.modules == "":
		return "this kernel has no modules here: it takes one built with " + config, nil
	case is("ubuntu"):
		return "it is not among the modules installed", []string{"apt install linux-modules-extra-" + r.release}
	case is("fedora") || is("rhel"):
		return "it is not among the modules installed", []string{"dnf install kernel-modules-extra-" + r.release}
	}
	return "it is not among the modules installed: it takes a kernel built with " + config, nil
}

// configured is the kernel's option for a module whose name does not tell.
func configured(module string) string {
	switch module {
	case "sch_ingress":
		return "CONFIG_NET_SCH_INGRESS"
	case "cls_bpf":
		return "CONFIG_NET_CLS_BPF"
	case "cls_cgroup":
		return "CONFIG_NET_CLS_CGROUP"
	case "act_mirred":
		return "CONFIG_NET_ACT_MIRRED"
	case "ifb":
		return "CONFIG_IFB"
	}
	return ""
}
