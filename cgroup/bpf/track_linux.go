package bpf

import (
	"fmt"
	"maps"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
)

// Tracks says why the kernel does not tell programs what an address was before its translation,
// nil when it does. It changes nothing. A kernel whose connection tracking is a module that is
// not loaded does not, and translates nothing either.
//
// The kernel is given the function that asks alone, which it looks at by itself in any case
// (do_check_subprogs, kernel/bpf/verifier.c, v6.12): with the whole program it takes eight times
// as long.
func Tracks() error {
	spec, err := loadMatch()
	if err != nil {
		return err
	}
	p := spec.Programs[matchProgVifMatch]
	_, function := apart(p.Instructions)
	first := asm.Mov.Reg(asm.R1, asm.R1)
	first.Metadata = p.Instructions[0].Metadata // that it is the program's
	p.Instructions = append(asm.Instructions{first, asm.Call.Label(asksConntrack), asm.Return()}, function...)
	used := p.Instructions.ReferenceOffsets()
	maps.DeleteFunc(spec.Maps, func(name string, _ *ebpf.MapSpec) bool { return used[name] == nil })
	clear(spec.Variables)
	c, err := ebpf.NewCollection(spec)
	if err != nil {
		return fmt.Errorf("it takes Linux 5.18 or later with BTF and nf_conntrack: %w: %w", caps.ErrNotSupported, err)
	}
	c.Close()
	return nil
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
func untracked(insns asm.Instructions) asm.Instructions {
	left, _ := apart(insns)
	for i, x := range left {
		if x.IsFunctionCall() && x.Reference() == asksConntrack {
			left[i] = asm.Mov.Imm(asm.R0, 0).WithSource(x.Source())
		}
	}
	return left
}

// asksConntrack is the function.
const asksConntrack = "vif_before"

// apart are the instructions of a program without that function, and those of it.
func apart(insns asm.Instructions) (without, function asm.Instructions) {
	inside := false
	for _, x := range insns {
		if name := x.Symbol(); name != "" {
			inside = name == asksConntrack
		}
		if inside {
			function = append(function, x)
		} else {
			without = append(without, x)
		}
	}
	return without, function
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
