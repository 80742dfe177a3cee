package main

import (
	"context"

	"github.com/spf13/cobra"
)

func newClearCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "clear [INTERFACE...]",
		Short: "Remove what vifshape made, and put back what was there before",
		Long: `Clear removes the classifier, all bindings, those of bind too, and the tree of the
interfaces named, or of all in this network namespace, in that order, and puts back
the root qdisc that was there before. Packets that wait in the tree at that moment
are dropped. Processes go on running, their traffic unshaped; cgroups that run made
stay as long as processes live in them, and are named: the next clear looks at them
again.
` + exitHelp,
		Args: args(0, -1, "interfaces"),
		RunE: interruptible(func(c *cobra.Command, a []string) error { return e.clear(c.Context(), a) }),
	}
}

func (e *env) clear(ctx context.Context, ifaces []string) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	return m.ClearAll(ctx, ifaces)
}
