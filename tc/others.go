//go:build linux

package tc

import (
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Others is what somebody else has on an interface that concerns a tree there.
type Others struct {
	Root    hierarchy.Root // foreign root qdisc; the zero value: none
	Partial bool           // it could not be put back: see [Former]
	// Ingress says that the old ingress qdisc stands where clsact, and with it
	// the classifier, has its place.
	Ingress bool
	Filters []Filter // at egress, in the order in which packets meet them
}

// Filter is one filter of somebody else at the egress hook.
type Filter struct {
	Kind string
	Pref uint32
	Name string // of a BPF program, as its user called it; else empty
	// Blocks says that it has the place that [Device.AttachEgress] needs.
	Blocks bool
	// First says that packets meet it before the program of AttachEgress, which
	// is there.
	First bool
}

const (
	tcaBPFName = 7

	clsact = "clsact"
)

// Others looks at an interface for what vifshape did not make. It needs no
// privileges.
func (d *Device) Others() (Others, error) {
	root, _, err := d.qdiscs()
	if err != nil {
		return Others{}, err
	}
	var o Others
	if r := root.Root(); r.Foreign() {
		f, err := d.describe(root)
		if err != nil {
			return o, err
		}
		o.Root, o.Partial = r, f.Partial
	}
	kind, err := d.clsact()
	if err != nil {
		return o, d.Fail("read qdiscs", err)
	}
	o.Ingress = kind != "" && kind != clsact
	if kind != clsact {
		return o, nil
	}
	err = d.EachFilter(egressParent, func(f *rtnl.Filter) error {
		// A preference is listed once by itself, with handle 0, and once for each
		// filter; u32 lists its tables as well.
		if f.Handle == 0 || f.Kind == "u32" && f.Handle&0xfff == 0 {
			return nil
		}
		if hooked(f) {
			for i := range o.Filters {
				o.Filters[i].First = true
			}
			return nil
		}
		x := Filter{Kind: f.Kind, Pref: f.Pref()}
		x.Blocks = x.Pref == hookPref && (f.Kind != "bpf" || f.Info&0xffff != allProtocols())
		err := rtnl.EachAttr(f.Options, func(typ uint16, v []byte) error {
			if f.Kind == "bpf" && typ == tcaBPFName {
				x.Name = rtnl.String(v)
			}
			return nil
		})
		o.Filters = append(o.Filters, x)
		return err
	})
	return o, d.Fail("read filters", err)
}
