//go:build linux

package tc

import (
	"fmt"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
)

// Commands are the commands of iproute2 that do on an interface what
// [Device.Do] does for a step, with the same flags and numbers. A step on the
// classifier or a binding, which tc cannot do, is a comment.
//
// What tc makes of them differs in bursts, which it counts in whole microseconds,
// and in the mark that we leave in netem's jitter to know its distribution again.
// In a change it cannot take cake's mpu, memlimit and fwmark back.
func Commands(device string, s hierarchy.Step) []string {
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
		change := fmt.Sprintf("tc qdisc change dev %s parent %v %s%s", device, i.Class, arguments(i.Qdisc), comment(i.Path))
		var lines []string
		switch {
		case s.Action == hierarchy.Delete:
			return []string{remove}
		case s.Action == hierarchy.Change && old != nil && InPlace(old.Qdisc, i.Qdisc):
			return []string{change}
		case s.Action == hierarchy.Change:
			lines = append(lines, remove)
		}
		lines = append(lines, fmt.Sprintf("tc qdisc replace dev %s parent %v handle %x: %s%s", device, i.Class, i.Class.Minor(), arguments(i.Qdisc), comment(i.Path)))
		if twice(i.Qdisc) {
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

// arguments are a queueing discipline as tc takes it.
func arguments(q hierarchy.Qdisc) string {
	w := []string{q.Kind}
	d := kindNamed(q.Kind)
	if d == nil {
		return q.Kind
	}
	for _, x := range q.Params {
		p := d.Param(x.Name)
		var own []string
		if d.words != nil {
			own = d.words(q, x)
		}
		switch {
		case p == nil:
		case own != nil:
			w = append(w, own...)
		case p.Type == hierarchy.Flag && x.Value == 0:
			if p.Negative != "" {
				w = append(w, p.Negative)
			}
		case p.Type == hierarchy.Flag:
			w = append(w, x.Name)
		case p.Type == hierarchy.Bytes:
			w = append(w, x.Name, fmt.Sprint(x.Value))
		case p.Type == hierarchy.Duration:
			w = append(w, x.Name, duration(x.Value))
		case p.Type == hierarchy.Numbers:
			w = append(append(w, x.Name), strings.Fields(p.Format(x.Value))...)
		default:
			w = append(w, x.Name, p.Format(x.Value))
		}
	}
	return strings.Join(w, " ")
}

// duration is a number of nanoseconds as tc takes it: most of its times are whole
// microseconds.
func duration(ns uint64) string {
	if ns%1000 == 0 {
		return fmt.Sprintf("%dus", ns/1000)
	}
	return fmt.Sprintf("%dns", ns)
}
