package bpf

import (
	"encoding/binary"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
)

// ask runs a program of a hook with a packet, which goes nowhere, and says what it returned
// and left in skb->priority (BPF_PROG_TEST_RUN). Index is of the interface in the calling
// thread's network namespace, 0 where the program does not ask for it.
func ask(p *ebpf.Program, frame []byte, mark uint32, class hierarchy.ClassID, index uint32) (ret uint32, is hierarchy.ClassID, err error) {
	const atMark, atPriority, atIndex, size = 8, 32, 40, 192 // in struct __sk_buff
	in, out := make([]byte, size), make([]byte, size)
	binary.NativeEndian.PutUint32(in[atMark:], mark)
	binary.NativeEndian.PutUint32(in[atPriority:], uint32(class))
	binary.NativeEndian.PutUint32(in[atIndex:], index)
	if ret, err = p.Run(&ebpf.RunOptions{Data: frame, Context: in, ContextOut: out}); err != nil {
		return 0, 0, fmt.Errorf("run the program: %w", caps.Explain(err, unix.CAP_BPF, unix.CAP_NET_ADMIN))
	}
	return ret, hierarchy.ClassID(binary.NativeEndian.Uint32(out[atPriority:])), nil
}

// wire is a packet as Ethernet has it. Nobody looks at checksums.
func wire(p *match.Packet) []byte {
	b := append(append(make([]byte, 0, 128), p.ToMAC[:]...), p.FromMAC[:]...)
	if p.VLAN != 0 {
		b = binary.BigEndian.AppendUint16(append(b, 0x81, 0), uint16(p.VLAN))
	}
	const payload = 24 // from the ports on
	if p.From.Is4() {
		b = append(b, 0x08, 0x00, 0x45, byte(p.DSCP)<<2, 0, 20+payload, 0, 0, 0, 0, 64, byte(p.Proto), 0, 0)
	} else {
		b = append(b, 0x86, 0xdd, 0x60|byte(p.DSCP)>>2, byte(p.DSCP)<<6, 0, 0, 0, payload, byte(p.Proto), 64)
	}
	b = append(append(b, p.From.AsSlice()...), p.To.AsSlice()...)
	b = binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, p.SPort), p.DPort)
	return append(b, 0, payload, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
}

// Ask is the class that the program at the hook gives a packet that is sent and has a class.
// The packet goes nowhere.
func (x *Matches) Ask(p *match.Packet, class hierarchy.ClassID) (hierarchy.ClassID, error) {
	if err := x.refresh(); err != nil || x.on == nil { // without a program it stays
		return class, err
	}
	_, class, err := ask(x.on.prog, wire(p), p.Mark, class, 0)
	return class, err
}

// Asks says whether there is a program that tells received packets apart, and whether it
// looks for whoever would receive what answers to nothing.
func (r *Receiver) Asks() (there, looks bool, err error) {
	if err := r.refresh(); err != nil || r.on == nil || r.on.receive == nil {
		return false, false, err
	}
	return true, r.on.goes != 0, nil
}

// Ask is the class that the program at the hook gives a packet that an interface receives,
// which has the index in the calling thread's network namespace; 0: it does not send it to
// the tree. The packet goes nowhere, but the table of flows knows it as if it had come.
func (r *Receiver) Ask(p *match.Packet, index uint32) (hierarchy.ClassID, error) {
	if there, _, err := r.Asks(); err != nil || !there {
		return 0, err
	}
	const redirect, byAction = 7, ^uint32(0) // TC_ACT_REDIRECT, include/uapi/linux/pkt_cls.h; see vif_receive_old
	ret, class, err := ask(r.on.receive, wire(p), p.Mark, 0, index)
	if ret != redirect && ret != byAction {
		class = 0
	}
	return class, err
}
