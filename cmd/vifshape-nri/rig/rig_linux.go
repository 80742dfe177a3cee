package rig

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

// Where things lie in the rig's own mount namespace. All of it is memory, and goes with it.
const (
	// NRI is the socket of containerd for plugins, as it is everywhere by default.
	NRI = "/run/nri/nri.sock"

	socket  = "/run/containerd/containerd.sock"
	config  = "/run/rig/containerd.toml"
	network = "/run/rig/cni"
	logs    = "/run/rig/logs"
)

// Uplink is the interface by which everything leaves: the one to shape.
const Uplink = "eth0"

// pods are the addresses that pods get.
var pods = []netip.Prefix{netip.MustParsePrefix("10.77.0.0/16"), netip.MustParsePrefix("fd77::/64")}

// Verbs are what a test binary must be able to be told, by [tctest.Main].
var Verbs = tctest.Verbs{
	"boot":  func(tctest.Told) (string, error) { return "", boot() },
	"ready": func(tctest.Told) (string, error) { return "", nil },
}

// boot makes the first process of the namespaces what it has to be.
func boot() error {
	// Whose parent has gone becomes its child, and no zombie.
	signal.Ignore(unix.SIGCHLD)
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return err
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return err
	}
	for _, dir := range []string{"/run", "/var/lib"} {
		if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("tmpfs on %s: %w", dir, err)
		}
	}
	for _, dir := range []string{"/run/nri", network, logs, "/run/rig/tmp"} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for _, name := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
		if err := os.WriteFile("/proc/sys/net/"+name, []byte("1"), 0); err != nil {
			return err
		}
	}
	return nil
}

// Rig is a node: what runs in its namespaces, and the far end that it sends to.
type Rig struct {
	*lab.Pair
	Sink *Sink
	// Cgroup is the cgroup below which all pods are, in every hierarchy.
	Cgroup string

	t           testing.TB
	hierarchies []string // where they are mounted
	first       *tctest.Actor
	containerd  *Program
	bin         string // of containerd
	conn        *grpc.ClientConn
	cri         runtimeapi.RuntimeServiceClient
	started     atomic.Int64 // pods so far
}

// Start starts a node that lives as long as the test. It skips the test where something is not
// to be had.
func Start(t testing.TB) *Rig {
	t.Helper()
	tctest.RequireRoot(t)
	runc := tctest.RequireProgram(t, "runc")
	busybox := tctest.RequireProgram(t, "busybox")
	tctest.Require(t, static(busybox), "program busybox without libraries (busybox-static)")
	const plugins = "/usr/lib/cni"
	_, err := os.Stat(plugins + "/bridge")
	tctest.Require(t, err == nil, "program "+plugins+"/bridge (containernetworking-plugins)")
	bin, err := Fetch(t.Context())
	tctest.Require(t, err == nil, fmt.Sprintf("containerd (%v)", err))

	r := &Rig{t: t, bin: bin, Cgroup: tctest.Cgroups(t), Pair: tctest.New(t, lab.PairConfig{})}
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("cgroup", "cgroup2"))
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range mounts {
		r.hierarchies = append(r.hierarchies, m.Mountpoint)
	}
	for i, via := range []netip.Addr{r.Near4, r.Near6} {
		if err := r.Far.AddRoute(pods[i], via, r.FarDev); err != nil {
			t.Fatal(err)
		}
	}
	r.Sink = newSink(t, r.Far)
	first := tctest.Command(t, "boot", ";", "obey")
	first.Cancel = func() error { return os.ErrProcessDone } // it ends after those that it has with it
	first.SysProcAttr = &unix.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}
	r.first = tctest.StartCommand(t, r.Near, first)
	r.first.Do("ready") // it has booted before it obeys

	r.write(config, fmt.Sprintf(containerdConfig, runc, plugins, network))
	r.write(network+"/10-rig.conflist", fmt.Sprintf(networkConfig, pods[0], pods[1]))
	r.StartContainerd()
	r.conn, err = grpc.NewClient("unix://"+r.Path(socket), grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithDefaultCallOptions(grpc.WaitForReady(true)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.conn.Close() })
	r.cri = runtimeapi.NewRuntimeServiceClient(r.conn)
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	files, err := busyboxFiles(busybox)
	if err == nil {
		err = load(ctx, r.conn, image, files, map[string]any{"Cmd": []string{"sleep", "2147483647"}, "Env": []string{"PATH=/bin"}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// limit is for what takes a moment, on a machine with much else to do.
const limit = 2 * time.Minute

// containerdConfig has room for runc, and for the CNI plugins and their configuration.
const containerdConfig = `version = 3
root = '/run/containerd-root'
state = '/run/containerd'
disabled_plugins = ['io.containerd.internal.v1.opt', 'io.containerd.tracing.processor.v1.otlp']
[grpc]
address = '` + socket + `'
[plugins.'io.containerd.nri.v1.nri']
socket_path = '` + NRI + `'
plugin_path = '/run/nri/plugins'
plugin_config_path = '/run/nri/conf.d'
[plugins.'io.containerd.cri.v1.images']
snapshotter = 'overlayfs'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '` + image + `'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true # without CAP_SYS_RESOURCE it cannot be lowered
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'runc'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '%s'
SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['%s']
conf_dir = '%s'
`

// networkConfig has room for the addresses of pods.
const networkConfig = `{"cniVersion": "1.0.0", "name": "rig", "plugins": [{
	"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": {
		"type": "host-local", "dataDir": "/run/rig/ipam",
		"ranges": [[{"subnet": "%s"}], [{"subnet": "%s"}]],
		"routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]
	}
}]}`

// Path is where the test finds a file of the rig's mount namespace.
func (r *Rig) Path(name string) string { return fmt.Sprintf("/proc/%d/root%s", r.first.PID(), name) }

func (r *Rig) write(name, text string) {
	r.t.Helper()
	if err := os.WriteFile(r.Path(name), []byte(text), 0o644); err != nil {
		r.t.Fatal(err)
	}
}

// Write writes a file that programs of the rig shall read, and returns the name that they know it
// by.
func (r *Rig) Write(name, text string) string {
	r.t.Helper()
	name = "/run/rig/" + name
	r.write(name, text)
	return name
}

// enter runs fn on a thread in the rig's namespaces, which ends with it: what it starts is there,
// and files are those of the rig.
func (r *Rig) enter(fn func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()              // for ever: nobody else may find it in these namespaces
		if unix.Gettid() == unix.Getpid() { // the first thread would not end: it waits for another
			done <- r.enter(fn)
			runtime.UnlockOSThread()
			return
		}
		err := unix.Unshare(unix.CLONE_FS)
		for _, ns := range []string{"net", "pid", "mnt"} { // the last hides where the others are
			if err != nil {
				break
			}
			var f *os.File
			if f, err = os.Open(fmt.Sprintf("/proc/%d/ns/%s", r.first.PID(), ns)); err == nil {
				err = unix.Setns(int(f.Fd()), 0)
				f.Close()
			}
		}
		if err == nil {
			err = fn()
		}
		done <- err
	}()
	return <-done
}

// Program is one that runs in the rig.
type Program struct {
	*exec.Cmd
	r    *Rig
	name string
	log  *os.File
	done chan struct{} // closed when it has ended
}

// Run starts a program in the rig. Its name and what is in args are as the rig's mount namespace
// has them: a file of the machine outside of /run and /var/lib is there, too. It is killed when
// the test ends; what it printed is shown when the test failed.
func (r *Rig) Run(path string, args ...string) *Program {
	r.t.Helper()
	log, err := os.CreateTemp(r.t.TempDir(), "log")
	if err != nil {
		r.t.Fatal(err)
	}
	p := &Program{Cmd: exec.Command(path, args...), r: r, name: filepath.Base(path), log: log, done: make(chan struct{})}
	p.Dir = "/"
	p.Env = append(os.Environ(), "TMPDIR=/run/rig/tmp", "PATH="+r.bin+":/usr/sbin:/usr/bin:/sbin:/bin")
	p.Stdout, p.Stderr = log, log
	if err := r.enter(p.Start); err != nil {
		r.t.Fatalf("%s: %v", p.name, err)
	}
	go func() {
		_ = p.Wait() // ProcessState has it
		close(p.done)
	}()
	r.t.Cleanup(func() {
		p.Kill()
		if r.t.Failed() {
			text := p.Log()
			r.t.Logf("%s:\n%s", p.name, text[max(0, len(text)-4000):])
		}
		log.Close()
	})
	return p
}

// Log is what it has printed so far.
func (p *Program) Log() string {
	b, err := os.ReadFile(p.log.Name())
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Kill kills it without a word, if it lives, and waits until it has gone.
func (p *Program) Kill() { p.end(unix.SIGKILL) }

// Stop asks it to end, and waits until it has.
func (p *Program) Stop() {
	p.r.t.Helper()
	p.end(unix.SIGTERM)
	if code := p.ProcessState.ExitCode(); code != 0 {
		p.r.t.Errorf("%s: SIGTERM: exit status %d", p.name, code)
	}
}

func (p *Program) end(s unix.Signal) {
	p.r.t.Helper()
	_ = p.Process.Signal(s) // that it has ended is what is wanted
	select {
	case <-p.done:
	case <-time.After(limit):
		p.r.t.Errorf("%s: still there after %v", p.name, s)
	}
}

// Alive says whether it has not ended.
func (p *Program) Alive() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Says waits until it has printed a text.
func (p *Program) Says(text string) {
	p.r.t.Helper()
	p.r.Until(p.name+" says "+text, func() bool { return strings.Contains(p.Log(), text) || !p.Alive() })
	if !strings.Contains(p.Log(), text) {
		p.r.t.Fatalf("%s: %v", p.name, p.ProcessState)
	}
}

// Until waits until something holds.
func (r *Rig) Until(what string, holds func() bool) {
	r.t.Helper()
	for deadline := time.Now().Add(limit); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			r.t.Fatalf("waited %v in vain: %s", limit, what)
		}
	}
}

// Output runs a program in the rig to its end and returns what it prints; the error has what it
// complained of.
func (r *Rig) Output(path string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.t.Context()), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = "/"
	var out, complaint bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &complaint
	err := r.enter(cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s", filepath.Base(path), strings.Join(args, " "), err, complaint.String())
	}
	return out.String(), err
}

// StartContainerd starts containerd, which Start has done: again after [Rig.KillContainerd].
func (r *Rig) StartContainerd() {
	r.t.Helper()
	r.containerd = r.Run(filepath.Join(r.bin, "containerd"), "-c", config)
	r.Until("containerd listens", func() bool {
		_, err := os.Stat(r.Path(NRI))
		_, err2 := os.Stat(r.Path(socket))
		return err == nil && err2 == nil || !r.containerd.Alive()
	})
	if !r.containerd.Alive() {
		r.t.Fatal("containerd ended")
	}
}

// Configure adds tables to containerd's configuration, and starts it anew.
func (r *Rig) Configure(tables string) {
	r.t.Helper()
	b, err := os.ReadFile(r.Path(config))
	if err != nil {
		r.t.Fatal(err)
	}
	r.KillContainerd()
	r.write(config, string(b)+tables)
	r.StartContainerd()
}

// KillContainerd kills containerd. What runs in pods goes on.
func (r *Rig) KillContainerd() {
	r.t.Helper()
	r.containerd.Kill()
	for _, s := range []string{NRI, socket} {
		if err := os.Remove(r.Path(s)); err != nil && !errors.Is(err, os.ErrNotExist) {
			r.t.Fatal(err)
		}
	}
}

// Repository builds a command of the repository, such as "./cmd/vifshape", and returns the
// program's path. dir is that of the module, from the top.
func Repository(t testing.TB, dir, pkg string) string {
	t.Helper()
	top, err := repository()
	if err != nil {
		t.Fatal(err)
	}
	to := t.TempDir()
	if _, err := run(t.Context(), filepath.Join(top, dir), "build", "-o", to+"/", pkg); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(to)
	if err != nil || len(files) != 1 {
		t.Fatalf("%s: %d programs, %v", pkg, len(files), err)
	}
	return filepath.Join(to, files[0].Name())
}

// Left is what is there of pods: their cgroups, network namespaces, ends of veths, addresses and
// processes. Without a pod there is nothing.
func (r *Rig) Left() []string {
	r.t.Helper()
	var left []string
	var patterns []string
	for _, h := range r.hierarchies {
		patterns = append(patterns, h+r.Cgroup+"/pod*")
	}
	for _, p := range []string{"/run/netns/*", "/run/rig/ipam/rig/*.*.*.*", "/run/rig/ipam/rig/*:*", "/run/containerd/io.containerd.runtime.v2.task/k8s.io/*"} {
		patterns = append(patterns, r.Path(p))
	}
	for _, p := range patterns {
		found, err := filepath.Glob(p)
		if err != nil {
			r.t.Fatal(err)
		}
		for _, f := range found {
			if !strings.Contains(f, "last_reserved_ip") {
				left = append(left, f)
			}
		}
	}
	links := tctest.Output(r.t, r.Near, "ip", "-brief", "link", "show", "master", "cni0")
	for line := range strings.Lines(links) {
		left = append(left, strings.TrimSpace(line))
	}
	procs, err := filepath.Glob(r.Path("/proc/[0-9]*/comm"))
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range procs {
		if name, err := os.ReadFile(p); err == nil && slices.Contains([]string{"containerd-shim", "busybox", "sleep", "sh", "yes", "nc"}, strings.TrimSpace(string(name))) {
			left = append(left, fmt.Sprintf("process %s: %s", filepath.Base(filepath.Dir(p)), strings.TrimSpace(string(name))))
		}
	}
	return left
}

// PID is the first process of the rig's namespaces.
func (r *Rig) PID() int { return r.first.PID() }
