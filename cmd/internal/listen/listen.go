// Package listen opens the places at which the program answers over HTTP: a socket file, a port
// of this machine alone, or sockets that systemd hands over. Nobody from another machine gets in.
package listen

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// A PlaceError says that nothing listens there, and what to write.
type PlaceError struct{ why, remedy string }

func (e *PlaceError) Error() string { return e.why }

// Remedy is what to do instead.
func (e *PlaceError) Remedy() string { return e.remedy }

// An Address is a place: a socket file, or a port of this machine alone.
type Address struct {
	file string // empty: port
	port netip.AddrPort
}

// ParseAddress reads "unix:/run/vifshape.sock", "127.0.0.1:9719" and "[::1]:9719".
func ParseAddress(s string) (Address, error) {
	if file, ok := strings.CutPrefix(s, "unix:"); ok {
		if !filepath.IsAbs(file) {
			return Address{}, fmt.Errorf("%q does not name a socket from the root on: write it as unix:/run/vifshape.sock", s)
		}
		return Address{file: file}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Address{}, fmt.Errorf("%q is no place to listen: write one as unix:/run/vifshape.sock or 127.0.0.1:9719", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return Address{}, fmt.Errorf("%q has no port from 0 to 65535: write it as 127.0.0.1:9719", s)
	}
	ip, err := netip.ParseAddr(host)
	switch {
	case host == "": // every address, as others read it
		return Address{}, beyond(s)
	case err != nil:
		return Address{}, fmt.Errorf("%q is no address, and names are not looked up: write 127.0.0.1:%d", host, n)
	case !ip.Unmap().IsLoopback():
		return Address{}, beyond(s)
	}
	return Address{port: netip.AddrPortFrom(ip.Unmap(), uint16(n))}, nil
}

func beyond(where string) error {
	return &PlaceError{
		where + " can be reached from other machines, and what goes there is neither encrypted nor asked who sends it",
		"let it listen at 127.0.0.1 or a unix socket, and put a reverse proxy with TLS before it",
	}
}

// Socket is the address of a socket file.
func Socket(file string) Address { return Address{file: file} }

// String is the address as it is written.
func (a Address) String() string {
	if a.file != "" {
		return "unix:" + a.file
	}
	return a.port.String()
}

// Listen opens the place. A socket file that was left behind is replaced; who may connect to
// it says its mode.
func (a Address) Listen(mode fs.FileMode) (net.Listener, error) {
	if a.file == "" {
		l, err := net.Listen("tcp", a.port.String())
		if errors.Is(err, unix.EADDRINUSE) {
			return nil, &PlaceError{fmt.Sprintf("somebody listens at %v already", a.port), "`ss -ltnp` says who; name another port by --listen 127.0.0.1:PORT"}
		}
		return l, err
	}
	if n := len(unix.RawSockaddrUnix{}.Path); len(a.file) >= n {
		return nil, &PlaceError{fmt.Sprintf("%s is too long for the name of a socket, of which the kernel takes %d bytes", a.file, n-1), "name a shorter one by --listen unix:FILE"}
	}
	l, err := net.Listen("unix", a.file)
	if errors.Is(err, unix.EADDRINUSE) && a.dead() {
		if err := os.Remove(a.file); err != nil {
			return nil, err
		}
		l, err = net.Listen("unix", a.file)
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return nil, &PlaceError{fmt.Sprintf("%s is there already, and somebody answers at it or it is no socket", a.file), "name another one by --listen unix:FILE"}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrNotExist):
		return nil, &PlaceError{fmt.Sprintf("no socket can be made at %s: %v", a.file, errors.Unwrap(err)), "name a place by --listen unix:FILE or --listen 127.0.0.1:9719, or have systemd hand over a socket"}
	case err != nil:
		return nil, err
	}
	return l, os.Chmod(a.file, mode)
}

// dead says whether the file is a socket at which nobody listens.
func (a Address) dead() bool {
	if st, err := os.Lstat(a.file); err != nil || st.Mode()&fs.ModeSocket == 0 {
		return false
	}
	c, err := net.Dial("unix", a.file)
	if err == nil {
		c.Close()
	}
	return errors.Is(err, unix.ECONNREFUSED)
}

// firstPassed is the descriptor of the first socket that is handed over, of
// sd_listen_fds(3).
const firstPassed = 3

// Passed are the sockets that systemd hands over, none where it does not. They are taken once:
// the variables that say so go.
func Passed() ([]net.Listener, error) {
	pid, number := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS")
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	for _, v := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		if err := os.Unsetenv(v); err != nil {
			return nil, err
		}
	}
	n, err := strconv.Atoi(number)
	if err != nil || n < 1 {
		return nil, fmt.Errorf("LISTEN_FDS is %q, and not how many sockets are handed over", number)
	}
	var all []net.Listener
	for fd := firstPassed; fd < firstPassed+n; fd++ {
		l, err := passed(fd)
		if err != nil {
			for _, l := range all {
				err = errors.Join(err, l.Close())
			}
			return nil, err
		}
		all = append(all, l)
	}
	return all, nil
}

func passed(fd int) (net.Listener, error) {
	f := os.NewFile(uintptr(fd), "socket that is handed over")
	defer f.Close() // the listener has a copy
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d, which is handed over, is no socket that listens: %w", fd, err)
	}
	if a, ok := l.Addr().(*net.TCPAddr); ok && !a.IP.IsLoopback() {
		return nil, errors.Join(beyond(a.String()), l.Close())
	}
	return l, nil
}

// patience is how long a connection may ask nothing while others wait for its room.
const patience = 200 * time.Millisecond

// Serve answers at listeners, which it closes, until ctx ends; that is no error. More
// connections than most wait to be accepted, until another ends or has asked nothing for a while.
func Serve(ctx context.Context, s *http.Server, at []net.Listener, most int) error {
	room, idle := make(chan struct{}, most), &idle{since: map[net.Conn]time.Time{}}
	s.ConnState = idle.note
	failed := make(chan error, len(at))
	for _, l := range at {
		go func() { failed <- s.Serve(&limited{l, room, idle}) }()
	}
	var err error
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	return errors.Join(err, s.Close())
}

// limited accepts a connection where there is room for it.
type limited struct {
	net.Listener
	room chan struct{}
	idle *idle
}

// Accept waits for room, which comes: a client that does nothing is sent away in time.
func (l *limited) Accept() (net.Conn, error) {
	l.enter()
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.room
		return nil, err
	}
	return &roomy{Conn: c, room: l.room}, nil
}

// enter waits for room, and makes it where somebody has it and asks nothing.
func (l *limited) enter() {
	for {
		select {
		case l.room <- struct{}{}:
			return
		default:
		}
		select {
		case l.room <- struct{}{}:
			return
		case <-time.After(l.idle.dismiss()):
		}
	}
}

// idle are the connections of which no whole request has come, or none since the last answer, and
// since when.
type idle struct {
	mu    sync.Mutex
	since map[net.Conn]time.Time
}

// note is told what becomes of connections.
func (x *idle) note(c net.Conn, is http.ConnState) {
	x.mu.Lock()
	defer x.mu.Unlock()
	delete(x.since, c)
	if is == http.StateNew || is == http.StateIdle {
		x.since[c] = time.Now()
	}
}

// dismiss sends the one away that has been idle longest, if that is patience, and returns when
// to look again.
func (x *idle) dismiss() time.Duration {
	x.mu.Lock()
	defer x.mu.Unlock()
	var longest net.Conn
	for c, since := range x.since {
		if longest == nil || since.Before(x.since[longest]) {
			longest = c
		}
	}
	if longest == nil {
		return patience
	}
	if left := patience - time.Since(x.since[longest]); left > 0 {
		return left
	}
	delete(x.since, longest)
	longest.Close()
	return 0
}

// roomy gives its room back once.
type roomy struct {
	net.Conn
	room   chan struct{}
	closed sync.Once
}

func (c *roomy) Close() error {
	c.closed.Do(func() { <-c.room })
	return c.Conn.Close()
}
