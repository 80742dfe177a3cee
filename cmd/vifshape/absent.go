package main

import (
	"fmt"
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

// notThere is the error of interfaces that are not there.
func (m *machine) notThere() (err error) {
	for _, no := range m.absent {
		if err == nil {
			err = no
		} else {
			err = fmt.Errorf("%w; %w", err, no)
		}
	}
	return err
}

// absentRemarks says which interfaces of the policy are left out.
func (m *machine) absentRemarks() {
	for _, no := range m.absent {
		m.warnf("%v; what the policy says of it is left out", no)
	}
	switch len(m.absent) {
	case 0:
		return
	case 1:
		m.hintf("apply again once it is there; with --all-or-nothing nothing is changed without it")
	default:
		m.hintf("apply again once they are there; with --all-or-nothing nothing is changed without them")
	}
}

// partial is the exit status where interfaces of the policy were left out, else nil.
func (m *machine) partial() error {
	if len(m.absent) > 0 {
		return codeError(exitAbsent)
	}
	return nil
}
