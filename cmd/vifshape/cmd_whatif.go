package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
)

type whatIfOptions struct {
	demand []string
	json   bool
}

// demandNow stands for the demands that are measured.
const demandNow = "now"

func newWhatIfCommand(e *env) *cobra.Command {
	var o whatIfOptions
	c := &cobra.Command{
		Use:   "what-if FILE",
		Short: "Say what every branch would get by a policy, beside what it gets now",
		Long: `What-if takes what branches demand, and prints what each gets of it by the policy in
force, with what was added and limited at run time, and what it would get by the one in
FILE ("-": standard input): the ideal allocation, which HTB mostly meets within a few parts
in a hundred. It changes nothing and needs no privileges.

  vifshape what-if new.toml
  vifshape what-if new.toml --demand eth0/web=80mbit,eth0/mail=5mbit,eth0/backup
  vifshape what-if new.toml --demand eth0/web=20%/max

A demand is BRANCH=AMOUNT: a bandwidth, a percentage of the interface's rate in FILE, 0,
or max, which is as much as it gets and what a branch without an amount demands. One
amount is for both directions, SEND/RECEIVE are two. What no demand names wants nothing.
A branch is called as in FILE or, where that has no such leaf, as now, and has none below
it: only leaves demand something. The interface need not be there; where no policy is in
force, or not all of one, it is said why, and the table has FILE's column alone.

"now", the default, is what is measured for a second: what each leaf lets through. One
in which packets wait at the beginning and at the end, or are dropped meanwhile, demands
more than that, and counts as max: how much more, nobody knows. Queues of the kinds netem,
fq and tbf, and cake with a bandwidth, hold packets back by themselves, and demand what
they let through. Interfaces and directions that are not shaped now are left out.

A branch in only one of the two policies has no column in the other, in which its demand
is that of the rest of the nearest branch above it; of one that is divided there, of its
own rest. One that FILE renames is the same branch. DEMAND, RATE and CEIL are those of
both, as in 20mbit -> 30mbit, where they differ.

EXIT STATUS
  0    done
  1    an error, or there is no such branch
  64   wrong flags or arguments
  130  interrupted`,
		Args: args(1, 1, "one policy file"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			return e.whatIf(c.Context(), a[0], o)
		}),
	}
	c.Flags().StringSliceVar(&o.demand, "demand", []string{demandNow}, "what branches demand, as `BRANCH=AMOUNT,...`; may be repeated; now: what is measured")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return c
}

// whatIfJSON is the stable form of what-if.
type whatIfJSON struct {
	Forecasts []*observe.Forecast `json:"forecasts"`
}

func (e *env) whatIf(ctx context.Context, file string, o whatIfOptions) error {
	demands, err := parseDemands(o.demand)
	if err != nil {
		return err
	}
	p, err := shaper.ReadPolicy(file)
	if err != nil {
		return err
	}
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	m.TellUnconfirmed()
	all, err := observe.WhatIf(ctx, m, p, demands, time.Second)
	if err != nil {
		return err
	}
	if o.json {
		return e.json(whatIfJSON{all})
	}
	for i, f := range all {
		if i > 0 {
			e.printf("\n")
		}
		if err := e.writeForecast(f, file); err != nil {
			return err
		}
	}
	return nil
}

// parseDemands reads what branches demand; none: what is measured.
func parseDemands(list []string) ([]observe.Demand, error) {
	if slices.Equal(list, []string{demandNow}) {
		return nil, nil
	}
	var all []observe.Demand
	for _, text := range list {
		if text == demandNow {
			return nil, usagef("--demand now is what all branches demand: write it alone, or leave it out")
		}
		branch, amount := text, "max"
		if i := strings.LastIndexByte(text, '='); i >= 0 {
			branch, amount = text[:i], text[i+1:]
		}
		d, err := parseDemand(branch, amount)
		if err != nil {
			return nil, err
		}
		if slices.ContainsFunc(all, func(x observe.Demand) bool { return x.Path == d.Path }) {
			return nil, usagef("--demand names %s twice: write its sum, and as SEND/RECEIVE what differs by direction", d.Path)
		}
		all = append(all, d)
	}
	if len(all) == 0 {
		return nil, usagef("--demand names no branch: write one, as in --demand eth0/web=80mbit, or leave it out")
	}
	return all, nil
}

func parseDemand(branch, amount string) (d observe.Demand, err error) {
	if d.Path, err = parsePath(branch); err != nil {
		return d, err
	}
	want, err := parseWant(amount)
	d.Want = [2]observe.Want{want, want}
	for i := range len(amount) {
		if err == nil {
			return d, nil
		}
		if amount[i] != '/' { // units have one, too: 5MB/s/10MB/s
			continue
		}
		if send, wrong := parseWant(amount[:i]); wrong == nil {
			d.Want[hierarchy.Send] = send
			d.Want[hierarchy.Receive], err = parseWant(amount[i+1:])
		}
	}
	if err != nil {
		err = usagef("--demand %s=%s: %w", branch, amount, err)
	}
	return d, err
}

func parseWant(amount string) (w observe.Want, err error) {
	switch amount {
	case "max":
		w.Unlimited = true
	case "0":
	default:
		w.Amount, err = hierarchy.ParseAmount(amount)
	}
	return w, err
}

// writeForecast prints what the branches of one port get as a table. A policy that does not
// shape it has no column.
func (e *env) writeForecast(f *observe.Forecast, file string) error {
	line := f.Branches[0]
	now, would := line.Now != nil, line.Would != nil
	by := func(shapes bool, policy string) string {
		if !shapes {
			return "nothing"
		}
		return words.Printable(policy)
	}
	verb := "sends"
	if f.Direction == hierarchy.Receive {
		verb = "receives"
	}
	e.printf("what %s %s: ", f.Interface, verb)
	if f.Policy != "" {
		e.printf("now by %s, then ", by(now, f.Policy))
	}
	e.printf("by %s\n", by(would, file))
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	row := func(cells []string, gets, wouldGet, difference string) {
		if now {
			cells = append(cells, gets)
		}
		if would {
			cells = append(cells, wouldGet)
		}
		if now && would {
			cells = append(cells, difference)
		}
		fmt.Fprintln(t, strings.Join(cells, "\t"))
	}
	row([]string{"BRANCH", "RATE", "CEIL", "DEMAND"}, "GETS NOW", "WOULD GET", "DIFFERENCE")
	for _, b := range f.Branches {
		name := words.Indented(b.Path)
		if b.Was != "" {
			name += fmt.Sprintf(" (was %s)", b.Was)
		}
		is, will := cellsOf(b.Now), cellsOf(b.Would)
		cells := []string{name}
		for i := range 3 {
			cells = append(cells, changed(is[i], will[i]))
		}
		row(cells, cmp.Or(is[3], "-"), cmp.Or(will[3], "-"), differenceText(b, is[3] == will[3]))
	}
	return t.Flush()
}

// cellsOf are what a branch may have, demands and gets by one policy; empty: it is not there.
func cellsOf(s *observe.Share) (c [4]string) {
	if s == nil {
		return c
	}
	demand := bandwidthText(s.Demand)
	if s.Unlimited {
		demand = "max"
	}
	return [4]string{words.Short(s.Rate), words.Short(s.Ceil), demand, words.Short(s.Gets)}
}

// changed is what there was and what there would be, once where it is the same or one is not.
func changed(is, would string) string {
	switch {
	case is == would, is == "":
		return would
	case would == "":
		return is
	}
	return is + " -> " + would
}

// differenceText is by how much more or less it would get. What looks the same is the same.
func differenceText(b observe.ForecastBranch, same bool) string {
	switch {
	case b.Difference == nil:
		return "-"
	case same:
		return "0bit"
	case *b.Difference < 0:
		return "-" + words.Short(b.Now.Gets-b.Would.Gets)
	}
	return "+" + words.Short(b.Would.Gets-b.Now.Gets)
}
