//go:build linux

package survey

import (
	"encoding/binary"
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Family is the kind of packets that a filter looks at.
type Family uint8

// The families; the zero value is all.
const (
	IPv4 Family = 1 << iota
	IPv6
)

// Filter is one filter.
type Filter struct {
	Kind   string
	Parent hierarchy.ClassID // where it stands; of those at ingress 0
	Handle uint32
	Pref   uint32
	Family Family
	Class  hierarchy.ClassID // to which it gives what it fits; 0: none
	All    bool              // it fits every packet of its family
	Match  match.Match       // else what it fits
	// Unsaid is what it asks of packets, or does with them, that no match says; where there is
	// something, Match fits more than it does.
	Unsaid []string
	// Beside is what it asks besides and nearly all packets fulfil.
	Beside []string

	// Unsure says that it may stand elsewhere: the kernel lists filters of u32 that have one
	// preference at each place of the qdisc (u32_walk, net/sched/cls_u32.c, v6.12).
	Unsure bool

	Redirect int                 // the interface to which it redirects
	Police   hierarchy.Bandwidth // the rate above which it drops
}

// attributes are those of filters in linux/pkt_cls.h, as far as several kinds share them.
type attributes struct{ class, police, action, dev uint16 }

// attributesOf are those of a kind of filter; known is false for one that is not read.
func attributesOf(kind string) (a attributes, known bool) {
	switch kind {
	case "u32":
		return attributes{class: 1, police: 6, action: 7, dev: 8}, true
	case "fw":
		return attributes{class: 1, police: 2, dev: 3, action: 4}, true
	case "flower":
		return attributes{class: 1, dev: 2, action: 3}, true
	case "matchall":
		return attributes{class: 1, action: 2}, true
	case "basic":
		return attributes{class: 1, action: 3, police: 4}, true
	case "bpf":
		return attributes{action: 1, police: 2, class: 3}, true
	}
	return a, false
}

// Attributes that one kind has.
const (
	tcaFwMask        = 5
	tcaBasicEmatches = 2
	tcaEmatchHeader  = 1
)

// decodeFilter reads a filter; ok is false for what the kernel lists besides: the
// preference itself, and hash tables.
func decodeFilter(f *rtnl.Filter) (x Filter, ok bool, err error) {
	// A preference is listed once by itself, and one of fw may be all that there is.
	if f.Handle == 0 && f.Kind != "fw" || f.Kind == "u32" && f.Handle&0xfff == 0 {
		return x, false, nil
	}
	x = Filter{Kind: f.Kind, Handle: f.Handle, Pref: f.Pref()}
	x.protocol(f)
	if f.Chain != 0 {
		x.unsaid("it stands in chain %d, which packets come to only from another filter", f.Chain)
	}
	a, known := attributesOf(f.Kind)
	if !known {
		switch f.Kind {
		case "cgroup":
			x.unsaid("it goes by net_cls class ids: bind the cgroups instead")
		default:
			x.unsaid("no match says what a filter of kind %s does", f.Kind)
		}
		return x, true, nil
	}
	err = rtnl.EachAttr(f.Options, func(typ uint16, v []byte) error {
		switch typ {
		case a.class:
			id, err := rtnl.Uint32(v)
			x.Class = hierarchy.ClassID(id)
			return err
		case a.police:
			return x.police(v)
		case a.action:
			return x.actions(v)
		}
		if typ == a.dev && a.dev != 0 {
			x.unsaid("it asks for packets that came in by %s", rtnl.String(v))
		}
		return nil
	})
	if err != nil {
		return x, false, err
	}
	switch f.Kind {
	case "u32":
		err = x.u32(f)
	case "flower":
		err = x.flower(f)
	case "fw":
		err = x.fw(f)
	case "matchall":
		x.All = true
	case "basic":
		err = x.basic(f)
	case "bpf":
		x.unsaid("no match says what a program does")
	}
	return x, true, err
}

func (x *Filter) unsaid(format string, args ...any) {
	if s := fmt.Sprintf(format, args...); !slices.Contains(x.Unsaid, s) {
		x.Unsaid = append(x.Unsaid, s)
	}
}

func (x *Filter) beside(format string, args ...any) {
	x.Beside = append(x.Beside, fmt.Sprintf(format, args...))
}

// protocol reads the kind of frames that a filter is for.
func (x *Filter) protocol(f *rtnl.Filter) {
	p := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, uint16(f.Info)))
	switch p {
	case unix.ETH_P_ALL:
	case unix.ETH_P_IP:
		x.Family = IPv4
	case unix.ETH_P_IPV6:
		x.Family = IPv6
	case unix.ETH_P_8021Q, unix.ETH_P_8021AD:
		if f.Kind != "flower" { // which says more of it
			x.unsaid("it is for frames with any tag: a match names one")
		}
	default:
		x.unsaid("it is for packets of protocol %#04x", p)
	}
}

// police reads struct tc_police, or what holds it.
func (x *Filter) police(v []byte) error {
	const parms, rate64 = 1, 8
	return rtnl.EachAttr(v, func(typ uint16, v []byte) error {
		switch {
		case typ == parms && len(v) >= 20+rtnl.SizeofRateSpec:
			x.Police = max(x.Police, hierarchy.Bandwidth(rtnl.DecodeRateSpec(v[20:]).Rate)*8)
		case typ == rate64 && len(v) >= 8:
			x.Police = hierarchy.Bandwidth(min(binary.NativeEndian.Uint64(v), rtnl.MaxRate)) * 8
		}
		return nil
	})
}

// actions reads the list of actions of a filter.
func (x *Filter) actions(v []byte) error {
	return rtnl.EachAttr(v, func(_ uint16, v []byte) error {
		const kind, options = 1, 2
		var name string
		var opts []byte
		err := rtnl.EachAttr(v, func(typ uint16, v []byte) error {
			switch typ {
			case kind:
				name = rtnl.String(v)
			case options:
				opts = v
			}
			return nil
		})
		if err != nil {
			return err
		}
		switch name {
		case "police":
			return x.police(opts)
		case "mirred":
			return x.mirred(opts)
		case "gact":
			return x.gact(opts)
		}
		x.unsaid("its action %s is not a branch's", name)
		return nil
	})
}

// parms is the attribute of mirred and gact that begins with what all actions have, struct
// tc_gen: five numbers, the third what becomes of the packet.
const parms = 2

func (x *Filter) mirred(opts []byte) error {
	const redirect = 1 // TCA_EGRESS_REDIR of linux/tc_act/tc_mirred.h
	return rtnl.EachAttr(opts, func(typ uint16, v []byte) error {
		if typ != parms {
			return nil
		}
		if len(v) < 28 { // struct tc_mirred
			return rtnl.ErrMalformed
		}
		if binary.NativeEndian.Uint32(v[20:]) != redirect {
			x.unsaid("it copies packets to another interface")
			return nil
		}
		x.Redirect = int(binary.NativeEndian.Uint32(v[24:]))
		return nil
	})
}

func (x *Filter) gact(opts []byte) error {
	return rtnl.EachAttr(opts, func(typ uint16, v []byte) error {
		if typ != parms || len(v) < 12 {
			return nil
		}
		switch act := int32(binary.NativeEndian.Uint32(v[8:])); act {
		case actOK, actPipe:
		case actShot:
			x.unsaid("it drops packets: that is the firewall's")
		default:
			x.unsaid("its action has packets go on elsewhere")
		}
		return nil
	})
}

// What becomes of a packet, of linux/pkt_cls.h.
const (
	actOK   = 0
	actShot = 2
	actPipe = 3
)

// fw reads the filter by firewall marks.
func (x *Filter) fw(f *rtnl.Filter) error {
	mark := match.Mark{Value: f.Handle, Mask: 1<<32 - 1}
	err := rtnl.EachAttr(f.Options, func(typ uint16, v []byte) (err error) {
		if typ == tcaFwMask {
			mark.Mask, err = rtnl.Uint32(v)
		}
		return err
	})
	switch {
	case err != nil:
		return err
	case f.Handle == 0 && len(f.Options) == 0:
		x.unsaid("it takes firewall marks for class ids: write for each class the mark that is its id")
	case mark.Mask == 0 || mark.Value&^mark.Mask != 0:
		x.unsaid("no packet has mark %#x in the bits of %#x", mark.Value, mark.Mask)
	default:
		x.Match.Mark = []match.Mark{mark}
	}
	return nil
}

// basic reads a filter of extended matches, of which one without any fits everything.
func (x *Filter) basic(f *rtnl.Filter) error {
	x.All = true
	return rtnl.EachAttr(f.Options, func(typ uint16, v []byte) error {
		if typ != tcaBasicEmatches {
			return nil
		}
		return rtnl.EachAttr(v, func(typ uint16, v []byte) error {
			if typ == tcaEmatchHeader && len(v) >= 2 && binary.NativeEndian.Uint16(v) > 0 {
				x.All = false
				x.unsaid("extended matches are not read")
			}
			return nil
		})
	})
}

// Clear says whether the filter gives packets to a class by what a match says alone.
func (x *Filter) Clear() bool { return len(x.Unsaid) == 0 && x.Redirect == 0 && x.Class != 0 }

// Name is the filter as tc names it, "u32 filter 800::800 (pref 12)".
func (x *Filter) Name() string {
	handle := fmt.Sprintf("%#x", x.Handle)
	if x.Kind == "u32" {
		handle = fmt.Sprintf("%x:%s:%x", x.Handle>>20, bucket(x.Handle), x.Handle&0xfff)
	}
	return fmt.Sprintf("%s filter %s (pref %d)", x.Kind, handle, x.Pref)
}

// bucket is the bucket of a hash table of u32 as tc prints it, nothing for the first.
func bucket(handle uint32) string {
	if b := handle >> 12 & 0xff; b != 0 {
		return fmt.Sprintf("%x", b)
	}
	return ""
}
