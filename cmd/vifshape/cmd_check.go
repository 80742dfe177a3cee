package main

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/qdisc"
)

type checkOptions struct{ tree, json bool }

func newCheckCommand(e *env) *cobra.Command {
	var o checkOptions
	c := &cobra.Command{
		Use:   "check FILE",
		Short: "Say whether a policy is right, without looking at this machine",
		Long: `Check reads a policy ("-": standard input) and reports every mistake in it, with
its place and what to write instead; one in TOML itself or in a value may hide
others. It looks at nothing else, so it works anywhere and needs no privileges. It
prints nothing when the policy is right; --tree prints what vifshape reads in it, with
every rate worked out.

--json is for editors: it prints all mistakes and warnings, none as an empty list,
with lines and columns from 1, columns in characters:

  {
    "ok": false,
    "problems": [
      {
        "file": "policy.toml",
        "line": 14,
        "column": 1,
        "severity": "error",
        "path": "eth0/backup",
        "key": "cell",
        "message": "unknown key \"cell\"",
        "hint": "did you mean \"ceil\"?"
      }
    ]
  }

EXIT STATUS
  0   the policy is right
  1   it is not, or cannot be read
  64  wrong flags or arguments`,
		Args: args(1, 1, "one policy file"),
		RunE: func(_ *cobra.Command, a []string) error { return e.check(a[0], o) },
	}
	c.Flags().BoolVar(&o.tree, "tree", false, "print the tree with all rates worked out")
	c.Flags().BoolVar(&o.json, "json", false, "print mistakes and warnings as JSON")
	return c
}

func (e *env) check(file string, o checkOptions) error {
	if o.tree && o.json {
		return usagef("--tree and --json print different things: write one of them")
	}
	p, err := shaper.ReadPolicy(file)
	var wrong policy.Errors
	if err != nil && !(o.json && errors.As(err, &wrong)) {
		return err
	}
	if err == nil {
		wrong = append(slices.Clip(policy.Errors(p.Warnings)), p.Unquoted(policy.VLAN)...)
	}
	if o.json {
		if failed := e.json(checkAsJSON(wrong, err == nil)); failed != nil || err == nil {
			return failed
		}
		return codeError(exitError)
	}
	fmt.Fprint(e.stderr, wrong.Render())
	if o.tree {
		return e.writeTree(p)
	}
	return nil
}

// checkJSON is the stable form of check.
type checkJSON struct {
	OK       bool          `json:"ok"` // the policy can be used
	Problems []problemJSON `json:"problems"`
}

// problemJSON is a mistake, or a warning.
type problemJSON struct {
	File     string         `json:"file"`
	Line     int            `json:"line"`           // from 1
	Column   int            `json:"column"`         // from 1, in characters
	Severity string         `json:"severity"`       // error or warning
	Path     hierarchy.Path `json:"path,omitempty"` // of the interface or branch
	Key      string         `json:"key,omitempty"`
	Message  string         `json:"message"`
	Hint     string         `json:"hint,omitempty"` // what to write instead
}

func checkAsJSON(wrong policy.Errors, ok bool) checkJSON {
	out := checkJSON{OK: ok, Problems: []problemJSON{}}
	for _, w := range wrong {
		severity := "error"
		if w.Warning {
			severity = "warning"
		}
		out.Problems = append(out.Problems, problemJSON{w.File, w.Line, w.Column, severity, w.Path, w.Key, w.Msg, w.Hint})
	}
	return out
}

// writeTree prints what a policy comes to, in both directions where it has both.
func (e *env) writeTree(p *policy.Policy) error {
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	receive := slices.ContainsFunc(p.Trees, func(t *hierarchy.Tree) bool { return t.Ingress != nil })
	head := "BRANCH\tRATE\tCEIL\tPRIO\tQDISC\t"
	if receive {
		head += "INGRESS\tCEIL\tPRIO\tQDISC\t"
	}
	fmt.Fprintln(t, head+"BOUND")
	for _, tree := range p.Trees {
		for b, in := range tree.Both() {
			row := words.Indented(b.Path) + "\t" + columns(b)
			if receive {
				row += columns(in)
			}
			fmt.Fprintln(t, row+words.Claims(b))
		}
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, tree := range p.Trees {
		if tree.Example != 0 {
			e.printf("%s has a share of its link: the rates are those of one of %v, as an example\n", tree.Port.Device, tree.Example)
		}
		if in := tree.Ingress; in != nil {
			e.printf("%s has room for %d flows by which what it receives is told apart\n", tree.Port.Device, in.Flows)
		}
		if line := tree.Line.String(); line != "" {
			e.printf("%s counts packets as %s\n", tree.Port.Device, line)
		}
		for _, d := range shaper.Delegations(tree) {
			e.printf("%s is delegated to %s\n", d.Path, words.Printable(d.Names()))
		}
	}
	return nil
}

// columns are what a branch comes to in one direction; nil: it is not shaped in that.
func columns(b *hierarchy.Branch) string {
	if b == nil {
		return "-\t-\t-\t-\t"
	}
	queue, prio := "-", "-"
	if b.Leaf() {
		prio, queue = fmt.Sprint(b.Prio), cmp.Or(qdisc.Text(b.Qdisc), "default")
	}
	return fmt.Sprintf("%s\t%s\t%s\t%s\t", words.Short(b.Rate), words.Short(b.Ceil), prio, queue)
}
