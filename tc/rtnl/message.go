//go:build linux

package rtnl

import (
	"encoding/binary"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// Message is a request that changes something.
func Message(typ netlink.HeaderType, flags netlink.HeaderFlags, body []byte) netlink.Message {
	return netlink.Message{Header: netlink.Header{Type: typ, Flags: netlink.Request | flags}, Data: body}
}

// RootParent is the parent of what hangs at the interface itself (TC_H_ROOT).
const RootParent = 0xffffffff

// HookParent is that of clsact, and of the old ingress qdisc (TC_H_CLSACT); IngressParent that of
// the filters of both for what arrives, EgressParent of clsact's for what is sent.
const (
	HookParent    = 0xfffffff1
	IngressParent = 0xfffffff2
	EgressParent  = 0xfffffff3
)

// TcMsg is struct tcmsg of linux/rtnetlink.h.
type TcMsg struct {
	Index                uint32
	Handle, Parent, Info uint32
}

// SizeofTcMsg is its size.
const SizeofTcMsg = 20

// TcMsg appends m.
func (e *Encoder) TcMsg(m TcMsg) {
	e.Uint32(unix.AF_UNSPEC)
	e.Uint32(m.Index)
	e.Uint32(m.Handle)
	e.Uint32(m.Parent)
	e.Uint32(m.Info)
}

// DecodeTcMsg reads the head of a message about an object of traffic control.
func DecodeTcMsg(b []byte) (m TcMsg, attrs []byte, err error) {
	if len(b) < SizeofTcMsg {
		return m, nil, ErrMalformed
	}
	u := binary.NativeEndian.Uint32
	return TcMsg{u(b[4:]), u(b[8:]), u(b[12:]), u(b[16:])}, b[SizeofTcMsg:], nil
}

// tcaStabBase is the attribute of a size table that is struct tc_sizespec.
const tcaStabBase = 1

// Qdisc is a qdisc of a dump.
type Qdisc struct {
	TcMsg
	Kind      string
	Options   []byte // nil: none
	Stats2    []byte
	SizeTable bool   // it has a size table
	Size      []byte // struct tc_sizespec of that, of linux/pkt_sched.h
}

// DecodeQdisc reads the body of a message about a qdisc.
func DecodeQdisc(body []byte) (q Qdisc, err error) {
	m, attrs, err := DecodeTcMsg(body)
	if err != nil {
		return q, err
	}
	q.TcMsg = m
	err = EachAttr(attrs, func(typ uint16, v []byte) error {
		switch typ {
		case unix.TCA_KIND:
			q.Kind = String(v)
		case unix.TCA_OPTIONS:
			q.Options = v
		case unix.TCA_STATS2:
			q.Stats2 = v
		case unix.TCA_STAB:
			q.SizeTable = true
			return EachAttr(v, func(typ uint16, v []byte) error {
				if typ == tcaStabBase {
					q.Size = v
				}
				return nil
			})
		}
		return nil
	})
	return q, err
}

// Root is what the model keeps of a root qdisc. One that the kernel made has no
// handle.
func (q *Qdisc) Root() hierarchy.Root {
	if q == nil || q.Handle == 0 {
		return hierarchy.Root{}
	}
	return hierarchy.Root{Kind: q.Kind, Handle: hierarchy.ClassID(q.Handle)}
}

// Clone is q for longer than the dump that it is from.
func (q *Qdisc) Clone() *Qdisc {
	c := *q
	c.Options, c.Size = slices.Clone(q.Options), slices.Clone(q.Size)
	return &c
}

// Filter is a filter of a dump.
type Filter struct {
	TcMsg
	Kind    string
	Options []byte
	Chain   uint32 // 0: the one that packets meet; others are gone to by an action
}

// Pref is the filter's preference.
func (f *Filter) Pref() uint32 { return f.Info >> 16 }
