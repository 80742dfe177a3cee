package main

import (
	"context"
	"os"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/client"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
)

const addExitHelp = `
EXIT STATUS
  0    done
  1    an error; nothing was changed, or everything was put back
  3    something was changed and could not be put back; the message says what
  4    another vifshape is changing this network namespace
  5    the branch is not delegated to the user, or there is no agent to ask
  64   wrong flags or arguments
  130  interrupted; what was begun was put back`

func newAddCommand(e *env) *cobra.Command {
	var rate, ceil, ingress, qdisc string
	var prio uint8
	c := &cobra.Command{
		Use:   "add PATH",
		Short: "Divide a branch further while its policy is in force",
		Long: `Add makes a branch below another one, as if it stood in the policy, by the smallest
change. All rules of a policy hold: rates fit into the branch above, no ceiling is
above that one's. A branch that had none below it gets a rest besides, with its queue
and its programs; what they send is neither lost nor goes unshaped meanwhile. Where the
policy shapes what the interface receives, the branch has its place in that as well.

Root may add branches anywhere. Users may below those that the policy delegates to
them, by delegate = ["alice", "uid:1000"], where ` + "`vifshape agent`" + ` runs. Theirs come
no sooner than the delegated branch (--prio), have 32kbit at least and leave as much to
the rest, and there are 64 at most in a delegated branch.

The next apply keeps what was added, as long as the policy has the branch above, still
delegated if a user did it. Where the policy has no room for it, apply says so and
changes nothing. Clear forgets it.

  vifshape add eth0/web/ci --rate 5mbit --ceil 20mbit
` + addExitHelp,
		Args: args(1, 1, "the path of the new branch"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			path, err := branchPath(a[0])
			if err != nil {
				return err
			}
			b := amend.Branch{Path: path, Qdisc: qdisc}
			for _, f := range []struct {
				name, text string
				to         *hierarchy.Amount
			}{{"rate", rate, &b.Rate}, {"ceil", ceil, &b.Ceil}, {"ingress", ingress, &b.Ingress}} {
				if !c.Flags().Changed(f.name) {
					continue
				}
				if *f.to, err = hierarchy.ParseAmount(f.text); err != nil {
					return usagef("--%s: %w", f.name, err)
				}
			}
			if c.Flags().Changed("prio") {
				b.Prio = &prio
			}
			return e.add(c.Context(), b)
		}),
	}
	f := c.Flags()
	f.StringVar(&rate, "rate", "", "what is guaranteed to it, as `BANDWIDTH` or percentage of the branch above; default: a share of what is left there")
	f.StringVar(&ceil, "ceil", "", "what it may reach by borrowing, as `BANDWIDTH` or percentage; default: that of the branch above")
	f.Uint8Var(&prio, "prio", 0, "`NUMBER` from 0, first, to 7 for what it borrows; default: that of the branch above")
	f.StringVar(&ingress, "ingress", "", "what is guaranteed to it of what the interface receives, as `BANDWIDTH` or percentage, where that is shaped; default: a share of what is left there")
	f.StringVar(&qdisc, "qdisc", "", "its queue, a `KIND` of those in `vifshape help qdisc`")
	return c
}

func newRemoveCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "remove PATH",
		Short: "Take away a branch that was added",
		Long: `Remove takes away a branch that add made, when no processes live in it, nothing is bound to
it and there are no branches below it. Packets that wait in it are dropped. Users remove
what users have added below a branch that is delegated to them, where ` + "`vifshape agent`" + ` runs.
` + addExitHelp,
		Args: args(1, 1, "the path of a branch"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			path, err := branchPath(a[0])
			if err != nil {
				return err
			}
			return e.remove(c.Context(), path)
		}),
	}
}

// branchPath reads the path of a branch that is no interface.
func branchPath(s string) (hierarchy.Path, error) {
	path, err := parsePath(s)
	if err == nil && path.Parent() == "" {
		err = usagef("%q is an interface: write the path of a branch, as in eth0/web", s)
	}
	return path, err
}

func (e *env) add(ctx context.Context, a amend.Branch) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	if os.Geteuid() != 0 {
		return agentOf(m).Do(ctx, client.Request{Op: client.Add, Path: a.Path, Rate: a.Rate, Ceil: a.Ceil, Prio: a.Prio, Qdisc: a.Qdisc, Ingress: a.Ingress})
	}
	return m.Add(ctx, a, nil)
}

func (e *env) remove(ctx context.Context, path hierarchy.Path) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	if os.Geteuid() != 0 {
		return agentOf(m).Do(ctx, client.Request{Op: client.Remove, Path: path})
	}
	return m.Remove(ctx, path, nil)
}

// agentOf is the agent of a network namespace.
func agentOf(m *shaper.Machine) client.Client {
	return client.Client{Socket: m.Store.AgentSocketFile()}
}
