//go:build linux

package link

import (
	"math"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Offloads say how large the packets are that a tree gets to see: HTB charges, and
// sends, what the stack hands down as one packet.
type Offloads struct {
	// Packet is the largest that TCP hands down. The interface's gso_max_size and
	// gso_max_segs bound it. TSO and GSO do not: since Linux 4.17 TCP makes large
	// packets whatever they are (commit 0a6b2a1dc2a2), and only who cuts them up
	// behind the queues depends on them.
	Packet hierarchy.Size `json:"packet"`
	TSO    bool           `json:"tso"`
	GSO    bool           `json:"gso"`
	// GRO says that what arrives on the interface is put together. Where it is
	// forwarded, it comes to the tree of the other interface as one packet.
	GRO bool `json:"gro"`
}

// Offloads asks for the settings that "ethtool -k" shows. It needs no privileges.
// What a driver does not tell reads as off.
func (l *Link) Offloads(c *rtnl.Conn) (Offloads, error) {
	o := Offloads{Packet: l.Packet()}
	for _, x := range []struct {
		command uint32
		to      *bool
	}{{unix.ETHTOOL_GTSO, &o.TSO}, {unix.ETHTOOL_GGSO, &o.GSO}, {unix.ETHTOOL_GGRO, &o.GRO}} {
		// struct ethtool_value of linux/ethtool.h
		v := struct{ command, data uint32 }{command: x.command}
		switch errno := ethtool(c, l.Name, unsafe.Pointer(&v)); {
		case errno == unix.ENODEV:
			return o, rtnl.Fail("read offloads", l.Name, errno)
		case errno == 0:
			*x.to = v.data != 0
		}
	}
	return o, nil
}

// ethtool carries out a command of SIOCETHTOOL, whose struct is at data, over the
// connection's socket: one opened elsewhere may be in another namespace. Any socket
// takes this ioctl (dev_ioctl, net/core/dev_ioctl.c, v6.12), and without privileges.
func ethtool(c *rtnl.Conn, name string, data unsafe.Pointer) (errno syscall.Errno) {
	// struct ifreq of linux/if.h
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: data}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	c.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	})
	runtime.KeepAlive(data)
	return errno
}

// Queues is the number of transmit queues in use, of those that [Link] counts; 0
// where the driver does not say. It needs no privileges.
func (l *Link) Queues(c *rtnl.Conn) (int, error) {
	// struct ethtool_channels of linux/ethtool.h
	v := struct {
		command                             uint32
		maxRx, maxTx, maxOther, maxCombined uint32
		rx, tx, other, combined             uint32
	}{command: unix.ETHTOOL_GCHANNELS}
	switch errno := ethtool(c, l.Name, unsafe.Pointer(&v)); {
	case errno == unix.ENODEV:
		return 0, rtnl.Fail("read queues", l.Name, errno)
	case errno != 0:
		return 0, nil
	}
	return int(v.tx + v.combined), nil
}

// linkSettings is struct ethtool_link_settings of linux/ethtool.h with room for
// the bit sets behind it, of which the kernel says how many words it has.
type linkSettings struct {
	cmd       uint32
	speed     uint32 // megabits per second
	_         [7]uint8
	maskWords int8
	_         [32]uint8
	_         [3 * math.MaxInt8]uint32
}

// speed asks the driver for the speed of the line, 0 when it does not say.
func speed(c *rtnl.Conn, name string) hierarchy.Bandwidth {
	s := &linkSettings{}
	// The first call tells the number of words, the second the settings
	// (ethtool_get_link_ksettings, net/ethtool/ioctl.c, v6.12).
	for range 2 {
		s.cmd, s.maskWords = unix.ETHTOOL_GLINKSETTINGS, -s.maskWords
		if ethtool(c, name, unsafe.Pointer(s)) != 0 {
			return 0
		}
	}
	if s.speed > math.MaxInt32 { // SPEED_UNKNOWN is -1
		return 0
	}
	return hierarchy.Bandwidth(s.speed) * hierarchy.Mbit
}
