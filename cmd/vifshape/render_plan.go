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
	Interface string     `json:"interface"`
	Steps     []stepJSON `json:"steps"`
	Drift     []stepJSON `json:"drift"` // from what was applied to what there is
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
		out.Interfaces = append(out.Interfaces, interfacePlanJSON{Interface: p.Device, Steps: stepsAsJSON(p), Drift: []stepJSON{}})
	}
	return out
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
	if p.Empty() {
		_, err := fmt.Fprintf(w, "%s: no changes\n", p.Device)
		return err
	}
	created, changed, deleted := p.Counts()
	fmt.Fprintf(w, "%s: %d to create, %d to change, %d to delete\n", p.Device, created, changed, deleted)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, s := range p.Steps {
		fmt.Fprintf(t, "  %s %s\n", s.Action.Symbol(), words.Step(s))
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
