package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// planJSON is the stable form of a plan.
type planJSON struct {
	Interfaces []interfacePlanJSON `json:"interfaces"`
	Missing    []string            `json:"missing,omitempty"` // interfaces of the policy that are not there
}

type interfacePlanJSON struct {
	Interface string     `json:"interface"`
	Steps     []stepJSON `json:"steps"`
}

type stepJSON struct {
	Action   hierarchy.Action `json:"action"`
	Object   string           `json:"object"`             // root, class, qdisc, classifier or binding
	Receives bool             `json:"receives,omitempty"` // it is of the tree for what the interface receives
	Old      hierarchy.Item   `json:"old,omitempty"`
	New      hierarchy.Item   `json:"new,omitempty"`
}

func planAsJSON(plans []hierarchy.Plan) planJSON {
	out := planJSON{Interfaces: []interfacePlanJSON{}}
	for _, p := range plans {
		x := interfacePlanJSON{Interface: p.Device, Steps: []stepJSON{}}
		for _, s := range p.Steps {
			x.Steps = append(x.Steps, stepJSON{s.Action, objectName(s.Item()), s.Port.Direction == hierarchy.Receive, s.Old, s.New})
		}
		out.Interfaces = append(out.Interfaces, x)
	}
	return out
}

func objectName(i hierarchy.Item) string {
	switch i.(type) {
	case *hierarchy.Root:
		return "root"
	case *hierarchy.Class:
		return "class"
	case *hierarchy.Leaf:
		return "qdisc"
	case *hierarchy.Hook:
		return "classifier"
	}
	return "binding"
}

// writePlan prints a plan as a diff: a sign, the thing, and what it becomes.
func writePlan(w io.Writer, p hierarchy.Plan) error {
	if p.Empty() {
		_, err := fmt.Fprintf(w, "%s: no changes\n", p.Device)
		return err
	}
	var n [4]int
	for _, s := range p.Steps {
		n[s.Action]++
	}
	fmt.Fprintf(w, "%s: %d to create, %d to change, %d to delete\n", p.Device, n[hierarchy.Create], n[hierarchy.Change], n[hierarchy.Delete])
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range p.Steps {
		fmt.Fprintf(t, "  %s %s\n", s.Action.Symbol(), stepText(s))
	}
	return t.Flush()
}

// stepText is one line of the diff, its columns separated by tabs.
func stepText(s hierarchy.Step) string {
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
		head := fmt.Sprintf("class\t%s\t%v\t", shaper.Name(i.Path, i.ID), i.ID)
		switch s.Action {
		case hierarchy.Change:
			return head + classDiff(*s.Old.(*hierarchy.Class), *i)
		case hierarchy.Delete:
			return head + fmt.Sprintf("rate %v", i.Rate)
		}
		return head + classText(*i)
	case *hierarchy.Leaf:
		head := fmt.Sprintf("qdisc\t%s\t%v\t", shaper.Name(i.Path, i.Class), i.Class)
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
			from = " (" + words.Printable(i.From) + ")"
		}
		target := words.TargetText(i.Target)
		if s.Action == hierarchy.Change {
			old := s.Old.(*hierarchy.Bound)
			if old.Class == i.Class {
				return fmt.Sprintf("bind\t%s\t%v\t%s%s, guarded against sockets past the queues again", shaper.Name(i.Path, i.Class), i.Class, target, from)
			}
			return fmt.Sprintf("bind\t%s\t%v\t%s%s, was %s", shaper.Name(i.Path, i.Class), i.Class, target, from, shaper.Name(old.Path, old.Class))
		}
		return fmt.Sprintf("bind\t%s\t%v\t%s%s", shaper.Name(i.Path, i.Class), i.Class, target, from)
	}
	return s.String()
}

func hookText(h *hierarchy.Hook) string {
	s := fmt.Sprintf("%s (version %d)", h.Way, h.Version)
	if h.Receive != 0 {
		s += ", also for what is received"
	}
	return s
}

// classText is what people set: the sizes that follow from it are in the JSON and
// tc forms.
func classText(c hierarchy.Class) string {
	s := fmt.Sprintf("rate %s  ceil %s", words.Short(c.Rate), words.Short(c.Ceil))
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
		if words.Short(old) != words.Short(now) {
			add(name, words.Short(old), words.Short(now))
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

func qdiscDiff(old, now hierarchy.Qdisc) string {
	lost := ""
	if !qdisc.InPlace(old, now) {
		lost = " (packets waiting in it are dropped)"
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

// writeTC prints a plan as the commands of iproute2 that do the same. What tc
// cannot do, the bindings, is printed as comments.
func writeTC(w io.Writer, p hierarchy.Plan) error {
	for _, s := range p.Steps {
		for _, c := range tc.Commands(p.Device, s) {
			if _, err := fmt.Fprintln(w, c); err != nil {
				return err
			}
		}
	}
	return nil
}
