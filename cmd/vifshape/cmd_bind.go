package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
)

const specHelp = `A SPEC is what stands in bind in a policy:
  unit:NAME.service   a unit of systemd's system manager; a service with its .socket
  slice:NAME.slice    a slice of it
  cgroup:/PATH        a cgroup, from the root of its hierarchy
  user:NAME           a user, by name or number: what no cgroup's binding claims, and
                      not its subordinate numbers (subuid), as in rootless containers
  link:INTERFACE      what an interface brings in and this one sends on
  container:NAME      a container, by name or id
  pod:NAMESPACE/NAME  a pod with all its containers, what pods says in a policy
With a cgroup, what its processes send from other network namespaces is bound by the
interfaces that lead there, as far as these are theirs.
Names of units and slices, and each part of a cgroup's path, may be patterns of
* ? [a-c] [^a-c], as in 'unit:worker@*.service'. What is below a cgroup comes with
it. Where several name one cgroup, the exact name counts, else the pattern with more
characters of its own.
`

func newBindCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "bind PATH SPEC...",
		Short: "Put services, cgroups, users or interfaces into a branch, until the next clear",
		Long: `Bind adds to the bindings of a branch what the policy does not have there, all of
it or, where something is wrong, nothing. Open connections follow at once. What is
not there yet is kept, and bound when it appears where vifshape agent runs, else by
the next apply.

The binding lasts until unbind or clear takes it away, the machine is restarted, or
the policy that is applied has no such branch any more; where the policy has the
same binding, that one takes its place.

` + specHelp + `
  vifshape bind eth0/web unit:nginx.service 'unit:php-fpm@*.service'
` + exitHelp,
		Args: args(2, -1, "a branch and what to bind to it"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			return e.changeBindings(c.Context(), a, (*shaper.Machine).Bind)
		}),
	}
}

func newUnbindCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "unbind PATH SPEC...",
		Short: "Take back what bind did",
		Long: `Unbind takes bindings away that bind has made, as bindings lists them, all or none.
Open connections follow at once, to the binding above theirs or to the rest. What the
policy binds is changed in the policy.
` + exitHelp,
		Args: args(2, -1, "a branch and what is bound to it"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			return e.changeBindings(c.Context(), a, (*shaper.Machine).Unbind)
		}),
	}
}

// changeBindings changes the bindings of a branch, and says which open sockets stay
// elsewhere.
func (e *env) changeBindings(ctx context.Context, a []string, change func(*shaper.Machine, context.Context, hierarchy.Path, []bind.Binding) (*shaper.Interface, *shaper.Rebound, error)) error {
	path, err := parsePath(a[0])
	if err != nil {
		return err
	}
	if path.Parent() == "" { // what an interface's own node carries is its rest
		path = path.Join(hierarchy.RestName)
	}
	var specs []bind.Binding
	for _, s := range a[1:] {
		b, err := hierarchy.ParseBinding(s)
		if err != nil {
			return usageError{err}
		}
		if !slices.Contains(specs, b) {
			specs = append(specs, b)
		}
	}
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	x, r, err := change(m, ctx, path, specs)
	if err != nil {
		return err
	}
	defer x.Binder.Close()
	observe.Strayed(ctx, m, x, r.Done)
	return nil
}

func newBindingsCommand(e *env) *cobra.Command {
	json := false
	c := &cobra.Command{
		Use:   "bindings [PATH]",
		Short: "List what is bound to branches, and what is still waited for",
		Long: `Bindings lists the bindings of all branches, or of those from PATH down: those of the policy
and those that bind has made, each with what it is in force for, how far that holds what is
open, as show says it, or why it is not. It needs no privileges; without them it cannot read
the bindings in force, and prints what they were when they were last changed.

EXIT STATUS
  0   done
  1   an error, there is no such branch, or the kernel has not all that the last
      apply made
  64  wrong flags or arguments`,
		Args: args(0, 1, "one path at most"),
		RunE: interruptible(func(c *cobra.Command, a []string) error {
			p, err := optionalPath(a)
			if err != nil {
				return err
			}
			return e.bindings(c.Context(), p, json)
		}),
	}
	c.Flags().BoolVar(&json, "json", false, "print JSON")
	return c
}

// bindingsJSON is the stable form of bindings.
type bindingsJSON struct {
	Bindings []*observe.Binding `json:"bindings"`
}

func (e *env) bindings(ctx context.Context, path hierarchy.Path, json bool) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	out := bindingsJSON{Bindings: []*observe.Binding{}}
	err = e.each(m, path, func(iface string) error {
		v, err := observe.Bindings(ctx, m, iface, path)
		out.Bindings = append(out.Bindings, v...)
		return err
	})
	switch {
	case err != nil && !onlyLost(err):
		return err
	case json:
		return errors.Join(e.json(out), err)
	case err != nil && len(out.Bindings) == 0:
		return err
	case len(out.Bindings) == 0 && path == "":
		e.notef("nothing is bound in this network namespace")
		return nil
	case len(out.Bindings) == 0:
		e.notef("nothing is bound to %s", path)
		return nil
	}
	return errors.Join(out.write(e), err)
}

// write prints the bindings as a table, one line for each thing that they name.
func (b bindingsJSON) write(e *env) error {
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BRANCH\tBINDING\tMADE\tIN FORCE FOR")
	for _, v := range b.Bindings {
		var lines []string
		for i, s := range v.Bound {
			lines = append(lines, inForce(v, i, s)...)
		}
		for _, s := range slices.Concat(v.Waits, v.Refused, v.Outside) {
			lines = append(lines, "- "+words.Printable(s))
		}
		if len(lines) == 0 {
			lines = []string{"nothing of its own: another names it more exactly, or one above has the same class"}
		}
		made := (&record.Binding{AtRuntime: v.AtRuntime, Limit: v.Limit}).By()
		for i, s := range lines {
			if i == 0 {
				fmt.Fprintf(t, "%s\t%s\t%s\t%s\n", v.Path, words.Printable(v.Binding.String()), made, s)
			} else {
				fmt.Fprintf(t, "\t\t\t%s\n", s)
			}
		}
	}
	return t.Flush()
}

// inForce says of a target that a binding is in force for how far that holds.
func inForce(v *observe.Binding, i int, target bind.Target) (lines []string) {
	s := words.TargetText(target)
	if i >= len(v.Held) {
		return []string{s}
	}
	h := v.Held[i]
	if held := h.Summary(); held != "" {
		s += ": " + held
	}
	lines = append(lines, s)
	for _, r := range h.Reasons() {
		lines = append(lines, "  "+r)
	}
	return lines
}
