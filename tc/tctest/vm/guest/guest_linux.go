package guest

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Main is the whole of the machine's first process. It does not return: the
// machine is switched off at the end. Called as modprobe it loads modules and
// returns the exit status. Where systemd is the first process, it is the one before
// that, and then its unit.
func Main() int {
	if filepath.Base(os.Args[0]) == "modprobe" {
		return modprobe(os.Args[1:])
	}
	unit := len(os.Args) == 2 && os.Args[1] == unitArg
	if os.Getpid() != 1 && !unit {
		fmt.Fprintln(os.Stderr, "this program is the first process of a test machine")
		return 2
	}
	again, err := run(unit)
	if err != nil {
		klog(err)
	}
	if again {
		return 0
	}
	unix.Sync()
	// Only fails for want of privileges.
	_ = unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
	return 1
}

// klog writes to the kernel log, which the host shows when something fails.
func klog(err error) {
	if f, e := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0); e == nil {
		fmt.Fprintf(f, "init: %v\n", err)
		f.Close()
	}
}

// run says whether the machine is on its way to run the job's program again.
func run(unit bool) (again bool, err error) {
	b, err := os.ReadFile(base() + JobFile)
	if err != nil {
		return false, err
	}
	var j Job
	if err := json.Unmarshal(b, &j); err != nil {
		return false, err
	}
	switch {
	case unit:
		j, err = j.now()
	case j.Systemd:
		return false, systemd()
	default:
		// A machine that lacks something runs its job all the same: the job
		// knows what it needs.
		if err := setUp(j.Cgroup); err != nil {
			klog(err)
		}
	}
	if err != nil {
		return false, err
	}
	out, err := openTerminal(j.Output)
	if err != nil {
		return false, err
	}
	status, err := execute(j, out)
	if err != nil {
		fmt.Fprintln(out, err)
	}
	if status == 0 && j.Reboot {
		return true, reboot()
	}
	fmt.Fprintf(out, "%s %d\n", j.Mark, status)
	return false, unix.IoctlSetInt(int(out.Fd()), unix.TCSBRK, 1) // until it is written
}

// setUp makes a machine of what the kernel gives to its first process.
func setUp(cgroup string) error {
	var errs []error
	for _, m := range []struct{ kind, at, data string }{
		{"devtmpfs", "/dev", ""},
		{"proc", "/proc", ""},
		{"sysfs", "/sys", ""},
		{"devpts", "/dev/pts", ""},
		{"tmpfs", "/dev/shm", ""},
		{"tmpfs", "/tmp", "mode=1777"},
		{"tmpfs", "/run", "mode=755"},
		{"bpf", "/sys/fs/bpf", ""},
	} {
		errs = append(errs, mount(m.kind, m.at, m.data))
	}
	return errors.Join(append(errs,
		os.WriteFile("/proc/sys/kernel/modprobe", []byte("/sbin/modprobe"), 0),
		unix.Sethostname([]byte("vifshape-test")),
		loopbackUp(),
		tunNode(),
		mountCgroups(cgroup),
		unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 65536, Max: 65536}),
		unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}))...)
}

func mount(kind, at, data string) error {
	if err := os.MkdirAll(at, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(kind, at, kind, 0, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", kind, at, err)
	}
	return nil
}

// openTerminal opens a terminal that passes every byte on as it is.
func openTerminal(path string) (*os.File, error) {
	fd, err := unix.Open(path, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err == nil {
		t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
		t.Cflag = unix.CS8 | unix.CREAD | unix.CLOCAL | unix.B115200
		err = unix.IoctlSetTermios(fd, unix.TCSETS, t)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("terminal %s: %w", path, err)
	}
	return os.NewFile(uintptr(fd), path), nil
}

// tunNode makes the device whose first use loads the module.
func tunNode() error {
	if err := os.MkdirAll("/dev/net", 0o755); err != nil {
		return err
	}
	if err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(10, 200))); err != nil && err != unix.EEXIST {
		return fmt.Errorf("make /dev/net/tun: %w", err)
	}
	return nil
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	r.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, r)
}

// mountCgroups makes one of the layouts that distributions use.
func mountCgroups(layout string) error {
	const root = "/sys/fs/cgroup"
	if layout == "v2" {
		return mountV2(root)
	}
	errs := []error{mount("tmpfs", root, "mode=755")}
	sets := []string{"net_cls,net_prio"}
	if layout == "v1" {
		sets = append(sets, "cpu,cpuacct", "cpuset", "memory", "blkio", "devices", "freezer", "pids")
	}
	known, err := os.ReadFile("/proc/cgroups")
	errs = append(errs, err)
	for _, set := range sets {
		var have []string
		for _, c := range strings.Split(set, ",") {
			if strings.Contains(string(known), "\n"+c+"\t") {
				have = append(have, c)
			}
		}
		if len(have) == 0 {
			continue
		}
		dir := strings.Join(have, ",")
		errs = append(errs, mount("cgroup", filepath.Join(root, dir), dir))
		for _, c := range have {
			if c != dir {
				errs = append(errs, os.Symlink(dir, filepath.Join(root, c)))
			}
		}
	}
	if layout == "hybrid" {
		errs = append(errs, mountV2(filepath.Join(root, "unified")))
	}
	return errors.Join(errs...)
}

// mountV2 mounts cgroup v2 and enables every controller below, as systemd does.
func mountV2(dir string) error {
	if err := mount("cgroup2", dir, "nsdelegate"); err != nil {
		return err
	}
	b, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	errs := []error{err}
	for _, c := range strings.Fields(string(b)) {
		errs = append(errs, os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+"+c), 0))
	}
	return errors.Join(errs...)
}

// execute runs the job's program and reaps whatever else dies meanwhile, as the
// first process has to.
func execute(j Job, out *os.File) (status int, err error) {
	cmd := exec.Command(j.Args[0], j.Args[1:]...)
	cmd.Env, cmd.Dir, cmd.Stdout, cmd.Stderr = j.Env, j.Dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return 127, err
	}
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, 0, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return 127, fmt.Errorf("wait: %w", err)
		case pid == cmd.Process.Pid && ws.Signaled():
			return 128 + int(ws.Signal()), fmt.Errorf("killed: %v", ws.Signal())
		case pid == cmd.Process.Pid:
			return ws.ExitStatus(), nil
		}
	}
}
