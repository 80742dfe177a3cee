package escape

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vifshape/vifshape/tc/lab"
)

// Far is a far end that sends what it is asked to, as one who is in league with the program
// that tries would.
type Far struct {
	Name string // of the unix socket at the near end that takes what is asked

	pair       *lab.Pair
	port       uint16
	asked      *net.UnixListener
	listens    *net.TCPListener
	udp4, udp6 int // 0: the kernel has no IPv6
	frames     int
	nobodys    int // at the near end, of a process that is bound by nothing
	wait       sync.WaitGroup

	mu    sync.Mutex
	conns map[netip.AddrPort]net.Conn // accepted, by who opened them
	came  chan struct{}               // closed when another one came
}

// wish is what the far end is asked for: as many packets as an attempt sends, or the frames.
type wish struct {
	What   string         // "udp", "tcp": by a connection that stands, "connect": by a new one, "frames", "nobody": that the one who is bound by nothing sends
	To     netip.AddrPort // of the near end
	Size   int            // of each datagram
	Frames [][]byte
}

// NewFar makes one that answers on a port.
func NewFar(p *lab.Pair, port uint16) (*Far, error) {
	f := &Far{Name: "@vifshape-escape-far", pair: p, port: port, frames: -1, nobodys: -1, conns: map[netip.AddrPort]net.Conn{}, came: make(chan struct{})}
	err := p.Far.Do(f.open)
	if err == nil {
		err = p.Near.Do(f.near)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	f.wait.Go(f.accept)
	f.wait.Go(f.serve)
	return f, nil
}

func (f *Far) open() (err error) {
	if f.udp4, err = datagrams(netip.AddrPortFrom(netip.IPv4Unspecified(), f.port)); err != nil {
		return err
	}
	i, err := net.InterfaceByName(f.pair.FarDev)
	if err != nil {
		return err
	}
	err = errors.Join(
		option("SO_BROADCAST", unix.SOL_SOCKET, unix.SO_BROADCAST, 1)(f.udp4),
		call("setsockopt IP_MULTICAST_IF", unix.SetsockoptIPMreqn(f.udp4, unix.IPPROTO_IP, unix.IP_MULTICAST_IF, &unix.IPMreqn{Ifindex: int32(i.Index)})))
	if err == nil && f.pair.Far6.IsValid() {
		f.udp6, err = datagrams(netip.AddrPortFrom(f.pair.Far6, f.port))
	}
	if err != nil {
		return err
	}
	if f.frames, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
		return call("socket AF_PACKET", err)
	}
	if err := unix.Bind(f.frames, &unix.SockaddrLinklayer{Ifindex: i.Index}); err != nil {
		return call("bind", err)
	}
	// nobody is asked whether he is still there, or packets would be counted that nobody tried
	l, err := (&net.ListenConfig{KeepAlive: -1}).Listen(context.Background(), "tcp4", fmt.Sprintf(":%d", f.port))
	if err == nil {
		f.listens = l.(*net.TCPListener)
	}
	return err
}

func (f *Far) near() (err error) {
	if f.nobodys, err = datagrams(netip.AddrPortFrom(f.pair.Near4, f.port)); err != nil {
		return err
	}
	f.asked, err = net.ListenUnix("unixpacket", &net.UnixAddr{Name: f.Name, Net: "unixpacket"})
	return err
}

// datagrams is a UDP socket of an address.
func datagrams(a netip.AddrPort) (int, error) {
	fd, err := unix.Socket(inet(a.Addr().Is6()), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		err = unix.Bind(fd, sockaddr(a))
	}
	return fd, call("open a UDP socket", err)
}

// Close ends it.
func (f *Far) Close() error {
	var errs []error
	if f.asked != nil {
		errs = append(errs, f.asked.Close())
	}
	if f.listens != nil {
		errs = append(errs, f.listens.Close())
	}
	f.wait.Wait()
	for _, c := range f.conns {
		c.Close() // the near end may have reset it
	}
	for _, fd := range []int{f.udp4, f.udp6, f.frames, f.nobodys} {
		if fd > 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	return errors.Join(errs...)
}

func (f *Far) accept() {
	for {
		c, err := f.listens.AcceptTCP()
		if err != nil {
			return // it is closed
		}
		f.mu.Lock()
		f.conns[c.RemoteAddr().(*net.TCPAddr).AddrPort()] = c
		close(f.came)
		f.came = make(chan struct{})
		f.mu.Unlock()
	}
}

// conn is the connection that somebody opened, when it has come.
func (f *Far) conn(from netip.AddrPort) (net.Conn, error) {
	for late := time.After(patience); ; {
		f.mu.Lock()
		c, came := f.conns[from], f.came
		f.mu.Unlock()
		if c != nil {
			return c, nil
		}
		select {
		case <-came:
		case <-late:
			return nil, fmt.Errorf("no connection came from %v", from)
		}
	}
}

// patience is how long something may take that takes no time.
const patience = 5 * time.Second

func (f *Far) serve() {
	for {
		c, err := f.asked.AcceptUnix()
		if err != nil {
			return // it is closed
		}
		b := make([]byte, 1<<16)
		n, err := c.Read(b)
		var w wish
		if err == nil {
			err = json.Unmarshal(b[:n], &w)
		}
		if err == nil {
			err = f.send(w)
		}
		answer := "done"
		if err != nil {
			answer = err.Error()
		}
		_, _ = c.Write([]byte(answer)) // who asked may be gone
		c.Close()
	}
}

// Unbound sends from the near end by the socket of a process that is bound by nothing.
func (f *Far) Unbound() (sent int, err error) {
	for range packets {
		if err := f.send(wish{What: "nobody"}); err != nil {
			return sent, err
		}
		sent++
	}
	return sent, nil
}

func (f *Far) send(w wish) error {
	b := payload
	if w.Size > 0 {
		b = make([]byte, w.Size)
	}
	each := func(send func() error) error {
		for range packets {
			if err := send(); err != nil {
				return err
			}
		}
		return nil
	}
	through := func(c net.Conn, err error) error {
		if err != nil {
			return err
		}
		return each(func() error { _, err := c.Write(b); return err })
	}
	switch w.What {
	case "udp":
		fd := f.udp4
		if w.To.Addr().Is6() {
			fd = f.udp6
		}
		return each(func() error { return call("sendto", unix.Sendto(fd, b, 0, sockaddr(w.To))) })
	case "tcp":
		return through(f.conn(w.To))
	case "connect":
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		return f.pair.Far.Do(func() error {
			c, err := (&net.Dialer{KeepAlive: -1}).DialContext(ctx, "tcp", w.To.String())
			if err == nil {
				f.mu.Lock()
				f.conns[w.To] = c
				f.mu.Unlock()
			}
			return through(c, err)
		})
	case "frames":
		for _, b := range w.Frames {
			if _, err := unix.Write(f.frames, b); err != nil {
				return call("write to a packet socket", err)
			}
		}
		return nil
	case "nobody":
		return call("sendto", unix.Sendto(f.nobodys, b, 0, sockaddr(netip.AddrPortFrom(f.pair.Far4, f.port))))
	}
	return fmt.Errorf("%q is no wish", w.What)
}
