package lab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Sink takes in TCP connections and UDP datagrams over IPv4 and IPv6, throws
// the data away and counts it per port. It reads without copying, so that the
// receiving side of a measurement costs as little as it can.
type Sink struct {
	ports map[uint16]*sinkPort
	stop  func() bool
	wait  sync.WaitGroup
}

// sinkPort is what is open on one port. mu guards all fields.
type sinkPort struct {
	mu     sync.Mutex
	closed bool
	listen []*net.TCPListener
	udp    []*udpSink
	tcp    map[*net.TCPConn]struct{}
	done   Count // of closed connections
}

type udpSink struct {
	conn     *net.UDPConn
	header   uint64
	payload  atomic.Uint64
	received atomic.Uint64
}

// NewSink listens on the ports in a namespace (nil: the caller's) until ctx
// ends or Close.
//
// What a TCP connection took on the wire is worked out from the kernel's own
// counters of received segments and bytes (tcp_get_info, net/ipv4/tcp.c,
// v6.12); the payload of a segment that arrives twice is counted once. IP
// options and fragments are not taken into account.
func NewSink(ctx context.Context, n *NetNS, ports ...uint16) (*Sink, error) {
	s := &Sink{ports: map[uint16]*sinkPort{}}
	err := n.Do(func() error {
		for _, port := range ports {
			p := &sinkPort{tcp: map[*net.TCPConn]struct{}{}}
			s.ports[port] = p
			if err := p.open(ctx, port); err != nil {
				return fmt.Errorf("listen on port %d: %w", port, err)
			}
		}
		return nil
	})
	if err != nil {
		s.shut()
		return nil, err
	}
	for _, p := range s.ports {
		for _, l := range p.listen {
			s.wait.Go(func() { s.accept(p, l) })
		}
		for _, u := range p.udp {
			s.wait.Go(func() { u.drain() })
		}
	}
	s.stop = context.AfterFunc(ctx, s.shut)
	return s, nil
}

func (p *sinkPort) open(ctx context.Context, port uint16) error {
	for _, v := range []struct {
		suffix, any string
		header      uint64
	}{{"4", "0.0.0.0", headerIPv4}, {"6", "::", headerIPv6}} {
		addr := net.JoinHostPort(v.any, strconv.Itoa(int(port)))
		lc := net.ListenConfig{Control: receiveBuffer}
		lc.SetMultipathTCP(false) // its TCP_INFO is another one
		l, err := lc.Listen(ctx, "tcp"+v.suffix, addr)
		if v.suffix == "6" && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL)) {
			continue // no IPv6 here
		}
		if err != nil {
			return err
		}
		p.listen = append(p.listen, l.(*net.TCPListener))
		c, err := lc.ListenPacket(ctx, "udp"+v.suffix, addr)
		if err != nil {
			return err
		}
		p.udp = append(p.udp, &udpSink{conn: c.(*net.UDPConn), header: headerEthernet + v.header + headerUDP})
	}
	return nil
}

// receiveBuffer gives a datagram socket room for what arrives while the reader
// waits for a processor. TCP tunes its own.
func receiveBuffer(network, _ string, c syscall.RawConn) error {
	if network[0] != 'u' {
		return nil
	}
	var err error
	e := c.Control(func(fd uintptr) {
		const size = 4 << 20
		// The limit of net.core.rmem_max does not hold for root.
		if err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, size); err == unix.EPERM {
			err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, size)
		}
	})
	return errors.Join(e, err)
}

// Close stops listening, closes the connections and waits until nothing reads
// any more. Counts stay readable. Closing again is no error.
func (s *Sink) Close() error {
	s.stop()
	s.shut()
	s.wait.Wait()
	return nil
}

func (s *Sink) shut() {
	for _, p := range s.ports {
		p.mu.Lock()
		if !p.closed {
			p.closed = true
			for _, l := range p.listen {
				l.Close()
			}
			for c := range p.tcp {
				p.finish(c)
			}
			for _, u := range p.udp {
				p.done.add(u.count())
				u.conn.Close()
			}
		}
		p.mu.Unlock()
	}
}

// Count is what has arrived on a port so far, TCP and UDP together. A port that
// the sink does not have counts nothing.
func (s *Sink) Count(port uint16) Count {
	p, ok := s.ports[port]
	if !ok {
		return Count{Time: time.Now()}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	sum := p.done
	for c := range p.tcp {
		sum.add(tcpCount(c))
	}
	if !p.closed {
		for _, u := range p.udp {
			sum.add(u.count())
		}
	}
	sum.Time = time.Now()
	return sum
}

func (s *Sink) accept(p *sinkPort, l *net.TCPListener) {
	for {
		c, err := l.AcceptTCP()
		if err != nil {
			if errors.Is(err, net.ErrClosed) {
				return
			}
			// Out of descriptors, or a connection that was reset
			// before it was taken: the next one may do.
			time.Sleep(time.Millisecond)
			continue
		}
		p.mu.Lock()
		if p.closed {
			c.Close()
		} else {
			lowWater(c)
			p.tcp[c] = struct{}{}
			s.wait.Go(func() { p.drain(c) })
		}
		p.mu.Unlock()
	}
}

// lowWater lets the reader of a connection sleep until there is something worth
// reading: what is counted has been received, whether it was read or not.
func lowWater(c *net.TCPConn) {
	if raw, err := c.SyscallConn(); err == nil {
		// Without it the reader is woken more often, no more.
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVLOWAT, 32<<10) })
	}
}

// drain throws away what arrives on a connection until its end.
func (p *sinkPort) drain(c *net.TCPConn) {
	if raw, err := c.SyscallConn(); err == nil {
		// An error is the end of the connection like any other.
		_ = raw.Read(func(fd uintptr) bool {
			for {
				// With MSG_TRUNC TCP takes data off its queue without
				// copying it; no buffer is needed (tcp_recvmsg_locked,
				// net/ipv4/tcp.c, v6.12).
				n, _, errno := unix.Syscall6(unix.SYS_RECVFROM, fd, 0, 1<<30, unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
				switch {
				case errno == unix.EAGAIN:
					return false
				case errno == unix.EINTR:
				case errno != 0 || n == 0:
					return true
				}
			}
		})
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.finish(c)
}

// finish closes a connection and keeps its count; p.mu is held.
func (p *sinkPort) finish(c *net.TCPConn) {
	if _, ok := p.tcp[c]; !ok {
		return
	}
	p.done.add(tcpCount(c))
	delete(p.tcp, c)
	c.Close()
}

// closeWait is TCP_CLOSE_WAIT of linux/tcp_states.h: the sender has finished.
const closeWait = 8

// tcpCount asks the kernel what a connection received. The answer for one that
// is closed already is nothing.
func tcpCount(c *net.TCPConn) Count {
	raw, err := c.SyscallConn()
	if err != nil {
		return Count{}
	}
	var info *unix.TCPInfo
	if raw.Control(func(fd uintptr) { info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) }) != nil || err != nil {
		return Count{}
	}
	header := uint64(headerEthernet + headerIPv6 + headerTCP)
	if c.LocalAddr().(*net.TCPAddr).IP.To4() != nil {
		header = headerEthernet + headerIPv4 + headerTCP
	}
	if info.Options&1 != 0 { // TCPI_OPT_TIMESTAMPS
		header += headerTimestamps
	}
	payload, segs := info.Bytes_received, uint64(info.Segs_in)
	if info.State == closeWait {
		payload-- // the end of the data takes a number, as a byte does
	}
	return Count{Payload: payload, Wire: payload + segs*header, Packets: segs}
}

// mmsghdr is struct mmsghdr of recvmmsg(2) and sendmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	len uint32
}

// drain counts datagrams until the socket is closed.
func (u *udpSink) drain() {
	raw, err := u.conn.SyscallConn()
	if err != nil {
		return
	}
	// No buffers: with MSG_TRUNC the length of a datagram is told all the same.
	var msgs [64]mmsghdr
	// The error is that of a closed socket.
	_ = raw.Read(func(fd uintptr) bool {
		for {
			n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&msgs[0])), uintptr(len(msgs)), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
			switch {
			case errno == unix.EAGAIN:
				return false
			case errno == unix.EINTR, errno == unix.ECONNREFUSED:
				continue
			case errno != 0:
				return true
			}
			var sum uint64
			for i := range n {
				sum += uint64(msgs[i].len)
			}
			u.payload.Add(sum)
			u.received.Add(uint64(n))
		}
	})
}

func (u *udpSink) count() Count {
	n, payload := u.received.Load(), u.payload.Load()
	return Count{Payload: payload, Wire: payload + n*u.header, Packets: n, Dropped: u.drops()}
}

// drops is the number of datagrams that found the socket's buffer full.
func (u *udpSink) drops() uint64 {
	raw, err := u.conn.SyscallConn()
	if err != nil {
		return 0
	}
	var mem [9]uint32 // SK_MEMINFO_VARS of linux/sock_diag.h
	size := uint32(unsafe.Sizeof(mem))
	var errno syscall.Errno
	err = raw.Control(func(fd uintptr) {
		_, _, errno = unix.Syscall6(unix.SYS_GETSOCKOPT, fd, unix.SOL_SOCKET, unix.SO_MEMINFO, uintptr(unsafe.Pointer(&mem[0])), uintptr(unsafe.Pointer(&size)), 0)
	})
	if err != nil || errno != 0 {
		return 0
	}
	return uint64(mem[8]) // SK_MEMINFO_DROPS
}
