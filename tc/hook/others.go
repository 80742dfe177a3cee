//go:build linux

package hook

import "github.com/vifshape/vifshape/tc/rtnl"

// Filter is one filter of somebody else at the egress hook.
type Filter struct {
	Kind string
	Pref uint32
	Name string // of a BPF program, as its user called it; else empty
	// Blocks says that it has the place that [Hooks.AttachEgress] needs.
	Blocks bool
	// First says that packets meet it before the program of AttachEgress, which
	// is there.
	First bool
}

// Others says what somebody else has at the hooks: whether the old ingress qdisc stands
// where clsact has its place, and the filters at egress, in the order in which packets
// meet them. It needs no privileges.
func (h *Hooks) Others() (ingress bool, all []Filter, err error) {
	kind, err := h.clsact()
	if err != nil {
		return false, nil, h.on.Fail("read qdiscs", err)
	}
	if kind != clsact {
		return kind != "", nil, nil
	}
	err = h.on.EachFilter(egressParent, func(f *rtnl.Filter) error {
		// A preference is listed once by itself, with handle 0, and once for each
		// filter; u32 lists its tables as well.
		if f.Handle == 0 || f.Kind == "u32" && f.Handle&0xfff == 0 {
			return nil
		}
		if hooked(f) {
			for i := range all {
				all[i].First = true
			}
			return nil
		}
		if receives(f) {
			return nil
		}
		x := Filter{Kind: f.Kind, Pref: f.Pref()}
		x.Blocks = x.Pref == preference && (f.Kind != "bpf" || f.Info&0xffff != allProtocols())
		err := rtnl.EachAttr(f.Options, func(typ uint16, v []byte) error {
			if f.Kind == "bpf" && typ == tcaBPFName {
				x.Name = rtnl.String(v)
			}
			return nil
		})
		all = append(all, x)
		return err
	})
	return false, all, h.on.Fail("read filters", err)
}
