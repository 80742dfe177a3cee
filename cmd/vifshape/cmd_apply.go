package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/enabled"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
)

type applyOptions struct {
	binding  string
	policies string
	scope    shaper.Scope // of an enabled policy
	verbose  bool
	all      bool
	detail   bool
	confirm  time.Duration
	agreed   func(*shaper.Changes) error // see shaper.ApplyOptions
}

func newApplyCommand(e *env) *cobra.Command {
	var o applyOptions
	c := &cobra.Command{
		Use:   "apply [FILE]",
		Short: "Make the kernel match a policy, by the smallest change",
		Long: `Apply does what plan shows: it changes what differs, in place where the kernel
can, and leaves everything else alone, counters and waiting packets included. It
then reads back what it touched and compares. When a step fails, when the
comparison finds a difference, or on Ctrl-C, it goes back to where it started. It
prints nothing when all went well; --verbose prints the plan. What bind has bound
stays bound, but for branches that the policy has no more, which it says.

What is changed in place loses no packet. What waits at that moment is dropped by
the kernel when the first apply puts a tree below an interface, when clear takes
it away, and when a branch's queue is made anew because it becomes one of another
kind; plan and apply warn of the last.

Where interfaces of the policy are not there (a VPN that is down, a stick that is
unplugged), the others are shaped, each that is missing is named, and the exit status
is 6; where none is there it is 1. --all-or-nothing changes nothing unless all are
there.

Without a file it is the policies that "vifshape enable" keeps, one after the other: what
one has wrong does not stop the others. Interfaces that are not there are none of that; they
wait.

--confirm 60s is for who may cut himself off: what was there before comes back after that
time, bindings included, unless "vifshape confirm" keeps what was applied. It does not
depend on this terminal or session. Nothing else changes the tree meanwhile, but clear,
rollback and what processes do.

Killed at any point, the interface goes on passing traffic, the next apply
carries on, and clear takes away what there is.
` + strings.NewReplacer("  3 ", "  2    with --detailed-exitcode: done, and something was changed\n  3 ",
			"  64 ", "  6    done, but for interfaces of the policy that are not there\n  64 ").Replace(exitHelp),
		Args: args(0, 1, "one policy file"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			if c.Flags().Changed("confirm") {
				if err := checkConfirm(o.confirm); err != nil {
					return err
				}
			}
			if len(a) > 0 {
				return e.apply(c.Context(), a[0], o)
			}
			if o.confirm > 0 {
				return usagef("--confirm is for one policy: name its file")
			}
			return e.eachEnabled(o.policies, c.Flags().Changed("policies"), func(file string, s shaper.Scope) error {
				o.scope = s
				return e.apply(c.Context(), file, o)
			})
		}),
	}
	c.Flags().StringVar(&o.policies, "policies", enabled.DefaultDir, policiesHelp+", without a file")
	c.Flags().StringVar(&o.binding, "binding", "", bindingHelp)
	c.Flags().DurationVar(&o.confirm, "confirm", 0, "go back after `TIME`, unless \"vifshape confirm\" keeps it")
	c.Flags().BoolVar(&o.all, "all-or-nothing", false, "fail, and change nothing, unless every interface of the policy is there")
	c.Flags().BoolVar(&o.detail, "detailed-exitcode", false, "exit with 2 when something was changed")
	c.Flags().BoolVarP(&o.verbose, "verbose", "v", false, "print what is changed")
	return c
}

func (e *env) apply(ctx context.Context, file string, o applyOptions) error {
	if err := checkBinding(o.binding); err != nil {
		return err
	}
	o.scope.Binding = o.binding
	return e.applyOf(ctx, shaper.Read(file), "apply "+file, o)
}

// applyOf applies a policy that is being read. What it does is for others who wait meanwhile.
func (e *env) applyOf(ctx context.Context, r *shaper.Reading, what string, o applyOptions) error {
	m, err := e.machine()
	if err != nil {
		return r.Before(ctx, err)
	}
	defer m.Close()
	c, err := m.Apply(ctx, r, shaper.ApplyOptions{What: what, Scope: o.scope, All: o.all, Confirm: o.confirm, Watch: newGuard, Agreed: o.agreed})
	if err != nil {
		return err
	}
	defer c.Close()
	tellStrayed(ctx, m, c)
	if o.verbose {
		if err := e.writePlans(c, planOptions{}); err != nil {
			return err
		}
	}
	return ended(c, o.detail, o.scope.Waits)
}

func checkConfirm(d time.Duration) error {
	if d < time.Second || d > 24*time.Hour {
		return usagef("--confirm %v is no time to look what became of it: write one from 1s to 24h, such as 60s", d)
	}
	return nil
}

// tellStrayed says which sockets an apply has bound too late.
func tellStrayed(ctx context.Context, m *shaper.Machine, c *shaper.Changes) {
	for _, x := range c.Targets {
		observe.Strayed(ctx, m, x.Interface, x.Plan.Steps)
	}
}
