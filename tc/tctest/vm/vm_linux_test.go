package vm_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

func TestMain(m *testing.M) {
	tctest.Main(m, tctest.Verbs{
		"report": func(x tctest.Told) (string, error) { return "", json.NewEncoder(os.Stdout).Encode(look(x.Args)) },
		"exit": func(tctest.Told) (string, error) {
			os.Exit(3)
			return "", nil
		},
		"hang": func(tctest.Told) (string, error) {
			fmt.Println("hanging")
			time.Sleep(time.Hour)
			return "", nil
		},
		"panic": func(tctest.Told) (string, error) { return "", os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0) },
		"eat": func(tctest.Told) (string, error) {
			for kept := [][]byte{}; ; kept = append(kept, bytes.Repeat([]byte("x"), 1<<20)) {
				if len(kept) == 1<<20 {
					return "", errors.New("a TiB is not enough")
				}
			}
		},
		"boot": func(tctest.Told) (string, error) {
			self, err := os.Executable()
			if err != nil {
				return "", err
			}
			status, err := vm.Boot(context.Background(), vm.Config{
				Kernel: vm.UML(), Program: self, Args: []string{"hang"}, Env: []string{tctest.Acting}, Output: os.Stdout,
			})
			return "", errors.Join(err, fmt.Errorf("it ended with status %d", status))
		},
	})
}

// report is what a program sees in a machine.
type report struct {
	Args     []string
	Env      string   // of the variable VM_TEST
	Data     string   // testdata/hello
	Cgroups  []string // mount point, kind and, for v1, controllers
	Tool     bool     // whether the tool "ls" is there
	PID1     string
	Writable bool
}

func look(args []string) report {
	r := report{Args: args, Env: os.Getenv("VM_TEST")}
	b, _ := os.ReadFile("testdata/hello")
	r.Data = string(b)
	mounts, _ := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	for _, m := range mounts {
		if m.FSType == "cgroup2" || strings.Contains(m.VFSOptions, "net_cls") {
			r.Cgroups = append(r.Cgroups, m.Mountpoint+" "+m.FSType)
		}
	}
	_, err := os.Stat("/bin/ls")
	r.Tool = err == nil
	b, _ = os.ReadFile("/proc/1/comm")
	r.PID1 = strings.TrimSpace(string(b))
	r.Writable = os.WriteFile("/tmp/x", nil, 0o600) == nil
	return r
}

// config is a machine with this test binary for an actor.
func config(t *testing.T, k vm.Kernel, told ...string) vm.Config {
	t.Helper()
	vm.RequireKernel(t, k)
	return vm.Config{Kernel: k, Program: vm.Build(t, "."), Args: told, Env: []string{tctest.Acting}}
}

func TestVMLayouts(t *testing.T) {
	base := config(t, vm.UML(), "report")
	dir := t.TempDir()
	if err := os.Mkdir(filepath.Join(dir, "testdata"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "testdata", "hello"), []byte("hello"), 0o644); err != nil {
		t.Fatal(err)
	}
	for layout, cgroups := range map[vm.Layout][]string{
		"":        {"/sys/fs/cgroup cgroup2"},
		vm.V2:     {"/sys/fs/cgroup cgroup2"},
		vm.Hybrid: {"/sys/fs/cgroup/net_cls cgroup", "/sys/fs/cgroup/unified cgroup2"},
		vm.V1:     {"/sys/fs/cgroup/net_cls cgroup"},
	} {
		t.Run("layout "+string(layout), func(t *testing.T) {
			var out, console bytes.Buffer
			c := base
			c.Cgroup, c.Dir, c.Args, c.Tools = layout, dir, []string{"report", "a", "b c"}, []string{"ls", "no-such-tool"}
			c.Env = append(slices.Clone(c.Env), "VM_TEST=yes")
			c.Output, c.Console = &out, &console
			status, err := vm.Boot(t.Context(), c)
			if status != 0 || err != nil {
				t.Fatalf("status %d, %v\n%s%s", status, err, out.Bytes(), console.Bytes())
			}
			var got report
			if err := json.Unmarshal(out.Bytes(), &got); err != nil {
				t.Fatalf("%v\n%s", err, out.Bytes())
			}
			slices.Sort(got.Cgroups)
			want := report{Args: c.Args[1:], Env: "yes", Data: "hello", Cgroups: cgroups, Tool: true, PID1: "init", Writable: true}
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if console.Len() == 0 {
				t.Error("the kernel said nothing")
			}
		})
	}
}

func TestVMStatus(t *testing.T) {
	if status, err := vm.Boot(t.Context(), config(t, vm.UML(), "exit")); status != 3 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
}

// A machine that hangs is stopped, and nothing is left of it: TestMain looks.
func TestVMStops(t *testing.T) {
	c := config(t, vm.UML(), "hang")
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	c.Timeout = 10 * time.Second
	var out bytes.Buffer
	c.Output = &out
	if _, err := vm.Boot(t.Context(), c); err == nil || !strings.Contains(err.Error(), "the machine was stopped after 10s") {
		t.Errorf("after the timeout: %v", err)
	}
	if out.String() != "hanging\n" {
		t.Errorf("output before: %q", out.String())
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := vm.Boot(ctx, c); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("after the end of the context: %v", err)
	}
	left, err := os.ReadDir(tmp)
	if err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// A machine that dies says what of, in the kernel's own words.
func TestVMDies(t *testing.T) {
	for program, words := range map[string][]string{
		"panic": {"its kernel panicked", "Kernel panic - not syncing: sysrq triggered crash"},
		"eat":   {"its 128 MiB of memory were not enough", "Out of memory: Killed process"},
	} {
		t.Run(program, func(t *testing.T) {
			c := config(t, vm.UML(), program)
			c.Memory = 128
			_, err := vm.Boot(t.Context(), c)
			for _, w := range words {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("not %q: %v", w, err)
				}
			}
		})
	}
}

// A host without room for the machine says so, and nothing is left.
func TestVMNoRoom(t *testing.T) {
	tctest.RequireRoot(t)
	base := config(t, vm.UML(), "exit")
	for size, words := range map[string]string{
		"1m":   "no space left on device",
		"200m": "and the machine's memory takes 1048576: set TMPDIR to a larger place",
	} {
		t.Run(size, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			}()
			t.Setenv("TMPDIR", dir)
			t.Setenv("GOTMPDIR", "/tmp")
			c := base
			c.Memory = 1 << 20 // more than /dev/shm has
			if _, err := vm.Boot(t.Context(), c); err == nil || !strings.Contains(err.Error(), words) {
				t.Errorf("not %q: %v", words, err)
			}
			if left, err := os.ReadDir(dir); err != nil || len(left) != 0 {
				t.Errorf("left behind: %v, %v", left, err)
			}
		})
	}
}

// A machine goes with the process that booted it, however that ends.
func TestVMKilled(t *testing.T) {
	tctest.RequireRoot(t)
	c := config(t, vm.UML())
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Program, "boot")
	cmd.Env = append(os.Environ(), tctest.Acting, "TMPDIR="+t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "hanging\n" {
		t.Errorf("it said %q, %v", line, err)
	}
	groups := children(t, cmd.Process.Pid)
	if len(groups) != 1 {
		t.Errorf("%d machines", len(groups))
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("it was not killed")
	}
	for _, g := range groups { // a machine is a process group
		for deadline := time.Now().Add(10 * time.Second); unix.Kill(-g, 0) == nil; time.Sleep(10 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatalf("process group %d is still there", g)
			}
		}
	}
}

// children are the processes that a process started.
func children(t *testing.T, parent int) (pids []int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range stats {
		b, err := os.ReadFile(s)
		if err != nil {
			continue // gone since
		}
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(s)))
		if err != nil {
			t.Fatal(err)
		}
		// pid (name) state ppid ...
		if f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:])); f[1] == strconv.Itoa(parent) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// An hour of virtual time is over long before an hour: in a second, and in minutes
// where a hundred others want the processor.
func TestVMVirtualTime(t *testing.T) {
	c := config(t, vm.VirtualTime(), "hang")
	c.Timeout = 20 * time.Minute
	if status, err := vm.Boot(t.Context(), c); status != 0 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
}

// TestSystemd: a machine with systemd starts what it should, the kernel loads modules,
// what is written to the disk is there after a reboot, and what is in /run is not.
func TestSystemd(t *testing.T) {
	const kept, lost = "/etc/kept", "/run/lost"
	vm.OnSystemd(t, func(t *testing.T) {
		well(t)
		for _, file := range []string{kept, lost} {
			if _, err := os.Stat(file); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("in a new machine: %s: %v", file, err)
			}
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Error(err)
			}
		}
	}, func(t *testing.T) {
		well(t)
		if _, err := os.Stat(kept); err != nil {
			t.Error(err)
		}
		if _, err := os.Stat(lost); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", lost, err)
		}
	})
}

// well holds that the machine of systemd that this runs in is well.
func well(t *testing.T) {
	t.Helper()
	if out, err := exec.Command("systemctl", "is-system-running").CombinedOutput(); string(out) != "running\n" {
		failed, _ := exec.Command("systemctl", "--failed").CombinedOutput()
		t.Errorf("%s, %v\n%s", out, err, failed)
	}
	for _, unit := range []string{"dbus", "systemd-udevd", "systemd-logind", "systemd-journald", "vm-job"} {
		if out, err := exec.Command("systemctl", "is-active", unit).CombinedOutput(); err != nil {
			t.Errorf("%s: %s, %v", unit, out, err)
		}
	}
	tctest.RequireQdisc(t, "htb")
}

// A program that fails is not run again.
func TestVMNoReboot(t *testing.T) {
	c := config(t, vm.Systemd(), "exit")
	c.Reboot = true
	if status, err := vm.Boot(t.Context(), c); status != 3 || err != nil {
		t.Errorf("status %d, %v", status, err)
	}
}

// TestVM: guests of every kernel load what is asked for.
func TestVM(t *testing.T) {
	vm.Matrix(t,
		vm.Guest{Kernel: vm.Debian("linux-image-cloud-amd64")},
		vm.Guest{Kernel: vm.Debian("linux-image-6.12-cloud-amd64"), Cgroup: vm.Hybrid},
	)
}

// A kernel that cannot be booted here is not fetched either, and what wants it is
// skipped.
func TestSkippedWithout(t *testing.T) {
	tctest.Require(t, !vm.Inside(), "a machine that can boot another")
	tctest.Require(t, !testing.Short(), "time to boot, and -short is given")
	for _, tt := range []struct {
		without      []string
		test, reason string
	}{
		{[]string{"qemu-system-x86_64"}, "TestVM/linux-image-cloud-amd64_v2", "kernel linux-image-cloud-amd64 (no such kernel here: linux-image-cloud-amd64: not installed: qemu-system-x86_64)"},
		{[]string{"linux.uml", "apt-get"}, "TestVMStatus", "kernel uml (no such kernel here: uml: not installed: "},
		{[]string{"linux.uml", "dpkg-deb", "xz"}, "TestVMDies/panic", "kernel uml (no such kernel here: uml: not installed: "},
		{[]string{"mmdebstrap"}, "TestVMNoReboot", "kernel systemd (no such kernel here: systemd: not installed: mmdebstrap)"},
		{[]string{"flex", "bison"}, "TestVMVirtualTime", "kernel virtual-time (no such kernel here: virtual-time: not installed: "},
	} {
		cache := t.TempDir()
		tctest.SkippedWithout(t, tt.without, tt.test, tt.reason, "VIFSHAPE_VM_CACHE="+cache)
		if left, err := os.ReadDir(cache); err != nil || len(left) != 0 {
			t.Errorf("without %q: fetched %v, %v", tt.without, left, err)
		}
	}
	if os.Geteuid() == 0 {
		tctest.SkippedWithout(t, []string{"linux.uml", "apt-get"}, "TestVMKilled", "kernel uml", "VIFSHAPE_VM_CACHE="+t.TempDir())
	}
}

func TestVMRefuses(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := vm.Boot(t.Context(), vm.Config{Kernel: vm.UML(), Cgroup: "v3", Program: self}); err == nil || err.Error() != `"v3" is no layout of cgroups: say v2, hybrid or v1` {
		t.Errorf("layout: %v", err)
	}
	if _, err := vm.Boot(t.Context(), vm.Config{Kernel: vm.Systemd(), Cgroup: vm.V1, Program: self}); err == nil || err.Error() != "systemd is booted with cgroups v2 alone, not v1" {
		t.Errorf("layout with systemd: %v", err)
	}
	if _, err := vm.Boot(t.Context(), vm.Config{Kernel: vm.UML(), Reboot: true, Program: self}); err == nil || err.Error() != "kernel uml keeps nothing over a reboot: say systemd" {
		t.Errorf("reboot: %v", err)
	}
	t.Setenv("VIFSHAPE_VM_CACHE", t.TempDir())
	t.Setenv("PATH", "") // no qemu, and no apt
	for _, k := range []vm.Kernel{vm.UML(), vm.Systemd(), vm.Debian("linux-image-nosuch")} {
		if _, err := vm.Boot(t.Context(), vm.Config{Kernel: k, Program: self}); !errors.Is(err, vm.ErrNoKernel) {
			t.Errorf("kernel %v: %v", k, err)
		}
	}
}

func TestNamed(t *testing.T) {
	for _, name := range []string{"uml", "systemd", "virtual-time", "linux-image-cloud-amd64"} {
		k, err := vm.Named(name)
		if err != nil || k.String() != name {
			t.Errorf("%s: %v, %v", name, k, err)
		}
	}
	if _, err := vm.Named("windows"); err == nil {
		t.Error("windows is a kernel")
	}
}

// The kernel loads what it needs through the machine's modprobe, except what it
// was told to lack.
func TestVMModules(t *testing.T) {
	vm.Run(t, vm.UML(), vm.V2, "", "-test.run=^TestKernelKinds$")
	c := config(t, vm.UML())
	c.Env = []string{"VIFSHAPE_NO_SKIP=1", "VIFSHAPE_SKIP_OK=root"}
	c.Args = []string{"-test.v", "-test.run=^TestKernelKinds$"}
	c.Without = []string{"sch_sfq", "bonding"}
	var out bytes.Buffer
	c.Output = &out
	status, err := vm.Boot(t.Context(), c)
	if err != nil || status != 1 {
		t.Fatalf("status %d, %v\n%s", status, err, out.String())
	}
	for kind, line := range map[string]string{"fq_codel": "PASS", "sfq": "FAIL", "ifb": "PASS", "bond": "FAIL"} {
		if !strings.Contains(out.String(), "--- "+line+": TestKernelKinds/"+kind+" ") {
			t.Errorf("without sfq and bonding, %s: not %s\n%s", kind, line, out.String())
		}
	}
}

// TestKernelKinds is for TestVMModules, which runs it in a machine.
func TestKernelKinds(t *testing.T) {
	if !vm.Inside() {
		return
	}
	for _, kind := range []string{"htb", "sfq", "fq_codel", "cake", "netem"} {
		t.Run(kind, func(t *testing.T) { tctest.RequireQdisc(t, kind) })
	}
	for _, kind := range []string{"ifb", "bond", "vlan", "dummy"} {
		t.Run(kind, func(t *testing.T) { tctest.RequireLink(t, kind) })
	}
}
