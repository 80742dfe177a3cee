package cgroup_test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
)

func TestMain(m *testing.M) { tctest.Main(m, verbs) }

// Leaf classes of the tree that every test has.
const (
	rest  = hierarchy.ClassID(hierarchy.Major<<16 | hierarchy.RestMinor)
	red   = hierarchy.ClassID(hierarchy.Major<<16 | 0x10)
	green = hierarchy.ClassID(hierarchy.Major<<16 | 0x20)
	blue  = hierarchy.ClassID(hierarchy.Major<<16 | 0x30)
)

// network is a pair with an HTB tree at its near end.
type network struct {
	*lab.Pair
	device *tc.Device
	hook   *hook.Hooks
}

func newNetwork(t testing.TB) *network {
	t.Helper()
	n := &network{Pair: tctest.New(t, lab.PairConfig{TxQueueLen: 32_767})}
	noReports(t, n.Near)
	c, err := rtnl.Open(rtnl.Config{NetNS: n.Near.FD()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if n.device, err = tc.Find(c, n.Dev); err != nil {
		t.Fatal(err)
	}
	n.hook = hook.Of(n.device.Interface)
	n.tree(t)
	return n
}

// tree makes the HTB tree.
func (n *network) tree(t testing.TB) {
	t.Helper()
	steps := []hierarchy.Step{{Action: hierarchy.Create, New: &hierarchy.Root{Kind: "htb", Handle: hierarchy.ID(0)}}}
	parent := hierarchy.ID(0)
	for _, class := range []hierarchy.ClassID{hierarchy.ID(hierarchy.RootMinor), rest, red, green, blue} {
		steps = append(steps, hierarchy.Step{Action: hierarchy.Create, New: &hierarchy.Class{
			ID: class, Parent: parent, Rate: 4 * hierarchy.Gbit, Ceil: 40 * hierarchy.Gbit,
			Burst: hierarchy.MiB, CBurst: hierarchy.MiB, Quantum: 60_000,
		}})
		parent = hierarchy.ID(hierarchy.RootMinor)
	}
	if _, err := n.device.Do(t.Context(), steps); err != nil {
		t.Fatal(err)
	}
}

// onlyIPv4 keeps interfaces that are yet to be made from reporting IPv6 groups.
func onlyIPv4(t testing.TB, ns *lab.NetNS) {
	t.Helper()
	err := ns.Do(func() error {
		return os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0)
	})
	if err != nil {
		t.Fatal(err)
	}
}

// noReports takes the route of multicast away, and so the kernel's reports of
// IPv6 groups, which would be counted too. The kernel makes the route once the
// interface has a carrier, in a work queue (linkwatch_event, net/core/link_watch.c,
// and addrconf_add_mroute, net/ipv6/addrconf.c, v6.12).
func noReports(t testing.TB, ns *lab.NetNS) {
	t.Helper()
	c, err := ns.Dial(unix.NETLINK_ROUTE, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ae := netlink.NewAttributeEncoder()
	ae.Bytes(unix.RTA_DST, netip.MustParseAddr("ff00::").AsSlice())
	ae.Uint32(unix.RTA_TABLE, unix.RT_TABLE_LOCAL)
	attrs, err := ae.Encode()
	if err != nil {
		t.Fatal(err)
	}
	msg := make([]byte, unix.SizeofRtMsg)
	msg[0], msg[1], msg[7] = unix.AF_INET6, 8, unix.RTN_MULTICAST
	remove := netlink.Message{
		Header: netlink.Header{Type: unix.RTM_DELROUTE, Flags: netlink.Request | netlink.Acknowledge},
		Data:   append(msg, attrs...),
	}
	deadline := time.Now().Add(30 * time.Second)
	for _, err = c.Execute(remove); errors.Is(err, unix.ESRCH) && time.Now().Before(deadline); _, err = c.Execute(remove) {
		time.Sleep(time.Millisecond) // it is not there yet
	}
	if err != nil {
		t.Fatalf("remove the route of multicast: %v", err)
	}
}

// binder makes a Binder for the near interface, for all ways or some.
func (n *network) binder(t testing.TB, ways ...bind.Way) *cgroup.Binder {
	t.Helper()
	return n.binderWith(t, cgroup.Config{Ways: ways})
}

// binderWith is one that is configured besides.
func (n *network) binderWith(t testing.TB, c cgroup.Config) *cgroup.Binder {
	t.Helper()
	key, err := cgroupfs.NetNSKey(n.Near.FD())
	if err != nil {
		t.Fatal(err)
	}
	c.Hook, c.Interface, c.Index, c.NetNSFD, c.NetNS = n.hook, n.Dev, n.device.Index, n.Near.FD(), key
	b, err := cgroup.NewBinder(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// counts are the packets that the leaf classes sent, and under 0 what the device
// sent beside them.
func (n *network) counts(t testing.TB) map[hierarchy.ClassID]uint64 {
	t.Helper()
	var (
		stats []tc.ClassStats
		err   error
	)
	sent := n.sent(t)
	for before := sent + 1; before != sent; sent = n.sent(t) { // of one moment
		before = sent
		if stats, err = n.device.Stats(); err != nil {
			t.Fatal(err)
		}
	}
	m := map[hierarchy.ClassID]uint64{0: sent}
	for _, c := range stats {
		if c.Drops != 0 || c.QLen != 0 {
			t.Errorf("class %v dropped %d packets, %d wait", c.Class, c.Drops, c.QLen)
		}
		if c.Class != hierarchy.ID(hierarchy.RootMinor) {
			m[c.Class] = c.Packets
			m[0] -= uint64(c.Lends) + uint64(c.Borrows) // unsplit, as the device counts them
		}
	}
	return m
}

// sent is how many packets the device has sent.
func (n *network) sent(t testing.TB) (packets uint64) {
	t.Helper()
	err := n.Near.Do(func() error {
		b, err := os.ReadFile("/proc/thread-self/net/dev")
		if err != nil {
			return err
		}
		_, line, ok := strings.Cut(string(b), n.Dev+":")
		f := strings.Fields(line)
		if !ok || len(f) < 10 {
			return fmt.Errorf("no %s in %s", n.Dev, b)
		}
		packets, err = strconv.ParseUint(f[9], 10, 64)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return packets
}

// during is what counts gained while fn ran; classes without a packet are left
// out.
func (n *network) during(t testing.TB, fn func()) map[hierarchy.ClassID]uint64 {
	t.Helper()
	before := n.counts(t)
	was := n.sent(t)
	fn()
	taken(t)
	// What is forwarded may still be with the thread that does the kernel's soft
	// interrupts, which gets its turn while this one sleeps.
	deadline := time.Now().Add(time.Second)
	for last, same := was, 0; same < 3 || last == was && time.Now().Before(deadline); same++ {
		time.Sleep(5 * time.Millisecond)
		if now := n.sent(t); now != last {
			last, same = now, 0
		}
	}
	gained := map[hierarchy.ClassID]uint64{}
	for id, after := range n.counts(t) {
		if after != before[id] {
			gained[id] = after - before[id]
		}
	}
	return gained
}

// taken returns when what had been sent has been taken from the processors' queues of received
// packets (enqueue_to_backlog and process_backlog, net/core/dev.c, v6.12). Those of a guest
// may stand still for longer than anybody would wait.
func taken(t testing.TB) {
	t.Helper()
	empty := map[int]bool{} // once is enough: they are queues
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		b, err := os.ReadFile("/proc/net/softnet_stat")
		if err != nil {
			t.Fatal(err)
		}
		waiting := false
		for i, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
			const length = 11 // of the queue; since v5.10
			f := strings.Fields(line)
			if len(f) <= length || strings.Trim(f[length], "0") == "" {
				empty[i] = true
			}
			waiting = waiting || !empty[i]
		}
		if !waiting {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("a processor has had packets waiting for ten seconds")
		}
	}
	// And until no processor is at one of them: they are taken where RCU counts them as readers.
	// A kernel that cannot wait so has the time that is slept for afterwards, and no more.
	const global = 1 // MEMBARRIER_CMD_GLOBAL
	if _, _, errno := unix.Syscall(unix.SYS_MEMBARRIER, global, 0, 0); errno != 0 && errno != unix.ENOSYS && errno != unix.EINVAL {
		t.Fatal("membarrier:", errno)
	}
}

// sub makes a cgroup below dir.
func sub(t testing.TB, dir string, names ...string) string {
	t.Helper()
	p := filepath.Join(append([]string{dir}, names...)...)
	if err := os.MkdirAll(p, 0o755); err != nil {
		t.Fatal(err)
	}
	return p
}
