package shaper

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cmd/internal/words"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// PartlyError says that something was changed and could not be put back.
type PartlyError struct{ Err error }

func (e PartlyError) Error() string { return e.Err.Error() }
func (e PartlyError) Unwrap() error { return e.Err }

// FormerError says that a tree was cleared and what was there before is not back.
type FormerError struct{ Err error }

func (e FormerError) Error() string { return e.Err.Error() }
func (e FormerError) Unwrap() error { return e.Err }

// ForeignRootError says that somebody else's root qdisc stands where a tree
// should. What else is foreign says itself what to do about it.
type ForeignRootError struct {
	iface string
	root  hierarchy.Root
	limit bool // there is no policy that could say that a tree takes its place
}

func (e *ForeignRootError) Error() string {
	return fmt.Sprintf("%s: the root qdisc %s %v is %v", e.iface, e.root.Kind, e.root.Handle, rtnl.ErrForeign)
}

func (e *ForeignRootError) Unwrap() error { return rtnl.ErrForeign }

// Remedy is the way on.
func (e *ForeignRootError) Remedy() string {
	if e.limit {
		return fmt.Sprintf("`vifshape import --adopt -o policy.toml %[1]s` makes a policy of it that limits come below, `tc qdisc del dev %[1]s root` takes it away", words.Quoted(e.iface))
	}
	return "write replace = true below the interface to let vifshape take its place; plan then says whether `vifshape clear` can put it back"
}

// NotPrivileged says whether an error is a want of rights.
func NotPrivileged(err error) bool {
	return errors.Is(err, rtnl.ErrNotPrivileged) || errors.Is(err, caps.ErrNotPrivileged) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EPERM)
}
