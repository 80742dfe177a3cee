package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// agentSocket is the agent's in the run directory.
const agentSocket = "agent.sock"

// runningError says that there is an agent already.
type runningError struct{ holder string }

func (e *runningError) Error() string {
	return fmt.Sprintf("%s is already running in this network namespace, and one watches all its interfaces", e.holder)
}

// agentFile is locked as long as the agent lives, however it ends.
func (s *store) agentFile() string { return s.lockNamed("agent.lock") }

// takeAgent makes the caller the agent, until the file is closed. The caller holds
// the lock of writers.
func (s *store) takeAgent() (*os.File, error) {
	f, err := s.tryLock(s.agentFile(), "agent")
	if f == nil && err == nil {
		err = &runningError{holder(s.agentFile(), "an agent")}
	}
	return f, err
}

// agentHeld says whether a file of takeAgent is still the one that others find.
func (s *store) agentHeld(f *os.File) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Lstat(s.agentFile())
	return err == nil && os.SameFile(mine, now)
}

// reachable says whether the agent's socket is there.
func (s *store) reachable() bool {
	_, err := os.Lstat(s.agentSocketFile())
	return err == nil
}

// agentRuns says whether there is an agent. The caller holds the lock of writers: to
// ask is to hold the agent's for a moment.
func (s *store) agentRuns() bool {
	f, err := openOwn(s.agentFile(), os.O_RDWR, 0)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
}
