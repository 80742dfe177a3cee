//go:build linux

package hook

import (
	gotc "github.com/florianl/go-tc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Our filters of the receiving side. They come after the classifier, and after the marks
// of AttachIngress.
const receivePreference = 2

// noteObject is our filter behind the classifier at the egress hook, receiveObject the one
// at the ingress hook.
func (h *Hooks) noteObject(bpf *gotc.Bpf) *gotc.Object {
	x := h.egressObject(bpf)
	x.Info = receivePreference<<16 | allProtocols()
	return x
}

func (h *Hooks) receiveObject(bpf *gotc.Bpf) *gotc.Object {
	x := h.noteObject(bpf)
	x.Parent = ingressParent
	return x
}

// receives says whether a filter is one of AttachNote or AttachReceive, if it is at that hook.
func receives(f *rtnl.Filter) bool {
	return f.Pref() == receivePreference && f.Handle == handle && f.Kind == "bpf"
}

// AttachNote puts a program of type sched_cls behind that of AttachEgress, whether that is
// there or not, in direct-action mode; for the rest it is as AttachEgress with the second
// preference.
func (h *Hooks) AttachNote(progFD int, name string) error {
	return h.put("attach program behind the classifier", h.noteObject(direct(progFD, name)))
}

// AttachReceive is AttachNote for the ingress hook. A program that does not redirect packets
// by itself is given the index of the interface that an action sends them to instead, which
// is carried out for what it returns -1 for. Without that action (module act_mirred) the
// error is [rtnl.ErrNotSupported].
func (h *Hooks) AttachReceive(progFD int, name string, redirect uint32) error {
	bpf := direct(progFD, name)
	if redirect != 0 {
		const egressRedir, stolen = 1, 4 // TCA_EGRESS_REDIR, TC_ACT_STOLEN
		*bpf.Flags = 0
		bpf.Action = &gotc.Action{Kind: "mirred", Mirred: &gotc.Mirred{Parms: &gotc.MirredParam{Action: stolen, Eaction: egressRedir, IfIndex: redirect}}}
	}
	return h.put("attach program at ingress", h.receiveObject(bpf))
}

// ReceivePrograms are the ids of the programs that AttachNote and AttachReceive put there, in
// this process or another; 0 for one that is not there.
func (h *Hooks) ReceivePrograms() (note, receive uint32, err error) {
	for parent, id := range map[uint32]*uint32{egressParent: &note, ingressParent: &receive} {
		if *id, err = h.program(parent, receives); err != nil {
			return 0, 0, h.on.Fail("read programs of the receiving side", err)
		}
	}
	return note, receive, nil
}

// program is the id of the BPF program of a filter at a hook, 0 when there is none.
func (h *Hooks) program(parent uint32, is func(*rtnl.Filter) bool) (id uint32, err error) {
	err = h.on.EachFilter(parent, func(f *rtnl.Filter) error {
		if !is(f) {
			return nil
		}
		return rtnl.EachAttr(f.Options, func(typ uint16, v []byte) (err error) {
			if typ == tcaBPFID {
				id, err = rtnl.Uint32(v)
			}
			return err
		})
	})
	return id, err
}

// DetachReceive removes the programs of AttachReceive and AttachNote, in this order, and the
// clsact qdisc when no filter is left. None is no error.
func (h *Hooks) DetachReceive() error {
	for _, x := range []*gotc.Object{h.receiveObject(nil), h.noteObject(nil)} {
		if err := h.detach(x); err != nil {
			return h.on.Fail("detach programs of the receiving side", err)
		}
	}
	return nil
}
