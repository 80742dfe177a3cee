//go:build linux

package link

import (
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

const (
	ethernetHeader = 14
	// gsoMaxSize is the kernel's default for the largest packet with
	// segmentation offload, GSO_LEGACY_MAX_SIZE (include/linux/netdevice.h,
	// v6.12), for devices that do not say.
	gsoMaxSize = 65536
	gsoMaxSegs = 65535 // likewise, GSO_MAX_SEGS
)

// Frame is the largest frame on an Ethernet line.
func (l *Link) Frame() hierarchy.Size { return hierarchy.Size(l.MTU) + ethernetHeader }

// Packet is the largest packet that the stack hands down. However small gso_max_size, TCP makes packets of two segments, unless
// gso_max_segs or the length of an IP packet forbids it (tcp_tso_autosize and
// tcp_tso_segs, net/ipv4/tcp_output.c, v6.12, with net.ipv4.tcp_min_tso_segs as it
// comes).
func (l *Link) Packet() hierarchy.Size {
	frame, size, segments := l.Frame(), l.GSOMaxSize, hierarchy.Size(l.GSOMaxSegs)
	if size == 0 {
		size = gsoMaxSize
	}
	if segments == 0 {
		segments = gsoMaxSegs
	}
	return min(max(size, frame, min(2*frame, gsoMaxSize)), segments*frame)
}

// Received is the largest packet that arrives: what came in is put together (GRO), and
// what never was on a line comes as large as the other end's stack handed it down,
// whatever the settings here are.
func (l *Link) Received() hierarchy.Size {
	return max(l.Frame(), l.GROMaxSize, gsoMaxSize)
}

// header is how much of a packet's length is link-layer header when it comes
// to a queueing discipline: what dev_hard_header puts in front
// (include/linux/netdevice.h, v6.12). That is not dev->hard_header_len, which is the
// room that drivers want: PPP and VLAN add theirs after the queue.
func header(hardware uint16) hierarchy.Size {
	switch hardware {
	case unix.ARPHRD_ETHER, unix.ARPHRD_LOOPBACK:
		return ethernetHeader
	case unix.ARPHRD_INFINIBAND: // ipoib_hard_header, drivers/infiniband/ulp/ipoib/ipoib_main.c
		return 24
	}
	return 0
}
