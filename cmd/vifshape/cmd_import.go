package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/adopt"
	"github.com/vifshape/vifshape/tc/rtnl"
	"github.com/vifshape/vifshape/tc/survey"
)

func newImportCommand(e *env) *cobra.Command {
	output, adopted := "", false
	c := &cobra.Command{
		Use:   "import INTERFACE",
		Short: "Make a policy of what others have set up on an interface by tc",
		Long: `Import reads the traffic control of an interface that others have set up, by tc, FireQOS,
wondershaper, tcconfig, sqm-scripts, systemd-networkd, and prints a policy that says the
same, as far as one can. It changes nothing and needs no privileges, unless --adopt is given.

  vifshape import eth0 -o policy.toml
  vifshape check --tree policy.toml
  vifshape plan policy.toml

Taken over are the classes of htb, hfsc and cbq with rates, ceilings, priorities and
queues; tbf, cake, prio and other roots as what comes nearest; of u32, flower, fw, basic
and matchall filters what a match says as well; what the line adds to packets; and what
is received, where it is led to an interface of kind ifb, or a filter drops what comes
too fast. The default class becomes rest. A branch is named after what its filters ask
for, where that is one thing, else by its class: 1-10. The policy passes "vifshape check".

MADE BY
  tc with htb      branches of the same rates, ceilings, priorities, bursts, quanta and
                   queues; the default class is rest. Guarantees above the parent's are
                   lowered; a default class further down comes up
  tc with hfsc, cbq
                   the same, of real-time or link-sharing curves and upper limits, without
                   the first parts of curves
  FireQOS          branches and matches, in both directions where its classes are the same in
                   both; without names and TCP flags
  wondershaper     1.4: branches, matches, the IFB's rate as ingress; without the filter for
                   small packets. 1.1a (Debian): its police filter as ingress, which is all
                   that it can make where the kernel has no cbq (Linux 6.8)
  tcconfig         branches with netem, matches
  sqm-scripts      simple.qos: branches by firewall mark, overhead, the IFB's rate; its
                   iptables rules set the marks: keep these
  networkd         branches and queues, which it has no filters for
  tbf, cake, prio, fq_codel ... at the root
                   a rate and the queue of rest; bands as branches. Rates that nobody wrote
                   are the line's, or a guess

WHICH FILTER WINS
tc asks its filters in their order and takes the first that fits, and of matches the most
specific wins. Where that differs, import writes a match more for what fits both, or a key
more that holds for everything, so that each packet gets into the branch of the class that it
had. Of some one tree in a thousand, drawn by lot with filters that overlap, a match is left
out, with a comment. Filters by length, TCP flags, types of ICMP, fragments, single bits,
net_cls classes, programs and hash tables are named in comments.

TAKING OVER
Comments say what was altered, for guarantees must fit here and ceilings too, and what
could not be taken over, with the reason. Read them before you apply it. A policy with
"replace = true" takes the place of the root qdisc that it was made from; that comes back
only by who made it.

--adopt also applies the policy that it writes, which takes root. It says before what that
loses: all that waits in the old queues at that moment. None of it can stay in place, as the
kernel changes neither the handle nor the default class of a root qdisc. Connections go on,
and their next packets are shaped by the new tree.

EXIT STATUS
  0   done
  1   an error, nobody has set up anything there, or vifshape has
  3   with --adopt: something was changed and could not be put back
  4   with --adopt: another vifshape is changing this network namespace
  5   with --adopt: root is needed, or root lacks a capability that the message names
  64  wrong flags or arguments`,
		Args: args(1, 1, "one interface"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			if !adopted {
				return e.importPolicy(a[0], output)
			}
			if output == "" || output == "-" {
				return usagef("--adopt needs a file for the policy, by which the tree is known from then on: write -o FILE, too")
			}
			return e.adopt(c.Context(), a[0], output)
		}),
	}
	c.Flags().StringVarP(&output, "output", "o", "", "write it to a new `FILE`")
	c.Flags().BoolVar(&adopted, "adopt", false, "apply it, in place of what it was made from")
	return c
}

// adopt puts a tree of ours in the place of what others have set up.
func (e *env) adopt(ctx context.Context, iface, file string) error {
	if err := e.importPolicy(iface, file); err != nil {
		return err
	}
	e.warnf("%s: what waits in the queues of others is dropped when the tree takes their place", iface)
	return e.apply(ctx, file, applyOptions{})
}

func (e *env) importPolicy(name, output string) error {
	text, err := readForeign(name)
	if err != nil {
		return err
	}
	return e.writeNew(output, text)
}

// writeNew writes a policy into a new file; none, or "-": to stdout.
func (e *env) writeNew(file, text string) error {
	if file == "" || file == "-" {
		e.printf("%s", text)
		return nil
	}
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already, and is not written over: write another name", file)
	}
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	return errors.Join(err, f.Close())
}

// readForeign is the policy of what others have set up on an interface.
func readForeign(name string) (text string, err error) {
	c, err := rtnl.Open(rtnl.Config{})
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	x, err := survey.Read(c, name)
	if err != nil {
		return "", err
	}
	return adopt.Policy(x)
}
