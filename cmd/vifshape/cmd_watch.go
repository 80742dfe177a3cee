package main

import (
	"context"
	"encoding/json"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/agent"
	"github.com/vifshape/vifshape/cmd/internal/words"
)

type watchOptions struct{ json, repair bool }

func newWatchCommand(e *env) *cobra.Command {
	var o watchOptions
	c := &cobra.Command{
		Use:   "watch [INTERFACE...]",
		Short: "Tell live what others change of a tree, and with --repair put it back",
		Long: `Watch waits, and says at once what becomes different on the interfaces named, or on all
that are shaped, from what vifshape applied: classes, queues and classifiers that somebody
changes, makes or takes away with tc, NetworkManager, networkd or docker. What is different
when it begins comes first. It looks at nothing in between: the kernel tells it. What vifshape
itself changes is no matter of it; who is bound, "vifshape bindings" shows.

--repair, which takes root, puts it back as the last apply had it. Where somebody changes it
again and again it waits longer each time, from a second up to ten minutes, and says so. It
does not take the place of a root qdisc that somebody else has made, unless the policy says
replace = true. "vifshape agent --repair" does the same in the background.

It ends with Ctrl-C. --json prints a line for each.

EXIT STATUS
  0   ended by Ctrl-C or SIGTERM
  1   an error
  5   with --repair: root is needed
  64  wrong flags or arguments`,
		Args: args(0, -1, "interfaces"),
		RunE: interruptible(func(c *cobra.Command, a []string) error { return e.watch(c.Context(), a, o) }),
	}
	c.Flags().BoolVar(&o.json, "json", false, "print a line of JSON for each")
	c.Flags().BoolVar(&o.repair, "repair", false, "put back what others change")
	return c
}

func (e *env) watch(ctx context.Context, ifaces []string, o watchOptions) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	for _, i := range ifaces {
		if _, _, err := m.Device(i); err != nil {
			return err
		}
	}
	return agent.Watch(ctx, m, ifaces, o.repair, func(n agent.Notice) error {
		if o.json {
			b, err := json.Marshal(n)
			if err == nil {
				e.printf("%s\n", b)
			}
			return err
		}
		at := n.Time.Local().Format(time.DateTime)
		switch n.Event {
		case "changed":
			e.printf("%s %s: not as it was applied: %s\n", at, n.Interface, words.Printable(strings.Join(n.What, "; ")))
		case "waits":
			e.printf("%s %s: somebody changes it again and again: it is put back in %v\n", at, n.Interface, n.After.Round(time.Second/10))
		case "failed":
			e.printf("%s %s: it cannot be put back: %s\n", at, n.Interface, words.Printable(strings.Join(n.What, "; ")))
		case "repaired":
			e.printf("%s %s: put back as it was applied\n", at, n.Interface)
		default:
			e.printf("%s %s: %s\n", at, n.Interface, n.Event)
		}
		return nil
	})
}
