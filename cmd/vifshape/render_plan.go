package main

import (
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc"
)

// planJSON is the stable form of a plan.
type planJSON struct {
	Interfaces []interfacePlanJSON `json:"interfaces"`
	Missing    []string            `json:"missing,omitempty"` // interfaces of the policy that are not there
}

type interfacePlanJSON struct {
	Interface string             `json:"interface"`
	Renames   []hierarchy.Rename `json:"renames"`
	Steps     []stepJSON         `json:"steps"`
	Drift     []stepJSON         `json:"drift"` // from what was applied to what there is
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
		out.Interfaces = append(out.Interfaces, interfacePlanJSON{Interface: p.Device, Renames: renamesAsJSON(p), Steps: stepsAsJSON(p), Drift: []stepJSON{}})
	}
	return out
}

func renamesAsJSON(p hierarchy.Plan) []hierarchy.Rename {
	return append([]hierarchy.Rename{}, p.Renames...)
}

func stepsAsJSON(p hierarchy.Plan) []stepJSON {
	steps := []stepJSON{}
	for _, s := range p.Steps {
		steps = append(steps, stepJSON{s.Action, objectName(s.Item()), s.Port.Direction == hierarchy.Receive, s.Old, s.New})
	}
	return steps
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
	case *hierarchy.Matched:
		return "matches"
	}
	return "binding"
}

// writePlan prints a plan as a diff: a sign, the thing, and what it becomes.
func writePlan(w io.Writer, p hierarchy.Plan) error {
	if p.Empty() && len(p.Renames) == 0 {
		_, err := fmt.Fprintf(w, "%s: no changes\n", p.Device)
		return err
	}
	created, changed, deleted := p.Counts()
	renamed := ""
	if n := len(p.Renames); n > 0 {
		renamed = fmt.Sprintf(", %d to rename", n)
	}
	fmt.Fprintf(w, "%s: %d to create, %d to change, %d to delete%s\n", p.Device, created, changed, deleted, renamed)
	return writeSteps(w, "  ", p)
}

// writeSteps prints what is in a plan, each line behind an indent.
func writeSteps(w io.Writer, indent string, p hierarchy.Plan) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range p.Renames {
		fmt.Fprintf(t, "%s%s name\t%s\t%v\twas %s\n", indent, hierarchy.Change.Symbol(), r.Path, r.ID, r.Was)
	}
	for _, s := range p.Steps {
		fmt.Fprintf(t, "%s%s %s\n", indent, s.Action.Symbol(), words.Step(s))
	}
	return t.Flush()
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
