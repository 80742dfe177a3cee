//go:build linux

package tc

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Device is one network interface that carries or may carry a tree. It means the
// interface that had the name when [Find] was called, also after it was renamed. It satisfies [hierarchy.Part] and is not for use by several
// goroutines at once.
type Device struct {
	rtnl.Interface

	mtu    hierarchy.Size // of a frame: with a link-layer header
	packet hierarchy.Size // the largest that the stack hands down
	header hierarchy.Size // of the link layer, as far as the kernel counts it
	former *Former        // the foreign root qdisc that Do replaced
}

var _ hierarchy.Part = (*Device)(nil)

// Find finds an interface by its name, also by an alternative name; Name is its
// own then. The error is an [*ErrNoDevice] when there is none.
func Find(c *rtnl.Conn, name string) (*Device, error) {
	err := error(unix.ENODEV)
	var l Link
	if name != "" {
		l, err = readLink(c, name)
	}
	if errors.Is(err, unix.ENODEV) {
		return nil, &ErrNoDevice{Name: name, Nearest: nearest(c, name)}
	}
	if err != nil {
		return nil, rtnl.Fail("find interface", name, err)
	}
	d := &Device{Interface: rtnl.Interface{Conn: c, Name: l.Name, Index: uint32(l.Index)}, mtu: hierarchy.Size(l.MTU) + ethernetHeader}
	d.packet = largest(&l, d.mtu)
	if d.header, err = d.readHeader(); err != nil {
		return nil, rtnl.Fail("find interface", name, err)
	}
	return d, nil
}

// ErrNoDevice says that there is no interface of that name.
type ErrNoDevice struct {
	Name    string
	Nearest string // the name most like it, empty when none is alike
}

// Error names the interface and what may have been meant.
func (e *ErrNoDevice) Error() string {
	if e.Nearest != "" {
		return fmt.Sprintf("%s: no such interface: did you mean %s?", e.Name, e.Nearest)
	}
	return e.Name + ": no such interface"
}

const (
	ethernetHeader = 14
	// gsoMaxSize is the kernel's default for the largest packet with
	// segmentation offload, GSO_LEGACY_MAX_SIZE (include/linux/netdevice.h,
	// v6.12), for devices that do not say.
	gsoMaxSize = 65536
	gsoMaxSegs = 65535 // likewise, GSO_MAX_SEGS
)

// largest is the largest packet that the stack hands down, on an interface with that
// frame. However small gso_max_size, TCP makes packets of two segments, unless
// gso_max_segs or the length of an IP packet forbids it (tcp_tso_autosize and
// tcp_tso_segs, net/ipv4/tcp_output.c, v6.12, with net.ipv4.tcp_min_tso_segs as it
// comes).
func largest(l *Link, frame hierarchy.Size) hierarchy.Size {
	size, segments := l.GSOMaxSize, hierarchy.Size(l.GSOMaxSegs)
	if size == 0 {
		size = gsoMaxSize
	}
	if segments == 0 {
		segments = gsoMaxSegs
	}
	return min(max(size, frame, min(2*frame, gsoMaxSize)), segments*frame)
}

// readHeader reads how much of a packet's length is link-layer header when it comes
// to a queueing discipline: what dev_hard_header puts in front
// (include/linux/netdevice.h, v6.12). That is not dev->hard_header_len, which is the
// room that drivers want: PPP and VLAN add theirs after the queue.
func (d *Device) readHeader() (hierarchy.Size, error) {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], d.Index)
	msgs, err := d.Conn.Execute(rtnl.Message(unix.RTM_GETLINK, 0, body))
	if err != nil {
		return 0, err
	}
	if len(msgs) == 0 || len(msgs[0].Data) < unix.SizeofIfInfomsg {
		return 0, rtnl.ErrMalformed
	}
	switch binary.NativeEndian.Uint16(msgs[0].Data[2:]) {
	case unix.ARPHRD_ETHER, unix.ARPHRD_LOOPBACK:
		return ethernetHeader, nil
	case unix.ARPHRD_INFINIBAND: // ipoib_hard_header, drivers/infiniband/ulp/ipoib/ipoib_main.c
		return 24, nil
	}
	return 0, nil
}

// nearest is the name of an interface that is like name, empty if there is none.
func nearest(c *rtnl.Conn, name string) string {
	links, err := readLinks(c)
	if err != nil {
		return "" // the name is wrong all the same
	}
	names := make([]string, len(links))
	for i, l := range links {
		names[i] = l.Name
	}
	// Behind an @ `ip link` prints what an interface is linked to.
	if before, _, ok := strings.Cut(name, "@"); ok && slices.Contains(names, before) {
		return before
	}
	return hierarchy.Nearest(name, names)
}
