package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
)

type doctorOptions struct {
	json   bool
	policy string
}

func newDoctorCommand(e *env) *cobra.Command {
	var o doctorOptions
	c := &cobra.Command{
		Use:   "doctor [INTERFACE...]",
		Short: "Say what this machine can and cannot do, and what to do about it",
		Long: `Doctor looks for what vifshape needs and for what stands in its way: what the
kernel has, how programs can be bound, what the settings of the machine and its
interfaces lead to, and who else has a hand in their traffic. It changes nothing;
the kernel may load modules when it is asked for them. Each line is one finding:

  good     as it should be
  weaker   vifshape works, and what follows is said
  missing  it is not there, or stands in the way
  unknown  it could not be tried without privileges

Below it stands what follows and, behind "$", the command that mends it. With
names of interfaces only these are looked at; else all but loopback, and those
that are neither hardware nor have anything to say are left out.

--policy FILE says whether that policy can be applied here, and each thing that
stands in its way with its place in the file; of the machine itself only what is
not good is shown then. --json prints all findings.

EXIT STATUS
  0   a policy, with --policy that policy, can be applied here
  1   it cannot; the findings "missing" marked with "!" say why
  5   nothing was found that stands in the way, but not all could be tried: root
      is needed, or root lacks a capability that a finding names
  6   it can, but for interfaces of the policy that are not there
  64  wrong flags or arguments`,
		Args: args(0, -1, "names of interfaces"),
		RunE: func(c *cobra.Command, a []string) error { return e.doctor(c.Context(), a, o) },
	}
	c.Flags().StringVar(&o.policy, "policy", "", "say whether the policy in `FILE` can be applied here")
	c.Flags().BoolVar(&o.json, "json", false, "print JSON")
	return c
}

// condition is how things stand with one finding.
type condition string

const (
	good    condition = "good"
	weaker  condition = "weaker"
	missing condition = "missing"
	unknown condition = "unknown"
)

// The groups of findings, in the order in which they are shown.
const (
	groupPolicy    = "policy"
	groupMachine   = "machine"
	groupQueueing  = "queueing"
	groupBinding   = "binding"
	groupInterface = "interface"
)

// topicAbsent is the topic of interfaces of a policy that are not there.
const topicAbsent = "interface"

// doctorJSON is the stable form of doctor.
type doctorJSON struct {
	Verdict  verdict   `json:"verdict"`
	OK       bool      `json:"ok"`
	Policy   string    `json:"policy,omitempty"`
	Kernel   string    `json:"kernel"`
	Way      string    `json:"way"` // that auto takes, empty: none
	Findings []finding `json:"findings"`
}

// finding is one thing that doctor looked at. Its JSON form is stable.
type finding struct {
	Group     string         `json:"group"`
	Topic     string         `json:"topic"`
	State     condition      `json:"state"`
	Needed    bool           `json:"needed"` // unless it is good nothing can be applied
	Text      string         `json:"text"`
	Follows   string         `json:"follows,omitempty"` // what it means for vifshape
	Fix       []string       `json:"fix,omitempty"`     // commands
	Names     []string       `json:"names,omitempty"`   // of what the finding counts up
	Weak      []string       `json:"weak,omitempty"`    // what a way of binding does not hold that bpf does
	Interface string         `json:"interface,omitempty"`
	Path      hierarchy.Path `json:"path,omitempty"` // of the branch of the policy
	File      string         `json:"file,omitempty"` // of the policy
	Line      int            `json:"line,omitempty"`
	Column    int            `json:"column,omitempty"`
}

// stops says whether nothing can be applied because of it.
func (f *finding) stops() bool { return f.Needed && f.State == missing }

// absent says whether it is about an interface of the policy that is not there.
func (f *finding) absent() bool { return f.Topic == topicAbsent && f.State == missing }

// place is "policy.toml:7:3: ", as in the messages about a policy.
func (f *finding) place() string {
	if f.Line == 0 {
		return ""
	}
	return fmt.Sprintf("%s:%d:%d: ", f.File, f.Line, f.Column)
}

// verdict is what all findings come to.
type verdict string

const (
	can     verdict = "can"
	partial verdict = "partial" // but for interfaces that are not there
	cannot  verdict = "cannot"
	unclear verdict = "unclear"
)

func judge(all []finding) verdict {
	v := can
	for _, f := range all {
		switch {
		case f.stops():
			return cannot
		case f.Needed && f.State == unknown:
			v = unclear
		case f.absent() && v == can:
			v = partial
		}
	}
	return v
}

func (e *env) doctor(ctx context.Context, interfaces []string, o doctorOptions) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	x, err := examine(m)
	if err != nil {
		return err
	}
	x.machine(ctx)
	if o.policy != "" {
		named, err := x.policy(ctx, o.policy)
		if err != nil {
			return err
		}
		if len(interfaces) == 0 {
			interfaces = named
		}
	}
	x.try(finding{Group: groupInterface, Topic: "interfaces"}, func() error {
		return x.interfaces(ctx, interfaces, o.policy != "")
	})
	v := judge(x.all)
	if o.json {
		err = e.json(doctorJSON{v, v == can, o.policy, x.release, string(x.way), x.all})
	} else {
		e.writeFindings(x.shown(len(interfaces) > 0, o.policy != ""), v, o.policy)
	}
	switch {
	case err != nil:
		return err
	case v == cannot:
		return codeError(exitError)
	case v == unclear:
		return codeError(exitPrivilege)
	case v == partial:
		return codeError(exitAbsent)
	}
	return nil
}

// shown are the findings for people, in order.
func (x *examination) shown(all, policy bool) []finding {
	speaks := map[string]bool{}
	for _, f := range x.all {
		speaks[f.Interface] = speaks[f.Interface] || f.State != good
	}
	var out []finding
	for _, group := range []string{groupPolicy, groupMachine, groupQueueing, groupBinding, groupInterface} {
		for _, f := range x.all {
			switch {
			case f.Group != group:
				continue
			case policy && f.Group != groupPolicy && f.State == good:
				continue
			case f.Group == groupInterface && !all && !x.hardware[f.Interface] && !speaks[f.Interface]:
				continue
			}
			out = append(out, f)
		}
	}
	return out
}

func (e *env) writeFindings(all []finding, v verdict, policy string) {
	what := "a policy"
	if policy != "" {
		what = words.Printable(policy)
	}
	switch v {
	case can:
		e.printf("%s can be applied here\n", what)
	case partial:
		e.printf("%s can be applied here, but for interfaces that are not there\n", what)
	case cannot:
		e.printf("%s cannot be applied here: see the findings marked with \"!\"\n", what)
	default:
		e.printf("nothing was found that stands in the way of %s, but not all could be tried\n", what)
	}
	width := 0
	for _, f := range all {
		width = max(width, len(f.Topic))
	}
	head := ""
	for _, f := range all {
		h := strings.ToUpper(f.Group)
		if f.Group == groupInterface {
			h += " " + words.Printable(f.Interface)
		}
		if h != head {
			e.printf("\n%s\n", h)
			head = h
		}
		mark := " "
		if f.stops() {
			mark = "!"
		}
		e.printf("%s %-7s  %-*s  %s\n", mark, f.State, width, f.Topic, f.place()+oneLine(f.Text))
		pad := strings.Repeat(" ", width+13)
		if f.Follows != "" {
			e.printf("%s%s\n", pad, oneLine(f.Follows))
		}
		for _, w := range f.Weak {
			e.printf("%sweaker than bpf in %s\n", pad, oneLine(w))
		}
		for _, c := range f.Fix {
			e.printf("%s$ %s\n", pad, c)
		}
	}
	counts := map[condition]int{}
	for _, f := range all {
		counts[f.State]++
	}
	var parts []string
	for _, s := range []condition{missing, weaker, unknown} {
		if counts[s] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", counts[s], s))
		}
	}
	if len(parts) > 0 {
		e.printf("\n%s\n", strings.Join(parts, ", "))
	}
}

// oneLine is text for a terminal: names in it may hold anything.
func oneLine(s string) string { return words.Printable(strings.ReplaceAll(s, "\n", "; ")) }

// add keeps a finding. What is good needs no command.
func (x *examination) add(f finding) {
	if f.State == good {
		f.Fix = nil
	}
	f.Fix = slices.Compact(f.Fix)
	x.all = append(x.all, f)
}
