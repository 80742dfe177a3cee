//go:build linux

package hook

import (
	gotc "github.com/florianl/go-tc"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Our filters behind the classifier: that which notes whose a flow is, and that of matches,
// which go on from there. At ingress ours comes after the marks of AttachIngress.
const (
	receivePreference = 2
	notePreference    = 2
	matchPreference   = 3
)

// behindObject is our filter behind the classifier at the egress hook with a preference,
// receiveObject the one at the ingress hook.
func (h *Hooks) behindObject(pref uint32, bpf *gotc.Bpf) *gotc.Object {
	x := h.egressObject(bpf)
	x.Info = pref<<16 | allProtocols()
	return x
}

func (h *Hooks) receiveObject(bpf *gotc.Bpf) *gotc.Object {
	x := h.behindObject(receivePreference, bpf)
	x.Parent = rtnl.IngressParent
	return x
}

// preferred says whether a filter is ours with a preference, whichever hook it is at.
func preferred(pref uint32) func(*rtnl.Filter) bool {
	return func(f *rtnl.Filter) bool { return f.Pref() == pref && f.Handle == handle && f.Kind == "bpf" }
}

// receives says whether a filter is that of AttachReceive, if it is at ingress.
var receives = preferred(receivePreference)

// behind says whether a filter is one of AttachMatch or AttachNote, if it is at egress.
func behind(f *rtnl.Filter) bool {
	return preferred(matchPreference)(f) || preferred(notePreference)(f)
}

// AttachNote puts a program of type sched_cls behind that of AttachEgress, whether that is
// there or not, in direct-action mode; for the rest it is as AttachEgress with the second
// preference.
func (h *Hooks) AttachNote(progFD int, name string) error {
	return h.put("attach program behind the classifier", h.behindObject(notePreference, direct(progFD, name)))
}

// AttachMatch is AttachNote with the third preference.
func (h *Hooks) AttachMatch(progFD int, name string) error {
	return h.put("attach program behind the classifier", h.behindObject(matchPreference, direct(progFD, name)))
}

// MatchProgram is the id of the program that AttachMatch put there, in this process or
// another; 0 when there is none.
func (h *Hooks) MatchProgram() (id uint32, err error) {
	id, err = h.program(rtnl.EgressParent, preferred(matchPreference))
	return id, h.on.Fail("read program behind the classifier", err)
}

// DetachMatch removes the program of AttachMatch, and the clsact qdisc when no filter is left.
// None is no error.
func (h *Hooks) DetachMatch() error {
	return h.on.Fail("detach program behind the classifier", h.detach(h.behindObject(matchPreference, nil)))
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
	if note, err = h.program(rtnl.EgressParent, preferred(notePreference)); err == nil {
		receive, err = h.program(rtnl.IngressParent, receives)
	}
	return note, receive, h.on.Fail("read programs of the receiving side", err)
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
	for _, x := range []*gotc.Object{h.receiveObject(nil), h.behindObject(notePreference, nil)} {
		if err := h.detach(x); err != nil {
			return h.on.Fail("detach programs of the receiving side", err)
		}
	}
	return nil
}
