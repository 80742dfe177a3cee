//go:build linux

package tc

import (
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/foreign"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Device is one network interface that carries or may carry a tree. It means the
// interface that had the name when [Find] was called, also after it was renamed. It
// satisfies [hierarchy.Part] and is not for use by several goroutines at once.
type Device struct {
	rtnl.Interface

	link   link.Link
	port   hierarchy.Port
	packet hierarchy.Size  // the largest that comes to the tree
	former *foreign.Former // the foreign root qdisc that Do replaced
}

var (
	_ hierarchy.Part     = (*Device)(nil)
	_ hierarchy.Rereader = (*Device)(nil)
)

// Find finds an interface by its name, also by an alternative name; Name is its own
// then. The error is a [*link.NotFoundError] when there is none.
func Find(c *rtnl.Conn, name string) (*Device, error) {
	l, err := link.Find(c, name)
	if err != nil {
		return nil, err
	}
	return &Device{
		Interface: rtnl.Interface{Conn: c, Name: l.Name, Index: uint32(l.Index)},
		link:      l,
		port:      hierarchy.Port{Device: l.Name},
		packet:    l.Packet(),
	}, nil
}

// MTU is that of the interface when it was found, in bytes.
func (d *Device) MTU() int { return d.link.MTU }

// WithMTU is the device as it was with another MTU, to settle a tree for it.
func (d *Device) WithMTU(mtu int) *Device {
	was := *d
	was.link.MTU = mtu
	was.packet = was.link.Packet()
	return &was
}

// Bare says whether packets of the device have no link-layer header, as those of a tunnel.
func (d *Device) Bare() bool { return d.link.Header == 0 }

// ReceivesFor is the index of the interface of which the device, an IFB of ours, carries
// what it receives; 0: it is none.
func (d *Device) ReceivesFor() uint32 { return uint32(d.link.Receives) }

// Port implements [hierarchy.Part].
func (d *Device) Port() hierarchy.Port { return d.port }
