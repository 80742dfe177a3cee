//go:build linux

package tc

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Attributes of HTB in linux/pkt_sched.h.
const (
	tcaHTBParms      = 1
	tcaHTBInit       = 2
	tcaHTBDirectQlen = 5
	tcaHTBRate64     = 6
	tcaHTBCeil64     = 7
)

// innerQuantum is what an inner class is made with. It has no use for a
// quantum, but is a leaf until its first child comes, and without one the kernel
// remarks on what it makes up (htb_change_class, net/sched/sch_htb.c, v6.12).
const innerQuantum = 64 << 10

// checkLink says whether HTB can count with the link layer.
func checkLink(l hierarchy.LinkLayer) error {
	if l.Overhead < 0 {
		return fmt.Errorf("overhead %d is negative: HTB can only add to a packet's length", l.Overhead)
	}
	if l.MPU > math.MaxUint16 {
		return fmt.Errorf("mpu %v is more than 65535b", l.MPU)
	}
	return nil
}

// encodeClass is the message that makes or changes a class.
func encodeClass(index uint32, flags netlink.HeaderFlags, c *hierarchy.Class) (netlink.Message, error) {
	if err := checkLink(c.Link); err != nil {
		return netlink.Message{}, err
	}
	burst, err := rtnl.Ticks(c.Burst, c.Rate)
	if err != nil {
		return netlink.Message{}, fmt.Errorf("burst %w", err)
	}
	cburst, err := rtnl.Ticks(c.CBurst, c.Ceil)
	if err != nil {
		return netlink.Message{}, fmt.Errorf("cburst %w", err)
	}
	if c.Quantum > math.MaxInt32 {
		return netlink.Message{}, fmt.Errorf("quantum %v is more than the kernel's %v", c.Quantum, hierarchy.Size(math.MaxInt32))
	}
	quantum := uint32(c.Quantum)
	if quantum == 0 {
		quantum = innerQuantum
	}
	parent := c.Parent
	if parent.Minor() == 0 {
		// Not the qdisc's id: a class with minor 0, which the kernel lets
		// anyone make, would become the parent.
		parent = rtnl.RootParent
	}
	rate, ceil := rtnl.BytesPerSecond(c.Rate), rtnl.BytesPerSecond(c.Ceil)
	e := rtnl.Encoder{B: make([]byte, 0, 128)}
	e.TcMsg(rtnl.TcMsg{Index: index, Handle: uint32(c.ID), Parent: uint32(parent)})
	e.AttrString(unix.TCA_KIND, "htb")
	e.Nest(unix.TCA_OPTIONS, func() {
		e.Attr(tcaHTBParms, func() { // struct tc_htb_opt
			e.RateSpec(rtnl.RateSpec{Link: c.Link, Rate: rate})
			e.RateSpec(rtnl.RateSpec{Link: c.Link, Rate: ceil})
			e.Uint32(burst)
			e.Uint32(cburst)
			e.Uint32(quantum)
			e.Uint32(0) // level: the kernel's to say
			e.Uint32(uint32(c.Prio))
		})
		if rate > math.MaxUint32 {
			e.Attr64(tcaHTBRate64, rate)
		}
		if ceil > math.MaxUint32 {
			e.Attr64(tcaHTBCeil64, ceil)
		}
	})
	return rtnl.Message(unix.RTM_NEWTCLASS, flags, e.B), nil
}

// DecodeClass reads an HTB class of a dump, whoever made it. Its quantum and priority are what the
// kernel has in store, for inner classes too. ok is false for a class of
// another kind of qdisc.
func DecodeClass(body []byte) (c hierarchy.Class, ok bool, err error) {
	m, attrs, err := rtnl.DecodeTcMsg(body)
	if err != nil {
		return c, false, err
	}
	c.ID, c.Parent = hierarchy.ClassID(m.Handle), hierarchy.ClassID(m.Parent)
	if m.Parent == rtnl.RootParent {
		c.Parent = hierarchy.ClassID(uint32(c.ID.Major()) << 16)
	}
	kind, parms, rate64, ceil64 := "", []byte(nil), uint64(0), uint64(0)
	err = rtnl.EachAttr(attrs, func(typ uint16, v []byte) error {
		switch typ {
		case unix.TCA_KIND:
			kind = rtnl.String(v)
		case unix.TCA_OPTIONS:
			if kind != "htb" {
				return nil
			}
			return rtnl.EachAttr(v, func(typ uint16, v []byte) (err error) {
				switch typ {
				case tcaHTBParms:
					parms = v
				case tcaHTBRate64:
					rate64, err = rtnl.Uint64(v)
				case tcaHTBCeil64:
					ceil64, err = rtnl.Uint64(v)
				}
				return err
			})
		}
		return nil
	})
	if err != nil || kind != "htb" {
		return c, false, err
	}
	if len(parms) < 2*rtnl.SizeofRateSpec+20 {
		return c, false, rtnl.ErrMalformed
	}
	rate, ceil := rtnl.DecodeRateSpec(parms), rtnl.DecodeRateSpec(parms[rtnl.SizeofRateSpec:])
	rate.Rate, ceil.Rate = max(rate.Rate, rate64), max(ceil.Rate, ceil64)
	if rate.Rate > rtnl.MaxRate || ceil.Rate > rtnl.MaxRate {
		return c, false, rtnl.ErrMalformed
	}
	u32 := binary.NativeEndian.Uint32
	rest := parms[2*rtnl.SizeofRateSpec:]
	c.Link = rate.Link
	c.Rate = hierarchy.Bandwidth(rate.Rate * 8)
	c.Ceil = hierarchy.Bandwidth(ceil.Rate * 8)
	c.Burst = rtnl.TickBytes(u32(rest), c.Rate)
	c.CBurst = rtnl.TickBytes(u32(rest[4:]), c.Ceil)
	c.Quantum = hierarchy.Size(u32(rest[8:]))
	c.Prio = uint8(min(u32(rest[16:]), math.MaxUint8))
	return c, true, nil
}

// encodeClassRef is a message about a class that is only named.
func encodeClassRef(typ netlink.HeaderType, index uint32, id hierarchy.ClassID) netlink.Message {
	e := rtnl.Encoder{B: make([]byte, 0, rtnl.SizeofTcMsg)}
	e.TcMsg(rtnl.TcMsg{Index: index, Handle: uint32(id)})
	return rtnl.Message(typ, 0, e.B)
}
