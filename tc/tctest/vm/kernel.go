//go:build linux

package vm

import (
	"context"
	"crypto/sha256"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
)

// ErrNoKernel says that a kernel cannot be booted here: what it runs on is not
// installed, or it is neither installed nor cached and could not be fetched or
// built.
var ErrNoKernel = errors.New("no such kernel here")

// Kernel is a kernel to boot. Make one with [UML], [Systemd], [VirtualTime] or
// [Debian].
type Kernel struct {
	name    string
	host    string // the program of the host that it is, if that is installed
	uml     bool
	systemd bool
	append  string
	boots   []string // programs that it takes to boot it
	// cached are its files, laid out as in a package.
	cached
}

// cached is what is made once and kept in the cache.
type cached struct {
	dir  string   // in the cache
	made []string // programs that it takes to make it
	// provide makes it in a directory.
	provide func(ctx context.Context, dir string) error
}

// String is the name of the kernel, in the form that [Named] reads.
func (k Kernel) String() string { return k.name }

// UML is user-mode Linux as Debian packages it: Linux as an ordinary process,
// up in a second. It has most queueing disciplines, cls_cgroup and both
// versions of cgroups, but no BTF, no JIT and one processor. On a processor with
// AMX it takes gcc.
func UML() Kernel {
	return Kernel{name: "uml", host: "linux.uml", uml: true, cached: pkg("user-mode-linux", "uml")}
}

// Systemd is [UML] with Debian's systemd as the first process, in a small Debian on a
// disk of its own: udev, D-Bus, logind and networkd are there, the last not started, and
// an ordinary user named user (1000). The program is a unit that starts when everything
// else has. What it writes to the disk is there after [Config.Reboot], and gone
// afterwards. The first use makes the disk, which takes half a minute and more, mmdebstrap,
// mke2fs, and root or what else mmdebstrap is content with.
func Systemd() Kernel {
	k := UML()
	k.name, k.systemd = "systemd", true
	return k
}

// VirtualTime is user-mode Linux, built from Debian's source, in which time
// passes only while everything waits: what a shaper does is exact, whatever
// else the host computes. The first use after a change of its options builds it, which takes minutes and
// needs gcc, make, flex, bison, bc and xz.
func VirtualTime() Kernel {
	sum := sha256.Sum256(append([]byte(buildScript), buildConfig...))
	return Kernel{name: "virtual-time", uml: true, append: "time-travel=inf-cpu", cached: cached{
		fmt.Sprintf("virtual-time-%x", sum[:4]), append([]string{"gcc", "make", "flex", "bison", "bc"}, fetched...), build,
	}}
}

// qemu is the emulator for kernels that are no program.
const qemu = "qemu-system-x86_64"

// fetched are the programs that it takes to fetch a package of Debian.
var fetched = []string{"apt-get", "apt-cache", "dpkg-deb", "xz"}

// Debian is the kernel of a Debian package such as "linux-image-cloud-amd64",
// on an emulated processor: the real thing, but slow. It needs
// qemu-system-x86_64.
func Debian(name string) Kernel {
	return Kernel{name: name, boots: []string{qemu}, cached: pkg(name, name)}
}

// pkg is a kernel as it lies in a package of Debian.
func pkg(name, dir string) cached {
	return cached{dir, fetched, func(ctx context.Context, dir string) error { return unpack(ctx, dir, name) }}
}

// Named is the kernel of a command line: "uml", "systemd", "virtual-time" or the name
// of a Debian package.
func Named(name string) (Kernel, error) {
	for _, k := range []Kernel{UML(), Systemd(), VirtualTime()} {
		if name == k.name {
			return k, nil
		}
	}
	if strings.HasPrefix(name, "linux-image-") {
		return Debian(name), nil
	}
	return Kernel{}, fmt.Errorf("%q is no kernel: say uml, systemd, virtual-time or a package such as linux-image-cloud-amd64", name)
}

// files are where the parts of a kernel lie.
type files struct {
	image   string
	modules string // directory; empty when it has none
	root    string // the disk of Systemd
}

// Fetch fetches or builds the kernel unless it is there. The error is
// [ErrNoKernel] when that fails. [Boot] does so by itself.
func (k Kernel) Fetch(ctx context.Context) error {
	_, err := k.find(ctx)
	return err
}

// look finds the kernel on the host or in the cache.
func (k Kernel) look() (files, bool) {
	dirs := []string{}
	if p, err := exec.LookPath(k.host); err == nil {
		dirs = append(dirs, filepath.Join(p, "../../.."))
	}
	if cache, err := cacheDir(); err == nil {
		dirs = append(dirs, filepath.Join(cache, k.dir))
	}
	for _, d := range dirs {
		if f, err := k.locate(d); err == nil {
			return f, true
		}
	}
	return files{}, false
}

// find is look, but provides what is not there. Nothing is fetched that could not
// be booted.
func (k Kernel) find(ctx context.Context) (files, error) {
	root, err := "", error(nil)
	if k.systemd {
		root, err = findRoot(ctx)
	}
	var f files
	if err == nil {
		f, err = k.provided(ctx)
	}
	if err != nil {
		return files{}, fmt.Errorf("%w: %s: %w", ErrNoKernel, k.name, err)
	}
	f.root = root
	return f, nil
}

func (k Kernel) provided(ctx context.Context) (files, error) {
	boots := k.boots
	if k.uml && wide() {
		boots = []string{"gcc"}
	}
	if err := installed(boots); err != nil {
		return files{}, err
	}
	if f, ok := k.look(); ok {
		return f, nil
	}
	dir, err := k.get(ctx, func(dir string) error {
		_, err := k.locate(dir)
		return err
	})
	if err != nil {
		return files{}, err
	}
	return k.locate(dir)
}

// wide says whether the processor has more registers than user-mode Linux knows;
// xstate.c is for that.
func wide() bool {
	b, _ := os.ReadFile("/proc/cpuinfo") // that cannot be read: no
	return strings.Contains(string(b), " amx_tile")
}

// unavailable remembers why something could not be made in a directory: the
// next test would wait as long for the same answer.
var unavailable = struct {
	sync.Mutex
	why map[string]error
}{why: map[string]error{}}

// installed says which of the programs are not.
func installed(programs []string) error {
	var missing []string
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		return fmt.Errorf("not installed: %s", strings.Join(missing, ", "))
	}
	return nil
}

// get makes it unless it is there, as whole says, and returns the directory.
func (c cached) get(ctx context.Context, whole func(dir string) error) (dir string, err error) {
	cache, err := cacheDir()
	if err != nil {
		return "", err
	}
	dir = filepath.Join(cache, c.dir)
	if whole(dir) == nil {
		return dir, nil
	}
	if err := installed(c.made); err != nil {
		return "", err
	}
	unavailable.Lock()
	defer unavailable.Unlock()
	if err := unavailable.why[dir]; err != nil {
		return "", err
	}
	if whole(dir) == nil { // of another that asked at the same time
		return dir, nil
	}
	err = c.fill(ctx, cache, dir)
	if e := whole(dir); e == nil {
		return dir, nil
	} else if err == nil {
		err = e
	}
	if ctx.Err() == nil {
		unavailable.why[dir] = err
	}
	return "", err
}

// fill makes it in a directory of its own that gets its name only when it is
// complete. Of two that do so at a time the second loses its work, and fails.
func (c cached) fill(ctx context.Context, cache, dir string) error {
	if err := os.MkdirAll(cache, 0o755); err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(cache, "."+c.dir+"-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tmp)
	if err := c.provide(ctx, tmp); err != nil {
		return err
	}
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	return os.Rename(tmp, dir)
}

// Cached is the directory of that name in the cache, for what else takes minutes to make. Unless
// whole is content with it, provide makes it, by programs that must be installed. As with a
// kernel, it is made once however many ask, and not tried again where that failed.
func Cached(ctx context.Context, name string, programs []string, provide func(ctx context.Context, dir string) error, whole func(dir string) error) (string, error) {
	return cached{name, programs, provide}.get(ctx, whole)
}

// cacheDir is where kernels are kept: VIFSHAPE_VM_CACHE or a folder in the
// user's cache directory.
func cacheDir() (string, error) {
	if d := os.Getenv("VIFSHAPE_VM_CACHE"); d != "" {
		return filepath.Abs(d)
	}
	d, err := os.UserCacheDir()
	return filepath.Join(d, "vifshape"), err
}

// locate finds image and modules in the layout of Debian's packages.
func (k Kernel) locate(dir string) (files, error) {
	image, modules := "boot/vmlinuz-*", []string{"usr/lib/modules/*", "lib/modules/*"}
	if k.uml {
		image, modules = "usr/bin/linux.uml", []string{"usr/lib/uml/modules/*"}
	}
	images, err := filepath.Glob(filepath.Join(dir, image))
	if err != nil {
		return files{}, err
	}
	if len(images) != 1 {
		return files{}, fmt.Errorf("%s: %d kernels", dir, len(images))
	}
	f := files{image: images[0]}
	for _, m := range modules {
		found, err := filepath.Glob(filepath.Join(dir, m))
		if err != nil {
			return files{}, err
		}
		if len(found) == 1 {
			f.modules = found[0]
			break
		}
	}
	return f, nil
}

// unpack fetches a package with apt and unpacks it without installing it. A
// package that only depends on the kernel of the day is followed.
func unpack(ctx context.Context, dir, pkg string) error {
	out, err := command(ctx, dir, "apt-cache", "depends", "--no-recommends", "--no-suggests", pkg)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		if dep, ok := strings.CutPrefix(strings.TrimSpace(line), "Depends: linux-image-"); ok {
			pkg = "linux-image-" + dep
			break
		}
	}
	// A network that swallows everything is no reason to wait for minutes.
	if _, err := command(ctx, dir, "apt-get", "-q", "-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=1", "download", pkg); err != nil {
		return fmt.Errorf("%w (is the package list old? apt-get update)", err)
	}
	debs, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err != nil {
		return err
	}
	if len(debs) != 1 {
		return fmt.Errorf("apt-get left %d packages", len(debs))
	}
	if _, err := command(ctx, dir, "dpkg-deb", "-x", debs[0], "."); err != nil {
		return err
	}
	if err := os.Remove(debs[0]); err != nil {
		return err
	}
	// Once here instead of at every boot.
	_, err = command(ctx, dir, "sh", "-c", "find . -name '*.ko.xz' -print0 | xargs -0r xz -d")
	return err
}

//go:embed build-uml.sh
var buildScript string

//go:embed uml.config
var buildConfig []byte

// build makes the kernel with virtual time.
func build(ctx context.Context, dir string) error {
	config := filepath.Join(dir, "uml.config")
	if err := os.WriteFile(config, buildConfig, 0o644); err != nil {
		return err
	}
	_, err := command(ctx, dir, "sh", "-c", buildScript, "build-uml.sh", dir, "linux-source-6.1", config)
	return err
}

// command runs a program in dir and returns its output. The end of ctx also ends
// what the program started.
func command(ctx context.Context, dir, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		text := strings.TrimSpace(stderr.String())
		return "", fmt.Errorf("%s: %w: %s", name, err, text[max(0, len(text)-1000):])
	}
	return string(out), nil
}
