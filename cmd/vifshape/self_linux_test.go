package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
)

const nestedPolicy = `version = 1
binding = "bpf"
[interface.eth0]
rate = "100mbit"
[interface.eth0.web]
rate = "50mbit"
[interface.eth0.web.api]
rate = "20mbit"
ceil = "30mbit"
[interface.eth0.web.rest]
rate = "10mbit"
[interface.eth0.backup]
rate = "10mbit"
bind = ["user:65534"]
`

// nested is a network with the policy applied and a home for each branch.
func nested(t *testing.T) *network {
	t.Helper()
	tctest.Cgroup2Mount(t)
	for _, p := range []string{"true", "cat", "bash", "dd"} {
		tctest.RequireProgram(t, p)
	}
	n := newNetwork(t)
	n.ok("apply", n.policy("nested.toml", nestedPolicy))
	for _, p := range []string{"eth0/web", "eth0/web/api", "eth0/backup"} {
		n.ok("run", "--level", "tag", p, "--", "true")
	}
	return n
}

// placed runs vifshape in a branch, or in none, as a user, and after what an actor is told.
func (n *network) placed(branch, told string, uid int, args ...string) result {
	n.Helper()
	var all []string
	if branch != "" {
		branch = filepath.Join(n.cgroups(), branch)
		all = []string{"join", branch, ";"}
	}
	if told != "" {
		told = strings.NewReplacer("BRANCH", branch, "STORE", n.store.Dir, ";", " ; ").Replace(told)
		all = append(append(all, strings.Fields(told)...), ";")
	}
	if uid != 0 {
		all = append(all, "become", strconv.Itoa(uid), ";")
	}
	return n.start(tctest.Command(n, append(append(all, "vifshape"), args...)...)).wait()
}

// TestKernelSelf holds that a process learns its branch from the kernel, whatever
// hides it and without privileges, and from its environment only where it must.
func TestKernelSelf(t *testing.T) {
	n := nested(t)
	const api, home = "eth0/web/api", "cgroup:/vifshape/NS/eth0/web/api"
	for _, tt := range []struct {
		name         string
		branch, told string
		uid          int
		want         string // path, from, target
		remark       string
	}{
		{"root", api, "", 0, api + " run " + home, ""},
		{"user", api, "", 65534, api + " run " + home, ""},
		{"inner branch", "eth0/web", "", 65534, "eth0/web/rest run cgroup:/vifshape/NS/eth0/web", ""},
		{"forged claim", api, "claim eth0/backup", 65534, api + " run " + home, ""},
		{"deeper", api, "deeper BRANCH/x", 0, api + " run " + home, ""},
		{"deeper, user", api, "deeper BRANCH/x; deeper BRANCH/x/y", 65534, api + " run " + home, ""},
		{"namespace", api, "unshareCgroup", 0, api + " run " + home, ""},
		{"namespace, user", api, "unshareCgroup; claim eth0/backup", 65534, api + " run " + home, ""},
		{"namespace, then deeper", api, "unshareCgroup; deeper BRANCH/x", 65534, api + " run " + home, ""},
		{"deeper, then namespace", api, "deeper BRANCH/x; unshareCgroup", 65534, api + " run " + home, ""},
		{"container", api, "unshareCgroup; remountCgroup; claim eth0/web", 0, api + "  cgroup:/", ""},
		{"container, user", api, "unshareCgroup; remountCgroup; claim eth0/web/api", 65534, api + " VIFSHAPE_BRANCH ", "hides the cgroups above its own"},
		{"bound user", "", "", 65534, "eth0/backup user:65534 uid:65534", ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := n.placed(tt.branch, tt.told, tt.uid, "self", "--json", "--sample", "1ms")
			if r.code != 0 || !strings.Contains(r.stderr, tt.remark) || tt.remark == "" && r.stderr != "" {
				t.Fatalf("self: %v", r)
			}
			var got struct {
				Branches []struct {
					Interface, Path, From, Target, Binding string
					Rate, Ceil                             hierarchy.Bandwidth
				}
			}
			if err := json.Unmarshal([]byte(r.stdout), &got); err != nil || len(got.Branches) != 1 {
				t.Fatalf("%v: %v", err, r)
			}
			b := got.Branches[0]
			want := strings.Replace(tt.want, "NS", n.store.NetNS, 1)
			if d := cmp.Diff(want, b.Path+" "+b.From+" "+b.Target); d != "" {
				t.Errorf("(-want +got):\n%s", d)
			}
			if b.Interface != "eth0" || b.Binding != "bpf" || strings.HasPrefix(b.Path, api) && (b.Rate != 20*hierarchy.Mbit || b.Ceil != 30*hierarchy.Mbit) {
				t.Errorf("got %+v", b)
			}
		})
	}
	for _, level := range []string{"tag", "lock"} {
		for _, user := range []string{"0:0", "65534:65534"} {
			t.Run(level+", "+user, func(t *testing.T) {
				// by a descriptor: the way to the file may be closed to the user
				c := n.command("run", "--level", level, "--user", user, api, "--", "bash", "-c", "exec -a vifshape /proc/self/fd/0 self")
				var err error
				if c.Stdin, err = os.Open(n.bin); err != nil {
					t.Fatal(err)
				}
				defer c.Stdin.(*os.File).Close()
				r := n.start(c).wait()
				tctest.Require(t, level == "tag" || !strings.Contains(r.stderr, "Landlock: "), "Landlock")
				if f := strings.Fields(r.stdout); r.code != 0 || r.stderr != "" || !slices.Contains(f, api) || strings.Count(r.stdout, "\n") != 2 {
					t.Errorf("self: %v", r)
				}
			})
		}
	}
	for _, tt := range []struct{ name, branch, told, want string }{
		{"outside", "", "", "this process is in no branch: what it sends goes to eth0/rest"},
		{"claim alone", "", "claim eth0/web", "this process is in no branch: what it sends goes to eth0/rest"},
		{"another network", api, "unshareNet", "its cgroup is that of eth0/web/api in another one"},
		{"no network of ours", "", "unshareNet", "no interface is shaped by vifshape in this network namespace"},
	} {
		t.Run(tt.name, func(t *testing.T) { n.failed(n.placed(tt.branch, tt.told, 0, "self"), exitError, tt.want) })
	}
}

// TestKernelSelfCounts holds that what self prints is what the kernel counted.
func TestKernelSelfCounts(t *testing.T) {
	n := nested(t)
	sink, err := lab.NewSink(t.Context(), n.Far, 5600)
	if err != nil {
		t.Fatal(err)
	}
	defer sink.Close()
	sender := n.start(n.command("run", "--level", "tag", "eth0/web/api", "--", "bash", "-c", fmt.Sprintf("exec dd if=/dev/zero bs=1200 status=none >/dev/udp/%v/5600", n.Far4)))
	n.until("traffic", func() bool { return sink.Count(5600).Wire > 500_000 })
	counted := func() (c tc.ClassStats) {
		t.Helper()
		record, err := n.store.Load(n.Dev)
		if err != nil {
			t.Fatal(err)
		}
		n.device(func(d *tc.Device) error {
			all, err := d.Stats()
			for _, s := range all {
				if record.IDs.Names(n.Dev)[s.Class] == "eth0/web/api" {
					c = s
				}
			}
			return err
		})
		return c
	}
	before := counted()
	out := n.run("run", "--level", "tag", "eth0/web/api", "--", n.bin, "self", "--json", "--sample", "1s")
	after := counted()
	if err := n.kill(); err != nil {
		t.Error(err)
	}
	sender.wait()
	var v struct {
		Branches []struct {
			Sending        hierarchy.Bandwidth
			Bytes, Packets uint64
		}
	}
	if err := json.Unmarshal([]byte(out.stdout), &v); err != nil || len(v.Branches) != 1 {
		t.Fatalf("%v: %v", err, out)
	}
	got := v.Branches[0]
	t.Logf("%+v", got)
	if got.Bytes < before.Bytes || got.Bytes > after.Bytes || got.Packets < before.Packets || got.Packets > after.Packets {
		t.Errorf("%d bytes in %d packets: not between %d in %d and %d in %d", got.Bytes, got.Packets, before.Bytes, before.Packets, after.Bytes, after.Packets)
	}
	// It looked for a second at least.
	if most := hierarchy.Bandwidth(8 * (after.Bytes - before.Bytes)); got.Sending == 0 || got.Sending > most {
		t.Errorf("sending %v, where %v was sent at most", got.Sending, most)
	}
}

// TestKernelWithin holds that run goes from a branch only further down, whatever
// the caller does to the environment, the run directory, or what it sees of cgroups.
func TestKernelWithin(t *testing.T) {
	n := nested(t)
	const web, api, backup = "eth0/web", "eth0/web/api", "eth0/backup"
	for _, tt := range []struct {
		name         string
		branch, told string
		to           string
		at           string // the branch that the refusal names, or unknown; empty: it works
	}{
		{"from outside", "", "", api, ""},
		{"claim alone", "", "claim eth0/web/api", backup, ""},
		{"itself", api, "", api, ""},
		{"below", web, "", api, ""},
		{"itself, deeper", web, "deeper BRANCH/x", web, ""},
		{"below, namespace", web, "unshareCgroup", api, ""},
		{"above", api, "", web, api},
		{"beside", api, "", backup, api},
		{"the interface", api, "", "eth0", api},
		{"a name that begins so", api, "", "eth0/web/api2", api},
		{"forged claim", api, "claim eth0/backup", backup, api},
		{"deeper", api, "deeper BRANCH/x; deeper BRANCH/x/y", backup, api},
		{"deeper, called as the other", api, "deeper BRANCH/backup", backup, api},
		{"namespace", api, "unshareCgroup; claim", backup, api},
		{"namespace, deeper", api, "unshareCgroup; deeper BRANCH/x; claim eth0/backup", backup, api},
		{"deeper, namespace", api, "deeper BRANCH/x; unshareCgroup", backup, api},
		{"forged run directory", api, "forgeRecord STORE", backup, api},
		{"forged run directory and claim, namespace", api, "unshareCgroup; forgeRecord STORE; claim eth0/backup", backup, api},
		{"container without the claim", api, "unshareCgroup; remountCgroup; claim", backup, api},
		{"container with a forged claim", api, "unshareCgroup; remountCgroup; claim eth0/backup", backup, api},
		{"container, deeper", api, "unshareCgroup; deeper BRANCH/x; remountCgroup; claim", backup, api},
		{"container inside a cgroup of its own", api, "deeper BRANCH/x; unshareCgroup; remountCgroup; claim eth0/web", backup, web},
		{"container inside a cgroup of its own without the claim", api, "deeper BRANCH/x; unshareCgroup; remountCgroup; claim", backup, "unknown"},
		{"another network", api, "unshareNet", api, api},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := n.placed(tt.branch, tt.told, 0, "run", "--level", "tag", tt.to, "--", "cat", "/proc/self/cgroup")
			if tt.at != "" {
				n.failed(r, exitError, tt.to)
				want := "this process is in branch " + tt.at
				if tt.at == "unknown" {
					want = "and cannot tell: its cgroup namespace hides the cgroups above its own"
				}
				if !strings.Contains(r.stderr, want) {
					t.Errorf("no %q: %v", want, r)
				}
				return
			}
			if r.code != 0 || r.stderr != "" || !strings.Contains(r.stdout, "0::/") {
				t.Errorf("run: %v", r)
			}
		})
	}
}
