package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
)

type rollbackOptions struct {
	list, json, verbose bool
	to                  int
}

func newRollbackCommand(e *env) *cobra.Command {
	var o rollbackOptions
	c := &cobra.Command{
		Use:   "rollback [INTERFACE...]",
		Short: "Go back to what was before the last apply",
		Long: `Rollback makes interfaces what they were before the last apply, by the smallest change,
as apply does it: the policy's tree, what bind had bound at run time, and branches that add
had made; limits stay as they are. Without names it is the interfaces that the last apply
changed; where one of them is not there, the others go back, it is named, and the exit status
is 6. One that was not shaped before is cleared, but for limits. A rollback is an apply
itself: another one takes it back. What went back by itself, as nobody confirmed it, comes
again with --to 1 alone.

--list shows what there was, the latest first, with the changes that led there; --to goes
to one of those. The last ten applies are kept, until the machine is started again.
` + strings.Replace(exitHelp, "  64 ", "  6    done, but for interfaces that are not there\n  64 ", 1),
		Args: args(0, -1, ""),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			switch {
			case o.to < 1 && c.Flags().Changed("to"):
				return usagef("--to %d is nothing that was: write a number of --list, from 1", o.to)
			case o.list && c.Flags().Changed("to"):
				return usagef("--list shows, --to goes there: write one of them")
			case o.json && !o.list:
				return usagef("--json is a form of --list: write that, too")
			case o.list:
				return e.history(c.Context(), a, o)
			}
			return e.rollback(o.verbose, func(m *shaper.Machine) (*shaper.Changes, error) { return m.Rollback(c.Context(), a, o.to) })
		}),
	}
	f := c.Flags()
	f.BoolVar(&o.list, "list", false, "show what there was, and change nothing")
	f.IntVar(&o.to, "to", 0, "go to `NUMBER` of --list: so many applies back")
	f.BoolVar(&o.json, "json", false, "with --list: print JSON")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print what is changed, with --list each step")
	return c
}

// rollback goes back by what does so, and says what that left out.
func (e *env) rollback(verbose bool, back func(*shaper.Machine) (*shaper.Changes, error)) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	c, err := back(m)
	if err != nil {
		return err
	}
	defer c.Close()
	if verbose {
		if err := e.writePlans(c, planOptions{}); err != nil {
			return err
		}
	}
	return ended(c, false, false)
}

// historyJSON is the stable form of rollback --list.
type historyJSON struct {
	Interfaces []interfaceHistoryJSON `json:"interfaces"`
}

type interfaceHistoryJSON struct {
	Interface string      `json:"interface"`
	Entries   []entryJSON `json:"entries"`
}

// entryJSON is one thing that an interface was.
type entryJSON struct {
	Number  int                `json:"number"` // how many applies back
	Applied time.Time          `json:"applied,omitzero"`
	By      string             `json:"by,omitempty"`
	Policy  string             `json:"policy"`
	Renames []hierarchy.Rename `json:"renames"`
	Steps   []stepJSON         `json:"steps"`
}

func (e *env) history(ctx context.Context, ifaces []string, o rollbackOptions) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	m.TellUnconfirmed()
	out := historyJSON{Interfaces: []interfaceHistoryJSON{}}
	look := func(iface string) error {
		all, err := m.History(ctx, iface)
		if err != nil {
			return err
		}
		if o.json {
			out.Interfaces = append(out.Interfaces, historyAsJSON(iface, all))
			return nil
		}
		return e.writeHistory(iface, all, o.verbose)
	}
	if len(ifaces) == 0 {
		err = e.each(m, "", look)
	}
	for _, i := range ifaces {
		if err == nil {
			err = look(i)
		}
	}
	if err == nil && o.json {
		err = e.json(out)
	}
	return err
}

func historyAsJSON(iface string, all []shaper.Entry) interfaceHistoryJSON {
	out := interfaceHistoryJSON{Interface: iface, Entries: []entryJSON{}}
	for _, x := range all {
		r := x.Record
		out.Entries = append(out.Entries, entryJSON{x.Number, r.Applied, r.By, r.Policy, renamesAsJSON(x.Changes), stepsAsJSON(x.Changes)})
	}
	return out
}

func (e *env) writeHistory(iface string, all []shaper.Entry, verbose bool) error {
	e.printf("%s:\n", iface)
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	for _, x := range all {
		r := x.Record
		created, changed, deleted := x.Changes.Counts()
		renamed := ""
		if n := len(x.Changes.Renames); n > 0 {
			renamed = fmt.Sprintf(", %d renamed", n)
		}
		at, by := "-", "-" // limits alone, which nobody has applied
		if !r.Applied.IsZero() {
			at, by = r.Applied.Local().Format(time.DateTime), "by "+words.Printable(r.By)
		}
		fmt.Fprintf(t, "  %d\t%s\t%s\t%s\t%d created, %d changed, %d deleted%s\n", x.Number, at, by, words.Printable(r.PolicyName()), created, changed, deleted, renamed)
		if !verbose {
			continue
		}
		if err := t.Flush(); err != nil { // steps have columns of their own
			return err
		}
		if err := writeSteps(e.stdout, "    ", x.Changes); err != nil {
			return err
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	if n := len(all); n > 0 && all[n-1].Record.Serial == 1 {
		e.printf("  %d  not shaped\n", n)
	}
	return nil
}
