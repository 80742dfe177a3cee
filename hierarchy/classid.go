package hierarchy

import (
	"fmt"
	"strconv"
	"strings"
)

// Major is the handle of every HTB root qdisc that vifshape makes, and so the
// major number of all its classes. It is how our trees are recognised; it lies
// below 0x8000, where the kernel's automatic handles begin (qdisc_alloc_handle,
// net/sched/sch_api.c, v6.12).
const Major = 0x71f

// Minor numbers with a fixed meaning. HTB's default class cannot be changed
// while the qdisc lives (htb_init has no change operation), so its number never
// changes.
const (
	RootMinor = 1 // the class that carries the interface's own rate
	RestMinor = 2 // the default class: what no binding claims
)

// ClassID names a traffic control object as the kernel does: the major number
// of the qdisc in the upper 16 bits, the minor number of the class in the lower.
// A minor of 0 names the qdisc itself. The zero value means "none".
type ClassID uint32

// ID is the class of vifshape's own tree with the given minor number.
func ID(minor uint16) ClassID { return Major<<16 | ClassID(minor) }

// Major is the upper half: the qdisc's handle.
func (c ClassID) Major() uint16 { return uint16(c >> 16) }

// Minor is the lower half: the class within the qdisc, 0 for the qdisc itself.
func (c ClassID) Minor() uint16 { return uint16(c) }

// String prints the id as tc does, in hexadecimal: "71f:1a2b", and "71f:" for a
// qdisc.
func (c ClassID) String() string {
	if c.Minor() == 0 {
		return fmt.Sprintf("%x:", c.Major())
	}
	return fmt.Sprintf("%x:%x", c.Major(), c.Minor())
}

// ParseClassID reads "71f:1a2b" or "71f:": two hexadecimal numbers of at most
// 16 bits. Both halves are checked.
func ParseClassID(s string) (ClassID, error) {
	a, b, ok := strings.Cut(s, ":")
	if !ok {
		return 0, fmt.Errorf("class id %q has no colon: write major:minor in hexadecimal, for example 71f:2", s)
	}
	maj, err := strconv.ParseUint(a, 16, 16)
	if err != nil {
		return 0, fmt.Errorf("class id %q: %q is not a hexadecimal number of at most ffff", s, a)
	}
	if b == "" {
		return ClassID(maj << 16), nil
	}
	minor, err := strconv.ParseUint(b, 16, 16)
	if err != nil {
		return 0, fmt.Errorf("class id %q: %q is not a hexadecimal number of at most ffff", s, b)
	}
	return ClassID(maj<<16 | minor), nil
}

// MarshalText implements encoding.TextMarshaler with the form of String.
func (c ClassID) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler with ParseClassID.
func (c *ClassID) UnmarshalText(t []byte) error {
	v, err := ParseClassID(string(t))
	if err == nil {
		*c = v
	}
	return err
}
