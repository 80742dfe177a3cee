//go:build linux

package vm

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/tctest/vm/guest"
)

// Layout says how cgroups are mounted in the machine.
type Layout string

// The layouts that distributions use.
const (
	V2     Layout = "v2"     // cgroup v2 alone
	Hybrid Layout = "hybrid" // v2 in the folder unified, v1 net_cls beside it
	V1     Layout = "v1"     // every controller of v1, no v2
)

// Config says what to boot and what to run. Kernel and Program are needed.
type Config struct {
	Kernel  Kernel
	Cgroup  Layout // empty is V2
	Program string // a static executable
	Args    []string
	Reboot  bool          // with Systemd: when the program has succeeded the machine is rebooted, and it runs once more
	Env     []string      // NAME=VALUE, besides PATH, HOME, TMPDIR, VIFSHAPE_VM=1 and, after a reboot, VIFSHAPE_VM_REBOOTED=1
	Dir     string        // its subdirectory testdata is copied; empty: nothing is
	Tools   []string      // programs of the host to copy with their libraries, unless missing; not for Systemd, which has its own
	Without []string      // modules that the machine shall lack
	Memory  int           // MiB; 0 is 512
	Timeout time.Duration // for the whole machine; 0 is 40 minutes
	Output  io.Writer     // of the program; nil: thrown away
	Console io.Writer     // of the kernel; nil: shown only in an error
}

// longest is how long a machine runs that was given no Timeout.
const longest = 40 * time.Minute

var errStopped = errors.New("the machine was stopped")

// Boot boots the machine, runs the program and returns its exit status. An
// error means that the machine failed, or was stopped by ctx or the timeout;
// one that is [ErrNoKernel] that it could not be had.
func Boot(ctx context.Context, c Config) (status int, err error) {
	if c.Cgroup == "" {
		c.Cgroup = V2
	}
	if !slices.Contains([]Layout{V2, Hybrid, V1}, c.Cgroup) {
		return 0, fmt.Errorf("%q is no layout of cgroups: say v2, hybrid or v1", c.Cgroup)
	}
	switch {
	case c.Kernel.systemd && c.Cgroup != V2:
		return 0, fmt.Errorf("systemd is booted with cgroups v2 alone, not %s", c.Cgroup)
	case !c.Kernel.systemd && c.Reboot:
		return 0, fmt.Errorf("kernel %v keeps nothing over a reboot: say systemd", c.Kernel)
	}
	if c.Memory == 0 {
		c.Memory = 512
	}
	if c.Timeout == 0 {
		c.Timeout = longest
	}
	if c.Output == nil {
		c.Output = io.Discard
	}
	kernel, err := c.Kernel.find(ctx)
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "vifshape-vm-")
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	mark := "exit-" + rand.Text()
	initrd := filepath.Join(dir, "initrd")
	if err := c.pack(ctx, kernel, initrd, mark); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.Timeout, fmt.Errorf("%w after %v", errStopped, c.Timeout.Round(time.Second)))
	defer cancel()
	m := machine{Config: c, kernel: kernel, dir: dir, initrd: initrd}
	if err := m.room(); err != nil {
		return 0, err
	}
	output, wait, err := m.start(ctx)
	if err != nil {
		return 0, err
	}
	status, ended, err := relay(output, c.Output, mark)
	output.Close()
	werr := wait()
	console, cerr := os.ReadFile(m.console())
	if c.Console != nil {
		_, e := c.Console.Write(console)
		err = errors.Join(err, e)
	}
	line, trouble := c.trouble(console)
	if ended && status == 128+int(unix.SIGKILL) && trouble != nil {
		err = errors.Join(err, fmt.Errorf("machine with kernel %v: %w: %s", c.Kernel, trouble, line))
	}
	if ended || err != nil {
		return status, errors.Join(err, cerr)
	}
	switch {
	case ctx.Err() != nil:
		werr = context.Cause(ctx)
	case trouble != nil:
		werr = trouble
	case werr == nil:
		werr = errors.New("it switched itself off")
	}
	return 0, fmt.Errorf("machine with kernel %v ended without a result: %w\n%s", c.Kernel, werr, last(console))
}

// trouble is what the kernel died of, or killed the program for, and the line in
// which it says so; nil if it tells of nothing.
func (c *Config) trouble(console []byte) (line []byte, err error) {
	for line := range bytes.Lines(console) {
		line = bytes.TrimSpace(line)
		switch {
		case bytes.Contains(line, []byte("] Out of memory: ")), bytes.HasPrefix(line, []byte("Out of memory: ")):
			return line, fmt.Errorf("its %d MiB of memory were not enough", c.Memory)
		case bytes.Contains(line, []byte("Kernel panic - ")):
			return line, errors.New("its kernel panicked")
		}
	}
	return nil, nil
}

// last is the end of what the kernel said, from its first complaint on if that
// is not too long.
func last(console []byte) []byte {
	end := console[max(0, len(console)-8000):]
	if i := complaint.FindIndex(end); i != nil {
		return end[i[0]:]
	}
	return end[max(0, len(end)-4000):]
}

var complaint = regexp.MustCompile(`(?m)^.*(BUG: |Oops|general protection fault|invalid opcode|int3|WARNING: |Kernel panic|Out of memory).*$`)

// relay copies the program's output up to the line with its exit status.
func relay(r io.Reader, w io.Writer, mark string) (status int, ended bool, err error) {
	br := bufio.NewReader(r)
	for {
		line, rerr := br.ReadSlice('\n')
		if before, after, ok := bytes.Cut(line, []byte(mark)); ok {
			if _, err := w.Write(before); err != nil {
				return 0, false, err
			}
			status, err := strconv.Atoi(string(bytes.TrimSpace(after)))
			return status, err == nil, err
		}
		if _, err := w.Write(line); err != nil {
			return 0, false, err
		}
		// A machine that ends closes the pipe; what its end means the
		// caller says.
		if rerr != nil && rerr != bufio.ErrBufferFull {
			return 0, false, nil
		}
	}
}

// pack writes the machine's file system.
func (c *Config) pack(ctx context.Context, k files, to, mark string) error {
	f, err := os.Create(to)
	if err != nil {
		return err
	}
	defer f.Close()
	w := newCPIO(f)
	for _, d := range []string{"proc", "sys", "dev", "tmp", "run", "root", "mnt", "var", "job"} {
		w.dir(d)
	}
	w.device("dev/console", 5, 1)
	w.symlink("var/run", "/run")
	w.symlink("sbin/modprobe", "../init")
	w.file("etc/passwd", 0o644, []byte("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n"))
	w.file("etc/group", 0o644, []byte("root:x:0:\nnogroup:x:65534:\n"))
	w.file("etc/hosts", 0o644, []byte("127.0.0.1 localhost\n"))

	init := to + ".init"
	cmd := exec.CommandContext(ctx, "go", "build", "-o", init, "-ldflags=-s -w", "github.com/vifshape/vifshape/tc/tctest/vm/init")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the machine's init: %w: %s", err, out)
	}
	w.copy("init", init, 0o755)

	program := filepath.Join("/job", filepath.Base(c.Program))
	if static, err := isStatic(c.Program); err != nil {
		return err
	} else if !static {
		return fmt.Errorf("%s is not static: build it with CGO_ENABLED=0", c.Program)
	}
	w.copy(program, c.Program, 0o755)
	if data := filepath.Join(c.Dir, "testdata"); c.Dir != "" && isDir(data) {
		w.copyTree("job/testdata", data)
	}
	base := ""
	if c.Kernel.systemd {
		base = guest.Base
	} else {
		for _, t := range c.Tools {
			if err := copyTool(ctx, w, t); err != nil {
				return err
			}
		}
	}
	if k.modules != "" {
		if err := addModules(w, k.modules, c.Without); err != nil {
			return err
		}
	}
	job, err := json.Marshal(guest.Job{
		Args:    append([]string{base + program}, c.Args...),
		Reboot:  c.Reboot,
		Env:     append([]string{"PATH=/bin:/sbin:/usr/bin:/usr/sbin", "HOME=/root", "TMPDIR=/tmp", "VIFSHAPE_VM=1"}, c.Env...),
		Dir:     base + "/job",
		Cgroup:  string(c.Cgroup),
		Systemd: c.Kernel.systemd,
		Output:  "/dev/ttyS1",
		Mark:    mark,
	})
	if err != nil {
		return err
	}
	w.file(guest.JobFile, 0o644, job)
	if err := w.close(); err != nil {
		return err
	}
	return f.Close()
}

func isDir(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.IsDir()
}

// libraries finds the paths in what ldd prints.
var libraries = regexp.MustCompile(`(?m)(?:=> |^\s*)(/\S+) \(0x`)

// copyTool adds a program of the host with the shared libraries that it needs.
func copyTool(ctx context.Context, w *cpio, name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return nil // the test that wants it skips, as on any machine
	}
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return err
	}
	w.copy(filepath.Join("bin", name), path, 0o755)
	if static, err := isStatic(path); static || err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "ldd", path).Output()
	if err != nil {
		return fmt.Errorf("ldd %s: %w", path, err)
	}
	for _, m := range libraries.FindAllSubmatch(out, -1) {
		w.copy(string(m[1]), string(m[1]), 0o755)
	}
	return w.err
}

// machine is one that is being booted.
type machine struct {
	Config
	kernel      files
	dir, initrd string
}

func (m *machine) console() string { return filepath.Join(m.dir, "console") }

// start starts the machine. wait waits for its end and removes what is left of
// its processes.
func (m *machine) start(ctx context.Context) (output *os.File, wait func() error, err error) {
	console, err := os.OpenFile(m.console(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, nil, err
	}
	defer console.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return nil, nil, err
	}
	defer w.Close()
	var cmd *exec.Cmd
	if m.Kernel.uml {
		if cmd, err = m.uml(ctx); err != nil {
			return nil, nil, err
		}
		cmd.Stdout, cmd.ExtraFiles = console, []*os.File{w}
	} else {
		cmd = m.qemu(ctx)
		cmd.Stdout = w
	}
	cmd.Stderr = console
	// A group of its own, to kill it whole: user-mode Linux is many
	// processes. The first also ends with the thread that started it, so that
	// a test that is killed leaves none; the others end with a process
	// namespace, for which it takes root. Its first process is a shell:
	// one that panics cannot abort if it is itself the first.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGKILL}
	if m.Kernel.uml && os.Geteuid() == 0 {
		cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWPID
		cmd.Path, cmd.Args = "/bin/sh", append([]string{"sh", "-c", `"$@"; exit $?`, "sh", m.kernel.image}, cmd.Args[1:]...)
	}
	kill := func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.Cancel = kill
	started, ended := make(chan error), make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		free, err := m.pin()
		if err == nil {
			err = cmd.Start()
			defer free()
		}
		started <- err
		if err == nil {
			ended <- cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		r.Close()
		return nil, nil, fmt.Errorf("start machine: %w", err)
	}
	return r, func() error {
		err := <-ended
		if e := kill(); e != nil && e != unix.ESRCH {
			err = errors.Join(err, e)
		}
		return err
	}, nil
}

// pinned are the processors that machines of this process keep to, with how many.
var pinned = struct {
	sync.Mutex
	on map[int]int
}{on: map[int]int{}}

// pin has what this thread starts from now on keep to the processor that has the
// fewest machines, until free is called. User-mode Linux is a process that runs the
// programs in others and waits for them at every system call: on one processor that is
// three times as fast as on two.
func (m *machine) pin() (free func(), err error) {
	if !m.Kernel.uml {
		return func() {}, nil
	}
	var may, one unix.CPUSet
	if err := unix.SchedGetaffinity(0, &may); err != nil {
		return nil, os.NewSyscallError("sched_getaffinity", err)
	}
	pinned.Lock()
	defer pinned.Unlock()
	cpu := -1
	for i := range len(may) * 64 {
		if may.IsSet(i) && (cpu < 0 || pinned.on[i] < pinned.on[cpu]) {
			cpu = i
		}
	}
	one.Set(cpu)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		return nil, os.NewSyscallError("sched_setaffinity", err)
	}
	pinned.on[cpu]++
	return func() {
		pinned.Lock()
		defer pinned.Unlock()
		pinned.on[cpu]--
		_ = unix.SchedSetaffinity(0, &may) // it was allowed before
	}, nil
}

// uml is the command line of user-mode Linux. Its second serial line is
// descriptor 3.
func (m *machine) uml(ctx context.Context) (*exec.Cmd, error) {
	cmd := exec.CommandContext(ctx, m.kernel.image,
		fmt.Sprintf("mem=%dM", m.Memory), "initrd="+m.initrd, "uml_dir="+m.dir, "umid=machine",
		"con=null", "con0=null,fd:1", "console=tty0", "ssl=null", "ssl1=null,fd:3", "panic=-1", "quiet")
	if m.kernel.root != "" {
		// What is written goes to the first file, also over a reboot.
		cmd.Args = append(cmd.Args, "ubd0="+filepath.Join(m.dir, "disk")+","+m.kernel.root)
	}
	if m.Kernel.append != "" {
		cmd.Args = append(cmd.Args, strings.Fields(m.Kernel.append)...)
	}
	cmd.Env = append(os.Environ(), "TMPDIR="+m.memory())
	if !wide() {
		return cmd, nil
	}
	library := filepath.Join(m.dir, "xstate.so")
	gcc := exec.CommandContext(ctx, "gcc", "-O1", "-shared", "-fPIC", "-o", library, "-x", "c", "-")
	gcc.Stdin = strings.NewReader(xstate)
	if out, err := gcc.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build what user-mode Linux takes on this processor: %w: %s", err, out)
	}
	cmd.Env = append(cmd.Env, "LD_PRELOAD="+library)
	return cmd, nil
}

//go:embed xstate.c
var xstate string

// room says whether the memory file of user-mode Linux finds a place: it has
// holes, and a disk that becomes full ends the machine without a word.
func (m *machine) room() error {
	if !m.Kernel.uml || m.memory() != m.dir {
		return nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(m.dir, &st); err != nil {
		return fmt.Errorf("%s: %w", m.dir, err)
	}
	if free := int64(st.Bavail) * int64(st.Bsize) >> 20; free < int64(m.Memory) {
		return fmt.Errorf("%s has %d MiB left, and the machine's memory takes %d: set TMPDIR to a larger place", m.dir, free, m.Memory)
	}
	return nil
}

// memory is where user-mode Linux keeps its memory file: in /dev/shm if that is
// large enough and lets code in it run, which containers often forbid.
func (m *machine) memory() string {
	const shm = "/dev/shm"
	var st unix.Statfs_t
	if unix.Statfs(shm, &st) != nil || int64(st.Bavail)*int64(st.Bsize) < int64(m.Memory+64)<<20 {
		return m.dir
	}
	f, err := os.CreateTemp(shm, "vifshape-vm-")
	if err != nil {
		return m.dir
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if f.Truncate(4096) != nil {
		return m.dir
	}
	b, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_EXEC, unix.MAP_SHARED)
	if err != nil || unix.Munmap(b) != nil {
		return m.dir
	}
	return shm
}

// qemu is the command line for a kernel on an emulated processor. Its second
// serial line is the standard output. It has one processor: with two, kernels
// that rewrite their own code (static keys, on the first clsact) were seen to
// panic under emulation, and two machines share few processors anyway. The timer
// is not checked at boot (timer_irq_works, arch/x86/kernel/apic/io_apic.c, v6.1):
// on a busy host it may be late, and the kernel panics then. What the processor lacks,
// and what the kernel leaves out, takes an emulated one a quarter of its time.
func (m *machine) qemu(ctx context.Context) *exec.Cmd {
	return exec.CommandContext(ctx, qemu,
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-M", "pc", "-accel", "tcg,thread=multi", "-cpu", "qemu64,+cx16,+popcnt,+ssse3,+sse4.1,+sse4.2", "-smp", "1", "-m", strconv.Itoa(m.Memory),
		"-kernel", m.kernel.image, "-initrd", m.initrd,
		"-append", "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check mitigations=off nokaslr init_on_alloc=0 hardened_usercopy=off randomize_kstack_offset=off",
		"-chardev", "file,id=console,append=on,path="+m.console(), "-serial", "chardev:console",
		"-chardev", "stdio,id=output,signal=off", "-serial", "chardev:output")
}
