package record

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// mostRecord bounds a record, of which one with 60,000 branches has 20 MiB.
const mostRecord = 64 << 20

// NotFileError says that something else stands where a file should.
type NotFileError struct {
	File string
	Mode fs.FileMode
}

func (e *NotFileError) Error() string {
	what := "is no ordinary file"
	for _, k := range []struct {
		mode fs.FileMode
		what string
	}{{fs.ModeSymlink, "is a symbolic link"}, {fs.ModeDir, "is a directory"}, {fs.ModeNamedPipe, "is a named pipe"}, {fs.ModeSocket, "is a socket"}, {fs.ModeDevice, "is a device"}} {
		if e.Mode&k.mode != 0 {
			what = k.what
			break
		}
	}
	return e.File + " " + what
}

// Trusted refuses what others than root, and the caller, may have written.
func Trusted(file string, st fs.FileInfo) error {
	sys, ok := st.Sys().(*syscall.Stat_t)
	switch {
	case ok && sys.Uid != 0 && int(sys.Uid) != os.Geteuid():
		return fmt.Errorf("%s belongs to user %d, who could write anything there: `chown root %s` once you have seen to what is in it", file, sys.Uid, file)
	case st.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("others than root may write to %s: `chmod go-w %s` once you have seen to what is in it", file, file)
	}
	return nil
}

// openOwn opens a file of the run directory. What else stands in its place, such as a
// link, a named pipe or a device, is neither followed nor waited for nor touched.
func openOwn(file string, flags int, mode fs.FileMode) (*os.File, error) {
	if st, err := os.Lstat(file); err == nil && !st.Mode().IsRegular() {
		return nil, &NotFileError{file, st.Mode()}
	}
	f, err := os.OpenFile(file, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() { // it was put there meanwhile
		err = &NotFileError{file, st.Mode()}
	}
	if err == nil {
		err = Trusted(file, st)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// readOwn reads one, of a length that is limited.
func readOwn(file string, most int64) ([]byte, error) {
	f, err := openOwn(file, os.O_RDONLY, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(b)) > most {
		err = fmt.Errorf("%s is longer than %d bytes", file, most)
	}
	return b, err
}

// NoRoomError says that the run directory is full.
type NoRoomError struct {
	Dir string
	err error
}

func (e *NoRoomError) Error() string { return e.err.Error() }
func (e *NoRoomError) Unwrap() error { return e.err }

// Full says whether an error is that the run directory is full.
func Full(err error) bool {
	var no *NoRoomError
	return errors.As(err, &no)
}

// room makes that error of one of writing in the directory.
func (s *Store) room(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &NoRoomError{s.Dir, err}
	}
	return err
}
