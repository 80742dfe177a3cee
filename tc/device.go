//go:build linux

package tc

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// Device is one network interface of a [Conn]'s namespace. It means the
// interface that had the name when [Conn.Device] was called, also after it was
// renamed. It satisfies [hierarchy.Part] and is not for use by several
// goroutines at once.
type Device struct {
	Name  string
	Index uint32

	c      *Conn
	mtu    hierarchy.Size // of a frame: with a link-layer header
	packet hierarchy.Size // the largest that the stack hands down
	former *Former        // the foreign root qdisc that Do replaced
}

var _ hierarchy.Part = (*Device)(nil)

// Device finds an interface by its name. The error is an [*ErrNoDevice] when
// there is none.
func (c *Conn) Device(name string) (*Device, error) {
	d, err := c.link(func(ae *netlink.AttributeEncoder) uint32 {
		ae.String(unix.IFLA_IFNAME, name)
		return 0
	})
	if errors.Is(err, unix.ENODEV) || len(name) >= unix.IFNAMSIZ || name == "" {
		return nil, &ErrNoDevice{Name: name, Nearest: c.nearest(name)}
	}
	return d, newOpError("find interface", name, err)
}

// check says whether the interface is still there.
func (d *Device) check() error {
	_, err := d.c.link(func(*netlink.AttributeEncoder) uint32 { return d.Index })
	return err
}

const (
	ethernetHeader = 14
	// gsoMaxSize is the kernel's default for the largest packet with
	// segmentation offload, GSO_LEGACY_MAX_SIZE (include/linux/netdevice.h,
	// v6.12), for devices that do not say.
	gsoMaxSize = 65536
)

// link asks for one interface, by index or by attributes.
func (c *Conn) link(which func(*netlink.AttributeEncoder) (index uint32)) (*Device, error) {
	ae := netlink.NewAttributeEncoder()
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], which(ae))
	attrs, err := ae.Encode()
	if err != nil {
		return nil, err
	}
	replies, err := c.nl.Execute(message(unix.RTM_GETLINK, 0, append(body, attrs...)))
	if err != nil {
		return nil, err
	}
	for _, m := range replies {
		if m.Header.Type != unix.RTM_NEWLINK || len(m.Data) < unix.SizeofIfInfomsg {
			continue
		}
		d := &Device{c: c, Index: binary.NativeEndian.Uint32(m.Data[4:]), packet: gsoMaxSize}
		segments := uint32(0)
		err := eachAttr(m.Data[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) error {
			var n uint32
			var err error
			switch typ {
			case unix.IFLA_IFNAME:
				d.Name = getString(v)
			case unix.IFLA_MTU:
				n, err = get32(v)
				d.mtu = hierarchy.Size(n) + ethernetHeader
			case unix.IFLA_GSO_MAX_SIZE:
				n, err = get32(v)
				d.packet = hierarchy.Size(n)
			case unix.IFLA_GSO_MAX_SEGS:
				segments, err = get32(v)
			}
			return err
		})
		if segments == 1 || d.packet < d.mtu {
			d.packet = d.mtu
		}
		return d, err
	}
	return nil, fmt.Errorf("link request: %w", errMalformed)
}

// nearest is the name of an interface that is like name, empty if there is none.
func (c *Conn) nearest(name string) string {
	best, least := "", len(name)/2+1
	err := c.dump(unix.RTM_GETLINK, make([]byte, unix.SizeofIfInfomsg), func(body []byte) error {
		if len(body) < unix.SizeofIfInfomsg {
			return errMalformed
		}
		return eachAttr(body[unix.SizeofIfInfomsg:], func(typ uint16, v []byte) error {
			if typ == unix.IFLA_IFNAME {
				if n := distance(name, getString(v)); n < least {
					best, least = getString(v), n
				}
			}
			return nil
		})
	})
	if err != nil {
		return "" // the name is wrong all the same
	}
	return best
}

// distance is the number of bytes to insert, delete or replace to make b of a.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		diagonal := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := diagonal
			if a[i] != b[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(b)]
}

// fail makes an error of what netlink returned.
func (d *Device) fail(op string, err error) error { return newOpError(op, d.Name, err) }
