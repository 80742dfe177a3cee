package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/agent"
)

func newAgentCommand(e *env) *cobra.Command {
	level, cfg := slog.LevelInfo, agent.Config{}
	c := &cobra.Command{
		Use:   "agent",
		Short: "Wait for what bindings name, and bind it when it appears",
		Long: `Agent stays and waits for the cgroups, users and interfaces that bindings name. What
appears, or is made anew, is bound at once, as the restarted service of a unit. It
is not needed for that: without it the same happens at the next apply or bind.

Users who are not root come to it with run, add and remove, to use branches that the
policy delegates to them. The kernel tells it who asks. They get no more than the
branch has, and what they ask for takes turns with what others change.

It looks at nothing in between: the kernel tells it of new cgroups in the few
directories where a binding can find one, of interfaces, and of what apply, bind,
unbind and clear have changed. By itself it changes bindings alone, no branch, but for
what follows.

When somebody else takes a tree, one of its classes or its classifier away or changes
one, or an interface is made anew, it says at once what is gone and what to type. With --repair
it puts that back, as the last apply had it, whatever the file says by now. Where that
is taken away again and again it waits longer each time, up to ten minutes. It does
not take the place of what somebody else has put there, unless the policy says
replace = true.

With --policies it also applies the policies of a directory, as "vifshape enable" keeps
them: all at its start, before it says that it is ready, and on HUP; and to an interface
that appears, gets its name or another MTU, what the policy says of that one.

One agent works for one network namespace. It may be ended at any time, also by
force, and leaves everything in place. It logs to standard error, and tells systemd
when it is ready; "vifshape enable" has it started with the machine, and
examples/vifshape.service is the unit for that.

SIGNALS
  TERM, INT  the end, with exit status 0
  HUP        everything is read anew, the policies are applied, and what is wrong is
             said once more

EXIT STATUS
  0   ended by a signal
  1   an error
  4   an agent is running in this network namespace already
  5   root is needed, or root lacks a capability that the message names
  64  wrong flags or arguments`,
		Args: args(0, 0, ""),
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), syscall.SIGTERM, os.Interrupt)
			defer stop()
			cfg.Level = level
			return e.agent(ctx, cfg)
		},
	}
	c.Flags().TextVar(&level, "log-level", slog.LevelInfo, "log from `LEVEL` on: debug, info, warn or error")
	c.Flags().Lookup("log-level").DefValue = "info" // as it is to be written
	c.Flags().StringVar(&cfg.Policies, "policies", "", "apply the policies that \"vifshape enable\" keeps in `DIRECTORY`")
	c.Flags().BoolVar(&cfg.Repair, "repair", false, "put back what others take away of a tree")
	return c
}

func (e *env) agent(ctx context.Context, cfg agent.Config) error {
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGHUP)
	defer signal.Stop(again)
	debug.SetGCPercent(100) // it stays
	if cfg.Policies != "" {
		m, dir, err := e.lasting(cfg.Policies)
		if err != nil {
			return err
		}
		m.Close()
		cfg.Policies = dir.Path
	}
	cfg.RunDir, cfg.Log, cfg.Code, cfg.Hints = e.runDir, e.stderr, exitCode, func(err error) []string { return hints(err, nil) }
	return agent.Run(ctx, cfg, again)
}
