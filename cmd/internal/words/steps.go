package words

import (
	"fmt"
	"strings"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// Step is one line of the diff that a plan is, its columns separated by tabs.
func Step(s hierarchy.Step) string {
	if s.Port.Direction == hierarchy.Receive {
		return "ingress " + itemText(s)
	}
	return itemText(s)
}

func itemText(s hierarchy.Step) string {
	switch i := s.Item().(type) {
	case *hierarchy.Root:
		switch s.Action {
		case hierarchy.Delete:
			return fmt.Sprintf("root\t%s %v\t(with everything below it)", i.Kind, i.Handle)
		case hierarchy.Change:
			return fmt.Sprintf("root\t%s %v\treplaces %s", i.Kind, i.Handle, s.Old.(*hierarchy.Root).Kind)
		}
		return fmt.Sprintf("root\t%s %v", i.Kind, i.Handle)
	case *hierarchy.Class:
		head := fmt.Sprintf("class\t%s\t%v\t", Name(i.Path, i.ID), i.ID)
		switch s.Action {
		case hierarchy.Change:
			return head + classDiff(*s.Old.(*hierarchy.Class), *i)
		case hierarchy.Delete:
			return head + fmt.Sprintf("rate %v", i.Rate)
		}
		return head + classText(*i)
	case *hierarchy.Leaf:
		head := fmt.Sprintf("qdisc\t%s\t%v\t", Name(i.Path, i.Class), i.Class)
		if s.Action == hierarchy.Change {
			return head + qdiscDiff(s.Old.(*hierarchy.Leaf).Qdisc, i.Qdisc)
		}
		return head + qdisc.Text(i.Qdisc)
	case *hierarchy.Hook:
		if s.Action == hierarchy.Change {
			return fmt.Sprintf("hook\t%s\t\twas %s", hookText(i), hookText(s.Old.(*hierarchy.Hook)))
		}
		return "hook\t" + hookText(i)
	case *hierarchy.Bound:
		from := ""
		if i.From != "" && i.From != i.Target.String() {
			from = " (" + Printable(i.From) + ")"
		}
		target := TargetText(i.Target)
		if s.Action == hierarchy.Change {
			old := s.Old.(*hierarchy.Bound)
			if old.Class == i.Class {
				return fmt.Sprintf("bind\t%s\t%v\t%s%s, guarded against sockets past the queues again", Name(i.Path, i.Class), i.Class, target, from)
			}
			return fmt.Sprintf("bind\t%s\t%v\t%s%s, was %s", Name(i.Path, i.Class), i.Class, target, from, Name(old.Path, old.Class))
		}
		return fmt.Sprintf("bind\t%s\t%v\t%s%s", Name(i.Path, i.Class), i.Class, target, from)
	case *hierarchy.Matched:
		head := fmt.Sprintf("match\t%s\t%v\t", Name(i.Path, i.ID), i.ID)
		if s.Action == hierarchy.Delete {
			return strings.TrimSuffix(head, "\t")
		}
		return head + Matches(i.Match)
	}
	return s.String()
}

func hookText(h *hierarchy.Hook) string {
	s := fmt.Sprintf("%s (version %d)", h.Way, h.Version)
	if h.Receive != 0 {
		s += fmt.Sprintf(", also for what is received, room for %d flows", h.Flows)
	}
	if h.Match != 0 {
		s += ", with matches"
	}
	return s
}

// Claims are the bindings and matches of a branch, "-" where it has none.
func Claims(b *hierarchy.Branch) string {
	switch {
	case len(b.Match) == 0:
		return List(b.Bind)
	case len(b.Bind) == 0:
		return "match " + Matches(b.Match)
	}
	return List(b.Bind) + ", match " + Matches(b.Match)
}

// Matches are the matches of a branch in one line, the first few of many.
func Matches(all []match.Match) string {
	const few = 3
	var s []string
	for i, m := range all {
		if i == few && len(all) > few+1 {
			s = append(s, fmt.Sprintf("and %d more", len(all)-i))
			break
		}
		s = append(s, m.String())
	}
	return strings.Join(s, "  ")
}

// classText is what people set: the sizes that follow from it are in the JSON and
// tc forms.
func classText(c hierarchy.Class) string {
	s := fmt.Sprintf("rate %s  ceil %s", Short(c.Rate), Short(c.Ceil))
	if c.Quantum != 0 { // a leaf: HTB keeps neither for inner classes
		s += fmt.Sprintf("  prio %d", c.Prio)
	}
	if c.Link != (hierarchy.LinkLayer{}) {
		s += "  " + c.Link.String()
	}
	return s
}

// classDiff is every value that changes.
func classDiff(old, now hierarchy.Class) string {
	var s []string
	add := func(name string, old, now any) {
		if old != now {
			s = append(s, fmt.Sprintf("%s %v -> %v", name, old, now))
		}
	}
	rate := func(name string, old, now hierarchy.Bandwidth) {
		if Short(old) != Short(now) {
			add(name, Short(old), Short(now))
		} else {
			add(name, old, now)
		}
	}
	rate("rate", old.Rate, now.Rate)
	rate("ceil", old.Ceil, now.Ceil)
	add("prio", old.Prio, now.Prio)
	add("burst", old.Burst, now.Burst)
	add("cburst", old.CBurst, now.CBurst)
	add("quantum", old.Quantum, now.Quantum)
	add("overhead", old.Link.Overhead, now.Link.Overhead)
	add("mpu", old.Link.MPU, now.Link.MPU)
	add("atm", old.Link.ATM, now.Link.ATM)
	return strings.Join(s, "  ")
}

// dropped is said where a queue is made anew.
const dropped = " (packets waiting in it are dropped)"

// Past is a step that somebody has done, in one line.
func Past(s hierarchy.Step) string {
	text := strings.ReplaceAll(strings.TrimSuffix(Step(s), dropped), "\t", " ")
	return s.Action.Symbol() + " " + text
}

func qdiscDiff(old, now hierarchy.Qdisc) string {
	lost := ""
	if !qdisc.InPlace(old, now) {
		lost = dropped
	}
	if old.Kind != now.Kind {
		return fmt.Sprintf("%s -> %s%s", qdisc.Text(old), qdisc.Text(now), lost)
	}
	var s []string
	for _, p := range now.Params {
		if v, ok := old.Get(p.Name); !ok || v != p.Value {
			was := "default"
			if ok {
				was = qdisc.Value(old.Kind, p.Name, v)
			}
			s = append(s, fmt.Sprintf("%s %s -> %s", p.Name, was, qdisc.Value(now.Kind, p.Name, p.Value)))
		}
	}
	for _, p := range old.Params {
		if _, ok := now.Get(p.Name); !ok {
			s = append(s, fmt.Sprintf("%s %s -> default", p.Name, qdisc.Value(old.Kind, p.Name, p.Value)))
		}
	}
	return now.Kind + " " + strings.Join(s, "  ") + lost
}

// Name is a path, or the class id of one that has none because somebody else
// made it.
func Name(p hierarchy.Path, id hierarchy.ClassID) string {
	if p == "" {
		return id.String()
	}
	return string(p)
}
