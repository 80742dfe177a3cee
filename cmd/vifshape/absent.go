package main

import (
	"fmt"
	"slices"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/link"
)

// unlike is the error without a name that the policy has as well: that is not what
// was meant.
func unlike(no *link.NotFoundError, p *policy.Policy) *link.NotFoundError {
	if slices.ContainsFunc(p.Trees, func(t *hierarchy.Tree) bool { return t.Port.Device == no.Nearest }) {
		return &link.NotFoundError{Name: no.Name}
	}
	return no
}

// notThere is the error of interfaces that are not there.
func (c *Changes) notThere() (err error) {
	for _, no := range c.absent {
		if err == nil {
			err = no
		} else {
			err = fmt.Errorf("%w; %w", err, no)
		}
	}
	return err
}

// tellAbsent says which interfaces of the policy are left out.
func (c *Changes) tellAbsent() {
	for _, no := range c.absent {
		c.m.warnf(hierarchy.Path(no.Name), "%v; what the policy says of it is left out", no)
	}
	switch len(c.absent) {
	case 0:
		return
	case 1:
		c.m.hintf("", "apply again once it is there; with --all-or-nothing nothing is changed without it")
	default:
		c.m.hintf("", "apply again once they are there; with --all-or-nothing nothing is changed without them")
	}
}
