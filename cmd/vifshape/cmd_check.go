package main

import (
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/qdisc"
)

func newCheckCommand(e *env) *cobra.Command {
	tree := false
	c := &cobra.Command{
		Use:   "check FILE",
		Short: "Say whether a policy is right, without looking at this machine",
		Long: `Check reads a policy ("-": standard input) and reports every mistake in it, with
its place and what to write instead. It looks at nothing else, so it works
anywhere and needs no privileges. It prints nothing when the policy is right;
--tree prints what vifshape reads in it, with every rate worked out.

EXIT STATUS
  0   the policy is right
  1   it is not, or cannot be read
  64  wrong flags or arguments`,
		Args: args(1, 1, "one policy file"),
		RunE: func(_ *cobra.Command, a []string) error {
			p, err := shaper.ReadPolicy(a[0])
			if err != nil {
				return err
			}
			fmt.Fprint(e.stderr, append(slices.Clip(policy.Errors(p.Warnings)), p.Unquoted(policy.VLAN)...).Render())
			if !tree {
				return nil
			}
			return e.writeTree(p)
		},
	}
	c.Flags().BoolVar(&tree, "tree", false, "print the tree with all rates worked out")
	return c
}

// writeTree prints what a policy comes to.
func (e *env) writeTree(p *policy.Policy) error {
	kinds := newKindTable(qdisc.Kinds())
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BRANCH\tRATE\tCEIL\tPRIO\tQDISC\tBOUND")
	for _, tree := range p.Trees {
		for b := range tree.All() {
			qdisc, prio := "-", "-"
			if b.Leaf() {
				prio, qdisc = fmt.Sprint(b.Prio), "default"
				if b.Qdisc.Kind != "" {
					qdisc = kinds.text(b.Qdisc)
				}
			}
			fmt.Fprintf(t, "%s\t%v\t%v\t%s\t%s\t%s\n", words.Indented(b.Path), words.Short(b.Rate), words.Short(b.Ceil), prio, qdisc, bindText(b.Bind))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, tree := range p.Trees {
		if line := tree.Line.String(); line != "" {
			e.printf("%s counts packets as %s\n", tree.Port.Device, line)
		}
		for _, d := range shaper.Delegations(tree) {
			e.printf("%s is delegated to %s\n", d.Path, words.Printable(d.Names()))
		}
	}
	return nil
}

func bindText(b []bind.Binding) string {
	if len(b) == 0 {
		return "-"
	}
	s := b[0].String()
	for _, x := range b[1:] {
		s += ", " + x.String()
	}
	return s
}
