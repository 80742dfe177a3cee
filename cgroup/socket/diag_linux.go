package socket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/hierarchy"
)

// Diag is what the kernel tells of a socket that has a file.
type Diag struct {
	Inode  uint64
	Packet bool // a packet socket, of which neither user nor cgroup is told
	// Protocol is what of IP it speaks (unix.IPPROTO_TCP ...), and Local its own address.
	// Open says that it waits for anybody: it listens, or has no other end.
	Protocol uint16
	Local    netip.AddrPort
	Open     bool
	UID      uint32
	Cgroup   uint64 // of version 2, in which it was made; 0: not told (before Linux 5.9)
	// Tag is that of net_cls. Where it is 0 the kernel puts SO_PRIORITY in its place,
	// and without CAP_NET_ADMIN it tells neither (inet_diag_msg_attrs_fill,
	// net/ipv4/inet_diag.c, v6.12).
	Tag hierarchy.ClassID
}

// diagProtocols are the kinds of sockets that send by an interface, but for packet sockets.
var diagProtocols = []struct {
	family   uint8
	protocol uint16
}{
	{unix.AF_INET, unix.IPPROTO_TCP}, {unix.AF_INET6, unix.IPPROTO_TCP},
	{unix.AF_INET, unix.IPPROTO_UDP}, {unix.AF_INET6, unix.IPPROTO_UDP},
	{unix.AF_INET, unix.IPPROTO_UDPLITE}, {unix.AF_INET6, unix.IPPROTO_UDPLITE},
	{unix.AF_INET, unix.IPPROTO_RAW}, {unix.AF_INET6, unix.IPPROTO_RAW},
	{unix.AF_INET, unix.IPPROTO_SCTP}, {unix.AF_INET6, unix.IPPROTO_SCTP},
	{unix.AF_INET, unix.IPPROTO_MPTCP}, {unix.AF_INET6, unix.IPPROTO_MPTCP},
}

// What of include/uapi/linux/{inet,sock}_diag.h, v6.12, package unix lacks.
const (
	sockDiagByFamily = 20

	inetDiagReqProtocol             = 3 // INET_DIAG_REQ_PROTOCOL
	inetDiagReqLen, inetDiagMsgLen  = 56, 72
	inetDiagTclass                  = 6 // which asks for the class id
	inetDiagClassID, inetDiagCgroup = 17, 21
)

// Diagnose calls a function for every open socket of a network namespace (0: the
// caller's) that may send by an interface. Not among them are those that have no port
// yet, and so have not sent.
func Diagnose(netNS int, fn func(Diag)) error {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: netNS})
	if err != nil {
		return fmt.Errorf("list sockets: %w", err)
	}
	defer c.Close()
	for _, p := range diagProtocols {
		msg, err := diagRequest(p.family, p.protocol)
		if err != nil {
			return err
		}
		answers, err := dump(c, msg)
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EINVAL) {
			continue // it has no such sockets, or cannot list them
		}
		if err != nil {
			return fmt.Errorf("list sockets: %w", err)
		}
		for _, m := range answers {
			s, err := decodeDiag(m.Data)
			if err != nil {
				return err
			}
			s.Protocol = p.protocol
			if s.Inode != 0 {
				fn(s)
			}
		}
	}
	return packetSockets(netNS, fn)
}

// dump asks for all sockets that a struct inet_diag_req_v2 describes.
func dump(c *netlink.Conn, request []byte) ([]netlink.Message, error) {
	return c.Execute(netlink.Message{
		Header: netlink.Header{Type: sockDiagByFamily, Flags: netlink.Request | netlink.Dump}, Data: request,
	})
}

// packetSockets reads what every kernel has, where not every one has a module to list them.
func packetSockets(netNS int, fn func(Diag)) (err error) {
	var table []byte
	read := func() error {
		table, err = os.ReadFile("/proc/thread-self/net/packet")
		return err
	}
	if netNS == 0 {
		err = read()
	} else {
		err = cgroupfs.InNetNS(netNS, read)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil // there are none
	}
	for line := range strings.Lines(string(table)) {
		if _, inode, ok := parseSocket("packet", line); ok {
			fn(Diag{Packet: true, Inode: inode})
		}
	}
	return err
}

// diagRequest is a struct inet_diag_req_v2 and what is asked for besides.
func diagRequest(family uint8, protocol uint16) ([]byte, error) {
	msg := make([]byte, inetDiagReqLen)
	msg[0], msg[1], msg[2] = family, uint8(protocol), 1<<(inetDiagTclass-1)
	// neither those in TIME_WAIT nor requests for connections have files
	binary.NativeEndian.PutUint32(msg[4:], ^uint32(1<<unix.BPF_TCP_TIME_WAIT|1<<unix.BPF_TCP_NEW_SYN_RECV))
	ae := netlink.NewAttributeEncoder()
	if protocol > 0xff {
		ae.Uint32(inetDiagReqProtocol, uint32(protocol))
	}
	attrs, err := ae.Encode()
	return append(msg, attrs...), err
}

// decodeDiag reads a struct inet_diag_msg and what follows it.
func decodeDiag(b []byte) (s Diag, err error) {
	if len(b) < inetDiagMsgLen {
		return s, errors.New("list sockets: the kernel's answer is too short")
	}
	// struct inet_diag_sockid begins at 4: ports, and 16 bytes for each address
	s.Local = diagAddr(b, 4, 8)
	s.Open = b[1] == unix.BPF_TCP_LISTEN || b[1] == unix.BPF_TCP_CLOSE // which is what one of UDP is in that is not connected
	s.UID, s.Inode = binary.NativeEndian.Uint32(b[64:]), uint64(binary.NativeEndian.Uint32(b[68:]))
	ad, err := netlink.NewAttributeDecoder(b[inetDiagMsgLen:])
	if err != nil {
		return s, err
	}
	for ad.Next() {
		switch ad.Type() {
		case inetDiagClassID:
			s.Tag = hierarchy.ClassID(ad.Uint32())
		case inetDiagCgroup:
			s.Cgroup = ad.Uint64()
		}
	}
	return s, ad.Err()
}

// diagAddr is an address of a struct inet_diag_msg, whose port stands elsewhere.
func diagAddr(b []byte, port, at int) netip.AddrPort {
	length := 4
	if b[0] == unix.AF_INET6 {
		length = 16
	}
	a, _ := netip.AddrFromSlice(b[at : at+length])
	return netip.AddrPortFrom(a.Unmap(), binary.BigEndian.Uint16(b[port:]))
}
