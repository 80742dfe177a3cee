package main

import (
	"cmp"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/vifshape/vifshape/cgroup/escape"
	"github.com/vifshape/vifshape/cmd/internal/trial"
	"github.com/vifshape/vifshape/hierarchy"
)

// writeEscapes prints the tables of one way of binding, one for each direction: a line for
// each attempt, a column for each level and user.
func writeEscapes(w io.Writer, x *trial.Escapes, verbose bool) {
	if len(x.Results) == 0 {
		fmt.Fprintf(w, "Binding %s: not tried: %s\n\n", x.Binding, cmp.Or(x.Lacks, x.Sends))
		return
	}
	for d, what := range []string{hierarchy.Send: "what is sent", hierarchy.Receive: "what is received"} {
		if r := x.In(hierarchy.Direction(d)); len(r) > 0 {
			fmt.Fprintf(w, "Binding %s, way %s, %s:\n\n", x.Binding, x.Way, what)
			writeAttempts(w, r, verbose)
		}
	}
	if x.Sends != "" {
		fmt.Fprintf(w, "What is received was not tried: %s\n", x.Sends)
	}
	if x.Lacks != "" {
		fmt.Fprintf(w, "Level lock was not tried: %s\n", x.Lacks)
	}
}

func writeAttempts(w io.Writer, results []trial.EscapeResult, verbose bool) {
	columns, of := trial.ByCase(results)
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprint(t, "ATTEMPT")
	for _, c := range columns {
		fmt.Fprintf(t, "\t%s", strings.ToUpper(fmt.Sprintf("%s %s", c.Level, c.User)))
	}
	fmt.Fprintln(t, "\t")
	family := ""
	for _, a := range escape.Attempts() {
		if of[a.Name] == nil {
			continue
		}
		if a.Family != family {
			family = a.Family
			fmt.Fprintf(t, "%s:%s\n", family, strings.Repeat("\t", len(columns)+1))
		}
		fmt.Fprintf(t, "  %s", a.Name)
		for _, c := range columns {
			fmt.Fprintf(t, "\t%s", of[a.Name][c].Verdict)
		}
		fmt.Fprintf(t, "\t%s\n", a.Text)
	}
	// what it is written to has been checked by run
	_ = t.Flush()
	fmt.Fprintln(w)
	for _, r := range results {
		if r.Verdict.Bad() || verbose && r.Reason != "" {
			fmt.Fprintf(w, "%s (%s %s): %s: %s\n", r.Attempt, r.Level, r.User, r.Verdict, r.Reason)
		}
	}
	for _, why := range trial.Reasons(results) {
		fmt.Fprintln(w, why)
	}
	fmt.Fprintf(w, "%s\n\n", trial.Sum(results))
}
