package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/vifshape/vifshape/cgroup/escape"
	"github.com/vifshape/vifshape/cmd/internal/trial"
)

// writeEscapes prints the table of one way of binding: a line for each attempt, a
// column for each level and user.
func writeEscapes(w io.Writer, x *trial.Escapes, verbose bool) {
	if len(x.Results) == 0 {
		fmt.Fprintf(w, "Binding %s: not tried: %s\n\n", x.Binding, x.Lacks)
		return
	}
	var columns []escape.Case
	of := map[string]map[escape.Case]trial.EscapeResult{}
	counted := map[escape.Verdict]int{}
	for _, r := range x.Results {
		if !slices.Contains(columns, r.Case) {
			columns = append(columns, r.Case)
		}
		if of[r.Attempt] == nil {
			of[r.Attempt] = map[escape.Case]trial.EscapeResult{}
		}
		of[r.Attempt][r.Case] = r
		counted[r.Verdict]++
	}
	fmt.Fprintf(w, "Binding %s, way %s:\n\n", x.Binding, x.Way)
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
	if x.Lacks != "" {
		fmt.Fprintf(w, "Level lock was not tried: %s\n", x.Lacks)
	}
	for _, r := range x.Results {
		if r.Verdict.Bad() || verbose && r.Reason != "" {
			fmt.Fprintf(w, "%s (%s %s): %s: %s\n", r.Attempt, r.Level, r.User, r.Verdict, r.Reason)
		}
	}
	for _, why := range x.Reasons() {
		fmt.Fprintln(w, why)
	}
	var sum []string
	for _, v := range escape.Verdicts {
		if n := counted[v]; n > 0 {
			sum = append(sum, fmt.Sprintf("%d %s", n, v))
		}
	}
	fmt.Fprintf(w, "%d attempts: %s\n\n", len(x.Results), strings.Join(sum, ", "))
}
