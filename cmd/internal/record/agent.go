package record

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// AgentSocket is the agent's in the run directory.
const AgentSocket = "agent.sock"

// RunningError says that there is an agent already.
type RunningError struct{ holder string }

func (e *RunningError) Error() string {
	return fmt.Sprintf("%s is already running in this network namespace, and one watches all its interfaces", e.holder)
}

// AgentFile is locked as long as the agent lives, however it ends.
func (s *Store) AgentFile() string { return s.lockNamed("agent.lock") }

// TakeAgent makes the caller the agent, until the file is closed. The caller holds
// the lock of writers.
func (s *Store) TakeAgent() (*os.File, error) {
	f, err := s.TryLock(s.AgentFile(), "agent")
	if f == nil && err == nil {
		err = &RunningError{holder(s.AgentFile(), "an agent")}
	}
	return f, err
}

// AgentHeld says whether a file of TakeAgent is still the one that others find.
func (s *Store) AgentHeld(f *os.File) bool {
	mine, err := f.Stat()
	if err != nil {
		return false
	}
	now, err := os.Lstat(s.AgentFile())
	return err == nil && os.SameFile(mine, now)
}

// Reachable says whether the agent's socket is there.
func (s *Store) Reachable() bool {
	_, err := os.Lstat(s.AgentSocketFile())
	return err == nil
}

// AgentRuns says whether there is an agent. Where that is about to start, who asks should
// hold the lock of writers: to ask is to hold the agent's for a moment.
func (s *Store) AgentRuns() bool {
	f, err := openOwn(s.AgentFile(), os.O_RDWR, 0)
	if err != nil {
		return !errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) != nil
}

// AgentSocketFile is where the agent of a network namespace listens.
func (s *Store) AgentSocketFile() string { return filepath.Join(s.Dir, AgentSocket) }

// ExporterSocketFile is where an exporter for a network namespace listens that was told
// nothing else.
func (s *Store) ExporterSocketFile() string { return filepath.Join(s.Dir, "exporter.sock") }

// WebSocketFile is where the page for a network namespace is served that was told nothing else.
func (s *Store) WebSocketFile() string { return filepath.Join(s.Dir, "web.sock") }
