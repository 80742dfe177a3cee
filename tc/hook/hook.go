//go:build linux

package hook

import (
	"encoding/binary"
	"fmt"

	gotc "github.com/florianl/go-tc"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Our filters. Preference 1 is the first there is: a filter of somebody else that
// ends the classification must not come before the one that tells branches
// apart.
const (
	preference = 1
	handle     = hierarchy.Major
)

// clsactHandle is clsact's own.
const clsactHandle = 0xffff0000

// Of a BPF filter in linux/pkt_cls.h.
const (
	tcaBPFName = 7
	tcaBPFID   = 11
)

const clsact = "clsact"

// allProtocols is ETH_P_ALL as it lies in a message: in network byte order.
func allProtocols() uint32 { return uint32(binary.NativeEndian.Uint16([]byte{0, unix.ETH_P_ALL})) }

// hooked says whether the filter is the one of AttachEgress, if it is at egress.
func hooked(f *rtnl.Filter) bool {
	return f.Pref() == preference && f.Handle == handle && f.Kind == "bpf"
}

// Hooks are the places of one interface at which packets are classified. It means the
// interface as [rtnl.Interface] does, and is not for use by several goroutines at once.
type Hooks struct{ on rtnl.Interface }

// Of are the hooks of an interface.
func Of(i rtnl.Interface) *Hooks { return &Hooks{i} }

// port are the hooks of another interface of the namespace.
func (h *Hooks) port(name string) (*Hooks, error) {
	l, err := link.Find(h.on.Conn, name)
	if err != nil {
		return nil, err
	}
	return Of(rtnl.Interface{Conn: h.on.Conn, Name: l.Name, Index: uint32(l.Index)}), nil
}

// clsact says what stands at the hooks: "clsact", "ingress" or nothing.
func (h *Hooks) clsact() (kind string, err error) {
	err = h.on.EachQdisc(func(q *rtnl.Qdisc) error {
		if q.Parent == rtnl.HookParent {
			kind = q.Kind
		}
		return nil
	})
	return kind, err
}

func (h *Hooks) clsactObject() *gotc.Object {
	return &gotc.Object{
		Msg:       gotc.Msg{Family: unix.AF_UNSPEC, Ifindex: h.on.Index, Handle: clsactHandle, Parent: rtnl.HookParent},
		Attribute: gotc.Attribute{Kind: "clsact"},
	}
}

// egressObject is our filter at the egress hook.
func (h *Hooks) egressObject(bpf *gotc.Bpf) *gotc.Object {
	return &gotc.Object{
		Msg: gotc.Msg{
			Family: unix.AF_UNSPEC, Ifindex: h.on.Index, Handle: handle,
			Parent: rtnl.EgressParent, Info: preference<<16 | allProtocols(),
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
func (h *Hooks) AttachEgress(progFD int, name string) error {
	return h.put("attach program at egress", h.egressObject(direct(progFD, name)))
}

// direct is a program in direct-action mode.
func direct(progFD int, name string) *gotc.Bpf {
	fd, flags := uint32(progFD), uint32(gotc.BpfActDirect)
	return &gotc.Bpf{FD: &fd, Name: &name, Flags: &flags}
}

// put puts a filter to its hook, with the clsact qdisc where it is missing, in place of the one
// that has its handle and preference.
func (h *Hooks) put(op string, filter *gotc.Object) error {
	kind, err := h.clsact()
	switch {
	case err != nil:
		return h.on.Fail(op, err)
	case kind == "":
		if err := h.on.Conn.TC().Qdisc().Add(h.clsactObject()); err != nil {
			return h.on.Fail("create clsact qdisc", err)
		}
	case kind != clsact && filter.Parent == rtnl.EgressParent: // the old ingress qdisc has no such hook
		return fmt.Errorf("%s: qdisc %s is %w and leaves no place for clsact: remove it with \"tc qdisc del dev %s %s\"", h.on.Name, kind, rtnl.ErrForeign, h.on.Name, kind)
	}
	if err := h.vacant(filter.Parent, filter.Info>>16); err != nil {
		return h.on.Fail(op, err)
	}
	return h.on.Fail(op, h.on.Conn.TC().Filter().Replace(filter))
}

// vacant is an [rtnl.ErrForeign] where a filter of another kind has our preference.
func (h *Hooks) vacant(parent, pref uint32) error {
	where := "egress"
	if parent == rtnl.IngressParent {
		where = "ingress"
	}
	return h.on.EachFilter(parent, func(f *rtnl.Filter) error {
		if f.Pref() == pref && (f.Kind != "bpf" || f.Info&0xffff != allProtocols()) {
			return fmt.Errorf("filter of kind %s with preference %d at %s is %w: give it another preference", f.Kind, pref, where, rtnl.ErrForeign)
		}
		return nil
	})
}

// EgressProgram is the id of the program that AttachEgress put there, in this
// process or another; 0 when there is none.
func (h *Hooks) EgressProgram() (id uint32, err error) {
	id, err = h.program(rtnl.EgressParent, hooked)
	return id, h.on.Fail("read program at egress", err)
}

// DetachEgress removes the program of AttachEgress, and the clsact qdisc when no
// filter is left at either of its hooks: also one that an AttachEgress made
// which was killed before it put the filter there.
func (h *Hooks) DetachEgress() error {
	return h.on.Fail("detach program at egress", h.detach(h.egressObject(nil)))
}

// detach removes a filter, if it is there, and a clsact qdisc without filters.
func (h *Hooks) detach(filter *gotc.Object) error {
	there, others := false, false
	look := func(f *rtnl.Filter) error {
		// A preference is listed once by itself, with handle 0, and once for each filter.
		switch {
		case f.Handle == 0:
		case f.Parent == filter.Parent && f.Handle == filter.Handle && f.Pref() == filter.Info>>16 && f.Kind == "bpf":
			there = true
		default:
			others = true
		}
		return nil
	}
	if err := h.on.EachFilter(rtnl.EgressParent, look); err != nil {
		return err
	}
	if err := h.on.EachFilter(rtnl.IngressParent, look); err != nil {
		return err
	}
	if there {
		if err := h.on.Conn.TC().Filter().Delete(filter); err != nil {
			return err
		}
	}
	kind, err := h.clsact()
	if err != nil || others || kind != "clsact" {
		return err
	}
	return h.on.Conn.TC().Qdisc().Delete(h.clsactObject())
}

// portObject is our filter at the ingress hook of another interface. Its handle is
// the index of h, so that interfaces do not share one and each takes its own away.
func (h *Hooks) portObject(port *Hooks, bpf *gotc.Bpf) *gotc.Object {
	x := port.egressObject(bpf)
	x.Parent, x.Handle = rtnl.IngressParent, h.on.Index
	return x
}

// AttachIngress puts a program of type sched_cls at the ingress hook of another
// interface, in direct-action mode and before all filters there but those that
// AttachIngress of further interfaces put there. It takes the place of the one that
// AttachIngress of this interface put there before. A clsact qdisc is made unless it
// or an ingress qdisc is there. Where a filter of another kind has the first
// preference, the error is [rtnl.ErrForeign]. The descriptor may be closed afterwards.
func (h *Hooks) AttachIngress(port string, progFD int, name string) error {
	p, err := h.port(port)
	if err != nil {
		return err
	}
	return p.put("attach program at ingress", h.portObject(p, direct(progFD, name)))
}

// HasIngress says whether the program of AttachIngress is there. The error is
// [rtnl.ErrForeign] where it cannot be.
func (h *Hooks) HasIngress(port string) (bool, error) {
	p, err := h.port(port)
	if err != nil {
		return false, err
	}
	if err := p.vacant(rtnl.IngressParent, preference); err != nil {
		return false, p.on.Fail("read program at ingress", err)
	}
	found := false
	err = p.on.EachFilter(rtnl.IngressParent, func(f *rtnl.Filter) error {
		found = found || f.Pref() == preference && f.Handle == h.on.Index && f.Kind == "bpf"
		return nil
	})
	return found, p.on.Fail("read program at ingress", err)
}

// DetachIngress removes the program of AttachIngress, and the clsact qdisc of the
// other interface when no filter is left there. None is no error. Of this interface the
// index is enough, and it may be gone.
func (h *Hooks) DetachIngress(port string) error {
	p, err := h.port(port)
	if err != nil {
		return err
	}
	return p.on.Fail("detach program at ingress", p.detach(h.portObject(p, nil)))
}

// cgroupObject is the classic cgroup classifier on our root qdisc.
func (h *Hooks) cgroupObject() *gotc.Object {
	return &gotc.Object{
		Msg: gotc.Msg{
			Family: unix.AF_UNSPEC, Ifindex: h.on.Index, Handle: handle,
			Parent: uint32(hierarchy.ID(0)), Info: preference<<16 | allProtocols(),
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
func (h *Hooks) AttachCgroupFilter() error {
	return h.on.Fail("attach cgroup filter (module cls_cgroup)", h.on.Conn.TC().Filter().Replace(h.cgroupObject()))
}

// CgroupFilter says whether that classifier is there.
func (h *Hooks) CgroupFilter() (bool, error) {
	found := false
	err := h.on.EachFilter(uint32(hierarchy.ID(0)), func(f *rtnl.Filter) error {
		found = found || f.Kind == "cgroup" && f.Pref() == preference && f.Handle == handle
		return nil
	})
	return found, h.on.Fail("read cgroup filter", err)
}

// DetachCgroupFilter removes that classifier. None is no error.
func (h *Hooks) DetachCgroupFilter() error {
	found, err := h.CgroupFilter()
	if err != nil || !found {
		return err
	}
	// cls_cgroup does not find its filter by a handle (cls_cgroup_get,
	// net/sched/cls_cgroup.c, v6.12); without one, all of the preference goes,
	// and it never has more than one.
	filter := h.cgroupObject()
	filter.Handle = 0
	return h.on.Fail("detach cgroup filter", h.on.Conn.TC().Filter().Delete(filter))
}
