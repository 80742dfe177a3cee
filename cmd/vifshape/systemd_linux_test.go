package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// TestSystemd holds vifshape under a real systemd, and over a reboot of it. What shall be
// there after the reboot, or gone, is made at the end of the first half.
func TestSystemd(t *testing.T) {
	vm.OnSystemd(t, func(t *testing.T) {
		setUpHost(t)
		t.Run("agent", func(t *testing.T) { agentUnit(newHost(t)) })
		t.Run("confined", func(t *testing.T) { agentConfined(newHost(t)) })
		t.Run("user", func(t *testing.T) { userManager(newHost(t)) })
		t.Run("exporter", func(t *testing.T) { exporterUnit(newHost(t)) })
		t.Run("networkd", func(t *testing.T) { networkd(newHost(t)) })
		t.Run("enable", func(t *testing.T) { enables(newHost(t)) })
		t.Run("packaged", func(t *testing.T) { packaged(newHost(t)) })
		h := newHost(t)
		h.ok("enable", h.policy("line.toml", servicePolicy))
		h.ok("bind", "eth0/jobs", "user:1234")
	}, func(t *testing.T) {
		t.Run("restored", func(t *testing.T) { restored(newHost(t)) })
	})
}

// host is a machine with systemd: the near end is the network namespace that it booted
// with, where networkd has given eth0 its address.
type host struct {
	*network
	sink *lab.Sink
}

// services are the host's units that are actors: whose, and their settings besides.
var services = map[string]struct {
	uid      int
	settings string
}{
	"web":    {},
	"job":    {settings: "Slice=jobs.slice"},
	"person": {1000, "User=user"},
	"pod":    {settings: "NetworkNamespacePath=/run/netns/pod"},
}

// setUpHost puts the program where its manual says, makes all units at once, and has the
// machine make eth0 at every boot, with its peer in a namespace.
func setUpHost(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(self)
	if err == nil {
		err = os.WriteFile(installPath, program, 0o755)
	}
	if err != nil {
		t.Fatal(err)
	}
	agent, err := os.ReadFile("testdata/systemd/" + agentService)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(unitDir, agentService), string(agent))
	write(t, filepath.Join(unitDir, repairService), strings.Replace(string(agent), "vifshape agent", "vifshape agent --repair", 1))
	for name, s := range services {
		write(t, filepath.Join(unitDir, name+".service"), actorService(t, name)+s.settings+"\n")
	}
	write(t, unitDir+"/wire.service", `[Unit]
Before=network.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=ip netns add far
ExecStart=ip link add eth0 type veth peer name far0 netns far
ExecStart=ip -n far address add `+far+`/24 dev far0
ExecStart=ip -n far link set far0 up
ExecStart=ip -n far link set lo up
[Install]
WantedBy=multi-user.target
`)
	write(t, networkDir+"/eth0.network", "[Match]\nName=eth0\n[Network]\nAddress="+near+"/24\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n")
	systemctl(t, "enable", "--now", "wire", "systemd-networkd")
}

const (
	installPath = "/usr/local/bin/vifshape"
	unitDir     = "/etc/systemd/system"
	networkDir  = "/etc/systemd/network"

	agentService  = "vifshape.service"        // the example
	repairService = "vifshape-repair.service" // and with --repair
	near, far     = "198.18.0.1", "198.18.0.2"

	exporterService = "vifshape-exporter.service"
	exporterSocket  = "vifshape-exporter.socket"
)

func newHost(t *testing.T) *host {
	t.Helper()
	ends := make([]*lab.NetNS, 2)
	for i, path := range []string{"/proc/1/ns/net", "/run/netns/far"} {
		ns, err := lab.OpenNetNS(path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { ns.Close() })
		ends[i] = ns
	}
	pair := &lab.Pair{Near: ends[0], Far: ends[1], Dev: "eth0", FarDev: "far0", Near4: netip.MustParseAddr(near), Far4: netip.MustParseAddr(far)}
	h := &host{network: &network{TB: t, Pair: pair, dir: t.TempDir(), bin: installPath}}
	var err error
	if h.store, err = record.Open(defaultRunDir); err != nil {
		t.Fatal(err)
	}
	h.configured()
	if h.sink, err = lab.NewSink(t.Context(), h.Far, 9); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := h.sink.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// configured waits until networkd has done what it does for eth0.
func (h *host) configured() {
	h.Helper()
	execute(h, "/lib/systemd/systemd-networkd-wait-online", "--interface=eth0", "--timeout=60")
}

func write(t testing.TB, file, text string) {
	t.Helper()
	if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(text), 0o644)); err != nil {
		t.Fatal(err)
	}
}

// execute runs a program that has to succeed, and returns what it prints.
func execute(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func systemctl(t testing.TB, args ...string) string {
	t.Helper()
	return execute(t, "systemctl", append([]string{"--no-pager"}, args...)...)
}

// unit starts one of the services. It stops with the test; a new start of it goes on
// obeying.
func (h *host) unit(name string) *tctest.Actor {
	h.Helper()
	a := h.actor(name, services[name].uid)
	systemctl(h, "start", name)
	h.Cleanup(func() { _ = exec.Command("systemctl", "stop", name).Run() })
	return a
}

// actorService is a service that is an actor.
func actorService(t testing.TB, name string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("[Service]\nEnvironment=%s\nExecStart=sh -c 'exec %s obey 0<>%s 1<>%s'\n", tctest.Acting, self, pipe(name, "in"), pipe(name, "out"))
}

// pipe is the pipe to an actor that is a service, or from it.
func pipe(name, end string) string { return filepath.Join("/run", name+"."+end) }

// actor is one that obeys once its service, which is a user's, is started.
func (h *host) actor(name string, uid int) *tctest.Actor {
	h.Helper()
	open := func(end string) *os.File {
		h.Helper()
		file := pipe(name, end)
		if err := errors.Join(unix.Mkfifo(file, 0o600), unix.Chown(file, uid, uid)); err != nil {
			h.Fatal(err)
		}
		f, err := os.OpenFile(file, os.O_RDWR, 0) // nobody waits for the other end, and it never ends
		if err != nil {
			h.Fatal(err)
		}
		h.Cleanup(func() {
			if err := errors.Join(f.Close(), os.Remove(file)); err != nil {
				h.Error(err)
			}
		})
		return f
	}
	in, out := open("in"), open("out")
	if err := out.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		h.Fatal(err)
	}
	return tctest.Attach(h, in, out)
}

// through has an actor send, and holds that all of it goes through a branch and comes to
// the far end.
func (h *host) through(a *tctest.Actor, branch hierarchy.Path) {
	h.Helper()
	const count = 100
	before := h.sink.Count(9).Packets
	got := h.sentIn(func() {
		a.Do("udp %v:9 %d", h.Far4, count)
		h.until("all that was sent", func() bool { return h.sink.Count(9).Packets-before >= count })
	})
	delete(got, "eth0/rest") // of the machine itself: who has the address
	if diff := cmp.Diff(map[hierarchy.Path]uint64{branch: count}, got); diff != "" {
		h.Errorf("(-want +got)\n%s", diff)
	}
}

const servicePolicy = `version = 1
[interface.eth0]
rate = "100mbit"
[interface.eth0.web]
rate = "10mbit"
bind = ["unit:web.service"]
[interface.eth0.jobs]
rate = "10mbit"
bind = ["slice:jobs.slice"]
[interface.eth0.people]
rate = "10mbit"
bind = ["user:user"]
`

// startAgent starts the agent. The caller stops it.
func (h *host) startAgent(service string) (stop func()) {
	h.Helper()
	systemctl(h, "start", service)
	return func() {
		systemctl(h, "stop", service)
		if h.Failed() {
			h.Log(execute(h, "journalctl", "--no-pager", "-u", service))
		}
	}
}

// property is what systemd knows of a unit.
func (h *host) property(unit, name string) string {
	h.Helper()
	return strings.TrimSpace(systemctl(h, "show", "--value", "-p", name, unit))
}

// status waits until systemd shows that an agent says this of itself.
func (h *host) status(service, want string) {
	h.Helper()
	h.until(fmt.Sprintf("status %q", want), func() bool { return h.property(service, "StatusText") == want })
	if out := systemctl(h, "status", service); !strings.Contains(out, `Status: "`+want+`"`) {
		h.Errorf("not %q:\n%s", want, out)
	}
}

// agentUnit: the example's unit works as it is.
func agentUnit(h *host) {
	defer h.startAgent(agentService)()
	said := func(times int) {
		h.Helper()
		h.until("what it says", func() bool {
			return strings.Count(execute(h, "journalctl", "--no-pager", "-o", "cat", "-u", agentService), "waits: the unit is not running") == times
		})
	}
	h.status(agentService, "0 interfaces")
	h.ok("apply", h.policy("policy.toml", servicePolicy))
	defer h.ok("clear")
	h.status(agentService, "1 interface, 2 bindings wait for what is not there yet")
	said(1)

	pid := h.property(agentService, "MainPID")
	systemctl(h, "reload", agentService)
	said(2) // again
	h.status(agentService, "1 interface, 2 bindings wait for what is not there yet")
	if now := h.property(agentService, "MainPID"); now != pid {
		h.Errorf("it was process %s, and is %s", pid, now)
	}

	bound := map[string]hierarchy.Path{"uid:1000": "eth0/people"}
	h.bound(bound)
	web := h.unit("web")
	bound["cgroup:/system.slice/web.service"] = "eth0/web"
	h.bound(bound)
	h.through(web, "eth0/web")
	job := h.unit("job")
	defer systemctl(h, "stop", "jobs.slice")
	bound["cgroup:/jobs.slice"] = "eth0/jobs"
	h.bound(bound)
	h.status(agentService, "1 interface")
	h.through(job, "eth0/jobs")
	h.through(h.unit("person"), "eth0/people")

	for range 2 { // each start has a new cgroup
		before := inodeOf(h, "/sys/fs/cgroup/system.slice/web.service")
		systemctl(h, "restart", "web")
		if inodeOf(h, "/sys/fs/cgroup/system.slice/web.service") == before {
			h.Error("web.service has the cgroup that it had")
		}
		h.bound(bound)
		h.through(web, "eth0/web")
	}

	h.Log(lastLine(execute(h, "systemd-analyze", "--no-pager", "security", agentService)))
	systemctl(h, "restart", agentService)
	h.bound(bound)
	h.through(job, "eth0/jobs")
	systemctl(h, "stop", agentService)
	if result := h.property(agentService, "Result"); result != "success" {
		h.Errorf("it ended by %s", result)
	}
	h.bound(bound) // still
	h.through(web, "eth0/web")
}

// agentConfined: what the unit takes away from the agent, it has no use for.
func agentConfined(h *host) {
	defer h.startAgent(repairService)()
	h.ok("apply", h.policy("policy.toml", strings.Replace(servicePolicy, "web.service", "pod.service", 1)+`delegate = ["uid:54321"]
[interface.eth0.ingress]
rate = "100mbit"
`))
	defer h.ok("clear")
	before := h.state()

	// It puts back what others take away.
	for _, lost := range []string{"tc qdisc del dev eth0 root", "tc qdisc del dev eth0 clsact"} {
		h.shell(lost)
		h.until("the tree after "+lost, func() bool { return cmp.Diff(before, h.state()) == "" })
	}

	// It looks into network namespaces.
	execute(h, "sh", "-ec", `echo 1 >/proc/sys/net/ipv4/ip_forward
ip netns add pod
ip link add pod0 type veth peer name eth0 netns pod
ip address add 198.19.0.1/24 dev pod0
ip link set pod0 up
ip -n pod address add 198.19.0.2/24 dev eth0
ip -n pod link set eth0 up
ip -n pod route add default via 198.19.0.1`)
	pod := h.unit("pod")
	h.bound(map[string]hierarchy.Path{"uid:1000": "eth0/people", "cgroup:/system.slice/pod.service": "eth0/web", "link:pod0": "eth0/web"})
	h.through(pod, "eth0/web")

	// It does for users what is theirs.
	for _, args := range [][]string{
		{"add", "eth0/people/x", "--rate", "5mbit"},
		{"run", "eth0/people/x", "--", "true"},
		{"remove", "eth0/people/x"},
	} {
		if r := h.as(alice, args...).wait(); r.code != 0 {
			h.Errorf("%s: %v", args, r)
		}
	}

	// It is started again when it dies.
	pid := h.property(repairService, "MainPID")
	systemctl(h, "kill", "--signal=KILL", repairService)
	h.until("another agent", func() bool {
		return h.property(repairService, "MainPID") != pid && h.property(repairService, "ActiveState") == "active"
	})
	h.status(repairService, "1 interface, 1 binding waits for what is not there yet")
}

func inodeOf(t testing.TB, file string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(file, &st); err != nil {
		t.Fatal(&os.PathError{Op: "stat", Path: file, Err: err})
	}
	return st.Ino
}

func lastLine(text string) string {
	text = strings.TrimSpace(text)
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// userManager: what a user's own manager starts is the user's.
func userManager(h *host) {
	h.ok("apply", h.policy("policy.toml", servicePolicy))
	defer h.ok("clear")
	systemctl(h, "start", "user@1000.service")
	defer systemctl(h, "stop", "user@1000.service")
	a := h.actor("app", 1000)
	write(h, "/home/user/.config/systemd/user/app.service", actorService(h, "app"))
	user := func(args ...string) string {
		h.Helper()
		return execute(h, "setpriv", append([]string{"--reuid=1000", "--regid=1000", "--init-groups", "env", "XDG_RUNTIME_DIR=/run/user/1000", "systemctl", "--user"}, args...)...)
	}
	user("daemon-reload")
	user("start", "app")
	if group := strings.TrimSpace(user("show", "--value", "-p", "ControlGroup", "app")); group != "/user.slice/user-1000.slice/user@1000.service/app.slice/app.service" {
		h.Errorf("it is in %s", group)
	}
	h.through(a, "eth0/people")
	user("restart", "app")
	h.through(a, "eth0/people")
}

// networkd: who manages the interface leaves the tree alone.
func networkd(h *host) {
	web := h.unit("web")
	h.ok("apply", h.policy("policy.toml", servicePolicy))
	defer h.ok("clear")
	if err := os.Mkdir(networkDir+"/eth0.network.d", 0o755); err != nil {
		h.Fatal(err)
	}
	before := h.sending()
	for _, do := range []string{
		"networkctl reload",
		"networkctl reconfigure eth0",
		"systemctl restart systemd-networkd",
		"printf '[Link]\\nMTUBytes=1400\\n[Network]\\nAddress=198.18.1.1/24\\n' >" + networkDir + "/eth0.network.d/more.conf; networkctl reload; until ip address show eth0 | grep -q 198.18.1.1; do sleep 0.1; done",
		"networkctl down eth0; networkctl up eth0",
	} {
		execute(h, "sh", "-ec", do)
		h.configured()
		if diff := cmp.Diff(before, h.sending()); diff != "" {
			h.Errorf("%s (-before +after)\n%s", do, diff)
		}
		h.through(web, "eth0/web")
	}

	// Unless it is told to set up the queueing itself.
	own := networkDir + "/eth0.network.d/own.conf"
	write(h, own, "[FairQueueingControlledDelay]\nParent=root\n")
	execute(h, "networkctl", "reload")
	h.until("networkd's own qdisc", func() bool { return h.sending().Root.Kind == "fq_codel" })
	if r := h.run("show"); r.code != exitError || !strings.Contains(r.stderr, "the tree is gone, its root qdisc is fq_codel") {
		h.Errorf("show: %v", r)
	}
	if r := h.run("doctor"); !strings.Contains(r.stdout, own) {
		h.Errorf("doctor: %v", r)
	}
	if err := os.Remove(own); err != nil {
		h.Fatal(err)
	}
	execute(h, "networkctl", "reload")
	h.configured()
	h.shell("tc qdisc del dev eth0 root") // which networkd does not take away
}

const lastingPolicy = servicePolicy + `[interface."wg*"]
rate = "5mbit"
`

// enables: what is enabled is in force, also on interfaces that appear, brought there by the
// unit that enable has installed; a reload is an apply.
func enables(h *host) {
	if err := os.Remove(filepath.Join(unitDir, agentService)); err != nil { // which was there for other tests
		h.Fatal(err)
	}
	systemctl(h, "daemon-reload")
	file := h.policy("line.toml", lastingPolicy)
	if r := h.run("enable", "--detailed-exitcode", file); r.code != exitChanges {
		h.Fatal(r)
	}
	h.status(agentService, "1 interface, 2 bindings wait for what is not there yet")
	if is := h.property(agentService, "UnitFileState"); is != "enabled" {
		h.Errorf("the unit is %s", is)
	}
	if r := h.run("enable", "--detailed-exitcode", file); r.code != exitOK {
		h.Errorf("once more: %v", r)
	}
	web := h.unit("web")
	h.bound(map[string]hierarchy.Path{"uid:1000": "eth0/people", "cgroup:/system.slice/web.service": "eth0/web"})
	h.through(web, "eth0/web")

	for range 2 { // plugged, and plugged again
		execute(h, "ip", "link", "add", "wg0", "type", "dummy")
		h.shaped("wg0")
		execute(h, "ip", "link", "delete", "wg0")
	}

	edit := func(from, to string) {
		h.Helper()
		write(h, "/etc/vifshape/line.toml", strings.Replace(lastingPolicy, from, to, 1))
	}
	edit("100mbit", "90M")
	out, err := exec.Command("systemctl", "reload", agentService).CombinedOutput()
	log := execute(h, "journalctl", "--no-pager", "-o", "cat", "-u", agentService)
	if err == nil || !strings.Contains(log, "/etc/vifshape/line.toml:3:8: eth0: rate ") {
		h.Errorf("a reload with a mistake: %v\n%s\n%s", err, out, log)
	}
	if rate := h.rate("eth0"); rate != 100*hierarchy.Mbit || h.property(agentService, "ActiveState") != "active" {
		h.Errorf("after that eth0 has %v, and the agent is %s", rate, h.property(agentService, "ActiveState"))
	}
	edit("100mbit", "90mbit")
	systemctl(h, "reload", agentService)
	if rate := h.rate("eth0"); rate != 90*hierarchy.Mbit {
		h.Errorf("after a reload eth0 has %v", rate)
	}
	h.through(web, "eth0/web")

	// With --contact the agent says what its unit keeps it from, until a drop-in does not.
	dropIn := filepath.Join(unitDir, agentService+".d", "contact.conf")
	contact := "[Service]\nExecStart=\nExecStart=" + installPath + " agent --policies /etc/vifshape --confirm 2s --contact " + far + ":9\n"
	said := func(words string) {
		h.Helper()
		h.until(fmt.Sprintf("%q in the journal", words), func() bool {
			return strings.Contains(execute(h, "journalctl", "--no-pager", "-o", "cat", "-u", agentService), words)
		})
	}
	edit("100mbit", "80mbit")
	write(h, dropIn, contact)
	systemctl(h, "daemon-reload")
	systemctl(h, "restart", agentService)
	said("its unit takes RestrictAddressFamilies=AF_INET AF_INET6 besides")
	if rate := h.rate("eth0"); rate != 90*hierarchy.Mbit {
		h.Errorf("without a contact eth0 has %v", rate)
	}
	write(h, dropIn, contact+"RestrictAddressFamilies=AF_INET AF_INET6\n")
	systemctl(h, "daemon-reload")
	systemctl(h, "restart", agentService)
	said("kept: the contact can be reached")
	if rate := h.rate("eth0"); rate != 80*hierarchy.Mbit {
		h.Errorf("with a contact eth0 has %v", rate)
	}
	if err := os.Remove(dropIn); err != nil {
		h.Fatal(err)
	}
	systemctl(h, "daemon-reload")
	systemctl(h, "restart", agentService)

	h.ok("disable", "line")
	h.clean()
	for _, gone := range []string{"/etc/vifshape", filepath.Join(unitDir, agentService), filepath.Join(unitDir, "sysinit.target.wants", agentService)} {
		if _, err := os.Lstat(gone); !errors.Is(err, fs.ErrNotExist) {
			h.Errorf("%s: %v", gone, err)
		}
	}
	if is := h.property(agentService, "ActiveState"); is != "inactive" {
		h.Errorf("the agent is %s", is)
	}
}

// restored: what was enabled is in force after a reboot, before networkd gives addresses;
// what was bound at run time is not.
func restored(h *host) {
	h.status(agentService, "1 interface, 2 bindings wait for what is not there yet")
	h.bound(map[string]hierarchy.Path{"uid:1000": "eth0/people"})
	web := h.unit("web")
	h.bound(map[string]hierarchy.Path{"uid:1000": "eth0/people", "cgroup:/system.slice/web.service": "eth0/web"})
	h.through(web, "eth0/web")
	systemctl(h, "restart", "web")
	h.bound(map[string]hierarchy.Path{"uid:1000": "eth0/people", "cgroup:/system.slice/web.service": "eth0/web"})
	h.through(web, "eth0/web")
	since := func(unit string) uint64 {
		h.Helper()
		n, err := strconv.ParseUint(h.property(unit, "ActiveEnterTimestampMonotonic"), 10, 64)
		if err != nil {
			h.Fatal(err)
		}
		return n
	}
	if agent, network := since(agentService), since("systemd-networkd"); agent == 0 || agent > network {
		h.Errorf("the agent was ready at %d us, and networkd at %d us", agent, network)
	}
	h.ok("disable", "line")
	h.clean()
}
