//go:build linux

package hook

import (
	"errors"
	"os"
	"strings"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/rtnl"
)

// Lacks says which of the given kinds of classifiers ("bpf", "cgroup") this
// kernel has not. It makes a clsact qdisc on the interface, where none may stand,
// and leaves it: it is for a network namespace that was made to be asked in. Asking
// loads modules. Needs CAP_NET_ADMIN; without clsact the error is [rtnl.ErrNotSupported].
func (h *Hooks) Lacks(kinds ...string) (lacking []string, err error) {
	if err := h.on.Conn.TC().Qdisc().Add(h.clsactObject()); err != nil {
		return nil, h.on.Fail("create clsact qdisc", err)
	}
	for i, kind := range kinds {
		e := rtnl.Encoder{}
		e.TcMsg(rtnl.TcMsg{Index: h.on.Index, Parent: rtnl.EgressParent, Info: uint32(i+1)<<16 | allProtocols()})
		e.AttrString(unix.TCA_KIND, kind)
		_, err := h.on.Conn.Send([]netlink.Message{rtnl.Message(unix.RTM_NEWTFILTER, netlink.Create|netlink.Excl, e.B)})
		// The kind is looked up first (tcf_proto_lookup_ops, net/sched/cls_api.c,
		// v5.4 to v6.18); what else is wrong, and without options much is, comes
		// after it.
		switch e := rtnl.NewOpError("look for filter "+kind, h.on.Name, err); {
		case err == nil:
		case errors.Is(e, rtnl.ErrNotSupported):
			lacking = append(lacking, kind)
		case errors.Is(e, rtnl.ErrNotPrivileged), errors.Is(e, rtnl.ErrGone):
			return nil, e
		}
	}
	return lacking, nil
}

// HasRedirect says whether this kernel has the action that [Hooks.AttachReceive] gives a
// program that does not redirect packets by itself. Asking loads its module. Needs
// CAP_NET_ADMIN.
func HasRedirect(c *rtnl.Conn) (bool, error) {
	e := rtnl.Encoder{B: make([]byte, 4)} // struct tcamsg of linux/rtnetlink.h
	e.Nest(1, func() {                    // TCA_ACT_TAB, and the first action there
		e.Nest(1, func() { e.AttrString(1, "mirred") }) // TCA_ACT_KIND
	})
	_, err := c.Send([]netlink.Message{rtnl.Message(unix.RTM_NEWACTION, netlink.Create|netlink.Excl, e.B)})
	// The kind is looked up first (tc_action_load_ops, net/sched/act_api.c, v5.10 to
	// v6.18); that it has no options comes after it (tcf_mirred_init,
	// net/sched/act_mirred.c, v5.10 to v6.18).
	switch rtnl.Errno(err) {
	case unix.EINVAL:
		return true, nil
	case unix.ENOENT:
		return false, nil
	}
	if err == nil {
		err = errors.New("the kernel took what it should have refused")
	}
	return false, rtnl.Fail("look for action mirred", "", err)
}

// HasBPF says whether this kernel has the classifier that [Hooks.AttachEgress]
// uses, as far as the lists of its modules and functions tell: it can be asked for
// only where it is used. A no proves nothing where known is false.
func HasBPF() (has, known bool) {
	if has, known = rtnl.HasModule("cls_bpf"); has {
		return true, true
	}
	// Part of the kernel itself; what is in neither list cannot be loaded.
	b, err := os.ReadFile("/proc/kallsyms")
	return err == nil && strings.Contains(string(b), " cls_bpf_classify"), known
}
