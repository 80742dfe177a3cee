package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

// newLocked is a network with a small tree on which a program can be locked in.
func newLocked(t testing.TB) *network {
	t.Helper()
	n := newNetwork(t)
	n.ok("apply", n.policy("policy.toml", smallPolicy))
	tctest.Require(t, lockable(), "Landlock")
	n.ok("run", "eth0/web/api", "--", tctest.RequireProgram(t, "true"))
	return n
}

// open lets other users into a directory of the test's.
func (n *network) open(dir string) {
	n.Helper()
	for d := dir; d != os.TempDir() && d != "/"; d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			n.Fatal(err)
		}
	}
	for d := os.TempDir(); d != "/"; d = filepath.Dir(d) {
		st, err := os.Stat(d)
		if err != nil {
			n.Fatal(err)
		}
		tctest.Require(n, st.Mode()&1 != 0, "a directory for temporary files that others may enter")
	}
}

// installed are ordinary programs that are on every machine that holds all tests.
// Others are tried where they are found.
var installed = []string{"bash", "curl", "gcc", "git", "iperf3", "make", "nginx"}

// TestKernelOrdinaryPrograms: what people run works when it is locked in, for root
// and for nobody, and has the same output as without.
func TestKernelOrdinaryPrograms(t *testing.T) {
	if !vm.Inside() {
		for _, p := range installed {
			tctest.RequireProgram(t, p)
		}
	}
	n := newLocked(t)
	if err := n.Near.Do(func() error { // as systemd sets it
		return os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0)
	}); err != nil {
		t.Fatal(err)
	}
	server := n.serve("served\n")
	for _, tt := range []struct {
		name    string
		needs   []string
		script  string // in an empty directory of its own
		want    string // of its output, with spaces cut
		needSet bool   // root only
	}{
		{"pipes", []string{"bash"}, `seq 1000 | sort -n | tail -1`, "1000", false},
		{"job control", []string{"bash", "script"}, `script -qec "bash -mic 'sleep 60 & kill %1; wait %1; echo got \$?'" /dev/null </dev/null 2>&1 | tr -d '\r' | grep got`, "got 143", false},
		{"exit status", []string{"bash"}, `bash -c 'exit 7'; echo $?`, "7", false},
		{"files", []string{"bash"}, `mkdir -p a/b c; echo x >a/b/f; mv a/b/f c/g; ln c/g a/h; rm c/g; cat a/h; cp a/h /tmp/vifshape-$$ && rm /tmp/vifshape-$$`, "x", false},
		{"new files at the top", []string{"bash"}, `echo x >/vifshape-$$ && mkdir /run/vifshape-$$ && echo x >/run/vifshape-$$/f && rm -r /vifshape-$$ /run/vifshape-$$ && echo ok`, "ok", true},
		{"branch", nil, `echo $VIFSHAPE_BRANCH`, "eth0/web/api", false},
		{"another user", []string{"setpriv"}, `setpriv --reuid 1 --regid 1 --clear-groups id -u`, "1", true},
		{"curl", []string{"curl"}, `curl -sf $SERVER`, "served", false},
		{"ssh", []string{"ssh"}, `ssh -V 2>&1 | cut -c1-7; ssh -F /dev/null -o BatchMode=yes -p 1 x@127.0.0.1 2>&1 | grep -o 'Connection refused'`, "OpenSSH Connection refused", false},
		{"python", []string{"python3"}, `python3 -c '
import subprocess, threading, multiprocessing, asyncio
def square(x): return x * x
if __name__ == "__main__":
    t = threading.Thread(target=print, args=("thread",)); t.start(); t.join()
    print(subprocess.check_output(["echo", "child"], text=True).strip())
    print(multiprocessing.get_context("fork").Pool(2).map(square, [2, 3]))
    async def main():
        p = await asyncio.create_subprocess_exec("true"); print(await p.wait())
    asyncio.run(main())'`, "thread child [4, 9] 0", false},
		{"node", []string{"node"}, `node -e '
const { Worker } = require("worker_threads"), { execFileSync, spawnSync } = require("child_process"), fs = require("fs");
console.log(execFileSync("echo", ["child"]).toString().trim());
fs.promises.writeFile("f", "file").then(() => fs.promises.readFile("f", "utf8")).then(s => { console.log(s);
new Worker("require(\"worker_threads\").parentPort.postMessage(\"worker\")", { eval: true }).on("message", console.log); });'`, "child file worker", false},
		{"java", []string{"java", "javac"}, `cat >T.java <<'X'
public class T { public static void main(String[] a) throws Exception {
  Thread t = new Thread(() -> System.out.println("thread")); t.start(); t.join();
  System.out.println(new String(new ProcessBuilder("echo", "child").start().getInputStream().readAllBytes()).trim());
  java.net.ServerSocket s = new java.net.ServerSocket(0); new java.net.Socket("127.0.0.1", s.getLocalPort()).close(); System.out.println("socket"); } }
X
javac T.java && java -Xmx64m T`, "thread child socket", false},
		{"docker", []string{"docker"}, `docker --version | cut -c1-14; DOCKER_HOST=unix://$PWD/none docker ps 2>&1 | grep -o -m1 ' connect '`, "Docker version connect", false},
		{"podman", []string{"podman"}, `podman --version | cut -c1-14`, "podman version", false},
		{"apt", []string{"apt-get"}, `mkdir -p repo state/lists/partial cache/archives/partial; : >repo/Packages
echo "deb [trusted=yes] file://$PWD/repo ./" >list
apt() { apt-get -o Dir::Etc::sourcelist=$PWD/list -o Dir::Etc::sourceparts=/dev/null -o Dir::State=$PWD/state -o Dir::State::status=/var/lib/dpkg/status -o Dir::Cache=$PWD/cache -o APT::Sandbox::User=root "$@"; }
apt update >log 2>&1 && apt -s install bash >log 2>&1 && echo ok || cat log`, "ok", true},
		{"git", []string{"git"}, `git init -q a && cd a && git -c user.name=x -c user.email=x@x commit -q --allow-empty -m first && cd .. && git clone -q a b && git -C b log --format=%s`, "first", false},
		{"make", []string{"make"}, "printf 'all: a b c d\\na b c d:\\n\\t@echo x >$@\\n' >Makefile; make -s -j4 && ls", "Makefile a b c d", false},
		{"compiler", []string{"gcc"}, `echo 'int main(){return 3;}' >x.c && gcc x.c && ./a.out; echo $?`, "3", false},
		{"ping", []string{"ping"}, `ping -c 1 -W 5 127.0.0.1 | grep -o '1 received'`, "1 received", false},
		{"iperf3", []string{"iperf3"}, `iperf3 -s -1 -p 5301 >log 2>&1 & until iperf3 -c 127.0.0.1 -p 5301 -n 100K >log2 2>&1; do sleep 0.1; done; wait; echo ok`, "ok", false},
		{"nginx", []string{"nginx", "curl"}, `cat >conf <<X
user root; pid $PWD/pid; events {}
http { access_log off; client_body_temp_path $PWD/a; proxy_temp_path $PWD/b; fastcgi_temp_path $PWD/c; uwsgi_temp_path $PWD/d; scgi_temp_path $PWD/e;
server { listen 127.0.0.1:5302; return 200 served; } }
X
nginx -e $PWD/error -c $PWD/conf && curl -sf http://127.0.0.1:5302/; p=$(cat pid); kill $p; while kill -0 $p; do sleep 0.05; done`, "served", false},
		{"a Go program", nil, `$PROGRAM version >/dev/null && echo ok`, "ok", true},
		{"signals", []string{"bash"}, `bash -c 'trap "echo term; exit 3" TERM; kill $$; sleep 1'; echo $?`, "term 3", false},
	} {
		if i := slices.IndexFunc(tt.needs, func(p string) bool { _, err := exec.LookPath(p); return err != nil }); i >= 0 {
			t.Logf("%s: there is no %s", tt.name, tt.needs[i])
			continue
		}
		for _, user := range []string{"0", "65534"} {
			if tt.needSet && user != "0" {
				continue
			}
			t.Run(tt.name+" as "+user, func(t *testing.T) {
				sub := *n
				sub.TB = t
				sub.dir = t.TempDir()
				sub.open(sub.dir)
				uid, err := strconv.Atoi(user)
				if err == nil {
					err = os.Chown(sub.dir, uid, uid)
				}
				if err != nil {
					t.Fatal(err)
				}
				one := func(args ...string) string {
					dir := filepath.Join(sub.dir, args[len(args)-1])
					err := os.Mkdir(dir, 0o755)
					if err == nil {
						err = os.Chown(dir, uid, uid)
					}
					if err != nil {
						t.Fatal(err)
					}
					args[len(args)-1] = dir
					args = append(args, "--env", "HOME="+dir, "--env", "TMPDIR=/tmp", "--env", "PROGRAM="+n.bin, "--env", "SERVER="+server, "--user", user+":"+user, "eth0/web/api", "--", "sh", "-c", tt.script)
					r := sub.run(args...)
					if r.code != 0 {
						t.Logf("exit status %d, %s", r.code, r.stderr)
					}
					return strings.Join(strings.Fields(r.stdout), " ")
				}
				without := one("run", "--level", "tag", "--cwd", "tag")
				got := one("run", "--level", "lock", "--cwd", "lock")
				if without != tt.want { // which may have other reasons on a machine where nobody installed it for this
					must := !slices.ContainsFunc(tt.needs, func(p string) bool { return !slices.Contains(installed, p) })
					if must || got != without {
						t.Errorf("locked in: %q, with the cgroup alone %q, want %q", got, without, tt.want)
					}
					t.Logf("it does not work here: %q", without)
					return
				}
				if got != tt.want {
					t.Errorf("locked in: %q, with the cgroup alone %q", got, without)
				}
			})
		}
	}
}

// TestKernelLock: what run says of a program that is locked in, and what it then
// may do.
func TestKernelLock(t *testing.T) {
	n := newLocked(t)
	t.Run("capabilities", func(t *testing.T) {
		for _, tt := range []struct {
			args []string
			want string // of the capabilities in force that are NET_ADMIN and NET_RAW
			told string
		}{
			{nil, "0", ""},
			{[]string{"--keep-caps", "net_raw"}, "2000", "vifshape: the program keeps CAP_NET_RAW: "},
			{[]string{"--keep-caps", "NET_RAW,CAP_NET_ADMIN", "--user", "65534:65534"}, "3000", "vifshape: the program keeps CAP_NET_ADMIN: "},
			{[]string{"--user", "65534:65534"}, "0", ""},
			{[]string{"--level", "tag"}, "3000", ""},
		} {
			args := append([]string{"run"}, tt.args...)
			r := n.run(append(args, "eth0/web/api", "--", "sh", "-c", `printf %x $((0x$(grep CapEff /proc/self/status | cut -f2) & 0x3000))`)...)
			if r.code != 0 || r.stdout != tt.want || !strings.Contains(r.stderr, tt.told) || tt.told == "" && r.stderr != "" {
				t.Errorf("%v: want capabilities %s and words %q: %v", tt.args, tt.want, tt.told, r)
			}
		}
		n.fails(1, `capability "none" is not known here`, "run", "--keep-caps", "none", "eth0/web/api", "--", "true")
		n.fails(1, "at level tag the program keeps all capabilities", "run", "--level", "tag", "--keep-caps", "NET_RAW", "eth0/web/api", "--", "true")
	})
	t.Run("packet sockets", func(t *testing.T) {
		self, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		packet := []string{"--env", tctest.Acting, "eth0/web/api", "--", self, "openPacket"}
		if r := n.run(append([]string{"run"}, packet...)...); r.code == 0 || !strings.Contains(r.stderr, unix.EPERM.Error()) {
			t.Errorf("locked in: %v", r)
		}
		if r := n.run(append([]string{"run", "--keep-caps", "NET_RAW"}, packet...)...); r.code != 0 {
			t.Errorf("with the capability: %v", r)
		}
	})
	t.Run("files", func(t *testing.T) {
		f, err := os.Open("/")
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		c := n.command("run", "eth0/web/api", "--", "sh", "-c", "echo /proc/self/fd/*")
		c.ExtraFiles = []*os.File{f}
		r := n.start(c).wait()
		if want := "/proc/self/fd/0 /proc/self/fd/1 /proc/self/fd/2"; !strings.HasPrefix(r.stdout, want) || strings.Contains(r.stdout, "/4") {
			t.Errorf("descriptors %q, %s", r.stdout, r.stderr)
		}
	})
	t.Run("settings", func(t *testing.T) {
		// those of the kernel's helper, where they always are and elsewhere
		at := t.TempDir()
		for _, dir := range []string{"/proc", at} {
			r := n.inMounts("mount -t proc proc "+at, "run", "eth0/web/api", "--", "sh", "-c", `cat $0/sys/kernel/core_pattern >$0/sys/kernel/core_pattern`, dir)
			if r.code == 0 || !strings.Contains(r.stderr, "Read-only file system") {
				t.Errorf("the kernel's helper can be changed below %s: %v", dir, r)
			}
		}
		for _, dir := range []string{filepath.Join(n.cgroups(), "eth0/web/api"), "/sys", "/proc/bus"} {
			if _, err := os.Stat(dir); os.IsNotExist(err) {
				continue // a machine without such a bus
			}
			r := n.run("run", "eth0/web/api", "--", "touch", "-c", dir)
			if r.code == 0 || !strings.Contains(r.stderr, "Read-only file system") {
				t.Errorf("%s can be written to: %v", dir, r)
			}
		}
	})
	t.Run("later mounts", func(t *testing.T) {
		// Users see what is mounted outside, and root does not.
		for user, want := range map[string]string{"65534:65534": "there", "0:0": ""} {
			dir := t.TempDir()
			n.open(dir)
			r := n.under([]string{"unshare", "--mount", "sh", "-c", `set -e
mount --make-rshared /
cd $0
mkdir at
mkfifo -m 666 ready go
"$@" &
read x <ready
mount -t tmpfs none at
mkdir at/there
echo >go
wait $!`, dir}, "run", "--user", user, "--cwd", dir, "eth0/web/api", "--", "sh", "-c", "echo >ready; read x <go; ls at")
			if r.code != 0 || strings.TrimSpace(r.stdout) != want {
				t.Errorf("user %s sees %q, want %q: %v", user, r.stdout, want, r)
			}
		}
	})
	t.Run("same process", func(t *testing.T) {
		c := n.command("run", "eth0/web/api", "--", "sh", "-c", "echo $$; kill -9 $$")
		r := n.start(c)
		if out := r.wait(); out.code != -1 || strings.TrimSpace(out.stdout) != fmt.Sprint(c.Process.Pid) {
			t.Errorf("process %d: %v", c.Process.Pid, out)
		}
	})
	t.Run("environment", func(t *testing.T) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "here"), []byte("#!/bin/sh\necho $PWD $A $B $VIFSHAPE_BRANCH\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		got := n.ok("run", "--cwd", dir, "--env", "A=1", "--env", "B=2=3", "eth0/web/api", "--", "./here")
		if want := dir + " 1 2=3 eth0/web/api\n"; got != want {
			t.Errorf("%q, want %q", got, want)
		}
		n.fails(exitUsage, "write NAME=VALUE", "run", "--env", "A", "eth0/web/api", "--", "true")
		n.fails(1, "no such file or directory", "run", "--cwd", "/no/such", "eth0/web/api", "--", "true")
		n.fails(exitUsage, "none of lock, tag, best", "run", "--level", "none", "eth0/web/api", "--", "true")
	})
}

// TestLockOwnedNamespaces: root without capabilities owns the user namespaces that
// root has made, as runtimes do for containers, and so may enter what belongs to them.
// Locked in it may not: there, its packets have another way out.
func TestLockOwnedNamespaces(t *testing.T) {
	n := newLocked(t)
	c := exec.Command(tctest.RequireProgram(t, "unshare"), "--user", "--map-root-user", "--net", "sh", "-c", "echo; read x")
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := c.StdoutPipe()
	if err == nil {
		err = c.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := c.Wait(); err != nil && !errors.As(err, new(*exec.ExitError)) {
			t.Error(err)
		}
	})
	if _, err := out.Read(make([]byte, 1)); err != nil { // it is in its namespaces
		t.Fatal(err)
	}
	dir := t.TempDir()
	mounts := fmt.Sprintf("set -e; cd %s; for ns in user net; do touch $ns; mount --bind /proc/%d/ns/$ns $ns; done", dir, c.Process.Pid)
	enter := []string{tctest.RequireProgram(t, "nsenter"), "--preserve-credentials", "--user=" + dir + "/user", "--net=" + dir + "/net", "true"}
	if r := n.inMounts(mounts, append([]string{"run", "--keep-caps", "SYS_ADMIN", "eth0/web/api", "--"}, enter...)...); r.code != 0 {
		t.Fatalf("with the capability: %v", r)
	}
	r := n.inMounts(mounts, append([]string{"run", "eth0/web/api", "--"}, enter...)...)
	if r.code == 0 || !strings.Contains(r.stderr, "Operation not permitted") {
		t.Errorf("without: %v", r)
	}
}

// TestKernelLockMissing: a machine that cannot lock programs in is told so before
// anything starts, and both ways on work.
func TestKernelLockMissing(t *testing.T) {
	n := newNetwork(t)
	n.ok("apply", n.policy("policy.toml", smallPolicy))
	without := func(args ...string) result {
		t.Helper()
		return n.start(tctest.Command(n, append([]string{"refuse", "landlock", ";", "vifshape"}, args...)...)).wait()
	}
	n.failed(without("run", "eth0/web/api", "--", "echo", "started"), 1, "Landlock: CONFIG_SECURITY_LANDLOCK, Linux 5.19: "+caps.ErrNotSupported.Error())
	r := without("run", "--level", "best", "eth0/web/api", "--", "echo", "started")
	if r.stdout != "started\n" || !strings.Contains(r.stderr, "not held: Landlock: ") {
		t.Errorf("best: %v", r)
	}
	if r := without("run", "--level", "tag", "eth0/web/api", "--", "echo", "started"); r.stdout != "started\n" || r.stderr != "" {
		t.Errorf("tag: %v", r)
	}
}

// serve answers every request at the far end with a text, and returns its address.
func (n *network) serve(text string) string {
	n.Helper()
	var l net.Listener
	err := n.Far.Do(func() (err error) {
		l, err = net.Listen("tcp", netip.AddrPortFrom(n.Far4, 0).String())
		return err
	})
	if err != nil {
		n.Fatal(err)
	}
	s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, text) // who asked may be gone
	})}
	go func() { _ = s.Serve(l) }() // until it is closed
	n.Cleanup(func() {
		if err := s.Close(); err != nil {
			n.Error(err)
		}
	})
	return "http://" + l.Addr().String()
}
