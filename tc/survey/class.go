//go:build linux

package survey

import (
	"encoding/binary"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Attributes of classes in linux/pkt_sched.h.
const (
	tcaHFSCRealTime = 1
	tcaHFSCShare    = 2
	tcaHFSCUpper    = 3

	tcaCBQShare    = 1
	tcaCBQPriority = 2
	tcaCBQRate     = 5

	cbqBounded = 1
)

// decodeClass reads a class; ok is false for a kind whose classes have no bandwidth.
func decodeClass(body []byte) (c Class, ok bool, err error) {
	m, attrs, err := rtnl.DecodeTcMsg(body)
	if err != nil {
		return c, false, err
	}
	var options []byte
	err = rtnl.EachAttr(attrs, func(typ uint16, v []byte) error {
		switch typ {
		case unix.TCA_KIND:
			c.Kind = rtnl.String(v)
		case unix.TCA_OPTIONS:
			options = v
		}
		return nil
	})
	if err != nil {
		return c, false, err
	}
	if c.Kind == "htb" {
		c.Class, ok, err = tc.DecodeClass(body)
		return c, ok, err
	}
	c.ID, c.Parent = hierarchy.ClassID(m.Handle), hierarchy.ClassID(m.Parent)
	if m.Parent == rtnl.RootParent {
		c.Parent = c.ID &^ 0xffff
	}
	switch c.Kind {
	case "hfsc":
		return c, true, c.hfsc(options)
	case "cbq":
		return c, true, c.cbq(options)
	}
	return c, false, nil
}

func (c *Class) hfsc(options []byte) error {
	return rtnl.EachAttr(options, func(typ uint16, v []byte) error {
		if len(v) < 12 { // struct tc_service_curve, in bytes a second and microseconds
			return nil
		}
		u := binary.NativeEndian.Uint32
		curve := &Curve{M1: hierarchy.Bandwidth(u(v)) * 8, D: uint64(u(v[4:])) * 1000, M2: hierarchy.Bandwidth(u(v[8:])) * 8}
		switch typ {
		case tcaHFSCRealTime:
			c.RealTime = curve
		case tcaHFSCShare:
			c.Share = curve
		case tcaHFSCUpper:
			c.Upper = curve
		}
		return nil
	})
}

// cbq reads what kernels up to 6.7 have (sch_cbq was removed in Linux 6.8, and from the
// stable ones 5.10.210, 5.15.149, 6.1.79 and 6.6.18).
func (c *Class) cbq(options []byte) error {
	return rtnl.EachAttr(options, func(typ uint16, v []byte) error {
		switch typ {
		case tcaCBQShare: // struct tc_cbq_lssopt
			if len(v) < 2 {
				return rtnl.ErrMalformed
			}
			c.Bounded = v[1]&cbqBounded != 0
		case tcaCBQPriority: // struct tc_cbq_wrropt: from 1
			if len(v) < 2 {
				return rtnl.ErrMalformed
			}
			c.Prio = max(v[1], 1) - 1
		case tcaCBQRate:
			if len(v) < rtnl.SizeofRateSpec {
				return rtnl.ErrMalformed
			}
			r := rtnl.DecodeRateSpec(v)
			c.Rate, c.Link = hierarchy.Bandwidth(r.Rate)*8, r.Link
		}
		return nil
	})
}
