//go:build linux

package rtnl

import (
	"errors"
	"strings"
	"syscall"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

// ErrMalformed says that a message of the kernel is cut short. It cannot happen
// on a sound kernel.
var ErrMalformed = errors.New("message of the kernel is malformed")

// What callers branch on, with errors.Is.
var (
	// ErrNotPrivileged: the caller lacks CAP_NET_ADMIN.
	ErrNotPrivileged = errors.New("needs root or CAP_NET_ADMIN")
	// ErrNotSupported: the kernel lacks a qdisc, a classifier or an operation.
	ErrNotSupported = errors.New("not supported by this kernel")
	// ErrForeign: something stands in the way that vifshape did not make.
	ErrForeign = errors.New("not made by vifshape")
	// ErrGone: the interface vanished after it had been found.
	ErrGone = errors.New("interface is gone")
)

// OpError is an operation that the kernel refused. errors.Is tells with
// [ErrNotPrivileged], [ErrNotSupported] and [ErrGone] why.
type OpError struct {
	Op     string            // "create class", "read qdiscs"
	Device string            // the interface
	Class  hierarchy.ClassID // the class or qdisc concerned; 0: none
	Path   hierarchy.Path    // its name where it has one
	Err    error             // the error number as a syscall.Errno, or why the kernel was not reached
	Kernel string            // the kernel's own words, often empty
}

// Error is one line: where, what, why.
func (e *OpError) Error() string {
	s := e.Device
	if e.Path != "" {
		s = string(e.Path)
	}
	s += ": " + e.Op
	if e.Class != 0 {
		s += " " + strings.TrimSuffix(e.Class.String(), ":") // a colon follows
	}
	words := e.Kernel
	if e.Is(ErrNotPrivileged) {
		words = ErrNotPrivileged.Error()
	}
	s += ": " + e.Err.Error()
	if words != "" {
		s += " (" + words + ")"
	}
	return s
}

// Unwrap is the error number.
func (e *OpError) Unwrap() error { return e.Err }

// Is maps error numbers to this package's errors.
func (e *OpError) Is(target error) bool {
	var no syscall.Errno
	if !errors.As(e.Err, &no) {
		return false
	}
	switch target {
	case ErrNotPrivileged:
		return no == unix.EPERM || no == unix.EACCES
	case ErrNotSupported:
		return no == unix.EOPNOTSUPP || no == unix.ENOENT && unknownKind(e.Kernel)
	case ErrGone:
		return no == unix.ENODEV
	}
	return false
}

// unknownKind recognises the kernel's words for a module that it has not:
// qdisc_create, net/sched/sch_api.c, and tcf_proto_lookup_ops,
// net/sched/cls_api.c, v5.4 to v6.18.
func unknownKind(text string) bool {
	switch text {
	case "Specified qdisc kind is unknown", "Specified qdisc not found", "TC classifier not found":
		return true
	}
	return false
}

// Fail makes an [*OpError] of what netlink returned, nil of nil.
func Fail(op, device string, err error) error {
	if err == nil {
		return nil
	}
	return NewOpError(op, device, err)
}

// NewOpError is Fail for an error that is there, whose other fields the caller knows.
func NewOpError(op, device string, err error) *OpError {
	e := &OpError{Op: op, Device: device, Err: err}
	var n *netlink.OpError
	if errors.As(err, &n) {
		e.Err, e.Kernel = n.Err, n.Message
		var no syscall.Errno
		if errors.As(n.Err, &no) {
			e.Err = no
		}
	}
	return e
}

// Errno is the error number in err, 0 when there is none.
func Errno(err error) syscall.Errno {
	var no syscall.Errno
	errors.As(err, &no)
	return no
}
