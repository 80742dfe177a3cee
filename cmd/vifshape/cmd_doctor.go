package main

import (
	"strings"

	"github.com/spf13/cobra"

	"github.com/vifshape/vifshape/cgroup"
	"github.com/vifshape/vifshape/tc"
)

func newDoctorCommand(e *env) *cobra.Command {
	asJSON := false
	c := &cobra.Command{
		Use:   "doctor",
		Short: "Say what this machine can and cannot do, and why",
		Long: `Doctor tries what vifshape needs and changes nothing: whether the kernel has htb,
clsact and cls_bpf, which queueing disciplines it has for leaves, which ways there are to tell whose a packet is, and which of them
apply would take. Run it as root: without privileges most things cannot be tried.

EXIT STATUS
  0  a policy can be applied here
  1  it cannot; the lines with "no" say why
  2  wrong flags or arguments`,
		Args: args(0, 0, ""),
		RunE: func(*cobra.Command, []string) error { return e.doctor(asJSON) },
	}
	c.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return c
}

// finding is one line of doctor.
type finding struct {
	Topic string `json:"topic"`
	OK    bool   `json:"ok"`
	Need  bool   `json:"needed"` // without it nothing can be applied
	Text  string `json:"text"`
}

func (e *env) doctor(asJSON bool) error {
	all, err := e.findings()
	if err != nil {
		return err
	}
	can := true
	for _, f := range all {
		can = can && (f.OK || !f.Need)
	}
	if asJSON {
		err := e.json(struct {
			OK       bool      `json:"ok"`
			Findings []finding `json:"findings"`
		}{can, all})
		if err != nil {
			return err
		}
	} else {
		for _, f := range all {
			mark := "yes"
			if !f.OK {
				mark = "no "
			}
			e.printf("%s  %-22s %s\n", mark, f.Topic, strings.ReplaceAll(f.Text, "\n", "; "))
		}
	}
	if !can {
		return codeError(exitError)
	}
	return nil
}

// notFound says how sure it is that something is not there.
func notFound(root bool) string {
	if root {
		return ": not in this kernel, nor among its modules"
	}
	return ": not in the lists of this kernel's modules; root can ask the kernel itself"
}

func (e *env) findings() ([]finding, error) {
	var all []finding
	r := cgroup.Probe()
	root := r.Privileges == nil
	text := "apply, run and clear can work"
	if !root {
		text = r.Privileges.Error() + "; check, plan, ls and show work, and most of what follows could not be tried"
	}
	all = append(all, finding{"privileges", root, true, text})

	conn, err := e.open()
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	lo, err := conn.Device("lo")
	if err != nil {
		return nil, err
	}
	no, err := lo.Lacks("htb", "clsact")
	if err != nil {
		return nil, err
	}
	trees := finding{"trees and hooks", len(no) == 0, true, "htb, clsact"}
	if !trees.OK {
		trees.Text = strings.Join(no, ", ") + notFound(root)
	}
	all = append(all, trees)
	switch has, known := tc.HasBPF(); {
	case has:
		all = append(all, finding{"classifier cls_bpf", true, false, "in this kernel, or among its modules"})
	case known:
		all = append(all, finding{"classifier cls_bpf", false, false, "neither in this kernel nor among its modules: it takes binding cls_cgroup"})
	default:
		all = append(all, finding{"classifier cls_bpf", false, false, "not to be seen; whether the kernel has it shows only when it is used"})
	}
	have, lacking, err := lo.LeafKinds()
	if err != nil {
		return nil, err
	}
	all = append(all, finding{"leaf qdiscs", len(have) > 0, true, strings.Join(have, ", ")})
	if len(lacking) > 0 {
		all = append(all, finding{"other leaf qdiscs", false, false, strings.Join(lacking, ", ") + notFound(root)})
	}
	all = append(all, finding{"cgroups", true, false, r.Layout})
	for _, w := range r.Ways {
		f := finding{Topic: "binding " + string(w.Way), OK: w.Err == nil, Text: w.Text}
		if w.Err != nil {
			f.Text = w.Err.Error()
		} else if w.Way == r.Way {
			f.Text += "; auto takes this"
		}
		all = append(all, f)
	}
	all = append(all, finding{"any binding", r.Way != "", true, "programs and services can be kept in branches"})
	switch {
	case r.Way == "" && root:
		all[len(all)-1].Text = "nothing here tells whose a packet is"
	case r.Way == "":
		all[len(all)-1].Text = "none could be tried without privileges"
	}
	for _, n := range r.Notes {
		all = append(all, finding{"note", true, false, n})
	}
	return all, nil
}
