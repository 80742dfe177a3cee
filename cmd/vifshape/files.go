package main

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

// notFileError says that something else stands where a file should.
type notFileError struct {
	file string
	mode fs.FileMode
}

func (e *notFileError) Error() string {
	what := "is no ordinary file"
	for _, k := range []struct {
		mode fs.FileMode
		what string
	}{{fs.ModeSymlink, "is a symbolic link"}, {fs.ModeDir, "is a directory"}, {fs.ModeNamedPipe, "is a named pipe"}, {fs.ModeSocket, "is a socket"}, {fs.ModeDevice, "is a device"}} {
		if e.mode&k.mode != 0 {
			what = k.what
			break
		}
	}
	return e.file + " " + what
}

// trusted refuses what others than root, and the caller, may have written.
func trusted(file string, st fs.FileInfo) error {
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
		return nil, &notFileError{file, st.Mode()}
	}
	f, err := os.OpenFile(file, flags|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, mode)
	if err != nil {
		return nil, err
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() { // it was put there meanwhile
		err = &notFileError{file, st.Mode()}
	}
	if err == nil {
		err = trusted(file, st)
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

// openPolicy opens a policy's file, which may be whose it likes. A named pipe could
// make the reader wait for ever, and a device be anything; what a shell makes of
// <(command) is a pipe without a name, and has an end.
func openPolicy(file string) (*os.File, error) {
	if st, err := os.Stat(file); err == nil && !st.Mode().IsRegular() && st.Mode()&fs.ModeNamedPipe == 0 {
		return nil, &notFileError{file, st.Mode()}
	}
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	var in unix.Statfs_t
	st, err := f.Stat()
	if err == nil {
		err = unix.Fstatfs(int(f.Fd()), &in)
	}
	if err == nil && !st.Mode().IsRegular() && in.Type != unix.PIPEFS_MAGIC {
		err = fmt.Errorf("%w: read it into a file, or write - and pipe it in", &notFileError{file, st.Mode()})
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// noRoomError says that the run directory is full.
type noRoomError struct {
	dir string
	err error
}

func (e *noRoomError) Error() string { return e.err.Error() }
func (e *noRoomError) Unwrap() error { return e.err }

// full says whether an error is that the run directory is full.
func full(err error) bool {
	var no *noRoomError
	return errors.As(err, &no)
}

// room makes that error of one of writing in the directory.
func (s *store) room(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) {
		return &noRoomError{s.dir, err}
	}
	return err
}
