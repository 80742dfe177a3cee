package tc_test

import (
	stdcmp "cmp"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/lab"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/tctest"
	"github.com/vifshape/vifshape/tc/tctest/vm"
)

func links(t *testing.T, n *lab.NetNS) []link.Link {
	t.Helper()
	c, err := rtnl.Open(rtnl.Config{NetNS: n.FD()})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l, err := link.List(c)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func find(t *testing.T, list []link.Link, name string) link.Link {
	t.Helper()
	i := slices.IndexFunc(list, func(l link.Link) bool { return l.Name == name })
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

// linkCase is an interface to make in a namespace that has eth0, one end of a
// veth, and what is to be said of it.
type linkCase struct {
	link    lab.Link
	on      uint16 // attribute that binds a tunnel to eth0
	members []lab.Link
	want    link.Link
}

// The attributes that tunnels take, of linux/if_tunnel.h, linux/if_link.h and
// linux/in.h.
const (
	iflaIPTunLink, iflaIPTunLocal, iflaIPTunRemote = 1, 2, 3
	iflaGRELink, iflaGRELocal, iflaGRERemote       = 1, 6, 7
	iflaVTILink, iflaVTILocal, iflaVTIRemote       = 1, 4, 5
	iflaGeneveID, iflaGeneveRemote                 = 1, 2
	iflaXfrmLink, iflaXfrmIfID                     = 1, 2
	iflaVRFTable                                   = 1
)

// ends writes the addresses of both ends of a tunnel.
func ends(local, remote uint16, a, b string) func(*netlink.AttributeEncoder) {
	return func(ae *netlink.AttributeEncoder) {
		ae.Bytes(local, netip.MustParseAddr(a).AsSlice())
		ae.Bytes(remote, netip.MustParseAddr(b).AsSlice())
	}
}

func vxlan(id uint32) func(*netlink.AttributeEncoder) {
	return func(ae *netlink.AttributeEncoder) {
		ae.Uint32(unix.IFLA_VXLAN_ID, id)
		ae.Bytes(unix.IFLA_VXLAN_GROUP, []byte{192, 0, 2, 1})
		ae.Bytes(unix.IFLA_VXLAN_PORT, []byte{0x12, 0xb5})
	}
}

// linkCases has interfaces of every kind. Two of one kind have two names.
func linkCases() []linkCase {
	up := func(n link.Nature) link.Link { return link.Link{Nature: n, Carrier: true, Up: true, Qdisc: "noqueue"} }
	down := func(n link.Nature) link.Link { return link.Link{Nature: n, Qdisc: "noop"} }
	byRoute := func(l link.Link) link.Link { l.ByRoute = true; return l }
	with := func(l link.Link, members ...string) link.Link { l.Members = members; return l }
	multi := up(link.Virtual)
	multi.Qdisc = "mq"
	peer := up(link.Virtual)
	peer.LowerName = "far0"
	const a4, b4, a6, b6 = "192.0.2.2", "192.0.2.1", "2001:db8::2", "2001:db8::1"
	gre4, gre6 := ends(iflaGRELocal, iflaGRERemote, a4, b4), ends(iflaGRELocal, iflaGRERemote, a6, b6)
	ip4, ip6 := ends(iflaIPTunLocal, iflaIPTunRemote, a4, b4), ends(iflaIPTunLocal, iflaIPTunRemote, a6, b6)
	ports := []lab.Link{{Name: "port0", Kind: "ifb", Master: "br0"}, {Name: "port1", Kind: "ifb", Master: "br0"}}
	return []linkCase{
		{link: lab.Link{Name: "lo"}, want: up(link.Loopback)},
		{link: lab.Link{Name: "eth0", Kind: "veth"}, want: peer},
		{link: lab.Link{Name: "ifb7", Kind: "ifb", TxQueueLen: 77, MTU: 1400, Queues: 3}, want: multi},
		{link: lab.Link{Name: "dummy7", Kind: "dummy"}, want: up(link.Virtual)},

		{link: lab.Link{Name: "br1", Kind: "bridge", Down: true}, want: down(link.Bridge)},
		{link: lab.Link{Name: "br0", Kind: "bridge"}, members: ports, want: with(up(link.Bridge), "port0", "port1")},
		{link: lab.Link{Name: "bond7", Kind: "bond", Down: true}, want: down(link.Bond)},
		{link: lab.Link{Name: "bond8", Kind: "bond"}, members: []lab.Link{{Name: "port0", Kind: "dummy", Master: "bond8"}, {Name: "port1", Kind: "dummy", Master: "bond8"}},
			want: with(up(link.Bond), "port0", "port1")},
		{link: lab.Link{Name: "team7", Kind: "team", Down: true}, members: []lab.Link{{Name: "port0", Kind: "dummy", Master: "team7", Down: true}}, want: with(down(link.Bond), "port0")},
		{link: lab.Link{Name: "red", Kind: "vrf", Data: func(ae *netlink.AttributeEncoder) { ae.Uint32(iflaVRFTable, 77) }},
			members: []lab.Link{{Name: "port0", Kind: "dummy", Master: "red"}}, want: with(up(link.Virtual), "port0")},

		{link: lab.Link{Name: "eth0.5", Kind: "vlan", Parent: "eth0", VLAN: 5}, want: up(link.VLAN)},
		{link: lab.Link{Name: "mac0", Kind: "macvlan", Parent: "eth0"}, want: up(link.Virtual)},
		{link: lab.Link{Name: "tap0", Kind: "macvtap", Parent: "eth0", Down: true}, want: down(link.Virtual)},
		{link: lab.Link{Name: "ipv0", Kind: "ipvlan", Parent: "eth0"}, want: up(link.Virtual)},
		{link: lab.Link{Name: "macsec0", Kind: "macsec", Parent: "eth0", Down: true}, want: down(link.Tunnel)},

		{link: lab.Link{Name: "tun7", Kind: "tun"}, want: down(link.Tunnel)},
		{link: lab.Link{Name: "wg0", Kind: "wireguard"}, want: byRoute(up(link.Tunnel))},
		{link: lab.Link{Name: "vx0", Kind: "vxlan", Data: vxlan(7)}, want: byRoute(up(link.Tunnel))},
		{link: lab.Link{Name: "vx1", Kind: "vxlan", Data: vxlan(8)}, on: unix.IFLA_VXLAN_LINK, want: up(link.Tunnel)},
		{link: lab.Link{Name: "gen0", Kind: "geneve", Data: func(ae *netlink.AttributeEncoder) {
			ae.Uint32(iflaGeneveID, 7)
			ae.Bytes(iflaGeneveRemote, []byte{192, 0, 2, 1})
		}}, want: byRoute(up(link.Tunnel))},
		{link: lab.Link{Name: "gre7", Kind: "gre", Data: gre4}, want: byRoute(up(link.Tunnel))},
		{link: lab.Link{Name: "gre8", Kind: "gre", Data: gre4}, on: iflaGRELink, want: up(link.Tunnel)},
		{link: lab.Link{Name: "gretap7", Kind: "gretap", Data: gre4, Down: true}, on: iflaGRELink, want: down(link.Tunnel)},
		{link: lab.Link{Name: "gre67", Kind: "ip6gre", Data: gre6}, on: iflaGRELink, want: up(link.Tunnel)},
		{link: lab.Link{Name: "ipip7", Kind: "ipip", Data: ip4}, want: byRoute(up(link.Tunnel))},
		{link: lab.Link{Name: "ipip8", Kind: "ipip", Data: ip4}, on: iflaIPTunLink, want: up(link.Tunnel)},
		{link: lab.Link{Name: "sit7", Kind: "sit", Data: ip4}, on: iflaIPTunLink, want: up(link.Tunnel)},
		{link: lab.Link{Name: "ip67", Kind: "ip6tnl", Data: ip6}, on: iflaIPTunLink, want: up(link.Tunnel)},
		{link: lab.Link{Name: "vti7", Kind: "vti", Data: ends(iflaVTILocal, iflaVTIRemote, a4, b4)}, on: iflaVTILink, want: up(link.Tunnel)},
		{link: lab.Link{Name: "xfrm7", Kind: "xfrm", Data: func(ae *netlink.AttributeEncoder) { ae.Uint32(iflaXfrmIfID, 7) }}, on: iflaXfrmLink, want: up(link.Tunnel)},
	}
}

// TestKernelLinks: kinds that the kernel lacks are those of a machine of
// TestVMLinks.
func TestKernelLinks(t *testing.T) {
	p := tctest.New(t, lab.PairConfig{})
	eth0 := find(t, links(t, p.Near), "eth0").Index
	add := func(t *testing.T, l lab.Link) bool {
		t.Helper()
		err := p.Near.AddLink(l)
		if errors.Is(err, unix.EOPNOTSUPP) && (!vm.Inside() || l.Kind == "wireguard" || l.Kind == "xfrm") { // User-mode Linux lacks these
			t.Logf("%s is not there", l.Kind)
			return false
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := p.Near.DeleteLink(l.Name); err != nil {
				t.Error(err)
			}
		})
		return true
	}
	for _, tt := range linkCases() {
		t.Run(tt.link.Name, func(t *testing.T) {
			switch tt.link.Kind {
			case "", "veth":
			case "tun":
				openTun(t, p.Near, tt.link.Name)
			default:
				if data := tt.link.Data; tt.on != 0 {
					tt.link.Data = func(ae *netlink.AttributeEncoder) {
						data(ae)
						ae.Uint32(tt.on, uint32(eth0))
					}
				}
				if !add(t, tt.link) {
					return
				}
			}
			for _, m := range tt.members {
				if !add(t, m) {
					return
				}
			}
			want := tt.want
			want.Name, want.Kind, want.LowerNetNS = tt.link.Name, tt.link.Kind, -1
			switch {
			case tt.link.Parent != "" || tt.on != 0:
				want.Lower, want.LowerName = eth0, "eth0"
			case tt.link.Kind == "veth":
				want.Lower, want.LowerNetNS = find(t, links(t, p.Far), p.FarDev).Index, 0
			}
			ignored := []string{"Index", "MAC", "MTU", "Header", "TxQueues", "RxQueues", "TxQueueLen", "GSOMaxSize", "GSOMaxSegs", "GROMaxSize", "OperState"}
			compareWithIP(t, p.Near)
			all := links(t, p.Near)
			if tt.link.Queues != 0 {
				want.MTU, want.TxQueueLen, want.TxQueues = tt.link.MTU, tt.link.TxQueueLen, tt.link.Queues
				if find(t, all, "lo").RxQueues != 0 { // the kernel says how many there are
					want.RxQueues = tt.link.Queues
				}
				ignored = []string{"Index", "MAC", "Header", "GSOMaxSize", "GSOMaxSegs", "GROMaxSize", "OperState"}
			}
			got := find(t, all, tt.link.Name)
			if d := cmp.Diff(want, got, cmpopts.IgnoreFields(link.Link{}, ignored...)); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			borrows := slices.Contains([]link.Nature{link.Bridge, link.Bond, link.VLAN, link.Loopback}, got.Nature) || slices.Contains([]string{"ipvlan", "ipvtap", "macsec"}, got.Kind)
			if got.MAC != "" && borrows || got.MAC == "" && (got.Kind == "veth" || got.Kind == "dummy") {
				t.Errorf("its hardware address is %q", got.MAC)
			}
			for _, name := range append(got.Members, tt.link.Parent) {
				var carriers []string
				for _, c := range link.Carriers(all, got) {
					carriers = append(carriers, c.Name)
				}
				if name != "" && !slices.Contains(carriers, name) {
					t.Errorf("carried by %v, and not by %s", carriers, name)
				}
			}
		})
	}
}

// User-mode Linux has nearly all kinds of interfaces, Debian's kernel the others.
func TestVMLinks(t *testing.T) {
	t.Parallel()
	vm.Run(t, vm.UML(), vm.V2, "", "-test.run=^TestKernelLink")
}

// compareWithIP checks every field that iproute2 shows too. The kernel brings
// the state of a new interface up to date a little later, so that two readings
// may differ at first.
func compareWithIP(t *testing.T, n *lab.NetNS) {
	t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		got := links(t, n)
		for i := range got {
			if got[i].LowerNetNS != -1 {
				got[i].LowerName = "" // ip does not ask for it
			}
		}
		want := linksOfIP(t, n)
		for i := range min(len(want), len(got)) {
			if got[i].MAC == "" { // none, or that of what it lies on
				want[i].MAC = ""
			}
		}
		d := cmp.Diff(want, got, cmpopts.IgnoreFields(link.Link{}, "Nature", "Speed", "Carrier", "ParentDev", "ParentBus", "ByRoute", "GROMaxSize"))
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
func linksOfIP(t *testing.T, n *lab.NetNS) []link.Link {
	t.Helper()
	var list []struct {
		IfIndex     int
		IfName      string
		Flags       []string
		MTU         int
		Qdisc       string
		OperState   string
		Link        string
		LinkType    string `json:"link_type"`
		LinkIndex   int    `json:"link_index"`
		LinkNetNSID *int   `json:"link_netnsid"`
		Address     string
		PermAddr    string
		Master      string
		TxQLen      int
		AltNames    []string
		LinkInfo    struct {
			Kind string `json:"info_kind"`
			Data struct {
				Link string
			} `json:"info_data"`
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
	index, members := map[string]int{}, map[string][]string{}
	for _, l := range list {
		index[l.IfName] = l.IfIndex
		if l.Master != "" {
			members[l.Master] = append(members[l.Master], l.IfName)
		}
	}
	headers := map[string]hierarchy.Size{"ether": 14, "loopback": 14, "infiniband": 24}
	var want []link.Link
	for _, l := range list {
		w := link.Link{
			Index: l.IfIndex, Name: l.IfName, Kind: l.LinkInfo.Kind, MTU: l.MTU, Header: headers[l.LinkType], Qdisc: l.Qdisc,
			OperState: strings.ToLower(l.OperState), Lower: l.LinkIndex, LowerNetNS: -1, Master: index[l.Master],
			TxQueueLen: l.TxQLen, TxQueues: l.NumTx, RxQueues: l.NumRx, GSOMaxSize: l.GSOSize, GSOMaxSegs: l.GSOSegs,
			Up: slices.Contains(l.Flags, "UP"), Members: members[l.IfName], AltNames: l.AltNames, LowerName: stdcmp.Or(l.Link, l.LinkInfo.Data.Link), MAC: stdcmp.Or(l.PermAddr, l.Address),
		}
		if w.LowerName != "" {
			w.Lower = index[w.LowerName]
		}
		if l.LinkNetNSID != nil {
			w.LowerNetNS = *l.LinkNetNSID
		}
		want = append(want, w)
	}
	return want
}

// What changes about an interface is read anew: names, on and off, the line.
func TestKernelLinkStates(t *testing.T) {
	n := tctest.NetNS(t)
	if err := lab.AddVeth(n, lab.Link{Name: "a0"}, n, lab.Link{Name: "b0"}); err != nil {
		t.Fatal(err)
	}
	ip := func(args ...string) {
		t.Helper()
		tctest.Output(t, n, tctest.RequireProgram(t, "ip"), args...)
	}
	type state struct {
		Name        string
		AltNames    []string
		Up, Carrier bool
		OperState   string
		LowerName   string
	}
	for _, tt := range []struct {
		what string
		do   func()
		want state
	}{
		{"new", func() {}, state{Name: "a0", Up: true, Carrier: true, OperState: "up", LowerName: "b0"}},
		{"no carrier", func() { ip("link", "set", "b0", "down") }, state{Name: "a0", Up: true, OperState: "lowerlayerdown", LowerName: "b0"}},
		{"down", func() { ip("link", "set", "a0", "down") }, state{Name: "a0", OperState: "down", LowerName: "b0"}},
		{"renamed", func() { ip("link", "set", "a0", "name", "c0") }, state{Name: "c0", OperState: "down", LowerName: "b0"}},
		{"other names", func() {
			ip("link", "property", "add", "dev", "c0", "altname", "a0", "altname", "a-name-longer-than-15-bytes")
		}, state{Name: "c0", AltNames: []string{"a0", "a-name-longer-than-15-bytes"}, OperState: "down", LowerName: "b0"}},
		{"up", func() { ip("link", "set", "b0", "up"); ip("link", "set", "a0", "up") },
			state{Name: "c0", AltNames: []string{"a0", "a-name-longer-than-15-bytes"}, Up: true, Carrier: true, OperState: "up", LowerName: "b0"}},
	} {
		tt.do()
		compareWithIP(t, n)
		d := "never looked"
		for deadline := time.Now().Add(time.Minute); d != "" && time.Now().Before(deadline); { // the kernel takes a while to say so
			got := find(t, links(t, n), tt.want.Name)
			d = cmp.Diff(tt.want, state{got.Name, got.AltNames, got.Up, got.Carrier, got.OperState, got.LowerName})
		}
		if d != "" {
			t.Errorf("%s (-want +got)\n%s", tt.what, d)
		}
	}
}

// Roots are those that somebody made, of all interfaces.
func TestKernelLinkRoots(t *testing.T) {
	p := tctest.New(t, lab.PairConfig{})
	tctest.TC(t, p.Near, "qdisc", "add", "dev", "eth0", "root", "handle", "7:", "tbf", "rate", "1mbit", "burst", "10kb", "limit", "10kb")
	tctest.TC(t, p.Near, "qdisc", "add", "dev", "lo", "root", "handle", "71f:", "htb", "default", "2")
	tctest.TC(t, p.Near, "qdisc", "add", "dev", "lo", "clsact")
	got, err := tc.Roots(open(t, p.Near, "eth0").conn)
	if err != nil {
		t.Fatal(err)
	}
	all := links(t, p.Near)
	want := map[int]hierarchy.Root{
		find(t, all, "eth0").Index: {Kind: "tbf", Handle: 7 << 16},
		find(t, all, "lo").Index:   {Kind: "htb", Handle: hierarchy.ID(0)},
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
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
	c, err := rtnl.Open(rtnl.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	l, err := link.List(c)
	if err != nil {
		t.Fatal(err)
	}
	if lo := find(t, l, "lo"); lo.Nature != link.Loopback {
		t.Errorf("%+v", lo)
	}
	for _, l := range l {
		t.Logf("%+v", l)
	}
}
