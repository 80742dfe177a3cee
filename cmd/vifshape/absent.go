package main

import (
	"errors"
	"slices"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc"
)

const allOrNothingHelp = "fail, and change nothing, unless every interface of the policy is there"

// unlike is the error without a name that the policy has as well: that is not what
// was meant.
func unlike(no *tc.ErrNoDevice, p *policy.Policy) *tc.ErrNoDevice {
	if slices.ContainsFunc(p.Trees, func(t *hierarchy.Tree) bool { return t.Interface == no.Nearest }) {
		return &tc.ErrNoDevice{Name: no.Name}
	}
	return no
}

// noneThere is the error of interfaces that are not there.
func (m *machine) noneThere() error {
	var errs []error
	for _, no := range m.absent {
		errs = append(errs, no)
	}
	return errors.Join(errs...)
}

// absentRemarks says which interfaces of the policy are left out.
func (m *machine) absentRemarks() {
	for _, no := range m.absent {
		m.warnf("%v; what the policy says of it is left out", no)
	}
	if len(m.absent) > 0 {
		m.hintf("apply again once it is there; with --all-or-nothing nothing is changed unless all are there")
	}
}

// partial is the exit status where interfaces of the policy were left out, else nil.
func (m *machine) partial() error {
	if len(m.absent) > 0 {
		return codeError(exitAbsent)
	}
	return nil
}
