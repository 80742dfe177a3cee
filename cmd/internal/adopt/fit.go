//go:build linux

package adopt

import (
	"slices"

	"github.com/vifshape/vifshape/hierarchy"
)

// direction is where the numbers of branches are for what is sent, or for what is received.
type direction struct {
	key  string // in front of the keys of notes
	of   func(*branch) *shape
	spec func(*branch) *hierarchy.BranchSpec
}

func sending() direction {
	return direction{"", func(b *branch) *shape { return &b.shape }, func(b *branch) *hierarchy.BranchSpec { return b.spec }}
}

// receiving has one key in a branch's table, whatever it holds.
func receiving() direction {
	return direction{"ingress", func(b *branch) *shape { return &b.received }, func(b *branch) *hierarchy.BranchSpec { return b.spec.Ingress }}
}

func (d direction) note(b *branch, key, format string, args ...any) {
	if d.key != "" {
		format, key = key+" "+format, d.key
	}
	b.note(key, format, args...)
}

// fit writes the rates and ceilings of top and all below it, lowered where a policy is
// stricter than the kernel: guarantees are within the parent's, and ceilings too.
func (d direction) fit(top *branch) {
	s := d.of(top)
	s.rate = min(max(s.rate, top.least()), hierarchy.MaxBandwidth)
	s.ceil = s.rate
	d.spec(top).Rate = hierarchy.Absolute(s.rate)
	d.below(top)
}

// least is the rate with which something is left for each branch below b: HTB's own least.
func (b *branch) least() hierarchy.Bandwidth {
	if b.leaf() {
		return 8
	}
	sum := hierarchy.Bandwidth(16)
	for _, c := range b.children {
		sum += c.least()
	}
	return 2 * sum
}

// share is the part of its parent's rate that a branch without one is to find.
const share = 100

func (d direction) below(b *branch) {
	parent := *d.of(b)
	open, each := hierarchy.Bandwidth(0), max(parent.rate/share, 8)
	if b.rest() == nil && (b.parent == nil || len(b.targeted) > 0) && len(b.children) > 0 {
		open++ // the rest that is added
	}
	var sum, least hierarchy.Bandwidth
	for _, c := range b.children {
		s := d.of(c)
		if !s.shaped {
			open, each = open+1, max(each, c.least())
			continue
		}
		if s.ceil > parent.ceil {
			d.note(c, "ceil", "was %v, above its parent's", s.ceil)
		}
		if s.ceil == 0 || s.ceil > parent.ceil {
			s.ceil = parent.ceil
		}
		s.ceil = max(s.ceil, c.least())
		if s.rate > s.ceil {
			d.note(c, "rate", "was %v, above what its parent may reach", s.rate)
			s.rate = s.ceil
		}
		s.rate = max(s.rate, c.least()) // little is left where a rest came up from below
		sum, least = sum+s.rate, least+c.least()
	}
	kept := min(open*each, parent.rate/2)
	fits := parent.rate - kept
	part := float64(fits) / float64(sum)
	first := func(*branch) hierarchy.Bandwidth { return 0 }
	if slices.ContainsFunc(b.children, func(c *branch) bool { return d.of(c).shaped && float64(d.of(c).rate)*part < float64(c.least()) }) {
		part, first = float64(fits-least)/float64(sum-least), (*branch).least // and parts of what is above it
	}
	for _, c := range b.children {
		s := d.of(c)
		if !s.shaped {
			continue
		}
		if sum > fits {
			was := s.rate
			s.rate = max(round(first(c)+hierarchy.Bandwidth(float64(was-first(c))*part)), c.least())
			if kept > 0 && sum <= parent.rate {
				d.note(c, "rate", "was %v: something has to be left for the others", was)
			} else {
				d.note(c, "rate", "was %v: all of its level came to %v, and their parent has %v", was, sum, parent.rate)
			}
		}
		spec := d.spec(c)
		spec.Rate = hierarchy.Absolute(s.rate)
		if s.ceil < parent.ceil {
			spec.Ceil = hierarchy.Absolute(s.ceil)
		}
		d.below(c)
	}
}

// round is a bandwidth that can be read, no larger.
func round(b hierarchy.Bandwidth) hierarchy.Bandwidth {
	unit := hierarchy.Bandwidth(1)
	for b/unit >= 1000 {
		unit *= 10
	}
	return max(b/unit*unit, 8)
}
