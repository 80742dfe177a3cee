package main

import (
	"context"
	"fmt"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/vifshape/vifshape/cmd/internal/observe"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/match"
)

type whichOptions struct {
	policy string
	by     observe.Sender
	packet match.Packet
	json   bool
}

func newWhichCommand(e *env) *cobra.Command {
	var o whichOptions
	c := &cobra.Command{
		Use:   "which [PATH]",
		Short: "Say which branch would carry a packet, and by which match",
		Long: `Which says for a packet that the flags describe which branch would carry it, and what
it was held against on the way: the matches that decided, those that fit but are less
specific, and those that do not fit, with the keys that do not hold. What no flag says
the packet does not have: a match that asks for it does not fit.

  vifshape which --from 192.168.1.10 --to 192.0.2.7:443 --proto tcp
  vifshape which --in --to 192.168.1.10:5060 --from 192.0.2.7:5060 --proto udp
  vifshape which eth0/web --dscp EF             of who is bound to eth0/web
  vifshape which --pid 4711 --to 192.0.2.7:22 --proto tcp
  vifshape which --policy policy.toml --mark 0x10

It goes by what is in force on PATH's interface, or on each that is shaped; with --policy
by a policy, anywhere and without privileges. PATH is the branch to which whoever sends
the packet is bound, or with --in receives it; an interface, or none, is nobody's. Nothing
is sent: "vifshape prove" does that.

EXIT STATUS
  0    done
  1    an error, there is no such branch, or the kernel has not all that the last
       apply put there
  5    with --pid: root is needed
  64   wrong flags or arguments
  130  interrupted`,
		Args: args(0, 1, "one path at most"),
	}
	f := c.Flags()
	words := map[string]string{}
	for _, w := range []struct{ name, usage string }{
		{"from", "the sender's `ADDRESS`, ADDRESS:PORT or :PORT"}, {"to", "the receiver's `ADDRESS`, ADDRESS:PORT or :PORT"},
		{"host", "our side's `ADDRESS` before it is translated, where that is another"},
		{"proto", "`PROTOCOL` that IP carries: tcp, udp, icmp, 47"}, {"mac", "a MAC `ADDRESS`: of the far side, where that tells matches apart"},
		{"dscp", "code `POINT`: EF, AF41, 46"}, {"mark", "firewall `MARK`: 0x10"}, {"vlan", "`NUMBER` of the outermost tag"},
	} {
		f.String(w.name, "", w.usage)
	}
	f.Bool("in", false, "it is received, not sent")
	f.StringVar(&o.policy, "policy", "", "go by the policy in `FILE`, not by what is in force")
	f.IntVar(&o.by.PID, "pid", 0, "process `NUMBER` sends it, or receives it")
	f.BoolVar(&o.json, "json", false, "print JSON")
	c.RunE = interruptible(func(c *cobra.Command, a []string) (err error) {
		f.Visit(func(x *pflag.Flag) {
			if match.Describes(x.Name) {
				words[x.Name] = x.Value.String()
			}
		})
		if o.packet, err = match.ParsePacket(words); err != nil {
			return usagef("%v", err)
		}
		if o.by.Branch, err = optionalPath(a); err != nil {
			return err
		}
		switch {
		case f.Changed("pid") && o.by.PID <= 0:
			return usagef("--pid %d is no process: write its number", o.by.PID)
		case o.by.PID != 0 && o.policy != "":
			return usagef("--pid asks what is in force, --policy what is not: write the branch in place of one of them")
		case o.by.PID != 0 && o.by.Branch.Parent() != "":
			return usagef("--pid says who sends, and so does %s: write one of them, or the interface alone", o.by.Branch)
		}
		return e.which(c.Context(), o)
	})
	return c
}

// whichJSON is the stable form of which.
type whichJSON struct {
	Answers []*observe.Which `json:"answers"`
}

func (e *env) which(ctx context.Context, o whichOptions) error {
	out := whichJSON{Answers: []*observe.Which{}}
	var err error
	if o.policy != "" {
		err = e.whichOf(o, &out)
	} else {
		err = e.whichHere(ctx, o, &out)
	}
	switch {
	case len(out.Answers) == 0 && err == nil:
		e.notef("no interface is shaped by vifshape in this network namespace")
		return nil
	case o.json:
		if failed := e.json(out); err == nil {
			err = failed
		}
	default:
		for _, a := range out.Answers {
			e.writeWhich(a)
		}
	}
	return err
}

func (e *env) whichHere(ctx context.Context, o whichOptions, out *whichJSON) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	return e.each(m, o.by.Branch, func(iface string) error {
		a, err := observe.WhichHere(ctx, m, iface, o.by, o.packet)
		if err == nil {
			out.Answers = append(out.Answers, a)
		}
		return err
	})
}

func (e *env) whichOf(o whichOptions, out *whichJSON) error {
	p, err := shaper.ReadPolicy(o.policy)
	if err != nil {
		return err
	}
	for _, t := range p.Trees {
		if at := o.by.Branch; at != "" && at.Interface() != t.Port.Device {
			continue
		}
		a, err := observe.WhichOf(t, o.by.Branch, o.packet)
		if err != nil {
			return err
		}
		out.Answers = append(out.Answers, a)
	}
	if len(out.Answers) == 0 {
		var all []string
		for _, t := range p.Trees {
			all = append(all, t.Port.Device)
		}
		iface := o.by.Branch.Interface()
		return fmt.Errorf("%s has no interface %s%s", o.policy, iface, hierarchy.DidYouMean(hierarchy.Near(iface, all)))
	}
	return nil
}

// writeWhich prints what decided, and the first of what did not.
func (e *env) writeWhich(a *observe.Which) {
	const few = 20
	e.printf("%s: %s\n", a.Path, a.Packet)
	t := tabwriter.NewWriter(e.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "  %s\t%s\n", a.Start, a.Sender)
	last, left := a.Start, 0
	for i, r := range a.Rules {
		switch {
		case r.Verdict == observe.RuleDecides:
			last = r.Path
			fmt.Fprintf(t, "  %s\tmatch %d decides: %s\n", r.Path, r.Number, r.Match)
		case i >= few:
			left++
		case r.Verdict == observe.RuleFits:
			fmt.Fprintf(t, "  %s\tmatch %d fits, but is less specific: %s\n", r.Path, r.Number, r.Match)
		default:
			fmt.Fprintf(t, "  %s\tmatch %d does not fit: %s\n", r.Path, r.Number, r.Misses)
		}
	}
	if left > 0 {
		fmt.Fprintf(t, "  \tand %d others do not decide: --json has them all\n", left)
	}
	if a.Path != last {
		fmt.Fprintf(t, "  %s\tno match below %s fits\n", a.Path, hierarchy.Path(last))
	}
	t.Flush()
}
