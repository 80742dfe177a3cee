package main

import (
	"context"
	"os"
	"os/exec"
	"slices"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cgroup/prove"
	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/hierarchy"
)

func newProveCommand(e *env) *cobra.Command {
	json := false
	c := &cobra.Command{
		Use:   "prove [PATH]",
		Short: "Send packets through each binding, and say where they landed",
		Long: `Prove sends ten packets through each way into the branches, or into those from
PATH down, and says in which branch they left the interface, and where it receives
through a tree, in which branch ten would be received:

  a cgroup       from a process in it, for a moment, in a cgroup of its own below
  a user         from a process of that user that no bound cgroup has
  an interface   from its other end, where that is in another network namespace
                 that has a process or a name, to be forwarded here
  the rest       from a process that nothing binds

Where branches have matches, the packets belong where those have them, from the
branch down that they are bound to. For each branch that has some one packet more is
made that fits a match of it. It is not sent, for it may have any address: the program
at the hook is asked for its class, as it is in force.

Where nobody is bound to a branch, there is no way in to be tried; nor does prove
say anything of sockets that are open already, which show does.

Sent are UDP datagrams of 16 bytes to the groups 239.255.7.31 and ff12::71f, port 9,
which nobody listens to and no router passes on. What is to be forwarded goes to
192.0.2.1, an address that belongs to nobody, and its time to live ends at the next
router; where no route leads there, to a neighbour. Counted are these packets alone.
With binding cls_cgroup, and where the kernel lets no program count, the counters of
classes are read, until nobody else sends; "at least" is said where somebody does.

What is received is not sent for: the far end is nobody's to command. Each way in asks
192.0.2.1 something, or a neighbour, with a time to live that ends there, and the
program at the hook is asked what class it gives the answer, made as it would come; and
where it looks for sockets, a datagram that answers to nothing. The table of flows and
its counters, which show prints, know these packets as if they had come.

Others that change this network namespace wait meanwhile. Nothing is left behind; of a
prove that was killed the next one removes the cgroups.

EXIT STATUS
  0    all that was sent or asked landed where it belongs; what could not be is said
  1    an error, there is no such branch, or nothing could be sent or seen
  3    packets landed in another branch
  4    another vifshape is changing this network namespace
  5    root is needed, or root lacks a capability that the message names
  64   wrong flags or arguments
  130  interrupted`,
		Args: args(0, 1, "one path at most"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			p, err := optionalPath(a)
			if err != nil {
				return err
			}
			return e.prove(c.Context(), p, json)
		}),
	}
	c.Flags().BoolVar(&json, "json", false, "print JSON")
	c.AddCommand(&cobra.Command{
		Use:    "sender",
		Short:  "Send what prove orders",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return prove.Sender(os.Stdin, e.stdout) },
	})
	return c
}

// proveJSON is the stable form of prove.
type proveJSON struct {
	Proofs []observe.Proof `json:"proofs"`
}

func (e *env) prove(ctx context.Context, path hierarchy.Path, json bool) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	out := proveJSON{Proofs: []observe.Proof{}}
	err = e.each(m, path, func(iface string) error {
		v, err := observe.ProveAll(ctx, m, iface, path, func() *exec.Cmd { return exec.Command(selfPath, "prove", "sender") })
		out.Proofs = append(out.Proofs, v...)
		return err
	})
	if err != nil {
		return err
	}
	if json {
		err = e.json(out)
	} else {
		for _, v := range out.Proofs {
			e.printf("%s\n", v)
		}
	}
	switch {
	case err != nil:
		return err
	case out.any(observe.ProofLeaks):
		return codeError(exitPartly)
	case len(out.Proofs) == 0 && path == "":
		e.notef("no interface is shaped by vifshape in this network namespace")
	case len(out.Proofs) == 0:
		e.notef("nothing is bound to %s: there is nothing to prove", path)
	case out.any(observe.ProofUnseen), !out.any(observe.ProofHolds):
		return codeError(exitError)
	}
	return nil
}

func (p proveJSON) any(verdict string) bool {
	return slices.ContainsFunc(p.Proofs, func(v observe.Proof) bool { return v.Verdict == verdict })
}
