package main

import (
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/vifshape/vifshape/hierarchy"
)

// writeTC prints a plan as the commands of iproute2 that do the same. What tc
// cannot do, the bindings, is printed as comments.
func writeTC(w io.Writer, p hierarchy.Plan, kinds kindTable) error {
	for _, s := range p.Steps {
		if _, err := fmt.Fprintln(w, tcCommand(p.Interface, s, kinds)); err != nil {
			return err
		}
	}
	return nil
}

func tcCommand(dev string, s hierarchy.Step, kinds kindTable) string {
	verb := map[hierarchy.Action]string{hierarchy.Create: "add", hierarchy.Change: "change", hierarchy.Delete: "delete"}[s.Action]
	switch i := s.Item().(type) {
	case *hierarchy.Root:
		switch s.Action {
		case hierarchy.Delete:
			return fmt.Sprintf("tc qdisc delete dev %s root handle %v htb", dev, i.Handle)
		case hierarchy.Change:
			verb = "replace"
		}
		return fmt.Sprintf("tc qdisc %s dev %s root handle %v htb default %x", verb, dev, i.Handle, hierarchy.RestMinor)
	case *hierarchy.Class:
		if s.Action == hierarchy.Delete {
			return fmt.Sprintf("tc class delete dev %s classid %v # %s", dev, i.ID, i.Path)
		}
		return fmt.Sprintf("tc class %s dev %s parent %v classid %v htb rate %v ceil %v burst %db cburst %db quantum %d prio %d%s # %s",
			verb, dev, i.Parent, i.ID, i.Rate, i.Ceil, i.Burst, i.CBurst, i.Quantum, i.Prio, tcLink(i.Link), i.Path)
	case *hierarchy.Leaf:
		if s.Action == hierarchy.Change {
			verb = "replace"
		}
		return fmt.Sprintf("tc qdisc %s dev %s parent %v handle %x: %s # %s", verb, dev, i.Class, i.Class.Minor(), tcQdisc(i.Qdisc, kinds), i.Path)
	}
	return "# " + s.String()
}

func tcLink(l hierarchy.LinkLayer) string {
	s := ""
	if l.Overhead != 0 {
		s += fmt.Sprintf(" overhead %d", l.Overhead)
	}
	if l.MPU != 0 {
		s += fmt.Sprintf(" mpu %d", l.MPU)
	}
	if l.ATM {
		s += " linklayer atm"
	}
	return s
}

func tcQdisc(q hierarchy.Qdisc, kinds kindTable) string {
	words := []string{q.Kind}
	k := kinds[q.Kind]
	for _, x := range q.Params {
		p := k.Param(x.Name)
		switch {
		case p == nil:
		case p.Type == hierarchy.Flag && x.Value == 0:
			if p.Negative != "" {
				words = append(words, p.Negative)
			}
		case p.Type == hierarchy.Flag:
			words = append(words, x.Name)
		case p.Type == hierarchy.Bytes:
			words = append(words, x.Name, fmt.Sprint(x.Value))
		case p.Type == hierarchy.Duration:
			words = append(words, x.Name, fmt.Sprintf("%dus", time.Duration(x.Value).Microseconds()))
		default:
			words = append(words, x.Name, p.Format(x.Value))
		}
	}
	return strings.Join(words, " ")
}
