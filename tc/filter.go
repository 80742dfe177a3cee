//go:build linux

package tc

import (
	"encoding/binary"
	"fmt"

	gotc "github.com/florianl/go-tc"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// Our filters. Preference 1 is the first there is: a filter of somebody else that
// ends the classification must not come before the one that tells branches
// apart.
const (
	hookPref   = 1
	hookHandle = hierarchy.Major
)

// The hooks of clsact, and the place of clsact itself.
const (
	clsactParent  = gotc.HandleIngress
	clsactHandle  = 0xffff0000
	ingressParent = 0xfffffff2
	egressParent  = 0xfffffff3
)

const tcaBPFID = 11

// allProtocols is ETH_P_ALL as it lies in a message: in network byte order.
func allProtocols() uint32 { return uint32(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})) }

// filterMsg is a filter of a dump.
type filterMsg struct {
	tcMsg
	kind    string
	options []byte
}

func (f *filterMsg) pref() uint32 { return f.info >> 16 }

// hook says whether the filter is the one of AttachEgress, if it is at egress.
func (f *filterMsg) hook() bool {
	return f.pref() == hookPref && f.handle == hookHandle && f.kind == "bpf"
}

// eachFilter calls f for the filters of one place, of whatever kind. A place
// that does not exist has none.
func (d *Device) eachFilter(parent uint32, f func(filterMsg) error) error {
	e := encoder{}
	e.tcMsg(tcMsg{index: d.Index, parent: parent})
	return d.c.dump(unix.RTM_GETTFILTER, e.b, func(body []byte) error {
		m, attrs, err := decodeTcMsg(body)
		if err != nil {
			return err
		}
		x := filterMsg{tcMsg: m}
		err = eachAttr(attrs, func(typ uint16, v []byte) error {
			switch typ {
			case tcaKind:
				x.kind = getString(v)
			case tcaOptions:
				x.options = v
			}
			return nil
		})
		if err != nil {
			return err
		}
		return f(x)
	})
}

// clsact says what stands at the hooks: "clsact", "ingress" or nothing.
func (d *Device) clsact() (kind string, err error) {
	err = d.eachQdisc(func(q *qdiscMsg) error {
		if q.parent == clsactParent {
			kind = q.kind
		}
		return nil
	})
	return kind, err
}

func (d *Device) clsactObject() *gotc.Object {
	return &gotc.Object{
		Msg:       gotc.Msg{Family: unix.AF_UNSPEC, Ifindex: d.Index, Handle: clsactHandle, Parent: clsactParent},
		Attribute: gotc.Attribute{Kind: "clsact"},
	}
}

// hookObject is our filter at the egress hook.
func (d *Device) hookObject(bpf *gotc.Bpf) *gotc.Object {
	return &gotc.Object{
		Msg: gotc.Msg{
			Family: unix.AF_UNSPEC, Ifindex: d.Index, Handle: hookHandle,
			Parent: egressParent, Info: hookPref<<16 | allProtocols(),
		},
		Attribute: gotc.Attribute{Kind: "bpf", BPF: bpf},
	}
}

// AttachEgress puts a program of type sched_cls at the egress hook, before all
// other filters there, in direct-action mode. It takes the place of the one that
// AttachEgress put there before, with no packet in between. The clsact qdisc is
// made if it is missing. Where an ingress qdisc stands, which leaves no place
// for clsact, or a filter of another kind has the first preference, the error
// is [ErrForeign]. The descriptor may be closed afterwards.
func (d *Device) AttachEgress(progFD int, name string) error {
	const op = "attach program at egress"
	kind, err := d.clsact()
	if err != nil {
		return d.fail(op, err)
	}
	switch kind {
	case "":
		if err := d.c.tc.Qdisc().Add(d.clsactObject()); err != nil {
			return d.fail("create clsact qdisc", err)
		}
	case "clsact":
	default:
		return fmt.Errorf("%s: qdisc %s is %w and leaves no place for clsact: remove it with \"tc qdisc del dev %s %s\"", d.Name, kind, ErrForeign, d.Name, kind)
	}
	if err := d.vacant(egressParent, "egress"); err != nil {
		return d.fail(op, err)
	}
	fd, flags := uint32(progFD), uint32(gotc.BpfActDirect)
	return d.fail(op, d.c.tc.Filter().Replace(d.hookObject(&gotc.Bpf{FD: &fd, Name: &name, Flags: &flags})))
}

// vacant is an [ErrForeign] where a filter of another kind has our preference.
func (d *Device) vacant(parent uint32, where string) error {
	return d.eachFilter(parent, func(f filterMsg) error {
		if f.pref() == hookPref && (f.kind != "bpf" || f.info&0xffff != allProtocols()) {
			return fmt.Errorf("filter of kind %s with preference %d at %s is %w: give it another preference", f.kind, hookPref, where, ErrForeign)
		}
		return nil
	})
}

// EgressProgram is the id of the program that AttachEgress put there, in this
// process or another; 0 when there is none.
func (d *Device) EgressProgram() (id uint32, err error) {
	err = d.eachFilter(egressParent, func(f filterMsg) error {
		if !f.hook() {
			return nil
		}
		return eachAttr(f.options, func(typ uint16, v []byte) (err error) {
			if typ == tcaBPFID {
				id, err = get32(v)
			}
			return err
		})
	})
	return id, d.fail("read program at egress", err)
}

// DetachEgress removes the program of AttachEgress, and the clsact qdisc when no
// filter is left at either of its hooks: also one that an AttachEgress made
// which was killed before it put the filter there.
func (d *Device) DetachEgress() error {
	return d.fail("detach program at egress", d.detach(d.hookObject(nil)))
}

// detach removes a filter, if it is there, and a clsact qdisc without filters.
func (d *Device) detach(filter *gotc.Object) error {
	there, others := false, false
	look := func(f filterMsg) error {
		// A preference is listed once by itself, with handle 0, and once for each filter.
		switch {
		case f.handle == 0:
		case f.parent == filter.Parent && f.handle == filter.Handle && f.pref() == hookPref && f.kind == "bpf":
			there = true
		default:
			others = true
		}
		return nil
	}
	if err := d.eachFilter(egressParent, look); err != nil {
		return err
	}
	if err := d.eachFilter(ingressParent, look); err != nil {
		return err
	}
	if there {
		if err := d.c.tc.Filter().Delete(filter); err != nil {
			return err
		}
	}
	kind, err := d.clsact()
	if err != nil || others || kind != "clsact" {
		return err
	}
	return d.c.tc.Qdisc().Delete(d.clsactObject())
}

// portObject is our filter at the ingress hook of another interface. Its handle is
// the index of d, so that interfaces do not share one and each takes its own away.
func (d *Device) portObject(port *Device, bpf *gotc.Bpf) *gotc.Object {
	x := port.hookObject(bpf)
	x.Parent, x.Handle = ingressParent, d.Index
	return x
}

// AttachIngress puts a program of type sched_cls at the ingress hook of another
// interface, in direct-action mode and before all filters there but those that
// AttachIngress of further interfaces put there. It takes the place of the one that
// AttachIngress of this interface put there before. A clsact qdisc is made unless it
// or an ingress qdisc is there. Where a filter of another kind has the first
// preference, the error is [ErrForeign]. The descriptor may be closed afterwards.
func (d *Device) AttachIngress(port string, progFD int, name string) error {
	const op = "attach program at ingress"
	p, err := d.c.Device(port)
	if err != nil {
		return err
	}
	kind, err := p.clsact()
	if err != nil {
		return p.fail(op, err)
	}
	if kind == "" {
		if err := p.c.tc.Qdisc().Add(p.clsactObject()); err != nil {
			return p.fail("create clsact qdisc", err)
		}
	}
	if err := p.vacant(ingressParent, "ingress"); err != nil {
		return p.fail(op, err)
	}
	fd, flags := uint32(progFD), uint32(gotc.BpfActDirect)
	return p.fail(op, p.c.tc.Filter().Replace(d.portObject(p, &gotc.Bpf{FD: &fd, Name: &name, Flags: &flags})))
}

// HasIngress says whether the program of AttachIngress is there. The error is
// [ErrForeign] where it cannot be.
func (d *Device) HasIngress(port string) (bool, error) {
	p, err := d.c.Device(port)
	if err != nil {
		return false, err
	}
	if err := p.vacant(ingressParent, "ingress"); err != nil {
		return false, p.fail("read program at ingress", err)
	}
	found := false
	err = p.eachFilter(ingressParent, func(f filterMsg) error {
		found = found || f.pref() == hookPref && f.handle == d.Index && f.kind == "bpf"
		return nil
	})
	return found, p.fail("read program at ingress", err)
}

// DetachIngress removes the program of AttachIngress, and the clsact qdisc of the
// other interface when no filter is left there. None is no error.
func (d *Device) DetachIngress(port string) error {
	p, err := d.c.Device(port)
	if err != nil {
		return err
	}
	return p.fail("detach program at ingress", p.detach(d.portObject(p, nil)))
}

// DetachIngressOf is [Device.DetachIngress] for an interface that is gone, by the index
// that it had.
func (c *Conn) DetachIngressOf(index uint32, port string) error {
	return (&Device{Index: index, c: c}).DetachIngress(port)
}

// cgroupObject is the classic cgroup classifier on our root qdisc.
func (d *Device) cgroupObject() *gotc.Object {
	return &gotc.Object{
		Msg: gotc.Msg{
			Family: unix.AF_UNSPEC, Ifindex: d.Index, Handle: hookHandle,
			Parent: uint32(hierarchy.ID(0)), Info: hookPref<<16 | allProtocols(),
		},
		// go-tc refuses a cgroup filter without content; an empty list of
		// conditions is what "tc filter add ... cgroup" makes too.
		Attribute: gotc.Attribute{Kind: "cgroup", Cgroup: &gotc.Cgroup{
			Ematch: &gotc.Ematch{Hdr: &gotc.EmatchTreeHdr{}, Matches: &[]gotc.EmatchMatch{}},
		}},
	}
}

// AttachCgroupFilter puts the kernel's classifier for net_cls class ids on our
// root qdisc. Without the module cls_cgroup the error is [ErrNotSupported].
func (d *Device) AttachCgroupFilter() error {
	return d.fail("attach cgroup filter (module cls_cgroup)", d.c.tc.Filter().Replace(d.cgroupObject()))
}

// CgroupFilter says whether that classifier is there.
func (d *Device) CgroupFilter() (bool, error) {
	found := false
	err := d.eachFilter(uint32(hierarchy.ID(0)), func(f filterMsg) error {
		found = found || f.kind == "cgroup" && f.pref() == hookPref && f.handle == hookHandle
		return nil
	})
	return found, d.fail("read cgroup filter", err)
}

// DetachCgroupFilter removes that classifier. None is no error.
func (d *Device) DetachCgroupFilter() error {
	found, err := d.CgroupFilter()
	if err != nil || !found {
		return err
	}
	// cls_cgroup does not find its filter by a handle (cls_cgroup_get,
	// net/sched/cls_cgroup.c, v6.12); without one, all of the preference goes,
	// and it never has more than one.
	filter := d.cgroupObject()
	filter.Handle = 0
	return d.fail("detach cgroup filter", d.c.tc.Filter().Delete(filter))
}
