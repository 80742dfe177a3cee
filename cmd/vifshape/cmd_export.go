package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/export"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
)

type exportOptions struct{ policy, format string }

// format is what writes a state down so; nil: there is none of that name.
func format(name string) func(hierarchy.State) string {
	switch name {
	case "script":
		return export.Script
	case "tc":
		return export.TC
	case "networkd":
		return export.Networkd
	}
	return nil
}

func newExportCommand(e *env) *cobra.Command {
	var o exportOptions
	c := &cobra.Command{
		Use:   "export [INTERFACE...]",
		Short: "Write a tree down for tc or systemd-networkd",
		Long: `Export prints what is in force on the interfaces named, or on all that vifshape shapes, as
others would set it up; with --policy what a policy comes to on this machine. It changes
nothing.

  vifshape export eth0 > eth0.sh                     a script for sh that makes it from nothing
  vifshape export eth0 --format networkd             sections of systemd.network(5)
  vifshape export --policy policy.toml --format tc   commands alone

Classes, rates, priorities and queues are the same. Neither tc nor networkd can tell
packets apart by the cgroup of who sends them, and keep them there: bindings and matches
stand in comments, and until filters do something of the kind everything is in the rest.
The handles are vifshape's own: "vifshape clear" takes such a tree away.

EXIT STATUS
  0    done
  1    an error, or the interface is not shaped by vifshape
  5    root is needed, or root lacks a capability that the message names
  6    with --policy: interfaces of it are not there, and left out
  64   wrong flags or arguments
  130  interrupted`,
		Args: args(0, -1, "interfaces"),
		RunE: interruptible(func(c *cobra.Command, a []string) error { return e.export(c.Context(), a, o) }),
	}
	f := c.Flags()
	f.StringVar(&o.format, "format", "script", "write it in `FORMAT` script, tc or networkd")
	f.StringVar(&o.policy, "policy", "", "what a policy `FILE` comes to, and not what is in force")
	return c
}

func (e *env) export(ctx context.Context, ifaces []string, o exportOptions) error {
	write := format(o.format)
	if write == nil {
		return usagef("format %q is not one of script, tc, networkd", o.format)
	}
	if o.policy != "" && len(ifaces) > 0 {
		return usagef("--policy says which interfaces: leave %s out", strings.Join(ifaces, " "))
	}
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	if o.policy != "" {
		c, err := m.Plan(ctx, shaper.Read(o.policy), shaper.Scope{})
		if err != nil {
			return err
		}
		defer c.Close()
		for _, x := range c.Targets {
			e.printf("%s", write(x.Want()))
		}
		return ended(c, false, false)
	}
	if len(ifaces) == 0 {
		if ifaces, err = m.Ours(); err != nil {
			return err
		}
	}
	for _, iface := range ifaces {
		x, s, err := m.TreeOf(ctx, iface)
		if err != nil {
			return err
		}
		x.Binder.Close()
		s.Bound = x.Named(s.Bound, x.Blind != nil)
		// The kernel knows digests of matches, and the record what they are.
		if t, err := m.Applied(x.Record); err == nil && len(s.Matched) > 0 {
			s.Matched = t.Matched()
		}
		e.printf("%s", write(s))
	}
	return nil
}
