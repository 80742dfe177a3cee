package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/enabled"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
)

const bindingHelp = "the `WAY` in which processes are bound: auto, bpf, nft or net_cls (default: the policy's word, else auto)"

type planOptions struct {
	binding, policies     string
	tc, json, detail, all bool
	scope                 shaper.Scope                // of an enabled policy
	shown                 func(*shaper.Changes) error // is told of what is shown; nil: nobody
}

func newPlanCommand(e *env) *cobra.Command {
	var o planOptions
	c := &cobra.Command{
		Use:   "plan [FILE]",
		Short: "Show what apply would change on this machine",
		Long: `Plan compares a policy with what the kernel has and prints what apply would do,
in the order it would do it: + creates, ~ changes, - deletes. A branch that keeps its
class under another name is listed first, what lies below it and what stays as it is
not at all. What is not as vifshape applied it, because somebody else has changed it,
is a warning. It changes nothing and needs no privileges, but without them the
bindings in force cannot be read, and it says so. Interfaces of the policy that are
not there are named, and left out as apply leaves them out. Without a file it is the
policies that "vifshape enable" keeps, one after the other.

EXIT STATUS
  0   done; with --detailed-exitcode: there is nothing to change
  1   an error
  2   with --detailed-exitcode: there is something to change, or the record of the
      tree is lost
  5   root is needed, or root lacks a capability that the message names
  6   interfaces of the policy are not there, and left out; whether there are changes
      or not
  64  wrong flags or arguments`,
		Args: args(0, 1, "one policy file"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			if len(a) > 0 {
				return e.plan(c.Context(), a[0], o)
			}
			if o.json {
				return usagef("--json is of one policy: name its file")
			}
			return e.eachEnabled(o.policies, c.Flags().Changed("policies"), func(file string, s shaper.Scope) error {
				o.scope = s
				return e.plan(c.Context(), file, o)
			})
		}),
	}
	f := c.Flags()
	f.StringVar(&o.policies, "policies", enabled.DefaultDir, policiesHelp+", without a file")
	f.StringVar(&o.binding, "binding", "", bindingHelp)
	f.BoolVar(&o.tc, "tc", false, "print the equivalent tc commands")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVar(&o.all, "all-or-nothing", false, "fail unless every interface of the policy is there")
	f.BoolVar(&o.detail, "detailed-exitcode", false, "exit with 2 when there are changes")
	return c
}

func (e *env) plan(ctx context.Context, file string, o planOptions) error {
	if err := checkBinding(o.binding); err != nil {
		return err
	}
	if o.tc && o.json {
		return usagef("--tc and --json are two forms of the same plan: write one of them")
	}
	o.scope.Binding = o.binding
	return e.planOf(ctx, shaper.Read(file), o)
}

// planOf is the plan of a policy that is being read.
func (e *env) planOf(ctx context.Context, r *shaper.Reading, o planOptions) error {
	m, err := e.machine()
	if err != nil {
		return r.Before(ctx, err)
	}
	defer m.Close()
	m.TellUnconfirmed()
	c, err := m.Plan(ctx, r, o.scope)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.NotThere(); o.all && err != nil {
		return err
	}
	if err := c.Drift(ctx); err != nil {
		return err
	}
	if err := c.Tell(ctx, true); err != nil {
		return err
	}
	if err := e.writePlans(c, o); err != nil {
		return err
	}
	if o.shown != nil {
		if err := o.shown(c); err != nil {
			return err
		}
	}
	return ended(c, o.detail, o.scope.Waits)
}

// ended is the exit status where interfaces of the policy were left out that nothing waits for,
// and that of changes where those matter; else nil.
func ended(c *shaper.Changes, detailed, waits bool) error {
	switch {
	case len(c.Absent) > 0 && !waits:
		return codeError(exitAbsent)
	case detailed && !c.Empty():
		return codeError(exitChanges)
	}
	return nil
}

func (e *env) writePlans(c *shaper.Changes, o planOptions) error {
	if o.json {
		out := planAsJSON(c.Plans())
		for i, x := range c.Targets {
			out.Interfaces[i].Drift = stepsAsJSON(x.Drifted)
		}
		for _, no := range c.Absent {
			out.Missing = append(out.Missing, no.Name)
		}
		return e.json(out)
	}
	for _, p := range c.Plans() {
		write := func() error { return writePlan(e.stdout, p) }
		if o.tc {
			write = func() error { return writeTC(e.stdout, p) }
		}
		if err := write(); err != nil {
			return err
		}
	}
	return nil
}

func checkBinding(s string) error {
	switch s {
	case "", "auto", "bpf", "nft", "net_cls":
		return nil
	}
	return usagef("binding %q is not one of auto, bpf, nft, net_cls", s)
}
