package main

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/setup"
	"github.com/vifshape/vifshape/tc/rtnl"
)

type initOptions struct{ purpose, output, measure string }

func newInitCommand(e *env) *cobra.Command {
	var o initOptions
	c := &cobra.Command{
		Use:   "init",
		Short: "Write a first policy for this machine",
		Long: `Init looks at this machine and prints a policy for it, with comments that say what was
found and why it is written so. It changes nothing and needs no privileges; what only root
can read is left out, and a comment says so.

  vifshape init -o policy.toml
  vifshape check --tree policy.toml
  vifshape plan policy.toml
  vifshape apply --confirm 60s policy.toml

The policy shapes the interfaces that the default routes lead to, at a little less than
their speed where that is known, else at a guess. Its branches are those that a machine for
that purpose wants. Services that listen, containers that run and users with many processes
are lines that begin with # and no space: take the # away, and the line is in force.

--for says what the machine is for; without it that is guessed, and the first line says by
what:

  home     calls first, then what somebody waits for; backup and downloads last; guests
  server   SSH first, services in equal parts, backup with a ceiling
  tenants  a branch for each user and container, none of which may take all
  build    jobs with a ceiling, caches, those who are logged in first
  router   calls first, then a branch for the networks behind each other interface

--measure HOST takes some 15 seconds, in which it fills the line: it runs a test by iperf3
in both directions, where that program is installed and HOST answers it (iperf3 -s), at port
5201 or the one given. Else it sends by one TCP connection for 5 seconds to HOST:PORT,
where something has to read all of it (nc -l 5201 >/dev/null), and counts what was
acknowledged. What is written is 5 percent less. Ctrl-C ends it.

EXIT STATUS
  0    done
  1    an error, or there is no default route
  64   wrong flags or arguments
  130  interrupted; nothing was written`,
		Args: args(0, 0, ""),
		RunE: interruptible(func(c *cobra.Command, _ []string) error { return e.init(c.Context(), o) }),
	}
	var names []string
	for _, p := range setup.Purposes {
		names = append(names, string(p))
	}
	c.Flags().StringVar(&o.purpose, "for", "", "what the machine is for: `PURPOSE` "+strings.Join(names, ", ")+" (default: guessed)")
	c.Flags().StringVarP(&o.output, "output", "o", "", "write it to a new `FILE`")
	c.Flags().StringVar(&o.measure, "measure", "", "measure how much gets through to `HOST[:PORT]`")
	return c
}

func (e *env) init(ctx context.Context, o initOptions) (err error) {
	purpose := setup.Purpose(o.purpose)
	if o.purpose != "" && !slices.Contains(setup.Purposes, purpose) {
		return usagef("--for %s: write one of home, server, tenants, build, router", o.purpose)
	}
	c, err := rtnl.Open(rtnl.Config{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, c.Close()) }()
	s, err := setup.Look(ctx, c, "/")
	if err != nil {
		return err
	}
	why := ""
	if o.purpose == "" {
		purpose, why = s.Guess()
	}
	var m *setup.Measurement
	if o.measure != "" {
		if m, err = s.Measure(ctx, o.measure); err != nil {
			return err
		}
	}
	return e.writeNew(o.output, s.Policy(purpose, why, m))
}
