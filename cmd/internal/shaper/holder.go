package shaper

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cgroup/confine"
	"github.com/vifshape/vifshape/cmd/internal/record"
	"github.com/vifshape/vifshape/hierarchy"
	"github.com/vifshape/vifshape/hierarchy/amend"
)

// HolderOf is a limit's holder that a process is; the cgroup follows from the limit.
func HolderOf(pid int) (*amend.Holder, error) {
	at, err := cgroupfs.Started(pid)
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("process %d: %w", pid, unix.ESRCH)
	}
	return &amend.Holder{PID: pid, Start: at}, err
}

// ExecLimited makes this process a program in a limit of its own, which goes with the
// program's last process. It returns only where it cannot, with the reason. Command is the
// program in a branch; watch starts the process that takes the limit away, by
// [Machine.GuardLimit], and ends.
func (m *Machine) ExecLimited(ctx context.Context, l Limit, command func(hierarchy.Path) confine.Command, watch *exec.Cmd) error {
	if err := command("").Check(); err != nil {
		return err
	}
	holder, err := HolderOf(os.Getpid())
	if err != nil {
		return err
	}
	l.Own, l.Holder = true, holder
	made, err := m.Limit(ctx, l)
	if err != nil {
		return err
	}
	// That one is no child of the program's, which would be told when it ends.
	if out, failed := watch.CombinedOutput(); failed != nil {
		err = fmt.Errorf("%w: %s", failed, out)
	} else {
		var inside bool
		if inside, err = m.exec(ctx, made[0], command(made[0])); inside {
			return err // and the guard takes the limit away, which this process may have lost the right to
		}
	}
	return errors.Join(err, m.takeUnused(context.WithoutCancel(ctx), made))
}

// takeUnused takes limits away that nobody is in.
func (m *Machine) takeUnused(ctx context.Context, made []hierarchy.Path) error {
	unlock, err := m.lock(ctx, "unlimit")
	if err != nil {
		return err
	}
	defer unlock()
	var errs []error
	for _, p := range made {
		errs = append(errs, m.takeLimits(ctx, p.Interface(), func(b amend.Branch) bool {
			return b.Path == p && (b.Holder == nil || !populated(b.Holder.Cgroup))
		}))
	}
	return errors.Join(errs...)
}

// GuardLimit waits until the limit that a process holds is for nobody any more, and takes
// it away. What ends it meanwhile does no harm: the next vifshape that changes something
// takes away what has passed.
func (m *Machine) GuardLimit(ctx context.Context, pid int) error {
	if err := m.stand(); err != nil {
		return err
	}
	awaitEnd(ctx, pid)
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		all, err := m.Limits()
		if err != nil {
			return err
		}
		held := func(l Limited) bool { return l.Holder != nil && l.Holder.PID == pid }
		switch {
		case !slices.ContainsFunc(all, held):
			return nil
		case slices.ContainsFunc(all, func(l Limited) bool { return held(l) && passed(l.Branch) }):
			unlock, err := m.lock(ctx, "limit")
			if busy := (*record.LockedError)(nil); errors.As(err, &busy) {
				continue
			}
			if err != nil {
				return err
			}
			unlock() // whoever has the lock takes away what has passed
			if again, err := m.Limits(); err != nil || len(again) == len(all) {
				return err // it cannot be taken away now
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause): // its children live on
		}
	}
}

// awaitEnd waits until a process has ended, where the kernel tells it (Linux 5.3).
func awaitEnd(ctx context.Context, pid int) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	for ctx.Err() == nil {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 1000)
		if n > 0 || err != nil && err != unix.EINTR {
			return
		}
	}
}
