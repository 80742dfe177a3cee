//go:build linux

package tc

import (
	"encoding/binary"
	"fmt"

	gotc "github.com/florianl/go-tc"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
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

// hooked says whether the filter is the one of AttachEgress, if it is at egress.
func hooked(f *rtnl.Filter) bool {
	return f.Pref() == hookPref && f.Handle == hookHandle && f.Kind == "bpf"
}

// clsact says what stands at the hooks: "clsact", "ingress" or nothing.
func (d *Device) clsact() (kind string, err error) {
	err = d.EachQdisc(func(q *rtnl.Qdisc) error {
		if q.Parent == clsactParent {
			kind = q.Kind
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
// is [rtnl.ErrForeign]. The descriptor may be closed afterwards.
func (d *Device) AttachEgress(progFD int, name string) error {
	const op = "attach program at egress"
	kind, err := d.clsact()
	if err != nil {
		return d.Fail(op, err)
	}
	switch kind {
	case "":
		if err := d.Conn.TC().Qdisc().Add(d.clsactObject()); err != nil {
			return d.Fail("create clsact qdisc", err)
		}
	case "clsact":
	default:
		return fmt.Errorf("%s: qdisc %s is %w and leaves no place for clsact: remove it with \"tc qdisc del dev %s %s\"", d.Name, kind, rtnl.ErrForeign, d.Name, kind)
	}
	if err := d.vacant(egressParent, "egress"); err != nil {
		return d.Fail(op, err)
	}
	fd, flags := uint32(progFD), uint32(gotc.BpfActDirect)
	return d.Fail(op, d.Conn.TC().Filter().Replace(d.hookObject(&gotc.Bpf{FD: &fd, Name: &name, Flags: &flags})))
}

// vacant is an [rtnl.ErrForeign] where a filter of another kind has our preference.
func (d *Device) vacant(parent uint32, where string) error {
	return d.EachFilter(parent, func(f *rtnl.Filter) error {
		if f.Pref() == hookPref && (f.Kind != "bpf" || f.Info&0xffff != allProtocols()) {
			return fmt.Errorf("filter of kind %s with preference %d at %s is %w: give it another preference", f.Kind, hookPref, where, rtnl.ErrForeign)
		}
		return nil
	})
}

// EgressProgram is the id of the program that AttachEgress put there, in this
// process or another; 0 when there is none.
func (d *Device) EgressProgram() (id uint32, err error) {
	err = d.EachFilter(egressParent, func(f *rtnl.Filter) error {
		if !hooked(f) {
			return nil
		}
		return rtnl.EachAttr(f.Options, func(typ uint16, v []byte) (err error) {
			if typ == tcaBPFID {
				id, err = rtnl.Uint32(v)
			}
			return err
		})
	})
	return id, d.Fail("read program at egress", err)
}

// DetachEgress removes the program of AttachEgress, and the clsact qdisc when no
// filter is left at either of its hooks: also one that an AttachEgress made
// which was killed before it put the filter there.
func (d *Device) DetachEgress() error {
	return d.Fail("detach program at egress", d.detach(d.hookObject(nil)))
}

// detach removes a filter, if it is there, and a clsact qdisc without filters.
func (d *Device) detach(filter *gotc.Object) error {
	there, others := false, false
	look := func(f *rtnl.Filter) error {
		// A preference is listed once by itself, with handle 0, and once for each filter.
		switch {
		case f.Handle == 0:
		case f.Parent == filter.Parent && f.Handle == filter.Handle && f.Pref() == hookPref && f.Kind == "bpf":
			there = true
		default:
			others = true
		}
		return nil
	}
	if err := d.EachFilter(egressParent, look); err != nil {
		return err
	}
	if err := d.EachFilter(ingressParent, look); err != nil {
		return err
	}
	if there {
		if err := d.Conn.TC().Filter().Delete(filter); err != nil {
			return err
		}
	}
	kind, err := d.clsact()
	if err != nil || others || kind != "clsact" {
		return err
	}
	return d.Conn.TC().Qdisc().Delete(d.clsactObject())
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
// preference, the error is [rtnl.ErrForeign]. The descriptor may be closed afterwards.
func (d *Device) AttachIngress(port string, progFD int, name string) error {
	const op = "attach program at ingress"
	p, err := Find(d.Conn, port)
	if err != nil {
		return err
	}
	kind, err := p.clsact()
	if err != nil {
		return p.Fail(op, err)
	}
	if kind == "" {
		if err := p.Conn.TC().Qdisc().Add(p.clsactObject()); err != nil {
			return p.Fail("create clsact qdisc", err)
		}
	}
	if err := p.vacant(ingressParent, "ingress"); err != nil {
		return p.Fail(op, err)
	}
	fd, flags := uint32(progFD), uint32(gotc.BpfActDirect)
	return p.Fail(op, p.Conn.TC().Filter().Replace(d.portObject(p, &gotc.Bpf{FD: &fd, Name: &name, Flags: &flags})))
}

// HasIngress says whether the program of AttachIngress is there. The error is
// [rtnl.ErrForeign] where it cannot be.
func (d *Device) HasIngress(port string) (bool, error) {
	p, err := Find(d.Conn, port)
	if err != nil {
		return false, err
	}
	if err := p.vacant(ingressParent, "ingress"); err != nil {
		return false, p.Fail("read program at ingress", err)
	}
	found := false
	err = p.EachFilter(ingressParent, func(f *rtnl.Filter) error {
		found = found || f.Pref() == hookPref && f.Handle == d.Index && f.Kind == "bpf"
		return nil
	})
	return found, p.Fail("read program at ingress", err)
}

// DetachIngress removes the program of AttachIngress, and the clsact qdisc of the
// other interface when no filter is left there. None is no error.
func (d *Device) DetachIngress(port string) error {
	p, err := Find(d.Conn, port)
	if err != nil {
		return err
	}
	return p.Fail("detach program at ingress", p.detach(d.portObject(p, nil)))
}

// DetachIngressOf is [Device.DetachIngress] for an interface that is gone, by the index
// that it had.
func DetachIngressOf(c *rtnl.Conn, index uint32, port string) error {
	return (&Device{Interface: rtnl.Interface{Conn: c, Index: index}}).DetachIngress(port)
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
// root qdisc. Without the module cls_cgroup the error is [rtnl.ErrNotSupported].
func (d *Device) AttachCgroupFilter() error {
	return d.Fail("attach cgroup filter (module cls_cgroup)", d.Conn.TC().Filter().Replace(d.cgroupObject()))
}

// CgroupFilter says whether that classifier is there.
func (d *Device) CgroupFilter() (bool, error) {
	found := false
	err := d.EachFilter(uint32(hierarchy.ID(0)), func(f *rtnl.Filter) error {
		found = found || f.Kind == "cgroup" && f.Pref() == hookPref && f.Handle == hookHandle
		return nil
	})
	return found, d.Fail("read cgroup filter", err)
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
	return d.Fail("detach cgroup filter", d.Conn.TC().Filter().Delete(filter))
}
