package socket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// UDP is what the kernel tells of a socket of UDP, which counts neither what it sends nor what
// it receives.
type UDP struct {
	Inode         uint64
	Local, Remote netip.AddrPort // Remote is the zero value where it sends to whom it likes
	Unsent        uint32         // bytes that it sent and that wait, with the kernel's overhead
}

// EachUDP calls a function for every socket of UDP of a network namespace (0: the caller's) that
// a process has open, and that has a port. A kernel that cannot list them has none.
func EachUDP(netNS int, fn func(UDP)) error {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: netNS})
	if err != nil {
		return fmt.Errorf("list sockets of UDP: %w", err)
	}
	defer c.Close()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		msg, err := diagRequest(family, unix.IPPROTO_UDP)
		if err != nil {
			return err
		}
		answers, err := dump(c, msg)
		if errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("list sockets of UDP: %w", err)
		}
		for _, m := range answers {
			s, err := decodeDiag(m.Data)
			if err != nil {
				return err
			}
			if s.Inode == 0 {
				continue
			}
			u := UDP{Inode: s.Inode, Local: s.Local, Unsent: binary.NativeEndian.Uint32(m.Data[60:])} // idiag_wqueue
			if !s.Open {
				u.Remote = diagAddr(m.Data, 6, 24)
			}
			fn(u)
		}
	}
	return nil
}
