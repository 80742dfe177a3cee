package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// Settings are what the machine's administrator chose that bears on bindings.
type Settings struct {
	// Compiled says whether the kernel turns BPF programs into machine code; nil
	// where that could not be tried, which takes CAP_BPF.
	Compiled *bool
	// Unprivileged is kernel.unprivileged_bpf_disabled: "0" lets everybody load
	// some kinds of programs, "1" and "2" nobody without CAP_BPF. Empty: a kernel
	// without BPF.
	Unprivileged string
	// BTF says whether the kernel describes its own types.
	BTF bool

	Cgroup2  string   // where cgroup v2 is mounted in this mount namespace; empty: nowhere
	Options  []string // of that file system
	Delegate bool     // nsdelegate is among them
	Systemd  bool     // systemd keeps the cgroups
}

// ReadSettings reads them. It changes nothing.
func ReadSettings() (Settings, error) {
	var s Settings
	var errs []error
	b, err := os.ReadFile("/proc/sys/kernel/unprivileged_bpf_disabled")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	s.Unprivileged = strings.TrimSpace(string(b))
	_, err = os.Stat("/sys/kernel/btf/vmlinux")
	s.BTF = err == nil
	// The manager says so itself (sd_booted(3)).
	st, err := os.Lstat("/run/systemd/system")
	s.Systemd = err == nil && st.IsDir()
	if s.Compiled, err = compiled(); err != nil {
		errs = append(errs, err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup2"))
	if err != nil {
		errs = append(errs, fmt.Errorf("read mounts: %w", err))
	}
	if len(mounts) > 0 {
		s.Cgroup2, s.Options = mounts[0].Mountpoint, strings.Split(mounts[0].VFSOptions, ",")
		s.Delegate = slices.Contains(s.Options, "nsdelegate")
	}
	return s, errors.Join(errs...)
}

// compiled looks at what becomes of the smallest program there is.
func compiled() (*bool, error) {
	if caps.Lacking(unix.CAP_BPF) != nil || caps.Lacking(unix.CAP_NET_ADMIN) != nil {
		return nil, nil
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "MIT", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 0), asm.Return()}})
	if err != nil {
		return nil, nil // [Probe] says why
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return nil, err
	}
	n, err := info.JitedSize()
	if errors.Is(err, ebpf.ErrNotSupported) {
		n, err = 0, nil
	}
	yes := n > 0
	return &yes, err
}
