package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
)

// TestKernelOver: what a node says in files of its own is laid over what the fleet's policy says,
// by every command and by the agent.
func TestKernelOver(t *testing.T) {
	n := newNetwork(t)
	n.shell("ip route add default dev eth0")
	const fleet = "version = 1\n[interface.default-route]\nrate = \"95% of link\"\n[interface.default-route.web]\nceil = \"5mbit\"\nbind = [\"user:root\"]\n[interface.default-route.backup]\nceil = \"1mbit\"\n"
	file := n.policy("10-fleet.toml", fleet)
	// Without the node's file eth0's speed would have to be known.
	n.fails(exitError, "eth0: its rate is a share of the link", "plan", file)
	node := func(dir, name, text string) {
		t.Helper()
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	node(file+".d", "20-node.toml", "[interface.default-route]\nrate = \"20mbit\"\n")
	node(file+".d", "30-node.toml", "[interface.default-route]\nrate = \"30mbit\"\n[interface.default-route.backup]\nceil = \"2mbit\"\n")
	node(file+".d", "README", "no policy\n")
	node(file+".d", ".40-node.toml", "no policy\n")
	n.ok("check", file)
	if r := n.run("plan", file); r.code != 0 || !strings.Contains(r.stdout, "rate 30mbit") || !strings.Contains(r.stderr, "30-node.toml is laid over it") {
		t.Errorf("plan: %v", r)
	}
	n.ok("apply", file)
	ceil := func(branch string) string {
		t.Helper()
		for line := range strings.Lines(n.ok("show", "eth0")) {
			if f := strings.Fields(line); len(f) > 3 && f[0] == branch {
				return f[3]
			}
		}
		return ""
	}
	if n.rate("eth0") != 30*hierarchy.Mbit || ceil("backup") != "2mbit" || ceil("web") != "5mbit" {
		t.Errorf("eth0 has %v, backup %s, web %s", n.rate("eth0"), ceil("backup"), ceil("web"))
	}
	n.sendOut("eth0")
	// Mistakes are said of the file that they are in.
	node(file+".d", "30-node.toml", "[interface.default-route]\nrate = \"30mbit\"\n\n[interface.default-route.backup]\nceil = \"40mbit\"\n")
	for _, command := range []string{"check", "plan", "apply"} {
		if r := n.run(command, file); r.code != exitError || !strings.Contains(r.stderr, "10-fleet.toml.d/30-node.toml:5:8: default-route/backup: ceil 40mbit is above the ceil 30mbit") {
			t.Errorf("%s: %v", command, r)
		}
	}
	if r := n.run("doctor", "--policy", file); r.code != exitError || !strings.Contains(r.stdout, "30-node.toml:5:8: ") {
		t.Errorf("doctor: %v", r)
	}
	n.ok("clear")

	// What is enabled has its own beside the copy.
	dir := n.enabled()
	n.fails(exitError, "20-node.toml is laid over "+file+", and would not be over the copy", "enable", "--policies", dir, file)
	if err := os.RemoveAll(file + ".d"); err != nil {
		t.Fatal(err)
	}
	over := filepath.Join(dir, "10-fleet.toml.d")
	node(over, "node.toml", "interface.default-route.rate = \"40mbit\"\n")
	n.ok("enable", "--policies", dir, file)
	if n.rate("eth0") != 40*hierarchy.Mbit || ceil("backup") != "1mbit" {
		t.Errorf("enabled: eth0 has %v, backup %s", n.rate("eth0"), ceil("backup"))
	}
	a := n.agent("--policies", dir)
	reload := func() {
		t.Helper()
		if err := a.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
	}
	list := func(want string) {
		t.Helper()
		if out := n.ok("enable", "--list", "--policies", dir); !strings.Contains(out, want) {
			t.Errorf("not %q:\n%s", want, out)
		}
	}
	list("10-fleet  eth0       in force")
	node(over, "node.toml", "interface.default-route.rate = \"50mbit\"\n")
	list("10-fleet  eth0       changed")
	reload()
	n.until("what the node says now", func() bool { return n.rate("eth0") == 50*hierarchy.Mbit })
	node(over, "other.toml", "interface.default-route.rate = \"60mbit\"\n")
	reload()
	n.until("what the other file says", func() bool { return n.rate("eth0") == 60*hierarchy.Mbit })
	// The fleet's policy may be another one, and the node's stays.
	n.ok("enable", "--policies", dir, n.policy("10-fleet.toml", strings.Replace(fleet, "1mbit", "3mbit", 1)))
	if n.rate("eth0") != 60*hierarchy.Mbit || ceil("backup") != "3mbit" {
		t.Errorf("enabled again: eth0 has %v, backup %s", n.rate("eth0"), ceil("backup"))
	}
	// What others may write counts for nothing, and all stays.
	if err := os.Chmod(filepath.Join(over, "other.toml"), 0o666); err != nil {
		t.Fatal(err)
	}
	reload()
	a.says("others than root may write to " + filepath.Join(over, "other.toml"))
	if r := n.run("apply", "--policies", dir); r.code != exitError || !strings.Contains(r.stderr, "others than root may write to") {
		t.Errorf("apply: %v", r)
	}
	if err := os.Remove(filepath.Join(over, "other.toml")); err != nil {
		t.Fatal(err)
	}
	reload()
	n.until("the node's file alone", func() bool { return n.rate("eth0") == 50*hierarchy.Mbit })
	if r := n.run("disable", "--policies", dir, "10-fleet"); r.code != 0 || !strings.Contains(r.stderr, fmt.Sprintf("%s is left", over)) {
		t.Errorf("disable: %v", r)
	}
	a.end(os.Interrupt)
	n.clean()
}
