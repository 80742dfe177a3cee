//go:build linux

package tc

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// Attributes of linux/rtnetlink.h and linux/pkt_sched.h.
const (
	tcaKind         = 1
	tcaOptions      = 2
	tcaStats2       = 7
	tcaStab         = 8
	tcaIngressBlock = 13

	tcaHTBParms      = 1
	tcaHTBInit       = 2
	tcaHTBDirectQlen = 5
	tcaHTBRate64     = 6
	tcaHTBCeil64     = 7
)

// Link layers of linux/pkt_sched.h. With none given the kernel looks for the
// rate tables of old.
const (
	linkEthernet = 1
	linkATM      = 2
)

// rootParent is the parent of what hangs at the interface itself (TC_H_ROOT).
const rootParent = 0xffffffff

// maxRate bounds what is read, in bytes a second, so that it can be counted in
// bits and nanoseconds: more than the kernel itself can multiply.
const maxRate = 1 << 44

// innerQuantum is what an inner class is made with. It has no use for a
// quantum, but is a leaf until its first child comes, and without one the kernel
// remarks on what it makes up (htb_change_class, net/sched/sch_htb.c, v6.12).
const innerQuantum = 64 << 10

// rateSpec is struct tc_ratespec of linux/pkt_sched.h, without what is
// left of rate tables.
type rateSpec struct {
	link hierarchy.LinkLayer
	rate uint64 // bytes a second; above 32 bits an attribute of its own holds it
}

func (e *encoder) rateSpec(r rateSpec) {
	layer := uint8(linkEthernet)
	if r.link.ATM {
		layer = linkATM
	}
	e.uint8(0) // cell_log
	e.uint8(layer)
	e.uint16(uint16(r.link.Overhead))
	e.uint16(0) // cell_align
	e.uint16(uint16(r.link.MPU))
	e.uint32(uint32(min(r.rate, math.MaxUint32)))
}

const sizeofRateSpec = 12

// decodeRateSpec reads what [encoder.rateSpec] writes; b is long enough.
func decodeRateSpec(b []byte) rateSpec {
	u16 := binary.NativeEndian.Uint16
	return rateSpec{
		link: hierarchy.LinkLayer{
			Overhead: int16(u16(b[2:])),
			MPU:      hierarchy.Size(u16(b[6:])),
			ATM:      b[1]&0xf == linkATM,
		},
		rate: uint64(binary.NativeEndian.Uint32(b[8:])),
	}
}

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
	burst, err := ticks(c.Burst, c.Rate)
	if err != nil {
		return netlink.Message{}, fmt.Errorf("burst %w", err)
	}
	cburst, err := ticks(c.CBurst, c.Ceil)
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
		parent = rootParent
	}
	rate, ceil := bytesPerSecond(c.Rate), bytesPerSecond(c.Ceil)
	e := encoder{make([]byte, 0, 128)}
	e.tcMsg(tcMsg{index: index, handle: uint32(c.ID), parent: uint32(parent)})
	e.attrString(tcaKind, "htb")
	e.nest(tcaOptions, func() {
		e.attr(tcaHTBParms, func() { // struct tc_htb_opt
			e.rateSpec(rateSpec{c.Link, rate})
			e.rateSpec(rateSpec{c.Link, ceil})
			e.uint32(burst)
			e.uint32(cburst)
			e.uint32(quantum)
			e.uint32(0) // level: the kernel's to say
			e.uint32(uint32(c.Prio))
		})
		if rate > math.MaxUint32 {
			e.attr64(tcaHTBRate64, rate)
		}
		if ceil > math.MaxUint32 {
			e.attr64(tcaHTBCeil64, ceil)
		}
	})
	return message(unix.RTM_NEWTCLASS, flags, e.b), nil
}

// decodeClass reads a class of a dump. Its quantum and priority are what the
// kernel has in store, for inner classes too. ok is false for a class of
// another kind of qdisc.
func decodeClass(body []byte) (c hierarchy.Class, ok bool, err error) {
	m, attrs, err := decodeTcMsg(body)
	if err != nil {
		return c, false, err
	}
	c.ID, c.Parent = hierarchy.ClassID(m.handle), hierarchy.ClassID(m.parent)
	if m.parent == rootParent {
		c.Parent = hierarchy.ClassID(uint32(c.ID.Major()) << 16)
	}
	kind, parms, rate64, ceil64 := "", []byte(nil), uint64(0), uint64(0)
	err = eachAttr(attrs, func(typ uint16, v []byte) error {
		switch typ {
		case tcaKind:
			kind = getString(v)
		case tcaOptions:
			if kind != "htb" {
				return nil
			}
			return eachAttr(v, func(typ uint16, v []byte) (err error) {
				switch typ {
				case tcaHTBParms:
					parms = v
				case tcaHTBRate64:
					rate64, err = get64(v)
				case tcaHTBCeil64:
					ceil64, err = get64(v)
				}
				return err
			})
		}
		return nil
	})
	if err != nil || kind != "htb" {
		return c, false, err
	}
	if len(parms) < 2*sizeofRateSpec+20 {
		return c, false, errMalformed
	}
	rate, ceil := decodeRateSpec(parms), decodeRateSpec(parms[sizeofRateSpec:])
	rate.rate, ceil.rate = max(rate.rate, rate64), max(ceil.rate, ceil64)
	if rate.rate > maxRate || ceil.rate > maxRate {
		return c, false, errMalformed
	}
	u32 := binary.NativeEndian.Uint32
	rest := parms[2*sizeofRateSpec:]
	c.Link = rate.link
	c.Rate = hierarchy.Bandwidth(rate.rate * 8)
	c.Ceil = hierarchy.Bandwidth(ceil.rate * 8)
	c.Burst = tickBytes(u32(rest), c.Rate)
	c.CBurst = tickBytes(u32(rest[4:]), c.Ceil)
	c.Quantum = hierarchy.Size(u32(rest[8:]))
	c.Prio = uint8(min(u32(rest[16:]), math.MaxUint8))
	return c, true, nil
}

// encodeClassRef is a message about a class that is only named.
func encodeClassRef(typ netlink.HeaderType, index uint32, id hierarchy.ClassID) netlink.Message {
	e := encoder{make([]byte, 0, sizeofTcMsg)}
	e.tcMsg(tcMsg{index: index, handle: uint32(id)})
	return message(typ, 0, e.b)
}
