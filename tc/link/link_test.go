//go:build linux

package link

import (
	"encoding/json"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/mdlayher/netlink"
	"github.com/mdlayher/netlink/nltest"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

func TestNature(t *testing.T) {
	for _, tt := range []struct {
		what, kind string
		hardware   uint16
		flags      uint32
		want       Nature
	}{
		{what: "Ethernet card", hardware: unix.ARPHRD_ETHER, flags: unix.IFF_BROADCAST, want: Physical},
		{what: "InfiniBand", hardware: unix.ARPHRD_INFINIBAND, want: Physical},
		{what: "loopback", hardware: unix.ARPHRD_LOOPBACK, flags: unix.IFF_LOOPBACK, want: Loopback},
		{what: "old ppp", hardware: unix.ARPHRD_PPP, flags: unix.IFF_POINTOPOINT, want: Tunnel},
		{what: "can", hardware: unix.ARPHRD_CAN, want: Virtual},
		{what: "InfiniBand, ", kind: "ipoib", hardware: unix.ARPHRD_INFINIBAND, want: Physical},
		{kind: "macsec", hardware: unix.ARPHRD_ETHER, want: Tunnel},
		{kind: "bridge", hardware: unix.ARPHRD_ETHER, want: Bridge},
		{kind: "openvswitch", hardware: unix.ARPHRD_ETHER, want: Bridge},
		{kind: "bond", want: Bond},
		{kind: "team", want: Bond},
		{kind: "vlan", want: VLAN},
		{kind: "wireguard", want: Tunnel},
		{kind: "tun", want: Tunnel},
		{kind: "vxlan", want: Tunnel},
		{kind: "veth", hardware: unix.ARPHRD_ETHER, want: Virtual},
		{kind: "ifb", want: Virtual},
		{kind: "macvlan", want: Virtual},
		{kind: "of a later kernel", want: Virtual},
	} {
		if got := nature(tt.kind, tt.hardware, tt.flags); got != tt.want {
			t.Errorf("%s%s: %s, want %s", tt.what, tt.kind, got, tt.want)
		}
	}
}

// linkMessage is what the kernel says of a VLAN whose parent is elsewhere.
func linkMessage() []byte {
	e := rtnl.Encoder{}
	e.Uint16(unix.AF_UNSPEC)
	e.Uint16(unix.ARPHRD_ETHER)
	e.Uint32(7)
	e.Uint32(unix.IFF_UP | unix.IFF_BROADCAST)
	e.Uint32(0)
	e.AttrString(unix.IFLA_IFNAME, "eth0.5")
	e.Attr32(unix.IFLA_MTU, 1496)
	e.Attr32(unix.IFLA_TXQLEN, 1000)
	e.Attr32(unix.IFLA_NUM_TX_QUEUES, 4)
	e.Attr32(unix.IFLA_NUM_RX_QUEUES, 2)
	e.Attr32(unix.IFLA_GSO_MAX_SIZE, 65536)
	e.Attr32(unix.IFLA_GSO_MAX_SEGS, 65535)
	e.Attr32(unix.IFLA_MASTER, 9)
	e.Attr32(unix.IFLA_LINK, 2)
	e.Attr32(unix.IFLA_LINK_NETNSID, 0)
	e.Attr8(unix.IFLA_CARRIER, 1)
	e.Attr8(unix.IFLA_OPERSTATE, 6)
	e.AttrString(unix.IFLA_QDISC, "noqueue")
	e.AttrString(unix.IFLA_PARENT_DEV_NAME, "0000:00:03.0")
	e.AttrString(unix.IFLA_PARENT_DEV_BUS_NAME, "pci")
	e.Nest(unix.IFLA_PROP_LIST, func() {
		e.AttrString(unix.IFLA_ALT_IFNAME, "office")
		e.AttrString(unix.IFLA_ALT_IFNAME, "enp0s31f6-longer.5")
	})
	e.Nest(unix.IFLA_LINKINFO, func() { e.AttrString(unix.IFLA_INFO_KIND, "vlan") })
	return e.B
}

// vxlanMessage is what the kernel says of a VXLAN, bound to an interface or not.
func vxlanMessage(lower uint32) []byte {
	e := rtnl.Encoder{B: make([]byte, unix.SizeofIfInfomsg)}
	e.Nest(unix.IFLA_LINKINFO, func() {
		e.AttrString(unix.IFLA_INFO_KIND, "vxlan")
		e.Nest(unix.IFLA_INFO_DATA, func() {
			e.Attr32(unix.IFLA_VXLAN_ID, 77)
			if lower != 0 {
				e.Attr32(unix.IFLA_VXLAN_LINK, lower)
			}
		})
	})
	return e.B
}

func TestDecodeLinkTunnel(t *testing.T) {
	want := Link{Kind: "vxlan", Nature: Tunnel, OperState: "unknown", LowerNetNS: -1}
	for _, lower := range []int{0, 4} {
		got, err := decodeLink(vxlanMessage(uint32(lower)))
		if err != nil {
			t.Fatal(err)
		}
		want.Lower, want.ByRoute = lower, lower == 0
		if d := cmp.Diff(want, got); d != "" {
			t.Errorf("on %d (-want +got)\n%s", lower, d)
		}
	}
}

func TestDecodeLink(t *testing.T) {
	want := Link{
		Index: 7, Name: "eth0.5", Kind: "vlan", Nature: VLAN,
		MTU: 1496, Header: 14, TxQueues: 4, RxQueues: 2, TxQueueLen: 1000, GSOMaxSize: 64 * hierarchy.KiB, GSOMaxSegs: 65535,
		Up: true, Carrier: true, OperState: "up", Master: 9, Lower: 2, LowerNetNS: 0, Qdisc: "noqueue",
		ParentDev: "0000:00:03.0", ParentBus: "pci", AltNames: []string{"office", "enp0s31f6-longer.5"},
	}
	got, err := decodeLink(linkMessage())
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Errorf("(-want +got)\n%s", d)
	}
	got, err = decodeLink(make([]byte, unix.SizeofIfInfomsg))
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(Link{Nature: Virtual, OperState: "unknown", LowerNetNS: -1}, got); d != "" {
		t.Errorf("without attributes (-want +got)\n%s", d)
	}
	if _, err := decodeLink(linkMessage()[:20]); !errors.Is(err, rtnl.ErrMalformed) {
		t.Errorf("cut short: %v", err)
	}
}

// The names in JSON are a promise; a speed is a text with its unit.
func TestLinkJSON(t *testing.T) {
	for _, tt := range []struct {
		name string
		link Link
		want string
	}{
		{"little known", Link{Index: 1, Name: "lo", Nature: Loopback, OperState: "unknown", LowerNetNS: -1, Qdisc: "noqueue"},
			`{"ifindex":1,"name":"lo","nature":"loopback","mtu":0,"tx_queues":0,"tx_queue_len":0,"up":false,"carrier":false,"oper_state":"unknown","lower_netns":-1,"qdisc":"noqueue"}`},
		{"all known", Link{Index: 2, Name: "eth0", Kind: "bond", Nature: Bond, MTU: 1500, TxQueues: 4, RxQueues: 2, TxQueueLen: 1000,
			GSOMaxSize: 64 * hierarchy.KiB, GSOMaxSegs: 65535, Up: true, Carrier: true, OperState: "up", Speed: 10 * hierarchy.Gbit,
			Master: 3, Members: []string{"eth1", "eth2"}, Lower: 4, LowerNetNS: 5, LowerName: "far0", ByRoute: true, Qdisc: "mq",
			ParentDev: "0000:00:03.0", ParentBus: "pci", AltNames: []string{"office"}},
			`{"ifindex":2,"name":"eth0","alt_names":["office"],"kind":"bond","nature":"bond","mtu":1500,"tx_queues":4,"rx_queues":2,"tx_queue_len":1000,` +
				`"gso_max_size":"64kib","gso_max_segs":65535,"up":true,"carrier":true,"oper_state":"up","speed":"10gbit",` +
				`"master":3,"members":["eth1","eth2"],"lower":4,"lower_netns":5,"lower_name":"far0","by_route":true,"qdisc":"mq","parent_dev":"0000:00:03.0","parent_bus":"pci"}`},
	} {
		got, err := json.Marshal(tt.link)
		if err != nil {
			t.Fatal(err)
		}
		if d := cmp.Diff(tt.want, string(got)); d != "" {
			t.Errorf("%s (-want +got)\n%s", tt.name, d)
		}
	}
}

func TestReadLinkAsks(t *testing.T) {
	for _, tt := range []struct {
		name string
		attr uint16
	}{{"eth0", unix.IFLA_IFNAME}, {"fifteenbytes123", unix.IFLA_IFNAME}, {"enp0s31f6-longer", unix.IFLA_ALT_IFNAME}} {
		c := nltest.Dial(nltest.CheckRequest([]netlink.HeaderType{unix.RTM_GETLINK}, []netlink.HeaderFlags{netlink.Request}, func(req []netlink.Message) ([]netlink.Message, error) {
			asked := map[uint16]string{}
			err := rtnl.EachAttr(req[0].Data[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) error {
				asked[typ] = rtnl.String(v)
				return nil
			})
			if err != nil || asked[tt.attr] != tt.name {
				t.Errorf("%s: asked for %v, %v", tt.name, asked, err)
			}
			return []netlink.Message{{Header: netlink.Header{Type: unix.RTM_NEWLINK, Sequence: req[0].Header.Sequence, PID: req[0].Header.PID}, Data: linkMessage()}}, nil
		}))
		l, err := readLink(c, tt.name)
		if err != nil || l.Name != "eth0.5" {
			t.Errorf("%s: %v, %v", tt.name, l.Name, err)
		}
		c.Close()
	}
}

// TestReadLinksAgain: a list that was changed while it was read is read again, and
// not for ever.
func TestReadLinksAgain(t *testing.T) {
	for _, interrupted := range []int{0, 3, 1000} {
		asked := 0
		c := nltest.Dial(func(req []netlink.Message) ([]netlink.Message, error) {
			h := netlink.Header{Type: unix.RTM_NEWLINK, Flags: netlink.Multi, Sequence: req[0].Header.Sequence, PID: req[0].Header.PID}
			if asked++; asked <= interrupted {
				h.Flags |= netlink.DumpInterrupted
			}
			return nltest.Multipart([]netlink.Message{{Header: h, Data: linkMessage()}, {Header: h, Data: linkMessage()}, {Header: h, Data: make([]byte, 4)}})
		})
		links, err := readLinks(c)
		if (err != nil) != (interrupted == 1000) || err == nil && (len(links) != 2 || asked != interrupted+1) {
			t.Errorf("%d times interrupted: %d links by %d lists, %v", interrupted, len(links), asked, err)
		}
		c.Close()
	}
}

func FuzzDecodeLink(f *testing.F) {
	f.Add(linkMessage())
	f.Add(vxlanMessage(4))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := decodeLink(b)
		if err == nil && (l.Nature == "" || l.OperState == "") {
			t.Errorf("no error, and %+v", l)
		}
		// What a message claims about others ends no walk later than another.
		links := []Link{l, {Index: l.Lower, Master: l.Index, Lower: l.Index, LowerNetNS: -1}}
		connect(links, func(string) hierarchy.Bandwidth { return 1 }, func(int, int) string { return "" })
		for _, l := range links {
			if got := Carriers(links, l); len(got) > 1 {
				t.Errorf("%+v lies on %+v", l, got)
			}
		}
	})
}
