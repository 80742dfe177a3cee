package main

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/vifshape/vifshape/tc/tctest"
)

// TestPackage: the package for dpkg. To install it applies nothing; an upgrade keeps what is in
// force, and its agent is the new program's; to remove it clears that; to purge it takes along
// what is enabled. lintian complains of nothing that is not argued.
func TestPackage(t *testing.T) {
	tctest.RequireRoot(t)
	tctest.Require(t, !testing.Short(), "time, and -short is given")
	for _, p := range []string{"go", "git", "dpkg", "unshare", "nsenter", "start-stop-daemon", "update-rc.d", "tc", "ip"} {
		tctest.RequireProgram(t, p)
	}
	if out, err := exec.CommandContext(t.Context(), "go", "tool", "-n", "-modfile=../../.ci/tools/go.mod", "nfpm").CombinedOutput(); err != nil {
		tctest.Require(t, false, "release tools, which cannot be had here: "+strings.TrimSpace(string(out)))
	}
	n := newNetwork(t)
	debs := filepath.Join(n.dir, "debs")
	for _, version := range []string{"v0.0.1", "v0.0.2-rc.1"} {
		if out, err := exec.CommandContext(t.Context(), "../../.ci/release", "--deb", debs, version).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v\n%s", version, err, out)
		}
	}
	files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
	if err != nil || len(files) != 2 {
		t.Fatalf("packages: %q, %v", files, err)
	}
	t.Run("lintian", func(t *testing.T) {
		tctest.RequireProgram(t, "lintian")
		// Of the bytes of a program some spell something by chance.
		out, err := exec.CommandContext(t.Context(), "lintian", "--allow-root", "--pedantic", "--suppress-tags", "spelling-error-in-binary", "--display-info", "--fail-on", "error,warning,info,pedantic", files[0]).CombinedOutput()
		if err != nil || strings.Contains(string(out), "mismatched-override") {
			t.Errorf("%v\n%s", err, out)
		}
	})

	m := n.debian(debs)
	const install = "dpkg --no-triggers --path-include='*' -i " // images for containers leave out manuals
	state := func(want string) {
		t.Helper()
		if got, _ := m.in(`dpkg-query -W -f '${Status} ${Version}' vifshape`); got != want {
			t.Errorf("dpkg says %q, not %q", got, want)
		}
	}
	m.ok(install + "/debs/vifshape_0.0.1_*.deb")
	state("install ok installed 0.0.1")
	n.clean()
	m.without("/etc/vifshape", "/etc/init.d/vifshape", "/run/vifshape-agent.pid")
	m.ok(`ls /usr/share/man/man8/vifshape.8.gz /usr/share/man/man8/vifshape-enable.8.gz /usr/share/man/man7/vifshape-json.7.gz
ls /usr/share/bash-completion/completions/vifshape /usr/share/zsh/vendor-completions/_vifshape /usr/share/fish/vendor_completions.d/vifshape.fish
ls /usr/lib/tmpfiles.d/vifshape.conf /usr/share/doc/vifshape/examples/minimal.toml /usr/share/doc/vifshape/examples/prometheus/alerts.yml
[ "$(command -v vifshape)" = /usr/bin/vifshape ]
grep -h ^ExecStart= /usr/lib/systemd/system/vifshape.service | grep '=/usr/bin/vifshape agent'
grep -h ^ExecStart= /usr/lib/systemd/system/vifshape-exporter.service | grep '=/usr/bin/vifshape exporter'
ls /usr/lib/systemd/system/vifshape-exporter.socket`)

	m.ok("vifshape enable /debs/home.toml")
	tree := n.sending()
	agent := m.ok("cat /run/vifshape-agent.pid")
	web := func() tctest.TCClass {
		t.Helper()
		for _, c := range tctest.TCClasses(t, n.Near, n.Dev) {
			if c.Options["rate"] == "60Mbit" {
				return c
			}
		}
		t.Fatal("no branch has the rate of eth0/web")
		return tctest.TCClass{}
	}
	before := web().Packets
	traffic := n.stream()
	m.ok(install + "/debs/vifshape_0.0.2*.deb")
	sent := traffic.end()
	state("install ok installed 0.0.2~rc.1")
	n.until("the last of what was sent", func() bool { return web().Packets-before >= uint64(sent) })
	if c := web(); c.Packets-before != uint64(sent) || c.Dropped > 0 {
		t.Errorf("%d packets were sent, %d passed eth0/web and %d were dropped", sent, c.Packets-before, c.Dropped)
	}
	if got := n.sending(); got.Root != tree.Root || len(got.Classes) != len(tree.Classes) {
		t.Errorf("the upgrade has changed the tree from %v to %v", tree, got)
	}
	if now := m.ok("cat /run/vifshape-agent.pid"); now == agent {
		t.Errorf("the agent is process %s still", now)
	}
	m.ok("/etc/init.d/vifshape status; vifshape enable --list | grep 'in force'; vifshape enable --detailed-exitcode /debs/home.toml")

	m.ok("dpkg --no-triggers -r vifshape")
	state("deinstall ok config-files 0.0.2~rc.1")
	n.clean()
	m.ok("ls /etc/vifshape/home.toml")
	m.without("/usr/bin/vifshape", "/run/vifshape-agent.pid")

	// What is enabled is so again with the package, and to purge it takes everything along.
	m.ok(install + "/debs/vifshape_0.0.1_*.deb; /etc/init.d/vifshape start; tc qdisc show dev eth0 | grep htb")
	m.ok("dpkg --no-triggers -P vifshape")
	n.clean()
	m.without("/etc/vifshape", "/run/vifshape", "/etc/init.d/vifshape", "/etc/rcS.d/S*vifshape", "/var/log/vifshape-agent.log", "/usr/share/doc/vifshape", "/var/lib/dpkg/info/vifshape.*")
}

// packaged: under systemd an agent is started by no installation, anew by an upgrade, and ended by
// a removal; enable takes the unit that the package brings.
func packaged(h *host) {
	h.bin = "/usr/bin/vifshape"
	// What mmdebstrap left, which denies packages their services, and the unit of other tests.
	for _, f := range []string{"/usr/sbin/policy-rc.d", filepath.Join(unitDir, agentService), filepath.Join(unitDir, exporterService), filepath.Join(unitDir, exporterSocket)} {
		if err := os.Remove(f); err != nil && !errors.Is(err, fs.ErrNotExist) {
			h.Fatal(err)
		}
	}
	dpkg := func(args ...string) {
		h.Helper()
		execute(h, "dpkg", args...)
	}
	is := func(property, want string) {
		h.Helper()
		if is := h.property(agentService, property); is != want {
			h.Errorf("%s of the agent is %q, not %q", property, is, want)
		}
	}
	wanted := filepath.Join(unitDir, "sysinit.target.wants", agentService)
	dpkg("-i", h.pack("1"))
	is("ActiveState", "inactive")
	is("UnitFileState", "disabled")
	if is := h.property(exporterSocket, "UnitFileState"); is != "disabled" {
		h.Errorf("the exporter's socket is %s", is)
	}

	h.ok("enable", h.policy("line.toml", servicePolicy))
	is("ActiveState", "active")
	if _, err := os.Lstat(filepath.Join(unitDir, agentService)); !errors.Is(err, fs.ErrNotExist) {
		h.Errorf("enable has installed a unit beside that of the package: %v", err)
	}
	systemctl(h, "enable", "--now", exporterSocket)
	h.page("127.0.0.1:9719")
	tree, pid, exporter := h.sending(), h.property(agentService, "MainPID"), h.property(exporterService, "MainPID")
	dpkg("-i", h.pack("2"))
	if now := h.property(agentService, "MainPID"); now == pid {
		h.Errorf("the agent is process %s still", now)
	}
	if now := h.property(exporterService, "MainPID"); now == exporter || now == "0" {
		h.Errorf("the exporter was process %s, and is %s", exporter, now)
	}
	h.page("127.0.0.1:9719")
	h.status(agentService, "1 interface, 2 bindings wait for what is not there yet")
	if got := h.sending(); got.Root != tree.Root || len(got.Classes) != len(tree.Classes) {
		h.Errorf("the upgrade has changed the tree from %v to %v", tree, got)
	}

	dpkg("-r", "vifshape")
	h.clean()
	is("ActiveState", "inactive")
	if is := h.property(exporterSocket, "ActiveState"); is != "inactive" {
		h.Errorf("the exporter's socket is %s", is)
	}
	for _, kept := range []string{"/etc/vifshape/line.toml", wanted} {
		if _, err := os.Lstat(kept); err != nil {
			h.Errorf("of what is enabled is gone: %v", err)
		}
	}
	dpkg("-P", "vifshape")
	for _, gone := range []string{"/etc/vifshape", wanted, filepath.Join(unitDir, "sockets.target.wants", exporterSocket), h.bin, "/run/vifshape"} {
		if _, err := os.Lstat(gone); !errors.Is(err, fs.ErrNotExist) {
			h.Errorf("%s: %v", gone, err)
		}
	}
}

// pack makes a package of a version out of the running program, the units and the scripts.
func (h *host) pack(version string) string {
	h.Helper()
	dir := filepath.Join(h.dir, version)
	read := func(file string) string {
		h.Helper()
		b, err := os.ReadFile(file)
		if err != nil {
			h.Fatal(err)
		}
		return string(b)
	}
	self, err := os.Executable()
	if err != nil {
		h.Fatal(err)
	}
	write(h, dir+"/DEBIAN/control", "Package: vifshape\nVersion: "+version+"\nArchitecture: all\nMaintainer: nobody <nobody@example.com>\nDescription: a test\n")
	for _, unit := range []string{agentService, exporterService, exporterSocket} {
		write(h, dir+"/usr/lib/systemd/system/"+unit, strings.ReplaceAll(read("testdata/systemd/"+unit), installPath, h.bin))
	}
	write(h, dir+h.bin, read(self))
	programs := []string{dir + h.bin}
	for to, from := range map[string]string{"postinst": "postinstall", "prerm": "preremove", "postrm": "postremove"} {
		file := filepath.Join(dir, "DEBIAN", to)
		write(h, file, read("testdata/systemd/"+from))
		programs = append(programs, file)
	}
	for _, p := range programs {
		if err := os.Chmod(p, 0o755); err != nil {
			h.Fatal(err)
		}
	}
	execute(h, "dpkg-deb", "-Znone", "--root-owner-group", "--build", dir, dir+".deb")
	return dir + ".deb"
}

// end ends the stream; it returns how many datagrams were sent, whatever became of them.
func (s *stream) end() (sent int) {
	s.n.Helper()
	close(s.stop)
	sent = <-s.sent
	if err := s.near.Close(); err != nil {
		s.n.Fatal(err)
	}
	if err := s.far.Close(); err != nil {
		s.n.Fatal(err)
	}
	<-s.received
	return sent
}

// debian is this machine with mounts and processes of its own: what is written there goes with
// the test. Its interface is that of a network.
type debian struct {
	n   *network
	pid string // of its first process
}

func (n *network) debian(debs string) *debian {
	n.Helper()
	if err := os.WriteFile(filepath.Join(debs, "home.toml"), []byte("version = 1\n[interface.eth0]\nrate = \"100mbit\"\n[interface.eth0.web]\nrate = \"60mbit\"\nmatch = [{ to = \""+n.Far4.String()+"\", proto = \"udp\", dport = 9000 }]\n"), 0o644); err != nil {
		n.Fatal(err)
	}
	c := exec.CommandContext(n.Context(), "unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", `
read pid rest </proc/self/stat
mkdir machine
mount -t tmpfs none machine
cd machine
mkdir upper work root
mount -t overlay -o lowerdir=/,upperdir=upper,workdir=work none root
for d in dev sys; do mount --rbind /$d root/$d; done
mount -t proc none root/proc
for d in run tmp; do mount -t tmpfs none root/$d; done
mkdir root/debs
mount --bind ../debs root/debs
chroot root sh -ec '
rm -f /usr/sbin/policy-rc.d /sbin/runlevel
printf "#!/bin/sh\necho N 2\n" >/sbin/runlevel # as with the init of System V
chmod +x /sbin/runlevel
'
echo $pid >../debs/pid
exec chroot root sh -c 'touch /debs/there; while :; do sleep 1000 & wait $!; done' # the first process sees to those without a parent
`)
	c.Dir = n.dir
	r := n.start(c)
	ended := make(chan error, 1)
	go func() {
		ended <- r.Wait()
		close(ended)
	}()
	m := &debian{n: n}
	n.Cleanup(func() {
		_ = r.Process.Kill() // it may have ended
		<-ended
	})
	n.until("the machine", func() bool {
		select {
		case err := <-ended:
			n.Fatalf("the machine: %v\n%s", err, r.stderr.String())
		default:
		}
		_, err := os.Stat(filepath.Join(debs, "there"))
		return err == nil
	})
	pid, err := os.ReadFile(filepath.Join(debs, "pid"))
	if err != nil {
		n.Fatal(err)
	}
	m.pid = strings.TrimSpace(string(pid))
	return m
}

// in runs a script there, and returns what it printed.
func (m *debian) in(script string) (string, error) {
	c := exec.CommandContext(m.n.Context(), "nsenter", "--target", m.pid, "--mount", "--pid", "--root", "--wd", "sh", "-exc", script)
	c.Env = append(os.Environ(), "PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive")
	r := m.n.start(c)
	err := r.Wait()
	if err != nil {
		return r.stdout.String() + r.stderr.String(), err
	}
	return strings.TrimSpace(r.stdout.String()), nil
}

// ok is in for what has to succeed.
func (m *debian) ok(script string) string {
	m.n.Helper()
	out, err := m.in(script)
	if err != nil {
		m.n.Fatalf("%v\n%s", err, out)
	}
	return out
}

// without holds that no file there fits the patterns.
func (m *debian) without(patterns ...string) {
	m.n.Helper()
	for _, p := range patterns {
		if all, err := filepath.Glob(filepath.Join("/proc", m.pid, "root", p)); err != nil || len(all) > 0 {
			m.n.Errorf("there is %q (%v)", all, err)
		}
	}
}
