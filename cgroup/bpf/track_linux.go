package bpf

import (
	"fmt"

	"github.com/cilium/ebpf/asm"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// Tracks says why the kernel does not tell programs what an address was before its translation,
// nil when it does. It changes nothing. A kernel whose connection tracking is a module that is
// not loaded does not, and translates nothing either.
func Tracks() error {
	m, err := loadTracking(&tables{}, true)
	if err != nil {
		return fmt.Errorf("it takes Linux 5.18 or later with BTF and nf_conntrack: %w: %w", caps.ErrNotSupported, err)
	}
	return m.close()
}

// behind says that rules in force ask for addresses before translation, and the programs do
// not see those, although the kernel would tell them by now.
func (m *matches) behind() (bool, error) {
	var c matchVifMatching
	if err := m.config.Lookup(uint32(0), &c); err != nil {
		return false, err
	}
	return c.Hosts != 0 && c.Tracks == 0 && Tracks() == nil, nil
}

// untracked takes the function of bpf/match.h that asks connection tracking out of a program. A
// kernel without BTF does not even take one that is given the packet (btf_get_prog_ctx_type,
// kernel/bpf/btf.c, v6.1).
func untracked(insns asm.Instructions) (left asm.Instructions) {
	const function = "vif_before"
	inside := false
	for _, x := range insns {
		if name := x.Symbol(); name != "" {
			inside = name == function
		}
		switch {
		case inside:
		case x.IsFunctionCall() && x.Reference() == function:
			left = append(left, asm.Mov.Imm(asm.R0, 0).WithSource(x.Source()))
		default:
			left = append(left, x)
		}
	}
	return left
}

// askConntrack has the kernel load the module of connection tracking, where it is one: it loads
// what answers to a question (nfnetlink_rcv_msg, net/netfilter/nfnetlink.c, v6.12). Nothing is
// tracked for that. Whether it worked shows when programs are loaded.
func askConntrack() {
	const stats = 4 // IPCTNL_MSG_CT_GET_STATS_CPU
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Execute(netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | stats), Flags: netlink.Request | netlink.Dump},
		Data:   []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0},
	})
}
