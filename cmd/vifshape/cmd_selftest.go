package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cgroup/escape"
	"github.com/vifshape/vifshape/cmd/internal/trial"
)

type escapeOptions struct {
	binding, level, user string
	only                 []string
	json, verbose        bool
}

func newSelftestCommand(e *env) *cobra.Command {
	c := &cobra.Command{
		Use:   "selftest",
		Short: "Try out on this machine what vifshape promises",
		Long: `Selftest tries out on this machine what vifshape promises, in network namespaces
of its own.

EXIT STATUS
  0    what is promised holds
  1    it does not, or an error
  5    root is needed, or root lacks a capability that the message names
  64   wrong flags or arguments
  130  interrupted; everything was removed`,
		Args: noCommand,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	c.AddCommand(newEscapeCommand(e), newAttemptCommand(e), newOutsiderCommand(e))
	for _, sub := range c.Commands() {
		wrapArgs(sub)
	}
	return c
}

func newEscapeCommand(e *env) *cobra.Command {
	var o escapeOptions
	c := &cobra.Command{
		Use:   "escape [ATTEMPT...]",
		Short: "Try to get out of a branch, in every way that is known",
		Long: `Escape makes two network namespaces and a cable between them, applies a small
policy there, and starts programs inside a branch that try to get out of it: as
root and as a user without privileges, at both levels of run, and for each way of
binding that this machine has. The interfaces of this machine are left alone.

Each attempt sends a known number of packets, or receives them: its own past its
branch, or what another branch receives into its own. With binding bpf a third branch
matches whatever is sent or received. Which class counted them, and how many arrived,
says what came of it:

  held        all were counted in the class of the branch whose they are
  refused     the kernel refused a call
  open        it got out, which is documented for this way, level and user
  impossible  it got out, and nothing on the machine could close that
  not tried   the kernel lacks what it takes
  ESCAPED     it got out and should not have

EXIT STATUS
  0    nothing got out but what is documented
  1    something did, or an error
  5    root is needed, or root lacks a capability that the message names
  64   wrong flags or arguments
  130  interrupted; everything was removed`,
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			o.only = a
			return e.escape(c.Context(), o)
		}),
	}
	f := c.Flags()
	f.StringVar(&o.binding, "binding", "", "one `WAY` of binding alone: bpf, nft or net_cls")
	f.StringVar(&o.level, "level", "", "one `LEVEL` alone: lock or tag")
	f.StringVar(&o.user, "user", "", "one `USER` alone: root or nobody")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print the reason of every verdict")
	return c
}

// newAttemptCommand is what the self-test starts inside branches.
func newAttemptCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:    "attempt NAME PLACE",
		Short:  "Make one attempt",
		Hidden: true,
		Args:   cobra.ExactArgs(2),
		RunE: func(_ *cobra.Command, a []string) error {
			var p escape.Place
			if err := json.Unmarshal([]byte(a[1]), &p); err != nil {
				return err
			}
			o, err := escape.Perform(a[0], p)
			if err != nil {
				return err
			}
			return e.json(o)
		},
	}
}

// newOutsiderCommand is what the self-test starts in the other branch.
func newOutsiderCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:    "outsider PLACE",
		Short:  "Serve those who try to get out, until standard input ends",
		Hidden: true,
		Args:   cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, a []string) error {
			var p escape.Place
			if err := json.Unmarshal([]byte(a[0]), &p); err != nil {
				return err
			}
			return escape.Serve(p, os.Stdin, e.stdout)
		},
	}
}

// escapeJSON is the stable form of selftest escape.
type escapeJSON struct {
	Holds bool             `json:"holds"`
	Ways  []*trial.Escapes `json:"ways"`
}

func (o *escapeOptions) check() error {
	one := func(flag, v string, of ...string) error {
		if v == "" || slices.Contains(of, v) {
			return nil
		}
		return usagef("--%s %s: write one of %s", flag, v, strings.Join(of, ", "))
	}
	for _, name := range o.only {
		if escape.Find(name) == nil {
			return usagef("there is no attempt %q", name)
		}
	}
	return errors.Join(one("binding", o.binding, "bpf", "nft", "net_cls"), one("level", o.level, "tag", "lock"), one("user", o.user, "root", "nobody"))
}

func (e *env) escape(ctx context.Context, o escapeOptions) error {
	if err := o.check(); err != nil {
		return err
	}
	var all []*trial.Escapes
	for _, binding := range []string{"bpf", "nft", "net_cls"} {
		if o.binding != "" && o.binding != binding {
			continue
		}
		found, err := trial.EscapeBy(ctx, binding, trial.EscapeOptions{RunDir: e.runDir, Self: selfPath, Level: o.level, User: o.user, Only: o.only})
		if err != nil {
			return err
		}
		all = append(all, found)
		if !o.json {
			writeEscapes(e.stdout, found, o.verbose)
		}
	}
	bad, tried := 0, 0
	for _, x := range all {
		tried += len(x.Results)
		bad += x.Bad()
	}
	if o.json {
		if err := e.json(escapeJSON{bad == 0 && tried > 0, all}); err != nil {
			return err
		}
	}
	switch {
	case tried == 0:
		return fmt.Errorf("nothing could be tried: %s", cmp.Or(all[0].Lacks, all[0].Sends))
	case bad > 0:
		e.notef("%d of %d attempts got out, or proved nothing, that should be held", bad, tried)
		return codeError(exitError)
	}
	return nil
}
