package escape

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"time"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/lab"
)

// What is known of other namespaces and interfaces.
const (
	forwardWhy = "what the machine forwards has no process: bind the interface that it comes from"
	pastWhy    = "nothing on the interface sees what goes past the queue"
	kernelWhy  = "what the kernel sends of its own accord has no process"
	aboveWhy   = "rules at the output hook of IP do not see what comes through an interface above this one"
	spaceWhy   = "rules belong to one network namespace"
)

// spaces are namespaces and interfaces that a program makes.
func spaces() []Attempt {
	const family = "namespaces and interfaces"
	a := func(name, text string, do func(s *stage) error, holes ...Hole) Attempt {
		return Attempt{Name: name, Family: family, Text: text, Holes: holes, do: do}
	}
	above := Hole{Level: Tag, User: Root, Ways: []bind.Way{bind.WayNft}, Why: aboveWhy}
	space := Hole{Level: Tag, User: Root, Ways: []bind.Way{bind.WayNetClsNft, bind.WayClsCgroup}, Why: spaceWhy}
	forwarded := Hole{Level: Tag, User: Root, Why: forwardWhy}
	all := []Attempt{
		a("user-namespace", "root of a new user namespace, SO_PRIORITY", func(s *stage) error {
			if s.part == "" {
				return s.again("user-namespace", "inside", cloneFlags(unix.CLONE_NEWUSER))
			}
			return s.udp(false, priority(uint32(s.Root)))
		}),
		a("user-namespace-packet", "root of a new user namespace, AF_PACKET", func(s *stage) error {
			if s.part == "" {
				return s.again("user-namespace-packet", "inside", cloneFlags(unix.CLONE_NEWUSER))
			}
			return s.packets(unix.AF_PACKET, unix.SOCK_RAW, nil)
		}),
		a("user-net-namespace", "new user and network namespaces", func(s *stage) error {
			if s.part == "" {
				return s.again("user-net-namespace", "inside", cloneFlags(unix.CLONE_NEWUSER|unix.CLONE_NEWNET))
			}
			return s.plain()
		}),
		a("pid-namespace", "new user and process namespaces", func(s *stage) error {
			if s.part == "" {
				return s.again("pid-namespace", "inside", cloneFlags(unix.CLONE_NEWUSER|unix.CLONE_NEWPID))
			}
			return s.plain()
		}),
		a("macvlan", "macvlan on the interface, in a namespace of its own", func(s *stage) error {
			return s.stacked(lab.Link{Name: "esc0", Kind: "macvlan"})
		}, above, space),
		a("ipvlan", "ipvlan on the interface, in a namespace of its own", func(s *stage) error {
			return s.stacked(lab.Link{Name: "esc0", Kind: "ipvlan"})
		}, above, space),
		a("vlan", "VLAN on the interface, SO_PRIORITY", func(s *stage) error {
			near, err := lab.OpenNetNS("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer near.Close()
			if err := s.link(near, lab.Link{Name: "esc0", Kind: "vlan", Parent: s.Dev, VLAN: 7, Addrs: escapeAddrs}); err != nil {
				return err
			}
			defer func() { _ = near.DeleteLink("esc0") }()
			return s.broadcast(priority(uint32(s.Other)))
		}, above),
		a("netns-routed", "a namespace behind a veth pair, routed", func(s *stage) error {
			near, n, err := s.newNetNS()
			if err != nil {
				return err
			}
			defer near.Close()
			defer n.Close()
			b := netip.MustParsePrefix("10.123.0.2/24")
			if err := lab.AddVeth(near, lab.Link{Name: "esc0", Addrs: escapeAddrs}, n, lab.Link{Name: "esc1", Addrs: []netip.Prefix{b}}); err != nil {
				return call("make a veth pair", err)
			}
			defer func() { _ = near.DeleteLink("esc0") }()
			if err := n.AddRoute(netip.PrefixFrom(s.Far4, 32), escapeAddrs[0].Addr(), "esc1"); err != nil {
				return call("add a route", err)
			}
			forget, err := forwarding()
			if err != nil {
				return err
			}
			defer forget()
			return n.Do(s.plain)
		}, forwarded),
		a("tun", "packets written into a tun device", func(s *stage) error {
			f, err := tunDevice("esc0")
			if err != nil {
				return err
			}
			defer f.Close()
			if err := up("esc0"); err != nil {
				return call("bring the tun device up", err)
			}
			forget, err := forwarding()
			if err != nil {
				return err
			}
			defer forget()
			return s.write(f)
		}, forwarded),
		a("tun-persistent", "packets written into a tun device that is there and nobody's", func(s *stage) error {
			f, err := tunDevice(persistentTun)
			if err != nil {
				return err
			}
			defer f.Close()
			return s.write(f)
		}, Hole{Level: Tag, Why: forwardWhy}),
		a("tunnel", "IP in IP", func(s *stage) error {
			near, err := lab.OpenNetNS("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer near.Close()
			local, remote := s.Near4.As4(), s.Far4.As4()
			l := lab.Link{Name: "esc0", Kind: "ipip", Addrs: escapeAddrs, Data: func(ae *netlink.AttributeEncoder) {
				ae.Bytes(2, local[:]) // IFLA_IPTUN_LOCAL, IFLA_IPTUN_REMOTE
				ae.Bytes(3, remote[:])
			}}
			if err := s.link(near, l); err != nil {
				return err
			}
			defer func() { _ = near.DeleteLink("esc0") }()
			return s.broadcast(priority(uint32(s.Other)))
		}, above),
		a("xdp-redirect", "frames that an XDP program redirects to the interface", xdpRedirect,
			Hole{Level: Tag, User: Root, Why: pastWhy}),
		a("igmp", "reports of multicast groups that it joins", func(s *stage) error {
			return s.udp(false, func(fd int) error {
				for i := range 10 {
					err := unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP,
						&unix.IPMreqn{Multiaddr: [4]byte{239, 9, 9, byte(i)}, Ifindex: int32(s.Index)})
					if err != nil {
						return call("setsockopt IP_ADD_MEMBERSHIP", err)
					}
				}
				time.Sleep(100 * time.Millisecond) // a timer sends the reports
				return nil
			})
		}, Hole{Why: kernelWhy, Impossible: true}),
	}
	all[len(all)-1].Spoils = true // reports are repeated, and groups left, later
	all[slices.IndexFunc(all, func(a Attempt) bool { return a.Name == "tun-persistent" })].ready = persistent
	return all
}

var escapeAddrs = []netip.Prefix{netip.MustParsePrefix("10.123.0.1/24")}

// up brings an interface of this network namespace up.
func up(name string) error {
	near, err := lab.OpenNetNS("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	return errors.Join(near.SetUp(name), near.Close())
}

// write writes packets into a tun device.
func (s *stage) write(f *os.File) error {
	b := s.ipPacket(netip.MustParseAddr("10.123.0.9"))
	for range packets {
		if _, err := f.Write(b); err != nil {
			return call("write to the tun device", err)
		}
		s.Sent++
	}
	return nil
}

// link makes an interface; a kind that the kernel lacks is not tried.
func (s *stage) link(n *lab.NetNS, l lab.Link) error {
	return call("make a "+l.Kind, n.AddLink(l))
}

func (s *stage) newNetNS() (near, n *lab.NetNS, err error) {
	if near, err = lab.OpenNetNS("/proc/thread-self/ns/net"); err != nil {
		return nil, nil, err
	}
	if n, err = lab.NewNetNS(); err != nil {
		near.Close()
		return nil, nil, call("unshare CLONE_NEWNET", err)
	}
	return near, n, nil
}

// stacked sends from a namespace of its own through an interface on top of the
// shaped one.
func (s *stage) stacked(l lab.Link) error {
	near, n, err := s.newNetNS()
	if err != nil {
		return err
	}
	defer near.Close()
	defer n.Close()
	l.Parent, l.NetNS, l.Addrs = s.Dev, n, escapeAddrs
	if err := s.link(near, l); err != nil {
		return err
	}
	defer func() { _ = n.DeleteLink(l.Name) }()
	return n.Do(func() error { return s.broadcast(nil) })
}

// broadcast sends to all on the network of escapeAddrs, which takes no neighbour.
func (s *stage) broadcast(prepare func(int) error) error {
	return s.with(unix.AF_INET, unix.SOCK_DGRAM, 0, option("SO_BROADCAST", unix.SOL_SOCKET, unix.SO_BROADCAST, 1), prepare,
		s.flood(&unix.SockaddrInet4{Port: int(s.Port), Addr: [4]byte{10, 123, 0, 255}}, payload))
}

// forwarding lets this network namespace forward, until undo.
func forwarding() (undo func(), err error) {
	const file = "/proc/sys/net/ipv4/ip_forward"
	if err := os.WriteFile(file, []byte("1"), 0); err != nil {
		return nil, call("write ip_forward", err)
	}
	return func() { _ = os.WriteFile(file, []byte("0"), 0) }, nil
}

// xdpRedirect sends frames into one end of a cable and has them redirected at the
// other.
func xdpRedirect(s *stage) error {
	near, err := lab.OpenNetNS("/proc/thread-self/ns/net")
	if err != nil {
		return err
	}
	defer near.Close()
	if err := lab.AddVeth(near, lab.Link{Name: "esc0"}, near, lab.Link{Name: "esc1"}); err != nil {
		return call("make a veth pair", err)
	}
	defer func() { _ = near.DeleteLink("esc0") }()
	in, err := index("esc0")
	if err != nil {
		return err
	}
	at, err := index("esc1")
	if err != nil {
		return err
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{
		asm.Mov.Imm(asm.R1, int32(s.Index)), asm.Mov.Imm(asm.R2, 0), asm.FnRedirect.Call(), asm.Return(),
	}})
	if err != nil {
		return call("bpf BPF_PROG_LOAD", err)
	}
	defer p.Close()
	l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: at, Flags: link.XDPGenericMode})
	if err != nil {
		return call("bpf BPF_LINK_CREATE", err)
	}
	defer l.Close()
	s.Index = in
	return s.packets(unix.AF_PACKET, unix.SOCK_RAW, nil)
}

// index is the number of an interface of this network namespace.
func index(name string) (int, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, call("socket AF_INET", err)
	}
	defer unix.Close(fd)
	r, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, r); err != nil {
		return 0, call("ioctl SIOCGIFINDEX", err)
	}
	return int(r.Uint32()), nil
}

// word is a word of memory as bytes.
func word(v *uint32) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), binary.Size(*v))
}
