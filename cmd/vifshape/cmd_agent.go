package main

import (
	"context"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

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

With --follow it applies them whenever the directory changes, a ConfigMap of Kubernetes that
is mounted there, too, or what FILE.d in it lays over one. What has a mistake is refused, and
what it said before stays in force; an interface that a policy has no more, or whose policy is
gone, is cleared. With --contact HOST:PORT no change cuts the machine off from that: it goes
back, unless a connection to there comes about in the second half of the time of --confirm.
What went back is tried again when the file says something else, and on HUP; interfaces take
turns, and nothing is changed while there is no connection at any rate. The metric
vifshape_policy_in_force of the exporter says 0 of each file that is not in force.

Root tells it of pods of Kubernetes by vifshape-nri, see "vifshape help kubernetes": it binds
them, and has limits for those that have a bandwidth of their own.

One agent works for one network namespace. It may be ended at any time, also by
force, and leaves everything in place. It logs to standard error, and tells systemd
when it is ready; "vifshape enable" has it started with the machine, by vifshape.service,
which a package brings in /usr/lib/systemd/system.

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
			switch flags := c.Flags(); {
			case cfg.Policies == "" && (cfg.Follow || cfg.Contact != ""):
				return usagef("--follow and --contact are for the policies of a directory: write --policies, too")
			case cfg.Contact == "" && (flags.Changed("contact") || flags.Changed("confirm")):
				return usagef("--confirm takes --contact HOST:PORT, which has to be reached in that time")
			case cfg.Contact != "" && (cfg.Confirm < 2*time.Second || cfg.Confirm > time.Hour):
				return usagef("--confirm %v is no time to see whether %s is reached: write one from 2s to 1h, such as 30s", cfg.Confirm, cfg.Contact)
			}
			if _, _, err := net.SplitHostPort(cfg.Contact); cfg.Contact != "" && err != nil {
				return usagef("--contact %q is no address with a port: write it as 10.0.0.1:6443 or [fd00::1]:6443", cfg.Contact)
			}
			return e.agent(ctx, cfg)
		},
	}
	c.Flags().TextVar(&level, "log-level", slog.LevelInfo, "log from `LEVEL` on: debug, info, warn or error")
	c.Flags().Lookup("log-level").DefValue = "info" // as it is to be written
	c.Flags().StringVar(&cfg.Policies, "policies", "", "apply the policies that \"vifshape enable\" keeps in `DIRECTORY`")
	c.Flags().BoolVar(&cfg.Follow, "follow", false, "apply them whenever that directory changes")
	c.Flags().StringVar(&cfg.Contact, "contact", "", "go back from what cuts this machine off from `HOST:PORT`")
	c.Flags().DurationVar(&cfg.Confirm, "confirm", 30*time.Second, "with --contact: go back after `TIME`")
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
	cfg.Guard = newGuard
	cfg.RunDir, cfg.Log, cfg.Code, cfg.Hints = e.runDir, e.stderr, exitCode, func(err error) []string { return hints(err, nil) }
	return agent.Run(ctx, cfg, again)
}
