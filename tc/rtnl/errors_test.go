//go:build linux

package rtnl

import (
	"errors"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/hierarchy"
)

func TestOpError(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  *OpError
		is   error
		want string
	}{
		{"class", &OpError{Op: "create class", Device: "eth0", Class: hierarchy.ID(0x10), Path: "eth0/web", Err: unix.EINVAL, Kernel: "sch_htb: tree is too deep"}, nil,
			"eth0/web: create class 71f:10: invalid argument (sch_htb: tree is too deep)"},
		{"privileges", &OpError{Op: "create root qdisc", Device: "eth0", Class: hierarchy.ID(0), Err: unix.EPERM}, ErrNotPrivileged,
			"eth0: create root qdisc 71f: operation not permitted (needs root or CAP_NET_ADMIN)"},
		{"gone", &OpError{Op: "read classes", Device: "eth0", Err: unix.ENODEV}, ErrGone, "eth0: read classes: no such device"},
		{"module", &OpError{Op: "attach cgroup filter", Device: "eth0", Err: unix.ENOENT, Kernel: "TC classifier not found"}, ErrNotSupported,
			"eth0: attach cgroup filter: no such file or directory (TC classifier not found)"},
		{"no class", &OpError{Op: "change class", Device: "eth0", Err: unix.ENOENT}, nil, "eth0: change class: no such file or directory"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.err.Error(); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			for _, sentinel := range []error{ErrNotPrivileged, ErrNotSupported, ErrGone, ErrForeign} {
				if errors.Is(tt.err, sentinel) != (sentinel == tt.is) {
					t.Errorf("errors.Is %q", sentinel)
				}
			}
		})
	}
}
