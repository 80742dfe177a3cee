package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/qdisc"
)

// newHelpCommand is cobra's, but for topics, and exit status 64 where there is no such
// command.
func newHelpCommand(e *env) *cobra.Command {
	return &cobra.Command{
		Use:   "help [COMMAND|TOPIC]",
		Short: "Say what vifshape or one of its commands does, or tell of a topic",
		Long: `Say what vifshape or one of its commands does, or tell of a topic; "vifshape help qdisc
KIND" tells of one kind of queue.

TOPICS` + listTopics() + `

Each is a page of the manual, too: "vifshape man policy | man -l -".` + plainExitHelp,
		RunE: func(c *cobra.Command, a []string) error {
			if len(a) > 0 && a[0] == qdiscTopic {
				return helpQdisc(e, a[1:])
			}
			if len(a) == 1 {
				if t, ok := topicOf(a[0]); ok {
					e.printf("%s", t.text())
					return nil
				}
			}
			about, rest, err := c.Root().Find(a)
			if err != nil || len(rest) > 0 {
				return noPage(about, a)
			}
			return about.Help()
		},
	}
}

// noPage is the error of words that are neither a topic nor a command below c.
func noPage(c *cobra.Command, a []string) error {
	names := commandsOf(c)
	if len(a) == 1 {
		for _, t := range topics {
			names = append(names, t.name)
		}
	}
	return usagef("no command or topic %q%s", strings.Join(a, " "), didYouMean(hierarchy.Nearest(a[len(a)-1], names)))
}

// listKinds is what all kinds of queues are.
func listKinds() string {
	var s strings.Builder
	s.WriteString(aboutKinds + "\n")
	for _, k := range qdisc.Kinds() {
		fmt.Fprintf(&s, "  %-15s  %s\n", k.Name, k.Help)
	}
	return s.String()
}

func helpQdisc(e *env, a []string) error {
	kinds := qdisc.Kinds()
	switch len(a) {
	case 0:
		e.printf("%s", listKinds())
		return nil
	case 1:
		for _, k := range kinds {
			if k.Name != a[0] {
				continue
			}
			text, err := aboutKind(k)
			if err == nil {
				e.printf("%s: %s\n\n%s", k.Name, k.Help, text)
			}
			return err
		}
		names := make([]string, len(kinds))
		for i, k := range kinds {
			names[i] = k.Name
		}
		if near := hierarchy.Nearest(a[0], names); near != "" {
			return usagef("no queueing discipline %q: did you mean %s?", a[0], near)
		}
	}
	return usagef("no queueing discipline %q: `vifshape help qdisc` lists them", strings.Join(a, " "))
}

const aboutKinds = `The queueing discipline of a leaf stands in its table as a kind,

  qdisc = "sfq"

or as a kind with parameters, under the names of tc's manual:

  qdisc = { kind = "sfq", limit = 500, perturb = "10s" }

What is left open is chosen for the branch and its interface; "vifshape show" says
what was chosen. A leaf without a qdisc gets fq_codel, else sfq, else bfifo.
"vifshape doctor" says which of them this kernel has, "vifshape help qdisc KIND"
explains one.
`

// The branches for which defaults are shown.
const (
	slowBranch = 10 * hierarchy.Mbit
	fastBranch = 10 * hierarchy.Gbit
)

// aboutKind is an example of a kind and all its parameters.
func aboutKind(k hierarchy.Kind) (string, error) {
	slow, err := qdisc.Defaults(k.Name, slowBranch)
	if err != nil {
		return "", err
	}
	fast, err := qdisc.Defaults(k.Name, fastBranch)
	if err != nil {
		return "", err
	}
	var s strings.Builder
	example := []string{fmt.Sprintf("kind = %q", k.Name)}
	for i := range k.Params[:min(2, len(k.Params))] {
		p := &k.Params[i]
		text := p.Example()
		if v, ok := slow.Get(p.Name); ok {
			text = p.Format(v)
		}
		example = append(example, assignment(p, text))
	}
	fmt.Fprintf(&s, "  qdisc = { %s }\n", strings.Join(example, ", "))
	for i := range k.Params {
		p := &k.Params[i]
		fmt.Fprintf(&s, "\n  %s\n      %s\n      %s", p.Name, p.Help, takes(p))
		v, ok := slow.Get(p.Name)
		w, _ := fast.Get(p.Name)
		switch {
		case !ok:
		case needed(k, hierarchy.Setting{Name: p.Name, Value: v}):
			s.WriteString("; needed")
		case p.Format(v) == p.Format(w):
			fmt.Fprintf(&s, "; default %s", p.Format(v))
		default:
			fmt.Fprintf(&s, "; default %s in a branch of %v, %s in one of %v", p.Format(v), slowBranch, p.Format(w), fastBranch)
		}
		s.WriteByte('\n')
	}
	return s.String(), nil
}

// needed says whether the kind cannot be without the parameter of x.
func needed(k hierarchy.Kind, x hierarchy.Setting) bool {
	return k.Verify != nil && k.Verify(hierarchy.Qdisc{Kind: k.Name}) != nil &&
		k.Verify(hierarchy.Qdisc{Kind: k.Name, Params: []hierarchy.Setting{x}}) == nil
}

// assignment is a parameter as a policy has it.
func assignment(p *hierarchy.Param, text string) string {
	switch p.Type {
	case hierarchy.Count, hierarchy.Flag, hierarchy.Signed:
		return p.Name + " = " + text
	}
	return fmt.Sprintf("%s = %q", p.Name, text)
}

// takes says what may be written for a parameter.
func takes(p *hierarchy.Param) string {
	what := "a number"
	switch p.Type {
	case hierarchy.Flag:
		return "true or false"
	case hierarchy.Choice:
		return "one of " + strings.Join(p.Choices, ", ")
	case hierarchy.Bytes:
		what = "a size"
	case hierarchy.Duration:
		what = "a time"
	case hierarchy.Rate:
		what = "a bandwidth"
	case hierarchy.Percent:
		what = "a percentage"
	}
	bounds := *p
	if p.Type == hierarchy.Numbers {
		what = fmt.Sprintf("%d numbers", p.Len)
		bounds.Type = hierarchy.Count
	}
	switch {
	case p.Type == hierarchy.Percent && p.Max == 0:
		what += " from 0% to 100%"
	case p.Max == 0 && p.Type != hierarchy.Signed:
		what += " from " + bounds.Format(p.Min) + " up"
	default:
		what += " from " + bounds.Format(p.Min) + " to " + bounds.Format(p.Max)
	}
	for i, n := range p.Names {
		if i == 0 {
			what += ", or "
		} else {
			what += ", "
		}
		what += n.Name
	}
	return what
}
