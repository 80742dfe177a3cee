package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

// wire is a tap in the far namespace, of which a macvlan in the near one has its speed: what its
// driver says of that, and whether the line is there, is what the test says.
type wire struct {
	*network
	iface string
	tap   *os.File
}

func (n *network) wire(iface string) *wire {
	n.Helper()
	w := &wire{network: n, iface: iface}
	err := n.Far.Do(func() (err error) {
		if w.tap, err = os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
			return err
		}
		req, err := unix.NewIfreq("tap0")
		if err != nil {
			return err
		}
		req.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
		return unix.IoctlIfreq(int(w.tap.Fd()), unix.TUNSETIFF, req)
	})
	if err != nil {
		tctest.Require(n, false, "taps: "+err.Error())
	}
	n.Cleanup(func() { w.tap.Close() })
	tctest.Output(n, n.Far, "sh", "-ec", "ip link set tap0 up; ip link add link tap0 name "+iface+" type macvlan; ip link set "+iface+" netns "+fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n.Near.FD()))
	n.shell("ip link set " + iface + " up")
	return w
}

// says has the driver say a speed, in mbit; -1: that it does not know.
func (w *wire) says(mbit int32) {
	w.Helper()
	// struct ethtool_cmd of linux/ethtool.h
	cmd := struct {
		cmd, supported, advertising                   uint32
		speed                                         uint16
		duplex, port, phy, transceiver, autoneg, mdio uint8
		maxtxpkt, maxrxpkt                            uint32
		speedHi                                       uint16
		mdix, mdixCtrl                                uint8
		lpAdvertising, reserved0, reserved1           uint32
	}{cmd: unix.ETHTOOL_SSET, speed: uint16(mbit), speedHi: uint16(mbit >> 16), duplex: 1}
	err := w.Far.Do(func() error {
		s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(s)
		req := struct {
			name [unix.IFNAMSIZ]byte
			data unsafe.Pointer
			_    [8]byte
		}{data: unsafe.Pointer(&cmd)}
		copy(req.name[:], "tap0")
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(s), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req))); errno != 0 {
			return errno
		}
		return nil
	})
	if err != nil {
		w.Fatal(err)
	}
}

// carrier plugs the line in, or out, and waits until the interface has noticed.
func (w *wire) carrier(on int) {
	w.Helper()
	const tunSetCarrier = 0x400454e2 // TUNSETCARRIER of linux/if_tun.h
	if err := unix.IoctlSetPointerInt(int(w.tap.Fd()), tunSetCarrier, on); err != nil {
		w.Fatal(err)
	}
	w.until("the carrier", func() bool {
		is := -1
		err := w.Near.Do(func() error {
			c, err := rtnl.Open(rtnl.Config{})
			if err != nil {
				return err
			}
			defer c.Close()
			l, err := link.Find(c, w.iface)
			if is = 0; l.Carrier {
				is = 1
			}
			return err
		})
		return err == nil && is == on
	})
}

// TestKernelLinkSpeed: a rate that is a share of the link is worked out for the one that is
// there, follows it, and waits where nobody knows it.
func TestKernelLinkSpeed(t *testing.T) {
	n := newNetwork(t)
	w := n.wire("m0")
	w.says(1000)
	const text = "version = 1\n[interface.m0]\nrate = \"95% of link\"\ningress = \"90% of link\"\n[interface.m0.web]\nrate = \"40%\"\n[interface.m0.fixed]\nrate = \"50mbit\"\n"
	file := n.policy("fleet.toml", text)
	n.ok("check", file)
	if out := n.ok("check", "--tree", file); !strings.Contains(out, "m0 has a share of its link: the rates are those of one of 1gbit, as an example") {
		t.Errorf("check --tree:\n%s", out)
	}
	if r := n.run("plan", file); r.code != 0 || !strings.Contains(r.stdout, "rate 950mbit") || !strings.Contains(r.stdout, "rate 380mbit") || !strings.Contains(r.stderr, "m0: its rate is a share of the link, which has 1gbit") {
		t.Errorf("plan: %v", r)
	}
	n.ok("apply", file)
	if n.rate("m0") != 950*hierarchy.Mbit {
		t.Errorf("of a link of 1gbit m0 has %v", n.rate("m0"))
	}
	if out := n.ok("show", "m0"); !strings.Contains(out, ", of a link of 1gbit") {
		t.Errorf("show:\n%s", out)
	}
	n.shell("ip addr add 198.51.100.1/25 dev m0; ip neigh replace 198.51.100.2 lladdr 52:54:00:00:00:01 dev m0; ip route add default via 198.51.100.2")
	n.sendOut("m0")

	// Another speed is no drift: what was applied is there. The next apply goes by it.
	w.says(2500)
	if r := n.run("plan", file); r.code != 0 || strings.Contains(r.stderr, "not as it was applied") || !strings.Contains(r.stdout, "rate 950mbit -> 2.38gbit") {
		t.Errorf("plan on a faster link: %v", r)
	}
	n.ok("show", "m0")
	n.ok("apply", file)
	// Nobody knows while the line is down: what is there counts.
	w.says(-1)
	w.carrier(0)
	if r := n.run("plan", "--detailed-exitcode", file); r.code != 0 {
		t.Errorf("plan while the link is down: %v", r)
	}
	n.ok("clear", "m0")
	n.fails(exitError, "m0: its rate is a share of the link, which is down", "apply", file)
	w.carrier(1)
	n.fails(exitError, "m0: its rate is a share of the link, and its driver does not say how fast that is\nvifshape: hint: write what the line really carries: rate = \"940mbit\"", "apply", file)
	// What does not fit onto this link is said with its place.
	w.says(10)
	if r := n.run("plan", file); r.code != exitError || !strings.Contains(r.stderr, "fleet.toml:8:8: m0/fixed: rate 50mbit is too much: the branches of m0 add up to 53800kbit") {
		t.Errorf("plan on a link that is too slow: %v", r)
	}
	// A veth says what means nothing.
	veth := n.policy("veth.toml", strings.ReplaceAll(text, "m0", "eth0"))
	n.fails(exitError, "eth0: its rate is a share of the link, and its driver does not say", "plan", veth)
	if r := n.run("doctor", "--policy", veth); r.code != exitError || !strings.Contains(r.stdout, "eth0: its rate is a share of the link, and its driver does not say") {
		t.Errorf("doctor: %v", r)
	}
	if r := n.run("what-if", "--demand", "eth0/web=max", veth); r.code != 0 || !strings.Contains(r.stderr, "what is said is of one of 1gbit, as an example") || !strings.Contains(r.stdout, "950mbit") {
		t.Errorf("what-if: %v", r)
	}
	if n.root("eth0").Ours() || n.root("m0").Ours() {
		t.Error("what failed has changed something")
	}

	// The agent waits until it is known, and follows it.
	w.says(-1)
	w.carrier(0)
	dir := n.enabled()
	if r := n.run("enable", "--policies", dir, file); r.code != 0 || !strings.Contains(r.stderr, "m0: its rate is a share of the link, which is down: how fast it is shows when it is up; what the policy says of it waits") {
		t.Errorf("enable: %v", r)
	}
	if out := n.ok("enable", "--list", "--policies", dir); !strings.Contains(out, "fleet  m0         waits") {
		t.Errorf("enable --list:\n%s", out)
	}
	a := n.agent("--policies", dir)
	a.says("which is down")
	w.says(1000)
	w.carrier(1)
	at := func(want hierarchy.Bandwidth) {
		t.Helper()
		n.until("the rate of "+want.String(), func() bool { return n.rate("m0") == want })
		n.until("the record", func() bool { return n.run("plan", "--detailed-exitcode", "--policies", dir).code == 0 })
	}
	at(950 * hierarchy.Mbit)
	w.carrier(0)
	w.says(100)
	w.carrier(1)
	at(95 * hierarchy.Mbit)
	w.carrier(0)
	w.says(-1)
	w.carrier(1)
	w.says(1000)
	w.carrier(0)
	w.carrier(1)
	at(950 * hierarchy.Mbit)
	if out := n.ok("enable", "--list", "--policies", dir); !strings.Contains(out, "fleet  m0         in force") {
		t.Errorf("enable --list:\n%s", out)
	}
	if r := n.run("show"); r.code != 0 {
		t.Errorf("show: %v", r)
	}
	n.ok("disable", "--policies", dir, "fleet")
	a.end(os.Interrupt)
	n.clean()
	if _, err := os.Stat(filepath.Join(dir, "fleet.toml")); err == nil {
		t.Error("disable has left the policy")
	}
}
