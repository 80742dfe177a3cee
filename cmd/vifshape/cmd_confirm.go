package main

import (
	"context"
	"log/syslog"
	"os/exec"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
)

func newConfirmCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "confirm",
		Short: "Keep what was applied with --confirm",
		Long: `Confirm keeps what "vifshape apply --confirm TIME" has applied. Without it, what was
there before comes back when the time is over, by a process that needs neither the
terminal, nor the session, nor the agent; where that was killed too, the next apply, add,
remove, clear, rollback or confirm goes back first. What happened is in the system's log
and in "vifshape rollback --list". "vifshape rollback" goes back at once.
` + exitHelp,
		Args: args(0, 0, ""),
		RunE: interruptible(func(c *cobra.Command, _ []string) error { return e.confirm(c.Context(), "") }),
	}
	c.AddCommand(&cobra.Command{
		Use:    "guard",
		Short:  "Go back from what nobody confirms",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return e.guard(c.Context(), (*shaper.Machine).Guard)
		},
	})
	return c
}

// confirm keeps the apply that waits and has an ID, whichever it is where that is empty.
func (e *env) confirm(ctx context.Context, id string) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	return m.Confirm(ctx, id)
}

// newGuard is the process that goes back from what nobody confirms.
func newGuard() *exec.Cmd { return exec.Command(selfPath, "confirm", "guard") }

// guard is a process that nobody waits for, and its work.
func (e *env) guard(ctx context.Context, work func(*shaper.Machine, context.Context) error) error {
	signal.Ignore(syscall.SIGHUP, syscall.SIGINT, syscall.SIGPIPE)
	if log, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_WARNING, "vifshape"); err == nil {
		defer log.Close()
		e.stderr = log
	}
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	return work(m, ctx)
}
