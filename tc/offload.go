//go:build linux

package tc

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
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
func (d *Device) Offloads() (Offloads, error) {
	o := Offloads{Packet: d.packet}
	for _, x := range []struct {
		command uint32
		to      *bool
	}{{unix.ETHTOOL_GTSO, &o.TSO}, {unix.ETHTOOL_GGSO, &o.GSO}, {unix.ETHTOOL_GGRO, &o.GRO}} {
		// struct ethtool_value of linux/ethtool.h
		v := struct{ command, data uint32 }{command: x.command}
		switch errno, err := d.ethtool(unsafe.Pointer(&v)); {
		case err != nil:
			return o, d.Fail("read offloads", err)
		case errno == unix.ENODEV:
			return o, d.Fail("read offloads", errno)
		case errno == 0:
			*x.to = v.data != 0
		}
	}
	return o, nil
}

// ethtool carries out a command of SIOCETHTOOL, whose struct is at data, over the
// connection's socket: one opened elsewhere may be in another namespace.
func (d *Device) ethtool(data unsafe.Pointer) (syscall.Errno, error) {
	// struct ifreq of linux/if.h
	req := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: data}
	copy(req.name[:unix.IFNAMSIZ-1], d.Name)
	var errno syscall.Errno
	err := d.Conn.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall(unix.SYS_IOCTL, fd, unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	})
	runtime.KeepAlive(data)
	return errno, err
}

// TimerRate is how often a second the kernel can wake a queue that waits for its
// turn: 1,000,000,000 with high-resolution timers, else its clock interrupts
// (psched_show, net/sched/sch_api.c, v6.12).
func TimerRate() (uint64, error) {
	const file = "/proc/net/psched"
	b, err := os.ReadFile(file)
	if err != nil {
		return 0, err
	}
	words := bytes.Fields(b)
	if len(words) < 4 {
		return 0, fmt.Errorf("%s: %q has no fourth word", file, b)
	}
	n, err := strconv.ParseUint(string(words[3]), 16, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", file, err)
	}
	return n, nil
}

// Queues is the number of transmit queues in use, of those that [Link] counts; 0
// where the driver does not say. It needs no privileges.
func (d *Device) Queues() (int, error) {
	// struct ethtool_channels of linux/ethtool.h
	v := struct {
		command                             uint32
		maxRx, maxTx, maxOther, maxCombined uint32
		rx, tx, other, combined             uint32
	}{command: unix.ETHTOOL_GCHANNELS}
	switch errno, err := d.ethtool(unsafe.Pointer(&v)); {
	case err != nil:
		return 0, d.Fail("read queues", err)
	case errno == unix.ENODEV:
		return 0, d.Fail("read queues", errno)
	case errno != 0:
		return 0, nil
	}
	return int(v.tx + v.combined), nil
}
