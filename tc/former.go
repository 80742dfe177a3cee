//go:build linux

package tc

import (
	"fmt"
	"slices"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// Former is a root qdisc that somebody made, kept so that it can be put back. The
// zero value stands for the one that the kernel makes by itself.
type Former struct {
	Kind    string            `json:"kind,omitempty"`
	Handle  hierarchy.ClassID `json:"handle,omitempty"`
	Options []byte            `json:"options,omitempty"` // as the kernel shows them
	// Partial says that it had classes, qdiscs, filters or a size table of its
	// own, which are not kept. It cannot be put back.
	Partial bool `json:"partial,omitempty"`
}

// Former describes the root qdisc that stands there now, if it is foreign; else
// it is the zero value.
func (d *Device) Former() (Former, error) {
	root, err := d.Root()
	if err != nil || !root.Root().Foreign() {
		return Former{}, d.Fail("read qdiscs", err)
	}
	f, err := d.describe(root)
	if err != nil {
		return Former{}, err
	}
	return *f, nil
}

// describe is what can be kept of a foreign root qdisc.
func (d *Device) describe(root *rtnl.Qdisc) (*Former, error) {
	f := &Former{Kind: root.Kind, Handle: hierarchy.ClassID(root.Handle), Options: slices.Clone(root.Options), Partial: root.SizeTable}
	switch root.Kind {
	case "htb", "hfsc", "drr", "qfq", "atm", "cbq", "dsmark": // nothing without their classes
		f.Partial = true
		return f, nil
	}
	err := d.EachQdisc(func(q *rtnl.Qdisc) error {
		// Those without a handle are the kernel's and come back with their parent.
		if q.Handle != 0 && q.Parent != rtnl.RootParent && hierarchy.ClassID(q.Parent).Major() == f.Handle.Major() {
			f.Partial = true
		}
		return nil
	})
	if err == nil {
		err = d.EachFilter(root.Handle, func(*rtnl.Filter) error {
			f.Partial = true
			return nil
		})
	}
	return f, d.Fail("read root qdisc", err)
}

// Restore puts a former root qdisc in the place of ours, or of the kernel's, in
// one step: the interface goes on sending. It is refused for a Partial one, and
// where a foreign root qdisc stands now. The zero value removes ours.
func (d *Device) Restore(f Former) error {
	now, err := d.Root()
	if err != nil {
		return d.Fail("read qdiscs", err)
	}
	root := now.Root()
	switch {
	case root.Foreign():
		return fmt.Errorf("%s: root qdisc %s %v is %w", d.Name, root.Kind, root.Handle, rtnl.ErrForeign)
	case f.Partial:
		return fmt.Errorf("%s: the former root qdisc %s %v had classes, filters or qdiscs of its own: only who made it can put it back", d.Name, f.Kind, f.Handle)
	case f.Kind == "" && !root.Ours():
		return nil
	case f.Kind == "":
		return d.Fail("delete root qdisc", d.deleteRoot())
	}
	e := rtnl.Encoder{}
	e.TcMsg(rtnl.TcMsg{Index: d.Index, Handle: uint32(f.Handle), Parent: rtnl.RootParent})
	e.AttrString(unix.TCA_KIND, f.Kind)
	if f.Options != nil {
		e.Nest(unix.TCA_OPTIONS, func() { e.B = append(e.B, f.Options...) })
	}
	_, err = d.Conn.Send([]netlink.Message{rtnl.Message(unix.RTM_NEWQDISC, netlink.Create|netlink.Replace, e.B)})
	if err != nil {
		e := rtnl.NewOpError("put back root qdisc "+f.Kind, d.Name, err)
		e.Class = f.Handle
		return e
	}
	d.former = nil
	return nil
}
