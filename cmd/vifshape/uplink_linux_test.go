package main

import (
	"encoding/json"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vifshape/vifshape/hierarchy"
)

// uplinks has interfaces a0 and b0 beside eth0, each with an address and one at its other end.
func (n *network) uplinks() {
	n.Helper()
	for i, iface := range []string{"a0", "b0"} {
		n.plug(iface)
		n.shell("ip addr replace 198.51.100." + []string{"1", "129"}[i] + "/25 dev " + iface + "; ip link set " + iface + " up" +
			"; ip neigh replace 198.51.100." + []string{"2", "130"}[i] + " lladdr 52:54:00:00:00:01 dev " + iface)
	}
}

// TestKernelDefaultRoute: what a policy says of the default route holds where that is, comes
// with it, and goes where it has left.
func TestKernelDefaultRoute(t *testing.T) {
	n := newNetwork(t)
	n.uplinks()
	const text = "version = 1\n[interface.default-route]\nrate = \"7mbit\"\n[interface.default-route.web]\nceil = \"3mbit\"\n"
	file := n.policy("home.toml", text)

	// Without one nothing is meant, which is no mistake of the file.
	n.ok("check", file)
	n.fails(exitError, "default-route: there is none, and so no interface of it", "plan", file)
	n.shell("ip route add default via 198.51.100.130 metric 200")
	n.ok("plan", file)
	n.ok("apply", file)
	if n.rate("b0") != 7*hierarchy.Mbit || n.root("a0").Ours() || n.root("eth0").Ours() {
		t.Errorf("b0 has %v, a0 %v, eth0 %v", n.rate("b0"), n.root("a0"), n.root("eth0"))
	}
	if out := n.ok("show"); !strings.Contains(out, "b0: bound by") || !strings.Contains(out, `by "default-route"`) || !strings.Contains(out, "web") {
		t.Errorf("show:\n%s", out)
	}
	n.ok("clear")

	// The lowest metric counts, and a table for the name, or the address, fits better.
	n.shell("ip route add default via 198.51.100.2 metric 100")
	dir := n.enabled()
	n.ok("enable", "--policies", dir, file)
	n.ok("enable", "--policies", dir, n.policy("any.toml", "version = 1\n[interface.\"?0\"]\nrate = \"1mbit\"\n"))
	if n.rate("a0") != 7*hierarchy.Mbit || n.rate("b0") != hierarchy.Mbit {
		t.Errorf("a0 has %v, b0 %v", n.rate("a0"), n.rate("b0"))
	}
	n.fails(exitError, "default-route belongs to "+filepath.Join(dir, "home.toml")+" already", "enable", "--policies", dir, "--name", "twice", file)
	n.ok("disable", "--policies", dir, "any")

	// The agent goes with it.
	a := n.agent("--policies", dir)
	at := func(iface, other string) {
		t.Helper()
		n.until("the tree of "+iface, func() bool { return n.rate(iface) == 7*hierarchy.Mbit })
		n.until("that of "+other+" goes", func() bool { return !n.root(other).Ours() })
		n.until("the record", func() bool { return n.run("plan", "--detailed-exitcode", "--policies", dir).code == 0 })
	}
	at("a0", "b0")
	n.shell("ip route add default via 198.51.100.130 metric 50") // as of a cable that is plugged in
	at("b0", "a0")
	a.says("msg=cleared interface=a0")
	n.sendOut("b0")
	n.shell("ip link set b0 down") // takes its routes along, and tells nobody
	at("a0", "b0")

	// While there is none all stays as it is.
	n.shell("ip route del default")
	n.shell("ip addr add 203.0.113.1/32 dev a0") // later than the route
	if err := a.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	a.says("default-route is not there")
	if n.rate("a0") != 7*hierarchy.Mbit {
		t.Error("a0 is not shaped any more while there is no default route")
	}
	// IPv6's counts where there is none of IPv4.
	n.shell("ip link set b0 up; ip -6 route add default dev b0")
	at("b0", "a0")
	n.shell("ip route add default via 198.51.100.2")
	at("a0", "b0")
	// It left while no agent was there.
	if code := a.end(os.Interrupt); code != 0 {
		t.Errorf("exit status %d", code)
	}
	n.shell("ip route replace default via 198.51.100.130")
	a = n.agent("--policies", dir)
	at("b0", "a0")
	// The route comes later than the agent.
	n.shell("ip route del default; ip -6 route del default")
	n.ok("clear")
	n.shell("ip route add default dev a0")
	n.until("the tree of a0", func() bool { return n.rate("a0") == 7*hierarchy.Mbit })
	n.ok("disable", "--policies", dir, "home")
	a.end(os.Interrupt)
	n.clean()
}

// TestKernelDefaultRouteLeft: where the default route has left, limits stay, and programs are in
// their branches again when it is back.
func TestKernelDefaultRouteLeft(t *testing.T) {
	n := newNetwork(t)
	n.uplinks()
	n.shell("ip route add default via 198.51.100.2")
	dir := n.enabled()
	n.ok("enable", "--policies", dir, n.policy("home.toml", "version = 1\n[interface.default-route]\nrate = \"7mbit\"\n[interface.default-route.web]\nceil = \"3mbit\"\n"))
	n.ok("limit", "user:nobody", "--up", "1mbit")
	n.branch("a0/web", "sleep", "100")
	n.ok("add", "a0/web/x")
	a := n.agent("--policies", dir)
	n.shell("ip route replace default via 198.51.100.130")
	a.says("a0/web/x, which was added at run time, goes")
	a.says("msg=cleared interface=a0")
	if out := n.ok("show", "a0"); n.rate("b0") != 7*hierarchy.Mbit || !strings.Contains(out, "a0/user-nobody: a limit on user:nobody") || strings.Contains(out, "web") || strings.Contains(out, "default-route") {
		t.Errorf("b0 has %v, and a0, where the route was:\n%s", n.rate("b0"), out)
	}
	n.shell("ip route replace default via 198.51.100.2")
	n.until("the way back", func() bool { return n.rate("a0") == 7*hierarchy.Mbit && !n.root("b0").Ours() })
	if out := n.ok("show", "a0"); !strings.Contains(out, "a0/web: run (") || !strings.Contains(out, ": 1 process") || !strings.Contains(out, "a0/user-nobody: a limit on user:nobody") {
		t.Errorf("where the route is again:\n%s", out)
	}
	n.ok("clear")
	a.end(os.Interrupt)
}

// sendOut sends datagrams to an address that only the default route is for, and waits until an
// interface's tree has counted them.
func (n *network) sendOut(iface string) {
	n.Helper()
	before := n.sentBy(iface)
	err := n.Near.Do(func() error {
		c, err := net.Dial("udp4", "203.0.113.9:9")
		if err != nil {
			return err
		}
		defer c.Close()
		for range 10 {
			if _, err := c.Write(make([]byte, 1000)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		n.Fatal(err)
	}
	n.until("10 packets of 1000 bytes in the tree of "+iface, func() bool { return n.sentBy(iface)-before >= 10_000 })
}

// sentBy is how much an interface has sent through its tree.
func (n *network) sentBy(iface string) uint64 {
	n.Helper()
	var got struct {
		Interfaces []struct{ Branches []shownBranch }
	}
	if err := json.Unmarshal([]byte(n.ok("show", "--json", iface)), &got); err != nil || len(got.Interfaces) != 1 {
		n.Fatalf("%v: %+v", err, got)
	}
	return got.Interfaces[0].Branches[0].Bytes
}
