package tc_test

import (
	"encoding/json"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

func links(t *testing.T, n *lab.NetNS) []tc.Link {
	t.Helper()
	c, err := tc.Open(tc.Config{NetNS: n.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l, err := c.Links()
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func find(t *testing.T, list []tc.Link, name string) tc.Link {
	t.Helper()
	i := slices.IndexFunc(list, func(l tc.Link) bool { return l.Name == name })
	if i < 0 {
		t.Fatalf("no %s in %v", name, list)
	}
	return list[i]
}

// openTun makes a tun interface that lives as long as the test.
func openTun(t *testing.T, n *lab.NetNS, name string) {
	t.Helper()
	fd := -1
	err := n.Do(func() (err error) { // the opener's namespace is the interface's
		fd, err = unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
		return err
	})
	tctest.Require(t, err == nil, "/dev/net/tun")
	t.Cleanup(func() { unix.Close(fd) })
	r, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	r.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, r); err != nil {
		t.Fatal(err)
	}
}

func TestKernelLinks(t *testing.T) {
	for _, tt := range []struct {
		link lab.Link
		want tc.Link
	}{
		{lab.Link{Name: "lo"}, tc.Link{Nature: tc.NatureLoopback, Carrier: true, Up: true, Qdisc: "noqueue"}},
		{lab.Link{Name: "eth0", Kind: "veth"}, tc.Link{Nature: tc.NatureVirtual, Carrier: true, Up: true, Qdisc: "noqueue", LowerNetNS: 0}},
		{lab.Link{Name: "br0", Kind: "bridge", Down: true}, tc.Link{Nature: tc.NatureBridge, Qdisc: "noop"}},
		{lab.Link{Name: "bond7", Kind: "bond", Down: true}, tc.Link{Nature: tc.NatureBond, Qdisc: "noop"}},
		{lab.Link{Name: "eth0.5", Kind: "vlan", Parent: "eth0", VLAN: 5}, tc.Link{Nature: tc.NatureVLAN, Carrier: true, Up: true, Qdisc: "noqueue", Speed: 10 * hierarchy.Gbit}},
		{lab.Link{Name: "mac0", Kind: "macvlan", Parent: "eth0"}, tc.Link{Nature: tc.NatureVirtual, Carrier: true, Up: true, Qdisc: "noqueue", Speed: 10 * hierarchy.Gbit}},
		{lab.Link{Name: "ifb7", Kind: "ifb", TxQueueLen: 77, MTU: 1400, Queues: 3}, tc.Link{Nature: tc.NatureVirtual, Carrier: true, Up: true, Qdisc: "mq"}},
		{lab.Link{Name: "dummy7", Kind: "dummy"}, tc.Link{Nature: tc.NatureVirtual, Carrier: true, Up: true, Qdisc: "noqueue"}},
		{lab.Link{Name: "tun7", Kind: "tun"}, tc.Link{Nature: tc.NatureTunnel, Qdisc: "noop"}},
		{lab.Link{Name: "wg0", Kind: "wireguard"}, tc.Link{Nature: tc.NatureTunnel, Carrier: true, Up: true, Qdisc: "noqueue"}},
	} {
		switch kind := tt.link.Kind; kind {
		case "", "veth", "tun":
		default:
			// TestVMLinks has them, but for wireguard: User-mode Linux comes without.
			if (!vm.Inside() || kind == "wireguard") && !tctest.HasLink(t, kind) {
				t.Logf("%s is not there", kind)
				continue
			}
		}
		t.Run(tt.link.Name, func(t *testing.T) {
			p := tctest.New(t, lab.PairConfig{})
			switch tt.link.Kind {
			case "", "veth":
			case "tun":
				openTun(t, p.Near, tt.link.Name)
			default:
				tctest.RequireLink(t, tt.link.Kind)
				if err := p.Near.AddLink(tt.link); err != nil {
					t.Fatal(err)
				}
			}
			all := links(t, p.Near)
			got := find(t, all, tt.link.Name)
			want := tt.want
			want.Name, want.Kind = tt.link.Name, tt.link.Kind
			switch {
			case tt.link.Parent != "":
				want.Lower, want.LowerNetNS = find(t, all, tt.link.Parent).Index, -1
			case tt.link.Kind == "veth":
				want.Lower = find(t, links(t, p.Far), p.FarDev).Index
			default:
				want.LowerNetNS = -1
			}
			ignore := cmpopts.IgnoreFields(tc.Link{}, "Index", "MTU", "TxQueues", "RxQueues", "TxQueueLen", "GSOMaxSize", "GSOMaxSegs", "OperState")
			if tt.link.Queues != 0 {
				want.MTU, want.TxQueueLen, want.TxQueues = tt.link.MTU, tt.link.TxQueueLen, tt.link.Queues
				if find(t, all, "lo").RxQueues != 0 { // the kernel says how many there are
					want.RxQueues = tt.link.Queues
				}
				ignore = cmpopts.IgnoreFields(tc.Link{}, "Index", "GSOMaxSize", "GSOMaxSegs", "OperState")
			}
			if d := cmp.Diff(want, got, ignore); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			compareWithIP(t, p.Near)
		})
	}
}

// User-mode Linux has the kinds that the development kernel lacks.
func TestVMLinks(t *testing.T) {
	vm.Run(t, vm.UML(), vm.V2, "", "-test.run=^TestKernelLink")
}

// compareWithIP checks every field that iproute2 shows too. The kernel brings
// the state of a new interface up to date a little later, so that two readings
// may differ at first.
func compareWithIP(t *testing.T, n *lab.NetNS) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for {
		d := cmp.Diff(linksOfIP(t, n), links(t, n), cmpopts.IgnoreFields(tc.Link{}, "Nature", "Speed", "Carrier", "ParentDev", "ParentBus"))
		if d == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("against ip (-want +got)\n%s", d)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// linksOfIP is what "ip -d -j link show" says.
func linksOfIP(t *testing.T, n *lab.NetNS) []tc.Link {
	t.Helper()
	var list []struct {
		IfIndex     int
		IfName      string
		Flags       []string
		MTU         int
		Qdisc       string
		OperState   string
		Link        string
		LinkIndex   int  `json:"link_index"`
		LinkNetNSID *int `json:"link_netnsid"`
		Master      string
		TxQLen      int
		LinkInfo    struct {
			Kind string `json:"info_kind"`
		}
		NumTx   int            `json:"num_tx_queues"`
		NumRx   int            `json:"num_rx_queues"`
		GSOSize hierarchy.Size `json:"gso_max_size"`
		GSOSegs int            `json:"gso_max_segs"`
	}
	out := tctest.Output(t, n, tctest.RequireProgram(t, "ip"), "-d", "-j", "link", "show")
	// iproute2 prints sizes as numbers, the model's type reads text.
	type raw = map[string]json.RawMessage
	var raws []raw
	if err := json.Unmarshal([]byte(out), &raws); err != nil {
		t.Fatal(err)
	}
	for _, r := range raws {
		if v, ok := r["gso_max_size"]; ok {
			r["gso_max_size"] = json.RawMessage(`"` + string(v) + `b"`)
		}
	}
	b, err := json.Marshal(raws)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &list); err != nil {
		t.Fatal(err)
	}
	index := map[string]int{}
	for _, l := range list {
		index[l.IfName] = l.IfIndex
	}
	var want []tc.Link
	for _, l := range list {
		w := tc.Link{
			Index: l.IfIndex, Name: l.IfName, Kind: l.LinkInfo.Kind, MTU: l.MTU, Qdisc: l.Qdisc,
			OperState: strings.ToLower(l.OperState), Lower: l.LinkIndex, LowerNetNS: -1, Master: index[l.Master],
			TxQueueLen: l.TxQLen, TxQueues: l.NumTx, RxQueues: l.NumRx, GSOMaxSize: l.GSOSize, GSOMaxSegs: l.GSOSegs,
			Up: slices.Contains(l.Flags, "UP"),
		}
		if l.Link != "" {
			w.Lower = index[l.Link]
		}
		if l.LinkNetNSID != nil {
			w.LowerNetNS = *l.LinkNetNSID
		}
		want = append(want, w)
	}
	return want
}

// A member of a bridge names its master.
func TestKernelLinkMaster(t *testing.T) {
	tctest.RequireLink(t, "bridge")
	n := tctest.NetNS(t)
	if err := n.AddLink(lab.Link{Name: "br0", Kind: "bridge"}); err != nil {
		t.Fatal(err)
	}
	if err := lab.AddVeth(n, lab.Link{Name: "a0", Master: "br0"}, n, lab.Link{Name: "b0"}); err != nil {
		t.Fatal(err)
	}
	all := links(t, n)
	if got, want := find(t, all, "a0").Master, find(t, all, "br0").Index; got != want {
		t.Errorf("master %d, want %d", got, want)
	}
	compareWithIP(t, n)
}

// The machine's own interfaces are read without any privileges.
func TestKernelLinksUnprivileged(t *testing.T) {
	if os.Geteuid() == 0 {
		// Of this thread alone; it ends with the test's goroutine.
		runtime.LockOSThread()
		if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, 65534, 65534, 65534); errno != 0 {
			t.Fatal(errno)
		}
	}
	c, err := tc.Open(tc.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l, err := c.Links()
	if err != nil {
		t.Fatal(err)
	}
	if lo := find(t, l, "lo"); lo.Nature != tc.NatureLoopback {
		t.Errorf("%+v", lo)
	}
	for _, l := range l {
		t.Logf("%+v", l)
	}
}
