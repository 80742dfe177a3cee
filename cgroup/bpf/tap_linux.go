package bpf

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// Tap is a packet socket on an interface that counts by the program of prove.bpf.c.
type Tap struct {
	fd   int
	coll *ebpf.Collection
}

// NewTap counts the packets of a run on the interface that has an index in a network
// namespace, 0 for the caller's. It has room for a few kinds of them with each of so many
// numbers.
func NewTap(run uint64, numbers int, netNS int, index uint32) (_ *Tap, err error) {
	spec, err := loadProve()
	if err != nil {
		return nil, err
	}
	if err := spec.Variables[proveVarVifRun].Set(run); err != nil {
		return nil, err
	}
	const kinds = 8 // both versions of IP, a question, and classes that are another's
	spec.Maps[proveMapVifCounts].MaxEntries = uint32(kinds * max(numbers, 8))
	t := &Tap{fd: -1}
	if t.coll, err = ebpf.NewCollection(spec); err != nil {
		return nil, fmt.Errorf("load the program that counts: %w", caps.Explain(err, unix.CAP_BPF))
	}
	open := func() (err error) {
		// no protocol: nothing arrives before it is bound
		if t.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if err := unix.SetsockoptInt(t.fd, unix.SOL_SOCKET, unix.SO_ATTACH_BPF, t.coll.Programs[proveProgVifTap].FD()); err != nil {
			return err
		}
		return unix.Bind(t.fd, &unix.SockaddrLinklayer{Ifindex: int(index), Protocol: networkOrder(unix.ETH_P_ALL)})
	}
	if netNS == 0 {
		err = open()
	} else {
		err = cgroupfs.InNetNS(netNS, open)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("look at what leaves the interface: %w", caps.Explain(err, unix.CAP_NET_RAW)), t.Close())
	}
	return t, nil
}

func networkOrder(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// Close ends the counting.
func (t *Tap) Close() error {
	t.coll.Close()
	if t.fd < 0 {
		return nil
	}
	return unix.Close(t.fd)
}

// Seen are packets of one kind that have left the interface.
type Seen struct {
	Number  uint32 // that they carry
	Class   hierarchy.ClassID
	Packets int
	First   match.Packet // as it was on the wire
}

// Seen calls a function for every kind of packets that have left the interface.
func (t *Tap) Seen(fn func(Seen)) error {
	return each(t.coll.Maps[proveMapVifCounts], func(at proveVifLanded, is proveVifShown) error {
		p := match.Packet{ToMAC: match.MAC(is.Macs[:6]), FromMAC: match.MAC(is.Macs[6:]), Mark: is.Mark, Proto: match.UDP}
		h := is.Headers[:]
		ports := h[40:]
		if h[0]>>4 == 4 {
			p.DSCP, ports = match.DSCP(h[1]>>2), h[20:]
			p.From, _ = netip.AddrFromSlice(h[12:16])
			p.To, _ = netip.AddrFromSlice(h[16:20])
		} else {
			p.DSCP = match.DSCP(h[0]&15<<2 | h[1]>>6)
			p.From, _ = netip.AddrFromSlice(h[8:24])
			p.To, _ = netip.AddrFromSlice(h[24:40])
		}
		p.SPort, p.DPort = binary.BigEndian.Uint16(ports), binary.BigEndian.Uint16(ports[2:])
		fn(Seen{at.Way, hierarchy.ClassID(at.Class), int(is.Packets), p})
		return nil
	})
}
