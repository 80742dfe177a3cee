//go:build linux

package tc

import (
	"fmt"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// Commands are the commands of iproute2 that do on an interface what [Device.Do] and
// [Receiver.Do] do for a step, with the same flags and numbers. A step on the
// classifier or a binding, which tc cannot do, is a comment. An IFB made so has the name
// that ours has where nobody else has that, and no address by which it would be ours.
//
// What tc makes of them differs in bursts, which it counts in whole microseconds,
// and in the mark that we leave in netem's jitter to know its distribution again.
// In a change it cannot take cake's mpu, memlimit and fwmark back.
func Commands(device string, s hierarchy.Step) []string {
	var before []string
	if s.Port.Direction == hierarchy.Receive {
		device = link.IFBName(device, 0)
		if _, root := s.Item().(*hierarchy.Root); root && s.Action == hierarchy.Delete {
			return []string{"ip link delete dev " + device}
		} else if root {
			before = append(before, fmt.Sprintf("ip link add name %s numtxqueues 1 numrxqueues 1 txqueuelen %d type ifb && ip link set dev %[1]s up", device, link.IFBQueueLen))
		}
	}
	return append(before, commands(device, s)...)
}

func commands(device string, s hierarchy.Step) []string {
	one := func(format string, args ...any) []string { return []string{fmt.Sprintf(format, args...)} }
	switch i := s.Item().(type) {
	case *hierarchy.Root:
		verb := "add"
		switch s.Action {
		case hierarchy.Delete:
			return one("tc qdisc delete dev %s root handle %v htb", device, i.Handle)
		case hierarchy.Change:
			verb = "replace"
		}
		return one("tc qdisc %s dev %s root handle %v htb default %x r2q %d direct_qlen %d", verb, device, i.Handle, hierarchy.RestMinor, r2q, directQueue)
	case *hierarchy.Class:
		verb := "add"
		switch s.Action {
		case hierarchy.Delete:
			return one("tc class delete dev %s classid %v%s", device, i.ID, comment(i.Path))
		case hierarchy.Change:
			verb = "change"
		}
		parent := "root"
		if i.Parent.Minor() != 0 {
			parent = "parent " + i.Parent.String()
		}
		quantum := i.Quantum
		if quantum == 0 {
			quantum = innerQuantum
		}
		link := ""
		if i.Link != (hierarchy.LinkLayer{}) {
			link = " " + i.Link.String()
		}
		return one("tc class %s dev %s %s classid %v htb rate %v ceil %v burst %db cburst %db quantum %d prio %d%s%s",
			verb, device, parent, i.ID, i.Rate, i.Ceil, i.Burst, i.CBurst, quantum, i.Prio, link, comment(i.Path))
	case *hierarchy.Leaf:
		remove := fmt.Sprintf("tc qdisc delete dev %s parent %v%s", device, i.Class, comment(i.Path))
		old, _ := s.Old.(*hierarchy.Leaf)
		change := fmt.Sprintf("tc qdisc change dev %s parent %v %s%s", device, i.Class, qdisc.Arguments(i.Qdisc), comment(i.Path))
		var lines []string
		switch {
		case s.Action == hierarchy.Delete:
			return []string{remove}
		case s.Action == hierarchy.Change && old != nil && qdisc.InPlace(old.Qdisc, i.Qdisc):
			return []string{change}
		case s.Action == hierarchy.Change:
			lines = append(lines, remove)
		}
		lines = append(lines, fmt.Sprintf("tc qdisc replace dev %s parent %v handle %x: %s%s", device, i.Class, i.Class.Minor(), qdisc.Arguments(i.Qdisc), comment(i.Path)))
		if qdisc.Twice(i.Qdisc) {
			lines = append(lines, change)
		}
		return lines
	}
	return []string{"# " + s.String()}
}

// comment names the branch behind a command.
func comment(p hierarchy.Path) string {
	if p == "" {
		return ""
	}
	return " # " + string(p)
}
