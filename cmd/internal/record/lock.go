package record

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/vifshape/vifshape/cmd/internal/words"
)

// lockWait is how long a writer waits for another one.
const lockWait = 10 * time.Second

// LockedError says who else is writing.
type LockedError struct {
	Holder string
	Wait   time.Duration
}

func (e *LockedError) Error() string {
	return fmt.Sprintf("%s is changing the interfaces of this network namespace, and did not finish within %v", e.Holder, e.Wait)
}

// Lock makes the caller the only writer in this network namespace until the
// returned function is called or the process ends. The kernel releases a lock
// whose holder was killed. The function also removes the directory where nothing
// is left in it.
func (s *Store) Lock(ctx context.Context, what string) (func(), error) {
	deadline := time.Now().Add(s.Wait)
	for pause := time.Millisecond; ; pause = min(2*pause, 20*time.Millisecond) { // many hold it for some milliseconds alone
		f, err := s.TryLock(s.LockFile(), what)
		if errors.Is(err, fs.ErrPermission) && os.Geteuid() != 0 {
			err = fmt.Errorf("only root may do that: %w", err)
		}
		if errors.Is(err, syscall.EROFS) {
			err = fmt.Errorf("%w, as it is for programs that vifshape keeps in a branch: call it from outside", err)
		}
		if err != nil {
			return nil, err
		}
		if f != nil {
			return func() {
				_ = f.Truncate(0) // only a name for a message
				s.tidy()
				f.Close()
			}, nil
		}
		if time.Now().After(deadline) {
			return nil, &LockedError{holder(s.LockFile(), "another vifshape"), s.Wait}
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(pause):
		}
	}
}

// LockFile is the file of the lock of writers.
func (s *Store) LockFile() string { return s.lockNamed("lock") }

// lockNamed is a file to lock. The directory of all namespaces' locks is for good: who is
// kept from it (see run) is kept from that one, and not from what is made in its place.
func (s *Store) lockNamed(name string) string {
	if s.NetNS != "" {
		name = s.NetNS + "." + name
	}
	return filepath.Join(s.Locks, name)
}

// TryLock is a locked file with the holder's name in it, or nil where another one has
// the lock. A file that was removed by its holder, see tidy, is no lock any more,
// whoever gets hold of it. With the lock there is the run directory.
func (s *Store) TryLock(file, what string) (*os.File, error) {
	for try := 1; ; try++ {
		// Somebody may be removing the directories at the same time.
		again := func(err error) bool { return errors.Is(err, fs.ErrNotExist) && try < 1000 }
		err := MakeDir(s.Locks)
		if again(err) {
			continue
		}
		if err != nil {
			return nil, s.room(err)
		}
		err = s.trusted(s.Locks)
		if again(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		// Who may open it may lock it, and keep all others waiting.
		f, err := openOwn(file, os.O_RDWR|os.O_CREATE, 0o600)
		if again(err) {
			continue
		}
		if other := (*NotFileError)(nil); errors.As(err, &other) {
			err = fmt.Errorf("%w, and no lock can be there: remove it", err)
		}
		if err != nil {
			return nil, s.room(err)
		}
		if err := f.Chmod(0o600); err != nil {
			return nil, errors.Join(err, f.Close())
		}
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err != nil {
			f.Close()
			if errors.Is(err, syscall.EWOULDBLOCK) {
				return nil, nil
			}
			return nil, fmt.Errorf("lock %s: %w", file, err)
		}
		mine, err := f.Stat()
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		if now, err := os.Lstat(file); err == nil && os.SameFile(mine, now) {
			who := fmt.Sprintf("vifshape %s%s%d)\n", what, holderPID, os.Getpid())
			// There may be no room for it; it is only a name for a message.
			if err := s.room(errors.Join(f.Truncate(0), writeAt(f, who))); err != nil && !Full(err) {
				return nil, errors.Join(err, f.Close())
			}
			err := s.room(MakeDir(s.Dir))
			if err == nil {
				err = s.trusted(s.Dir)
			}
			if again(err) {
				f.Close()
				continue
			}
			if err != nil && !Full(err) { // nor for a record, and save says so
				return nil, errors.Join(err, f.Close())
			}
			return f, nil
		}
		f.Close()
	}
}

// holder says who has the lock of a file; unknown is for one whose name is not in it,
// or who was killed.
func holder(file, unknown string) string {
	b, _ := readOwn(file, 4096) // only a name for the message
	text := strings.TrimSpace(string(b))
	pid := 0
	if i := strings.LastIndex(text, holderPID); i >= 0 {
		_, _ = fmt.Sscanf(text[i:], holderPID+"%d)", &pid) // stays 0
	}
	if pid > 0 && syscall.Kill(pid, 0) != syscall.ESRCH {
		return words.Printable(text)
	}
	return unknown
}

// holderPID is what stands in front of the process id in the lock file.
const holderPID = " (process "

func writeAt(f *os.File, s string) error {
	_, err := f.WriteAt([]byte(s), 0)
	return err
}
