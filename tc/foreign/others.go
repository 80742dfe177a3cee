//go:build linux

package foreign

import (
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/hook"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Others is what somebody else has on an interface that concerns a tree there.
type Others struct {
	Root    hierarchy.Root // foreign root qdisc; the zero value: none
	Partial bool           // it could not be put back: see [Former]
	// Ingress says that the old ingress qdisc stands where clsact, and with it
	// the classifier, has its place.
	Ingress bool
	Filters []hook.Filter // at egress, in the order in which packets meet them
	Arrive  []hook.Filter // at ingress, likewise
}

// Look looks at an interface for what vifshape did not make. It needs no privileges.
func Look(i rtnl.Interface) (Others, error) {
	root, err := i.Root()
	if err != nil {
		return Others{}, i.Fail("read qdiscs", err)
	}
	var o Others
	if r := root.Root(); r.Foreign() {
		f, err := Describe(i, root)
		if err != nil {
			return o, err
		}
		o.Root, o.Partial = r, f.Partial
	}
	o.Ingress, o.Filters, o.Arrive, err = hook.Of(i).Others()
	return o, err
}
