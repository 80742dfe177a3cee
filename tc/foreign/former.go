//go:build linux

package foreign

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

// Root describes the root qdisc that stands there now, if it is foreign; else it is
// the zero value.
func Root(i rtnl.Interface) (Former, error) {
	root, err := i.Root()
	if err != nil || !root.Root().Foreign() {
		return Former{}, i.Fail("read qdiscs", err)
	}
	return Describe(i, root)
}

// Describe is what can be kept of a foreign root qdisc.
func Describe(i rtnl.Interface, root *rtnl.Qdisc) (Former, error) {
	f := Former{Kind: root.Kind, Handle: hierarchy.ClassID(root.Handle), Options: slices.Clone(root.Options), Partial: root.SizeTable}
	switch root.Kind {
	case "htb", "hfsc", "drr", "qfq", "atm", "cbq", "dsmark": // nothing without their classes
		f.Partial = true
		return f, nil
	}
	err := i.EachQdisc(func(q *rtnl.Qdisc) error {
		// Those without a handle are the kernel's and come back with their parent.
		if q.Handle != 0 && q.Parent != rtnl.RootParent && hierarchy.ClassID(q.Parent).Major() == f.Handle.Major() {
			f.Partial = true
		}
		return nil
	})
	if err == nil {
		err = i.EachFilter(root.Handle, func(*rtnl.Filter) error {
			f.Partial = true
			return nil
		})
	}
	return f, i.Fail("read root qdisc", err)
}

// Restore puts a former root qdisc in the place of ours, or of the kernel's, in
// one step: the interface goes on sending. It is refused for a Partial one, and
// where a foreign root qdisc stands now. The zero value removes ours.
func Restore(i rtnl.Interface, f Former) error {
	now, err := i.Root()
	if err != nil {
		return i.Fail("read qdiscs", err)
	}
	root := now.Root()
	switch {
	case root.Foreign():
		return fmt.Errorf("%s: root qdisc %s %v is %w", i.Name, root.Kind, root.Handle, rtnl.ErrForeign)
	case f.Partial:
		return fmt.Errorf("%s: the former root qdisc %s %v had classes, filters or qdiscs of its own: only who made it can put it back", i.Name, f.Kind, f.Handle)
	case f.Kind == "" && !root.Ours():
		return nil
	case f.Kind == "":
		return i.Fail("delete root qdisc", i.DeleteQdisc(uint32(hierarchy.ID(0)), rtnl.RootParent))
	}
	e := rtnl.Encoder{}
	e.TcMsg(rtnl.TcMsg{Index: i.Index, Handle: uint32(f.Handle), Parent: rtnl.RootParent})
	e.AttrString(unix.TCA_KIND, f.Kind)
	if f.Options != nil {
		e.Nest(unix.TCA_OPTIONS, func() { e.B = append(e.B, f.Options...) })
	}
	_, err = i.Conn.Send([]netlink.Message{rtnl.Message(unix.RTM_NEWQDISC, netlink.Create|netlink.Replace, e.B)})
	if err != nil {
		e := rtnl.NewOpError("put back root qdisc "+f.Kind, i.Name, err)
		e.Class = f.Handle
		return e
	}
	return nil
}
