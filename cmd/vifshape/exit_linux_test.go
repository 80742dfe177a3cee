package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/caps"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/cmd/internal/shaper"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/tc/link"
	"github.com/vifshape/vifshape/tc/rtnl"
)

// TestExitCode holds the exit status and the message of each kind of error.
func TestExitCode(t *testing.T) {
	undone := &hierarchy.ApplyError{Err: context.Canceled}
	stuck := &hierarchy.ApplyError{Err: context.Canceled, Undo: errors.New("no way back")}
	denied := &rtnl.OpError{Op: "create class", Device: "eth0", Err: unix.EPERM}
	for _, c := range []struct {
		name string
		err  error
		code int
		text string
	}{
		{"none", nil, exitOK, ""},
		{"any", errors.New("eth0: broken"), exitError, "vifshape: error: eth0: broken\n"},
		{"given code", codeError(42), 42, ""},
		{"usage", usagef("what?"), exitUsage, "vifshape: error: what?\nvifshape: hint: "},
		{"interrupted while waiting", context.Canceled, exitInterrupted, "vifshape: error: interrupted\n"},
		{"interrupted and undone", undone, exitInterrupted, "vifshape: error: interrupted; everything is as it was before\n"},
		{"not undone", stuck, exitPartly, "vifshape: error: interrupted; going back failed as well: no way back\nvifshape: hint: "},
		{"undone, and another interface is not", shaper.PartlyError{Err: fmt.Errorf("%w; and eth1 could not be put back", undone)}, exitPartly, "could not be put back\nvifshape: hint: "},
		{"kernel refuses", fmt.Errorf("eth0: %w", denied), exitPrivilege, "(needs root or CAP_NET_ADMIN)\nvifshape: hint: "},
		{"confined", fmt.Errorf("eth0: %w", caps.ErrConfined), exitPrivilege, "eth0: not privileged\nvifshape: hint: run it as root of the machine, outside of containers and user namespaces; "},
		{"file refuses", &fs.PathError{Op: "open", Path: "x", Err: fs.ErrPermission}, exitPrivilege, "vifshape: hint: "},
		{"another writer", fmt.Errorf("eth0: %w", &record.LockedError{Holder: "vifshape apply", Wait: time.Second}), exitLocked, "did not finish within 1s\nvifshape: hint: "},
		{"no such interface", &link.NotFoundError{Name: "eth9"}, exitError, "vifshape: error: eth9: no such interface\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := exitCode(c.err); got != c.code {
				t.Errorf("exit code %d, not %d", got, c.code)
			}
			var stderr strings.Builder
			if c.err != nil {
				(&env{stderr: &stderr}).report(c.err)
			}
			if !strings.Contains(stderr.String(), c.text) || c.text == "" && stderr.String() != "" {
				t.Errorf("message %q, not %q", stderr.String(), c.text)
			}
		})
	}
}
