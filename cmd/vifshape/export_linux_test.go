package main

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/vifshape/vifshape/tc/tctest"
)

// What export prints makes the tree that apply made, where something else stood before, and
// for networkd has the same numbers.
func TestKernelExport(t *testing.T) {
	tctest.RequireProgram(t, "tc")
	ours, theirs := newNetwork(t), newNetwork(t)
	file := ours.policy("policy.toml", strings.Replace(everything, "[interface.eth0.web]\n", "[interface.eth0.web]\nmatch = [{ dport = 443 }]\n", 1))
	planned := ours.ok("export", "--policy", file)
	ours.ok("apply", "--binding", "bpf", file)
	script := ours.ok("export", ours.Dev)
	sorted := func(s string) []string { return slices.Sorted(strings.Lines(s)) }
	if diff := cmp.Diff(sorted(planned), sorted(script)); diff != "" { // queues are in another order
		t.Errorf("what is in force is another than what was planned:\n%s", diff)
	}
	if !strings.Contains(script, "\n#   match of eth0/web (71f:241c) { dport = 443 }\n") || !strings.Contains(script, "\n#   classifier bpf\n") {
		t.Errorf("what tc cannot do is not said:\n%s", script)
	}
	commands := ours.ok("export", "--format", "tc")
	if tree, _, _ := strings.Cut(commands, "# create"); len(tree) < 200 || !strings.Contains(script, tree) {
		t.Errorf("format tc is another than the script:\n%s", commands)
	}
	tctest.TC(t, theirs.Near, "qdisc", "add", "dev", theirs.Dev, "root", "handle", "9:", "htb")
	theirs.shell(script)
	ours.sameAsTC(ours.sending(), theirs.sending())
	theirs.shell(script) // once more in the place of its own
	ours.sameAsTC(ours.sending(), theirs.sending())

	networkd := ours.ok("export", ours.Dev, "--format", "networkd")
	for _, want := range []string{
		"[Match]\nName=eth0\n", "[HierarchyTokenBucket]\nParent=root\nHandle=71f\nDefaultClass=2\n",
		"# eth0\n[HierarchyTokenBucketClass]\nParent=root\nClassId=71f:1\nRate=940000000\nCeilRate=940000000\n", "OverheadBytes=4\n# Not said: mpu 64\n",
		"\nQuantumBytes=3001\nPriority=3\n", "[PFIFO]\n", "\nPacketLimit=333\n", "[BFIFO]\n", "\nLimitBytes=123456\n", "[TokenBucketFilter]\n", "\nRate=5000000\n",
	} {
		if !strings.Contains(networkd, want) {
			t.Errorf("%q is missing:\n%s", want, networkd)
		}
	}
	ours.fails(exitUsage, "format \"xml\" is not one of script, tc, networkd", "export", "--format", "xml")
	ours.fails(exitUsage, "leave eth0 out", "export", "eth0", "--policy", file)
	ours.ok("clear")
	ours.fails(exitError, "eth0 is not shaped by vifshape", "export", "eth0")
	theirs.shell("tc qdisc delete dev eth0 root")
}

// A script has what is received go through its tree, too.
func TestKernelExportReceived(t *testing.T) {
	tctest.RequireLink(t, "ifb")
	ours, theirs := newNetwork(t), newNetwork(t)
	file := ours.policy("policy.toml", "version = 1\n[interface.eth0]\nrate = \"50mbit\"\ningress = \"80mbit\"\n[interface.eth0.web]\nrate = \"10mbit\"\n")
	theirs.shell(ours.ok("export", "--policy", file))
	before := tctest.TCClasses(t, theirs.Near, "vif-eth0")
	err := theirs.Far.Do(func() error {
		c, err := net.ListenUDP("udp4", nil)
		if err != nil {
			return err
		}
		for range datagrams {
			if _, e := c.WriteToUDPAddrPort([]byte("vifshape"), netip.AddrPortFrom(theirs.Near4, 9)); e != nil {
				err = e
			}
		}
		return errors.Join(err, c.Close())
	})
	if err != nil {
		t.Fatal(err)
	}
	for i, c := range tctest.TCClasses(t, theirs.Near, "vif-eth0") {
		if c.ID == "71f:2" && c.Packets < before[i].Packets+datagrams {
			t.Errorf("%d packets went through the rest of what is received", c.Packets-before[i].Packets)
		}
	}
	theirs.shell("tc qdisc delete dev eth0 root; tc qdisc delete dev eth0 clsact; ip link delete dev vif-eth0")
}
