package main

import (
	"errors"
	"io/fs"
	"syscall"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// partlyError says that something was changed and could not be put back.
type partlyError struct{ error }

func (e partlyError) Unwrap() error { return e.error }

// formerError says that a tree was cleared and what was there before is not back.
type formerError struct{ error }

func (e formerError) Unwrap() error { return e.error }

// foreignRootError says that somebody else's root qdisc stands where a tree
// should. What else is foreign says itself what to do about it.
type foreignRootError struct{ error }

func (e foreignRootError) Unwrap() error { return e.error }

// notPrivileged says whether an error is a want of rights.
func notPrivileged(err error) bool {
	return errors.Is(err, rtnl.ErrNotPrivileged) || errors.Is(err, caps.ErrNotPrivileged) || errors.Is(err, fs.ErrPermission) || errors.Is(err, syscall.EPERM)
}
