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
	level, repair := slog.LevelInfo, false
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
unbind and clear have changed. By itself it changes bindings alone, never a branch.

When somebody else takes a tree, one of its classes or its classifier away, or an
interface is made anew, it says at once what is gone and what to type. With --repair
it puts that back, as the last apply had it, whatever the file says by now. Where that
is taken away again and again it waits longer each time, up to ten minutes. It does
not take the place of what somebody else has put there, unless the policy says
replace = true.

One agent works for one network namespace. It may be ended at any time, also by
force, and leaves everything in place. It logs to standard error, and tells systemd
when it is ready; examples/vifshape-agent.service starts it.

SIGNALS
  TERM, INT  the end, with exit status 0
  HUP        everything is read anew, and what is wrong is said once more

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
			return e.agent(ctx, level, repair)
		},
	}
	c.Flags().TextVar(&level, "log-level", slog.LevelInfo, "log from `LEVEL` on: debug, info, warn or error")
	c.Flags().BoolVar(&repair, "repair", false, "put back what others take away of a tree")
	return c
}

func (e *env) agent(ctx context.Context, level slog.Level, repair bool) error {
	again := make(chan os.Signal, 1)
	signal.Notify(again, syscall.SIGHUP)
	defer signal.Stop(again)
	debug.SetGCPercent(100) // it stays
	return agent.Run(ctx, agent.Config{RunDir: e.runDir, Log: e.stderr, Level: level, Repair: repair, Code: exitCode, Hints: hints}, again)
}
