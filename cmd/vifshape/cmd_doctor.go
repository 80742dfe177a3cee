package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cmd/internal/doctor"
	"github.com/vifshape/vifshape/cmd/internal/words"
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

func (e *env) doctor(ctx context.Context, interfaces []string, o doctorOptions) error {
	m, err := e.machine()
	if err != nil {
		return err
	}
	defer m.Close()
	r, err := doctor.Examine(ctx, m, o.policy, interfaces)
	if err != nil {
		return err
	}
	if o.json {
		err = e.json(r)
	} else {
		e.writeFindings(r)
	}
	switch v := r.Verdict; {
	case err != nil:
		return err
	case v == doctor.Cannot:
		return codeError(exitError)
	case v == doctor.Unclear:
		return codeError(exitPrivilege)
	case v == doctor.Partial:
		return codeError(exitAbsent)
	}
	return nil
}

func (e *env) writeFindings(r *doctor.Report) {
	what := "a policy"
	if r.Policy != "" {
		what = words.Printable(r.Policy)
	}
	all := r.Shown()
	switch r.Verdict {
	case doctor.Can:
		e.printf("%s can be applied here\n", what)
	case doctor.Partial:
		e.printf("%s can be applied here, but for interfaces that are not there\n", what)
	case doctor.Cannot:
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
		if f.Group == doctor.GroupInterface {
			h += " " + words.Printable(f.Interface)
		}
		if h != head {
			e.printf("\n%s\n", h)
			head = h
		}
		mark := " "
		if f.Stops() {
			mark = "!"
		}
		e.printf("%s %-7s  %-*s  %s\n", mark, f.State, width, f.Topic, f.Place()+oneLine(f.Text))
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
	counts := map[doctor.Condition]int{}
	for _, f := range all {
		counts[f.State]++
	}
	var parts []string
	for _, s := range []doctor.Condition{doctor.Missing, doctor.Weaker, doctor.Unknown} {
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
