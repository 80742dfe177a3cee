//go:build linux

package hook

import (
	"strings"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// Filter is one filter of somebody else at a hook.
type Filter struct {
	Kind string
	Pref uint32
	Name string // of a BPF program, as its user called it; else empty
	// Blocks says that it has the place that [Hooks.AttachEgress] needs, or
	// [Hooks.AttachReceive]; BlocksNote that of [Hooks.AttachNote], BlocksMatch that of
	// [Hooks.AttachMatch].
	Blocks, BlocksNote, BlocksMatch bool
	// First says that packets meet it before the program of these, or would if that were there.
	First bool
}

// Others says what somebody else has at the hooks: whether the old ingress qdisc stands
// where clsact has its place, and the filters at egress and at ingress, in the order in
// which packets meet them. It needs no privileges.
func (h *Hooks) Others() (old bool, egress, ingress []Filter, err error) {
	kind, err := h.clsact()
	if err == nil && kind == clsact {
		egress, err = h.others(rtnl.EgressParent, preference, hooked)
	}
	if err == nil && kind != "" {
		ingress, err = h.others(rtnl.IngressParent, receivePreference, receives)
	}
	return kind != "" && kind != clsact, egress, ingress, h.on.Fail("read hooks", err)
}

// others are the filters of somebody else at a hook where ours has a preference.
func (h *Hooks) others(parent, pref uint32, is func(*rtnl.Filter) bool) (all []Filter, err error) {
	return all, h.on.EachFilter(parent, func(f *rtnl.Filter) error {
		// A preference is listed once by itself, with handle 0, and once for each
		// filter; u32 lists its tables as well.
		if f.Handle == 0 || f.Kind == "u32" && f.Handle&0xfff == 0 {
			return nil
		}
		if is(f) {
			for i := range all {
				all[i].First = true
			}
			return nil
		}
		x := Filter{Kind: f.Kind, Pref: f.Pref(), First: f.Pref() < pref}
		other := f.Kind != "bpf" || f.Info&0xffff != allProtocols()
		x.Blocks = x.Pref == pref && other
		x.BlocksNote = x.Pref == notePreference && other && parent == rtnl.EgressParent
		x.BlocksMatch = x.Pref == matchPreference && other && parent == rtnl.EgressParent
		err := rtnl.EachAttr(f.Options, func(typ uint16, v []byte) error {
			if f.Kind == "bpf" && typ == tcaBPFName {
				x.Name = rtnl.String(v)
			}
			return nil
		})
		// our own: behind the classifier, and those that mark what comes in for other interfaces
		note := parent == rtnl.EgressParent && behind(f)
		mark := parent == rtnl.IngressParent && x.Pref == preference && strings.HasPrefix(x.Name, "vif_")
		if !note && !mark {
			all = append(all, x)
		}
		return err
	})
}
