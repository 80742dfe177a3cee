package shaper

import (
	"fmt"

	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/policy"
	"github.com/vifshape/vifshape/tc/link"
)

// Unlike is the error without a name that the policy has as well: that is not what
// was meant.
func Unlike(no *link.NotFoundError, p *policy.Policy) *link.NotFoundError {
	if p.Names(no.Nearest) {
		return &link.NotFoundError{Name: no.Name}
	}
	return no
}

// NotThere is the error of interfaces that are not there.
func (c *Changes) NotThere() (err error) {
	for _, no := range c.Absent {
		if err == nil {
			err = no
		} else {
			err = fmt.Errorf("%w; %w", err, no)
		}
	}
	return err
}

// tellAbsent says which interfaces of the policy are left out, or wait.
func (c *Changes) tellAbsent() {
	for _, no := range c.Unknown {
		c.m.Warnf(hierarchy.Path(no.Iface), "%v; what the policy says of it waits", no)
		c.m.Hintf(hierarchy.Path(no.Iface), "%s", no.Remedy())
	}
	if c.waits {
		for _, no := range c.Absent {
			c.m.Notef(hierarchy.Path(no.Name), "%s is not there: what the policy says of it waits until it is", no.Name)
		}
		return
	}
	for _, no := range c.Absent {
		c.m.Warnf(hierarchy.Path(no.Name), "%v; what the policy says of it is left out", no)
	}
	switch len(c.Absent) {
	case 0:
		return
	case 1:
		c.m.Hintf("", "apply again once it is there; with --all-or-nothing nothing is changed without it")
	default:
		c.m.Hintf("", "apply again once they are there; with --all-or-nothing nothing is changed without them")
	}
}
