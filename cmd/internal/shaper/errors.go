package shaper

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/vifshape/vifshape/cgroup/caps"
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
type ForeignRootError struct{ Err error }

func (e ForeignRootError) Error() string { return e.Err.Error() }
func (e ForeignRootError) Unwrap() error { return e.Err }

// NotPrivileged says whether an error is a want of rights.
func NotPrivileged(err error) bool {
	return errors.Is(err, rtnl.ErrNotPrivileged) || errors.Is(err, caps.ErrNotPrivileged) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EPERM)
}
