package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"

	"github.com/spf13/cobra"

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
			return e.changeBindings(c.Context(), "bind", a, (*record.Record).Bind)
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
			return e.changeBindings(c.Context(), "unbind", a, (*record.Record).Unbind)
		}),
	}
}

// changeBindings brings the bindings of a branch into force that change makes of
// them. Change adds its remarks for the user, and returns the bindings that are new.
func (e *env) changeBindings(ctx context.Context, what string, a []string, change func(*record.Record, hierarchy.Path, []bind.Binding) (fresh []bind.Binding, remarks []string, err error)) error {
	path, err := parsePath(a[0])
	if err != nil {
		return err
	}
	if path.Parent() == "" { // what an interface's own node carries is its rest
		path = path.Join(hierarchy.RestName)
	}
	var specs []bind.Binding
	for _, s := range a[1:] {
		b, err := bind.Parse(s)
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
	r, err := m.ChangeBindings(ctx, what, path, specs, change)
	if err != nil {
		return err
	}
	strayed(m, ctx, path.Interface(), r.Done)
	return nil
}

func newBindingsCommand(e *env) *cobra.Command {
	json := false
	c := &cobra.Command{
		Use:   "bindings [PATH]",
		Short: "List what is bound to branches, and what is still waited for",
		Long: `Bindings lists the bindings of all branches, or of those from PATH down: those of
the policy and those that bind has made, each with what it is in force for, how far
that holds what is open, as show says it, or why it is not. It needs no privileges; without them it cannot read the bindings in force, and
prints what they were when they were last changed.

EXIT STATUS
  0   done
  1   an error, or there is no such branch
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
	Bindings []*bindingView `json:"bindings"`
}

// bindingView is a binding as it was written, and what it came to.
type bindingView struct {
	Path      hierarchy.Path `json:"path"`
	Binding   bind.Binding   `json:"binding"`
	AtRuntime bool           `json:"at_runtime"`        // by bind, not in the policy
	Bound     []bind.Target  `json:"bound"`             // targets that it is in force for
	Held      []boundView    `json:"held,omitempty"`    // how far it holds, for each of them
	Waits     []string       `json:"pending,omitempty"` // reasons why it is in force for nothing, or not for all
	Refused   []string       `json:"refused,omitempty"` // why it cannot be
	Outside   []string       `json:"outside,omitempty"` // what of that which it names it does not hold
}

func (e *env) bindings(ctx context.Context, path hierarchy.Path, json bool) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	out := bindingsJSON{Bindings: []*bindingView{}}
	err = e.each(m, path, func(iface string) error {
		v, err := bindingsOf(m, ctx, iface, path)
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

// bindingsOf are those of one interface, or of one of its branches and all below.
func bindingsOf(m *shaper.Machine, ctx context.Context, iface string, path hierarchy.Path) ([]*bindingView, error) {
	x, s, err := m.TreeOf(ctx, iface)
	if err != nil {
		return nil, err
	}
	defer x.Binder.Close()
	if path != "" {
		if err := x.Exists(path); err != nil {
			return nil, err
		}
	}
	var list []*bindingView
	views := map[string]*bindingView{}
	for _, b := range x.Record.Bindings {
		v := &bindingView{Path: b.Path, Binding: b.Binding, AtRuntime: b.AtRuntime, Bound: []bind.Target{}}
		views[b.Binding.String()] = v
		if path == "" || b.Path.Below(path) {
			list = append(list, v)
		}
	}
	at := func(b string) *bindingView {
		if v := views[b]; v != nil {
			return v
		}
		return &bindingView{} // a branch's own cgroup
	}
	if x.Blind != nil {
		m.Notef(hierarchy.Path(iface), "%s: without privileges the bindings in force cannot be read; what they came to when they were last changed is shown", iface)
		for _, b := range x.Record.Bound {
			v := at(b.From)
			if b.Target.Kind == bind.TargetNone {
				v.Waits = append(v.Waits, "it was not there")
			} else {
				v.Bound = append(v.Bound, b.Target)
			}
		}
		return list, nil
	}
	if bare, err := x.Bare(); err != nil || bare {
		return nil, errors.Join(err, x.Losses(s))
	}
	if err := x.Keep(); err != nil {
		return nil, err
	}
	r, err := x.Binder.Resolve(x.Record.Branches())
	if err != nil {
		return nil, err
	}
	held, err := heldBy(x.Interface, s.Bound)
	if err != nil {
		return nil, err
	}
	is := make(map[bind.Target]hierarchy.ClassID, len(s.Bound))
	for _, b := range s.Bound {
		is[b.Target] = b.Class
	}
	for _, b := range r.Bound {
		v := at(b.From)
		if is[b.Target] == b.Class {
			v.Bound = append(v.Bound, b.Target)
			h := held[b.Target]
			h.From, h.AtRuntime = b.From, v.AtRuntime
			v.Held = append(v.Held, h)
		} else {
			v.Waits = append(v.Waits, notBound(b.Target))
		}
	}
	for _, p := range r.Pending {
		v := at(p.Binding.String())
		v.Waits = append(v.Waits, p.Reason)
	}
	for _, o := range r.Outside {
		v := at(o.Binding.String())
		v.Outside = append(v.Outside, o.String())
	}
	for _, f := range r.Refused {
		for _, b := range []bind.Binding{f.Binding, f.With} {
			v := at(b.String())
			v.Refused = append(v.Refused, f.Err.Error())
		}
	}
	return list, nil
}

// notBound says that a target could be bound and is not.
func notBound(target bind.Target) string {
	return target.String() + " is there and not bound: start vifshape agent, or apply the policy again"
}

// write prints the bindings as a table, one line for each thing that they name.
func (b bindingsJSON) write(e *env) error {
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "BRANCH\tBINDING\tMADE\tIN FORCE FOR")
	for _, v := range b.Bindings {
		var lines []string
		for i, s := range v.Bound {
			lines = append(lines, v.inForce(i, s)...)
		}
		for _, s := range slices.Concat(v.Waits, v.Refused, v.Outside) {
			lines = append(lines, "- "+words.Printable(s))
		}
		if len(lines) == 0 {
			lines = []string{"nothing of its own: another names it more exactly, or one above has the same class"}
		}
		made := (&record.Binding{AtRuntime: v.AtRuntime}).By()
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
