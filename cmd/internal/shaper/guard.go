package shaper

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"syscall"
	"time"

	"github.com/vifshape/vifshape/cgroup/cgroupfs"
	"github.com/vifshape/vifshape/cmd/internal/record"
)

// guardReady is the descriptor by which a guard says that it is there.
const guardReady = 3

// StartGuard starts a guard, and waits until it is one: in a session of its own, which a
// terminal that is lost does not end. Whoever stays longer than it does leaves no zombie of it.
func StartGuard(cmd *exec.Cmd) error {
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd.ExtraFiles = []*os.File{w}
	cmd.Dir, cmd.Env = "/", []string{}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = errors.Join(cmd.Start(), w.Close())
	if err == nil {
		err = r.SetReadDeadline(time.Now().Add(10 * time.Second))
	}
	if err == nil {
		_, err = r.Read(make([]byte, 1))
	}
	if err != nil {
		return fmt.Errorf("the process cannot be started that takes it back in time: %w", err)
	}
	go func() { _ = cmd.Wait() }() // how it ends is its own affair
	return nil
}

// Guard waits until an apply is confirmed, or goes back from it when its time is over. It is
// the work of a process that was started by an apply, see [ApplyOptions].
func (m *Machine) Guard(ctx context.Context) error {
	if err := m.stand(); err != nil {
		return err
	}
	for {
		u, err := m.Store.Unconfirmed()
		if err != nil || u == nil {
			return err
		}
		if u.Left() > 0 {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(min(u.Left(), 200*time.Millisecond)):
			}
			continue
		}
		unlock, err := m.lock(ctx, "confirm")
		if busy := (*record.LockedError)(nil); errors.As(err, &busy) {
			continue
		}
		if err != nil {
			return err
		}
		unlock() // whoever has the lock when the time is over goes back
	}
}

// stand makes this process a guard that its parent need not wait for any more.
func (m *Machine) stand() error {
	// Where a session ends with all of its cgroup, this process is not in it any more.
	if t, err := cgroupfs.FindV2(); err == nil {
		_ = t.Join("/", os.Getpid()) // else it lives as long as the session does, or the next vifshape goes back
		t.Close()
	}
	ready := os.NewFile(guardReady, "ready")
	if _, err := ready.Write([]byte{1}); err != nil {
		return err
	}
	return ready.Close()
}
