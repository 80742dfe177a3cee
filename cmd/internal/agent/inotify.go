package agent

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// inotify tells of changes in directories. One goroutine may wait in read while
// others call the rest.
type inotify struct {
	f  *os.File
	fd int
}

// notice is one change: in the directory behind wd, or of all of them when some
// were lost.
type notice struct {
	wd   int
	mask uint32
	name string // within the directory
}

func (n notice) lost() bool { return n.mask&unix.IN_Q_OVERFLOW != 0 }

func newInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if errors.Is(err, unix.EMFILE) {
		return nil, fmt.Errorf("watch directories: %w: the user's limit fs.inotify.max_user_instances, or that of open files, is reached", err)
	}
	if err != nil {
		return nil, fmt.Errorf("watch directories: %w", err)
	}
	return &inotify{os.NewFile(uintptr(fd), "inotify"), fd}, nil
}

// add watches what is at path now. The same thing has the same wd each time, and
// the number is not used again for another (inotify_add_to_idr,
// fs/notify/inotify/inotify_user.c, v6.12).
func (i *inotify) add(path string, mask uint32) (wd int, err error) {
	wd, err = unix.InotifyAddWatch(i.fd, path, mask|unix.IN_MASK_ADD) // the same directory may be watched for something else
	if errors.Is(err, unix.ENOSPC) {
		return 0, errors.New("watch directories: the user's limit fs.inotify.max_user_watches is reached")
	}
	if err != nil {
		return 0, &os.PathError{Op: "watch", Path: path, Err: err}
	}
	return wd, nil
}

// remove ends a watch; one whose directory went is over already.
func (i *inotify) remove(wd int) {
	_, _ = unix.InotifyRmWatch(i.fd, uint32(wd))
}

// read waits for changes and returns all that there are. Its end is that of close.
func (i *inotify) read() ([]notice, error) {
	buf := make([]byte, 64<<10)
	n, err := i.f.Read(buf)
	if err != nil {
		return nil, fmt.Errorf("watch directories: %w", err)
	}
	var all []notice
	// struct inotify_event of linux/inotify.h.
	for b := buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		all = append(all, notice{
			int(int32(binary.NativeEndian.Uint32(b))), binary.NativeEndian.Uint32(b[4:]),
			strings.TrimRight(string(b[unix.SizeofInotifyEvent:size]), "\x00"),
		})
		b = b[size:]
	}
	return all, nil
}

func (i *inotify) close() error { return i.f.Close() }
