package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/bind"
	"github.com/vifshape/vifshape/tc/qdisc"
)

const bindingHelp = "how processes are bound: `auto`, bpf, nft or net_cls (default: the policy's word, else auto)"

type planOptions struct {
	binding               string
	tc, json, detail, all bool
}

func newPlanCommand(e *env) *cobra.Command {
	var o planOptions
	c := &cobra.Command{
		Use:   "plan FILE",
		Short: "Show what apply would change on this machine",
		Long: `Plan compares a policy with what the kernel has and prints what apply would do,
in the order it would do it: + creates, ~ changes, - deletes. What stays as it is
is not listed. It changes nothing and needs no privileges, but without them the
bindings in force cannot be read, and it says so. Interfaces of the policy that are
not there are named, and left out as apply leaves them out.

EXIT STATUS
  0   done; with --detailed-exitcode: there is nothing to change
  1   an error
  2   with --detailed-exitcode: there is something to change, or the record of the
      tree is lost
  5   root is needed, or root lacks a capability that the message names
  6   interfaces of the policy are not there, and left out; whether there are changes
      or not
  64  wrong flags or arguments`,
		Args: args(1, 1, "one policy file"),
		RunE: interruptible(func(c *cobra.Command, a []string) error { return e.plan(c.Context(), a[0], o) }),
	}
	f := c.Flags()
	f.StringVar(&o.binding, "binding", "", bindingHelp)
	f.BoolVar(&o.tc, "tc", false, "print the equivalent tc commands")
	f.BoolVar(&o.json, "json", false, "print JSON")
	f.BoolVar(&o.all, "all-or-nothing", false, "fail unless every interface of the policy is there")
	f.BoolVar(&o.detail, "detailed-exitcode", false, "exit with 2 when there are changes")
	return c
}

func (e *env) plan(ctx context.Context, file string, o planOptions) error {
	if err := checkBinding(o.binding); err != nil {
		return err
	}
	if o.tc && o.json {
		return usagef("--tc and --json are two forms of the same plan: write one of them")
	}
	parsing := e.parse(file)
	m, err := e.machine()
	if err != nil {
		return parsing.before(ctx, err)
	}
	defer m.Close()
	all, err := m.targets(ctx, file, o.binding, parsing)
	if err != nil {
		return err
	}
	defer release(all)
	if o.all && len(m.absent) > 0 {
		return m.notThere()
	}
	m.absentRemarks()
	if err := m.linkRemarks(all); err != nil {
		return err
	}
	var plans []hierarchy.Plan
	empty := true
	for _, x := range all {
		plans = append(plans, x.plan)
		empty = empty && x.plan.Empty() && !x.unknown()
		if x.unknown() {
			m.notef("%s: the record of its tree is lost: apply writes it anew; what bind and add had made goes, and clear cannot put back the root qdisc from before", x.tree.Interface)
		}
		m.remarks(x)
		m.addedRemarks(x, true)
		for _, b := range x.kept {
			m.notef("%s: %v, bound at run time, stays", b.Path, b.Binding)
		}
		if x.blind != nil {
			e.notef("%s: bindings are left out: without privileges they can be neither read nor tried", x.tree.Interface)
		}
	}
	if err := m.writePlans(plans, o); err != nil {
		return err
	}
	if err := m.partial(); err != nil || empty || !o.detail {
		return err
	}
	return codeError(exitChanges)
}

func (m *machine) writePlans(plans []hierarchy.Plan, o planOptions) error {
	kinds := newKindTable(qdisc.Kinds())
	if o.json {
		out := planAsJSON(plans)
		for _, no := range m.absent {
			out.Missing = append(out.Missing, no.Name)
		}
		return m.json(out)
	}
	for _, p := range plans {
		write := func() error { return writePlan(m.stdout, p, kinds) }
		if o.tc {
			write = func() error { return writeTC(m.stdout, p) }
		}
		if err := write(); err != nil {
			return err
		}
	}
	return nil
}

// remarks says on stderr what a plan does not show.
func (m *machine) remarks(x *target) {
	for _, b := range x.lost {
		m.notef("%s: %v, bound at run time, goes: the policy has no branch for it any more", b.Path, b.Binding)
	}
	m.waiting(x.pending)
	m.unheld(x.outside)
	if f := x.next.Former; f.Kind != "" && x.before.Root.Foreign() {
		back := "`vifshape clear` puts it back"
		if f.Partial {
			back = "it has classes, filters or qdiscs of its own and cannot be put back: keep what made it"
		}
		m.warnf("%s: the root qdisc %s %v is replaced; %s", x.tree.Interface, f.Kind, f.Handle, back)
	}
	var anew []hierarchy.Path
	var gone []hierarchy.Bound
	for _, s := range x.plan.Steps {
		switch old := s.Old.(type) {
		case *hierarchy.Leaf:
			if s.Action == hierarchy.Change && !qdisc.InPlace(old.Qdisc, s.New.(*hierarchy.Leaf).Qdisc) {
				anew = append(anew, s.New.(*hierarchy.Leaf).Path)
			}
		case *hierarchy.Bound:
			if s.Action == hierarchy.Delete {
				gone = append(gone, *old)
			}
		}
	}
	if len(anew) > 0 {
		others := ""
		if n := len(anew) - 1; n > 0 {
			others = fmt.Sprintf(", and those of %d more branches,", n)
		}
		m.warnf("%s: its queue%s cannot be changed in place: it is made anew, and packets that wait in it then are dropped", anew[0], others)
	}
	// Processes that cannot be listed are no reason to stop a change.
	held, _ := x.held(x.before.Bound)
	for _, b := range gone {
		if n := len(held[b.Target]); n > 0 {
			m.warnf("%s: processes that are bound to it (%s: %d) leave it: what they send is up to a binding above theirs, or goes to the rest", name(b.Path, b.Class), words.Printable(b.Target.String()), n)
		}
	}
}

// waiting says which bindings name what is not there.
func (m *machine) waiting(all []cgroup.Pending) {
	for _, w := range all {
		m.notef("%s: %v is not bound yet: %s; once it is there, vifshape agent binds it at once, else the next apply", w.Path, w.Binding, w.Reason)
	}
}

// unheld says which bindings do not hold all processes of what they name.
func (m *machine) unheld(all []cgroup.Outside) {
	for _, o := range all {
		m.warnf("%s: %s does not hold all of it: %s", o.Path, bindingText(o.Binding), words.Printable(o.String()))
	}
}

// bindingText is a binding, or words for that of a branch's own cgroup.
func bindingText(b bind.Binding) string {
	if b == (bind.Binding{}) {
		return "its own cgroup"
	}
	return b.String()
}

func checkBinding(s string) error {
	switch s {
	case "", "auto", "bpf", "nft", "net_cls":
		return nil
	}
	return usagef("binding %q is not one of auto, bpf, nft, net_cls", s)
}
