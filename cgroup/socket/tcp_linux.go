package socket

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// TCP is what the kernel tells of an established connection: what holds up its sender, and
// how the path is. Of what a kernel does not tell, because it is older, the value is zero.
type TCP struct {
	Inode         uint64
	Local, Remote netip.AddrPort
	Device        int    // the index of the interface that it is bound to; 0: none
	Mark, UID     uint32 // by which rules may route it; without CAP_NET_ADMIN the kernel does not tell the mark

	// Since it began: the time in which something was unacknowledged or waited to be sent,
	// and of this that in which the receiver's window, or the send buffer, held it up
	// (tcp_get_info_chrono_stats, net/ipv4/tcp.c, v6.12; Linux 4.10).
	Busy, WindowLimited, BufferLimited time.Duration

	BytesAcked        uint64 // of what was sent
	BytesReceived     uint64
	Segments, Resent  uint32 // with data; these wrap around
	Delivered, Marked uint32 // segments acknowledged, and those with ECN's mark (Linux 4.19); these wrap around

	// Of now.
	Unacked, Window uint32 // segments under way, and the congestion window
	Unsent          uint32 // bytes that wait in the socket for their first time
	AppLimited      bool   // the last measure of its speed was of a program that had no more to send
	RTT, LeastRTT   time.Duration
	Buffer, Used    uint32 // the send buffer's size, and what is in it, with the kernel's overhead
}

// What of include/uapi/linux/inet_diag.h, v6.12, package unix lacks.
const (
	inetDiagInfo      = 2
	inetDiagSKMemInfo = 7
	inetDiagMark      = 15
)

// ErrNoDiag is that a kernel has not what lists connections.
var ErrNoDiag = errors.New("the kernel cannot list connections: CONFIG_INET_DIAG is missing")

// EachTCP calls a function for every established connection of a network namespace (0: the
// caller's) that a process has open.
func EachTCP(netNS int, fn func(TCP)) error {
	c, err := netlink.Dial(unix.NETLINK_SOCK_DIAG, &netlink.Config{NetNS: netNS})
	if err != nil {
		return fmt.Errorf("list connections: %w", err)
	}
	defer c.Close()
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		msg := make([]byte, inetDiagReqLen)
		msg[0], msg[1], msg[2] = family, unix.IPPROTO_TCP, 1<<(inetDiagInfo-1)|1<<(inetDiagSKMemInfo-1)
		// One that its program has shut may still send what waits.
		binary.NativeEndian.PutUint32(msg[4:], 1<<unix.BPF_TCP_ESTABLISHED|1<<unix.BPF_TCP_CLOSE_WAIT|1<<unix.BPF_TCP_FIN_WAIT1)
		answers, err := dump(c, msg)
		if errors.Is(err, unix.ENOENT) {
			return ErrNoDiag
		}
		if err != nil {
			return fmt.Errorf("list connections: %w", err)
		}
		for _, m := range answers {
			t, err := decodeTCP(m.Data)
			if err != nil {
				return err
			}
			if t.Inode != 0 {
				fn(t)
			}
		}
	}
	return nil
}

// decodeTCP reads a struct inet_diag_msg with a struct tcp_info and what is in the buffers.
func decodeTCP(b []byte) (t TCP, err error) {
	s, err := decodeDiag(b)
	if err != nil {
		return t, err
	}
	t.Inode, t.Local, t.Remote = s.Inode, s.Local, diagAddr(b, 6, 24)
	t.Device, t.UID = int(binary.NativeEndian.Uint32(b[40:])), s.UID
	ad, err := netlink.NewAttributeDecoder(b[inetDiagMsgLen:])
	if err != nil {
		return t, err
	}
	for ad.Next() {
		switch ad.Type() {
		case inetDiagInfo:
			t.info(ad.Bytes())
		case inetDiagMark:
			t.Mark = ad.Uint32()
		case inetDiagSKMemInfo: // enum of linux/sock_diag.h: SK_MEMINFO_SNDBUF, SK_MEMINFO_WMEM_QUEUED
			m := fields(ad.Bytes())
			t.Buffer, t.Used = m.u32(3*4), m.u32(5*4)
		}
	}
	return t, ad.Err()
}

// info reads a struct tcp_info of include/uapi/linux/tcp.h, which grows with the kernel.
func (t *TCP) info(b []byte) {
	f := fields(b)
	micros := func(n uint64) time.Duration { return time.Duration(n) * time.Microsecond }
	t.AppLimited = len(b) > 7 && b[7]&1 != 0
	t.Unacked, t.Window = f.u32(24), f.u32(80)
	t.RTT, t.LeastRTT = micros(uint64(f.u32(68))), micros(uint64(f.u32(148)))
	t.Resent, t.Segments = f.u32(100), f.u32(156)
	t.BytesAcked, t.BytesReceived, t.Unsent = f.u64(120), f.u64(128), f.u32(144)
	t.Busy, t.WindowLimited, t.BufferLimited = micros(f.u64(168)), micros(f.u64(176)), micros(f.u64(184))
	t.Delivered, t.Marked = f.u32(192), f.u32(196)
}

// fields is a structure of which a kernel may have less.
type fields []byte

func (f fields) u32(at int) uint32 {
	if len(f) < at+4 {
		return 0
	}
	return binary.NativeEndian.Uint32(f[at:])
}

func (f fields) u64(at int) uint64 {
	if len(f) < at+8 {
		return 0
	}
	return binary.NativeEndian.Uint64(f[at:])
}
