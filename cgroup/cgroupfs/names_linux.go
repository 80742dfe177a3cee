package cgroupfs

import (
	"slices"
	"strings"
)

// Escape makes a cgroup's name of any other name, as systemd does: files that
// the kernel puts into every cgroup are kept out of the way by an underscore
// (cg_escape, src/basic/cgroup-util.c, systemd 252).
func Escape(name string) string {
	if reserved(name) {
		return "_" + name
	}
	return name
}

// Unescape is the inverse of [Escape].
func Unescape(name string) string { return strings.TrimPrefix(name, "_") }

func reserved(name string) bool {
	if name == "" || name[0] == '_' || name[0] == '.' {
		return true
	}
	switch name {
	case "tasks", "notify_on_release", "release_agent":
		return true
	}
	controller, _, ok := strings.Cut(name, ".")
	return ok && slices.Contains([]string{
		"cgroup", "cpu", "cpuacct", "cpuset", "io", "blkio", "memory", "devices", "pids", "freezer", "hugetlb",
		"net_cls", "net_prio", "perf_event", "rdma", "misc", "dmem", "irq",
	}, controller)
}
